"""Networks over depth in NumPy: forward, backward by hand, and the gradient by length of path.
Imports NumPy and gatelib.reference.check.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

One layer has one branch, a = W φ(x) + b, and a `connection` says what becomes of it:
plain x' = a; residual x' = x + g α a; postactivation x' = φ(x + a), a = W x + b; dense x' = [x, a].
A layer's weights are `W` (out, in), `b` (out,) and, where its branch has a gate, `alpha` (1,) or
(out,). The network's last value x is a preactivation (but for postactivation), as He et al.
2016b leave it: who reads it applies φ first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.check import check_input

Array = NDArray[Any]
Weights = dict[str, Array]

CONNECTIONS = ("plain", "residual", "postactivation", "dense")
ACTIVATIONS = ("relu", "tanh", "identity")


@dataclass
class Saved:
    """What the backward pass needs: x before each layer and at the end, and each branch."""

    layers: Sequence[Weights]
    connection: str
    activation: str
    masks: Sequence[Array | None]
    x: list[Array]
    branches: list[Array]


def activate(x: Array, activation: str) -> Array:
    """φ(x)."""
    if activation == "relu":
        return np.maximum(x, 0)
    return np.asarray(np.tanh(x) if activation == "tanh" else x)


def slope(y: Array, activation: str) -> Array:
    """φ' from φ's value y; a ReLU has slope 0 at 0."""
    if activation == "relu":
        return (y > 0).astype(y.dtype)
    return np.asarray(1 - y**2 if activation == "tanh" else np.ones_like(y))


def initialize(
    rng: np.random.Generator,
    size: int,
    depth: int,
    connection: str = "residual",
    gain: float = 1.0,
    growth: int | None = None,
    alpha: float | Array | None = None,
) -> list[Weights]:
    """Normal weights of variance gain²/in, biases 0; `growth` features for each dense layer."""
    _check_names(connection, "relu")
    grown = size if growth is None else growth
    layers = []
    for layer in range(depth):
        dense = connection == "dense"
        inside, outside = (size + layer * grown, grown) if dense else (size, size)
        weights = {"W": gain / np.sqrt(inside) * rng.normal(size=(outside, inside))}
        weights["b"] = np.zeros(outside)
        if alpha is not None:
            weights["alpha"] = np.atleast_1d(np.asarray(alpha, float)).copy()
        layers.append(weights)
    return layers


def forward(
    x: Array,
    layers: Sequence[Weights],
    connection: str = "residual",
    activation: str = "relu",
    masks: Sequence[Array | None] | None = None,
) -> tuple[Array, Saved]:
    """Run all layers on a batch x (B, D).

    masks: for each layer None, or g (B, 1) on its branch, such as m/keep of stochastic depth; for
    a residual connection only, as is `alpha`. For weights tied over depth give one dict many
    times and add up its gradients. Returns (B, D), dense (B, D + outputs of all layers), and what
    `backward` needs. Raises ValueError for a name or a shape, TypeError for a dtype.
    """
    masks = [None] * len(layers) if masks is None else masks
    _check(x, layers, connection, activation, masks)
    saved = Saved(layers, connection, activation, masks, [x], [])
    for weights, mask in zip(layers, masks, strict=True):
        read = x if connection == "postactivation" else activate(x, activation)
        a = read @ weights["W"].T + weights["b"]
        if connection == "plain":
            x = a
        elif connection == "dense":
            x = np.concatenate([x, a], axis=1)
        else:
            x = x + _gate(weights, mask) * a
        if connection == "postactivation":
            x = activate(x, activation)
        saved.x.append(x)
        saved.branches.append(a)
    return x, saved


def backward(dy: Array, saved: Saved) -> dict[str, Array]:
    """Gradients of sum(dy · y): `x`, and `l.W`, `l.b`, `l.alpha` of each layer l."""
    found: dict[str, Array] = {}
    for l in reversed(range(len(saved.layers))):
        weights = saved.layers[l]
        skip, d_branch = _split(dy, saved, l)
        d_a = d_branch * _gate(weights, saved.masks[l])
        read = saved.x[l]
        if saved.connection != "postactivation":
            read = activate(read, saved.activation)
        found[f"{l}.W"], found[f"{l}.b"] = d_a.T @ read, d_a.sum(axis=0)
        if "alpha" in weights:
            mask = 1.0 if saved.masks[l] is None else saved.masks[l]
            pulled = (d_branch * mask * saved.branches[l]).sum(axis=0)
            found[f"{l}.alpha"] = pulled if weights["alpha"].size > 1 else pulled.sum(keepdims=True)
        dy = skip + _through(d_a, saved, l)
    return {"x": dy} | found


def gradient_by_path_length(dy: Array, saved: Saved) -> Array:
    """The gradient by x (L + 1, B, D), split by the number of branches that it passed.

    Entry k is the sum over all paths through exactly k of the L branches; their sum is `backward`'s
    `x`. Each layer either shifts the gradient by one entry (its branch) or does not (its shortcut):
    (1 + z J_L) … (1 + z J_1) as a polynomial in z, J the branch's Jacobian.
    Source: the unravelled view of Veit et al. 2016, arXiv:1605.06431.
    """
    depth = len(saved.layers)
    paths = np.zeros((depth + 1, *dy.shape), dy.dtype)
    paths[0] = dy
    for l in reversed(range(depth)):
        skip, branch = _split(paths, saved, l)
        through = _through(branch * _gate(saved.layers[l], saved.masks[l]), saved, l)
        paths = np.broadcast_to(skip, through.shape).copy()
        paths[1:] += through[:-1]
    return paths


def _gate(weights: Weights, mask: Array | None) -> Array:
    """g α, what multiplies a branch; 1 where it has no gate."""
    return np.asarray(weights.get("alpha", np.ones(1)) * (1.0 if mask is None else mask))


def _split(dy: Array, saved: Saved, l: int) -> tuple[Array, Array]:
    """What arrives at layer l's output (…, B, F): to its shortcut, and to its branch."""
    if saved.connection == "plain":
        return np.zeros((1,) * dy.ndim), dy
    if saved.connection == "dense":
        width = saved.x[l].shape[1]
        return dy[..., :width], dy[..., width:]
    if saved.connection == "postactivation":
        dy = dy * slope(saved.x[l + 1], saved.activation)
    return dy, dy


