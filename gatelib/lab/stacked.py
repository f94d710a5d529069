"""Runs a stack of layers from the equations of its cell, its masks and its shortcuts alone.

Imports NumPy, gatelib.spec, gatelib.equations and gatelib.lab.unrolled.
Must not import gatelib.reference or gatelib.nn: it is compared with both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.equations.stacks import DROPOUT, RESIDUAL
from gatelib.lab.unrolled import symbolic
from gatelib.spec import Spec

__all__ = ["stacked"]

Array = NDArray[Any]
Values = dict[str, Array]
Layers = Sequence[Sequence[Values]]
"""Layers of one or two directions, each a dict of weights, or of states."""


def stacked(
    spec: Spec,
    x: Array,
    layers: Layers,
    starts: Layers,
    upstream: tuple[Array, Layers],
    masks: Sequence[tuple[Array, float] | None] | None = None,
    residual: bool = False,
) -> Values:
    """Output and all gradients of layers on top of each other, from equations alone.

    x (B, T, D); layers[k][way] the weights W, U and b of one direction; starts[k][way] its initial
    states by name; masks[k] the zeros and ones (B, 1, D_k) on the input of layer k, and `keep`;
    upstream: the loss's gradients by the output (B, T, F) and by the final states. Returns `y`,
    `K.WAY.final_NAME`, `d_x` and `d_K.WAY.NAME`.
    """
    masks = masks or [None] * len(layers)
    results: Values = {}
    inputs: list[tuple[Array, Array]] = []
    for k, layer in enumerate(layers):
        inputs.append((x, _masked(x, masks[k])))
        outputs = []
        for way, weights in enumerate(layer):
            found = _way(spec, inputs[k][1], weights, starts[k][way], None, way)
            outputs.append(found["y"])
            results |= {f"{k}.{way}.{n}": v for n, v in found.items() if n.startswith("final_")}
        y = np.concatenate(outputs, axis=2)
        x = RESIDUAL.evaluate({"x": x, "f": y})["y"] if residual and k > 0 else y
    results["y"], dy = x, upstream[0]
    for k in reversed(range(len(layers))):
        shortcut = residual and k > 0
        parts: dict[str, Any] = {"d_f": dy, "d_x": 0.0}
        if shortcut:
            parts = RESIDUAL.vjp().evaluate({"g_y": dy})
        states = starts[k], upstream[1][k]
        dx, found = _layer_back(spec, inputs[k][1], layers[k], states, parts["d_f"])
        results |= {f"d_{k}.{name}": value for name, value in found.items()}
        dy = _unmasked(dx, inputs[k][0], masks[k]) + parts["d_x"]
    return results | {"d_x": dy}


def _layer_back(
    spec: Spec,
    x: Array,
    layer: Sequence[Values],
    states: tuple[Sequence[Values], Sequence[Values]],
    dy: Array,
) -> tuple[Array, Values]:
    """The adjoint of one layer's input, and the gradients of its directions as WAY.NAME."""
    dx = np.zeros_like(x)
    gradients: Values = {}
    for way, piece in enumerate(np.split(dy, len(layer), axis=2)):
        seeds = {"y": piece, **states[1][way]}
        found = _way(spec, x, layer[way], states[0][way], seeds, way)
        dx = dx + found.pop("d_x")
        names = (n for n in found if n.startswith("d_"))
        gradients |= {f"{way}.{n.removeprefix('d_')}": found[n] for n in names}
    return dx, gradients


def _way(
    spec: Spec, x: Array, weights: Values, start: Values, seeds: Values | None, way: int
) -> Values:
    """One direction: the second reads the steps from the last to the first."""
    order = slice(None, None, -1 if way else 1)
    hidden = weights["U"].shape[1]
    if seeds is None:
        seeds = {name: np.zeros_like(value) for name, value in start.items()}
        seeds["y"] = np.zeros((*x.shape[:2], hidden))
    found = symbolic(spec, x[:, order], weights, start, seeds | {"y": seeds["y"][:, order]})
    return found | {name: found[name][:, order] for name in ("y", "d_x")}


def _masked(x: Array, mask: tuple[Array, float] | None) -> Array:
    if mask is None:
        return x
    return np.asarray(DROPOUT.evaluate({"m": mask[0], "keep": mask[1], "v": x})["y"])


def _unmasked(d: Array, x: Array, mask: tuple[Array, float] | None) -> Array:
    """The adjoint of a mask's input, as the Spec derives it."""
    if mask is None:
        return d
    known = {"m": mask[0], "keep": mask[1], "v": x, "g": mask[0] / mask[1], "g_y": d}
    return np.asarray(DROPOUT.vjp().evaluate(known)["d_v"])
