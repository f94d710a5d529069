"""Weights of one GRU layer from one library's or paper's layout to another's.
Imports NumPy, torch.
Must not import gatelib.reference, gatelib.lab or gatelib.data.

Layouts differ in four ways. Names, order and transposition of the blocks always have a map. So has
the sense of the update gate: 1 - sigmoid(a) = sigmoid(-a), so its weights change sign. Two biases
become one where the reset gate doesn't stand between them. Whether the reset gate acts before or
after the product with U has no map, and a request for one is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["LAYOUTS", "Layout", "gru"]

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """How one library or paper writes a GRU.

    Args:
        names: of the input weights, the recurrent weights and the bias or biases.
        order: the gates in the order of their blocks; n is the candidate.
        reset: whether r multiplies h "before" the product with U, or the product "after" it.
        writes: whether z is the share that is written rather than the share that is kept.
        transposed: whether matrices are (features, 3 H), and two biases one array (2, 3 H).
        biases: 1, or 2 where U h has a bias of its own.
    """

    names: tuple[str, ...]
    order: str = "rzn"
    reset: Literal["before", "after"] = "after"
    writes: bool = False
    transposed: bool = False
    biases: int = 2


TORCH = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
PACKED = ("W", "U", "b")
KERAS = ("kernel", "recurrent_kernel", "bias")
LAYOUTS = {
    "torch": Layout(TORCH),
    "torch_before": Layout(TORCH, reset="before"),
    "keras": Layout(KERAS, "zrn", transposed=True),
    "keras_before": Layout(KERAS, "zrn", "before", transposed=True, biases=1),
    "cho": Layout(PACKED, reset="before", biases=1),
    "cho_v1": Layout(PACKED, biases=1),
    "chung": Layout(PACKED, reset="before", writes=True, biases=1),
    "gru": Layout((*PACKED, "b_u")),
}
"""Layouts by name.

