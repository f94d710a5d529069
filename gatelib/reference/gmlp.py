"""gMLP in NumPy, forward and backward by hand: the spatial gating unit, the gMLP and aMLP blocks.

Imports NumPy and gatelib.reference.check.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

Shapes: B sequences of T positions, T ≤ N. A unit reads z (B, T, E) and gives s (B, T, F), F = E/2
where z is split. Its weights, unless nothing is mixed: `W` (H, N, N), `b` (H, N), `gamma` and
`beta` (F,), for H heads of F/H features each. A block reads x (B, T, D); it has besides `gamma_x`,
`beta_x` (D,), `U` (E, D), `b_U`, `V` (D, F), `b_V`, and in an aMLP `Q` (3·A, D), `O` (F, A), `b_O`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.check import check_array, check_input, check_weights, live_steps

__all__ = ["GATES", "Kind", "backward", "backward_unit", "forward", "forward_unit", "initialize"]

Array = NDArray[Any]
Weights = dict[str, Array]
Saved = dict[str, Any]

GATES = ("multiplicative", "additive", "linear", "none")
UNIT = ("W", "b", "gamma", "beta")
EPS = 1e-5
"""What layer normalisation adds to the variance."""


@dataclass(frozen=True)
class Kind:
    """What a unit does: its gate, whether z is split for it, whether a position reads the future.

    Raises ValueError for an unknown gate, or the split of a gate that reads one input.
    """

    gate: str = "multiplicative"
    split: bool = True
    causal: bool = False

    def __post_init__(self) -> None:
        if self.gate not in GATES:
            raise ValueError(f"gate: expected one of {GATES}, got {self.gate!r}")
        if self.split and self.gate in ("linear", "none"):
            raise ValueError(f"split: expected False for the gate {self.gate!r}, got True")


PLAIN = Kind()


def initialize(
    rng: np.random.Generator,
    features: int,
    hidden: int,
    length: int,
    kind: Kind = PLAIN,
    heads: int = 1,
    attention: int | None = None,
    paper: bool = True,
) -> Weights:
    """Weights of a block: uniform in ±1/√inputs; W within 1e-3/N and b = 1 (0 for a sum) if paper.

    Without `paper` W and b are uniform in ±1/√N.
    """
    shapes = _shapes(features, hidden, length, kind, heads, attention)
    weights = {}
    for name, shape in shapes.items():
        source = shapes.get(name.removeprefix("b_"), shape)
        bound = 1 / np.sqrt(length if name in ("W", "b") else source[-1])
        weights[name] = rng.uniform(-bound, bound, shape)
    for name in weights.keys() & {"gamma", "gamma_x", "beta", "beta_x"}:
        weights[name] = np.full(shapes[name], float(name.startswith("gamma")))
    if paper and "W" in weights:
        weights["W"] = rng.uniform(-1e-3 / length, 1e-3 / length, shapes["W"])
        weights["b"] = np.full(shapes["b"], float(kind.gate == "multiplicative"))
    return weights


def _shapes(
    features: int, hidden: int, length: int, kind: Kind, heads: int, attention: int | None
) -> dict[str, tuple[int, ...]]:
    """The shapes of a block's weights."""
    out = hidden // 2 if kind.split else hidden
    shapes: dict[str, tuple[int, ...]] = {"gamma_x": (features,), "beta_x": (features,)}
    shapes |= {"U": (hidden, features), "b_U": (hidden,)}
    shapes |= _unit_shapes(out, length, kind, heads)
    shapes |= {"V": (features, out), "b_V": (features,)}
    if attention is not None:
        shapes |= {"Q": (3 * attention, features), "O": (out, attention), "b_O": (out,)}
    return shapes


