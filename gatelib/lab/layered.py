"""Runs the equations of gates over depth: the witness that knows nothing but the Specs.

Imports NumPy, gatelib.spec and gatelib.lab.loops.
Must not import gatelib.reference or gatelib.nn: it is compared with both.

The forward pass is the Spec's own generated NumPy, the backward pass its `vjp()`. Only the matrix
products around the gate are written here. Blocks of rows are in the order of the Spec's `a_k`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.lab.loops import all_values
from gatelib.spec import Spec

__all__ = ["symbolic_gtrxl", "symbolic_layers", "symbolic_micro_steps"]

Array = NDArray[Any]
Arrays = dict[str, Array]


class _Layer:
    """One Spec whose inputs are preactivations `a_k` and one stream."""

    def __init__(self, spec: Spec) -> None:
        names = [str(v) for v in spec.inputs]
        self.gates = [n for n in names if n.startswith("a_")]
        self.stream = next((n for n in names if n not in self.gates), "x")
        self.values, self.vjp, self.output = all_values(spec), spec.vjp(), str(spec.outputs[0])

    def forward(self, packed: Array, x: Array) -> Arrays:
        parts = np.split(packed, len(self.gates), axis=1)
        given = dict(zip(self.gates, parts, strict=True)) | {self.stream: x}
        return given | self.values.evaluate(given)

    def backward(self, step: Arrays, d: Array) -> tuple[Array, Array]:
        found = self.vjp.evaluate(step | {f"g_{self.output}": d})
        packed = [found[f"d_{n}"] + np.zeros_like(d) for n in self.gates]
        return np.concatenate(packed, axis=1), found.get(f"d_{self.stream}", np.zeros_like(d))


def symbolic_layers(spec: Spec, x: Array, weights: Arrays, dy: Array) -> Arrays:
    """A stack of layers of one Spec, with `W` (L, G·D, D) and `b` (L, G·D).

    x and dy (N, D). Returns `y`, `d_x`, `d_W` and `d_b`.
    """
    layer, steps = _Layer(spec), []
    for W, b in zip(weights["W"], weights["b"], strict=True):
        steps.append((x, layer.forward(x @ W.T + b, x)))
        x = steps[-1][1][layer.output]
    d, d_W, d_b = dy, np.zeros_like(weights["W"]), np.zeros_like(weights["b"])
    for k in reversed(range(len(steps))):
        packed, carried = layer.backward(steps[k][1], d)
        d_W[k], d_b[k] = packed.T @ steps[k][0], packed.sum(axis=0)
        d = carried + packed @ weights["W"][k]
    return {"y": x, "d_x": d, "d_W": d_W, "d_b": d_b}


def symbolic_micro_steps(spec: Spec, x: Array, weights: Arrays, h0: Array, upstream: Arrays) -> Any:
    """L micro-steps of a Spec in each time step, with `W` (G·H, D), `U` (L, G·H, H), `b` (L, G·H).

    x (B, T, D), h0 (B, H); upstream `y` (B, T, H) and `h` (B, H). Returns `y`, `final_h` and
    `d_NAME` of every input.
    """
    layer, steps, ys, s = _Layer(spec), [], [], h0
    depth = len(weights["U"])
    for t in range(x.shape[1]):
        for k in range(depth):
            a = s @ weights["U"][k].T + weights["b"][k] + (k == 0) * (x[:, t] @ weights["W"].T)
            steps.append((t, k, s, layer.forward(a, s)))
            s = steps[-1][3][layer.output]
        ys.append(s)
    grads = {f"d_{n}": np.zeros_like(v) for n, v in (weights | {"x": x}).items()}
    d = upstream["h"]
    for t, k, before, step in reversed(steps):
        packed, carried = layer.backward(step, d + (k == depth - 1) * upstream["y"][:, t])
        grads["d_U"][k] += packed.T @ before
        grads["d_b"][k] += packed.sum(axis=0)
        grads["d_W"] += (k == 0) * (packed.T @ x[:, t])
        grads["d_x"][:, t] += (k == 0) * (packed @ weights["W"])
        d = carried + packed @ weights["U"][k]
    return grads | {"y": np.stack(ys, 1), "final_h": s, "d_h0": d}


def symbolic_gtrxl(
    stages: Sequence[Spec], x: Array, y: Array, weights: Arrays, dg: Array
) -> Arrays:
    """GTrXL's gate from its two stages, with `W_y` and `W_x` (3·D, D) and `b` (D,).

    x, y and dg (N, D). Returns `g` and `d_NAME` of every input.
    """
    reset, write = stages
    from_y, U = np.split(y @ weights["W_y"].T, 3, axis=1), np.split(weights["W_x"], 3)
    first = {"a_r": from_y[0] + x @ U[0].T, "a_z": from_y[1] + x @ U[1].T, "x": x}
    first |= {"b": weights["b"]}
    first |= all_values(reset).evaluate(first)
    second = {"a_h": from_y[2] + first["q"] @ U[2].T, "z": first["z"], "x": x}
    second |= all_values(write).evaluate(second)
    back = write.vjp().evaluate(second | {"g_y": dg})
    early = reset.vjp().evaluate(first | {"g_z": back["d_z"], "g_q": back["d_a_h"] @ U[2]})
    adjoints = (early["d_a_r"], early["d_a_z"], back["d_a_h"])
    packed = np.concatenate(adjoints, axis=1)
    seen = zip(adjoints, (x, x, first["q"]), strict=True)
    through = early["d_a_r"] @ U[0] + early["d_a_z"] @ U[1]
    return {
        "g": second["y"],
        "d_x": back["d_x"] + early["d_x"] + through,
        "d_y": packed @ weights["W_y"],
        "d_W_y": packed.T @ y,
        "d_W_x": np.concatenate([d.T @ v for d, v in seen]),
        "d_b": early["d_b"].sum(axis=0),
    }
