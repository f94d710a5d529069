"""Layers over depth from the Spec of one: the plain loop, and one operator that saves little.

Imports torch, and of gatelib.kernels inplace, layers and operator.
Must not import any other floor: gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

Of a highway layer the operator `gatelib::highway` saves two values a unit: what the layer received
and its transform h. Gates come back from the weights in the backward pass, by half of the forward
product (two thirds where the carry gate is its own). Autograd would save four: x, h, t and 1 − t.
Rows of x are examples: (N, D).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gatelib.kernels.inplace import COLUMN, FULL, Program
from gatelib.kernels.layers import Layer, layer_of_text
from gatelib.kernels.operator import Operator

__all__ = ["fused", "plain"]

Columns = dict[str, Iterable[Tensor]]
"""For each parameter of a step, its tensor at every layer."""


def plain(known: Layer, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layers one by one, differentiated by autograd.

    Args:
        known: the layer, with G preactivations.
        x: (N, D), of the type of the result.
        weight: (L, G*D, D).
        bias: (L, G*D).

    Returns:
        What the last layer gives, (N, D).
    """
    for w, b in zip(weight, bias, strict=True):
        packed = F.linear(x.to(w.dtype), w, b).to(x.dtype)
        named = known.parts(packed) | {"x": x}
        x = known.in_torch(*(named[v] for v in known.inputs))
    return x


def fused(known: Layer, x: Tensor, weight: Tensor, bias: Tensor, save: bool) -> Tensor:
    """The fast path; arguments and result as in `plain`, all float32 or all float64.

    `save` says whether a backward pass may follow. With `create_graph=True` that runs `plain` again
    and differentiates it.
    """
    return OPERATOR(known.text, x, weight, bias, save)[0]


def _forward(spec: str, x: Tensor, weight: Tensor, bias: Tensor, save: bool) -> list[Tensor]:
    """[y, x of all layers but the first, saved values of all layers…]; without `save` y alone."""
    known, found = layer_of_text(spec), _shapes(spec, x, weight, bias, save)
    y, between, *saved = found if save else [*found, *_kept(known, x, 3)]
    outs = [*itertools.islice(itertools.cycle(between.unbind(0)), len(weight) - 1), y]
    received = [x, *outs[:-1]]
    packed = x.new_empty(x.shape[0], weight.shape[1])
    parts = known.parts(packed)
    columns = _repeated(_buffers(known.step, x) | parts)
    columns |= _repeated({v: parts[f"a_{k}"] for k, v in known.gates.items()})
    pairs = zip(known.saved.values(), saved, strict=True)
    columns |= {v: itertools.cycle(values.unbind(0)) for v, values in pairs}
    columns |= {"x": received, "y": outs}
    maps = zip(received, weight.mT.unbind(0), bias.unbind(0), strict=True)
    step, arguments = known.step.compile(), _arguments(known.step, columns)
    with torch.autocast(x.device.type, enabled=False):
        for (x_k, w, b), own in zip(maps, arguments, strict=False):
            torch.addmm(b, x_k, w, out=packed)
            step(*own)
    return found


def _shapes(spec: str, x: Tensor, weight: Tensor, bias: Tensor, save: bool) -> list[Tensor]:
    return [x.new_empty(x.shape), *(_kept(layer_of_text(spec), x, len(weight)) if save else [])]


def _kept(known: Layer, x: Tensor, layers: int) -> list[Tensor]:
    """What all layers but the first receive, and what each saves."""
    saved = (_empty(x, known.shapes[v], layers) for v in known.saved)
    return [x.new_empty(layers - 1, *x.shape), *saved]


