"""The matrix products of a recurrent layer: a block of steps at a time where they can be.

Imports torch, gatelib.kernels.steps and gatelib.kernels.unrolled.
Must not import gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

W x runs for a block of steps at a time, while the block is in the cache; U h must run step by
step. A large float32 U on a CPU is put into oneDNN's order once for all steps (`Map`). Backward,
each weight's gradient takes one product for a block of steps. All tensors are time first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gatelib.kernels.steps import Stage, Steps
from gatelib.kernels.unrolled import Inputs

__all__ = ["Gradients", "Map", "Products", "block_steps", "slices"]

BLOCK_BYTES = 2 << 20
"""Preactivations held at a time: small enough for the cache, large enough for a good product."""

PACK_ELEMENTS, PACK_BATCH, PACK_STEPS = 1 << 18, 8, 16
"""From here on a packed U pays: it no longer stays in the cache next to the core from one step to
the next, a product has rows enough to use it, and the steps repay the packing."""


def block_steps(steps: int, batch: int, width: int, item_size: int) -> int:
    """How many steps a block holds."""
    return max(1, min(steps, BLOCK_BYTES // max(1, batch * width * item_size)))


def slices(block: Tensor, gates: Sequence[str], prefix: str) -> dict[str, list[Tensor]]:
    """{prefix + gate: its (B, H) slice at each step} of a (steps, B, G*H) block."""
    chunks = block.chunk(len(gates), -1) if gates else ()
    return {f"{prefix}{k}": list(c.unbind(0)) for k, c in zip(gates, chunks, strict=True)}


class Map:
    """x @ weight.T for one weight and many x, (B, columns of the weight) each.

    BLAS copies the weight into an order of its own at every call. A large weight on a CPU is put
    into oneDNN's order once, where this build of torch has it. The sums are float32 either way,
    added up in another order.
    """

    def __init__(self, weight: Tensor, batch: int, steps: int) -> None:
        self.turned, self.packed = weight.t(), None
        if _pays_to_pack(weight, batch, steps):
            weight = weight.detach().contiguous()
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, batch)

    def _packed_product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, bias, "none", [], "")
        return product

    def into(self, out: Tensor, x: Tensor, bias: Tensor | None) -> None:
        """x @ weight.T + bias into `out`."""
        if self.packed is None:
            _linear(x, self.turned, bias, out)
        else:
            out.copy_(self._packed_product(x, bias))

    def added(self, out: Tensor, to: Tensor, x: Tensor) -> None:
        """to + x @ weight.T into `out`, which may be `to`."""
        if self.packed is None:
            torch.addmm(to, x, self.turned, out=out)
        else:
            torch.add(to, self._packed_product(x), out=out)


def _pays_to_pack(weight: Tensor, batch: int, steps: int) -> bool:
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    if weight.numel() < PACK_ELEMENTS or batch < PACK_BATCH or steps < PACK_STEPS:
        return False
    offered: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return offered and bool(torch.backends.mkldnn.enabled)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """x @ weight + bias into `out`."""
    if bias is None:
        torch.mm(x, weight, out=out)
    else:
        torch.addmm(bias, x, weight, out=out)


def rows_of(stage: Stage, size: int) -> slice:
    """A stage's rows of a packed weight whose gates have `size` rows each."""
    return slice(*(gate * size for gate in stage.rows))


def _joined(steps: Steps, one: Tensor, other: Tensor | None) -> list[list[tuple[Tensor, Tensor]]]:
    """By stage, where the cell splits some gates: two slices for each that it doesn't split."""
    if other is None or other is one:
        return [[] for _ in steps.stages]
    count, split = len(steps.cell.gates), steps.cell.split
    pairs = zip(steps.cell.gates, one.chunk(count, -1), other.chunk(count, -1), strict=True)
    by_gate = {k: (a, u) for k, a, u in pairs if k not in split}
    return [[by_gate[k] for k in stage.gates if k in by_gate] for stage in steps.stages]


