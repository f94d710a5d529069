"""How libraries pack gate and value of a gated layer, read and written: every map is a permutation.
Imports torch and gatelib.nn.check.
Must not import gatelib.reference, gatelib.lab or gatelib.data.

A packed weight holds the rows of the gate, whose preactivation is activated, and those of the
value. Nothing in a checkpoint says which is which: the shapes are the same, and a wrong order
computes something else without an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from gatelib.nn.check import check_choice, check_dim, check_sizes, check_tensor

__all__ = ["GLU_LAYOUTS", "GLULayout", "Order", "gated_mlp", "glu_layout"]

Order = Literal["gate_first", "gate_second", "interleaved"]
"""Halves in one order or the other; or blocks of rows in turn, the gate's block first."""


@dataclass(frozen=True)
class GLULayout:
    """How one library writes a gated MLP.

    Args:
        names: of the packed map; or of the gate's map and the value's, where they are two.
        out: the name of the map behind the gate.
        order: of the packed rows.
        block: rows in one block where they are interleaved.
        form: how a parameter is called, from the map's name and "weight" or "bias".
    """

    names: tuple[str, ...]
    out: str
    order: Order = "gate_first"
    block: int = 1
    form: str = "{name}.{kind}"

    def key(self, name: str, kind: str) -> str:
        """The parameter's name."""
        return self.form.format(name=name, kind=kind)

    def keys(self, biased: bool) -> list[str]:
        """The names of all parameters."""
        kinds = ("weight", "bias") if biased else ("weight",)
        return [self.key(name, kind) for name in (*self.names, self.out) for kind in kinds]


GLU_LAYOUTS = {
    "gatelib": GLULayout(("in",), "out", form="{kind}_{name}"),
    "llama": GLULayout(("w1", "w3"), "w2"),
    "hf_llama": GLULayout(("gate_proj", "up_proj"), "down_proj"),
    "hf_phi3": GLULayout(("gate_up_proj",), "down_proj"),
    "t5": GLULayout(("wi_0", "wi_1"), "wo"),
    "modernbert": GLULayout(("Wi",), "Wo"),
    "dinov2": GLULayout(("w12",), "w3"),
    "timm_glu_mlp": GLULayout(("fc1",), "fc2", "gate_second"),
    "timm_swiglu_packed": GLULayout(("fc1",), "fc2"),
    "timm_swiglu": GLULayout(("fc1_g", "fc1_x"), "fc2"),
    "x_transformers": GLULayout(("ff.0.proj",), "ff.2", "gate_second"),
    "megatron": GLULayout(("linear_fc1",), "linear_fc2"),
    "megatron_interleaved": GLULayout(("linear_fc1",), "linear_fc2", "interleaved", 32),
    "gpt_oss": GLULayout(("mlp1",), "mlp2", "interleaved", form="{name}_{kind}"),
}
"""A gated MLP's layouts by name.

gatelib: `gatelib.nn.GatedMLP`. llama: Llama's own code. hf_llama: transformers' LlamaMLP, and with
it Mistral, Qwen and Gemma. hf_phi3: Phi-3, GLM-4. t5: T5 v1.1. modernbert: its `input`, which is
activated, is the gate. dinov2: SwiGLUFFN. timm_glu_mlp: `GluMlp` with `gate_last`, its default; so
does flash-attn's GatedMlp. timm_swiglu_packed: `SwiGLUPacked`. timm_swiglu: `SwiGLU`.
x_transformers: `FeedForward(glu=True)`, without its leading path. megatron: Megatron-LM; and with
rows interleaved by 32, as its fused kernels take them. gpt_oss: gpt-oss's own code, all experts on
a leading axis.
"""


# ---- one packed tensor ----------------------------------------------------------------------


def glu_layout(weight: Tensor, source: str, target: str, block: int = 1, dim: int = 0) -> Tensor:
    """A packed weight or bias, or a packed activation, in another order of gate and value.

    Args:
        weight: a tensor that holds gate and value along one axis, as many rows of each.
        source: the order that it has: "gate_first", "gate_second" (as `torch.nn.functional.glu`
            takes it), "interleaved"; or a layout of `GLU_LAYOUTS` that packs both in one map.
        target: the order that is wanted, likewise.
        block: rows in one block of "interleaved": 1 in gpt-oss, 32 in Megatron's fused kernels. A
            layout by name has its own.
        dim: the axis of the rows: 0 of a torch weight or bias; -1 of an activation, and of a
            weight that is stored transposed, as transformers' gpt-oss has `gate_up_proj`.

    Returns:
        The same numbers in another order, in memory of its own. A map there and back is exact.
        `torch.cat([gate, value])` is "gate_first", and `chunk(2)` takes it apart again.

    Raises:
        TypeError: the weight is no tensor, or `block` or `dim` no integer.
        ValueError: an order is unknown or not packed, there is no such axis, its size is odd, or
            a half doesn't divide into blocks.
    """
    have, want = _packing("source", source, block), _packing("target", target, block)
    check_dim(dim)
    value = check_tensor("weight", weight)
    if not -value.dim() <= dim < value.dim():
        shape = tuple(value.shape)
        raise ValueError(f"dim: expected an axis of the weight's shape {shape}, got {dim}")
    return torch.cat(_order(*_halves(value, have, dim), want, dim), dim)


@dataclass(frozen=True)
class _Packing:
    order: str
    block: int
    argument: str
    name: str


