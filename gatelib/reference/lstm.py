"""The LSTM and its variants in NumPy: forward over a sequence and a backward written by hand.

Imports NumPy and gatelib.reference.check.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

Weights are packed gate by gate in the order of the variant (`VARIANTS[name].gates`; "ifgo" for the
LSTM, as torch packs them): `W` (G·H, D), `U` (G·H, H), `b` (G·H,). Peepholes add `w_i`, `w_f`,
`w_o` (H,); layer normalisation adds gains `s_k` and shifts `b_k` (H,) for i, f, g, o and c. Where
W x and U h are normalised apart, their gains are `s_ak` and `s_uk`, and `b_u` is the bias of U h.

`lstm` is the plain cell alone, in the fewest lines; `forward` serves all variants.
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
    apart: bool = False
    coupled: bool = False
    input_activation: bool = True
    output_activation: bool = True
    has_cell: bool = True

    @property
    def terms(self) -> tuple[str, ...]:
        """What each gate's preactivation is the sum of: itself, or W x (a) and U h (u) apart."""
        return ("a", "u") if self.apart else ("",)

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the learned vectors of length H."""
        gates = [k for k in self.normalised if k != "c"]
        gains = [f"s_{term}{k}" for k in gates for term in self.terms]
        gains += ["s_c"] * ("c" in self.normalised)
        shifts = [f"b_{k}" for k in self.normalised]
        return (*(f"w_{k}" for k in self.peepholes), *gains, *shifts)


VARIANTS = {
    "lstm": Variant(),
    "peephole": Variant(peepholes="ifo"),
    "cifg": Variant(gates="fgo", coupled=True),
    "layernorm": Variant(normalised="ifgoc"),
    "layernorm_apart": Variant(normalised="ifgoc", apart=True),
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
    shapes = _shapes(kind, input_size, hidden_size)
    weights = {name: rng.uniform(-bound, bound, shape) for name, shape in shapes.items()}
    for name in kind.vectors:
        weights[name] = np.full(hidden_size, 1.0 if name.startswith("s_") else 0.0)
    return weights


def gates(x: Array, h: Array, W: Array, U: Array, b: Array) -> tuple[Array, ...]:
    """The plain LSTM's input gate, forget gate, candidate and output gate, (..., H) each.

    x (..., D) is the input and h (..., H) the output of the step before.
    """
    i, f, g, o = np.split(x @ W.T + h @ U.T + b, 4, axis=-1)
    return sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)


def lstm(x: Array, W: Array, U: Array, b: Array) -> tuple[Array, Array]:
    """The plain LSTM over x (B, T, D): its outputs and its cell states, (B, T, H) both.

    It starts from zeros. Weights, errors and source are those of `forward`.
    """
    hidden = _check(x, {"W": W, "U": U, "b": b}, VARIANTS["lstm"])
    outputs, cells = np.zeros((2, *x.shape[:2], hidden), x.dtype)
    h = c = np.zeros((len(x), hidden), x.dtype)
    for t in range(x.shape[1]):
        input_gate, forget_gate, candidate, output_gate = gates(x[:, t], h, W, U, b)
        cells[:, t] = c = forget_gate * c + input_gate * candidate
        outputs[:, t] = h = output_gate * np.tanh(c)
    return outputs, cells


def lstm_backward(
    d_outputs: Array, x: Array, W: Array, U: Array, b: Array, outputs: Array, cells: Array
) -> Weights:
    """Gradients of a loss with respect to `x`, `W`, `U` and `b` of `lstm`.

    d_outputs (B, T, H) is its gradient with respect to the outputs. The gates of each step are
    computed again from what came before it.
    """
    h_before, c_before = (np.roll(states, 1, axis=1) for states in (outputs, cells))
    h_before[:, :1] = c_before[:, :1] = 0
    d_a = np.zeros((*x.shape[:2], len(b)), x.dtype)
    d_h = d_c = np.zeros((len(x), U.shape[1]), x.dtype)
    for t in reversed(range(x.shape[1])):
        i, f, g, o = gates(x[:, t], h_before[:, t], W, U, b)
        m = np.tanh(cells[:, t])
        d_h = d_h + d_outputs[:, t]
        d_c = d_c + d_h * o * (1 - m**2)
        d_i, d_f, d_g, d_o = d_c * g, d_c * c_before[:, t], d_c * i, d_h * m
        d_a[:, t] = np.concatenate(
            [d_i * i * (1 - i), d_f * f * (1 - f), d_g * (1 - g**2), d_o * o * (1 - o)], axis=1
        )
        d_h, d_c = d_a[:, t] @ U, d_c * f
    d_W, d_U = (np.einsum("btg,bti->gi", d_a, seen) for seen in (x, h_before))
    return {"x": d_a @ W, "W": d_W, "U": d_U, "b": d_a.sum(axis=(0, 1))}


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
        from_state = h @ weights["U"].T + weights.get("b_u", 0.0)
        pre, step = _preactivations(kind, from_input[:, t], from_state, weights)
        step |= _cell(kind, pre, c, weights) if kind.has_cell else _article(pre, c)
        live = saved.live[:, t, None]
        saved.h.append(np.where(live, step["h"], h))
        saved.c.append(np.where(live, step["c"], c))
        saved.steps.append(step)
    empty = np.zeros((x.shape[0], 0, hidden), x.dtype)
    y = np.stack(saved.h[1:], axis=1) * saved.live[:, :, None] if saved.steps else empty
    return y, (saved.h[-1], saved.c[-1]), saved


def _preactivations(
    kind: Variant, from_input: Array, from_state: Array, w: Weights
) -> tuple[Weights, Weights]:
    """What each gate sees, after the norms where there are any, and what they normalised."""
    packed = (from_input, from_state) if kind.apart else (from_input + from_state,)
    pre: Weights = {}
    normal: Weights = {}
    for term, values in zip(kind.terms, packed, strict=True):
        for k, block in zip(kind.gates, np.split(values, len(kind.gates), axis=1), strict=True):
            if k in kind.normalised:
                block, kept = _norm(f"{term}{k}", block, w)
                normal |= kept
            pre[k] = pre.get(k, w.get(f"b_{k}", 0.0)) + block
    return pre, normal


def _cell(kind: Variant, pre: Weights, c_prev: Array, w: Weights) -> Weights:
    """One step of an LSTM or of a variant that keeps its cell."""
    one = np.ones_like(c_prev)

    def gate(k: str, cell: Array) -> Array:
        peep = w[f"w_{k}"] * cell if k in kind.peepholes else 0.0
        return sigmoid(pre[k] + peep) if k in pre else one

    f = gate("f", c_prev)
    i = 1 - f if kind.coupled else gate("i", c_prev)
    g = np.tanh(pre["g"]) if kind.input_activation else pre["g"]
    c = f * c_prev + i * g
    o = gate("o", c)
    inner: Array = c
    normal: Weights = {}
    if "c" in kind.normalised:
        inner, normal = _norm("c", c, w)
        inner = inner + w["b_c"]
    m = np.tanh(inner) if kind.output_activation else inner
    return {"i": i, "f": f, "g": g, "o": o, "m": m, "c": c, "h": o * m} | normal


def _article(pre: Weights, c_prev: Array) -> dict[str, Array]:
    """One step of article A's network: the output gate times the forget gate's output."""
    i, f, o = (sigmoid(pre[k]) for k in "ifo")
    return {"i": i, "f": f, "o": o, "h": o * f, "c": c_prev}


def _norm(name: str, x: Array, w: Weights) -> tuple[Array, Weights]:
    """The gain times (x − mean) / √(variance + ε) over the last axis, and what was computed."""
    scale = 1 / np.sqrt(x.var(axis=-1, keepdims=True) + EPSILON)
    raw = (x - x.mean(axis=-1, keepdims=True)) * scale
    return w[f"s_{name}"] * raw, {f"raw_{name}": raw, f"scale_{name}": scale}


def backward(dy: Array, dh: Array | None, dc: Array | None, saved: Saved) -> dict[str, Array]:
    """Gradients of a loss, given its gradients by the outputs and by the final states.

    dy (B, T, H); dh and dc (B, H), zeros if absent. Returns `x` (B, T, D), `h0`, `c0` (B, H) and
    one gradient for each weight. Weight gradients are one product over all steps, after the loop.
    """
    zeros = np.zeros_like(saved.h[0])
    dh, dc = (zeros if d is None else d for d in (dh, dc))
    w, kind, steps = saved.weights, saved.variant, len(saved.steps)
    sums = {name: np.zeros_like(w[name]) for name in kind.vectors}
    packed = np.zeros((2, *saved.x.shape[:2], w["b"].size), saved.x.dtype)
    for t in reversed(range(steps)):
        live = saved.live[:, t, None]
        into_h, into_c = live * (dh + dy[:, t]), live * dc
        step, c_prev = saved.steps[t], saved.c[t]
        if kind.has_cell:
            pre, back_c = _cell_backward(kind, step, c_prev, w, into_h, into_c, sums)
        else:
            pre, back_c = _article_backward(step, into_h), into_c
        packed[:, :, t] = _before_the_norms(kind, pre, step, w, sums)
        dh = np.where(live, packed[1, :, t] @ w["U"], dh)
        dc = np.where(live, back_c, dc)
    return {"h0": dh, "c0": dc, **_weight_gradients(packed, saved), **sums}


def _cell_backward(
    kind: Variant, s: Weights, c_prev: Array, w: Weights, dh: Array, dc: Array, sums: Weights
) -> tuple[Weights, Array]:
    """Adjoints of what the gates see and of c_prev for one step; adds to `sums`."""
    d_pre: Weights = {"o": dh * s["m"] * s["o"] * (1 - s["o"])}
    d_inner = dh * s["o"] * (1 - s["m"] ** 2 if kind.output_activation else 1.0)
    if "c" in kind.normalised:
        sums["b_c"] += d_inner.sum(axis=0)
        d_inner = _through_norm("c", d_inner, s, w, sums)
    dc = dc + d_inner
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
    return d_pre, back


def _before_the_norms(
    kind: Variant, d_pre: Weights, s: Weights, w: Weights, sums: Weights
) -> Array:
    """Adjoints of W x + b and of U h, packed (2, B, G·H), from those of what the gates see."""
    terms = []
    for term in kind.terms:
        blocks = []
        for k in kind.gates:
            d, normalised = d_pre[k], k in kind.normalised
            blocks.append(_through_norm(f"{term}{k}", d, s, w, sums) if normalised else d)
        terms.append(np.concatenate(blocks, axis=1))
    for k in set(kind.normalised) - {"c"}:
        sums[f"b_{k}"] += d_pre[k].sum(axis=0)
    return np.stack([terms[0], terms[-1]])


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


def _through_norm(name: str, d: Array, s: Weights, w: Weights, sums: Weights) -> Array:
    """Back through the gain and the norm; the gain's own gradient is summed."""
    raw, scale = s[f"raw_{name}"], s[f"scale_{name}"]
    sums[f"s_{name}"] += (d * raw).sum(axis=0)
    d = d * w[f"s_{name}"]
    centred = d - d.mean(axis=-1, keepdims=True)
    return np.asarray(scale * (centred - raw * (d * raw).mean(axis=-1, keepdims=True)))


