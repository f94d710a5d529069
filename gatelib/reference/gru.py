"""The GRU and its variants in NumPy: forward over a sequence and a backward written by hand.

Imports NumPy, gatelib.reference.check and gatelib.reference.gate.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

Weights are packed gate by gate in the order of the variant, the candidate last
(`VARIANTS[name].gates`; "rzn" as torch packs them): `W` (G·H, D), `U` (G·H, H), `b` (G·H,).
Where r stands behind a product, U h or W x, `b_u` (G·H,) is the bias beside U h. A leaky unit has
`b_z` (H,) in the place of a gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

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
    """What sets one cell apart: its gates, where r acts, and what z does, if there is one."""

    gates: str = "rzn"
    reset: Literal["before", "after", "input", "never"] = "after"
    update: str = "z"
    writes: bool = False
    rectified: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its weights."""
        second = ("b_u",) if self.reset in ("after", "input") else ()
        return ("W", "U", "b", *second, *(() if self.update in self.gates else ("b_z",)))

    @property
    def resets(self) -> str:
        """The gate that resets: an MGU's forget gate does both."""
        return "r" if "r" in self.gates else self.update


VARIANTS = {
    "gru": Variant(),
    "cho": Variant(reset="before"),
    "chung": Variant(reset="before", writes=True),
    "mgu": Variant("fn", reset="before", update="f", writes=True),
    "no_reset": Variant("zn", reset="never"),
    "light": Variant("zn", reset="never", rectified=True),
    "leaky": Variant("n", reset="never"),
    "reset_only": Variant("rn", update=""),
    "reset_input": Variant(reset="input"),
    "mgu_after": Variant("fn", update="f", writes=True),
}


@dataclass
class Saved(OverTime):
    """What the backward pass needs from the forward pass; `h` has one step more than `steps`."""

    steps: list[dict[str, Array]]


def initialize(
    rng: np.random.Generator, input_size: int, hidden_size: int, variant: str = "gru"
) -> Weights:
    """Uniform weights in ±1/√H as torch draws them; a leaky unit's b_z is 0."""
    kind, bound = _variant(variant), 1 / np.sqrt(hidden_size)
    shapes = _shapes(kind, input_size, hidden_size)
    drawn = {name: rng.uniform(-bound, bound, shape) for name, shape in shapes.items()}
    return drawn | {name: np.zeros(hidden_size) for name in kind.names if name == "b_z"}


def forward(
    x: Array,
    weights: Weights,
    h0: Array | None = None,
    lengths: Array | None = None,
    variant: str = "gru",
) -> tuple[Array, Array, Saved]:
    """Run a cell over a batch of sequences.

    x (B, T, D); h0 (B, H), zeros if absent; lengths (B,) whole numbers in 0…T. Returns the
    outputs (B, T, H), the final state (B, H), and what `backward` needs. Past its length a row
    keeps its state and its output is 0. Raises ValueError for a shape, TypeError for a dtype that
    does not fit. Source: Cho et al. 2014, arXiv:1406.1078; Chung et al. 2014, arXiv:1412.3555;
    Zhou et al. 2016, arXiv:1603.09420.
    """
    kind = _variant(variant)
    check_input(x)
    hidden = weights["U"].shape[-1] if "U" in weights else 0
    check_weights(weights, _shapes(kind, x.shape[2], hidden), x)
    state = initial_state(h0, "h0", x, hidden)
    saved = Saved(kind, weights, x, live_steps(lengths, x), [state], [])
    from_input = x @ weights["W"].T + weights["b"]
    for t in range(x.shape[1]):
        step = _cell(kind, weights, from_input[:, t], saved.h[-1])
        saved.h.append(np.where(saved.live[:, t, None], step["h"], saved.h[-1]))
        saved.steps.append(step)
    empty = np.zeros((x.shape[0], 0, hidden), x.dtype)
    y = np.stack(saved.h[1:], axis=1) * saved.live[:, :, None] if saved.steps else empty
    return y, saved.h[-1], saved


def _cell(kind: Variant, w: Weights, from_input: Array, h_prev: Array) -> dict[str, Array]:
    """One step; the rows of all gates come first, those of the candidate n last."""
    rows = h_prev.shape[1] * (len(kind.gates) - 1)
    second = w.get("b_u", np.zeros_like(w["b"]))
    gates = sigmoid(from_input[:, :rows] + h_prev @ w["U"][:rows].T + second[:rows])
    names = [k for k in kind.gates if k != "n"]
    step = dict(zip(names, np.split(gates, max(len(names), 1), axis=1), strict=False))
    r, step["from_x"] = step.get(kind.resets, 1.0), from_input[:, rows:]
    step["source"] = r * h_prev if kind.reset == "before" else h_prev
    step["product"] = step["source"] @ w["U"][rows:].T + second[rows:]
    own = r * step["from_x"] if kind.reset == "input" else step["from_x"]
    a_n = own + (r * step["product"] if kind.reset == "after" else step["product"])
    step["n"] = np.maximum(a_n, 0.0) if kind.rectified else np.tanh(a_n)
    step["keep"] = _keep(kind, w, step)
    step["h"] = step["keep"] * h_prev + (1 - step["keep"]) * step["n"]
    return step


