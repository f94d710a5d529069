"""What the drop-ins for torch's recurrent layers share: arguments, checks, layouts, and paths.
Imports gatelib.kernels.drop_in, check, impl and init of gatelib.nn, and torch.
Must not import gatelib.reference, gatelib.lab or gatelib.data.

The parameters are kept by `torch.nn.RNNBase`, so names, order, seeds and cuDNN's packing are
torch's. No class derives from `torch.nn.LSTM` or its like: torch.compile refuses every such class.
A family (LSTM, GRU, RNN) says only how one step goes and what its gates are called.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from gatelib.kernels.drop_in import CELLS, LAYERS, result_type, torch_layer
from gatelib.nn.check import (
    ShapeError,
    autocast_is_on,
    check_batch_sizes,
    check_dropout,
    check_dtype,
    check_flags,
    check_gate,
    check_input,
    check_projection,
    check_sizes,
    check_states,
)
from gatelib.nn.impl import Impl, check_impl, takes_reference, traced
from gatelib.nn.init import gate_rows

__all__ = ["DropIn", "DropInCell", "DropInLayer", "Impl", "States", "Weights"]

GOES = ("grad", "functionalize", "onnx")
"""Where torch's kernels can go: see `takes_reference`."""

States = tuple[Tensor, ...]
Result = tuple[Tensor, States]
Layer = Callable[[Tensor, States, Sequence[Sequence[Tensor]]], Result]
State = TypeVar("State", Tensor, tuple[Tensor, Tensor])


class Weights(NamedTuple):
    """The weights of one direction of one layer, None where there is none."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None

    @classmethod
    def of(cls, given: Sequence[Tensor], bias: bool) -> "Weights":
        """From torch's list: W_ih, W_hh, then the biases, then the projection."""
        b_ih, b_hh = given[2:4] if bias else (None, None)
        return cls(given[0], given[1], b_ih, b_hh, given[-1] if len(given) % 2 else None)

    @property
    def biases(self) -> tuple[Tensor, ...]:
        """Both biases, or none."""
        return tuple(bias for bias in (self.b_ih, self.b_hh) if bias is not None)


