"""Runs a network over depth from the equations of its layer alone, forward and backward.
Imports NumPy, gatelib.spec and gatelib.equations.depth.
Must not import gatelib.reference or gatelib.nn: it is compared with both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.spec import Spec

__all__ = ["deepened"]

Array = NDArray[Any]
Values = dict[str, Array]


def deepened(
    spec: Spec,
    x: Array,
    layers: Sequence[Values],
    dy: Array,
    given: Sequence[Values] | None = None,
    dense: bool = False,
) -> Values:
    """Output and all gradients of a deep network, from the equations of one layer.

    spec: a layer of gatelib.equations.depth, with any activation. x (B, D); layers[l] has W, b and
    what else the Spec learns; given[l] what it is told (`m`, `keep`); dy the loss's gradient by the
    output. dense: each branch reads every h before it, and the output holds every x.
    Returns `y`, `d_x`, and `d_l.W`, `d_l.b`, ….
    """
    run = _Run(spec, x, layers, given or [{} for _ in layers], dense)
    return {"y": run.y} | run.backward(dy)


class _Run:
    def __init__(
        self,
        spec: Spec,
        x: Array,
        layers: Sequence[Values],
        given: Sequence[Values],
        dense: bool,
    ) -> None:
        self.spec, self.layers, self.given, self.dense = spec, layers, given, dense
        self.first = Spec("first", spec.equations[-1:], spec.outputs[-1:], spec.outputs[:1])
        everything = tuple(v for v, _ in spec.equations)
        values = Spec(f"{spec.name}_values", spec.equations, spec.inputs, everything)
        self.x, self.h = [x], [self.first.evaluate({"x": x})["h"]]
        self.read: list[Array] = []
        self.steps: list[Values] = []
        for weights, told in zip(layers, given, strict=True):
            read = np.concatenate(self.h, axis=1) if dense else self.h[-1]
            a = read @ weights["W"].T + weights["b"]
            step = {**weights, **told, "a": a, "x_prev": self.x[-1]}
            step |= values.evaluate(step)
            self.read.append(read)
            self.steps.append(step)
            self.x.append(step["x"])
            self.h.append(step["h"])
        self.y = np.concatenate(self.x, axis=1) if dense else self.x[-1]

    def backward(self, dy: Array) -> Values:
        """Adjoints of every h and x, from the last layer to the first."""
        vjp, found = self.spec.vjp(), Values()
        ends = np.cumsum([v.shape[1] for v in self.x])[:-1]
        zeros = [np.zeros_like(v) for v in self.x]
        d_x = np.split(dy, ends, axis=1) if self.dense else [*zeros[:-1], dy]
        d_h = [np.zeros_like(v) for v in self.h]
        for l in reversed(range(len(self.layers))):
            seeds = {"g_x": d_x[l + 1], "g_h": d_h[l + 1]}
            adjoint = vjp.evaluate(self.steps[l] | seeds)
            d_a = adjoint["d_a"]
            for name, value in self.layers[l].items():
                if name not in "Wb":
                    pulled = adjoint[f"d_{name}"] + np.zeros_like(d_a)
                    whole = pulled.sum(axis=0)
                    found[f"d_{l}.{name}"] = whole if value.size > 1 else whole.sum(keepdims=True)
            found[f"d_{l}.W"], found[f"d_{l}.b"] = d_a.T @ self.read[l], d_a.sum(axis=0)
            back = d_a @ self.layers[l]["W"]
            pieces = np.split(back, ends[:l], axis=1) if self.dense else [back]
            for k, piece in enumerate(pieces, start=0 if self.dense else l):
                d_h[k] = d_h[k] + piece
            d_x[l] = d_x[l] + adjoint.get("d_x_prev", 0.0)
        last = self.first.vjp().evaluate({"x": self.x[0], "h": self.h[0], "g_h": d_h[0]})
        return {"d_x": d_x[0] + last["d_x"]} | found
