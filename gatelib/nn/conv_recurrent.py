"""Any elementwise cell over films, with convolutions for products: what nn.conv_rnn is made of.

Imports torch, gatelib.cell, gatelib.kernels.steps; of gatelib.nn check, impl, init and recurrent.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.cell import Cell, cell
from gatelib.kernels.steps import Part, steps
from gatelib.nn.check import (
    LOW_PRECISION,
    KindError,
    ShapeError,
    check_choice,
    check_dtype,
    check_flags,
    check_gate,
    check_lengths,
    check_like,
    check_sizes,
    check_state,
    check_tensor,
)
from gatelib.nn.impl import traced
from gatelib.nn.init import gate_rows
from gatelib.nn.recurrent import output_type

__all__ = ["ConvRecurrent", "Pair", "pair"]

Pair = tuple[int, int]
Sides = tuple[int, int, int, int]
"""Zeros left, right, above and below an image, in the order of `F.pad`."""
States = dict[str, Tensor]
IN_CACHE = 2**19
"""On a CPU, how many numbers W * x makes at once: 2 MB of float32 (see `_from_input`)."""


class _Stage(NamedTuple):
    """One stage of a step, with the recurrent kernel and bias of its gates where it has any."""

    part: Part
    run: Callable[..., Any]
    weight: Tensor
    bias: Tensor | None


class ConvRecurrent(nn.Module):
    """What the three layers share: any elementwise cell, with W * x and U * h as convolutions."""

    memory_gates: tuple[str, str | None] = ("f", "i")

    def __init__(
        self,
        known: Cell,
        sizes: tuple[int, int, int],
        kernel: tuple[object, object, object, object],
        bias: bool,
        device: Any,
        dtype: torch.dtype | None,
        peephole: Pair | None = None,
    ) -> None:
        """`sizes`: input, hidden channels, layers; `kernel`: its size, padding, dilation, mode."""
        super().__init__()
        self.steps = steps(known)
        self.in_channels, self.hidden_channels, self.num_layers = sizes
        check_sizes(in_channels=sizes[0], hidden_channels=sizes[1], num_layers=sizes[2])
        check_flags(bias=bias)
        check_dtype(dtype)
        self.kernel_size = pair("kernel_size", kernel[0])
        self.dilation = pair("dilation", kernel[2])
        self._same = _same(self.kernel_size, self.dilation)
        self.padding, self._sides = _padding(kernel[1], self._same)
        check_choice("padding_mode", kernel[3], ("zeros", "circular"))
        self.padding_mode = kernel[3]
        self.bias, self.peephole = bias, peephole
        self._make_parameters(device, dtype)
        self.reset_parameters()

    @property
    def cell(self) -> Cell:
        """The cell: its stages, and what their names mean."""
        return self.steps.cell

    # ---- parameters -------------------------------------------------------------------------

    def _make_parameters(self, device: Any, dtype: torch.dtype | None) -> None:
        hidden, rows = self.hidden_channels, len(self.cell.gates) * self.hidden_channels
        for layer in range(self.num_layers):
            seen = hidden if layer else self.in_channels
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, seen, *self.kernel_size)}
            shapes["weight_hh"] = (rows, hidden, *self.kernel_size)
            shapes |= dict.fromkeys(self._biases, (rows,))
            shapes |= dict.fromkeys(self.cell.vectors, (hidden, *(self.peephole or ())))
            for name, shape in shapes.items():
                made = torch.empty(shape, device=device, dtype=dtype)
                self.register_parameter(f"{name}_l{layer}", nn.Parameter(made))

    @property
    def _biases(self) -> tuple[str, ...]:
        if not self.bias:
            return ()
        return ("bias_ih", "bias_hh") if self.cell.split else ("bias_ih",)

    def _own(self, name: str, layer: int) -> Tensor:
        found: Tensor = getattr(self, f"{name}_l{layer}")
        return found

    def _bias(self, name: str, layer: int) -> Tensor | None:
        return self._own(name, layer) if name in self._biases else None

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-r, r), r = 1/sqrt(C * k * l) for kernels of k times l."""
        bound = 1 / math.sqrt(self.hidden_channels * math.prod(self.kernel_size))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def gate_biases(self, gate: str) -> list[tuple[Tensor, ...]]:
        """For each layer, views of the biases that add up to a gate's preactivation.

        Raises:
            ValueError: the cell has no such gate, or the layer has no biases.
        """
        check_gate(gate, self.cell.gates, self)
        if not self.bias:
            raise ValueError(f"bias: expected True, as gate {gate!r} has no bias without it")
        layers = ([self._own(name, k) for name in self._biases] for k in range(self.num_layers))
        return [
            tuple(gate_rows(packed.detach(), gate, self.cell.gates) for packed in own)
            for own in layers
        ]

    # ---- over a batch of films --------------------------------------------------------------

    def forward(
        self, input: Tensor, initial_state: Any = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Run the layers over a batch of films.

        Args:
            input: (B, T, C_in, H, W).
            initial_state: as `final_state` below; None for zeros.
            lengths: (B,) integers from 0 to T; None where no film is padded. Past its length a
                film's output is 0, and its final state is the one at its length.

        Returns:
            output: h of the last layer at each step, (B, T, C, H, W).
            final_state: h of each layer, (num_layers, B, C, H, W), or the pair (h, c) of such for a
            ConvLSTM2d; given as the initial state it continues the film.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: a shape, a device or a length doesn't fit.
        """
        node = traced(self, input, initial_state, lengths)
        if node is not None:
            return node  # type: ignore[return-value]
        x, states, mask = self._read(input, initial_state, lengths)
        final: list[States] = []
        for layer in range(self.num_layers):
            last = {name: value[layer] for name, value in states.items()}
            empty, outputs = last["h"][:, None][:, :0], []
            for _, after in self._loop(x, layer, last, mask):
                outputs.append(after["h"])
                last = after
            x = (torch.stack(outputs, 1) if outputs else empty).to(input.dtype)
            final.append(last)
        output = x.to(output_type(input))
        output = output if mask is None else output.masked_fill(~mask, 0)
        stacked = tuple(torch.stack([own[name] for own in final]) for name in states)
        return output, stacked if len(stacked) > 1 else stacked[0]

    def values(
        self, input: Tensor, initial_state: Any = None, lengths: Tensor | None = None
    ) -> dict[str, dict[str, Tensor]]:
        """Every value that the cell's equations name, at every step: to look at, differentiable.

        Args:
            input, initial_state, lengths: as for `forward`.

        Returns:
            {path: {name: (B, T, C, H, W)}}, with `.l0`, `.l1`, … as paths of the layers, and an
            empty path for the only one. Beyond a film's length, nan.

        Raises:
            TypeError, ValueError: as `forward`.
        """
        x, states, mask = self._read(input, initial_state, lengths)
        found: dict[str, States] = {}
        for layer in range(self.num_layers):
            here = {name: value[layer] for name, value in states.items()}
            seen = [made for made, _ in self._loop(x, layer, here, mask, every=True)]
            names = [str(v) for stage in self.cell.stages for v, _ in stage.equations]
            empty = here["h"][:, None][:, :0]
            own = {n: torch.stack([made[n] for made in seen], 1) if seen else empty for n in names}
            x = own["h"].to(input.dtype)
            if mask is not None:
                own = {name: value.masked_fill(~mask, torch.nan) for name, value in own.items()}
            found[f".l{layer}"] = own
        return found if len(found) > 1 else {"": found[".l0"]}

    def _loop(
        self, x: Tensor, layer: int, states: States, mask: Tensor | None, every: bool = False
    ) -> Iterator[tuple[States, States]]:
        """At each step of one layer what its cell makes, and its states."""
        stages, dtype = self._stages(layer, every), states["h"].dtype
        fixed = {name: self._own(name, layer).to(dtype) for name in self.cell.vectors}
        for t, now in enumerate(self._from_input(x, layer)):
            made = self._step(stages, now, states, fixed)
            before, states = states, {name: made[name] for name in states}
            if mask is not None:
                here = mask[:, t]
                states = {n: torch.where(here, v, before[n]) for n, v in states.items()}
            yield made, states

    def _from_input(self, x: Tensor, layer: int) -> Iterator[Tensor]:
        """W * x + b of one step after the other.

        One convolution makes those of all steps; on a CPU, of as many steps as its cache holds,
        since all at once would leave it and take up to twice the time.
        """
        weight, sides = self._own("weight_ih", layer), self._same if layer else self._sides
        count = max(1, x.shape[1])
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            numbers = len(weight) * x.shape[0] * x.shape[3] * x.shape[4]
            count = max(1, IN_CACHE // max(1, numbers))
        for part in torch.split(x.transpose(0, 1), count):
            bias = self._bias("bias_ih", layer)
            images = _convolved(part.flatten(0, 1), weight, bias, sides, self)
            yield from images.reshape(*part.shape[:2], *images.shape[1:]).unbind(0)

    def _stages(self, layer: int, every: bool) -> list[_Stage]:
        """The stages of a step with their weights; with `every`, each value is an output."""
        known = self.steps
        if every:
            known = steps(cell([stage.exposed for stage in self.cell.stages], self.cell.name))
        weight, bias = self._own("weight_hh", layer), self._bias("bias_hh", layer)
        if len(known.parts) == 1:
            return [_Stage(known.parts[0], known.in_torch[0], weight, bias)]
        found = []
        for part, run in zip(known.parts, known.in_torch, strict=True):
            rows = slice(*(gates * self.hidden_channels for gates in part.rows))
            found.append(_Stage(part, run, weight[rows], None if bias is None else bias[rows]))
        return found

    def _step(self, stages: list[_Stage], from_x: Tensor, states: States, fixed: States) -> States:
        """The values of one step by name, from W * x + b and the states before it."""
        known = fixed | {f"{name}_prev": states[name] for name in self.cell.carries}
        for stage in stages:
            part, size = stage.part, self.hidden_channels
            if part.gates:
                source = known["q"] if part.source == "q" else states["h"]
                seen = from_x[:, part.rows[0] * size : part.rows[1] * size]
                known |= self._preactivations(stage, seen, source)
            new = stage.run(*(known[str(v)] for v in part.spec.inputs))
            new = new if isinstance(new, tuple) else (new,)
            known |= dict(zip(map(str, part.spec.outputs), new, strict=True))
        return known

    def _preactivations(self, stage: _Stage, from_x: Tensor, source: Tensor) -> States:
        """`a_k`, and `u_k` where the cell has one: one convolution for all gates of a stage."""
        gates, dtype = stage.part.gates, source.dtype
        h = source.to(stage.weight.dtype)
        from_h = _convolved(h, stage.weight, stage.bias, self._same, self).to(dtype)
        from_x, count = from_x.to(dtype), len(gates)
        if not stage.part.split:
            blocks = (from_x + from_h).chunk(count, 1)
            return {f"a_{k}": a for k, a in zip(gates, blocks, strict=True)}
        named: States = {}
        for k, a, u in zip(gates, from_x.chunk(count, 1), from_h.chunk(count, 1), strict=True):
            named |= {f"a_{k}": a, f"u_{k}": u} if k in stage.part.split else {f"a_{k}": a + u}
        return named

    # ---- what it is called with -------------------------------------------------------------

    def _read(
        self, input: Tensor, initial_state: object, lengths: Tensor | None
    ) -> tuple[Tensor, States, Tensor | None]:
        """The films, the states by name, and (B, T, 1, 1, 1): is this step inside its film?"""
        weight = self._own("weight_ih", 0)
        x = check_tensor("input", input)
        if x.dim() != 5 or x.shape[2] != self.in_channels:
            expected = f"(B, T, {self.in_channels}, H, W)"
            raise ShapeError(f"input: expected {expected}, got shape {tuple(x.shape)}")
        check_like("input", x, weight, "weights")
        states = self._initial(initial_state, x.shape[0], self._image(x), weight)
        if lengths is None:
            return x, states, None
        check_lengths(lengths, x.shape[1], x.shape[0])
        times = torch.arange(x.shape[1], device=x.device)
        mask = (times < lengths.to(x.device)[:, None])[:, :, None, None, None]
        return x.masked_fill(~mask, 0), states, mask

    def _image(self, x: Tensor) -> Pair:
        """Height and width of the states."""
        left, right, above, below = self._sides
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        image = (x.shape[3] + above + below - reach[0], x.shape[4] + left + right - reach[1])
        if min(image) < 1:
            found = f"{tuple(x.shape[3:])} and padding {self.padding!r}"
            least = f"at least {reach[0] + 1} x {reach[1] + 1} with its padding"
            raise ShapeError(f"input: expected images of {least}, got {found}")
        if self.padding_mode == "circular":
            _check_wrap(self._sides, (x.shape[3], x.shape[4]))
            _check_wrap(self._same, image)
        if self.peephole not in (None, image):
            found = f"{image[0]} x {image[1]}"
            raise ShapeError(
                f"input: expected images that make states of {self.peephole[0]} x "
                f"{self.peephole[1]}, as `peephole` says, got {found}"
            )
        return image

    def _initial(self, given: object, batch: int, image: Pair, weight: Tensor) -> States:
        """The initial state by name, checked, in the type of the states."""
        names, shape = self.cell.states, (self.num_layers, batch, self.hidden_channels, *image)
        wide = torch.float32 if weight.dtype in LOW_PRECISION else weight.dtype
        if given is None:
            zeros = torch.zeros(shape, dtype=wide, device=weight.device)
            return dict.fromkeys(names, zeros)
        parts = (given,) if len(names) == 1 else given
        if not isinstance(parts, tuple | list) or len(parts) != len(names):
            found = (
                f"{len(parts)} items" if isinstance(parts, tuple | list) else type(parts).__name__
            )
            raise KindError(f"initial_state: expected a pair (h, c), got {found}")
        states = {}
        for index, (name, value) in enumerate(zip(names, parts, strict=True)):
            what = "initial_state" if len(names) == 1 else f"initial_state[{index}]"
            kept = getattr(value, "dtype", None) == wide  # a final state, come back
            check_state(what, value, shape, weight.to(wide) if kept else weight, "weights")
            states[name] = value.to(wide)
        return states

    def extra_repr(self) -> str:
        """The arguments that aren't at their default."""
        usual = {"num_layers": 1, "bias": True, "padding": "same", "dilation": (1, 1)}
        usual["padding_mode"] = "zeros"
        parts = [str(self.in_channels), str(self.hidden_channels)]
        parts.append(f"kernel_size={self.kernel_size}")
        parts += [f"{n}={getattr(self, n)!r}" for n, v in usual.items() if getattr(self, n) != v]
        return ", ".join([*parts, *self._own_arguments()])

    def _own_arguments(self) -> list[str]:
        """The arguments of one kind of layer, for `extra_repr`."""
        return []


# ---- convolutions -----------------------------------------------------------------------------


def _convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, sides: Sides, layer: ConvRecurrent
) -> Tensor:
    """W * x + b; torch pads both sides alike, and an even kernel wants one more on the second."""
    left, right, above, below = sides
    if layer.padding_mode == "circular" and any(sides):
        x = F.pad(x, sides, mode="circular")
        return F.conv2d(x, weight, bias, dilation=layer.dilation)
    if (left, above) == (right, below):
        return F.conv2d(x, weight, bias, padding=(above, left), dilation=layer.dilation)
    return F.conv2d(F.pad(x, sides), weight, bias, dilation=layer.dilation)