class DropIn(nn.Module):
    """What the layer and the cell of one family share: its options, its step, the way to run.

    A family says how one step goes (`_step`), which gates its rows belong to, which of torch's
    kernels runs it, and which options are its own.
    """

    impl: Impl = "auto"
    memory_gates: ClassVar[tuple[str, str | None]] = ("f", None)
    _options: ClassVar[tuple[str, ...]] = ("impl",)
    _gates: ClassVar[str] = ""  # the order of the blocks of rows in every packed weight
    _long: ClassVar[bool] = False  # is there a cell state beside the output?
    _kernel: str  # the name of torch's kernel

    def _step(self, from_x: Tensor, states: States, weights: Weights) -> States:
        """One step in plain torch, from W_ih x + b_ih and states that may be wider."""
        raise NotImplementedError

    def _directions(self) -> list[Weights]:
        raise NotImplementedError

    @property
    def qconfig(self) -> Any:
        """What torch.ao.quantization plans for the layer; absent until it is asked."""
        if "qconfig" not in self.__dict__:
            raise AttributeError("qconfig")
        return self.__dict__["qconfig"]

    @qconfig.setter
    def qconfig(self, plan: Any) -> None:
        """torch's tables know torch's own classes alone and pass over others without a word."""
        kind = type(self).__name__
        cure = f"gatelib.nn.convert.to_torch(model) has a torch.nn.{kind} in its place"
        if plan is not None:
            raise NotImplementedError(f"{kind} can't be quantised as it is: {cure}")
        warnings.warn(f"{kind} stays in floats: {cure}, which can be quantised", stacklevel=2)
        self.__dict__["qconfig"] = plan

    @qconfig.deleter
    def qconfig(self) -> None:
        self.__dict__.pop("qconfig", None)

    def gate_biases(self, gate: str) -> list[tuple[Tensor, ...]]:
        """Views of both biases of one gate, for each layer and direction: see `gatelib.nn.init`.

        Raises ValueError for a gate that the layer doesn't have, and for a layer without biases.
        """
        check_gate(gate, self._gates, self)
        if not self.bias:
            raise ValueError(f"bias: expected True where gate {gate!r} is given one, got False")
        return [
            tuple(gate_rows(bias.detach(), gate, self._gates) for bias in weights.biases)
            for weights in self._directions()
        ]

    def extra_repr(self) -> str:
        """Torch's line, and the options that aren't at their default."""
        text = super().extra_repr()
        for name in self._options:
            value = getattr(self, name)
            text += "" if value == getattr(type(self), name) else f", {name}={value!r}"
        return text

    def _wants_reference(self, tensors: Sequence[Tensor | None]) -> bool:
        """Whether to loop in plain torch, by the one rule of `gatelib.nn.impl`."""
        return takes_reference(self.impl, tensors, GOES)

    def _loop(
        self,
        running: Tensor | None,
        x: Tensor,
        states: States,
        weights: Weights,
        backwards: bool = False,
    ) -> Result:
        """Plain torch over x (T, B, D). A sequence that isn't running keeps its states."""
        from_x = F.linear(x, weights.w_ih, weights.b_ih)
        dtype = result_type(self._kernel, states[0], from_x.dtype)
        outputs, states = [], _wide(states)
        for t in reversed(range(x.size(0))) if backwards else range(x.size(0)):
            new = self._step(from_x[t], states, weights)
            if running is not None:
                both = zip(new, states, strict=True)
                new = tuple(torch.where(running[t], now, before) for now, before in both)
            states = new
            outputs.append(states[0])
        y = torch.stack(outputs[::-1] if backwards else outputs).to(dtype)
        return y, tuple(state.to(dtype) for state in states)

    def _outward(self, states: Sequence[Tensor]) -> Any:
        """The states as torch takes and gives them: a pair, or the only one."""
        return tuple(states) if self._long else states[0]


