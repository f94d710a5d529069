"""LSTM and LSTMCell: drop-ins for torch's, run by torch's own kernels.
Imports gatelib.kernels.lstm, gatelib.nn.check, gatelib.nn.init and torch.
Must not import gatelib.reference, gatelib.lab or gatelib.data.

The parameters are kept by `torch.nn.RNNBase`, so names, order, seeds and cuDNN's packing are
torch's. The class doesn't derive from `torch.nn.LSTM`: torch.compile refuses every such class.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from gatelib.kernels.lstm import lstm_layer
from gatelib.nn import init
from gatelib.nn.check import (
    check_batch_sizes,
    check_dropout,
    check_dtype,
    check_flags,
    check_input,
    check_projection,
    check_sizes,
    check_states,
)

__all__ = ["LSTM", "LSTMCell"]

GATES = "ifgo"  # the order of the blocks of rows in every packed weight, as in torch
Impl = Literal["auto", "fused", "reference"]
States = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]
Layer = Callable[[Tensor, Tensor, Tensor, Sequence[Sequence[Tensor]]], Triple]


class LSTM(nn.RNNBase):
    """A drop-in for `torch.nn.LSTM` with initialisation options and a readable twin.

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
        forget_bias: the initial total bias of the forget gates. b_ih gets it, b_hh gets 0.
        chrono: T_max of the chrono initialisation, in time steps (Tallec & Ollivier 2018,
            arXiv:1804.11188).
        impl: "fused" is torch's kernel. "reference" is a loop in plain torch, whose every
            derivative exists and whose cell state is float32 under lower precision. "auto" is
            fused, and reference in forward-mode differentiation, which the kernel lacks.

    Second derivatives work through every impl on CPU. cuDNN has none: take "reference" there.
    Under torch.compile each layer is one node of the graph, for any length; its backward runs
    the forward again, and refuses to be differentiated. torch.export keeps torch's own
    operator, which fixes the number of time steps. torch.vmap needs "reference".

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, `forget_bias` and `chrono` are both given, or
            one of them without `bias`.

    Source: Hochreiter & Schmidhuber 1997; Gers et al. 2000; projections, arXiv:1402.1128.
    """

    weight_ih_l0: Tensor
    forget_bias: float | None = None
    chrono: int | None = None
    impl: Impl = "auto"

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
        forget_bias: float | None = None,
        chrono: int | None = None,
        impl: Impl = "auto",
    ) -> None:
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        check_flags(bias=bias, batch_first=batch_first, bidirectional=bidirectional)
        check_dropout(dropout)
        check_projection(proj_size, hidden_size)
        _check_options(bias, dtype, forget_bias, chrono, impl)
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )
        self.forget_bias = forget_bias
        self.chrono = chrono
        self.impl = impl
        self._initialise_gates()

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H)), then set the gates' biases."""
        super().reset_parameters()
        self._initialise_gates()

    def _initialise_gates(self) -> None:
        for weights in self.all_weights if self.bias else []:
            _initialise(weights[2:4], self.forget_bias, self.chrono)

    def extra_repr(self) -> str:
        """Torch's line, and the options that aren't at their default."""
        return super().extra_repr() + _options_repr(self.forget_bias, self.chrono, self.impl)

    @overload
    def forward(self, input: Tensor, hx: States | None = None) -> tuple[Tensor, States]: ...

    @overload
    def forward(
        self, input: PackedSequence, hx: States | None = None
    ) -> tuple[PackedSequence, States]: ...

    def forward(
        self, input: Tensor | PackedSequence, hx: States | None = None
    ) -> tuple[Tensor | PackedSequence, States]:
        """Run over a batch of sequences, over one sequence, or over a packed batch.

        Args:
            input: (T, B, D), or (B, T, D) with `batch_first`, or (T, D), or a PackedSequence.
            hx: (h_0, c_0), zeros if None. h_0 is (layers * directions, B, P) and c_0
                (layers * directions, B, H); both without B for a single sequence.

        Returns:
            The output, shaped as `input` with directions * P features, and (h_T, c_T), shaped
            as (h_0, c_0). For packed input the output is packed and the states are those at
            each sequence's own end.

        Raises:
            TypeError: `input` or `hx` has the wrong type or the wrong dtype.
            ValueError: wrong rank, size, device or lengths, or no time step.
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        first = self.weight_ih_l0
        check_input("input", input, (2, 3), self.input_size, first)
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(0 if self.batch_first else 1)
        if x.size(1 if self.batch_first else 0) == 0:
            raise ValueError(f"input: expected at least one time step, got {tuple(input.shape)}")
        batch = x.size(0 if self.batch_first else 1)
        h_0, c_0 = self._states(hx, x, batch, batched)
        y, h, c = self._run(x, h_0, c_0)
        if not batched:
            y, h, c = y.squeeze(0 if self.batch_first else 1), h.squeeze(1), c.squeeze(1)
        return y, (h, c)

    def _forward_packed(
        self, packed: PackedSequence, hx: States | None
    ) -> tuple[PackedSequence, States]:
        check_input("input.data", packed.data, (2,), self.input_size, self.weight_ih_l0)
        x, batch_sizes, sort, unsort = packed
        check_batch_sizes(batch_sizes, x)
        batch = int(batch_sizes[0]) if sort is None else sort.size(0)
        h_0, c_0 = self._states(hx, x, batch, True)
        if sort is not None:
            h_0, c_0 = h_0.index_select(1, sort), c_0.index_select(1, sort)
        y, h, c = self._run(x, h_0, c_0, batch_sizes)
        if unsort is not None:
            h, c = h.index_select(1, unsort), c.index_select(1, unsort)
        return PackedSequence(y, batch_sizes, sort, unsort), (h, c)

    def _states(self, hx: States | None, x: Tensor, batch: int, batched: bool) -> States:
        """The initial states as (layers * directions, batch, features), checked."""
        count = self.num_layers * (2 if self.bidirectional else 1)
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)
        if hx is None:
            return x.new_zeros(count, batch, sizes[0]), x.new_zeros(count, batch, sizes[1])
        middle = (batch,) if batched else ()
        h_0, c_0 = check_states(hx, [(count, *middle, size) for size in sizes], x)
        return (h_0, c_0) if batched else (h_0.unsqueeze(1), c_0.unsqueeze(1))

    def _run(
        self, x: Tensor, h_0: Tensor, c_0: Tensor, batch_sizes: Tensor | None = None
    ) -> Triple:
        """Choose the path and take it. `x` is a batch as the caller gave it, or packed data."""
        weights: list[Tensor] = [weight for layer in self.all_weights for weight in layer]
        if _wants_reference(self.impl, (x, h_0, c_0, *weights)):
            return self._run_reference(x, h_0, c_0, batch_sizes)
        if _is_compiled():
            layer = partial(_compiled_layer, batch_sizes, self.bias)
            return self._run_layers(layer, x, h_0, c_0, batch_sizes is None)
        options = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        if batch_sizes is None:
            y, h, c = torch._VF.lstm(x, (h_0, c_0), weights, *options, self.batch_first)
        else:
            y, h, c = torch._VF.lstm(x, batch_sizes, (h_0, c_0), weights, *options)
        return y, h, c

    def _run_layers(
        self, layer: Layer, x: Tensor, h_0: Tensor, c_0: Tensor, padded: bool = True
    ) -> Triple:
        """Stack `layer`, which runs one layer time first, with dropout between layers."""
        swap = padded and self.batch_first
        y = x.transpose(0, 1) if swap else x
        directions = 2 if self.bidirectional else 1
        h_ends, c_ends = [], []
        for first in range(0, self.num_layers * directions, directions):
            if first > 0:
                y = F.dropout(y, self.dropout, self.training)
            own = slice(first, first + directions)
            y, h, c = layer(y, h_0[own], c_0[own], self.all_weights[own])
            h_ends.append(h)
            c_ends.append(c)
        return y.transpose(0, 1) if swap else y, torch.cat(h_ends), torch.cat(c_ends)

    def _run_reference(
        self, x: Tensor, h_0: Tensor, c_0: Tensor, batch_sizes: Tensor | None
    ) -> Triple:
        """The stack of plain loops. A packed batch is padded, masked, and packed again."""
        layer = partial(_reference_layer, self.bias, None)
        if batch_sizes is None:
            return self._run_layers(layer, x, h_0, c_0)
        x, lengths = pad_packed_sequence(PackedSequence(x, batch_sizes))
        running = torch.arange(x.size(0))[:, None] < lengths
        layer = partial(_reference_layer, self.bias, running.to(x.device)[:, :, None])
        if self.batch_first:
            x = x.transpose(0, 1)
        y, h, c = self._run_layers(layer, x, h_0, c_0)
        packed = pack_padded_sequence(y, lengths, batch_first=self.batch_first)
        return packed.data, h, c


class LSTMCell(nn.RNNCellBase):
    """A drop-in for `torch.nn.LSTMCell`: one step of an LSTM.

    Args:
        input_size: features D of the input.
        hidden_size: features H of the states.
        bias: whether the preactivations have their two biases.
        device: where the parameters live.
        dtype: their floating-point type.
        forget_bias: as for `LSTM`.
        chrono: as for `LSTM`.
        impl: "fused" is torch's cell kernel, "reference" plain torch; "auto" as for `LSTM`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: as for `LSTM`.

    Source: as for `LSTM`.
    """

    forget_bias: float | None = None
    chrono: int | None = None
    impl: Impl = "auto"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        forget_bias: float | None = None,
        chrono: int | None = None,
        impl: Impl = "auto",
    ) -> None:
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        check_flags(bias=bias)
        _check_options(bias, dtype, forget_bias, chrono, impl)
        super().__init__(input_size, hidden_size, bias, 4, device, dtype)
        self.forget_bias = forget_bias
        self.chrono = chrono
        self.impl = impl
        self._initialise_gates()

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H)), then set the gates' biases."""
        super().reset_parameters()
        self._initialise_gates()

    def _initialise_gates(self) -> None:
        if self.bias:
            _initialise((self.bias_ih, self.bias_hh), self.forget_bias, self.chrono)

    def extra_repr(self) -> str:
        """Torch's line, and the options that aren't at their default."""
        return super().extra_repr() + _options_repr(self.forget_bias, self.chrono, self.impl)

    def forward(self, input: Tensor, hx: States | None = None) -> States:
        """Take one step.

        Args:
            input: (B, D) or (D,).
            hx: (h, c), each (B, H) or (H,); zeros if None.

        Returns:
            The next (h, c), each (B, H) or (H,).

        Raises:
            TypeError: `input` or `hx` has the wrong type or the wrong dtype.
            ValueError: wrong rank, size or device.
        """
        check_input("input", input, (1, 2), self.input_size, self.weight_ih)
        shape = (*input.shape[:-1], self.hidden_size)
        zeros = input.new_zeros(shape)
        states = (zeros, zeros) if hx is None else check_states(hx, [shape, shape], input)
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        if _wants_reference(self.impl, (input, *states, *weights)):
            h, c = _step(input, states[0], _wide(states[1]), *weights)
            return h, c.to(h.dtype)
        if input.dim() == 2:
            h, c = torch._VF.lstm_cell(input, states, *weights)
            return h, c
        rows = tuple(state.unsqueeze(0) for state in states)
        h, c = torch._VF.lstm_cell(input.unsqueeze(0), rows, *weights)
        return h.squeeze(0), c.squeeze(0)


