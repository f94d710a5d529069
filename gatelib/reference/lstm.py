"""The LSTM and its variants in NumPy: forward over a sequence and a backward written by hand.

Imports NumPy and gatelib.reference.check.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

Weights are packed gate by gate in the order of the variant (`VARIANTS[name].gates`; "ifgo" for the
LSTM, as torch packs them): `W` (G·H, D), `U` (G·H, H), `b` (G·H,). Peepholes add `w_i`, `w_f`,
`w_o` (H,); layer normalisation adds gains `s_k` and shifts `b_k` (H,) for i, f, g, o and c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.check import OverTime, check_input, check_weights
from gatelib.reference.check import initial_state as _state
from gatelib.reference.check import live_steps as _live

Array = NDArray[Any]
Weights = dict[str, Array]

EPSILON = 1e-5
"""Added to the variance in layer normalisation, as torch.nn.LayerNorm does."""


@dataclass(frozen=True)
class Variant:
    """What sets one cell apart from the LSTM."""

    gates: str = "ifgo"
    peepholes: str = ""
    normalised: str = ""
    coupled: bool = False
    input_activation: bool = True
    output_activation: bool = True
    has_cell: bool = True

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the learned vectors of length H."""
        gains = [f"s_{k}" for k in self.normalised]
        shifts = [f"b_{k}" for k in self.normalised]
        return (*(f"w_{k}" for k in self.peepholes), *gains, *shifts)


VARIANTS = {
    "lstm": Variant(),
    "peephole": Variant(peepholes="ifo"),
    "cifg": Variant(gates="fgo", coupled=True),
    "layernorm": Variant(normalised="ifgoc"),
    "no_input": Variant(gates="fgo"),
    "no_forget": Variant(gates="igo"),
    "no_output": Variant(gates="ifg"),
    "no_input_activation": Variant(input_activation=False),
    "no_output_activation": Variant(output_activation=False),
    "article": Variant(gates="ifo", has_cell=False),
}


@dataclass
class Saved(OverTime):
    """What the backward pass needs from the forward pass; arrays have a leading time axis."""

    c: list[Array]
    steps: list[dict[str, Array]]


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^−x) without overflow: tanh saturates where exp would not fit."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


def initialize(
    rng: np.random.Generator, input_size: int, hidden_size: int, variant: str = "lstm"
) -> Weights:
    """Uniform weights in ±1/√H as torch draws them; peepholes and shifts 0, gains 1."""
    kind, bound = _variant(variant), 1 / np.sqrt(hidden_size)
    rows = len(kind.gates) * hidden_size
    shapes = {"W": (rows, input_size), "U": (rows, hidden_size), "b": (rows,)}
    weights = {name: rng.uniform(-bound, bound, shape) for name, shape in shapes.items()}
    for name in kind.vectors:
        weights[name] = np.full(hidden_size, 1.0 if name.startswith("s_") else 0.0)
    return weights


def forward(
    x: Array,
    weights: Weights,
    h0: Array | None = None,
    c0: Array | None = None,
    lengths: Array | None = None,
    variant: str = "lstm",
) -> tuple[Array, tuple[Array, Array], Saved]:
    """Run a cell over a batch of sequences.

    x (B, T, D); h0 and c0 (B, H), zeros if absent; lengths (B,) whole numbers in 0…T. Returns the
    outputs (B, T, H), the final (h, c), and what `backward` needs. Past its length a row keeps
    its state and its output is 0. Raises ValueError for a shape, TypeError for a dtype that does
    not fit. Source: Gers et al. 2000; Greff et al. 2015, arXiv:1503.04069.
    """
    kind = _variant(variant)
    hidden = _check(x, weights, kind)
    state = [_state(s, name, x, hidden) for s, name in ((h0, "h0"), (c0, "c0"))]
    saved = Saved(kind, weights, x, _live(lengths, x), [state[0]], [state[1]], [])
    from_input = x @ weights["W"].T + weights["b"]
    for t in range(x.shape[1]):
        h, c = saved.h[-1], saved.c[-1]
        packed = from_input[:, t] + h @ weights["U"].T
        pre = dict(zip(kind.gates, np.split(packed, len(kind.gates), axis=1), strict=True))
        step = _cell(kind, pre, c, weights) if kind.has_cell else _article(pre, c)
        live = saved.live[:, t, None]
        saved.h.append(np.where(live, step["h"], h))
        saved.c.append(np.where(live, step["c"], c))
        saved.steps.append(step)
    empty = np.zeros((x.shape[0], 0, hidden), x.dtype)
    y = np.stack(saved.h[1:], axis=1) * saved.live[:, :, None] if saved.steps else empty
    return y, (saved.h[-1], saved.c[-1]), saved