class DropInLayer(DropIn, nn.RNNBase, Generic[State]):
    """A stack of recurrent layers, as torch's; see the families for their arguments."""

    weight_ih_l0: Tensor

    def __init__(
        self,
        mode: str,
        sizes: tuple[int, int, int],
        flags: tuple[bool, bool, bool],
        dropout: float,
        proj_size: int,
        device: Any,
        dtype: torch.dtype | None,
        impl: Impl,
    ) -> None:
        names = ("input_size", "hidden_size", "num_layers")
        check_sizes(**dict(zip(names, sizes, strict=True)))
        bias, batch_first, bidirectional = flags
        check_flags(bias=bias, batch_first=batch_first, bidirectional=bidirectional)
        check_dropout(dropout)
        check_projection(proj_size, sizes[1])
        _check_common(dtype, impl)
        super().__init__(
            mode, *sizes, bias, batch_first, dropout, bidirectional, proj_size, device, dtype
        )
        self.impl = impl

    def _directions(self) -> list[Weights]:
        return [Weights.of(own, self.bias) for own in self.all_weights]

    @overload
    def forward(self, input: Tensor, hx: State | None = None) -> tuple[Tensor, State]: ...

    @overload
    def forward(
        self, input: PackedSequence, hx: State | None = None
    ) -> tuple[PackedSequence, State]: ...

    def forward(
        self, input: Tensor | PackedSequence, hx: State | None = None
    ) -> tuple[Tensor | PackedSequence, State]:
        """Run over a batch of sequences, over one sequence, or over a packed batch.

        Args:
            input: (T, B, D), or (B, T, D) with `batch_first`, or (T, D), or a PackedSequence.
            hx: the initial states, zeros if None: h_0 (layers * directions, B, P), for an LSTM the
                pair (h_0, c_0) with c_0 (layers * directions, B, H); without B for a single
                sequence. P is H, but for an LSTM with a projection.

        Returns:
            The output, shaped as `input` with directions * P features, and the final states,
            shaped as `hx`. For packed input the output is packed and the states are those at each
            sequence's own end.

        Raises:
            TypeError: `input` or `hx` has the wrong type or the wrong dtype.
            ValueError: wrong rank, size, device or lengths, or no time step.
        """
        node = traced(self, input, hx)
        if node is not None:
            return node  # type: ignore[return-value]
        if isinstance(input, PackedSequence):
            packed, states = self._forward_packed(input, hx)
            return packed, cast(State, self._outward(states))
        check_input("input", input, (2, 3), self.input_size, self.weight_ih_l0)
        batched, time = input.dim() == 3, 1 if self.batch_first else 0
        x = input if batched else input.unsqueeze(1 - time)
        if x.size(time) == 0:
            raise ShapeError(f"input: expected at least one time step, got {tuple(input.shape)}")
        y, states = self._run(x, self._initial_states(hx, x, x.size(1 - time), batched))
        if not batched:
            y, states = y.squeeze(1 - time), tuple(state.squeeze(1) for state in states)
        return y, cast(State, self._outward(states))

    def _forward_packed(
        self, packed: PackedSequence, hx: State | None
    ) -> tuple[PackedSequence, States]:
        check_input("input.data", packed.data, (2,), self.input_size, self.weight_ih_l0)
        x, batch_sizes, sort, unsort = packed
        check_batch_sizes(batch_sizes, x)
        batch = int(batch_sizes[0]) if sort is None else sort.size(0)
        states = self._initial_states(hx, x, batch, True)
        if sort is not None:
            states = tuple(state.index_select(1, sort) for state in states)
        y, states = self._run(x, states, batch_sizes)
        if unsort is not None:
            states = tuple(state.index_select(1, unsort) for state in states)
        return PackedSequence(y, batch_sizes, sort, unsort), states

    def _initial_states(self, hx: object, x: Tensor, batch: int, batched: bool) -> States:
        """The initial states as (layers * directions, batch, features), checked."""
        count = self.num_layers * (2 if self.bidirectional else 1)
        sizes = [self.proj_size or self.hidden_size, self.hidden_size][: 1 + self._long]
        if hx is None:
            return tuple(x.new_zeros(count, batch, size) for size in sizes)
        middle: tuple[int, ...] = (batch,) if batched else ()
        states = check_states(hx, [(count, *middle, size) for size in sizes], x)
        return states if batched else tuple(state.unsqueeze(1) for state in states)

    def _run(self, x: Tensor, states: States, batch_sizes: Tensor | None = None) -> Result:
        """Choose the path and take it. `x` is a batch as the caller gave it, or packed data."""
        weights: list[Tensor] = [weight for layer in self.all_weights for weight in layer]
        if self._wants_reference((x, *states, *weights)):
            return self._run_reference(x, states, batch_sizes)
        if _is_compiled():
            layer = partial(self._compiled_layer, batch_sizes)
            return self._run_layers(layer, x, states, batch_sizes is None)
        options = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        kernel, hx = LAYERS[self._kernel], self._outward(states)
        if batch_sizes is None:
            y, *final = kernel(x, hx, weights, *options, self.batch_first)
        else:
            y, *final = kernel(x, batch_sizes, hx, weights, *options)
        return y, tuple(final)

    def _run_layers(self, layer: Layer, x: Tensor, states: States, padded: bool = True) -> Result:
        """Stack `layer`, which runs one layer time first, with dropout between layers."""
        swap = padded and self.batch_first
        y = x.transpose(0, 1) if swap else x
        directions = 2 if self.bidirectional else 1
        ends = []
        for first in range(0, self.num_layers * directions, directions):
            if first > 0:
                y = F.dropout(y, self.dropout, self.training)
            own = slice(first, first + directions)
            y, end = layer(y, tuple(state[own] for state in states), self.all_weights[own])
            ends.append(end)
        final = tuple(torch.cat(parts) for parts in zip(*ends, strict=True))
        return y.transpose(0, 1) if swap else y, final

    def _run_reference(self, x: Tensor, states: States, batch_sizes: Tensor | None) -> Result:
        """The stack of plain loops. A packed batch is padded, masked, and packed again."""
        if batch_sizes is None:
            return self._run_layers(partial(self._reference_layer, None), x, states)
        x, lengths = pad_packed_sequence(PackedSequence(x, batch_sizes))
        running = (torch.arange(x.size(0))[:, None] < lengths).to(x.device)[:, :, None]
        if self.batch_first:
            x = x.transpose(0, 1)
        y, states = self._run_layers(partial(self._reference_layer, running), x, states)
        packed = pack_padded_sequence(y, lengths, batch_first=self.batch_first)
        return packed.data, states

    def _reference_layer(
        self, running: Tensor | None, x: Tensor, states: States, weights: Sequence[Sequence[Tensor]]
    ) -> Result:
        """One layer, time first, in one direction or in both."""
        ys, ends = [], []
        for direction, own in enumerate(weights):
            first = tuple(state[direction] for state in states)
            named = Weights.of(own, self.bias)
            y, end = self._loop(running, x, first, named, backwards=direction == 1)
            ys.append(y)
            ends.append(end)
        return torch.cat(ys, -1), tuple(torch.stack(parts) for parts in zip(*ends, strict=True))

    def _compiled_layer(
        self,
        batch_sizes: Tensor | None,
        x: Tensor,
        states: States,
        weights: Sequence[Sequence[Tensor]],
    ) -> Result:
        """One layer as one node of the graph."""
        device, autocast = x.device.type, None
        if autocast_is_on(device) and x.dtype != torch.float64:
            autocast = torch.get_autocast_dtype(device)
        flat = [weight for direction in weights for weight in direction]
        return torch_layer(self._kernel, x, batch_sizes, states, flat, self.bias, autocast)


