"""Cells that a search found, in NumPy: mutated units and cells of nodes, backward by hand.

Imports NumPy, gatelib.reference.check and gatelib.reference.gate.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

A mutated unit has gates z, r and a candidate n, with biases `b` (3·H,) in this order. `W` and `U`
hold one block of H rows for each of them that sees a product of the input, or of the state
(`VARIANTS[name]`); for mut1_code `c` (H,) is added to the candidate's W x.

A cell of N nodes has `W` (2·H, D) for its first node, and `U` (N, 2·H, H), gate first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.check import check_input, check_weights, initial_state, live_steps
from gatelib.reference.gate import sigmoid

Array = NDArray[Any]
Weights = dict[str, Array]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Variant:
    """What each of z, r and n sees.

    of_x, of_h: those that see a product of the input, and of the state. r_adds_x: whether r sees
    the input itself. candidate: what n adds to U q + b: the product "W x", or "tanh" of the input
    itself, or of the "product". squashed: whether z sees tanh(h).
    """

    of_x: str = "zrn"
    of_h: str = "zrn"
    r_adds_x: bool = False
    candidate: Literal["W x", "tanh", "product"] = "W x"
    squashed: bool = False

    @property
    def itself(self) -> bool:
        """Whether the input itself is added to something of the state's size."""
        return self.r_adds_x or self.candidate == "tanh"


VARIANTS = {
    "mut1": Variant("zr", "rn", candidate="tanh"),
    "mut1_code": Variant("zrn", "rn", candidate="product"),
    "mut2": Variant("zn", r_adds_x=True),
    "mut2_code": Variant(),
    "mut3": Variant(squashed=True),
}
"""Jozefowicz et al. 2015 as printed, and, as `_code`, with W x + b in the place of x."""


@dataclass
class Saved:
    """What the backward pass needs: h before each step and after the last, what each computed."""

    kind: Any
    weights: Weights
    x: Array
    live: Array
    h: list[Array]
    steps: list[Any] = field(default_factory=list)


def initialize(
    rng: np.random.Generator, input_size: int, hidden_size: int, variant: str = "mut1"
) -> Weights:
    """Uniform weights in ±1/√H, as torch draws them."""
    return _drawn(rng, _shapes(_variant(variant), input_size, hidden_size), hidden_size)


def _drawn(rng: np.random.Generator, shapes: Shapes, hidden: int) -> Weights:
    bound = 1 / np.sqrt(hidden)
    return {name: rng.uniform(-bound, bound, shape) for name, shape in shapes.items()}


def forward(
    x: Array,
    weights: Weights,
    h0: Array | None = None,
    lengths: Array | None = None,
    variant: str = "mut1",
) -> tuple[Array, Array, Saved]:
    """Run a mutated unit over a batch of sequences.

    x (B, T, D), with D = H for "mut1" and "mut2"; h0 (B, H), zeros if absent; lengths (B,) whole
    numbers in 0…T. Returns the outputs (B, T, H), the final state (B, H), and what `backward`
    needs. Past its length a row keeps its state and its output is 0. Raises ValueError for a
    shape, TypeError for a dtype that does not fit. Source: Jozefowicz et al. 2015, section 3.2.
    """
    kind = _variant(variant)
    check_input(x)
    hidden = weights["U"].shape[-1] if "U" in weights else 0
    check_weights(weights, _shapes(kind, x.shape[2], hidden), x)
    if kind.itself and x.shape[2] != hidden:
        raise ValueError(f"x: expected {hidden} features, as many as the state, got {x.shape[2]}")
    saved = Saved(kind, weights, x, live_steps(lengths, x), [initial_state(h0, "h0", x, hidden)])
    for t in range(x.shape[1]):
        saved.steps.append(_step(kind, weights, x[:, t], saved.h[-1]))
        live = saved.live[:, t, None]
        saved.h.append(np.where(live, saved.steps[-1]["h"], saved.h[-1]))
    return _outputs(saved), saved.h[-1], saved


def _outputs(saved: Saved) -> Array:
    """(B, T, H), 0 where there is padding."""
    empty = np.zeros((*saved.x.shape[:2], saved.h[0].shape[1]), saved.x.dtype)
    return np.stack(saved.h[1:], axis=1) * saved.live[:, :, None] if saved.steps else empty


