"""LSTM and LSTMCell: drop-ins for torch's, run by torch's own kernels.
Imports gatelib.nn.drop_in and torch.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gatelib.nn.drop_in import DropIn, DropInCell, DropInLayer, States, Weights
from gatelib.nn.impl import Impl

__all__ = ["LSTM", "LSTMCell"]


class _Family(DropIn):
    """What LSTM and LSTMCell share."""

    memory_gates = ("f", "i")
    _gates = "ifgo"
    _long = True
    _kernel = "lstm"

    def _step(self, from_x: Tensor, states: States, weights: Weights) -> States:
        """The elementwise part has the precision of the cell state."""
        h, c = states[0].to(from_x.dtype), states[1]
        a = from_x + F.linear(h, weights.w_hh, weights.b_hh)
        a_i, a_f, a_g, a_o = a.to(c.dtype).chunk(4, dim=-1)
        c = torch.sigmoid(a_f) * c + torch.sigmoid(a_i) * torch.tanh(a_g)
        h = (torch.sigmoid(a_o) * torch.tanh(c)).to(a.dtype)
        return (h if weights.w_hr is None else F.linear(h, weights.w_hr)), c


class LSTM(_Family, DropInLayer[tuple[Tensor, Tensor]]):
    """A drop-in for `torch.nn.LSTM` with a readable twin.

        i, f, o = sigmoid(W_ih x + b_ih + W_hh h + b_hh), each with its own rows
        g = tanh(the same, with its own rows)
        c = f * c_prev + i * g
        h = o * tanh(c), or W_hr (o * tanh(c)) with a projection

    Arguments, defaults, `state_dict`, gate order (i, f, g, o) and the numbers drawn under a seed
    are torch's, so weights load both ways.

    Args:
        input_size: features D of the input.
        hidden_size: features H of the cell state.
        num_layers: layers stacked on each other.
        bias: whether the preactivations have their two biases.
        batch_first: whether input and output are (B, T, ...) rather than (T, B, ...).
        dropout: probability of zeroing an output of each layer but the last, in training.
        bidirectional: whether a second pass reads the sequence from its end.
        proj_size: features P of the output where it is projected; 0 for none, then P = H.
        device: where the parameters live.
        dtype: their floating-point type.
        impl: "fused" is torch's kernel. "reference" is a loop in plain torch, whose every
            derivative exists and whose cell state is float32 under lower precision. "auto" is
            fused, and reference in forward-mode differentiation and inside torch.vmap, where the
            kernel can't go.

    Second derivatives work through every impl on CPU. cuDNN has none: take "reference" there.
    Under torch.compile each layer is one node of the graph, for any length; its backward runs
    the forward again, and refuses to be differentiated. torch.export keeps torch's own
    operator, which fixes the number of time steps. torch.fx keeps the layer whole, as one node of a
    model.

    `init.forget_bias_` and `init.chrono_` of `gatelib.nn` set how its forget gates start.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Source: Hochreiter & Schmidhuber 1997; Gers et al. 2000; projections, arXiv:1402.1128.
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
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        impl: Impl = "auto",
    ) -> None:
        sizes, flags = (input_size, hidden_size, num_layers), (bias, batch_first, bidirectional)
        super().__init__("LSTM", sizes, flags, dropout, proj_size, device, dtype, impl)


class LSTMCell(_Family, DropInCell[tuple[Tensor, Tensor]]):
    """A drop-in for `torch.nn.LSTMCell`: one step of an LSTM.

    Arguments, errors and source are those of `LSTM`; "fused" is torch's kernel of one step.
    """
