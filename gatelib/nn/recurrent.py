"""Any recurrent cell as a layer: the peephole LSTM, CIFG, LayerNorm, a reader's own `Spec`.

Imports torch, gatelib.cell, gatelib.spec, gatelib.kernels; convert, impl and check of gatelib.nn.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatelib.cell import Cell, cell
from gatelib.kernels import recurrent as kernel
from gatelib.kernels.steps import steps
from gatelib.kernels.unrolled import values as values_of
from gatelib.nn.check import (
    LOW_PRECISION,
    check_dropout,
    check_dtype,
    check_flags,
    check_gate,
    check_input,
    check_lengths,
    check_sizes,
)
from gatelib.nn.convert import add_biases
from gatelib.nn.impl import Impl, check_impl, may_need_gradient, takes_reference, traced
from gatelib.spec import Spec

__all__ = ["Recurrent"]

PACKED = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Recurrent(nn.Module):
    """A layer, or a stack of layers, made from any cell: a `Spec`, or several stages in order.

    The equations' names say what their inputs are; `gatelib.cell` has the whole convention. `a_k`
    is the preactivation W_k x + U_k h + b_k of gate k; where there is `u_k` too, `a_k` is
    W_k x + b_k and `u_k` is U_k h + b'_k. `NAME_prev` is the value that `NAME` had one step before.
    Every other input is a learned vector of size H. The state that U multiplies is `h`; in a later
    stage U multiplies the `q` of the stage before it, as in a GRU that resets before the product.

    Parameters, for layer k, with `_reverse` behind it for the reverse direction: `weight_ih_l{k}`
    (G*H, D), `weight_hh_l{k}` (G*H, H), `bias_ih_l{k}` (G*H,), where the cell has a `u_k` also
    `bias_hh_l{k}` (G*H,), and `{name}_l{k}` (H,) for each learned vector. The G blocks of rows
    are in the order of the cell's `a_k`, so an LSTM's and a GRU's weights are packed as torch's.
    A checkpoint of torch's LSTM has a `bias_hh_l{k}` more than the layer: it is loaded with the two
    biases summed, since they add up to the same preactivations.

    Args:
        spec: the cell: a Spec, its stages in order, or a `gatelib.cell.Cell`.
        input_size: features D of the input.
        hidden_size: features H of each state.
        num_layers: layers on top of each other.
        bias: whether the preactivations have a bias. Learned vectors stay.
        batch_first: whether input and output are (B, T, features) rather than (T, B, features).
        bidirectional: whether a second cell reads each sequence from its end.
        dropout: probability of dropping an output of each layer but the last, in training.
        impl: "reference" is the plain loop over time under autograd. "fused" is one operator
            with a generated backward. "auto" is fused, and reference where the operator can't go:
            in forward-mode differentiation, inside the transforms of torch.func but vmap, and in
            an ONNX export (see `gatelib.nn.impl`).
        device: where the parameters live.
        dtype: their floating-point type.

    Functions of `gatelib.nn.init` set how its gates start: `init.forget_bias_(Recurrent(…), 1.0)`.

    States are float32 where parameters or autocast are of lower precision, and float64 where the
    parameters are; final states have that type, so that a sequence may be read in pieces. The
    fused path computes everything in that type and rounds its output. Second derivatives work
    through every impl; the fused path takes the plain loop for them. `torch.fx` keeps the layer
    whole, as one node of a model.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: no layer can be made of the cell, or an argument is out of range.
    """

    weight_ih_l0: Tensor

    def __init__(
        self,
        spec: Spec | Sequence[Spec] | Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        *,
        batch_first: bool = True,
        bidirectional: bool = False,
        dropout: float = 0.0,
        impl: Impl = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.steps = steps(_cell_of(spec))
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        check_flags(bias=bias, batch_first=batch_first, bidirectional=bidirectional)
        check_dropout(dropout)
        check_impl(impl)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.bidirectional = bias, batch_first, bidirectional
        self.dropout, self.impl = float(dropout), impl
        self._make_parameters(device, dtype)
        self.reset_parameters()

    def __setattr__(self, name: str, value: Any) -> None:
        """An attribute; torch's quantizer marks by `qconfig` what it means to replace."""
        if name == "qconfig" and value is not None:
            raise TypeError(
                "qconfig: expected None, as a Recurrent has no quantized form; quantize the other "
                "layers, {nn.Linear}, or train a gatelib.nn.LSTM and see gatelib.nn.convert"
            )
        super().__setattr__(name, value)

    @property
    def cell(self) -> Cell:
        """The cell: its stages, and what their names mean."""
        return self.steps.cell

    @property
    def spec(self) -> Spec:
        """The cell's only Spec; ValueError where it has several stages."""
        return self.cell.spec

    # ---- parameters -------------------------------------------------------------------------

    def _make_parameters(self, device: Any, dtype: torch.dtype | None) -> None:
        check_dtype(dtype)
        hidden, rows = self.hidden_size, len(self.cell.gates) * self.hidden_size
        for layer in range(self.num_layers):
            features = self.input_size if layer == 0 else hidden * self._directions
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, features)}
            shapes["weight_hh"] = (rows, hidden)
            shapes |= dict.fromkeys(self._biases, (rows,))
            for suffix in self._suffixes(layer):
                for name, shape in shapes.items():
                    self._add(name + suffix, shape, device, dtype)
                for name in self.cell.vectors:
                    _check_free(name, name + suffix, self)
                    self._add(name + suffix, (hidden,), device, dtype)

    def _add(self, name: str, shape: tuple[int, ...], device: Any, dtype: Any) -> None:
        made = torch.empty(shape, device=device, dtype=dtype)
        self.register_parameter(name, nn.Parameter(made))

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _biases(self) -> tuple[str, ...]:
        if not self.bias:
            return ()
        return ("bias_ih", "bias_hh") if self.cell.split else ("bias_ih",)

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self._directions]

    @property
    def _all_suffixes(self) -> list[str]:
        """By layer and direction, as the parameters are drawn and the states are stacked."""
        return [s for layer in range(self.num_layers) for s in self._suffixes(layer)]

    def reset_parameters(self) -> None:
        """Draw weights and biases from U(-1/sqrt(H), 1/sqrt(H)), as torch does.

        Learned vectors called `s_…` (gains) start at 1 and those called `b_…` (shifts) at 0.
        """
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters():
            if name.startswith("s_"):
                nn.init.ones_(parameter)
            elif name.startswith("b_"):
                nn.init.zeros_(parameter)
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def gate_biases(self, gate: str) -> list[tuple[Tensor, ...]]:
        """For each layer and direction, views of the biases that add up to a gate's preactivation.

        A cell that normalises its preactivations has a shift for it, a learned vector `b_GATE`;
        that alone is the gate's bias then.

        Raises:
            ValueError: the cell has no such gate, or the layer has no biases.
        """
        shift, gates = f"b_{gate}", self.cell.gates
        if shift in self.cell.vectors:
            return [(getattr(self, shift + suffix),) for suffix in self._all_suffixes]
        check_gate(gate, gates, self)
        if not self.bias:
            raise ValueError(f"bias: expected True, as {self.cell.name} has no shift `{shift}`")
        rows = slice(
            gates.index(gate) * self.hidden_size, (gates.index(gate) + 1) * self.hidden_size
        )
        return [tuple(getattr(self, b + s)[rows] for b in self._biases) for s in self._all_suffixes]

    # ---- over a batch of sequences ----------------------------------------------------------

    def forward(
        self,
        input: Tensor,
        initial_state: Mapping[str, Tensor] | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the cell over a batch of sequences.

        Args:
            input: (B, T, D), or (T, B, D) without `batch_first`.
            initial_state: {name: (num_layers * directions, B, H)} for each state (`h` and the
                carries), as the final state is; None for zeros.
            lengths: (B,) integers from 0 to T. Sequence b is `input[b, :lengths[b]]`; past it
                the output is 0, and its final state is the one at its length.

        Returns:
            output: `h` of the last layer at each step, (B, T, directions * H).
            final_state: {name: (num_layers * directions, B, H)} for each state.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: a shape or device doesn't fit, a state is missing or unknown, a length
                is below 0 or above T (inside torch.compile and torch.export, lengths can't be
                looked at), or `impl="fused"` where the operator can't go.
        """
        node = traced(self, input, initial_state, lengths)
        if node is not None:
            return node  # type: ignore[return-value]
        x, states, mask, lengths = self._read(input, initial_state, lengths)
        final: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0:
                x = F.dropout(x, self.dropout, self.training)
            outputs = []
            for suffix in self._suffixes(layer):
                initial = [values[len(final)] for values in states.values()]
                y, last = self._run(_turned(x, suffix, lengths), suffix, initial, mask)
                y = y if mask is None else y.masked_fill(~mask, 0)
                outputs.append(_turned(y, suffix, lengths))
                final.append(last)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        output = x.transpose(0, 1) if self.batch_first else x
        stacked = [torch.stack(values) for values in zip(*final, strict=True)]
        return output, dict(zip(self.cell.states, stacked, strict=True))

    def values(
        self,
        input: Tensor,
        initial_state: Mapping[str, Tensor] | None = None,
        lengths: Tensor | None = None,
    ) -> dict[str, dict[str, Tensor]]:
        """Every value that the cell's equations name, at every step, by the plain loop.

        Args:
            input, initial_state, lengths: as for `forward`.

        Returns:
            {path: {name: (B, T, H)}}, with `.l0`, `.l0_reverse`, … as paths of the layers and
            directions, and an empty path for the only one. Beyond a sequence's length, nan.

        Raises:
            TypeError, ValueError: as `forward`; and where dropout between layers is active, so
                that what the upper layers saw can't be known.
        """
        if self.training and self.dropout > 0 and self.num_layers > 1:
            raise ValueError(
                "training: expected eval mode, as dropout between layers is drawn anew"
            )
        x, states, mask, lengths = self._read(input, initial_state, lengths)
        every = steps(cell([stage.exposed for stage in self.cell.stages], self.cell.name))
        found: dict[str, dict[str, Tensor]] = {}
        for layer in range(self.num_layers):
            outputs = []
            for suffix in self._suffixes(layer):
                initial = [values[len(found)] for values in states.values()]
                own = self._inputs(_turned(x, suffix, lengths), suffix, initial, mask, widened=True)
                named = values_of(every, own)
                named = {name: _turned(v, suffix, lengths) for name, v in named.items()}
                outputs.append(named["h"])
                found["." + suffix[1:]] = {n: self._shown(v, mask) for n, v in named.items()}
            x = torch.cat(outputs, -1)
            x = x if mask is None else x.masked_fill(~mask, 0)
        return found if len(found) > 1 else {"": found[".l0"]}

    def _shown(self, value: Tensor, mask: Tensor | None) -> Tensor:
        value = value if mask is None else value.masked_fill(~mask, torch.nan)
        return value.transpose(0, 1)

    def _read(
        self, input: Tensor, initial_state: Mapping[str, Tensor] | None, lengths: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None, Tensor | None]:
        """The input time first, states, mask and lengths, all checked."""
        check_input("input", input, (3,), self.input_size, self.weight_ih_l0)
        x = input.transpose(0, 1) if self.batch_first else input
        count, batch, _ = x.shape
        states = self._initial_states(initial_state, batch)
        if lengths is None:
            return x, states, None, None
        check_lengths(lengths, count, batch)
        lengths = lengths.to(input.device)
        mask = (torch.arange(count, device=x.device)[:, None] < lengths).unsqueeze(-1)
        return x.masked_fill(~mask, 0), states, mask, lengths

    def _run(
        self, x: Tensor, suffix: str, initial: list[Tensor], mask: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """One direction of one layer."""
        plain = self._inputs(x, suffix, initial, mask, widened=False)
        tensors = [x, *plain.weights, *plain.vectors, *initial]
        rounded = output_type(x)
        if takes_reference(self.impl, tensors):
            y, last = kernel.unrolled(self.steps, plain)
        else:
            wide = self._inputs(x, suffix, initial, mask, widened=True)
            y, last = kernel.fused(self.steps, wide, may_need_gradient(tensors))
        return y.to(rounded), last

    def _inputs(
        self, x: Tensor, suffix: str, initial: list[Tensor], mask: Tensor | None, widened: bool
    ) -> kernel.Inputs:
        """What the kernels take; x and the weights in the type of the states where `widened`."""
        dtype = initial[0].dtype
        vectors = [getattr(self, name + suffix).to(dtype) for name in self.cell.vectors]
        names = dict.fromkeys(PACKED[:2] + self._biases, True)
        w, u, b_ih, b_hh = (getattr(self, n + suffix) if n in names else None for n in PACKED)
        assert w is not None and u is not None
        weights: kernel.Weights = (w, u, b_ih, b_hh)
        if widened:
            x = x.to(dtype)
            b_ih, b_hh = (None if b is None else b.to(dtype) for b in (b_ih, b_hh))
            weights = (w.to(dtype), u.to(dtype), b_ih, b_hh)
        return kernel.Inputs(x, weights, vectors, initial, mask)

    def _initial_states(self, given: Mapping[str, Tensor] | None, batch: int) -> dict[str, Tensor]:
        """The initial state by name, checked, in the type of the states."""
        weight = self.weight_ih_l0
        dtype = torch.float32 if weight.dtype in LOW_PRECISION else weight.dtype
        shape = (self.num_layers * self._directions, batch, self.hidden_size)
        if given is None:
            zeros = torch.zeros(shape, dtype=dtype, device=weight.device)
            return dict.fromkeys(self.cell.states, zeros)
        _check_states(given, self.cell.states, shape, weight, dtype)
        return {name: given[name].to(dtype) for name in self.cell.states}

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """A checkpoint of torch's LSTM or RNN fits, or is refused: its two biases become one."""
        error_msgs += add_biases(state_dict, prefix, self._parameters, self.cell.gates)
        told = local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        super()._load_from_state_dict(state_dict, prefix, *told)

    def extra_repr(self) -> str:
        """The arguments that aren't at their default."""
        parts = [self.cell.name, str(self.input_size), str(self.hidden_size)]
        options = {
            "num_layers": (self.num_layers, 1),
            "bias": (self.bias, True),
            "batch_first": (self.batch_first, True),
            "bidirectional": (self.bidirectional, False),
            "dropout": (self.dropout, 0.0),
            "impl": (self.impl, "auto"),
        }
        parts += [f"{name}={value!r}" for name, (value, usual) in options.items() if value != usual]
        return ", ".join(parts)


def output_type(x: Tensor) -> torch.dtype:
    """The type of a layer's output: autocast's where that is on, otherwise the input's."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if on and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def _turned(x: Tensor, suffix: str, lengths: Tensor | None) -> Tensor:
    """For a reverse direction each sequence of (T, B, D) from its end, past which all stays."""
    if not suffix.endswith("_reverse"):
        return x
    if lengths is None:
        return x.flip(0)
    t = torch.arange(x.shape[0], device=x.device)[:, None]
    source = torch.where(t < lengths, lengths - 1 - t, t)
    return x.gather(0, source.unsqueeze(-1).expand(x.shape))


def _cell_of(spec: object) -> Cell:
    """The argument `spec` as a cell."""
    if isinstance(spec, str) or not isinstance(spec, Spec | Sequence | Cell):
        expected = "a Spec, a sequence of Specs or a Cell"
        raise TypeError(f"spec: expected {expected}, got {type(spec).__name__}")
    return cell(spec)


def _check_free(vector: str, name: str, layer: nn.Module) -> None:
    """A learned vector may not take the place of what the layer has."""
    if vector in PACKED or hasattr(layer, name):
        raise ValueError(
            f"spec: expected another name for the learned vector `{vector}`, as the layer has a "
            f"{name} of its own"
        )


def _check_states(
    given: object,
    names: tuple[str, ...],
    shape: tuple[int, ...],
    weight: Tensor,
    dtype: torch.dtype,
) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"initial_state: expected a dict of states, got {type(given).__name__}")
    if set(given) != set(names):
        raise ValueError(f"initial_state: expected the states {list(names)}, got {list(given)}")
    for name in names:
        state, what = given[name], f"initial_state[{name!r}]"
        if not isinstance(state, Tensor):
            raise TypeError(f"{what}: expected a tensor, got {type(state).__name__}")
        if tuple(state.shape) != shape:
            raise ValueError(f"{what}: expected shape {shape}, got {tuple(state.shape)}")
        if state.dtype not in (dtype, weight.dtype):
            raise TypeError(f"{what}: expected {dtype}, got {state.dtype}")
        if state.device != weight.device:
            raise ValueError(f"{what}: expected device {weight.device}, got {state.device}")
