"""How programs lay out gated attention, read and written: rows of gates, sinks, gates of GTrXL.
Imports torch and gatelib.nn.check.
Must not import gatelib.reference, gatelib.lab or gatelib.data.

Where a program keeps the rows of the output gate in its projection of queries, nothing in a
checkpoint says how: the shapes are the same, and a wrong order gates with queries and asks with
gates, without an error. Every map here is a permutation, so that there and back is exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from gatelib.nn.check import check_choice, check_dim, check_sizes, check_tensor

__all__ = [
    "GTRXL_LAYOUTS",
    "GTrXLLayout",
    "Rows",
    "attention_gates",
    "gtrxl_gate",
    "sink_column",
]

Rows = Literal["per_group", "per_head", "tail"]
"""Where the rows of the gates are: behind the queries of each group of heads that share keys and
values; behind those of each head; behind all."""


def attention_gates(
    weight: Tensor,
    source: str,
    target: str,
    heads: int,
    groups: int,
    per: str = "element",
    dim: int = 0,
) -> Tensor:
    """A projection of queries that holds the rows of an output gate too, in another order.

    Args:
        weight: weight or bias, or an activation, with H*d rows of queries and along the same axis
            H*d of gates, or H where each head has one.
        source: the order that it has: "per_group", as the authors' code for Qwen3 has it; or
            "per_head", as Qwen3-Next has it in transformers; or "tail", all gates behind all
            queries, so that `split([H*d, ...])` gives the rows of q in `in_proj_weight` and
            `gate_weight` of `gatelib.nn.GatedAttention`.
        target: the order that is wanted, likewise. With one head in each group "per_group" is
            "per_head"; with one group it is "tail".
        heads: H.
        groups: of heads that share keys and values, a divisor of H.
        per: whether there is a gate for each "element" of a head's features, or for each "head".
        dim: the axis of the rows.

    Returns:
        The same numbers in another order, in memory of their own.

    Raises:
        TypeError: the weight is no tensor, or a size or `dim` no integer.
        ValueError: an order is unknown, there is no such axis, or its rows don't divide.

    Source: Qiu et al. 2025, arXiv:2505.06708, with its code; transformers' Qwen3-Next.
    """
    value = check_tensor("weight", weight)
    check_sizes(heads=heads, groups=groups)
    check_dim(dim)
    check_choice("source", source, get_args(Rows))
    check_choice("target", target, get_args(Rows))
    check_choice("per", per, ("element", "head"))
    if heads % groups:
        raise ValueError(f"groups: expected a divisor of heads = {heads}, got {groups}")
    if not -value.dim() <= dim < value.dim():
        shape = tuple(value.shape)
        raise ValueError(f"dim: expected an axis of the weight's shape {shape}, got {dim}")
    rows, share = value.size(dim), 2 if per == "element" else 1
    size = rows // (share * heads) - (per == "head")
    if size < 1 or rows != heads * size + heads * (size if per == "element" else 1):
        expected = f"{heads} heads of d queries and {'d gates' if share == 2 else 'a gate'} each"
        raise ValueError(f"weight: expected rows of {expected} along axis {dim}, got {rows}")
    gate = size if per == "element" else 1
    have = _places(source, heads, groups, size, gate)
    want = _places(target, heads, groups, size, gate)
    order = torch.empty(rows, dtype=torch.long)
    order[want] = have
    return value.index_select(dim, order.to(value.device))


def _places(order: str, heads: int, groups: int, size: int, gate: int) -> Tensor:
    """Where the rows of all queries, then of all gates, are in an order: (rows,)."""
    blocks = {"per_group": groups, "per_head": heads, "tail": 1}[order]
    rows = torch.arange(heads * (size + gate)).view(blocks, -1)
    queries = heads // blocks * size
    return torch.cat([rows[:, :queries].flatten(), rows[:, queries:].flatten()])


def sink_column(values: Tensor, source: str, target: str, dim: int = -1) -> Tensor:
    """Scores or weights with a sink's column among those of the keys, moved.

    Args:
        values: with S keys and one sink along an axis.
        source: where the sink is: "first", as in x-transformers, or "last", as in gpt-oss.
        target: where it is wanted, likewise.
        dim: the axis of the keys.

    Returns:
        The same numbers in another order, in memory of their own. A softmax over the axis is the
        same before and after, to rounding; only what drops the sink's column must know where it is.

    Raises:
        TypeError: `values` is no tensor, or `dim` no integer.
        ValueError: a place is unknown, or there is no such axis, or nothing along it.
    """
    found = check_tensor("values", values)
    check_dim(dim)
    for argument, place in {"source": source, "target": target}.items():
        check_choice(argument, place, ("first", "last"))
    if not -found.dim() <= dim < found.dim() or found.size(dim) == 0:
        shape = tuple(found.shape)
        raise ValueError(f"values: expected a sink along axis {dim} (dim), got shape {shape}")
    steps = 0 if source == target else (1 if target == "first" else -1)
    return torch.roll(found, steps, dim) if steps else found.clone()


@dataclass(frozen=True)
class GTrXLLayout:
    """How one program writes a gate of GRU type between a stream x and a submodule's output y.

    Args:
        of_y, of_x: the names of the matrices of y and of x, in the order r, z, h.
        bias: the name of the bias that z's preactivation is lowered by.
        transposed: whether a matrix is (inputs, outputs), multiplied from the right.
        reset: whether r multiplies x "before" the product with U_h, or the product "after" it.
    """

    of_y: tuple[str, ...]
    of_x: tuple[str, ...]
    bias: str = "bias"
    transposed: bool = False
    reset: Literal["before", "after"] = "before"

    @property
    def names(self) -> list[str]:
        """The names of all parameters."""
        return [*self.of_y, *self.of_x, self.bias]


GTRXL_LAYOUTS = {
    "gatelib": GTrXLLayout(("weight_y",), ("weight_x",)),
    "rllib": GTrXLLayout(("_w_r", "_w_z", "_w_h"), ("_u_r", "_u_z", "_u_h"), "_bias_z", True),
    "episodic_ppo": GTrXLLayout(
        ("Wr.weight", "Wz.weight", "Wg.weight"), ("Ur.weight", "Uz.weight", "Ug.weight"), "bg"
    ),
    "x_transformers": GTrXLLayout(
        ("gru.weight_ih",), ("gru.weight_hh",), "gru.bias", False, "after"
    ),
}
"""The gate's layouts by name.

