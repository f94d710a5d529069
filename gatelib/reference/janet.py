"""JANET in NumPy: forward over a sequence and a backward written by hand.

Imports NumPy, gatelib.reference.check and gatelib.reference.gate.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

Weights are packed: the forget gate f first, then the candidate n. `W` (2·H, D), `U` (2·H, H),
`b` (2·H,).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.check import check_input, check_weights, initial_state, live_steps
from gatelib.reference.gate import sigmoid

Array = NDArray[Any]
Weights = dict[str, Array]


@dataclass
class Saved:
    """What the backward pass needs: h before each step and after the last; f, i, n of each."""

    x: Array
    weights: Weights
    live: Array
    h: list[Array]
    steps: list[tuple[Array, Array, Array]] = field(default_factory=list)


def initialize(rng: np.random.Generator, input_size: int, hidden_size: int) -> Weights:
    """Uniform weights in ±1/√H, as torch draws them."""
    bound, shapes = 1 / np.sqrt(hidden_size), _shapes(input_size, hidden_size)
    return {name: rng.uniform(-bound, bound, shape) for name, shape in shapes.items()}


def forward(
    x: Array,
    weights: Weights,
    h0: Array | None = None,
    lengths: Array | None = None,
    beta: float = 1.0,
) -> tuple[Array, Array, Saved]:
    """Run the cell over a batch of sequences.

    x (B, T, D); h0 (B, H), zeros if absent; lengths (B,) whole numbers in 0…T. Returns the
    outputs (B, T, H), the final state (B, H), and what `backward` needs. Past its length a row
    keeps its state and its output is 0. Raises ValueError for a shape or a beta that is not
    finite, TypeError for a dtype. Source: van der Westhuizen & Lasenby 2018, arXiv:1804.04849.
    """
    check_input(x)
    if not np.isfinite(beta):
        raise ValueError(f"beta: expected a finite number, got {beta}")
    hidden = weights["b"].size // 2 if "b" in weights else 0
    check_weights(weights, _shapes(x.shape[2], hidden), x)
    saved = Saved(x, weights, live_steps(lengths, x), [initial_state(h0, "h0", x, hidden)])
    y = np.zeros((*x.shape[:2], hidden), x.dtype)
    for t in range(x.shape[1]):
        h, live = saved.h[-1], saved.live[:, t, None]
        a_f, a_n = np.split(x[:, t] @ weights["W"].T + h @ weights["U"].T + weights["b"], 2, axis=1)
        f, i, n = sigmoid(a_f), 1 - sigmoid(a_f - beta), np.tanh(a_n)
        saved.steps.append((f, i, n))
        saved.h.append(np.where(live, f * h + i * n, h))
        y[:, t] = saved.h[-1] * live
    return y, saved.h[-1], saved


def backward(dy: Array, dh: Array | None, saved: Saved) -> dict[str, Array]:
    """Gradients of a loss, given its gradients by the outputs and by the final state.

    dy (B, T, H); dh (B, H), zeros if absent. Returns `x` (B, T, D), `h0` (B, H) and one gradient
    for each weight.
    """
    weights, dh = saved.weights, np.zeros_like(saved.h[0]) if dh is None else dh
    d_a = np.zeros((*saved.x.shape[:2], weights["b"].size), saved.x.dtype)
    d_U = np.zeros_like(weights["U"])
    for t in reversed(range(len(saved.steps))):
        (f, i, n), h, live = saved.steps[t], saved.h[t], saved.live[:, t, None]
        into = live * (dh + dy[:, t])
        d_f = into * (h * f * (1 - f) - n * i * (1 - i))  # the gate f, and i that falls as f rises
        d_a[:, t] = np.concatenate([d_f, into * i * (1 - n**2)], axis=1)
        d_U += d_a[:, t].T @ h
        dh = np.where(live, into * f + d_a[:, t] @ weights["U"], dh)
    d_W = np.einsum("btg,btd->gd", d_a, saved.x)
    return {"x": d_a @ weights["W"], "h0": dh, "W": d_W, "U": d_U, "b": d_a.sum(axis=(0, 1))}


def _shapes(input_size: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {"W": (2 * hidden, input_size), "U": (2 * hidden, hidden), "b": (2 * hidden,)}