torch: `torch.nn.GRU`, as cuDNN. torch_before: `gatelib.nn.GRU` with `reset_after=False`, whose
`state_dict` has the same names and shapes. keras: `keras.layers.GRU` with `reset_after=True`, its
default. keras_before: with `reset_after=False`. cho: Cho et al. 2014 as printed
(arXiv:1406.1078v3). cho_v1: its first two versions. chung: Chung et al. 2014 (arXiv:1412.3555).
The papers print no biases; they have one here. gru, cho and chung are packed as
`gatelib.reference.gru` packs them.
"""


def gru(weights: Mapping[str, Any], source: str, target: str) -> dict[str, Any]:
    """The weights of one GRU layer, one direction, in another layout.

    Args:
        weights: tensors or NumPy arrays by the names of the layout `source`. For torch that is a
            `state_dict`; for Keras, `dict(zip(("kernel", "recurrent_kernel", "bias"),
            layer.get_weights()))`.
        source: the layout that `weights` have, one of `LAYOUTS`.
        target: the layout that is wanted.

    Returns:
        Tensors for torch's layouts, NumPy arrays for the others, in the dtype of `weights`; nothing
        shares memory with them. The layer computes the same function of every input. A map there
        and back gives the same weights, but for two biases of which only the sum acts: they
        become one, and return as their sum and 0.

    Raises:
        TypeError: a weight is neither a tensor nor an array, or dtypes differ.
        ValueError: a layout is unknown, names or shapes aren't its own, the reset gate acts before
            the product in one layout and after it in the other, or the bias of U h that r
            multiplies isn't 0 and `target` has no place for it.
    """
    have, want = _layout("source", source), _layout("target", target)
    if have.reset != want.reset:
        raise ValueError(
            f"target: {source!r} has the reset gate {have.reset} the product with U and {target!r} "
            f"has it {want.reset}. U(r*h) scales the columns of U and r*(U h) its rows, so no "
            "weights make them equal. Train again, or take a layer of the same convention"
        )
    parts = _unpacked(_checked(weights, have, source), have)
    if want.biases == 1:
        parts = _one_bias(parts, want, target)
    packed = _packed(parts, want)
    return packed if want.names == TORCH else {k: v.cpu().numpy() for k, v in packed.items()}


def _layout(argument: str, name: str) -> Layout:
    if name not in LAYOUTS:
        raise ValueError(f"{argument}: expected one of {sorted(LAYOUTS)}, got {name!r}")
    return LAYOUTS[name]


def _checked(weights: Mapping[str, Any], layout: Layout, name: str) -> Weights:
    """The weights as tensors of one dtype, with the names and shapes of their layout."""
    if set(weights) != set(layout.names):
        raise ValueError(
            f"weights: expected {list(layout.names)} in the layout {name!r}, got {list(weights)}"
        )
    for key, value in weights.items():
        if not isinstance(value, Tensor | np.ndarray):
            found = type(value).__name__
            raise TypeError(f"weights[{key!r}]: expected a tensor or an array, got {found}")
    tensors = {k: torch.as_tensor(weights[k]).detach() for k in layout.names}
    first, second, *_ = tensors.values()
    hidden = second.shape[-1 if not layout.transposed else 0] if second.dim() == 2 else 0
    features = first.shape[0 if layout.transposed else -1] if first.dim() == 2 else 0
    for key, shape in _shapes(layout, features, hidden).items():
        if tuple(tensors[key].shape) != shape:
            raise ValueError(
                f"weights[{key!r}]: expected shape {shape}, got {tuple(tensors[key].shape)}"
            )
        if tensors[key].dtype != first.dtype or not first.is_floating_point():
            raise TypeError(
                f"weights[{key!r}]: expected one floating dtype, got {tensors[key].dtype} beside "
                f"{first.dtype}"
            )
    return tensors


def _shapes(layout: Layout, features: int, hidden: int) -> dict[str, tuple[int, ...]]:
    rows = 3 * hidden
    matrices: list[tuple[int, ...]] = [(rows, features), (rows, hidden)]
    if layout.transposed:
        bias: list[tuple[int, ...]] = [(2, rows) if layout.biases == 2 else (rows,)]
        matrices = [shape[::-1] for shape in matrices]
    else:
        bias = [(rows,)] * layout.biases
    return dict(zip(layout.names, (*matrices, *bias), strict=True))


def _unpacked(weights: Weights, layout: Layout) -> Weights:
    """{"W_r": …, "U_z": …, "b_n": …, "v_n": …}: one block a gate, z keeping; v is U h's bias."""
    w, u, *biases = weights.values()
    if layout.transposed:
        w, u = w.t(), u.t()
        biases = list(biases[0].unbind(0)) if layout.biases == 2 else biases
    b = biases[0]
    v = biases[1] if layout.biases == 2 else torch.zeros_like(b)
    parts = {}
    for letter, packed in (("W", w), ("U", u), ("b", b), ("v", v)):
        for gate, block in zip(layout.order, packed.chunk(3), strict=True):
            parts[f"{letter}_{gate}"] = -block if layout.writes and gate == "z" else block
    return parts


def _packed(parts: Weights, layout: Layout) -> Weights:
    """The inverse of `_unpacked`, in memory of its own."""
    turned = {
        name: -block if layout.writes and name.endswith("z") else block
        for name, block in parts.items()
    }
    w, u, b, v = (torch.cat([turned[f"{letter}_{k}"] for k in layout.order]) for letter in "WUbv")
    biases = [b, v][: layout.biases]
    if layout.transposed:
        w, u = w.t().contiguous(), u.t().contiguous()
        biases = [torch.stack(biases)] if layout.biases == 2 else biases
    return dict(zip(layout.names, (w, u, *biases), strict=True))


def _one_bias(parts: Weights, layout: Layout, target: str) -> Weights:
    """Add the second bias to the first, unless r stands between them and it isn't 0."""
    if layout.reset == "after" and parts["v_n"].any():
        raise ValueError(
            f"target: {target!r} has one bias, and the candidate's bias on U h, which the reset "
            f"gate multiplies, is not 0 (up to {float(parts['v_n'].abs().max()):.2g}); it can't be "
            "moved out of the gate's reach"
        )
    summed = {f"b_{k}": parts[f"b_{k}"] + parts[f"v_{k}"] for k in "rzn"}
    return parts | summed | {f"v_{k}": torch.zeros_like(parts[f"v_{k}"]) for k in "rzn"}