class Products:
    """W x + b for a block of steps, and at each step U h added to it or, for `u_k`, beside it."""

    def __init__(self, steps: Steps, inputs: Inputs) -> None:
        weight_ih, weight_hh, self.bias_ih, bias_hh = inputs.weights
        self.x, self.to_gates = inputs.x, weight_ih.t()
        count, batch, _ = self.x.shape
        width, size = weight_hh.shape
        self.block = block_steps(count, batch, width, self.x.element_size())
        self.pre = self.x.new_empty(self.block, batch, width)
        self.rec = self.x.new_empty(batch, width) if steps.cell.split else None
        rows = [rows_of(stage, size) for stage in steps.stages]
        self.maps = [Map(weight_hh[r], batch, count) for r in rows]
        self.biases = [None if bias_hh is None else bias_hh[r] for r in rows]
        self.steps = [self.pre[..., r].unbind(0) for r in rows]
        self.beside = [None if self.rec is None else self.rec[..., r] for r in rows]
        self.joined = _joined(steps, self.pre, self.rec)

    def start(self, t: int) -> None:
        """W x + b of a block of steps, where step t is the first of one."""
        if t % self.block == 0:
            x = self.x[t : t + self.block].flatten(0, 1)
            _linear(x, self.to_gates, self.bias_ih, self.pre.view(-1, self.pre.shape[-1])[: len(x)])

    def fill(self, stage: int, t: int, source: Tensor) -> None:
        """The preactivations of a stage at step t, whose U multiplies `source`."""
        at, beside = t % self.block, self.beside[stage]
        if beside is None:
            here = self.steps[stage][at]
            self.maps[stage].added(here, here, source)
            return
        self.maps[stage].into(beside, source, self.biases[stage])
        for into, part in self.joined[stage]:
            into[at].add_(part)


class Gradients:
    """Adds up the gradients of the weights, one product per weight for each block of steps."""

    def __init__(
        self, steps: Steps, inputs: Inputs, h: Tensor, q: Tensor | None, needs_x: bool
    ) -> None:
        weight_ih, weight_hh, bias_ih, bias_hh = inputs.weights
        x = self.x = inputs.x
        count, batch, _ = x.shape
        width, size = weight_hh.shape
        self.h, self.h_0, self.q, self.weight = h, inputs.initial[0], q, weight_ih
        self.block = block_steps(count, batch, width, x.element_size())
        self.d_a = x.new_empty(self.block, batch, width)
        self.d_u = torch.empty_like(self.d_a) if steps.cell.split else self.d_a
        self.d_x = x.new_empty(x.shape) if needs_x else None
        self.to_ih, self.to_hh = (x.new_zeros(w.shape[::-1]) for w in (weight_ih, weight_hh))
        self.ones = x.new_ones(self.block * batch)
        self.bias_ih, self.bias_hh = (_zeros(b) for b in (bias_ih, bias_hh))
        self.joined = _joined(steps, self.d_u, self.d_a)
        self.rows = [(stage.source, rows_of(stage, size)) for stage in steps.stages if stage.gates]
        self.steps = [self.d_u[..., rows_of(s, size)].unbind(0) for s in steps.stages]

    def join(self, stage: int, t: int) -> Tensor:
        """The adjoints of U's products of a stage at step t, those that aren't split among them."""
        at = t % self.block
        for into, part in self.joined[stage]:
            into[at].copy_(part[at])
        return self.steps[stage][at]

    def add(self, t: int) -> None:
        """Add up a block of steps, where step t is the first of one."""
        if t % self.block == 0:
            self._add_block(t, min(t + self.block, self.x.shape[0]))

    def _add_block(self, start: int, stop: int) -> None:
        a, u = (d[: stop - start].flatten(0, 1) for d in (self.d_a, self.d_u))
        self.to_ih.addmm_(self.x[start:stop].flatten(0, 1).t(), a)
        for source, rows in self.rows:
            self._add_recurrent(source, self.to_hh[:, rows], u[:, rows], start, stop)
        if self.bias_ih is not None:
            self.bias_ih.addmv_(a.t(), self.ones[: a.shape[0]])
        if self.bias_hh is not None:
            self.bias_hh.addmv_(u.t(), self.ones[: u.shape[0]])
        if self.d_x is not None:
            torch.mm(a, self.weight, out=self.d_x[start:stop].flatten(0, 1))

    def _add_recurrent(self, source: str, into: Tensor, d_u: Tensor, start: int, stop: int) -> None:
        """What a block of steps adds to some rows of U's gradient."""
        if source == "q":
            assert self.q is not None
            into.addmm_(self.q[start:stop].flatten(0, 1).t(), d_u)
            return
        first = self.h.shape[1] if start == 0 else 0
        into.addmm_(self.h_0[:first].t(), d_u[:first])
        h_before = self.h[max(start - 1, 0) : stop - 1]
        into.addmm_(h_before.flatten(0, 1).t(), d_u[first:])

    def all(self) -> list[Tensor | None]:
        """Gradients of x (None where it needs none), the weights, and the biases there are."""
        biases = [d for d in (self.bias_ih, self.bias_hh) if d is not None]
        return [self.d_x, self.to_ih.t(), self.to_hh.t(), *biases]


def _zeros(like: Tensor | None) -> Tensor | None:
    return None if like is None else torch.zeros_like(like)
