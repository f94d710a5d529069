"""RNN and RNNCell: drop-ins for torch's, run by torch's own kernels.
Imports gatelib.nn.torch_rnn, gatelib.nn.init and torch.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from gatelib.nn import init
from gatelib.nn.torch_rnn import DropIn, DropInCell, DropInLayer, Impl, States, Weights

__all__ = ["RNN", "RNNCell"]

Nonlinearity = Literal["tanh", "relu"]


class _Family(DropIn):
    """What RNN and RNNCell share."""

    nonlinearity: Nonlinearity
    initialization: init.Matrix | None = None
    scale: float = 1.0
    _options = ("initialization", "scale", "impl")

    @property
    def _kernel(self) -> str:  # type: ignore[override]
        return f"rnn_{self.nonlinearity}"

    def _initialise(self, weights: Weights) -> None:
        if self.initialization is not None:
            init.recurrent_(weights.w_hh, self.initialization, self.scale)

    def _step(self, from_x: Tensor, states: States, weights: Weights) -> States:
        h = states[0].to(from_x.dtype)
        a = from_x + F.linear(h, weights.w_hh, weights.b_hh)
        return (torch.tanh(a) if self.nonlinearity == "tanh" else torch.relu(a),)


class RNN(_Family, DropInLayer[Tensor]):
    """A drop-in for `torch.nn.RNN` with initialisation options and a readable twin.

        h = tanh(W_ih x + b_ih + W_hh h_prev + b_hh), or relu of the same

    Arguments, defaults, `state_dict` and the numbers drawn under a seed are torch's, so weights
    load both ways.

    Args:
        input_size: features D of the input.
        hidden_size: features H of the state.
        num_layers: layers stacked on each other.
        nonlinearity: "tanh" or "relu".
        bias, batch_first, dropout, bidirectional, device, dtype: as for `LSTM`.
        initialization: how W_hh starts. None is torch's U(-1/sqrt(H), 1/sqrt(H)); "orthogonal" a
            random orthogonal matrix, drawn after torch's own numbers; "identity" the identity.
            Other parameters start as torch's: Le et al. also set the biases to 0.
        scale: a factor on the orthogonal or identity matrix.
        impl: "fused" is torch's kernel, "reference" a loop in plain torch; "auto" is fused, and
            reference in forward-mode differentiation.

    Derivatives, torch.compile, torch.export and torch.vmap are as for `LSTM`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or `scale` is given without `initialization`.

    Source: Elman 1990; the identity, Le, Jaitly & Hinton 2015, arXiv:1504.00941.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Nonlinearity = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        initialization: init.Matrix | None = None,
        scale: float = 1.0,
        impl: Impl = "auto",
    ) -> None:
        options = _options(nonlinearity, initialization, scale, impl)
        mode = f"RNN_{nonlinearity}".upper()
        sizes, flags = (input_size, hidden_size, num_layers), (bias, batch_first, bidirectional)
        super().__init__(mode, sizes, flags, dropout, 0, device, dtype, **options)

    def extra_repr(self) -> str:
        """Torch's line, and the options that aren't at their default."""
        relu = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity!r}"
        return super().extra_repr() + relu


class RNNCell(_Family, DropInCell[Tensor]):
    """A drop-in for `torch.nn.RNNCell`: one step of an RNN.

    Args:
        input_size: features D of the input.
        hidden_size: features H of the state.
        bias: whether the preactivation has its two biases.
        nonlinearity: "tanh" or "relu".
        device: where the parameters live.
        dtype: their floating-point type.
        initialization, scale: as for `RNN`.
        impl: "fused" is torch's cell kernel, "reference" plain torch; "auto" as for `RNN`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: as for `RNN`.

    Source: as for `RNN`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Nonlinearity = "tanh",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        initialization: init.Matrix | None = None,
        scale: float = 1.0,
        impl: Impl = "auto",
    ) -> None:
        options = _options(nonlinearity, initialization, scale, impl)
        super().__init__((input_size, hidden_size), bias, 1, device, dtype, **options)


def _options(
    nonlinearity: str, initialization: str | None, scale: float, impl: Impl
) -> dict[str, Any]:
    """An RNN's own options, checked."""
    if nonlinearity not in get_args(Nonlinearity):
        raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
    init.check_recurrent(initialization, scale)
    options = {"nonlinearity": nonlinearity, "initialization": initialization}
    return {**options, "scale": scale, "impl": impl}
