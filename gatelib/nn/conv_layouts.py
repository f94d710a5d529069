"""Weights of a ConvLSTM from one library's layout to another's; `gatelib.nn.convert` has it.

Imports NumPy, torch, gatelib.nn.check.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatelib.nn.check import check_choice

__all__ = ["CONV_LAYOUTS", "conv_lstm"]

Layer = dict[str, Tensor]
"""One layer: W (4*C, C_in, k, l), U (4*C, C, k, l), perhaps b (4*C,) and w_i, w_f, w_o, with the
gates in the order i, f, g, o."""
Named = dict[str, tuple[str, Any]]
"""By our names: where a user finds an array, and the array."""

PEEPHOLES = ("w_i", "w_f", "w_o")
OURS = {"W": "weight_ih", "U": "weight_hh", "b": "bias_ih"} | {name: name for name in PEEPHOLES}
KERAS = {"W": "kernel", "U": "recurrent_kernel", "b": "bias"}
ONE_KERNEL = {"W": "weight", "b": "bias"}
CONV_LAYOUTS = ("gatelib", "keras", "one_kernel")
"""A ConvLSTM's layouts by name.

gatelib: the `state_dict` of `gatelib.nn.ConvLSTM2d`, gates i, f, g, o. keras:
`keras.layers.ConvLSTM2D`, kernels (k, l, channels, 4*C), gates i, f, c, o, where c is our g.
one_kernel: the `state_dict` of many public PyTorch programs, first that of ndrplz: one convolution
`cell_list.{layer}.conv` reads x and h joined, gates i, f, o, g.
"""


def conv_lstm(weights: Any, source: str, target: str) -> Any:
    """The weights of a ConvLSTM in another layout.

    Args:
        weights: tensors or NumPy arrays by the names of the layout `source`. For gatelib and
            one_kernel that is a `state_dict` of any number of layers. For Keras,
            `dict(zip(("kernel", "recurrent_kernel", "bias"), layer.get_weights()))`; several
            layers are a list of such mappings.
        source: the layout that `weights` have, one of `CONV_LAYOUTS`.
        target: the layout that is wanted.

    Returns:
        NumPy arrays for Keras (a list of mappings where there are several layers), tensors
        otherwise, in memory of their own. Layers with these weights compute the same where Keras'
        has `recurrent_activation="sigmoid"`, as since Keras 3, and strides and dilation 1; its
        padding of x is `padding` of ours. Keras' `unit_forget_bias` is counted in its bias already.

    Raises:
        TypeError: a weight is neither a tensor nor an array, or dtypes differ.
        ValueError: a layout is unknown, names or shapes aren't its own, or there are peepholes,
            for which only gatelib has a place.
    """
    check_choice("source", source, CONV_LAYOUTS)
    check_choice("target", target, CONV_LAYOUTS)
    read: dict[str, Callable[[Any], list[Named]]] = {
        "gatelib": _read_ours,
        "keras": _read_keras,
        "one_kernel": _read_one_kernel,
    }
    layers = [_to_ours(_tensors(named), source, named) for named in read[source](weights)]
    if target == "gatelib":
        return {f"{OURS[n]}_l{k}": v for k, own in enumerate(layers) for n, v in own.items()}
    if any(name in own for own in layers for name in PEEPHOLES):
        raise ValueError(f"target: {target!r} has no place for peepholes, got {list(PEEPHOLES)}")
    if target == "keras":
        found = [{KERAS[n]: _keras(v).numpy() for n, v in own.items()} for own in layers]
        return found if len(found) > 1 else found[0]
    return {
        f"cell_list.{k}.conv.{name}": value
        for k, own in enumerate(layers)
        for name, value in _one_kernel(own).items()
    }


# ---- reading --------------------------------------------------------------------------------


def _read_ours(weights: Any) -> list[Named]:
    found = {str(name): (str(name), v) for name, v in _mapping("weights", weights).items()}
    return _by_layer(found, OURS, "gatelib")


def _read_one_kernel(weights: Any) -> list[Named]:
    turned = {
        re.sub(r"^cell_list\.(\d+)\.conv\.(\w+)$", r"\2_l\1", str(name)): (str(name), value)
        for name, value in _mapping("weights", weights).items()
    }
    return _by_layer(turned, ONE_KERNEL, "one_kernel")


def _by_layer(
    weights: Mapping[str, tuple[str, Any]], names: Mapping[str, str], layout: str
) -> list[Named]:
    """The arrays of each layer by our names; every name must be one of the layout's."""
    ours = {theirs: mine for mine, theirs in names.items()}
    layers: dict[int, Named] = {}
    for key, (name, value) in weights.items():
        place = re.fullmatch(r"(.+)_l(\d+)", key)
        if place is None or place[1] not in ours:
            raise ValueError(f"weights: expected names of the layout {layout!r}, got {name!r}")
        layers.setdefault(int(place[2]), {})[ours[place[1]]] = (f"weights[{name!r}]", value)
    if sorted(layers) != [*range(len(layers))] or not layers:
        raise ValueError(f"weights: expected the layers 0, 1, …, got {sorted(layers)}")
    return [layers[k] for k in range(len(layers))]