def _step(kind: Variant, w: Weights, x: Array, h: Array) -> Weights:
    """One step: every value by name."""
    W, U = _blocks(w["W"], kind.of_x), _blocks(w["U"], kind.of_h)
    b = dict(zip("zrn", np.split(w["b"], 3), strict=True))
    seen = np.tanh(h) if kind.squashed else h
    of_x = {k: x @ block.T for k, block in W.items()}
    a_z = of_x["z"] + b["z"] + (seen @ U["z"].T if "z" in U else 0)
    z = sigmoid(a_z)
    r = sigmoid((x if kind.r_adds_x else of_x["r"]) + h @ U["r"].T + b["r"])
    q = r * h
    added = np.tanh(of_x["n"] + w["c"] if kind.candidate == "product" else x)
    added = of_x["n"] if kind.candidate == "W x" else added
    n = np.tanh(q @ U["n"].T + added + b["n"])
    new = (1 - z) * h + z * n
    return {"seen": seen, "z": z, "r": r, "q": q, "added": added, "n": n, "h": new}


def backward(dy: Array, dh: Array | None, saved: Saved) -> Weights:
    """Gradients of a loss, given its gradients by the outputs and by the final state.

    dy (B, T, H); dh (B, H), zeros if absent. Returns `x` (B, T, D), `h0` (B, H) and one gradient
    for each weight.
    """
    return _through_time(_step_back, dy, dh, saved)


StepBack = Callable[[Saved, int, Array, Weights], tuple[Array, Array]]


def _through_time(step_back: StepBack, dy: Array, dh: Array | None, saved: Saved) -> Weights:
    """All gradients, from those of one step: a row's state is kept past its length."""
    found = {name: np.zeros_like(value) for name, value in saved.weights.items()}
    found["x"], dh = np.zeros_like(saved.x), np.zeros_like(saved.h[0]) if dh is None else dh
    for t in reversed(range(len(saved.steps))):
        live = saved.live[:, t, None]
        back, found["x"][:, t] = step_back(saved, t, live * (dh + dy[:, t]), found)
        dh = np.where(live, back, dh)
    return found | {"h0": dh}


def _step_back(saved: Saved, t: int, dh: Array, found: Weights) -> tuple[Array, Array]:
    """The gradients by h and x of one step; those by the weights are added to `found`."""
    kind, w, s, x, h = saved.kind, saved.weights, saved.steps[t], saved.x[:, t], saved.h[t]
    U = _blocks(w["U"], kind.of_h)
    d_n = dh * s["z"] * (1 - s["n"] ** 2)
    d_q = d_n @ U["n"]
    d_r = d_q * h * s["r"] * (1 - s["r"])
    d_z = dh * (s["n"] - h) * s["z"] * (1 - s["z"])
    d_a = {"z": d_z, "r": d_r, "n": d_n}
    d_of_x = d_n if kind.candidate == "W x" else d_n * (1 - s["added"] ** 2)
    d_x = d_of_x if kind.candidate == "tanh" else np.zeros_like(x)
    d_x = d_x + (d_r if kind.r_adds_x else 0)
    by_x = d_a | {"n": d_of_x}
    for k, block in _blocks(found["W"], kind.of_x).items():
        block += by_x[k].T @ x
        d_x = d_x + by_x[k] @ _blocks(w["W"], kind.of_x)[k]
    sources = {"z": s["seen"], "r": h, "n": s["q"]}
    for k, block in _blocks(found["U"], kind.of_h).items():
        block += d_a[k].T @ sources[k]
    found["b"] += np.concatenate([d.sum(0) for d in d_a.values()])
    if "c" in found:
        found["c"] += d_of_x.sum(0)
    d_seen = d_z @ U["z"] if "z" in U else 0
    d_seen = d_seen * (1 - s["seen"] ** 2) if kind.squashed else d_seen
    return dh * (1 - s["z"]) + d_q * s["r"] + d_r @ U["r"] + d_seen, d_x


def _blocks(packed: Array, of: str) -> Weights:
    """Views of the blocks of rows by name."""
    size = len(packed) // len(of)
    return {k: packed[i * size : (i + 1) * size] for i, k in enumerate(of)}


def _shapes(kind: Variant, features: int, hidden: int) -> Shapes:
    found: Shapes = {"W": (len(kind.of_x) * hidden, features)}
    found |= {"U": (len(kind.of_h) * hidden, hidden), "b": (3 * hidden,)}
    return found | ({"c": (hidden,)} if kind.candidate == "product" else {})


def _variant(name: str) -> Variant:
    if name not in VARIANTS:
        raise ValueError(f"variant: expected one of {sorted(VARIANTS)}, got {name!r}")
    return VARIANTS[name]


# --- cells of nodes ---------------------------------------------------------------------------

Steps = Sequence[tuple[str, int]]
ACTIVATIONS = ("tanh", "relu", "sigmoid", "identity")


def initialize_nodes(
    rng: np.random.Generator, input_size: int, hidden_size: int, count: int
) -> Weights:
    """Weights of `count` nodes, uniform in ±1/√H."""
    return _drawn(rng, _node_shapes(count, input_size, hidden_size), hidden_size)


