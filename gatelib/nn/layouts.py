"""How libraries and papers lay out the weights of recurrent layers, read and written.
Imports NumPy, torch.
Must not import gatelib.reference, gatelib.lab or gatelib.data.

A layout is a row of data. Its arrays come in one of three forms, and are read into one mapping for
each direction of each layer, checked, and written back from such mappings.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "LAYOUTS",
    "LSTM_LAYOUTS",
    "RNN_LAYOUTS",
    "Arrays",
    "Layout",
    "Weights",
    "checked",
    "hidden_size",
    "read",
    "written",
]

Weights = dict[str, Tensor]
Arrays = dict[str, tuple[str, Any]]
"""By the layout's names: where a user finds an array, and the array."""
BACKWARD = "backward_"
Form = Literal["state_dict", "named", "stacked"]


@dataclass(frozen=True)
class Layout:
    """How one library or paper writes a recurrent layer.

    Args:
        names: of the input weights, the recurrent weights and the bias or biases.
        order: the gates in the order of their blocks; n is a GRU's candidate, g an LSTM's.
        reset: whether r multiplies h "before" the product with U, or the product "after" it;
            None where there is no reset gate.
        writes: whether z is the share that is written rather than the share that is kept.
        transposed: whether matrices are (features, rows), and two biases one array (2, rows).
        biases: 1, or 2 where U h has a bias of its own.
        form: "state_dict" is one mapping whose names end in `_l0`, `_l0_reverse`, `_l1`, …; "named"
            is a mapping for each layer, where the names of a reverse direction begin with
            `backward_`; "stacked" is a mapping for each layer whose arrays have the directions on
            their first axis, both biases behind each other.
    """

    names: tuple[str, ...]
    order: str = "rzn"
    reset: Literal["before", "after"] | None = "after"
    writes: bool = False
    transposed: bool = False
    biases: int = 2
    form: Form = "named"

    @property
    def arrays(self) -> tuple[str, ...]:
        """A name for each array of one direction; a stacked bias is two of them."""
        return (*self.names[:2], "B_first", "B_second") if self.form == "stacked" else self.names


TORCH = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
PACKED = ("W", "U", "b")
KERAS = ("kernel", "recurrent_kernel", "bias")
ONNX = ("W", "R", "B")
LAYOUTS = {
    "torch": Layout(TORCH, form="state_dict"),
    "torch_before": Layout(TORCH, reset="before", form="state_dict"),
    "keras": Layout(KERAS, "zrn", transposed=True),
    "keras_before": Layout(KERAS, "zrn", "before", transposed=True, biases=1),
    "onnx": Layout(ONNX, "zrn", form="stacked"),
    "onnx_before": Layout(ONNX, "zrn", "before", form="stacked"),
    "cho": Layout(PACKED, reset="before", biases=1),
    "cho_v1": Layout(PACKED, biases=1),
    "chung": Layout(PACKED, reset="before", writes=True, biases=1),
    "gru": Layout((*PACKED, "b_u")),
}
"""A GRU's layouts by name.

torch: `torch.nn.GRU`, as cuDNN. torch_before: `gatelib.nn.GRU` with `reset_after=False`, whose
`state_dict` has the same names and shapes. keras: `keras.layers.GRU` with `reset_after=True`, its
default. keras_before: with `reset_after=False`. onnx: the operator GRU with `linear_before_reset`
1; onnx_before: with 0, its default. cho: Cho et al. 2014 as printed (arXiv:1406.1078v3). cho_v1:
its first two versions. chung: Chung et al. 2014 (arXiv:1412.3555). The papers print no biases;
they have one here. gru, cho and chung are packed as `gatelib.reference.gru` packs them.
"""


def _plain_layouts(order: str) -> dict[str, Layout]:
    """The layouts of a cell without a reset gate, whose one bias may be written as two."""
    same = {"order": order, "reset": None}
    single = {**same, "biases": 1}
    layouts: dict[str, Any] = {
        "torch": (TORCH, {**same, "form": "state_dict"}),
        "recurrent": (TORCH[:3], {**single, "form": "state_dict"}),
        "keras": (KERAS, {**single, "transposed": True}),
        "onnx": (ONNX, {**same, "order": order.replace("ifgo", "iofg"), "form": "stacked"}),
        "reference": (PACKED, single),
    }
    return {name: Layout(names, **options) for name, (names, options) in layouts.items()}


