"""GRU and GRUCell: drop-ins for torch's, run by torch's own kernels, and the GRU of the paper.
Imports gatelib.nn.drop_in and torch.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gatelib.nn.check import check_flags, check_no_more
from gatelib.nn.drop_in import DropIn, DropInCell, DropInLayer, States, Weights
from gatelib.nn.impl import Impl

__all__ = ["GRU", "GRUCell"]


class _Family(DropIn):
    """What GRU and GRUCell share."""

    reset_after: bool = True
    memory_gates = ("z", None)
    _options = ("reset_after", "impl")
    _gates = "rzn"
    _kernel = "gru"

    def _wants_reference(self, tensors: Sequence[Tensor | None]) -> bool:
        _check_impl(self.reset_after, self.impl)
        return not self.reset_after or super()._wants_reference(tensors)

    def _step(self, from_x: Tensor, states: States, weights: Weights) -> States:
        """The elementwise part has the precision of the state."""
        (h,) = states
        w_h, b_h, size = weights.w_hh, weights.b_hh, h.size(-1)

        def product(value: Tensor, rows: slice) -> Tensor:
            bias = None if b_h is None else b_h[rows]
            return F.linear(value.to(from_x.dtype), w_h[rows], bias).to(h.dtype)

        x_rz, x_n = torch.split(from_x.to(h.dtype), [2 * size, size], -1)
        if self.reset_after:
            h_rz, h_n = torch.split(product(h, slice(None)), [2 * size, size], -1)
            r, z = torch.sigmoid(x_rz + h_rz).chunk(2, -1)
            n = torch.tanh(x_n + r * h_n)
        else:
            r, z = torch.sigmoid(x_rz + product(h, slice(2 * size))).chunk(2, -1)
            n = torch.tanh(x_n + product(r * h, slice(2 * size, None)))
        return ((1 - z) * n + z * h,)


class GRU(_Family, DropInLayer[Tensor]):
    """A drop-in for `torch.nn.GRU` with a readable twin, and Cho's order.

        r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh), each with its own rows
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn)), or with `reset_after=False`
        n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)
        h = (1 - z) * n + z * h_prev

    Here z keeps the old state, as in torch and in Cho et al. 2014. In Chung et al. 2014 it is the
    other way round, h = z n + (1 - z) h_prev: their z is 1 minus this one, so that weights and
    biases of z change their sign between the two.

    Arguments, defaults, `state_dict`, gate order (r, z, n) and the numbers drawn under a seed are
    torch's, so weights load both ways, whatever `reset_after` is.

    Args:
        input_size: features D of the input.
        hidden_size: features H of the state.
        num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as for `LSTM`.
        reset_after: whether the reset gate acts after the product with h, as in torch and cuDNN,
            or before it, as in the papers. Before, the rows n of `bias_hh` stand outside the
            gate: they add to those of `bias_ih`, and one of the two would do.
        impl: "fused" is torch's kernel, which exists for `reset_after=True` alone. "reference"
            is a loop in plain torch, whose every derivative exists and whose state is float32
            under lower precision. "auto" is fused, and reference where the kernel can't go, as
            for `LSTM`, or doesn't exist.

    Derivatives, torch.compile, torch.export, torch.func and torch.fx are as for `LSTM`. Where the
    loop runs, torch.compile unrolls it.

    `init.open_(layer, "z", bias)` and `init.chrono_` of `gatelib.nn` set how the update gates
    start; a bias above 0 keeps, where a gate that writes needs one below.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or `impl="fused"` with `reset_after=False`.

    Source: Cho et al. 2014, arXiv:1406.1078; Chung et al. 2014, arXiv:1412.3555.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        impl: Impl = "auto",
        **unknown: Any,
    ) -> None:
        check_no_more(unknown, self)
        _check_options(reset_after, impl)
        sizes, flags = (input_size, hidden_size, num_layers), (bias, batch_first, bidirectional)
        super().__init__("GRU", sizes, flags, dropout, 0, device, dtype, impl)
        self.reset_after = reset_after


class GRUCell(_Family, DropInCell[Tensor]):
    """A drop-in for `torch.nn.GRUCell`: one step of a GRU.

    Arguments, errors and source are those of `GRU`; "fused" is torch's kernel of one step.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        impl: Impl = "auto",
    ) -> None:
        _check_options(reset_after, impl)
        super().__init__(input_size, hidden_size, bias, device, dtype, impl=impl)
        self.reset_after = reset_after


def _check_options(reset_after: bool, impl: Impl) -> None:
    check_flags(reset_after=reset_after)
    _check_impl(reset_after, impl)


def _check_impl(reset_after: bool, impl: Impl) -> None:
    if impl == "fused" and not reset_after:
        raise ValueError(
            "impl: expected 'auto' or 'reference' with reset_after=False, got 'fused': torch's "
            "kernel resets after the product with h only"
        )
