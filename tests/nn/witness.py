"""A cell run as its author's text says, by torch's own functions: it never saw a Spec or a kernel.

Imports torch, gatelib.cell, gatelib.nn and tests.strategies.
Must not import gatelib.kernels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from gatelib.cell import cell
from gatelib.nn import Recurrent
from tests.strategies import Written, in_torch


def by_text(written: Written, own: dict[str, Tensor], x: Tensor, states: dict[str, Tensor]):
    """h of every step and the final states, (T, B, H) and {name: (B, H)}, of one direction."""
    known, ys = cell(written.spec), []
    for x_t in x:
        from_x = F.linear(x_t, own["weight_ih"], own.get("bias_ih"))
        from_h = F.linear(states["h"], own["weight_hh"], own.get("bias_hh"))
        given = {f"{name}_prev": states[name] for name in known.carries}
        given |= {name: own[name] for name in known.vectors}
        parts = (v.chunk(len(known.gates), -1) for v in (from_x, from_h))
        for k, a, u in zip(known.gates, *parts, strict=True):
            given |= {f"a_{k}": a, f"u_{k}": u} if k in known.split else {f"a_{k}": a + u}
        found = written.run(in_torch(), given)
        like = states["h"]
        states = {
            name: torch.as_tensor(found[name], dtype=like.dtype).expand_as(like) for name in states
        }
        ys.append(states["h"])
    return torch.stack(ys), states


class ByText(torch.nn.Module):
    """A layer of one direction with the parameters of another, run as the text says."""

    def __init__(self, written: Written, layer: Recurrent) -> None:
        super().__init__()
        self.written, self.cell = written, layer.cell
        for name, parameter in layer.named_parameters():
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor, state: dict[str, Tensor]):
        """As the layer's."""
        own = {name.removesuffix("_l0"): p for name, p in self.named_parameters()}
        first = {name: value[0] for name, value in state.items()}
        y, last = by_text(self.written, own, x.transpose(0, 1), first)
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
