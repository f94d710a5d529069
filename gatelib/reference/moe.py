"""A layer of experts in NumPy: capacity, dispatch, combination, shared experts, backward by hand.

Imports NumPy, and of gatelib.reference check, gate and glu.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

N tokens of D features; E experts, each a gated MLP of `glu` with H hidden units: `W_in` (E, G·H, D)
and `W_out` (E, D, H). Weights and mask (N, E) say which expert sees which token; experts after
those of W_in give back what they see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.check import check_array, check_input
from gatelib.reference.gate import sigmoid
from gatelib.reference.glu import backward_mlp, forward_mlp, variant_of

Array = NDArray[Any]
Weights = dict[str, Array]
PRIORITIES = ("position", "probability")


def initialize(
    rng: np.random.Generator, experts: int, features: int, hidden: int, variant: str = "swiglu"
) -> Weights:
    """`W_in` (E, G·H, D) and `W_out` (E, D, H), uniform in ±1/√(inputs)."""
    rows = (1 + variant_of(variant).gated) * hidden
    shapes = {"W_in": (experts, rows, features), "W_out": (experts, features, hidden)}
    bounds = {name: 1 / np.sqrt(shape[-1]) for name, shape in shapes.items()}
    return {name: rng.uniform(-bounds[name], bounds[name], shapes[name]) for name in shapes}


# ---- capacity ---------------------------------------------------------------------------------


def capacity_of(tokens: int, k: int, experts: int, factor: float) -> int:
    """How many tokens an expert takes: ⌈factor · N k/E⌉."""
    if not factor > 0:
        raise ValueError(f"factor: expected a number above 0, got {factor}")
    return math.ceil(factor * tokens * k / experts)


def kept(
    indices: Array,
    weights: Array,
    experts: int,
    capacity: int,
    priority: str = "position",
) -> Array:
    """(N, k), true where the expert still has room for the token.

    All first choices come before all second ones. Within a choice the earlier token comes first,
    or, with priority `probability`, the token whose largest weight is larger. Index E is never
    kept. Source: GShard, arXiv:2006.16668, algorithm 1; V-MoE, arXiv:2106.05974, section 4.
    """
    if priority not in PRIORITIES:
        raise ValueError(f"priority: expected one of {PRIORITIES}, got {priority!r}")
    order = np.arange(len(indices))
    if priority == "probability" and indices.size:
        order = np.argsort(-weights.max(axis=1), kind="stable")
    room = np.full(experts + 1, capacity)
    room[experts] = 0
    keep = np.zeros(indices.shape, bool)
    for choice in range(indices.shape[1]):
        for token in order:
            expert = indices[token, choice]
            keep[token, choice] = room[expert] > 0
            room[expert] -= keep[token, choice]
    return keep


def dropped(weights: Array, keep: Array, renormalize: bool = False) -> Array:
    """The weights (N, k) without those of full experts; perhaps divided by what is left."""
    left: Array = weights * keep
    if not renormalize:
        return left
    total = left.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(left, total, out=np.zeros_like(left), where=total > 0))


def mask_of(indices: Array, experts: int, keep: Array | None = None) -> Array:
    """(N, E), true where an expert sees a token."""
    mask = np.zeros((len(indices), experts + 1), bool)
    np.put_along_axis(mask, indices if keep is None else np.where(keep, indices, experts), True, 1)
    return mask[:, :experts]


# ---- the experts ------------------------------------------------------------------------------


@dataclass
class Saved:
    """What the backward pass needs; of the experts only their preactivations, by expert."""

    variant: str
    weights: Weights
    x: Array
    gates: Array
    mask: Array
    scales: str
    parts: list[tuple[Array, ...]]


def forward(
    x: Array,
    gates: Array,
    mask: Array,
    weights: Weights,
    variant: str = "swiglu",
    scales: str = "output",
) -> tuple[Array, Saved]:
    """Σ_e g_e f_e(x) over the experts that see a token; f_e(g_e x) where `scales` is `input`.

    x (N, D), gates and mask (N, E'); E' − E experts behind those of `W_in` are the identity. A
    token that no expert sees gets 0. Source: Shazeer et al. 2017, arXiv:1701.06538, eq. 1.
    """
    check_input(x, "(N, D)")
    _check(x, gates, mask, weights, scales)
    y, parts = np.zeros_like(x), []
    for expert in range(gates.shape[1]):
        rows = np.flatnonzero(mask[:, expert])
        gate, seen = gates[rows, expert, None], x[rows]
        if expert >= len(weights["W_in"]):
            y[rows] += gate * seen
            continue
        seen = gate * seen if scales == "input" else seen
        own = {name: weights[name][expert] for name in ("W_in", "W_out")}
        out, saved = forward_mlp(seen, own, variant)
        parts.append(saved.parts)
        y[rows] += out if scales == "input" else gate * out
    return y, Saved(variant, weights, x, gates, mask, scales, parts)


def backward(dy: Array, saved: Saved) -> Weights:
    """Gradients of x, gates (N, E'), `W_in` and `W_out`.

    ∂L/∂g = ⟨dy, f(x)⟩ = ⟨W_outᵀ dy, h⟩, with h the hidden values: no expert's output is needed.
    """
    found = {name: np.zeros_like(value) for name, value in saved.weights.items()}
    found |= {"x": np.zeros_like(saved.x), "gates": np.zeros_like(saved.gates)}
    for expert in range(saved.gates.shape[1]):
        rows = np.flatnonzero(saved.mask[:, expert])
        gate, seen, d = saved.gates[rows, expert, None], saved.x[rows], dy[rows]
        if expert >= len(saved.parts):
            d_seen, d_gate = gate * d, (d * seen).sum(axis=1)
        else:
            own, d_seen, d_gate = _expert_backward(d, gate, seen, expert, saved)
            for name, value in own.items():
                found[name][expert] = value
        found["x"][rows] += d_seen
        found["gates"][rows, expert] = d_gate
    return found


def _expert_backward(
    d: Array, gate: Array, seen: Array, expert: int, saved: Saved
) -> tuple[Weights, Array, Array]:
    """Gradients of one expert's weights, of what it saw, and of its gates."""
    known, parts = variant_of(saved.variant), saved.parts[expert]
    w_in, w_out = (saved.weights[name][expert] for name in ("W_in", "W_out"))
    hidden, outer = known.value(*parts), saved.scales == "output"
    d_hidden = d @ w_out
    d_out, d_packed = (gate * d, gate * d_hidden) if outer else (d, d_hidden)
    packed = np.concatenate([d_packed * slope for slope in known.slopes(*parts)], axis=-1)
    d_seen = packed @ w_in
    own = {"W_in": packed.T @ (seen if outer else gate * seen), "W_out": d_out.T @ hidden}
    if outer:
        return own, d_seen, (d_hidden * hidden).sum(axis=1)
    return own, gate * d_seen, (d_seen * seen).sum(axis=1)


def _check(x: Array, gates: Array, mask: Array, weights: Weights, scales: str) -> None:
    if scales not in ("output", "input"):
        raise ValueError(f"scales: expected 'output' or 'input', got {scales!r}")
    if set(weights) != {"W_in", "W_out"}:
        raise ValueError(f"weights: expected ['W_in', 'W_out'], got {sorted(weights)}")
    experts, _, features = weights["W_in"].shape
    check_array("x", x, (len(x), features), weights["W_in"], "weights['W_in']")
    width = gates.shape[1] if gates.ndim == 2 else 0
    if gates.shape != (len(x), width) or width < experts:
        raise ValueError(f"gates: expected ({len(x)}, at least {experts}), got {gates.shape}")
    check_array("gates", gates, gates.shape, x)
    check_array("mask", mask, gates.shape, np.zeros(0, bool), "a mask")


# ---- shared experts, and slots ------------------------------------------------------------------


def shared(
    x: Array, weights: Weights, variant: str = "swiglu", gate: Array | None = None
) -> tuple[Array, Any]:
    """What an expert that sees every token gives: f(x), or σ(x·gate) f(x) with gate (D,).

    Weights as `glu.forward_mlp` has them. Source: Dai et al. 2024, arXiv:2401.06066, eq. 9.
    """
    f, saved = forward_mlp(x, weights, variant)
    if gate is None:
        return f, (saved, None, f)
    check_array("gate", gate, (x.shape[1],), x)
    return sigmoid(x @ gate)[:, None] * f, (saved, gate, f)


def shared_backward(dy: Array, kept_values: Any) -> Weights:
    """Gradients of x, of the expert's weights, and of the gate where there is one."""
    saved, gate, f = kept_values
    if gate is None:
        return backward_mlp(dy, saved)
    g = sigmoid(saved.x @ gate)[:, None]
    d_a = (dy * f).sum(axis=1, keepdims=True) * g * (1 - g)
    found = backward_mlp(g * dy, saved)
    found["x"] = found["x"] + d_a * gate
    return found | {"gate": (d_a * saved.x).sum(axis=0)}


def soft(
    x: Array, dispatch: Array, combine: Array, weights: Weights, variant: str = "swiglu"
) -> tuple[Array, Any]:
    """Soft MoE: experts see mixtures of tokens, and tokens get mixtures of what they give.

    x (B, T, D); dispatch and combine (B, T, S) as `routers.soft_slots` makes them; each expert has
    S/E slots that follow each other. Source: Puigcerver et al. 2023, arXiv:2308.00951, eq. 1, 2.
    """
    experts, (batch, _, slots) = len(weights["W_in"]), dispatch.shape
    if slots % experts:
        raise ValueError(f"dispatch: expected equal slots for {experts} experts, got {slots}")
    mixed = np.einsum("bts,btd->sbd", dispatch, x)
    rows = mixed.reshape(slots * batch, -1)
    owner = np.repeat(np.arange(experts), slots // experts * batch)
    mask = owner[:, None] == np.arange(experts)
    out, saved = forward(rows, mask.astype(x.dtype), mask, weights, variant)
    out = out.reshape(slots, batch, -1)
    return np.einsum("bts,sbd->btd", combine, out), (x, dispatch, combine, out, saved)


def soft_backward(dy: Array, kept_values: Any) -> Weights:
    """Gradients of x, dispatch, combine, `W_in` and `W_out`."""
    x, dispatch, combine, out, saved = kept_values
    d_out = np.einsum("bts,btd->sbd", combine, dy)
    found = backward(d_out.reshape(saved.x.shape), saved)
    d_mixed = found["x"].reshape(out.shape)
    return {
        "x": np.einsum("bts,sbd->btd", dispatch, d_mixed),
        "dispatch": np.einsum("btd,sbd->bts", x, d_mixed),
        "combine": np.einsum("btd,sbd->bts", dy, out),
        "W_in": found["W_in"],
        "W_out": found["W_out"],
    }


def fine_grained(weights: Weights, parts: int) -> Weights:
    """Each expert cut into `parts` of H/parts hidden units, which together give what it gave.

    Source: Dai et al. 2024, arXiv:2401.06066, section 3.1.
    """
    experts, features, hidden = weights["W_out"].shape
    if hidden % parts:
        raise ValueError(f"parts: expected a divisor of {hidden}, got {parts}")
    gates = weights["W_in"].shape[1] // hidden
    w_in = weights["W_in"].reshape(experts, gates, parts, hidden // parts, features)
    w_out = weights["W_out"].reshape(experts, features, parts, hidden // parts)
    return {
        "W_in": w_in.transpose(0, 2, 1, 3, 4).reshape(experts * parts, -1, features),
        "W_out": w_out.transpose(0, 2, 1, 3).reshape(experts * parts, features, -1),
    }
