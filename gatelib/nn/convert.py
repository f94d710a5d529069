"""Weights of recurrent layers and gated MLPs from one library's or paper's layout to another's.
Imports torch, and of gatelib.nn check, drop_in, layouts and attention_, conv_ and glu_layouts.
Must not import gatelib.reference, gatelib.lab or gatelib.data.

Layouts differ in four ways. Names, order and transposition of the blocks always have a map. So has
the sense of the update gate: 1 - sigmoid(a) = sigmoid(-a), so its weights change sign. Two biases
become one where the reset gate doesn't stand between them. Whether the reset gate acts before or
after the product with U has no map, and a request for one is refused. Gated MLPs differ in names
and in the order of gate and value alone (`glu_layout`, `gated_mlp`); so do the gates of attention
(`attention_gates`, `sink_column`), and those of GTrXL in names and transposition (`gtrxl_gate`).
"""

import copy
import re
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import nn

from gatelib.nn.attention_layouts import (
    GTRXL_LAYOUTS,
    GTrXLLayout,
    attention_gates,
    gtrxl_gate,
    sink_column,
)
from gatelib.nn.check import check_choice
from gatelib.nn.conv_layouts import CONV_LAYOUTS, conv_lstm
from gatelib.nn.drop_in import DropIn
from gatelib.nn.glu_layouts import GLU_LAYOUTS, GLULayout, gated_mlp, glu_layout
from gatelib.nn.layouts import (
    LAYOUTS,
    LSTM_LAYOUTS,
    RNN_LAYOUTS,
    Arrays,
    Layout,
    Weights,
    checked,
    hidden_size,
    read,
    written,
)

__all__ = [
    "CONV_LAYOUTS",
    "GLU_LAYOUTS",
    "GTRXL_LAYOUTS",
    "LAYOUTS",
    "LSTM_LAYOUTS",
    "RNN_LAYOUTS",
    "GLULayout",
    "GTrXLLayout",
    "Layout",
    "add_biases",
    "attention_gates",
    "conv_lstm",
    "gated_mlp",
    "glu_layout",
    "gru",
    "gtrxl_gate",
    "lstm",
    "rnn",
    "sink_column",
    "to_torch",
]


def gru(weights: Any, source: str, target: str) -> Any:
    """The weights of a GRU in another layout.

    Args:
        weights: tensors or NumPy arrays by the names of the layout `source`. For torch that is a
            `state_dict`, of any number of layers and directions. For Keras,
            `dict(zip(("kernel", "recurrent_kernel", "bias"), layer.get_weights()))`; a layer in
            `Bidirectional` has the same names again behind `backward_`. For ONNX, the operator's
            inputs `W`, `R` and `B`, one direction or two. Several layers are a list of such
            mappings. Biases may be absent, all of them.
        source: the layout that `weights` have, one of `LAYOUTS`.
        target: the layout that is wanted.

    Returns:
        Tensors for torch's layouts, NumPy arrays for the others, in the dtype of `weights`; nothing
        shares memory with them. A list of mappings where there are several layers and the layout
        has one mapping for each. The layer computes the same function of every input. A map there
        and back gives the same weights, but for two biases of which only the sum acts: they
        become one, and return as their sum and 0.

    Raises:
        TypeError: a weight is neither a tensor nor an array, or dtypes differ.
        ValueError: a layout is unknown, names or shapes aren't its own, the reset gate acts before
            the product in one layout and after it in the other, or the bias of U h that r
            multiplies isn't 0 and `target` has no place for it.
    """
    return _converted(LAYOUTS, weights, source, target)


def lstm(weights: Any, source: str, target: str) -> Any:
    """The weights of an LSTM in another layout, one of `LSTM_LAYOUTS`; otherwise as `gru`.

    A projection (`proj_size`) and ONNX's peepholes have no place in the other layouts; weights
    that have them are refused.
    """
    return _converted(LSTM_LAYOUTS, weights, source, target)


def rnn(weights: Any, source: str, target: str) -> Any:
    """The weights of a plain RNN in another layout, one of `RNN_LAYOUTS`; otherwise as `gru`."""
    return _converted(RNN_LAYOUTS, weights, source, target)


def _converted(layouts: Mapping[str, Layout], weights: Any, source: str, target: str) -> Any:
    have, want = _layout(layouts, "source", source), _layout(layouts, "target", target)
    if have.reset != want.reset:
        raise ValueError(
            f"target: {source!r} has the reset gate {have.reset} the product with U and {target!r} "
            f"has it {want.reset}. U(r*h) scales the columns of U and r*(U h) its rows, so no "
            "weights make them equal. Train again, or take a layer of the same convention"
        )

    layers = [
        [_turned(own, have, want, target) for own in ways] for ways in read(weights, have, source)
    ]
    return written(layers, want, target)


