"""Torch modules: drop-ins where torch has the layer, and layers made from any `Spec`.
Imports nothing until a name is used, then the module that holds it.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatelib.nn.gate import FeatureGate, Gate, interpolate
    from gatelib.nn.lstm import LSTM, LSTMCell
    from gatelib.nn.recurrent import Recurrent

__all__ = ["LSTM", "FeatureGate", "Gate", "LSTMCell", "Recurrent", "init", "interpolate"]

_HOMES = {
    "FeatureGate": "gate",
    "Gate": "gate",
    "interpolate": "gate",
    "LSTM": "lstm",
    "LSTMCell": "lstm",
    "Recurrent": "recurrent",
}
_MODULES = {*_HOMES.values(), "init"}


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