class DropInCell(DropIn, nn.RNNCellBase, Generic[State]):
    """One step of a recurrent layer, as torch's cells; see the families for their arguments."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        impl: Impl = "auto",
    ) -> None:
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        check_flags(bias=bias)
        _check_common(dtype, impl)
        gates = max(1, len(self._gates))
        super().__init__(input_size, hidden_size, bias, gates, device, dtype)
        self.impl = impl

    def _directions(self) -> list[Weights]:
        return [Weights(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)]

    def forward(self, input: Tensor, hx: State | None = None) -> State:
        """Take one step.

        Args:
            input: (B, D) or (D,).
            hx: the state h, for an LSTM the pair (h, c), each (B, H) or (H,); zeros if None.

        Returns:
            The next state, or the next pair, shaped as `hx`.

        Raises:
            TypeError: `input` or `hx` has the wrong type or the wrong dtype.
            ValueError: wrong rank, size or device.
        """
        node = traced(self, input, hx)
        if node is not None:
            return node  # type: ignore[return-value]
        check_input("input", input, (1, 2), self.input_size, self.weight_ih)
        shapes = [(*input.shape[:-1], self.hidden_size)] * (1 + self._long)
        zeros = (input.new_zeros(shape) for shape in shapes)
        states: States = tuple(zeros) if hx is None else check_states(hx, shapes, input)
        weights: Weights = self._directions()[0]
        if self._wants_reference((input, *states, *weights)):
            _, states = self._loop(None, input.unsqueeze(0), states, weights)
            return cast(State, self._outward(states))
        kernel = CELLS[self._kernel]
        if input.dim() == 2:
            return cast(State, kernel(input, self._outward(states), *weights[:4]))
        rows = [state.unsqueeze(0) for state in states]
        found = kernel(input.unsqueeze(0), self._outward(rows), *weights[:4])
        found = found if self._long else (found,)
        return cast(State, self._outward([state.squeeze(0) for state in found]))


def _check_common(dtype: object, impl: object) -> None:
    check_dtype(dtype)
    check_impl(impl)


def _wide(states: States) -> States:
    """The states in float32 where their own type is narrower."""
    low = (torch.float16, torch.bfloat16)
    return tuple(state.float() if state.dtype in low else state for state in states)


def _is_compiled() -> bool:
    """Whether torch.compile is tracing. torch.export isn't meant: it keeps torch's own operator."""
    return torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()
