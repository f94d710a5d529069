"""LSTM layers that take over the memory of the layer below, in NumPy; backward by hand.

Imports NumPy, gatelib.reference.check and gatelib.reference.gate.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

A layer is a dict of weights, packed in the order i, f, g, o, and d where there is a depth gate
that sees something: `W` (4·H or 5·H, D), `U` (4·H, H), `b` as long as W. `w_d`, `w_l` (H,) are the
gate's weights of both memories, `b_d` (H,) is a gate that sees nothing, `w_i`, `w_f`, `w_o` are
peepholes. The lowest layer has no d. A layer tells its kind by what it has: an upper layer with
neither takes the memory over whole, or not at all where `carried` is false.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.check import check_input, check_weights, initial_state, live_steps
from gatelib.reference.gate import sigmoid

Array = NDArray[Any]
Weights = dict[str, Array]
State = tuple[Array, Array]

KINDS = ("gate", "static", "open", "none")
PEEPHOLES = ("w_i", "w_f", "w_o")


@dataclass
class Saved:
    """What the backward pass of one layer needs: its input, states and steps."""

    x: Array
    weights: Weights
    live: Array
    below: Array | None
    h: list[Array]
    c: list[Array]
    steps: list[Weights]


def initialize(
    rng: np.random.Generator,
    input_size: int,
    hidden_size: int,
    layers: int = 2,
    kind: str = "gate",
    peephole: bool = False,
) -> list[Weights]:
    """Uniform weights in ±1/√H for each layer."""
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
    bound, found = 1 / np.sqrt(hidden_size), []
    for k in range(layers):
        features = input_size if k == 0 else hidden_size
        shapes = _shapes(features, hidden_size, kind if k else "none", peephole)
        found.append({n: rng.uniform(-bound, bound, shape) for n, shape in shapes.items()})
    return found


def forward(
    x: Array,
    layers: Sequence[Weights],
    starts: Sequence[State] | None = None,
    lengths: Array | None = None,
    carried: bool = True,
) -> tuple[Array, list[State], list[Saved]]:
    """Run the layers on top of each other; each but the lowest takes over the memory below it.

    x (B, T, D); starts: (h, c) (B, H) of each layer, zeros if absent; lengths (B,) in 0…T; carried:
    whether memories are taken over at all. Returns the outputs (B, T, H), the final (h, c) of each
    layer, and what `backward` needs. Raises ValueError for a shape, TypeError for a dtype. Source:
    Yao et al. 2015, arXiv:1508.03790; Zhang et al. 2016, arXiv:1510.08983.
    """
    check_input(x)
    saved: list[Saved] = []
    finals: list[State] = []
    below = None
    for k, weights in enumerate(layers):
        start = starts[k] if starts else (None, None)
        kept = _layer(x, weights, start, live_steps(lengths, x), below)
        saved.append(kept)
        finals.append((kept.h[-1], kept.c[-1]))
        x = _over_time(kept.h[1:], kept.h[0]) * kept.live[..., None]
        below = _over_time(kept.c[1:], kept.c[0]) if carried else None
    return x, finals, saved


def _over_time(steps: list[Array], like: Array) -> Array:
    return np.stack(steps, axis=1) if steps else np.zeros((len(like), 0, like.shape[1]), like.dtype)


def _layer(
    x: Array,
    weights: Weights,
    start: Sequence[Array | None],
    live: Array,
    below: Array | None,
) -> Saved:
    hidden = weights["U"].shape[-1] if "U" in weights else 0
    _check(weights, x, hidden, below is not None)
    h, c = (initial_state(s, n, x, hidden) for s, n in zip(start, ("h0", "c0"), strict=True))
    saved = Saved(x, weights, live, below, [h], [c], [])
    from_x = x @ weights["W"].T + weights["b"]
    for t in range(x.shape[1]):
        from_h = saved.h[-1] @ weights["U"].T
        a = dict(zip("ifgo", np.split(from_x[:, t, : 4 * hidden] + from_h, 4, axis=1), strict=True))
        under = None if below is None else below[:, t]
        step = _step(a, from_x[:, t, 4 * hidden :], weights, saved.c[-1], under)
        on = live[:, t, None]
        saved.h.append(np.where(on, step["h"], saved.h[-1]))
        saved.c.append(np.where(on, step["c"], saved.c[-1]))
        saved.steps.append(step)
    return saved


def _step(a: Weights, a_d: Array, w: Weights, c_prev: Array, below: Array | None) -> Weights:
    """One step from the preactivations of its gates."""
    i = sigmoid(a["i"] + w.get("w_i", 0.0) * c_prev)
    f = sigmoid(a["f"] + w.get("w_f", 0.0) * c_prev)
    g = np.tanh(a["g"])
    c = f * c_prev + i * g
    d = np.zeros_like(c)
    if below is not None:
        d = np.ones_like(c)
        if "b_d" in w:
            d = d * sigmoid(w["b_d"])
        elif "w_l" in w:
            d = sigmoid(a_d + w["w_d"] * c_prev + w["w_l"] * below)
        c = c + d * below
    o = sigmoid(a["o"] + w.get("w_o", 0.0) * c)
    m = np.tanh(c)
    return {"i": i, "f": f, "g": g, "d": d, "o": o, "m": m, "c": c, "h": o * m}


def backward(dy: Array, finals: Sequence[State] | None, saved: Sequence[Saved]) -> dict[str, Array]:
    """Gradients of a loss, given those by the output (B, T, H) and by the final states (or None).

    Returns "x" and, for each layer k, "k.NAME" for each of its weights, `h0` and `c0`.
    """
    gradients: dict[str, Array] = {}
    d_above = np.zeros_like(dy)
    for k in reversed(range(len(saved))):
        ends = finals[k] if finals else (np.zeros_like(saved[k].h[0]),) * 2
        found = _layer_backward(dy, d_above, ends, saved[k])
        dy, d_above = found.pop("x"), found.pop("below")
        gradients |= {f"{k}.{name}": value for name, value in found.items()}
    return gradients | {"x": dy}


def _layer_backward(dy: Array, d_memory: Array, ends: State, saved: Saved) -> Weights:
    """One layer from its last step to its first; d_memory (B, T, H) came from the layer above."""
    w, (dh, dc) = saved.weights, ends
    packed = np.zeros((*saved.x.shape[:2], w["b"].size), saved.x.dtype)
    below = np.zeros_like(d_memory)
    sums = {name: np.zeros_like(value) for name, value in w.items() if name not in "WUb"}
    size = 4 * dh.shape[1]
    for t in reversed(range(len(saved.steps))):
        on = saved.live[:, t, None]
        dc = dc + d_memory[:, t]  # the layer above read the memory of every step, padding too
        into = on * (dh + dy[:, t]), on * dc
        under = None if saved.below is None else saved.below[:, t]
        packed[:, t], back, below[:, t] = _step_backward(
            *into, saved.steps[t], saved.c[t], under, w, sums
        )
        dh = np.where(on, packed[:, t, :size] @ w["U"], dh)
        dc = np.where(on, back, dc)
    before = _over_time(saved.h[:-1], saved.h[0])
    found = {"W": np.einsum("btg,btd->gd", packed, saved.x), "b": packed.sum(axis=(0, 1))}
    found |= {"U": np.einsum("btg,bth->gh", packed[..., :size], before)}
    return found | sums | {"x": packed @ w["W"], "below": below, "h0": dh, "c0": dc}


def _step_backward(
    dh: Array, dc: Array, s: Weights, c_prev: Array, below: Array | None, w: Weights, sums: Weights
) -> tuple[Array, Array, Array]:
    """Adjoints of the packed preactivations, of c_prev and of the memory below; adds to `sums`."""
    d_pre = {"o": dh * s["m"] * s["o"] * (1 - s["o"])}
    dc = dc + dh * s["o"] * (1 - s["m"] ** 2) + _peep("w_o", d_pre["o"], s["c"], w, sums)
    d_pre["i"] = dc * s["g"] * s["i"] * (1 - s["i"])
    d_pre["f"] = dc * c_prev * s["f"] * (1 - s["f"])
    d_pre["g"] = dc * s["i"] * (1 - s["g"] ** 2)
    back = dc * s["f"]
    for k in "if":
        back = back + _peep(f"w_{k}", d_pre[k], c_prev, w, sums)
    under, rows = dc * s["d"], "ifgo"
    if below is not None:
        d_d = dc * below * s["d"] * (1 - s["d"])
        if "b_d" in w:
            sums["b_d"] += d_d.sum(axis=0)
        elif "w_l" in w:
            d_pre["d"], rows = d_d, "ifgod"
            back = back + _peep("w_d", d_d, c_prev, w, sums)
            under = under + _peep("w_l", d_d, below, w, sums)
    return np.concatenate([d_pre[k] for k in rows], axis=1), back, under


def _peep(name: str, d_pre: Array, memory: Array, w: Weights, sums: Weights) -> Any:
    """Through a weight of the memory: its own gradient is summed, the memory's is returned."""
    if name not in w:
        return 0.0
    sums[name] += (d_pre * memory).sum(axis=0)
    return d_pre * w[name]


def _shapes(features: int, hidden: int, kind: str, peephole: bool) -> dict[str, tuple[int, ...]]:
    rows = (5 if kind == "gate" else 4) * hidden
    shapes: dict[str, tuple[int, ...]] = {"W": (rows, features), "U": (4 * hidden, hidden)}
    own = {"gate": ("w_d", "w_l"), "static": ("b_d",)}.get(kind, ())
    names = (*own, *(PEEPHOLES if peephole else ()))
    return shapes | {"b": (rows,)} | dict.fromkeys(names, (hidden,))


def _check(weights: Weights, x: Array, hidden: int, upper: bool) -> None:
    """Shapes and dtypes of a layer, whose kind its names tell."""
    kind = "gate" if "w_l" in weights else "static" if "b_d" in weights else "open"
    if kind != "open" and not upper:
        raise ValueError(f"layers: expected no depth gate without a memory below, got a {kind!r}")
    check_weights(weights, _shapes(x.shape[2], hidden, kind, "w_i" in weights), x)