def _check_wrap(sides: Sides, image: Pair) -> None:
    """A torus is gone round once at most."""
    wide, high = max(sides[:2]), max(sides[2:])
    if wide > image[1] or high > image[0]:
        raise ShapeError(
            f"input: expected images of at least {high} x {wide}, which the kernel reaches round "
            f"the edge, got {image[0]} x {image[1]}"
        )


def _same(kernel: Pair, dilation: Pair) -> Sides:
    """The zeros around an image that keep its size, as torch and Keras lay them."""
    rows, columns = (d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


def _padding(given: object, same: Sides) -> tuple[str | Pair, Sides]:
    """The argument `padding` as it is kept, and the zeros that it means."""
    if isinstance(given, str):
        check_choice("padding", given, ("same", "valid"))
        return given, same if given == "same" else (0, 0, 0, 0)
    rows, columns = both = pair("padding", given, least=0)
    return both, (columns, columns, rows, rows)


def pair(name: str, given: object, least: int = 1, of_one: bool = True) -> Pair:
    """One integer for both axes, or a pair of them."""
    both = (given, given) if of_one and not isinstance(given, tuple | list) else given
    expected = "an integer or a pair of them" if of_one else "a pair of integers (H, W)"
    if not isinstance(both, tuple | list) or len(both) != 2:
        raise TypeError(f"{name}: expected {expected}, got {given!r}")
    for size in both:
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"{name}: expected {expected}, got {given!r}")
        if size < least:
            raise ShapeError(f"{name}: expected at least {least}, got {given!r}")
    return int(both[0]), int(both[1])
