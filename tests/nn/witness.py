"""A cell run as its author's text says, by torch's own functions: it never saw a Spec or a kernel.

Imports torch, gatelib.cell, gatelib.nn and tests.strategies.
Must not import gatelib.kernels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gatelib.cell import cell
from gatelib.nn import Recurrent
from tests.judge import in_torch
from tests.strategies import Written

PACKED = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def by_text(
    stages: Sequence[Written], own: dict[str, Tensor], x: Tensor, states: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """h of every step and the final states, (T, B, H) and {name: (B, H)}, of one direction."""
    known, ys = cell([stage.spec for stage in stages]), []
    for x_t in x:
        given = {f"{name}_prev": states[name] for name in known.carries}
        given |= {name: own[name] for name in known.vectors}
        source, first, like = states["h"], 0, states["h"]
        for stage in stages:
            gates = known.gates_of(stage.spec)
            rows = slice(first * like.shape[1], (first + len(gates)) * like.shape[1])
            given |= _preactivations(known, gates, own, rows, x_t, source)
            found = stage.run(in_torch(), given)
            made = {v: _real(found[v], like) for v in stage.outputs}
            given |= made
            source, first = made.get("q", source).expand_as(like), first + len(gates)
        states = {name: given[name].expand_as(like) for name in states}
        ys.append(states["h"])
    return torch.stack(ys), states


def _real(value, like: Tensor) -> Tensor:
    """A number or a tensor as a tensor; what Python makes complex is no number."""
    kind = torch.complex128 if isinstance(value, complex) else like.dtype
    found = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=kind)
    return torch.full_like(like, torch.nan) if found.is_complex() else found.to(like.dtype)


def _preactivations(known, gates, own, rows: slice, x: Tensor, source: Tensor) -> dict[str, Tensor]:
    """`a_k` and `u_k` of one stage."""
    weights = (own[name][rows] if name in own else None for name in PACKED)
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    found: dict[str, Tensor] = {}
    if gates:
        both = F.linear(x, weight_ih, bias_ih), F.linear(source, weight_hh, bias_hh)
        parts = (v.chunk(len(gates), -1) for v in both)
        for k, a, u in zip(gates, *parts, strict=True):
            found |= {f"a_{k}": a, f"u_{k}": u} if k in known.split else {f"a_{k}": a + u}
    return found


class ByText(torch.nn.Module):
    """A layer of one direction with the parameters of another, run as the text says."""

    def __init__(self, stages: Sequence[Written], layer: Recurrent) -> None:
        super().__init__()
        self.stages = stages
        for name, parameter in layer.named_parameters():
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor, state: dict[str, Tensor]):
        """As the layer's."""
        own = {name.removesuffix("_l0"): p for name, p in self.named_parameters()}
        first = {name: value[0] for name, value in state.items()}
        y, last = by_text(self.stages, own, x.transpose(0, 1), first)
        return y.transpose(0, 1), {name: value[None] for name, value in last.items()}


def derivatives(layer, x, state, order: int = 1) -> dict[str, Tensor]:
    """Outputs, final states, and gradients of everything by name, for a fixed random loss.

    Of the second order: the gradients of a fixed random sum of the first ones.
    """
    leaves = {"x": x} | {f"initial {k}": v for k, v in state.items()}
    leaves |= dict(layer.named_parameters())
    y, last = layer(x, state)
    found = {"y": y} | {f"final {k}": v for k, v in last.items()}
    values, draw = list(found.values()), torch.Generator().manual_seed(1)
    for turn in range(1, order + 1):
        values = _pulled(values, list(leaves.values()), draw, create_graph=turn < order)
        found |= {f"{'d' * turn} {name}": v for name, v in zip(leaves, values, strict=True)}
    return {name: value.detach() for name, value in found.items()}


def _pulled(values, leaves, draw: torch.Generator, create_graph: bool) -> list[Tensor]:
    """The gradients of a random sum of the values; zeros where nothing depends on a leaf."""
    seeds = [torch.randn(v.shape, generator=draw, dtype=v.dtype) for v in values]
    ends = [(v, s) for v, s in zip(values, seeds, strict=True) if v.requires_grad]
    if not ends:
        return [torch.zeros_like(leaf) for leaf in leaves]
    outputs, upstream = zip(*ends, strict=True)
    options = {"create_graph": create_graph, "allow_unused": True}
    grads = torch.autograd.grad(outputs, leaves, upstream, **options)
    return [torch.zeros_like(v) if g is None else g for g, v in zip(grads, leaves, strict=True)]


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fills every buffer with NaN when it is made, so that one that nobody writes is seen."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
