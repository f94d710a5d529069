"""Context gates in NumPy, forward and backward by hand.

Imports NumPy, gatelib.reference.check and gatelib.reference.gate.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

`target` is (..., T) and `source` (..., S). Weights: `W_t` (H, T), `b_t`, `W_s` (H, S), `b_s` for
the two contexts, and `W_z` (H, T + S), `b_z` for the gate, which reads the target first; the kind
"none" has no gate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.check import check_dtype, check_floats, check_weights
from gatelib.reference.gate import sigmoid

Array = NDArray[Any]
Weights = dict[str, Array]

KINDS = ("both", "source", "target", "none")


def initialize(
    rng: np.random.Generator, target_size: int, source_size: int, size: int, kind: str = "both"
) -> Weights:
    """Uniform weights in ±1/√(inputs), as torch draws a linear layer's."""
    shapes = _shapes(target_size, source_size, size, kind)
    bounds = {name: 1 / np.sqrt(shapes[f"W_{name[-1]}"][1]) for name in shapes}
    return {name: rng.uniform(-bounds[name], bounds[name], shapes[name]) for name in shapes}


def forward(
    target: Array, source: Array, weights: Weights, kind: str = "both"
) -> tuple[Array, dict[str, Any]]:
    """What the contexts give together, (..., H), and what `backward` needs.

    Raises ValueError for a shape or a kind, TypeError for a dtype that does not fit. Source: Tu et
    al. 2017, arXiv:1608.06043.
    """
    _check(target, source, weights, kind)
    contexts = {
        "t": target @ weights["W_t"].T + weights["b_t"],
        "s": source @ weights["W_s"].T + weights["b_s"],
    }
    both = np.concatenate([target, source], axis=-1)
    z = sigmoid(both @ weights["W_z"].T + weights["b_z"]) if kind != "none" else None
    shares = _shares(kind, z)
    y = np.tanh(shares["t"] * contexts["t"] + shares["s"] * contexts["s"])
    saved = {"target": target, "source": source, "both": both, "weights": weights, "kind": kind}
    return y, saved | {"z": z, "y": y, "contexts": contexts}


def _shares(kind: str, z: Array | None) -> dict[str, Any]:
    """How much of each context is let through."""
    if z is None:
        return {"t": 1.0, "s": 1.0}
    return {
        "t": {"both": 1 - z, "target": z}.get(kind, 1.0),
        "s": 1.0 if kind == "target" else z,
    }


def backward(dy: Array, saved: dict[str, Any]) -> Weights:
    """Gradients by `target`, `source` and each weight, given dy (..., H) by the output."""
    kind, z, weights, contexts = (saved[k] for k in ("kind", "z", "weights", "contexts"))
    d_m = dy * (1 - saved["y"] ** 2)
    shares = _shares(kind, z)
    found: Weights = {}
    inputs = {"t": saved["target"], "s": saved["source"]}
    into = {}
    for k, x in inputs.items():
        d = d_m * shares[k]
        into[k] = d @ weights[f"W_{k}"]
        found |= {f"W_{k}": _outer(d, x), f"b_{k}": _summed(d)}
    if z is not None:
        open_to = {"both": contexts["s"] - contexts["t"], "target": contexts["t"]}
        d_a = d_m * open_to.get(kind, contexts["s"]) * z * (1 - z)
        found |= {"W_z": _outer(d_a, saved["both"]), "b_z": _summed(d_a)}
        by_gate = d_a @ weights["W_z"]
        into["t"] = into["t"] + by_gate[..., : saved["target"].shape[-1]]
        into["s"] = into["s"] + by_gate[..., saved["target"].shape[-1] :]
    return found | {"target": into["t"], "source": into["s"]}


def _outer(d: Array, x: Array) -> Array:
    """The gradient of a matrix (H, D): the sum over all rows of d xᵀ."""
    return np.asarray(d.reshape(-1, d.shape[-1]).T @ x.reshape(-1, x.shape[-1]))


def _summed(d: Array) -> Array:
    return np.asarray(d.reshape(-1, d.shape[-1]).sum(axis=0))


def _shapes(target_size: int, source_size: int, size: int, kind: str) -> dict[str, tuple[int, ...]]:
    inputs = {"t": target_size, "s": source_size}
    if kind != "none":
        inputs["z"] = target_size + source_size
    shapes: dict[str, tuple[int, ...]] = {f"W_{k}": (size, n) for k, n in inputs.items()}
    return shapes | {f"b_{k}": (size,) for k in inputs}


def _check(target: Array, source: Array, weights: Weights, kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
    for name, array in (("target", target), ("source", source)):
        check_floats(name, array)
        check_dtype(name, array, target, "target")
    if target.shape[:-1] != source.shape[:-1]:
        expected = (*target.shape[:-1], "S")
        raise ValueError(f"source: expected {expected} beside target, got {source.shape}")
    size = weights["b_t"].size if "b_t" in weights else 0
    shapes = _shapes(target.shape[-1], source.shape[-1], size, kind)
    check_weights(weights, shapes, target, "target")
