"""Torch modules: drop-ins where torch has the layer, and layers made from any `Spec`.
Imports nothing until a name is used, then the module that holds it.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatelib.nn.attention import AdditiveAttention, DotAttention
    from gatelib.nn.depth import Deep, Dense, Residual, StochasticDepth
    from gatelib.nn.gate import FeatureGate, Gate, interpolate
    from gatelib.nn.gru import GRU, GRUCell
    from gatelib.nn.highway import GTrXLGate, Highway, RecurrentHighway
    from gatelib.nn.lstm import LSTM, LSTMCell
    from gatelib.nn.recurrent import Recurrent
    from gatelib.nn.rnn import RNN, Jordan, RNNCell, SkipRNN
    from gatelib.nn.seq2seq import Decoder, Encoder, FixedContext, Seq2Seq
    from gatelib.nn.stacks import Stack, VariationalDropout, pool

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AdditiveAttention",
    "Decoder",
    "Deep",
    "Dense",
    "DotAttention",
    "Encoder",
    "FeatureGate",
    "FixedContext",
    "GRUCell",
    "GTrXLGate",
    "Gate",
    "Highway",
    "Jordan",
    "LSTMCell",
    "RNNCell",
    "Recurrent",
    "RecurrentHighway",
    "Residual",
    "Seq2Seq",
    "SkipRNN",
    "Stack",
    "StochasticDepth",
    "VariationalDropout",
    "init",
    "interpolate",
    "pool",
]

_HOMES = {
    "Deep": "depth",
    "Dense": "depth",
    "Residual": "depth",
    "StochasticDepth": "depth",
    "FeatureGate": "gate",
    "Gate": "gate",
    "interpolate": "gate",
    "GRU": "gru",
    "GRUCell": "gru",
    "GTrXLGate": "highway",
    "Highway": "highway",
    "RecurrentHighway": "highway",
    "LSTM": "lstm",
    "LSTMCell": "lstm",
    "Recurrent": "recurrent",
    "Jordan": "rnn",
    "RNN": "rnn",
    "RNNCell": "rnn",
    "SkipRNN": "rnn",
    "AdditiveAttention": "attention",
    "Decoder": "seq2seq",
    "DotAttention": "attention",
    "Encoder": "seq2seq",
    "FixedContext": "seq2seq",
    "Seq2Seq": "seq2seq",
    "Stack": "stacks",
    "VariationalDropout": "stacks",
    "pool": "stacks",
}
_MODULES = {*_HOMES.values(), "convert", "init"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES and name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_HOMES.get(name, name)}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        message = "gatelib.nn needs PyTorch: pip install 'gatelib[torch]'"
        raise ModuleNotFoundError(message, name="torch") from error
    return getattr(module, name) if name in _HOMES else module


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})