LSTM_LAYOUTS = _plain_layouts("ifgo")
"""An LSTM's layouts by name.

torch: `torch.nn.LSTM`, as cuDNN; gates i, f, g, o and two biases. recurrent:
`gatelib.nn.Recurrent` of the Spec LSTM, which has one bias. keras: `keras.layers.LSTM`; blocks i,
f, c, o, one bias, in which `unit_forget_bias` is counted already. onnx: the operator LSTM; blocks
i, o, f, c. reference: as `gatelib.reference.lstm` packs them.
"""
RNN_LAYOUTS = _plain_layouts("h")
"""A plain RNN's layouts: `torch.nn.RNN`, `gatelib.nn.Recurrent` of one gate,
`keras.layers.SimpleRNN`, ONNX's operator RNN, `gatelib.reference.rnn`."""


# ---- reading and writing the three forms ----------------------------------------------------


def read(weights: Any, layout: Layout, name: str) -> list[list[Arrays]]:
    """The arrays of each direction of each layer."""
    if layout.form == "state_dict":
        return _read_state_dict(_mapping("weights", weights), layout, name)
    if isinstance(weights, Mapping):
        return [_read_layer("weights", weights, layout, name)]
    if not isinstance(weights, Sequence) or isinstance(weights, str) or not len(weights):
        expected = "a mapping, or a list with one for each layer"
        raise TypeError(f"weights: expected {expected}, got {type(weights).__name__}")
    return [
        _read_layer(where, _mapping(where, own), layout, name)
        for where, own in ((f"weights[{k}]", own) for k, own in enumerate(weights))
    ]


def _mapping(where: str, weights: object) -> Mapping[str, Any]:
    if not isinstance(weights, Mapping):
        raise TypeError(f"{where}: expected a mapping of names, got {type(weights).__name__}")
    return weights


def _read_state_dict(weights: Mapping[str, Any], layout: Layout, name: str) -> list[list[Arrays]]:
    places = [place for key in weights if (place := re.search(r"_l(\d+)(_reverse)?$", key))]
    depth = min(max((int(place[1]) for place in places), default=0), len(weights)) + 1
    ways = 2 if any(place[2] for place in places) else 1
    ends = [_ends(layer, ways) for layer in range(depth)]
    bases = _present(weights, layout.names, "bias_")
    _check_names(
        "weights", weights, [b + end for both in ends for end in both for b in bases], name
    )
    return [
        [{b: (f"weights[{b + end!r}]", weights[b + end]) for b in bases} for end in both]
        for both in ends
    ]


def _ends(layer: int, ways: int) -> list[str]:
    return [f"_l{layer}", f"_l{layer}_reverse"][:ways]


def _present(weights: Mapping[str, Any], names: tuple[str, ...], *beginnings: str) -> Any:
    """The names of a layer's arrays: without those of biases where there is none."""
    return names if any(key.startswith(beginnings) for key in weights) else names[:2]


def _check_names(
    where: str, weights: Mapping[str, Any], expected: Sequence[str], name: str
) -> None:
    if set(weights) != set(expected):
        raise ValueError(
            f"{where}: expected {list(expected)} in the layout {name!r}, got {list(weights)}"
        )


def _read_layer(where: str, weights: Mapping[str, Any], layout: Layout, name: str) -> list[Arrays]:
    """One layer of a form that has a mapping for each."""
    stacked = layout.form == "stacked"
    behind = layout.names[2:]
    bases = _present(weights, layout.names, *behind, *(BACKWARD + b for b in behind))
    ways = 1 + (not stacked and any(key.startswith(BACKWARD) for key in weights))
    beginnings = ("", BACKWARD)[:ways]
    _check_names(where, weights, [first + base for first in beginnings for base in bases], name)
    if stacked:
        return _unstacked({b: (f"{where}[{b!r}]", weights[b]) for b in bases}, layout)
    return [
        {b: (f"{where}[{first + b!r}]", weights[first + b]) for b in bases} for first in beginnings
    ]


def _unstacked(own: Arrays, layout: Layout) -> list[Arrays]:
    """Each direction of arrays that have the directions on their first axis."""
    tensors = {base: (where, _tensor(where, value)) for base, (where, value) in own.items()}
    ways = {len(value) if value.dim() else 0 for _, value in tensors.values()}
    if len(ways) > 1 or not ways <= {1, 2}:
        shapes = {base: tuple(value.shape) for base, (_, value) in tensors.items()}
        raise ValueError(f"weights: expected 1 or 2 directions on the first axis, got {shapes}")
    found = []
    for way in range(ways.pop()):
        arrays = {base: (where, value[way]) for base, (where, value) in tensors.items()}
        if len(arrays) > 2:
            where, both = arrays.pop(layout.names[2])
            halves = both.tensor_split(2) if both.dim() else (both, both)
            arrays |= {
                key: (where, half) for key, half in zip(layout.arrays[2:], halves, strict=True)
            }
        found.append(arrays)
    return found


