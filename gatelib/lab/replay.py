"""Runs a `gatelib.nn.Recurrent` again, step by step, keeping every value that its Spec names.

Imports torch, gatelib.spec and gatelib.nn.
Must not import gatelib.reference: an instrument is no witness.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gatelib.spec import Spec

__all__ = ["replay"]

Values = dict[str, Tensor]


def replay(
    layer: Any, x: Tensor, initial_state: Any = None, lengths: Tensor | None = None
) -> dict[str, Values]:
    """Return {suffix of the path: {name: (B, T, H)}} for each layer and direction.

    Names are those of the Spec's equations. Beyond a sequence's length values are nan.

    Raises:
        ValueError: dropout between layers is active, so what the upper layers saw is unknown.
    """
    if layer.training and layer.dropout > 0 and layer.num_layers > 1:
        raise ValueError("model: expected eval mode, since dropout between layers can't be seen")
    x = x if layer.batch_first else x.transpose(0, 1)
    steps = torch.arange(x.shape[1], device=x.device)
    inside = (
        steps < (torch.full_like(steps[:1], x.shape[1]) if lengths is None else lengths)[:, None]
    )
    states = layer._initial_states(initial_state, len(x))
    ways, found = 1 + layer.bidirectional, {}
    for level in range(layer.num_layers):
        outputs = []
        for way in range(ways):
            row, suffix = level * ways + way, f"_l{level}" + "_reverse" * way
            first = {name: value[row] for name, value in states.items()}
            values = _direction(layer, suffix, x, first, inside.expand(len(x), -1))
            outputs.append(values["h"])
            path = f".l{level}" + "_reverse" * way if layer.num_layers * ways > 1 else ""
            found[path] = _padded(values, inside, torch.nan)
        x = _padded({"x": torch.cat(outputs, -1)}, inside, 0.0)["x"]
    return found


def _padded(values: Values, inside: Tensor, fill: float) -> Values:
    return {name: torch.where(inside[..., None], v, fill) for name, v in values.items()}


def _direction(layer: Any, suffix: str, x: Tensor, states: Values, inside: Tensor) -> Values:
    """All values (B, T, H) of one direction; states stay as they are outside the sequence."""
    cell = layer.cell
    everything = tuple(v for v, _ in cell.spec.equations)
    spec = Spec(cell.spec.name, cell.spec.equations, cell.spec.inputs, everything)
    program = spec.compile("torch")
    fixed = {name: getattr(layer, name + suffix).to(states["h"]) for name in cell.vectors}
    seen: list[Values] = []
    order = range(x.shape[1])
    for t in reversed(order) if suffix.endswith("_reverse") else order:
        inputs = fixed | {f"{name}_prev": value for name, value in states.items()}
        inputs |= _preactivations(layer, suffix, x[:, t], states["h"])
        new = program(*(inputs[str(v)] for v in spec.inputs))
        new = new if isinstance(new, tuple) else (new,)
        values = {str(v): n.expand_as(states["h"]) for v, n in zip(everything, new, strict=True)}
        here = inside[:, t, None]
        states = {name: torch.where(here, values[name], old) for name, old in states.items()}
        seen.append(values)
    seen = seen[::-1] if suffix.endswith("_reverse") else seen
    return {name: torch.stack([step[name] for step in seen], 1) for name in seen[0]}


def _preactivations(layer: Any, suffix: str, x: Tensor, h: Tensor) -> Values:
    """a_k, and u_k where the Spec has one, of one step."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    found: list[Any] = [getattr(layer, name + suffix, None) for name in names]
    weights: list[Any] = [None if w is None else w.to(h) for w in found]
    w_x, w_h, b_x, b_h = weights
    gates = layer.cell.gates
    from_x = F.linear(x.to(h), w_x, b_x).chunk(len(gates), -1)
    from_h = F.linear(h, w_h, b_h).chunk(len(gates), -1)
    split = set(layer.cell.split)
    a = {
        f"a_{k}": v if k in split else v + u for k, v, u in zip(gates, from_x, from_h, strict=True)
    }
    return a | {f"u_{k}": u for k, u in zip(gates, from_h, strict=True) if k in split}