def _through(d_a: Array, saved: Saved, l: int) -> Array:
    """Back from a layer's preactivation to what it read."""
    back = d_a @ saved.layers[l]["W"]
    if saved.connection == "postactivation":
        return np.asarray(back)
    return np.asarray(back * slope(activate(saved.x[l], saved.activation), saved.activation))


def _check_names(connection: str, activation: str) -> None:
    if connection not in CONNECTIONS:
        raise ValueError(f"connection: expected one of {CONNECTIONS}, got {connection!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {ACTIVATIONS}, got {activation!r}")


def _check(
    x: Array,
    layers: Sequence[Weights],
    connection: str,
    activation: str,
    masks: Sequence[Array | None],
) -> None:
    _check_names(connection, activation)
    check_input(x, "(B, D)")
    if len(masks) != len(layers):
        raise ValueError(f"masks: expected {len(layers)}, one for each layer, got {len(masks)}")
    width = x.shape[1]
    for l, (weights, mask) in enumerate(zip(layers, masks, strict=True)):
        _check_layer(l, weights, width, connection, x)
        if mask is not None and (connection != "residual" or mask.shape != (len(x), 1)):
            raise ValueError(
                f"masks[{l}]: expected None, or ({len(x)}, 1) for a residual connection, "
                f"got {mask.shape} for {connection!r}"
            )
        width += weights["W"].shape[0] if connection == "dense" else 0


def _check_layer(l: int, weights: Weights, width: int, connection: str, x: Array) -> None:
    rows = weights["W"].shape[0] if connection == "dense" else width
    shapes: dict[str, list[tuple[int, ...]]] = {"W": [(rows, width)], "b": [(rows,)]}
    if connection == "residual" and "alpha" in weights:
        shapes["alpha"] = [(1,), (rows,)]
    if set(weights) != set(shapes):
        raise ValueError(f"layers[{l}]: expected {sorted(shapes)}, got {sorted(weights)}")
    for name, expected in shapes.items():
        if weights[name].shape not in expected:
            wanted = " or ".join(map(str, expected))
            raise ValueError(
                f"layers[{l}][{name!r}]: expected shape {wanted}, got {weights[name].shape}"
            )
        if weights[name].dtype != x.dtype:
            raise TypeError(
                f"layers[{l}][{name!r}]: expected {x.dtype} as x, got {weights[name].dtype}"
            )