def written(layers: list[list[Weights]], layout: Layout, name: str) -> Any:
    """The weights of all layers in the form of their layout."""
    if layout.form == "state_dict":
        _check_alike(layers, name)
        return {
            base + end: value
            for k, ways in enumerate(layers)
            for end, own in zip(_ends(k, len(ways)), ways, strict=True)
            for base, value in own.items()
        }
    found = [_written_layer(ways, layout) for ways in layers]
    return found[0] if len(found) == 1 else found


def _check_alike(layers: list[list[Weights]], name: str) -> None:
    """Layers that share one state_dict have the same names, directions and hidden size."""
    first = layers[0][0]
    hidden, ways = first["weight_hh"].shape[1], len(layers[0])
    for k, own in enumerate(layers):
        features = own[0]["weight_ih"].shape[1]
        sizes = {(len(own), way["weight_hh"].shape[1], *way) for way in own}
        if sizes != {(ways, hidden, *first)} or (k > 0 and features != ways * hidden):
            raise ValueError(
                f"weights[{k}]: expected the directions, hidden size {hidden} and biases of the "
                f"first layer, and its outputs as input, since {name!r} has one set of sizes"
            )


def _written_layer(ways: list[Weights], layout: Layout) -> dict[str, Any]:
    if layout.form == "named":
        found = {
            first + base: value
            for first, own in zip(("", BACKWARD), ways, strict=False)
            for base, value in own.items()
        }
    else:
        arrays = [list(own.values()) for own in ways]
        both = [[w, u, torch.cat(biases)] if biases else [w, u] for w, u, *biases in arrays]
        stacks = [torch.stack(parts) for parts in zip(*both, strict=True)]
        found = dict(zip(layout.names, stacks, strict=False))
    return {key: _array(value) for key, value in found.items()}


def _array(value: Tensor) -> Any:
    if value.dtype == torch.bfloat16:
        raise TypeError("weights: expected a dtype that NumPy has, got torch.bfloat16; widen it")
    return value.cpu().numpy()


# ---- one direction of one layer -------------------------------------------------------------


def _tensor(where: str, value: object) -> Tensor:
    if isinstance(value, np.ndarray):
        return torch.as_tensor(np.ascontiguousarray(value))
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: expected a tensor or an array, got {type(value).__name__}")
    return value.detach()


def hidden_size(weights: Weights, layout: Layout) -> int:
    """H, from the recurrent weights."""
    return int(weights[layout.arrays[1]].shape[0 if layout.transposed else -1])


def checked(own: Arrays, layout: Layout) -> Weights:
    """The weights as tensors of one dtype, with the shapes of their layout."""
    tensors = {base: _tensor(where, value) for base, (where, value) in own.items()}
    first = next(iter(tensors.values()))
    for base in layout.arrays[:2]:
        if tensors[base].dim() != 2:
            found = tuple(tensors[base].shape)
            raise ValueError(f"{own[base][0]}: expected a matrix, got shape {found}")
    features = int(first.shape[0 if layout.transposed else -1])
    shapes = _shapes(layout, features, hidden_size(tensors, layout))
    for (base, value), shape in zip(tensors.items(), shapes, strict=False):
        where, found = own[base][0], tuple(value.shape)
        if found != shape:
            halves = " for each half" if layout.form == "stacked" and base not in "WR" else ""
            raise ValueError(f"{where}: expected shape {shape}{halves}, got {found}")
        if value.dtype != first.dtype or not first.is_floating_point():
            raise TypeError(
                f"{where}: expected one floating dtype, got {value.dtype} beside {first.dtype}"
            )
    return tensors


def _shapes(layout: Layout, features: int, hidden: int) -> list[tuple[int, ...]]:
    rows = len(layout.order) * hidden
    matrices: list[tuple[int, ...]] = [(rows, features), (rows, hidden)]
    if layout.transposed:
        bias: list[tuple[int, ...]] = [(2, rows) if layout.biases == 2 else (rows,)]
        return [shape[::-1] for shape in matrices] + bias
    return matrices + [(rows,)] * layout.biases