def _step(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None = None,
) -> States:
    """One step in plain torch. The elementwise part has the precision of `c`."""
    a = F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)
    a_i, a_f, a_g, a_o = a.to(c.dtype).chunk(4, dim=-1)
    c = torch.sigmoid(a_f) * c + torch.sigmoid(a_i) * torch.tanh(a_g)
    h = (torch.sigmoid(a_o) * torch.tanh(c)).to(a.dtype)
    return (h if w_hr is None else F.linear(h, w_hr)), c


def _wide(c: Tensor) -> Tensor:
    """The cell state in float32 where its own type is narrower."""
    return c.float() if c.dtype in (torch.float16, torch.bfloat16) else c


def _reference_direction(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weights: Sequence[Tensor | None],
    running: Tensor | None,
    backwards: bool,
) -> Triple:
    """Loop over the steps of x (T, B, D). A sequence that isn't running keeps its state."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    assert w_ih is not None and w_hh is not None
    outputs, c = [], _wide(c)
    for t in reversed(range(x.size(0))) if backwards else range(x.size(0)):
        h_next, c_next = _step(x[t], h, c, w_ih, w_hh, b_ih, b_hh, w_hr)
        h = h_next if running is None else torch.where(running[t], h_next, h)
        c = c_next if running is None else torch.where(running[t], c_next, c)
        outputs.append(h)
    y = torch.stack(outputs[::-1] if backwards else outputs)
    return y, h, c.to(h.dtype)


def _reference_layer(
    bias: bool,
    running: Tensor | None,
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Sequence[Tensor]],
) -> Triple:
    """One layer, time first, in one direction or in both."""
    ends = []
    for direction, own in enumerate(weights):
        biases = own[2:4] if bias else (None, None)
        projection = own[-1] if len(own) % 2 else None
        full = (own[0], own[1], *biases, projection)
        state = (h_0[direction], c_0[direction])
        ends.append(_reference_direction(x, *state, full, running, direction == 1))
    ys, hs, cs = zip(*ends, strict=True)
    return torch.cat(ys, dim=-1), torch.stack(hs), torch.stack(cs)


def _compiled_layer(
    batch_sizes: Tensor | None,
    bias: bool,
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Sequence[Tensor]],
) -> Triple:
    """One layer as one node of the graph, with the casts that autocast would make inside."""
    tensors = [x, h_0, c_0, *(weight for direction in weights for weight in direction)]
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        tensors = [t.to(torch.get_autocast_dtype(x.device.type)) for t in tensors]
    x, h_0, c_0, *flat = tensors
    return lstm_layer(x, batch_sizes, h_0, c_0, flat, bias)


def _is_compiled() -> bool:
    """Whether torch.compile is tracing. torch.export isn't meant: it keeps torch's own operator."""
    return torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()


def _wants_reference(impl: Impl, tensors: Sequence[Tensor | None]) -> bool:
    """Whether to loop in plain torch: on request, or where a tensor carries a tangent."""
    if impl != "auto" or torch.compiler.is_compiling():
        return impl == "reference"
    given = (tensor for tensor in tensors if tensor is not None)
    return any(unpack_dual(t).tangent is not None for t in given)  # type: ignore[no-untyped-call]


def _initialise(biases: Sequence[Tensor], forget_bias: float | None, chrono: int | None) -> None:
    if forget_bias is not None:
        init.forget_bias_(biases, forget_bias, GATES)
    if chrono is not None:
        init.chrono_(biases, chrono, GATES)


def _options_repr(forget_bias: float | None, chrono: int | None, impl: Impl) -> str:
    text = "" if forget_bias is None else f", forget_bias={forget_bias}"
    text += "" if chrono is None else f", chrono={chrono}"
    return text + ("" if impl == "auto" else f", impl={impl!r}")


def _check_options(
    bias: bool,
    dtype: torch.dtype | None,
    forget_bias: float | None,
    chrono: int | None,
    impl: Impl,
) -> None:
    check_dtype(dtype)
    if impl not in get_args(Impl):
        raise ValueError(f"impl: expected one of {get_args(Impl)}, got {impl!r}")
    if forget_bias is not None:
        init.check_forget_bias(forget_bias)
    if chrono is not None:
        init.check_chrono(chrono)
    if forget_bias is not None and chrono is not None:
        raise ValueError("forget_bias, chrono: expected at most one, got both")
    if (forget_bias is not None or chrono is not None) and not bias:
        raise ValueError("bias: expected True where forget_bias or chrono is given, got False")