def _read_keras(weights: Any) -> list[Named]:
    several = isinstance(weights, Sequence) and not isinstance(weights, str)
    found = []
    for k, own in enumerate(weights if several else [weights]):
        place = f"weights[{k}]" if several else "weights"
        own, ours = _mapping(place, own), {theirs: mine for mine, theirs in KERAS.items()}
        if not {"kernel", "recurrent_kernel"} <= set(own) <= set(ours):
            raise ValueError(f"{place}: expected {list(ours)} in 'keras', got {list(own)}")
        found.append({ours[n]: (f"{place}[{n!r}]", value) for n, value in own.items()})
    if not found:
        raise ValueError("weights: expected a layer at least, got none")
    return found


def _mapping(place: str, weights: object) -> Mapping[Any, Any]:
    if not isinstance(weights, Mapping):
        raise TypeError(f"{place}: expected a mapping of names, got {type(weights).__name__}")
    return weights


def _tensors(named: Named) -> Layer:
    """The arrays as tensors of one floating dtype."""
    found: Layer = {}
    for name, (place, value) in named.items():
        if isinstance(value, np.ndarray):
            value = torch.as_tensor(np.ascontiguousarray(value))
        if not isinstance(value, Tensor):
            raise TypeError(f"{place}: expected a tensor or an array, got {type(value).__name__}")
        first = next(iter(found.values()), value)
        if value.dtype != first.dtype or not value.is_floating_point():
            expected = f"one floating dtype, got {value.dtype} beside {first.dtype}"
            raise TypeError(f"{place}: expected {expected}")
        found[name] = value.detach().clone()
    return found


# ---- one layer ------------------------------------------------------------------------------


def _to_ours(own: Layer, source: str, named: Named) -> Layer:
    """A layer in our order of axes and gates, checked."""
    for name in ("W", "U")[: 1 if source == "one_kernel" else 2]:
        if name not in own:
            raise ValueError(f"weights: expected a weight {name} in every layer, got {list(own)}")
        if own[name].dim() != 4 or own[name].shape[-1 if source == "keras" else 0] % 4:
            expected = "four axes and blocks of four gates"
            found = tuple(own[name].shape)
            raise ValueError(f"{named[name][0]}: expected {expected}, got shape {found}")
    if source == "keras":
        own = {n: v.permute(3, 2, 0, 1).contiguous() if n in "WU" else v for n, v in own.items()}
    if source == "one_kernel":
        own = _reordered(own, (0, 1, 3, 2))
        split = own["W"].shape[1] - own["W"].shape[0] // 4
        own = own | {"W": own["W"][:, :split].clone(), "U": own["W"][:, split:].clone()}
    _check_shapes(own, named)
    return own


def _check_shapes(own: Layer, named: Named) -> None:
    rows, kernel = own["W"].shape[0], own["W"].shape[2:]
    shapes: dict[str, tuple[int, ...]] = {"U": (rows, rows // 4, *kernel), "b": (rows,)}
    image = next((own[name].shape[1:] for name in PEEPHOLES if name in own), ())
    shapes |= dict.fromkeys(PEEPHOLES, (rows // 4, *image))
    for name in sorted(own.keys() - {"W"}):
        place, found = named.get(name, named["W"])[0], tuple(own[name].shape)
        if found != shapes[name]:
            raise ValueError(f"{place}: expected a shape for {rows // 4} channels, got {found}")
    if 0 < len(own.keys() & set(PEEPHOLES)) < 3:
        raise ValueError(f"weights: expected {list(PEEPHOLES)} or none of them, got {list(own)}")


def _reordered(own: Layer, order: tuple[int, ...]) -> Layer:
    """The blocks of rows in another order."""
    blocks = {name: value.chunk(4) for name, value in own.items()}
    return {name: torch.cat([parts[k] for k in order]) for name, parts in blocks.items()}


def _keras(value: Tensor) -> Tensor:
    return value.permute(2, 3, 1, 0).contiguous() if value.dim() == 4 else value


def _one_kernel(own: Layer) -> Layer:
    both = {"weight": torch.cat([own["W"], own["U"]], 1)}
    return _reordered(both | ({"bias": own["b"]} if "b" in own else {}), (0, 1, 3, 2))
