"""GRUs with their reset gate alone, elsewhere, or shared, in NumPy; backward by hand.

Imports NumPy, gatelib.reference.check and gatelib.reference.gate.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

Weights are packed gate by gate in the order of the variant, the candidate n last
(`VARIANTS[name].gates`): `W` (G·H, D), `U` (G·H, H), `b` and `b_u` (G·H,), b_u beside U h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.check import (
    OverTime,
    check_input,
    check_weights,
    initial_state,
    live_steps,
)
from gatelib.reference.gate import sigmoid

Array = NDArray[Any]
Weights = dict[str, Array]


@dataclass(frozen=True)
class Variant:
    """Its gates, which of them resets, what that multiplies, and which keeps or writes."""

    gates: str
    resets: str
    on_input: bool = False
    keeps: str = ""
    writes: str = ""


VARIANTS = {
    "reset_only": Variant("rn", "r"),
    "reset_input": Variant("rzn", "r", on_input=True, keeps="z"),
    "mgu_after": Variant("fn", "f", writes="f"),
}


@dataclass
class Saved(OverTime):
    """What the backward pass needs from the forward pass; `h` has one step more than `steps`."""

    steps: list[Weights]


def initialize(
    rng: np.random.Generator, input_size: int, hidden_size: int, variant: str = "reset_only"
) -> Weights:
    """Uniform weights in ±1/√H as torch draws them."""
    shapes = _shapes(_variant(variant), input_size, hidden_size)
    bound = 1 / np.sqrt(hidden_size)
    return {name: rng.uniform(-bound, bound, shape) for name, shape in shapes.items()}


def forward(
    x: Array,
    weights: Weights,
    h0: Array | None = None,
    lengths: Array | None = None,
    variant: str = "reset_only",
) -> tuple[Array, Array, Saved]:
    """Run a cell over a batch of sequences.

    x (B, T, D); h0 (B, H), zeros if absent; lengths (B,) whole numbers in 0…T. Returns the
    outputs (B, T, H), the final state (B, H), and what `backward` needs. Past its length a row
    keeps its state and its output is 0. Raises ValueError for a shape, TypeError for a dtype that
    does not fit.
    """
    kind = _variant(variant)
    check_input(x)
    hidden = weights["U"].shape[-1] if "U" in weights else 0
    check_weights(weights, _shapes(kind, x.shape[2], hidden), x)
    start = initial_state(h0, "h0", x, hidden)
    saved = Saved(kind, weights, x, live_steps(lengths, x), [start], [])
    y = np.zeros((*x.shape[:2], hidden), x.dtype)
    from_x = x @ weights["W"].T + weights["b"]
    for t in range(x.shape[1]):
        h, live = saved.h[-1], saved.live[:, t, None]
        step = _step(kind, from_x[:, t], h @ weights["U"].T + weights["b_u"], h)
        saved.steps.append(step)
        saved.h.append(np.where(live, step["h"], h))
        y[:, t] = saved.h[-1] * live
    return y, saved.h[-1], saved


def _step(kind: Variant, from_x: Array, from_h: Array, h_prev: Array) -> Weights:
    count = len(kind.gates)
    a, u = (np.split(packed, count, axis=1) for packed in (from_x, from_h))
    step = {k: sigmoid(a[j] + u[j]) for j, k in enumerate(kind.gates[:-1])}
    r, (a_n, u_n) = step[kind.resets], (a[-1], u[-1])
    step |= {"a_n": a_n, "u_n": u_n}
    step["n"] = n = np.tanh(r * a_n + u_n if kind.on_input else a_n + r * u_n)
    keep = step[kind.keeps] if kind.keeps else 1 - step[kind.writes] if kind.writes else 0 * n
    return step | {"keep": keep, "h": keep * h_prev + (1 - keep) * n}


def backward(dy: Array, dh: Array | None, saved: Saved) -> dict[str, Array]:
    """Gradients of a loss, given its gradients by the outputs and by the final state.

    dy (B, T, H); dh (B, H), zeros if absent. Returns `x` (B, T, D), `h0` (B, H) and one gradient
    for each weight.
    """
    w, dh = saved.weights, np.zeros_like(saved.h[0]) if dh is None else dh
    rows = (*saved.x.shape[:2], w["b"].size)
    by_x, by_h = np.zeros(rows, saved.x.dtype), np.zeros(rows, saved.x.dtype)
    d_U = np.zeros_like(w["U"])
    for t in reversed(range(len(saved.steps))):
        live, h = saved.live[:, t, None], saved.h[t]
        into = live * (dh + dy[:, t])
        by_x[:, t], by_h[:, t] = _step_backward(saved.variant, saved.steps[t], h, into)
        d_U += by_h[:, t].T @ h
        dh = np.where(live, into * saved.steps[t]["keep"] + by_h[:, t] @ w["U"], dh)
    return {
        "x": by_x @ w["W"],
        "h0": dh,
        "W": np.einsum("btg,btd->gd", by_x, saved.x),
        "U": d_U,
        "b": by_x.sum(axis=(0, 1)),
        "b_u": by_h.sum(axis=(0, 1)),
    }


def _step_backward(kind: Variant, s: Weights, h_prev: Array, dh: Array) -> tuple[Array, Array]:
    """Adjoints of W x + b and of U h + b', packed, for one step."""
    d_n = dh * (1 - s["keep"]) * (1 - s["n"] ** 2)
    r = s[kind.resets]
    d_gate = {k: np.zeros_like(dh) for k in kind.gates[:-1]}
    d_gate[kind.resets] += d_n * s["a_n" if kind.on_input else "u_n"]
    d_keep = dh * (h_prev - s["n"])
    if kind.keeps:
        d_gate[kind.keeps] += d_keep
    if kind.writes:
        d_gate[kind.writes] -= d_keep
    gates = [d * s[k] * (1 - s[k]) for k, d in d_gate.items()]
    d_a, d_u = (d_n * r, d_n) if kind.on_input else (d_n, d_n * r)
    return np.concatenate([*gates, d_a], axis=1), np.concatenate([*gates, d_u], axis=1)


def _shapes(kind: Variant, input_size: int, hidden: int) -> dict[str, tuple[int, ...]]:
    rows = len(kind.gates) * hidden
    shapes: dict[str, tuple[int, ...]] = {"W": (rows, input_size), "U": (rows, hidden)}
    return shapes | dict.fromkeys(("b", "b_u"), (rows,))


def _variant(name: str) -> Variant:
    if name not in VARIANTS:
        raise ValueError(f"variant: expected one of {sorted(VARIANTS)}, got {name!r}")
    return VARIANTS[name]