def _node_shapes(count: int, features: int, hidden: int) -> Shapes:
    return {"W": (2 * hidden, features), "U": (count, 2 * hidden, hidden)}


def forward_nodes(
    x: Array,
    weights: Weights,
    steps: Steps,
    read: Sequence[int],
    h0: Array | None = None,
    lengths: Array | None = None,
) -> tuple[Array, Array, Saved]:
    """Run a cell of highway nodes over a batch of sequences.

    Node 0 steps from h towards tanh(W x + U h). Node i + 1 steps from node p towards act(U s_p),
    where (act, p) = steps[i]; the mean of the nodes in `read` is the new h. x, h0, lengths and
    what is returned are as for `forward`. Raises ValueError for a shape, an activation, or a node
    that is not made yet; TypeError for a dtype. Source: Pham et al. 2018, arXiv:1802.03268; Liu et
    al. 2019, arXiv:1806.09055.
    """
    check_input(x)
    hidden = weights["U"].shape[-1] if "U" in weights else 0
    check_weights(weights, _node_shapes(len(steps) + 1, x.shape[2], hidden), x)
    _check_nodes(steps, read)
    kind = ([("tanh", -1), *steps], tuple(read))
    saved = Saved(kind, weights, x, live_steps(lengths, x), [initial_state(h0, "h0", x, hidden)])
    for t in range(x.shape[1]):
        saved.steps.append(_nodes(kind[0], weights, x[:, t], saved.h[-1]))
        new = np.mean([saved.steps[-1][i][2] for i in read], axis=0)
        saved.h.append(np.where(saved.live[:, t, None], new, saved.h[-1]))
    return _outputs(saved), saved.h[-1], saved


def _nodes(steps: Steps, w: Weights, x: Array, h: Array) -> list[tuple[Array, Array, Array]]:
    """(c, n, s) of each node."""
    made: list[tuple[Array, Array, Array]] = []
    for i, (name, place) in enumerate(steps):
        s = h if place < 0 else made[place][2]
        a_c, a_n = np.split(s @ w["U"][i].T + (x @ w["W"].T if i == 0 else 0), 2, axis=1)
        c, n = sigmoid(a_c), _activated(name, a_n)
        made.append((c, n, c * n + (1 - c) * s))
    return made


def backward_nodes(dy: Array, dh: Array | None, saved: Saved) -> Weights:
    """Gradients by `x`, `h0` and each weight, from those by the outputs and by the final state."""
    return _through_time(_nodes_back, dy, dh, saved)


def _nodes_back(saved: Saved, t: int, dh: Array, found: Weights) -> tuple[Array, Array]:
    """The gradients by h and x of one step; those by the weights are added to `found`."""
    (steps, read), w, made = saved.kind, saved.weights, saved.steps[t]
    d_s = [dh * list(read).count(i) / len(read) for i in range(len(steps))]
    d_h, d_x = np.zeros_like(dh), np.zeros_like(saved.x[:, t])
    for i, (name, place) in reversed(list(enumerate(steps))):
        (c, n, _), s = made[i], saved.h[t] if place < 0 else made[place][2]
        d_a = [d_s[i] * (n - s) * c * (1 - c), d_s[i] * c * _slope(name, n)]
        packed = np.concatenate(d_a, axis=1)
        found["U"][i] += packed.T @ s
        back = d_s[i] * (1 - c) + packed @ w["U"][i]
        if place < 0:
            d_h = d_h + back
            found["W"] += packed.T @ saved.x[:, t]
            d_x = packed @ w["W"]
        else:
            d_s[place] = d_s[place] + back
    return d_h, d_x


def _activated(name: str, a: Array) -> Array:
    if name == "tanh":
        return np.asarray(np.tanh(a))
    if name == "sigmoid":
        return sigmoid(a)
    return a if name == "identity" else np.maximum(a, 0.0)


def _slope(name: str, value: Array) -> Array:
    """The activation's derivative, written with its own value."""
    if name == "tanh":
        return np.asarray(1 - value**2)
    if name == "sigmoid":
        return np.asarray(value * (1 - value))
    return np.ones_like(value) if name == "identity" else (value > 0).astype(value.dtype)


def _check_nodes(steps: Steps, read: Sequence[int]) -> None:
    for i, (name, place) in enumerate(steps):
        if name not in ACTIVATIONS:
            raise ValueError(f"steps: expected activations {ACTIVATIONS}, got {name!r}")
        if not 0 <= place <= i:
            raise ValueError(f"steps: expected node {i + 1} to read one of 0 … {i}, got {place}")
    if not read or not all(0 <= place <= len(steps) for place in read):
        raise ValueError(f"read: expected some of 0 … {len(steps)}, got {tuple(read)}")