def _cell(kind: Variant, pre: Weights, c_prev: Array, w: Weights) -> dict[str, Array]:
    """One step of an LSTM or of a variant that keeps its cell."""
    raw, scales = dict(pre), {}
    for k in set(kind.normalised) - {"c"}:
        raw[k], scales[k] = _normalize(pre[k])
    act = {k: w[f"s_{k}"] * raw[k] + w[f"b_{k}"] if k in scales else pre[k] for k in pre}
    one = np.ones_like(c_prev)

    def gate(k: str, cell: Array) -> Array:
        peep = w[f"w_{k}"] * cell if k in kind.peepholes else 0.0
        return sigmoid(act[k] + peep) if k in act else one

    f = gate("f", c_prev)
    i = 1 - f if kind.coupled else gate("i", c_prev)
    g = np.tanh(act["g"]) if kind.input_activation else act["g"]
    c = f * c_prev + i * g
    o = gate("o", c)
    inner = c
    if "c" in kind.normalised:
        raw["c"], scales["c"] = _normalize(c)
        inner = w["s_c"] * raw["c"] + w["b_c"]
    m = np.tanh(inner) if kind.output_activation else inner
    values = {"i": i, "f": f, "g": g, "o": o, "m": m, "c": c, "h": o * m}
    normal = {f"raw_{k}": raw[k] for k in scales} | {f"scale_{k}": scales[k] for k in scales}
    return values | normal


def _article(pre: Weights, c_prev: Array) -> dict[str, Array]:
    """One step of article A's network: the output gate times the forget gate's output."""
    i, f, o = (sigmoid(pre[k]) for k in "ifo")
    return {"i": i, "f": f, "o": o, "h": o * f, "c": c_prev}


def _normalize(x: Array) -> tuple[Array, Array]:
    """(x − mean) / √(variance + ε) over the last axis, and 1 / √(variance + ε)."""
    scale = 1 / np.sqrt(x.var(axis=-1, keepdims=True) + EPSILON)
    return (x - x.mean(axis=-1, keepdims=True)) * scale, scale


def backward(dy: Array, dh: Array | None, dc: Array | None, saved: Saved) -> dict[str, Array]:
    """Gradients of a loss, given its gradients by the outputs and by the final states.

    dy (B, T, H); dh and dc (B, H), zeros if absent. Returns `x` (B, T, D), `h0`, `c0` (B, H) and
    one gradient for each weight. Weight gradients are one product over all steps, after the loop.
    """
    zeros = np.zeros_like(saved.h[0])
    dh, dc = (zeros if d is None else d for d in (dh, dc))
    w, kind, steps = saved.weights, saved.variant, len(saved.steps)
    sums = {name: np.zeros_like(w[name]) for name in kind.vectors}
    packed = np.zeros((*saved.x.shape[:2], w["b"].size), saved.x.dtype)
    for t in reversed(range(steps)):
        live = saved.live[:, t, None]
        into_h, into_c = live * (dh + dy[:, t]), live * dc
        step, c_prev = saved.steps[t], saved.c[t]
        if kind.has_cell:
            pre, back_c = _cell_backward(kind, step, c_prev, w, into_h, into_c, sums)
        else:
            pre, back_c = _article_backward(step, into_h), into_c
        packed[:, t] = np.concatenate([pre[k] for k in kind.gates], axis=1)
        dh = np.where(live, packed[:, t] @ w["U"], dh)
        dc = np.where(live, back_c, dc)
    return {"h0": dh, "c0": dc, **_weight_gradients(packed, saved), **sums}