def _keep(kind: Variant, w: Weights, step: Weights) -> Array:
    """What multiplies the old state; a cell without z keeps nothing of it."""
    if not kind.update:
        return np.zeros_like(step["n"])
    known = kind.update in kind.gates
    z = step[kind.update] if known else sigmoid(w["b_z"]) + np.zeros_like(step["n"])
    return 1 - z if kind.writes else z


def backward(dy: Array, dh: Array | None, saved: Saved) -> dict[str, Array]:
    """Gradients of a loss, given its gradients by the outputs and by the final state.

    dy (B, T, H); dh (B, H), zeros if absent. Returns `x` (B, T, D), `h0` (B, H) and one gradient
    for each weight. Weight gradients are one product over all steps, after the loop.
    """
    dh = np.zeros_like(saved.h[0]) if dh is None else dh
    rows = (*saved.x.shape[:2], saved.weights["b"].size)
    by_x, by_h = np.zeros(rows, saved.x.dtype), np.zeros(rows, saved.x.dtype)
    d_bias = np.zeros_like(saved.h[0][0])
    for t in reversed(range(len(saved.steps))):
        live = saved.live[:, t, None]
        step, into = saved.steps[t], live * (dh + dy[:, t])
        by_x[:, t], by_h[:, t], d_keep, back = _cell_backward(
            saved.variant, saved.weights, step, saved.h[t], into
        )
        dh = np.where(live, back, dh)
        d_bias += (d_keep * step["keep"] * (1 - step["keep"])).sum(axis=0)
    found = {"h0": dh, **_weight_gradients(by_x, by_h, saved)}
    return found | ({"b_z": d_bias} if "b_z" in saved.weights else {})


def _cell_backward(
    kind: Variant, w: Weights, s: Weights, h_prev: Array, dh: Array
) -> tuple[Array, Array, Array, Array]:
    """Adjoints of W x + b and of U h + b', packed, of `keep`, and of h_prev, for one step."""
    rows = h_prev.shape[1] * (len(kind.gates) - 1)
    d_keep, back = dh * (h_prev - s["n"]), dh * s["keep"]
    d_n = dh * (1 - s["keep"])
    d_n = d_n * (s["n"] > 0) if kind.rectified else d_n * (1 - s["n"] ** 2)
    d_product = d_n * s[kind.resets] if kind.reset == "after" else d_n
    d_own = d_n * s[kind.resets] if kind.reset == "input" else d_n
    d_source = d_product @ w["U"][rows:]
    d_gate = {k: np.zeros_like(dh) for k in kind.gates if k != "n"}
    if kind.reset == "before":
        d_gate[kind.resets] = d_source * h_prev
        d_source = d_source * s[kind.resets]
    elif kind.reset != "never":
        d_gate[kind.resets] = d_n * s["product" if kind.reset == "after" else "from_x"]
    if kind.update in d_gate:
        d_gate[kind.update] = d_gate[kind.update] + (-d_keep if kind.writes else d_keep)
    gates = [d * s[k] * (1 - s[k]) for k, d in d_gate.items()]
    by_x, by_h = (np.concatenate([*gates, last], axis=1) for last in (d_own, d_product))
    return by_x, by_h, d_keep, back + d_source + by_h[:, :rows] @ w["U"][:rows]


def _weight_gradients(by_x: Array, by_h: Array, saved: Saved) -> Weights:
    """One product over all steps and rows for each matrix."""
    hidden = saved.h[0].shape[1]
    rows = by_x.shape[2] - hidden
    before = _flat(saved.h[:-1], by_x, hidden)
    source = _flat([step["source"] for step in saved.steps], by_x, hidden)
    flat, other = by_x.reshape(-1, rows + hidden), by_h.reshape(-1, rows + hidden)
    d_u = [other[:, :rows].T @ before, other[:, rows:].T @ source]
    found = {"W": flat.T @ saved.x.reshape(-1, saved.x.shape[2]), "U": np.concatenate(d_u)}
    found |= {"b": flat.sum(axis=0), "x": by_x @ saved.weights["W"]}
    return found | ({"b_u": other.sum(axis=0)} if "b_u" in saved.weights else {})


def _flat(values: list[Array], like: Array, hidden: int) -> Array:
    """A list over time of (B, H) as (B·T, H); no step gives no row."""
    stacked = np.stack(values, axis=1) if values else np.zeros((0, hidden), like.dtype)
    return stacked.reshape(-1, hidden)


def _shapes(kind: Variant, input_size: int, hidden: int) -> dict[str, tuple[int, ...]]:
    rows = len(kind.gates) * hidden
    shapes: dict[str, tuple[int, ...]] = {"W": (rows, input_size), "U": (rows, hidden)}
    shapes |= {name: (rows,) for name in kind.names if name in ("b", "b_u")}
    return shapes | {name: (hidden,) for name in kind.names if name == "b_z"}


def _variant(name: str) -> Variant:
    if name not in VARIANTS:
        raise ValueError(f"variant: expected one of {sorted(VARIANTS)}, got {name!r}")
    return VARIANTS[name]