def _turned(own: Arrays, have: Layout, want: Layout, target: str) -> Weights:
    """The arrays of one direction of one layer as `want` has them; no biases if it has none."""
    tensors = checked(own, have)
    biased = len(tensors) > 2
    if not biased:
        rows = len(have.order) * hidden_size(tensors, have)
        shape = (2, rows) if have.transposed and have.biases == 2 else (rows,)
        zeros = next(iter(tensors.values())).new_zeros(shape)
        tensors |= dict.fromkeys(have.arrays[2:], zeros)
    parts = _unpacked(tensors, have)
    if want.biases == 1:
        parts = _one_bias(parts, want, target)
    packed = _packed(parts, want)
    return packed if biased else {name: packed[name] for name in want.arrays[:2]}


def _layout(layouts: Mapping[str, Layout], argument: str, name: str) -> Layout:
    check_choice(argument, name, layouts)
    return layouts[name]


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
        for gate, block in zip(layout.order, packed.chunk(len(layout.order)), strict=True):
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
    return dict(zip(layout.arrays, (w, u, *biases), strict=True))


def _one_bias(parts: Weights, layout: Layout, target: str) -> Weights:
    """Add the second bias to the first, unless r stands between them and it isn't 0."""
    if layout.reset == "after" and parts["v_n"].any():
        raise ValueError(
            f"target: {target!r} has one bias, and the candidate's bias on U h, which the reset "
            f"gate multiplies, is not 0 (up to {float(parts['v_n'].abs().max()):.2g}); it can't be "
            "moved out of the gate's reach"
        )
    summed = {f"b_{k}": parts[f"b_{k}"] + parts[f"v_{k}"] for k in layout.order}
    return parts | summed | {f"v_{k}": torch.zeros_like(parts[f"v_{k}"]) for k in layout.order}


# ---- whole models ---------------------------------------------------------------------------


def to_torch(model: nn.Module) -> nn.Module:
    """A copy of a model in which each drop-in is torch's own layer, with the same weights.

    For tools that go by torch's classes: `torch.ao.quantization.quantize_dynamic` passes over an
    LSTM of this library, and quantizes torch's.

    Raises:
        TypeError: `model` is no module.
        ValueError: the model holds a GRU whose reset gate acts before the product, which torch
            doesn't have.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    held = nn.ModuleDict({"model": copy.deepcopy(model)})
    twins: dict[nn.Module, nn.Module] = {}
    for parent in list(held.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, DropIn):
                twins[child] = twins.get(child) or _twin(child)
                parent._modules[name] = twins[child]
    return held["model"]


def _twin(layer: Any) -> nn.Module:
    """torch's layer of the same kind, with the parameters of this one."""
    if not getattr(layer, "reset_after", True):
        raise ValueError("model: expected no GRU with reset_after=False, which torch doesn't have")
    names = ("num_layers", "batch_first", "dropout", "bidirectional", "proj_size", "nonlinearity")
    options = {name: getattr(layer, name) for name in names if getattr(layer, name, None)}
    make: Any = getattr(nn, type(layer).__name__)
    twin = make(layer.input_size, layer.hidden_size, bias=layer.bias, device="meta", **options)
    twin.load_state_dict(layer.state_dict(keep_vars=True), assign=True)
    return twin.train(layer.training)  # type: ignore[no-any-return]


# ---- checkpoints of torch's layers ------------------------------------------------------------


def add_biases(
    state: MutableMapping[str, Any], prefix: str, known: Collection[str], gates: Sequence[str]
) -> list[str]:
    """Make a checkpoint of torch's LSTM or RNN fit a layer that has one bias; `state` is changed.

    A `bias_hh` that the layer doesn't have is added to the `bias_ih` beside it, where the blocks
    of both are in the same order: the gates i, f, g, o of an LSTM, or one gate.

    Args:
        state: a state_dict.
        prefix: what stands before the layer's names in it.
        known: the names of the layer's parameters, without the prefix.
        gates: the gates of the layer's cell, in the order of their blocks.

    Returns: for each bias that can't be used, why; empty where all is well.
    """
    problems = []
    for key in [k for k in state if k.startswith(f"{prefix}bias_")]:
        name = key.removeprefix(prefix)
        partner = name.replace("bias_hh", "bias_ih")
        if name in known or not re.fullmatch(r"bias_[ih]h_l\d+(_reverse)?", name):
            continue
        if partner == name or partner not in known:
            problems.append(f"{key}: expected no bias, since the layer was made with bias=False")
        elif len(gates) > 1 and tuple(gates) != ("i", "f", "g", "o"):
            problems.append(
                f"{key}: expected one bias, `{partner}`, for a cell with the gates "
                f"{', '.join(gates)}; which blocks of two biases belong together isn't known. Add "
                "them up yourself, in this order"
            )
        elif prefix + partner not in state:
            problems.append(f"{key}: expected `{partner}` beside it, which it is added to")
        else:
            state[prefix + partner] = state[prefix + partner] + state.pop(key)
    return problems