def _backward(
    d_results: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    needs: Sequence[bool],
    spec: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    save: bool,
) -> list[Tensor | None]:
    """Gradients of x, weight and bias."""
    known, (d_y,), (between, *saved) = layer_of_text(spec), d_results, kept
    assert d_y is not None
    size, again = x.shape[1], known.again
    d_a, found_again = (x.new_empty(len(x), n) for n in (weight.shape[1], size * len(again)))
    first = d_y.clone(memory_format=torch.contiguous_format)
    turns = first, torch.empty_like(first)
    columns = _backward_columns(known, d_a, found_again, turns)
    columns["x"] = received = [x, *between.unbind(0)][::-1]
    columns |= {v: values.unbind(0)[::-1] for v, values in zip(known.saved, saved, strict=True)}
    d_weight, d_bias, ones = torch.empty_like(weight), torch.empty_like(bias), x.new_ones(len(x))
    rows = slice(again.start * size, again.stop * size)
    given = (weight, weight[:, rows].mT, bias[:, rows], d_weight, d_bias)
    maps = zip(received, *(v.unbind(0)[::-1] for v in given), itertools.cycle(turns[::-1]))
    step, arguments, d_at = known.step_back.compile(), _arguments(known.step_back, columns), d_a.t()
    with torch.autocast(x.device.type, enabled=False):
        for (x_k, w, to_gates, b, d_w, d_b, d_x), own in zip(maps, arguments, strict=False):
            torch.addmm(b, x_k, to_gates, out=found_again)
            step(*own)
            torch.mm(d_at, x_k, out=d_w)
            torch.mv(d_at, ones, out=d_b)
            if needs[0] or x_k is not x:
                torch.addmm(d_x, d_a, w, out=d_x)
    return [turns[len(weight) % 2], d_weight, d_bias]


def _backward_columns(
    known: Layer, d_a: Tensor, found_again: Tensor, turns: tuple[Tensor, Tensor]
) -> Columns:
    """Gates' preactivations, found again, adjoints, scratch; the last layer first.

    A gate stands in its preactivation's place. The adjoint that flows from layer to layer has two
    buffers that take turns: one is read while the other is filled.
    """
    fixed = _buffers(known.step_back, turns[0])
    parts = found_again.chunk(max(1, len(known.again)), -1)
    for k, part in zip([known.blocks[at] for at in known.again], parts, strict=False):
        fixed |= {f"a_{k}": part, known.gates.get(k, f"a_{k}"): part}
    fixed |= {known.adjoints[a]: d for a, d in known.parts(d_a).items()}
    taking_turns = {known.seed: turns, known.adjoints["x"]: turns[::-1]}
    return _repeated(fixed) | {v: itertools.cycle(pair) for v, pair in taking_turns.items()}


def _arguments(program: Program, columns: Columns) -> Iterator[tuple[Any, ...]]:
    """The positional arguments of each layer's step."""
    return zip(*(columns[v] for v in program.arguments), strict=False)


def _repeated(buffers: Mapping[str, Tensor]) -> Columns:
    """The same buffer at every layer."""
    return {v: itertools.repeat(buffer) for v, buffer in buffers.items()}


def _empty(x: Tensor, shape: str, layers: int | None = None) -> Tensor:
    """A buffer for a value of one layer, or of all."""
    sizes = {FULL: tuple(x.shape), COLUMN: (x.shape[0], 1)}.get(shape, (1, 1))
    return x.new_empty(sizes if layers is None else (layers, *sizes))


def _buffers(program: Program, x: Tensor) -> dict[str, Tensor]:
    """The program's scratch, that of full shape in one piece, and its constants."""
    full = [v for v, shape in program.scratch.items() if shape == FULL]
    own = dict(zip(full, x.new_empty(len(full), *x.shape).unbind(0), strict=True))
    own |= {v: _empty(x, shape) for v, shape in program.scratch.items() if shape != FULL}
    constants = program.constants.items()
    return own | {v: _empty(x, shape).fill_(number) for v, (number, shape) in constants}


OPERATOR = Operator(
    "highway",
    forward=_forward,
    shapes=_shapes,
    results=lambda *arguments: 1,
    backward=_backward,
    kept=lambda outputs, count: outputs[count:],
    plain=lambda spec, x, weight, bias, save: [plain(layer_of_text(spec), x, weight, bias)],
    rows={"x": 0},
    row_axes=lambda spec, x, weight, bias, save: [
        min(at, 1) for at in range(2 + len(layer_of_text(spec).saved) if save else 1)
    ],
)