def _cell_backward(
    kind: Variant, s: Weights, c_prev: Array, w: Weights, dh: Array, dc: Array, sums: Weights
) -> tuple[Weights, Array]:
    """Adjoints of the preactivations and of c_prev for one step; adds to `sums`."""
    d_pre: Weights = {"o": dh * s["m"] * s["o"] * (1 - s["o"])}
    d_inner = dh * s["o"] * (1 - s["m"] ** 2 if kind.output_activation else 1.0)
    dc = dc + _through_norm("c", d_inner, s, w, sums, "c" in kind.normalised)
    if "o" in kind.peepholes:
        dc = dc + _peep("o", d_pre["o"], s["c"], w, sums)
    d_g, d_f, d_i = dc * s["i"], dc * c_prev, dc * s["g"]
    if kind.coupled:
        d_f = d_f - d_i
    d_pre["g"] = d_g * (1 - s["g"] ** 2) if kind.input_activation else d_g
    d_pre["f"] = d_f * s["f"] * (1 - s["f"])
    d_pre["i"] = d_i * s["i"] * (1 - s["i"])
    back = dc * s["f"]
    for k in set(kind.peepholes) & {"i", "f"}:
        back = back + _peep(k, d_pre[k], c_prev, w, sums)
    through = {k: _through_norm(k, d_pre[k], s, w, sums, k in kind.normalised) for k in kind.gates}
    return through, back


def _article_backward(s: Weights, dh: Array) -> Weights:
    d_o, d_f = dh * s["f"], dh * s["o"]
    return {
        "i": np.zeros_like(dh),
        "f": d_f * s["f"] * (1 - s["f"]),
        "o": d_o * s["o"] * (1 - s["o"]),
    }


def _peep(k: str, d_pre: Array, cell: Array, w: Weights, sums: Weights) -> Array:
    """A peephole sees the cell through w_k: its own gradient is summed, the cell's returned."""
    sums[f"w_{k}"] += (d_pre * cell).sum(axis=0)
    return np.asarray(d_pre * w[f"w_{k}"])


def _through_norm(
    k: str, d: Array, s: Weights, w: Weights, sums: Weights, normalised: bool
) -> Array:
    """Back through s_k · normalize(x) + b_k, or straight through where there is no norm."""
    if not normalised:
        return d
    raw, scale = s[f"raw_{k}"], s[f"scale_{k}"]
    sums[f"s_{k}"] += (d * raw).sum(axis=0)
    sums[f"b_{k}"] += d.sum(axis=0)
    d = d * w[f"s_{k}"]
    centred = d - d.mean(axis=-1, keepdims=True)
    return np.asarray(scale * (centred - raw * (d * raw).mean(axis=-1, keepdims=True)))


def _weight_gradients(packed: Array, saved: Saved) -> Weights:
    """One product over all steps and rows for each matrix."""
    batch, steps, rows = packed.shape
    hidden = saved.h[0].shape[1]
    before = np.stack(saved.h, axis=1)[:, :steps]
    flat = packed.reshape(batch * steps, rows)
    return {
        "W": flat.T @ saved.x.reshape(batch * steps, saved.x.shape[2]),
        "U": flat.T @ before.reshape(batch * steps, hidden),
        "b": flat.sum(axis=0),
        "x": packed @ saved.weights["W"],
    }


def _variant(name: str) -> Variant:
    if name not in VARIANTS:
        raise ValueError(f"variant: expected one of {sorted(VARIANTS)}, got {name!r}")
    return VARIANTS[name]


def _check(x: Array, weights: Weights, kind: Variant) -> int:
    """Check shapes and dtypes; return the hidden size."""
    check_input(x)
    hidden = weights["U"].shape[-1] if "U" in weights else 0
    rows = len(kind.gates) * hidden
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(kind.vectors, (hidden,))
    shapes |= {"W": (rows, x.shape[2]), "U": (rows, hidden), "b": (rows,)}
    check_weights(weights, shapes, x)
    return int(hidden)
