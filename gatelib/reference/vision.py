"""Gates over the channels of an image in NumPy, backward by hand.

Imports NumPy; check and convolution of gatelib.reference.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

Images are x (B, C, H, W). A gate is made of what a channel saw, z, or of a condition (B, E).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.check import check_array, check_input, check_weights
from gatelib.reference.convolution import convolve, convolve_backward, same

Array = NDArray[Any]
Weights = dict[str, Array]
GATE = ("W_1", "b_1", "W_2", "b_2")
EPSILON = 1e-5
"""Added to a variance by batch normalisation."""


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^−x) without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


GATES: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "sigmoid": (sigmoid, lambda s: s * (1 - s)),
    "hard_sigmoid": (
        lambda a: np.clip(a / 6 + 0.5, 0, 1),
        lambda s: ((s > 0) & (s < 1)).astype(s.dtype) / 6,
    ),
}
"""Each gate of a preactivation, and its slope in terms of its value."""


@dataclass
class Saved:
    """What a backward pass needs: weights, input, and values by name."""

    weights: Weights
    x: Array
    values: dict[str, Array]
    options: dict[str, Any] = field(default_factory=dict)


# ---- squeeze-and-excitation -----------------------------------------------------------------


def initialize(
    rng: np.random.Generator, channels: int, hidden: int, bias: bool = True, shift: bool = False
) -> Weights:
    """W_1 (R, C), W_2 (G·C, R) and, with `bias`, b_1 (R,), b_2 (G·C,); each ±1/√inputs."""
    rows = channels * (2 if shift else 1)
    found = {}
    for k, (outside, inside) in enumerate(((hidden, channels), (rows, hidden)), 1):
        bound = 1 / np.sqrt(inside)
        found[f"W_{k}"] = rng.uniform(-bound, bound, (outside, inside))
        if bias:
            found[f"b_{k}"] = rng.uniform(-bound, bound, outside)
    return found


def forward(
    x: Array,
    weights: Weights,
    kind: str = "sigmoid",
    pooled: bool = True,
    shift: bool = False,
    mask: Array | None = None,
) -> tuple[Array, Saved]:
    """Gate each channel by what all channels saw: y (B, C, H, W), and what `backward` needs.

    mask (B, H, W): 1 on the image, 0 on its padding, which the mean doesn't see and where y is 0.
    pooled: without it each pixel has a gate of its own, from what the channels are there.
    shift: W_2 has 2·C rows; what the second half makes is added. Biases may be absent.
    Raises ValueError for a shape or a kind, TypeError for a dtype.
    Source: Hu et al. 2017, arXiv:1709.01507, equations 2 to 4.
    """
    _check(x, weights, kind, mask, shift)
    share = _share(x, mask)
    z = _pool(x, share) if pooled else x
    h = np.maximum(_mix(z, weights["W_1"], weights.get("b_1")), 0)
    packed = _mix(h, weights["W_2"], weights.get("b_2"))
    values = {"z": z, "h": h, "share": share}
    return _gated(x, packed, Saved(weights, x, values, {"kind": kind, "pooled": pooled}), mask)


def backward(dy: Array, saved: Saved) -> Weights:
    """Gradients of x and of each weight, from dy (B, C, H, W)."""
    weights, v = saved.weights, saved.values
    d_x, d_packed = _gated_backward(dy, saved)
    d_h, second = _mix_backward(d_packed, v["h"], weights["W_2"])
    d_z, first = _mix_backward(d_h * (v["h"] > 0), v["z"], weights["W_1"])
    found = {"W_1": first[0], "b_1": first[1], "W_2": second[0], "b_2": second[1]}
    grads = {name: found[name] for name in weights}
    return {"x": d_x + (d_z * v["share"] if saved.options["pooled"] else d_z)} | grads


# ---- efficient channel attention ------------------------------------------------------------


def forward_local(
    x: Array, weights: Weights, kind: str = "sigmoid", mask: Array | None = None
) -> tuple[Array, Saved]:
    """Gate each channel by what its neighbours saw, through one filter w (K,), K odd.

    Source: Wang et al. 2019, arXiv:1910.03151, equation 7.
    """
    check_input(x, "(B, C, H, W)")
    taps = len(weights["w"]) if "w" in weights else 0
    check_weights(weights, {"w": (taps,)}, x)
    if taps % 2 == 0:
        raise ValueError(f"weights['w']: expected an odd number of taps, got {taps}")
    _check_kind(kind)
    share = _share(x, mask)
    z, reach = _pool(x, share), taps // 2
    around = np.pad(z, ((0, 0), (reach, reach), (0, 0), (0, 0)))
    channels = x.shape[1]
    a = sum(w * around[:, k : k + channels] for k, w in enumerate(weights["w"]))
    values = {"around": around, "share": share}
    return _gated(x, np.asarray(a), Saved(weights, x, values, {"kind": kind}), mask)


def backward_local(dy: Array, saved: Saved) -> Weights:
    """Gradients of x and w, from dy (B, C, H, W)."""
    d_x, d_a = _gated_backward(dy, saved)
    w, around, channels = saved.weights["w"], saved.values["around"], saved.x.shape[1]
    d_w, d_around = np.zeros_like(w), np.zeros_like(around)
    for k in range(len(w)):
        d_w[k] = (d_a * around[:, k : k + channels]).sum()
        d_around[:, k : k + channels] += w[k] * d_a
    reach = len(w) // 2
    d_z = d_around[:, reach : reach + channels]
    return {"x": d_x + d_z * saved.values["share"], "w": d_w}


# ---- FiLM -----------------------------------------------------------------------------------

BLOCKS = {
    "film": ("scale", "shift"),
    "affine": ("factor", "shift"),
    "scale": ("scale",),
    "shift": ("shift",),
    "sigmoid": ("gate",),
    "sigmoid_shift": ("gate", "shift"),
}
"""What the condition makes for each channel, block of rows by block of rows."""


def forward_film(
    x: Array, condition: Array, weights: Weights, kind: str = "film"
) -> tuple[Array, Saved]:
    """Scale and shift each channel of x as a condition (B, E) says.

    weights: W (G·C, E) and b (G·C,). kind "film": (1 + γ) x + β; "affine": γ x + β; "scale":
    (1 + γ) x; "shift": x + β; "sigmoid": σ(a) x; "sigmoid_shift": σ(a) x + β.
    Source: Perez et al. 2017, arXiv:1709.07871, equation 2.
    """
    check_input(x, "(B, C, H, W)")
    if kind not in BLOCKS:
        raise ValueError(f"kind: expected one of {sorted(BLOCKS)}, got {kind!r}")
    if condition.ndim != 2 or len(condition) != len(x):
        raise ValueError(f"condition: expected ({len(x)}, E), got {condition.shape}")
    rows = len(BLOCKS[kind]) * x.shape[1]
    check_weights(weights, {"W": (rows, condition.shape[1]), "b": (rows,)}, x)
    packed = (condition @ weights["W"].T + weights["b"])[:, :, None, None]
    made = dict(zip(BLOCKS[kind], np.split(packed, len(BLOCKS[kind]), axis=1), strict=True))
    scale = made.get("factor", 1 + made.get("scale", 0 * packed[:, : x.shape[1]]))
    scale = sigmoid(made["gate"]) if "gate" in made else scale
    saved = Saved(weights, x, {"scale": scale, "condition": condition}, {"kind": kind})
    return scale * x + made.get("shift", 0), saved


def backward_film(dy: Array, saved: Saved) -> Weights:
    """Gradients of x, condition, W and b, from dy (B, C, H, W)."""
    scale, kind = saved.values["scale"], saved.options["kind"]
    by_scale = (dy * saved.x).sum((2, 3))
    slope = scale[..., 0, 0] * (1 - scale[..., 0, 0])
    found = {"scale": by_scale, "factor": by_scale, "gate": by_scale * slope}
    found["shift"] = dy.sum((2, 3))
    packed = np.concatenate([found[name] for name in BLOCKS[kind]], axis=1)
    return {
        "x": dy * scale,
        "condition": packed @ saved.weights["W"],
        "W": packed.T @ saved.values["condition"],
        "b": packed.sum(0),
    }


# ---- a residual block -----------------------------------------------------------------------


def initialize_block(
    rng: np.random.Generator, inside: int, outside: int, hidden: int | None, projects: bool
) -> Weights:
    """conv_k (O, I, K, K), scale_k and shift_k (O,) for k = 1, 2, and x where the shortcut
    projects; with `hidden`, the weights of the gate too, as `initialize` names them."""
    found: Weights = {}
    sizes = [("1", inside, 3), ("2", outside, 3)] + [("x", inside, 1)] * projects
    for k, channels, side in sizes:
        bound = 1 / np.sqrt(channels * side**2)
        found[f"conv_{k}"] = rng.uniform(-bound, bound, (outside, channels, side, side))
        found[f"scale_{k}"] = rng.uniform(0.5, 1.5, outside)
        found[f"shift_{k}"] = rng.uniform(-0.5, 0.5, outside)
    return found | ({} if hidden is None else initialize(rng, outside, hidden))


def forward_block(x: Array, weights: Weights, stride: int = 1) -> tuple[Array, Saved]:
    """relu(shortcut + gate · branch): a residual block while it trains, (B, O, H', W').

    The branch is conv, norm, relu, conv, norm, as `initialize_block` has their weights; norms take
    mean and variance of the batch. The gate is squeeze-and-excitation where its weights are given.
    The shortcut is x, or conv_x and a norm.
    Source: He et al. 2015, arXiv:1512.03385; Hu et al. 2017, arXiv:1709.01507, figure 3.
    """
    check_input(x, "(B, C, H, W)")
    values: dict[str, Array] = {}
    h = np.maximum(_unit(x, weights, "1", stride, values), 0)
    f = _unit(h, weights, "2", 1, values)
    saved = Saved(weights, x, values, {"stride": stride, "gate": None})
    gate = {name: value for name, value in weights.items() if name in GATE}
    if gate:
        f, saved.options["gate"] = forward(f, gate)
    skip = _unit(x, weights, "x", stride, values) if "conv_x" in weights else x
    values |= {"h": h, "y": np.maximum(skip + f, 0)}
    return values["y"], saved


def backward_block(dy: Array, saved: Saved) -> Weights:
    """Gradients of x and of each weight, from dy (B, O, H', W')."""
    v, stride, grads = saved.values, saved.options["stride"], dict[str, Array]()
    d = dy * (v["y"] > 0)
    d_f, d_x = d, d
    if saved.options["gate"] is not None:
        grads |= backward(d, saved.options["gate"])
        d_f = grads.pop("x")
    if "conv_x" in saved.weights:
        d_x = _unit_backward(d, saved, "x", stride, grads)
    d_h = _unit_backward(d_f, saved, "2", 1, grads) * (v["h"] > 0)
    return grads | {"x": d_x + _unit_backward(d_h, saved, "1", stride, grads)}


def _unit(x: Array, weights: Weights, k: str, stride: int, values: dict[str, Array]) -> Array:
    """A convolution and its batch normalisation; keeps what the way back needs."""
    kernel = weights[f"conv_{k}"]
    a = convolve(x, kernel, same(kernel.shape[2:], (1, 1)))[:, :, ::stride, ::stride]
    rate = 1 / np.sqrt(a.var((0, 2, 3), keepdims=True) + EPSILON)
    n = (a - a.mean((0, 2, 3), keepdims=True)) * rate
    values |= {f"in_{k}": x, f"n_{k}": n, f"rate_{k}": rate}
    return np.asarray(
        weights[f"scale_{k}"][:, None, None] * n + weights[f"shift_{k}"][:, None, None]
    )


def _unit_backward(d: Array, saved: Saved, k: str, stride: int, grads: Weights) -> Array:
    """The gradient of a unit's input; those of its weights are put into `grads`."""
    v, over = saved.values, (0, 2, 3)
    n, weights = v[f"n_{k}"], saved.weights
    grads[f"scale_{k}"], grads[f"shift_{k}"] = (d * n).sum(over), d.sum(over)
    d_n = d * weights[f"scale_{k}"][:, None, None]
    centred = d_n - d_n.mean(over, keepdims=True) - n * (d_n * n).mean(over, keepdims=True)
    x, kernel = v[f"in_{k}"], weights[f"conv_{k}"]
    d_a = np.zeros((*d.shape[:2], *x.shape[2:]), x.dtype)
    d_a[:, :, ::stride, ::stride] = centred * v[f"rate_{k}"]
    frame = same(kernel.shape[2:], (1, 1))
    d_x, grads[f"conv_{k}"] = convolve_backward(d_a, x, kernel, frame)
    return d_x


