"""Any recurrent cell over a sequence, forward, in buffers that are made beforehand.

Imports torch and gatelib.kernels.
Must not import gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

All tensors are time first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from gatelib.kernels.inplace import COLUMN, FULL, VECTOR, Program
from gatelib.kernels.products import Products, slices
from gatelib.kernels.steps import Stage, Steps
from gatelib.kernels.unrolled import Inputs

__all__ = ["arguments_of", "buffer", "own_buffers", "run_forward"]

Columns = dict[str, Iterable[Any]]
"""{parameter of a program: its tensor at every step}."""


def buffer(like: Tensor, shape: str, batch: int, hidden: int, steps: int | None = None) -> Tensor:
    """An empty buffer for a value of that shape, with a leading axis of `steps`."""
    sizes = {FULL: (batch, hidden), COLUMN: (batch, 1), VECTOR: (1, hidden)}.get(shape, (1, 1))
    return like.new_empty(sizes if steps is None else (steps, *sizes))


def own_buffers(program: Program, like: Tensor, batch: int, hidden: int) -> Columns:
    """The program's scratch and constants, the same at each step."""
    own = {v: buffer(like, shape, batch, hidden) for v, shape in program.scratch.items()}
    for v, (number, shape) in program.constants.items():
        own[v] = buffer(like, shape, batch, hidden).fill_(number)
    return {v: itertools.repeat(tensor) for v, tensor in own.items()}


def arguments_of(program: Program, columns: Columns) -> Iterator[tuple[Any, ...]]:
    """The positional arguments of each step."""
    named = [columns[v] for v in program.arguments]
    return zip(*named, strict=False) if named else itertools.repeat(())


def run_forward(steps: Steps, inputs: Inputs, save: bool) -> list[Tensor]:
    """[h of every step, final states…, saved states except h…, saved values…]."""
    count, states = inputs.x.shape[0], steps.cell.states
    kept = _kept_buffers(steps, inputs, save)
    now = {s: list(kept[s].unbind(0)) for s in states}
    if not save:
        now |= {s: (count * v)[:count] for s, v in now.items() if s != "h"}
    before = {s: [v, *now[s][:-1]] for s, v in zip(states, inputs.initial, strict=True)}
    _run(steps, inputs, kept, now, before)
    ends = [now[s][-1] if count else v for s, v in zip(states, inputs.initial, strict=True)]
    saved = [kept[v] for v in (*states[1:], *steps.saved)] if save else []
    return [kept["h"], *(end.clone() for end in ends), *saved]


def _kept_buffers(steps: Steps, inputs: Inputs, save: bool) -> dict[str, Tensor]:
    """Buffers of states and saved values; without `save`, two steps of each are enough."""
    x, hidden = inputs.x, inputs.weights[1].shape[1]
    count, batch, _ = x.shape
    few = count if save else min(count, 2)
    kept = {s: buffer(x, FULL, batch, hidden, few) for s in steps.cell.states}
    kept["h"] = buffer(x, FULL, batch, hidden, count)
    return kept | {v: buffer(x, shape, batch, hidden, few) for v, shape in steps.saved.items()}


def _run(
    steps: Steps,
    inputs: Inputs,
    kept: dict[str, Tensor],
    now: dict[str, list[Tensor]],
    before: dict[str, list[Tensor]],
) -> None:
    """All steps: the stages one after the other, then the mask."""
    products, parts = Products(steps, inputs), []
    for index, stage in enumerate(steps.stages):
        columns = _columns(steps, stage, products, inputs, kept) | now
        columns |= {f"{s}_prev": values for s, values in before.items()}
        sources = before["h"] if stage.source == "h" else _sources_of_q(kept, now)
        arguments = arguments_of(stage.step, columns)
        parts.append((index, stage.step.compile(), arguments, iter(sources), bool(stage.gates)))
    for t in range(inputs.x.shape[0]):
        products.start(t)
        for index, run, arguments, sources, has_gates in parts:
            if has_gates:
                products.fill(index, t, next(sources))
            run(*next(arguments))
        if inputs.mask is not None:
            for s, values in now.items():
                torch.where(inputs.mask[t], values[t], before[s][t], out=values[t])


def _columns(
    steps: Steps, stage: Stage, products: Products, inputs: Inputs, kept: dict[str, Tensor]
) -> Columns:
    """For each parameter of a stage's forward step but the states, its tensor at every step."""
    batch, hidden = kept["h"].shape[1:]
    columns = own_buffers(stage.step, products.x, batch, hidden)
    for v in steps.saved:
        columns[stage.copies.get(v, v)] = itertools.cycle(kept[v].unbind(0))
    a = slices(products.pre, steps.cell.gates, "a_")
    columns |= {v: itertools.cycle(a[v]) for v in (f"a_{k}" for k in stage.gates)}
    if products.rec is not None:
        u = slices(products.rec[None], steps.cell.gates, "u_")
        columns |= {v: itertools.repeat(parts[0]) for v, parts in u.items()}
    vectors = zip(steps.cell.vectors, inputs.vectors, strict=True)
    return columns | {v: itertools.repeat(w) for v, w in vectors}


def _sources_of_q(kept: dict[str, Tensor], now: dict[str, list[Tensor]]) -> Iterable[Tensor]:
    """`q` at every step, which may be a state as well."""
    return now["q"] if "q" in now else itertools.cycle(kept["q"].unbind(0) if "q" in kept else ())