def _weight_gradients(packed: Array, saved: Saved) -> Weights:
    """One product over all steps and rows for each matrix; packed (2, B, T, G·H)."""
    _, batch, steps, rows = packed.shape
    hidden = saved.h[0].shape[1]
    before = np.stack(saved.h, axis=1)[:, :steps]
    from_input, from_state = packed.reshape(2, batch * steps, rows)
    found = {
        "W": from_input.T @ saved.x.reshape(batch * steps, saved.x.shape[2]),
        "U": from_state.T @ before.reshape(batch * steps, hidden),
        "b": from_input.sum(axis=0),
        "x": packed[0] @ saved.weights["W"],
    }
    return found | ({"b_u": from_state.sum(axis=0)} if saved.variant.apart else {})


def _variant(name: str) -> Variant:
    if name not in VARIANTS:
        raise ValueError(f"variant: expected one of {sorted(VARIANTS)}, got {name!r}")
    return VARIANTS[name]


def _shapes(kind: Variant, input_size: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the packed weights."""
    rows = len(kind.gates) * hidden
    shapes: dict[str, tuple[int, ...]] = {"W": (rows, input_size), "U": (rows, hidden)}
    return shapes | dict.fromkeys(("b", "b_u") if kind.apart else ("b",), (rows,))


def _check(x: Array, weights: Weights, kind: Variant) -> int:
    """Check shapes and dtypes; return the hidden size."""
    check_input(x)
    hidden = weights["U"].shape[-1] if "U" in weights else 0
    vectors: dict[str, tuple[int, ...]] = dict.fromkeys(kind.vectors, (hidden,))
    check_weights(weights, _shapes(kind, x.shape[2], hidden) | vectors, x)
    return int(hidden)