# ---- what they share ------------------------------------------------------------------------


def _share(x: Array, mask: Array | None) -> Array:
    """(B, 1, H, W): how much each pixel counts in a mean over the pixels."""
    if mask is None:
        pixels = x.shape[2] * x.shape[3]
        return np.full((len(x), 1, *x.shape[2:]), 1 / pixels, x.dtype)
    check_array("mask", mask, (len(x), *x.shape[2:]), mask)
    count = mask.sum((1, 2), keepdims=True)
    if not count.all():
        raise ValueError("mask: expected at least one pixel of each image, got an image of none")
    return np.asarray((mask / count)[:, None], x.dtype)


def _pool(x: Array, share: Array) -> Array:
    """(B, C, 1, 1): the mean over the pixels that count."""
    return np.asarray((x * share).sum((2, 3), keepdims=True))


def _mix(z: Array, W: Array, b: Array | None) -> Array:
    """W z + b over the channels: a 1 × 1 convolution."""
    mixed = np.asarray(np.einsum("oc,bcij->boij", W, z))
    return mixed if b is None else mixed + b[:, None, None]


def _mix_backward(d: Array, z: Array, W: Array) -> tuple[Array, tuple[Array, Array]]:
    """Gradients of z, and of W and b."""
    d_W = np.einsum("boij,bcij->oc", d, z)
    return np.einsum("oc,boij->bcij", W, d), (d_W, d.sum((0, 2, 3)))


