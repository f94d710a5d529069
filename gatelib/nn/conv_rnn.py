"""Recurrent layers whose products are convolutions: ConvLSTM2d, ConvGRU2d and ConvRNN2d.

Imports torch, gatelib.cell, gatelib.equations; of gatelib.nn check and conv_recurrent.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

from typing import Any

import torch

from gatelib.cell import cell
from gatelib.equations import gru, lstm, rnn
from gatelib.nn.check import check_choice, check_flags
from gatelib.nn.conv_recurrent import ConvRecurrent, Pair, pair

__all__ = ["ConvGRU2d", "ConvLSTM2d", "ConvRNN2d"]


class ConvLSTM2d(ConvRecurrent):
    """An LSTM whose states are images and whose products are convolutions.

        i = sigmoid(W_i * x + U_i * h_prev + b_i)          f, o alike
        g = tanh(W_g * x + U_g * h_prev + b_g)
        c = f c_prev + i g
        h = o tanh(c)

    With `peephole`, i and f also see V c_prev and o sees V c, the new cell state, each through
    weights of its own for every channel and pixel.

    Parameters, for layer k: `weight_ih_l{k}` (4*C, C_in, k, l), `weight_hh_l{k}` (4*C, C, k, l)
    and `bias_ih_l{k}` (4*C,), blocks of rows in the order i, f, g, o as in torch's LSTM, whose
    second bias would add to the first; with peepholes `w_i_l{k}`, `w_f_l{k}` and `w_o_l{k}`
    (C, H, W). All start from U(-r, r), r = 1/sqrt(C * k * l). `gatelib.nn.convert.conv_lstm` brings
    weights from elsewhere.

    Args:
        in_channels: channels C_in of the input.
        hidden_channels: channels C of both states.
        kernel_size: k, or (k, l), of all convolutions.
        num_layers: layers on top of each other.
        bias: whether the preactivations have a bias.
        padding: of the input's convolution in the first layer: "same", "valid", or zeros on both
            sides of each axis, p or (p, q). The states have the size that it makes; their own
            convolutions are always "same".
        dilation: d, or (d, e), of all convolutions.
        padding_mode: what stands beyond the edges, in all convolutions: "zeros", or "circular" for
            images on a torus, whose opposite edges meet.
        peephole: (H, W) of the states where the gates see the cell state; None where they don't.
        device: where the parameters live.
        dtype: their floating-point type.

    Input is (B, T, C_in, H, W). One convolution a layer makes W * x of all steps, on a CPU of as
    many as its cache holds; then each step has one. The states are float32 where parameters or
    autocast are of lower precision. `init.forget_bias_` of `gatelib.nn` sets how the forget gates
    start.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Source: Shi et al. 2015, arXiv:1506.04214, eq. 3, with peepholes. Their o sees the new cell
    state, as here.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: int | Pair,
        num_layers: int = 1,
        bias: bool = True,
        *,
        padding: str | int | Pair = "same",
        dilation: int | Pair = 1,
        padding_mode: str = "zeros",
        peephole: Pair | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        known = cell(lstm.LSTM if peephole is None else lstm.PEEPHOLE)
        image = None if peephole is None else pair("peephole", peephole, of_one=False)
        sizes = in_channels, hidden_channels, num_layers
        kernel = kernel_size, padding, dilation, padding_mode
        super().__init__(known, sizes, kernel, bias, device, dtype, image)

    def _own_arguments(self) -> list[str]:
        return [] if self.peephole is None else [f"peephole={self.peephole}"]


class ConvGRU2d(ConvRecurrent):
    """A GRU whose state is an image and whose products are convolutions.

        r, z = sigmoid(W * x + U * h_prev + b), each with its own rows
        n = tanh(W_n * x + b_n + r (U_n * h_prev + b'_n)), or with `reset_after=False`
        n = tanh(W_n * x + b_n + U_n * (r h_prev))
        h = (1 - z) n + z h_prev

    As in `gatelib.nn.GRU`, z keeps the old state; Ballas et al. write z for 1 minus this one and
    reset before the product. Parameters are named as ConvLSTM2d's, in the order r, z, n; with the
    reset gate after the product there is a second bias `bias_hh_l{k}` (3*C,), as in torch's GRU.

    Args:
        in_channels, hidden_channels, kernel_size, num_layers, bias: as for `ConvLSTM2d`.
        padding, dilation, padding_mode, device, dtype: as there.
        reset_after: whether the reset gate acts after the convolution of h, which takes one
            convolution a step, or before it, which takes two.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Source: Ballas et al. 2015, arXiv:1511.06432.
    """

    memory_gates = ("z", None)

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: int | Pair,
        num_layers: int = 1,
        bias: bool = True,
        *,
        padding: str | int | Pair = "same",
        dilation: int | Pair = 1,
        padding_mode: str = "zeros",
        reset_after: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_flags(reset_after=reset_after)
        known = cell(gru.GRU) if reset_after else gru.CHO
        sizes = in_channels, hidden_channels, num_layers
        kernel = kernel_size, padding, dilation, padding_mode
        super().__init__(known, sizes, kernel, bias, device, dtype)
        self.reset_after = reset_after

    def _own_arguments(self) -> list[str]:
        return [] if self.reset_after else ["reset_after=False"]


class ConvRNN2d(ConvRecurrent):
    """A plain recurrent layer whose state is an image and whose products are convolutions.

        h = tanh(W * x + U * h_prev + b), or relu of the same

    Parameters are named as ConvLSTM2d's, with one block of rows.

    Args:
        in_channels, hidden_channels, kernel_size, num_layers, bias: as for `ConvLSTM2d`.
        padding, dilation, padding_mode, device, dtype: as there.
        nonlinearity: "tanh" or "relu".

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: int | Pair,
        num_layers: int = 1,
        bias: bool = True,
        *,
        padding: str | int | Pair = "same",
        dilation: int | Pair = 1,
        padding_mode: str = "zeros",
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kinds = {"tanh": rnn.ELMAN, "relu": rnn.RELU}
        check_choice("nonlinearity", nonlinearity, kinds)
        sizes = in_channels, hidden_channels, num_layers
        kernel = kernel_size, padding, dilation, padding_mode
        super().__init__(cell(kinds[nonlinearity]), sizes, kernel, bias, device, dtype)
        self.nonlinearity = nonlinearity

    def _own_arguments(self) -> list[str]:
        return [] if self.nonlinearity == "tanh" else [f"nonlinearity={self.nonlinearity!r}"]