gatelib: `gatelib.nn.GTrXLGate`. rllib: RLlib's `GRUGate`, whose inputs are (stream, submodule).
episodic_ppo: MarcoMeter's episodic-transformer-memory-ppo, and DI-engine. x_transformers:
`GRUGating`, a `torch.nn.GRUCell`, which resets after the product and has no map to the others.
"""


def gtrxl_gate(weights: Mapping[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    """The parameters of a gate of GTrXL in another program's names and matrices.

    Args:
        weights: a `state_dict` of one gate, by the names of the layout `source`.
        source: the layout that they have, one of `GTRXL_LAYOUTS`.
        target: the layout that is wanted.

    Returns:
        Tensors in memory of their own, the same numbers: the gate computes the same.

    Raises:
        TypeError: a weight is no tensor.
        ValueError: a layout is unknown, names or shapes aren't its own, or r acts before the
            product with U_h in one layout and after it in the other.
    """
    for argument, name in {"source": source, "target": target}.items():
        check_choice(argument, name, GTRXL_LAYOUTS)
    have, want = GTRXL_LAYOUTS[source], GTRXL_LAYOUTS[target]
    if have.reset != want.reset:
        raise ValueError(
            f"target: {source!r} resets the stream {have.reset} the product with U_h and "
            f"{target!r} {want.reset} it. U(r*x) scales the columns of U and r*(U x) its rows, so "
            "no weights make them equal; nor has a GRUCell GTrXL's bias on z alone. Train again"
        )
    if set(weights) != set(have.names) and have.reset == "before":
        raise ValueError(f"weights: expected {have.names} in {source!r}, got {list(weights)}")
    if source == target:
        return {name: value.detach().clone() for name, value in weights.items()}
    bias = check_tensor(f"weights[{have.bias!r}]", weights[have.bias])
    found: dict[str, Tensor] = {}
    for mine, theirs in ((have.of_y, want.of_y), (have.of_x, want.of_x)):
        blocks = [block for name in mine for block in _blocks(weights, name, have, bias)]
        blocks = [block.t() if have.transposed != want.transposed else block for block in blocks]
        parts = [torch.cat(blocks)] if len(theirs) == 1 else blocks
        found |= dict(zip(theirs, parts, strict=True))
    found[want.bias] = bias
    return {name: found[name].detach().clone() for name in want.names}


def _blocks(
    weights: Mapping[str, Tensor], name: str, layout: GTrXLLayout, bias: Tensor
) -> tuple[Tensor, ...]:
    """The (D, D) matrices of one parameter."""
    value, size = check_tensor(f"weights[{name!r}]", weights[name]), bias.numel()
    expected = (3 * size if len(layout.of_y) == 1 else size, size)
    if tuple(value.shape) != expected:
        shape = tuple(value.shape)
        raise ValueError(f"weights[{name!r}]: expected {expected}, got {shape}")
    return torch.split(value, size)