def _gated(x: Array, packed: Array, saved: Saved, mask: Array | None) -> tuple[Array, Saved]:
    """s x + b from the packed preactivations of s and, where there is one, the shift b."""
    s = GATES[saved.options["kind"]][0](packed[:, : x.shape[1]])
    live = np.ones_like(x[:, :1]) if mask is None else np.asarray(mask[:, None], x.dtype)
    saved.values |= {"s": s, "live": live, "packed": packed}
    y = s * x
    if packed.shape[1] > x.shape[1]:
        y = y + packed[:, x.shape[1] :]
    return y * live, saved


def _gated_backward(dy: Array, saved: Saved) -> tuple[Array, Array]:
    """Gradients of x along the product, and of the packed preactivations."""
    v, x = saved.values, saved.x
    d = dy * v["live"]
    d_s = d * x
    d_a = _as(d_s, v["s"]) * GATES[saved.options["kind"]][1](v["s"])
    if v["packed"].shape[1] == x.shape[1]:
        return d * v["s"], d_a
    return d * v["s"], np.concatenate([d_a, _as(d, v["s"])], axis=1)


def _as(d: Array, value: Array) -> Array:
    """The gradient of a value that was broadcast over the pixels, or was not."""
    return d.sum((2, 3), keepdims=True) if value.shape[2:] == (1, 1) != d.shape[2:] else d


def _check_kind(kind: str) -> None:
    if kind not in GATES:
        raise ValueError(f"kind: expected one of {sorted(GATES)}, got {kind!r}")


def _check(x: Array, weights: Weights, kind: str, mask: Array | None, shift: bool) -> None:
    check_input(x, "(B, C, H, W)")
    _check_kind(kind)
    channels, rows = x.shape[1], x.shape[1] * (2 if shift else 1)
    hidden = len(weights["W_1"]) if "W_1" in weights else 0
    shapes: dict[str, tuple[int, ...]] = {"W_1": (hidden, channels), "W_2": (rows, hidden)}
    if "b_1" in weights:
        shapes |= {"b_1": (hidden,), "b_2": (rows,)}
    check_weights(weights, shapes, x)