def _unit_shapes(out: int, length: int, kind: Kind, heads: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a unit's weights."""
    if kind.gate == "none":
        return {}
    shapes = {"W": (heads, length, length), "b": (heads, length)}
    return shapes | {"gamma": (out,), "beta": (out,)}


# ---- the unit -------------------------------------------------------------------------------


def forward_unit(
    z: Array,
    weights: Weights,
    kind: Kind = PLAIN,
    lengths: Array | None = None,
    context: Array | None = None,
) -> tuple[Array, Saved]:
    """s (B, T, F) from z (B, T, E), and what `backward_unit` needs.

    Positions past the lengths (B,), whole numbers in 1…T, reach no other and give 0. The context
    (B, T, F) is added to the mixture. Raises ValueError or TypeError for what does not fit.
    Source: Liu et al. 2021, arXiv:2105.08050, section 2.1.
    """
    _check_unit(z, weights, kind, context)
    live = live_steps(lengths, z, least=1)[..., None]
    u, v = np.split(z, 2, axis=-1) if kind.split else (z, z)
    saved: Saved = {"weights": weights, "kind": kind, "live": live, "u": u}
    if kind.gate == "none":
        return np.where(live, u, 0), saved
    n, saved["norm"] = _norm(v, weights["gamma"], weights["beta"])
    n = np.where(live, n, 0)
    W, b = _leading(weights, z.shape[1], kind.causal)
    m = np.einsum("hst,bthf->bshf", W, _by_head(n, len(W)))
    g = (m + b.T[:, :, None]).reshape(n.shape)
    g = g if context is None else g + context
    saved |= {"n": n, "g": g, "context": context is not None}
    s = {"multiplicative": u * g, "additive": u + g, "linear": g}[kind.gate]
    return np.where(live, s, 0), saved


def _leading(weights: Weights, steps: int, causal: bool) -> tuple[Array, Array]:
    """The block of W and b for the first positions; a causal W is lower triangular."""
    W, b = weights["W"][:, :steps, :steps], weights["b"][:, :steps]
    return np.tril(W) if causal else W, b


def _by_head(values: Array, heads: int) -> Array:
    """(B, T, F) as (B, T, H, F/H)."""
    return values.reshape(*values.shape[:2], heads, values.shape[2] // heads)


def backward_unit(ds: Array, saved: Saved) -> Weights:
    """Gradients of z and the weights from ds (B, T, F), and of `context` where one was given."""
    kind, u = saved["kind"], saved["u"]
    ds = np.where(saved["live"], ds, 0)
    if kind.gate == "none":
        return {"z": ds}
    d_u = {"multiplicative": ds * saved["g"], "additive": ds, "linear": 0 * ds}[kind.gate]
    d_g = ds * u if kind.gate == "multiplicative" else ds
    grads, d_n = _mixture_backward(d_g, saved)
    d_v, grads["gamma"], grads["beta"] = _norm_backward(
        np.where(saved["live"], d_n, 0), saved["norm"]
    )
    grads["z"] = np.concatenate([d_u, d_v], axis=-1) if kind.split else d_u + d_v
    return grads | ({"context": d_g} if saved["context"] else {})


def _mixture_backward(d_g: Array, saved: Saved) -> tuple[Weights, Array]:
    """Through g = W n + b: dW_st is the product of d_g at s and n at t, summed over the rest."""
    weights, kind = saved["weights"], saved["kind"]
    steps, heads = d_g.shape[1], len(weights["W"])
    W, _ = _leading(weights, steps, kind.causal)
    by_head, n = _by_head(d_g, heads), _by_head(saved["n"], heads)
    d_W = np.einsum("bshf,bthf->hst", by_head, n)
    grads = {name: np.zeros_like(weights[name]) for name in ("W", "b")}
    grads["W"][:, :steps, :steps] = np.tril(d_W) if kind.causal else d_W
    grads["b"][:, :steps] = by_head.sum(axis=(0, 3)).T
    return grads, np.einsum("hst,bshf->bthf", W, by_head).reshape(d_g.shape)


# ---- the block ------------------------------------------------------------------------------


def forward(
    x: Array, weights: Weights, kind: Kind = PLAIN, lengths: Array | None = None
) -> tuple[Array, Saved]:
    """y (B, T, D) from x (B, T, D), and what `backward` needs; an aMLP block where `Q` is given.

    lengths and errors as in `forward_unit`. Source: Liu et al. 2021, arXiv:2105.08050, figure 1
    and section 4.3.
    """
    _check_block(x, weights, kind)
    live = live_steps(lengths, x, least=1)
    n, norm = _norm(x, weights["gamma_x"], weights["beta_x"])
    a = n @ weights["U"].T + weights["b_U"]
    context, attended = None, None
    if "Q" in weights:
        context, attended = _attend(n, weights, live, kind.causal)
    own = {k: v for k, v in weights.items() if k in UNIT}
    s, unit = forward_unit(a * _cdf(a), own, kind, lengths, context)
    y = x + s @ weights["V"].T + weights["b_V"]
    saved = {"weights": weights, "live": live[..., None], "n": n, "norm": norm, "a": a}
    saved |= {"attended": attended, "unit": unit, "s": s}
    return np.where(live[..., None], y, 0), saved


def backward(dy: Array, saved: Saved) -> Weights:
    """Gradients of x and all weights from dy (B, T, D)."""
    weights, n, a = saved["weights"], saved["n"], saved["a"]
    d = np.where(saved["live"], dy, 0)
    grads = {"V": np.einsum("btd,btf->df", d, saved["s"]), "b_V": d.sum(axis=(0, 1))}
    grads |= backward_unit(d @ weights["V"], saved["unit"])
    d_a = grads.pop("z") * (_cdf(a) + a * np.exp(-(a**2) / 2) / math.sqrt(2 * math.pi))
    grads["U"], grads["b_U"] = np.einsum("bte,btd->ed", d_a, n), d_a.sum(axis=(0, 1))
    d_n = d_a @ weights["U"]
    if saved["attended"] is not None:
        more = _attend_backward(grads.pop("context"), saved)
        d_n = d_n + more.pop("n")
        grads |= more
    d_x, grads["gamma_x"], grads["beta_x"] = _norm_backward(d_n, saved["norm"])
    return grads | {"x": d + d_x}


# ---- the attention of an aMLP ---------------------------------------------------------------


def _attend(n: Array, weights: Weights, live: Array, causal: bool) -> tuple[Array, Saved]:
    """softmax(q kᵀ / √A) v of one head, and its projection to F features."""
    q, k, v = np.split(n @ weights["Q"].T, 3, axis=-1)
    e = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
    seen = live[:, None] & (np.tri(e.shape[1], dtype=bool) if causal else True)
    e = np.where(seen, e, -np.inf)
    p = np.exp(e - e.max(axis=-1, keepdims=True, initial=np.finfo(e.dtype).min))
    p = p / p.sum(axis=-1, keepdims=True)
    found = p @ v
    saved = {"q": q, "k": k, "v": v, "p": p, "found": found}
    return found @ weights["O"].T + weights["b_O"], saved


def _attend_backward(d: Array, saved: Saved) -> Weights:
    """Gradients of the normalised input `n`, of `Q`, `O` and `b_O`."""
    weights, at = saved["weights"], saved["attended"]
    grads = {"O": np.einsum("btf,bta->fa", d, at["found"]), "b_O": d.sum(axis=(0, 1))}
    d_found = d @ weights["O"]
    d_p = d_found @ at["v"].transpose(0, 2, 1)
    d_e = at["p"] * (d_p - (d_p * at["p"]).sum(axis=-1, keepdims=True))
    d_e = d_e / math.sqrt(at["q"].shape[-1])
    d_v = at["p"].transpose(0, 2, 1) @ d_found
    packed = np.concatenate([d_e @ at["k"], d_e.transpose(0, 2, 1) @ at["q"], d_v], axis=-1)
    grads["Q"] = np.einsum("btr,btd->rd", packed, saved["n"])
    return grads | {"n": packed @ weights["Q"]}


# ---- parts ----------------------------------------------------------------------------------


def _cdf(a: Array) -> Array:
    """The standard normal distribution function: gelu(a) = a Φ(a)."""
    return np.asarray(np.vectorize(math.erfc, otypes=[a.dtype])(-a / math.sqrt(2)) / 2)


def _norm(v: Array, gamma: Array, beta: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    """Layer normalisation over the features, and what its backward pass needs."""
    centred = v - v.mean(axis=-1, keepdims=True)
    scale = 1 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPS)
    unit = centred * scale
    return gamma * unit + beta, (unit, scale, gamma)


def _norm_backward(d: Array, saved: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """Gradients of v, gamma and beta."""
    unit, scale, gamma = saved
    d_unit = d * gamma
    level = d_unit.mean(axis=-1, keepdims=True)
    along = (d_unit * unit).mean(axis=-1, keepdims=True)
    return scale * (d_unit - level - unit * along), (d * unit).sum((0, 1)), d.sum((0, 1))


def _check_unit(z: Array, weights: Weights, kind: Kind, context: Array | None) -> None:
    check_input(z, "(B, T, E)")
    if kind.split and z.shape[2] % 2:
        raise ValueError(f"z: expected an even number of features to split, got {z.shape[2]}")
    out = z.shape[2] // 2 if kind.split else z.shape[2]
    heads, length = weights["W"].shape[:2] if "W" in weights else (1, z.shape[1])
    check_weights(weights, _unit_shapes(out, length, kind, heads), z, "z")
    if z.shape[1] > length:
        raise ValueError(f"z: expected at most {length} positions, got {z.shape[1]}")
    if out % heads:
        raise ValueError(f"weights['W']: expected heads that divide {out}, got {heads}")
    if context is not None:
        check_array("context", context, (*z.shape[:2], out), z, "z")


def _check_block(x: Array, weights: Weights, kind: Kind) -> None:
    check_input(x)
    hidden = len(weights.get("U", ()))
    heads, length = weights["W"].shape[:2] if "W" in weights else (1, x.shape[1])
    attention = len(weights["Q"]) // 3 if "Q" in weights else None
    check_weights(weights, _shapes(x.shape[2], hidden, length, kind, heads, attention), x)
