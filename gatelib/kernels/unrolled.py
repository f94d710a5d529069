"""Any recurrent cell as a plain loop over time, differentiated by autograd.

Imports torch and gatelib.kernels.steps.
Must not import gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

This is the path to read, and the one that second derivatives and torch.func's transforms take. All
tensors are time first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gatelib.kernels.steps import Part, Steps

__all__ = ["Inputs", "Weights", "unrolled", "values"]

Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""W, U, b, b'."""


class Inputs(NamedTuple):
    """What a cell runs on.

    x: (T, B, D), time first.
    weights: W (G*H, D) and U (G*H, H), rows in the order of the gates, and two biases, (G*H,) or
        None; b is added to W x and b' to U h.
    vectors: the cell's learned vectors, (H,) each.
    initial: the cell's states, (B, H) each; their dtype is the dtype of the states.
    mask: (T, B, 1), False where a state must stay as it is; None for everywhere True.
    """

    x: Tensor
    weights: Weights
    vectors: Sequence[Tensor]
    initial: Sequence[Tensor]
    mask: Tensor | None = None


def unrolled(steps: Steps, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    """The linear maps and the cell at each step.

    Returns:
        h of every step, (T, B, H), and the final states.
    """
    states = dict(zip(steps.cell.states, inputs.initial, strict=True))
    outputs = []
    for _, states in _loop(steps, inputs):
        outputs.append(states["h"])
    h = states["h"]
    y = torch.stack(outputs) if outputs else h.new_zeros(0, *h.shape)
    return y, [states[name] for name in steps.cell.states]


def values(steps: Steps, inputs: Inputs) -> dict[str, Tensor]:
    """What the cell's outputs are at every step, {name: (T, B, H)}."""
    h = inputs.initial[0]
    seen = [{name: v.expand_as(h) for name, v in made.items()} for made, _ in _loop(steps, inputs)]
    empty = h.new_zeros(0, *h.shape)
    names = steps.cell.outputs
    return {name: torch.stack([step[name] for step in seen]) if seen else empty for name in names}


def _loop(steps: Steps, inputs: Inputs) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """At each step, the cell's outputs and its states."""
    states = dict(zip(steps.cell.states, inputs.initial, strict=True))
    fixed = dict(zip(steps.cell.vectors, inputs.vectors, strict=True))
    for t, x in enumerate(inputs.x):
        made, before = _step(steps, x, inputs.weights, fixed, states), states
        states = {name: made[name].expand_as(old) for name, old in before.items()}
        if inputs.mask is not None:
            here = inputs.mask[t]
            states = {name: torch.where(here, v, before[name]) for name, v in states.items()}
        yield made, states


def _step(
    steps: Steps,
    x: Tensor,
    weights: Weights,
    fixed: Mapping[str, Tensor],
    states: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The outputs of all stages, one after the other."""
    weight_ih, _, bias_ih, _ = weights
    from_x = F.linear(x, weight_ih, bias_ih)
    known = {**fixed, **{f"{name}_prev": states[name] for name in steps.cell.carries}}
    made: dict[str, Tensor] = {}
    for stage, run in zip(steps.parts, steps.in_torch, strict=True):
        if stage.gates:
            source = (made["q"] if stage.source == "q" else states["h"]).expand_as(states["h"])
            known |= _preactivations(stage, from_x, weights, source.to(x.dtype), states["h"].dtype)
        new = run(*(known[str(v)] for v in stage.spec.inputs))
        new = new if isinstance(new, tuple) else (new,)
        like = states["h"]
        named = zip(map(str, stage.spec.outputs), new, strict=True)
        made |= {name: v if isinstance(v, Tensor) else like.new_tensor(v) for name, v in named}
        known |= made
    return made


def _preactivations(
    stage: Part, from_x: Tensor, weights: Weights, source: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """`a_k`, and `u_k` where the stage has one, of a stage at one step."""
    _, weight_hh, _, bias_hh = weights
    size = weight_hh.shape[1]
    first, end = (gate * size for gate in stage.rows)
    if end - first < len(weight_hh):  # the rows of one stage among several
        from_x, weight_hh = from_x[..., first:end], weight_hh[first:end]
        bias_hh = None if bias_hh is None else bias_hh[first:end]
    from_source, count = F.linear(source, weight_hh, bias_hh), len(stage.gates)
    named: dict[str, Tensor] = {}
    pairs = zip(stage.gates, from_x.chunk(count, -1), from_source.chunk(count, -1), strict=True)
    for gate, a, u in pairs:
        a, u = a.to(dtype), u.to(dtype)
        if gate in stage.split:
            named |= {f"a_{gate}": a, f"u_{gate}": u}
        else:
            named[f"a_{gate}"] = a + u
    return named