def _packing(argument: str, name: str, block: int) -> _Packing:
    check_sizes(block=block)
    check_choice(argument, name, [*get_args(Order), *GLU_LAYOUTS])
    if name not in GLU_LAYOUTS:
        return _Packing(name, block, argument, name)
    known = GLU_LAYOUTS[name]
    if len(known.names) > 1:
        both = " and ".join(known.names)
        raise ValueError(
            f"{argument}: expected a layout that packs gate and value, and {name!r} has {both}: "
            "torch.cat of both, in this order, is 'gate_first'"
        )
    return _Packing(known.order, known.block, argument, name)


def _halves(weight: Tensor, packing: _Packing, dim: int) -> tuple[Tensor, Tensor]:
    """Gate and value."""
    _check_divides(weight, packing, dim)
    if packing.order == "interleaved":
        turns = torch.split(weight, packing.block, dim)
        return torch.cat(turns[::2], dim), torch.cat(turns[1::2], dim)
    first, second = weight.chunk(2, dim)
    return (first, second) if packing.order == "gate_first" else (second, first)


def _order(gate: Tensor, value: Tensor, packing: _Packing, dim: int) -> list[Tensor]:
    """The pieces of both, one behind the other."""
    if packing.order != "interleaved":
        return [gate, value] if packing.order == "gate_first" else [value, gate]
    _check_divides(torch.cat([gate, value], dim), packing, dim)
    turns = (torch.split(half, packing.block, dim) for half in (gate, value))
    return [part for pair in zip(*turns, strict=True) for part in pair]


def _check_divides(weight: Tensor, packing: _Packing, dim: int) -> None:
    rows, shape = weight.size(dim), tuple(weight.shape)
    if rows == 0 or rows % 2:
        raise ValueError(
            f"weight: expected as many rows of gate and value along axis {dim}, got {rows} in "
            f"shape {shape}"
        )
    if packing.order == "interleaved" and rows // 2 % packing.block:
        raise ValueError(
            f"{packing.argument}: {packing.name!r} has blocks of {packing.block} rows, and half of "
            f"{rows} along axis {dim} is {rows // 2}, which they don't divide"
        )


# ---- the parameters of a gated MLP ----------------------------------------------------------


def gated_mlp(weights: Mapping[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    """The parameters of a gated MLP in another library's names and order.

    Args:
        weights: a `state_dict` of the MLP alone, by the names of the layout `source`. Weights are
            (rows, features), with any leading axes, of experts say; biases, if any, all of them.
        source: the layout that `weights` have, one of `GLU_LAYOUTS`.
        target: the layout that is wanted.

    Returns:
        Tensors in memory of their own: the same numbers, so that a map there and back is exact and
        both compute the same where their activations are the same. That isn't said by names: the
        rows of two libraries with GELU may mean its exact form here and the tanh form there.

    Raises:
        TypeError: a weight is no tensor.
        ValueError: a layout is unknown, names or shapes aren't its own, or rows don't divide.
    """
    for argument, name in {"source": source, "target": target}.items():
        check_choice(argument, name, GLU_LAYOUTS)
    have, want = GLU_LAYOUTS[source], GLU_LAYOUTS[target]
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights: expected a mapping of names, got {type(weights).__name__}")
    biased = any(have.key(name, "bias") in weights for name in (*have.names, have.out))
    if set(weights) != set(have.keys(biased)):
        expected = have.keys(biased)
        raise ValueError(
            f"weights: expected {expected} in the layout {source!r}, got {list(weights)}"
        )
    found = {}
    for kind, dim in (("weight", -2), ("bias", -1))[: 1 + biased]:
        gate, value = _both(weights, have, source, kind, dim)
        packing = _Packing(want.order, want.block, "target", target)
        split = len(want.names) > 1
        parts = [gate, value] if split else [torch.cat(_order(gate, value, packing, dim), dim)]
        parts.append(_out(weights, have, kind, gate))
        for name, part in zip((*want.names, want.out), parts, strict=True):
            found[want.key(name, kind)] = part.detach().clone()
    return {key: found[key] for key in want.keys(biased)}


def _both(
    weights: Mapping[str, Tensor], layout: GLULayout, source: str, kind: str, dim: int
) -> tuple[Tensor, Tensor]:
    """The rows of gate and value, from one tensor or two."""
    keys = [layout.key(name, kind) for name in layout.names]
    given = [check_tensor(f"weights[{key!r}]", weights[key]) for key in keys]
    for key, value in zip(keys, given, strict=True):
        if value.dim() < -dim:
            expected = f"{-dim} axes at least"
            raise ValueError(f"weights[{key!r}]: expected {expected}, got {tuple(value.shape)}")
    if len(given) == 1:
        return _halves(given[0], _Packing(layout.order, layout.block, "source", source), dim)
    if given[0].shape != given[1].shape:
        shapes = tuple(given[0].shape), tuple(given[1].shape)
        raise ValueError(f"weights[{keys[1]!r}]: expected shape {shapes[0]}, got {shapes[1]}")
    return given[0], given[1]


def _out(weights: Mapping[str, Tensor], layout: GLULayout, kind: str, gate: Tensor) -> Tensor:
    key = layout.key(layout.out, kind)
    value = check_tensor(f"weights[{key!r}]", weights[key])
    if kind == "weight" and (value.dim() < 2 or value.size(-1) != gate.size(-2)):
        raise ValueError(
            f"weights[{key!r}]: expected (..., {gate.size(-2)}), one column for each gate, got "
            f"{tuple(value.shape)}"
        )
    return value
