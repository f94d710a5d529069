"""Any recurrent cell over a sequence: an unrolled loop for autograd, and a fast path beside it.

Imports torch, gatelib.kernels.cell.
Must not import gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

The fast path is one operator, `gatelib::recurrent`, so that `torch.compile` and `torch.export` see
a single node. Forward: the input product runs for a block of steps at a time, while the block is
in the cache; the recurrent product and the cell run step by step into buffers made beforehand.
A large float32 U on a CPU is put into oneDNN's order once for all steps (`Map`).
Backward: the generated vector-Jacobian product step by step, then for each block of steps one
product per weight. All tensors here are time first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gatelib.kernels.cell import Cell, cell_of_text
from gatelib.kernels.inplace import COLUMN, FULL, VECTOR, Program

__all__ = ["Weights", "fused", "unrolled"]

Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""W, U, b, b'."""


class Inputs(NamedTuple):
    """What a cell runs on: see `unrolled`."""

    x: Tensor
    weights: Weights
    vectors: Sequence[Tensor]
    initial: Sequence[Tensor]
    mask: Tensor | None


BLOCK_BYTES = 2 << 20
"""Preactivations held at a time: small enough for the cache, large enough for a good product."""

PACK_ELEMENTS, PACK_BATCH, PACK_STEPS = 1 << 18, 8, 16
"""From here on a packed U pays: it no longer stays in the cache next to the core from one step to
the next, a product has rows enough to use it, and the steps repay the packing."""


def unrolled(
    cell: Cell,
    x: Tensor,
    weights: Weights,
    vectors: Sequence[Tensor],
    initial: Sequence[Tensor],
    mask: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The plain loop: two linear maps and the cell at each step, differentiated by autograd.

    Args:
        cell: the cell; G gates of size H.
        x: (T, B, D), time first.
        weights: W (G*H, D) and U (G*H, H), rows in the order of the gates, and two biases, (G*H,)
            or None; b is added to W x and b' to U h.
        vectors: the cell's learned vectors, (H,) each.
        initial: the cell's states, (B, H) each; their dtype is the dtype of the states.
        mask: (T, B, 1), False where a state must stay as it is; None for everywhere True.

    Returns:
        h of every step, (T, B, H), and the final states.
    """
    step = cell.in_torch
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    states = dict(zip(cell.states, initial, strict=True))
    outputs = []
    for t, x_t in enumerate(x):
        from_x = F.linear(x_t, weight_ih, bias_ih)
        from_h = F.linear(states["h"].to(x.dtype), weight_hh, bias_hh)
        inputs = _inputs(cell, from_x, from_h, vectors, states)
        new = step(*(inputs[str(v)] for v in cell.spec.inputs))
        new = new if isinstance(new, tuple) else (new,)
        by_name = dict(zip(map(str, cell.spec.outputs), new, strict=True))
        before = states
        states = {s: by_name[s].expand_as(v) for s, v in before.items()}
        if mask is not None:
            states = {k: torch.where(mask[t], v, before[k]) for k, v in states.items()}
        outputs.append(states["h"])
    h = states["h"]
    y = torch.stack(outputs) if outputs else h.new_zeros(0, *h.shape)
    return y, [states[name] for name in cell.states]


def _inputs(
    cell: Cell,
    from_x: Tensor,
    from_h: Tensor,
    vectors: Sequence[Tensor],
    states: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The Spec's inputs by name, at one step."""
    dtype = states["h"].dtype
    named = {f"{name}_prev": states[name] for name in cell.carries}
    named |= dict(zip(cell.vectors, vectors, strict=True))
    count = len(cell.gates)
    pairs = zip(cell.gates, from_x.chunk(count, -1), from_h.chunk(count, -1), strict=True)
    for gate, a, u in pairs:
        a, u = a.to(dtype), u.to(dtype)
        if gate in cell.split:
            named[f"a_{gate}"], named[f"u_{gate}"] = a, u
        else:
            named[f"a_{gate}"] = a + u
    return named


def fused(
    cell: Cell,
    x: Tensor,
    weights: Weights,
    vectors: Sequence[Tensor],
    initial: Sequence[Tensor],
    mask: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The fast path; arguments and results as in `unrolled`, all of one dtype, float32 or float64.

    A backward pass with `create_graph=True` runs `unrolled` again and differentiates that, so
    higher derivatives are exact but have the plain loop's speed.
    """
    needing = (x, *weights, *vectors, *initial)
    save = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in needing)
    outputs = _recurrent(cell.text, x, *weights, list(vectors), list(initial), mask, save)
    return outputs[0], list(outputs[1 : 1 + len(cell.states)])


# ---- buffers and their views ----------------------------------------------------------------


def _buffer(like: Tensor, shape: str, batch: int, hidden: int, steps: int | None = None) -> Tensor:
    """An empty buffer for a value of that shape, with a leading axis of `steps`."""
    sizes = {FULL: (batch, hidden), COLUMN: (batch, 1), VECTOR: (1, hidden)}.get(shape, (1, 1))
    return like.new_empty(sizes if steps is None else (steps, *sizes))


def _own_buffers(program: Program, like: Tensor, batch: int, hidden: int) -> dict[str, Any]:
    """The program's scratch and constants, the same at each step."""
    own = {v: _buffer(like, shape, batch, hidden) for v, shape in program.scratch.items()}
    for v, (number, shape) in program.constants.items():
        own[v] = _buffer(like, shape, batch, hidden).fill_(number)
    return {v: itertools.repeat(buffer) for v, buffer in own.items()}


def _slices(block: Tensor, gates: Sequence[str], prefix: str) -> dict[str, list[Tensor]]:
    """{prefix + gate: its (B, H) slice at each step} of a (steps, B, G*H) block."""
    chunks = block.chunk(len(gates), -1)
    return {f"{prefix}{k}": list(c.unbind(0)) for k, c in zip(gates, chunks, strict=True)}


def block_steps(steps: int, batch: int, width: int, item_size: int) -> int:
    """How many steps a block holds."""
    return max(1, min(steps, BLOCK_BYTES // max(1, batch * width * item_size)))


def _arguments(program: Program, columns: dict[str, Iterable[Tensor]]) -> Iterator[tuple[Any, ...]]:
    """The positional arguments of each step."""
    return zip(*(columns[v] for v in program.arguments), strict=False)


# ---- forward --------------------------------------------------------------------------------


def _run_forward(cell: Cell, inputs: Inputs, save: bool) -> list[Tensor]:
    """[h of every step, final states…, saved states except h…, saved values…]."""
    steps = inputs.x.shape[0]
    kept = _kept_buffers(cell, inputs, save)
    now = {s: list(kept[s].unbind(0)) for s in cell.states}
    if not save:
        now |= {s: (steps * v)[:steps] for s, v in now.items() if s != "h"}
    before = {s: [v, *now[s][:-1]] for s, v in zip(cell.states, inputs.initial, strict=True)}
    products = _Products(cell, inputs)
    columns = _forward_columns(cell, products, kept, inputs.vectors) | now
    columns |= {f"{s}_prev": values for s, values in before.items()}
    step = cell.step.compile()
    for t, arguments in enumerate(_arguments(cell.step, columns)):
        products.fill(t, before["h"][t])
        step(*arguments)
        if inputs.mask is not None:
            for s in cell.states:
                torch.where(inputs.mask[t], now[s][t], before[s][t], out=now[s][t])
    ends = {s: now[s][-1] if steps else v for s, v in zip(cell.states, inputs.initial, strict=True)}
    saved = [kept[v] for v in (*cell.states[1:], *cell.saved)] if save else []
    return [kept["h"], *(end.clone() for end in ends.values()), *saved]


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


class _Products:
    """W x + b for a block of steps at a time, and U h added to it (or beside it) at each step."""

    def __init__(self, cell: Cell, inputs: Inputs) -> None:
        weight_ih, weight_hh, self.bias_ih, self.bias_hh = inputs.weights
        self.x, self.to_gates = inputs.x, weight_ih.t()
        steps, batch, _ = self.x.shape
        self.recurrent = Map(weight_hh, batch, steps)
        width = weight_hh.shape[0]
        self.block = block_steps(steps, batch, width, self.x.element_size())
        self.pre = self.x.new_empty(self.block, batch, width)
        self.rec = self.x.new_empty(batch, width) if cell.split else None
        self.joined = _joined_gates(cell, self.pre, self.rec)
        self.steps = self.pre.unbind(0)

    def fill(self, t: int, h: Tensor) -> None:
        """The preactivations of step t, whose state before is h."""
        at = t % self.block
        if at == 0:
            x = self.x[t : t + self.block].flatten(0, 1)
            _linear(x, self.to_gates, self.bias_ih, self.pre)
        if self.rec is None:
            self.recurrent.added(self.steps[at], self.steps[at], h)
        else:
            self.recurrent.into(self.rec, h, self.bias_hh)
            for into, part in self.joined:
                into[at].add_(part)


def _zeros(like: Tensor | None) -> Tensor | None:
    return None if like is None else torch.zeros_like(like)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """x @ weight + bias into the first rows of `out`."""
    rows = out.view(-1, out.shape[-1])[: x.shape[0]]
    if bias is None:
        torch.mm(x, weight, out=rows)
    else:
        torch.addmm(bias, x, weight, out=rows)


def _joined_gates(cell: Cell, pre: Tensor, rec: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Where the Spec splits some gates: (block, product) slices of those that it doesn't."""
    if rec is None:
        return []
    count = len(cell.gates)
    slices = zip(cell.gates, pre.chunk(count, -1), rec.chunk(count, -1), strict=True)
    return [(a, u) for k, a, u in slices if k not in cell.split]


def _kept_buffers(cell: Cell, inputs: Inputs, save: bool) -> dict[str, Tensor]:
    """Buffers of states and saved values; without `save`, two steps of each are enough."""
    x, hidden = inputs.x, inputs.weights[1].shape[1]
    steps, batch, _ = x.shape
    few = steps if save else min(steps, 2)
    kept = {s: _buffer(x, FULL, batch, hidden, few) for s in cell.states}
    kept["h"] = _buffer(x, FULL, batch, hidden, steps)
    return kept | {v: _buffer(x, shape, batch, hidden, few) for v, shape in cell.saved.items()}


def _forward_columns(
    cell: Cell, products: _Products, kept: dict[str, Tensor], vectors: Sequence[Tensor]
) -> dict[str, Iterable[Tensor]]:
    """For each parameter of the forward step but the states, its tensor at every step."""
    batch, hidden = kept["h"].shape[1:]
    columns: dict[str, Iterable[Tensor]] = _own_buffers(cell.step, products.x, batch, hidden)
    for v in cell.saved:
        name = f"{v}_saved" if v in cell.shapes else v
        columns[name] = itertools.cycle(kept[v].unbind(0))
    a = _slices(products.pre, cell.gates, "a_")
    columns |= {v: itertools.cycle(slices) for v, slices in a.items()}
    if products.rec is not None:
        u = _slices(products.rec[None], cell.gates, "u_")
        columns |= {v: itertools.repeat(slices[0]) for v, slices in u.items()}
    return columns | {v: itertools.repeat(w) for v, w in zip(cell.vectors, vectors, strict=True)}


# ---- backward -------------------------------------------------------------------------------


class _Gradients:
    """Adds up the gradients of the weights, one product per weight for each block of steps."""

    def __init__(self, cell: Cell, inputs: Inputs, h: Tensor, needs_x: bool) -> None:
        weight_ih, weight_hh, bias_ih, bias_hh = inputs.weights
        x = self.x = inputs.x
        steps, batch, _ = x.shape
        width = weight_hh.shape[0]
        self.h, self.h_0, self.weight = h, inputs.initial[0], weight_ih
        self.block = block_steps(steps, batch, width, x.element_size())
        self.d_a = x.new_empty(self.block, batch, width)
        self.d_u = torch.empty_like(self.d_a) if cell.split else self.d_a
        self.d_x = x.new_empty(x.shape) if needs_x else None
        self.to_ih, self.to_hh = (x.new_zeros(w.shape[::-1]) for w in (weight_ih, weight_hh))
        self.ones = x.new_ones(self.block * batch)
        self.bias_ih, self.bias_hh = (_zeros(b) for b in (bias_ih, bias_hh))
        self.joined = _joined_gates(cell, self.d_u, self.d_a) if cell.split else []
        self.steps = self.d_u.unbind(0)

    def add(self, t: int) -> None:
        """Take step t's adjoints `d_a` of W x + b and `d_u` of U h + b' into account."""
        for into, part in self.joined:
            into[t % self.block].copy_(part[t % self.block])
        if t % self.block == 0:
            self._add_block(t, min(t + self.block, self.x.shape[0]))

    def _add_block(self, start: int, stop: int) -> None:
        a, u = (d[: stop - start].flatten(0, 1) for d in (self.d_a, self.d_u))
        self.to_ih.addmm_(self.x[start:stop].flatten(0, 1).t(), a)
        first = self.h.shape[1] if start == 0 else 0
        self.to_hh.addmm_(self.h_0[:first].t(), u[:first])
        h_before = self.h[max(start - 1, 0) : stop - 1]
        self.to_hh.addmm_(h_before.flatten(0, 1).t(), u[first:])
        if self.bias_ih is not None:
            self.bias_ih.addmv_(a.t(), self.ones[: a.shape[0]])
        if self.bias_hh is not None:
            self.bias_hh.addmv_(u.t(), self.ones[: u.shape[0]])
        if self.d_x is not None:
            torch.mm(a, self.weight, out=self.d_x[start:stop].flatten(0, 1))

    def all(self) -> list[Tensor]:
        """Gradients of x where it needs one, the weights, and the biases that there are."""
        found = (self.d_x, self.to_ih.t(), self.to_hh.t(), self.bias_ih, self.bias_hh)
        return [d.contiguous() for d in found if d is not None]


class _Adjoints:
    """The adjoints of the states, which flow back from step to step.

    Each carry's has two buffers that take turns: one is read while the other is filled. That of
    `h` has one, filled by the recurrent product after the step.
    """

    def __init__(self, cell: Cell, d_final: Sequence[Tensor], inputs: Inputs) -> None:
        self.cell, mask = cell, inputs.mask
        steps, batch, _ = inputs.x.shape
        self.recurrent = Map(inputs.weights[1].t(), batch, steps)
        self.pairs = {
            s: (d.clone(), torch.empty_like(d)) for s, d in zip(cell.states, d_final, strict=True)
        }
        self.here = None if mask is None else mask.to(d_final[0].dtype)
        self.past = None if self.here is None else 1 - self.here
        self.masked = {s: torch.empty_like(d) for s, d in zip(cell.states, d_final, strict=True)}

    def columns(self) -> dict[str, Iterable[Tensor]]:
        """The step's seeds `g_s` and results `d_s_prev`."""
        columns: dict[str, Iterable[Tensor]] = {}
        for s in self.cell.states:
            one, two = self.pairs[s]
            columns[f"g_{s}"] = itertools.cycle((one, two))
            columns[f"d_{s}_prev"] = itertools.cycle((two, one))
        columns["g_h"] = itertools.repeat(self.pairs["h"][0])
        columns["d_h_prev"] = itertools.repeat(self.pairs["h"][1])
        if self.here is not None:
            columns |= {f"g_{s}": itertools.repeat(d) for s, d in self.masked.items()}
        return columns

    def before(self, t: int, turn: int, d_y: Tensor) -> None:
        """Add the upstream gradient of h_t; where the mask is False, nothing enters the cell."""
        self.pairs["h"][0].add_(d_y)
        if self.here is not None:
            for s, pair in self.pairs.items():
                torch.mul(pair[0 if s == "h" else turn], self.here[t], out=self.masked[s])

    def after(self, t: int, turn: int, d_u: Tensor) -> None:
        """The recurrent product; where the mask is False, adjoints pass by the cell."""
        d_h, d_h_prev = self.pairs["h"]
        through = None
        if self.past is not None:
            through = d_h * self.past[t]
            for s, pair in self.pairs.items():
                if s != "h":
                    pair[1 - turn].addcmul_(pair[turn], self.past[t])
        if "h" in self.cell.carries:
            self.recurrent.added(d_h, d_h_prev, d_u)
        else:
            self.recurrent.into(d_h, d_u, None)
        if through is not None:
            d_h.add_(through)

    def initial(self, steps: int) -> list[Tensor]:
        """The adjoints of the initial states, after that many steps."""
        return [pair[0 if s == "h" else steps % 2] for s, pair in self.pairs.items()]


def _run_backward(
    cell: Cell,
    inputs: Inputs,
    d_y: Tensor,
    d_final: Sequence[Tensor],
    h: Tensor,
    saved: Sequence[Tensor],
    needs_x: bool,
) -> list[Tensor]:
    """Gradients of x (where needed), weights, biases, learned vectors and initial states."""
    steps, batch, hidden = h.shape
    adjoints = _Adjoints(cell, d_final, inputs)
    gradients = _Gradients(cell, inputs, h, needs_x)
    d_vectors = [h.new_zeros(batch, hidden) for _ in inputs.vectors]
    columns = _own_buffers(cell.step_back, h, batch, hidden)
    columns |= _saved_columns(cell, inputs, h, saved)
    columns |= _adjoint_columns(cell, gradients, d_vectors, steps) | adjoints.columns()
    step_back, d_y_steps = cell.step_back.compile(), d_y.unbind(0)
    for turn, arguments in enumerate(_arguments(cell.step_back, columns)):
        t = steps - 1 - turn
        adjoints.before(t, turn % 2, d_y_steps[t])
        step_back(*arguments)
        gradients.add(t)
        adjoints.after(t, turn % 2, gradients.steps[t % gradients.block])
    return [*gradients.all(), *(d.sum(0) for d in d_vectors), *adjoints.initial(steps)]


def _saved_columns(
    cell: Cell, inputs: Inputs, h: Tensor, saved: Sequence[Tensor]
) -> dict[str, Iterable[Tensor]]:
    """For each saved parameter of the backward step, its tensor at every step, last step first."""
    count = len(cell.states) - 1
    states = dict(zip(cell.states, (h, *saved[:count]), strict=True))
    columns: dict[str, Iterable[Tensor]] = {}
    for s, start in zip(cell.states, inputs.initial, strict=True):
        values = [start, *states[s].unbind(0)]
        columns[s] = values[:0:-1]
        columns[f"{s}_prev"] = values[-2::-1]
    for v, kept in zip(cell.saved, saved[count:], strict=True):
        columns[v] = kept.unbind(0)[::-1]
    vectors = zip(cell.vectors, inputs.vectors, strict=True)
    return columns | {v: itertools.repeat(w) for v, w in vectors}


def _adjoint_columns(
    cell: Cell, gradients: _Gradients, d_vectors: Sequence[Tensor], steps: int
) -> dict[str, Iterable[Tensor]]:
    """For each result of the backward step but the carries', its tensor, last step first."""
    slices = _slices(gradients.d_a, cell.gates, "d_a_")
    slices |= _slices(gradients.d_u, cell.gates, "d_u_") if cell.split else {}
    places = [t % gradients.block for t in range(steps - 1, -1, -1)]
    columns: dict[str, Iterable[Tensor]] = {
        name: [values[at] for at in places] for name, values in slices.items()
    }
    named = zip(cell.vectors, d_vectors, strict=True)
    return columns | {f"d_{v}": itertools.repeat(d) for v, d in named}


# ---- the operators --------------------------------------------------------------------------


@torch.library.custom_op("gatelib::recurrent", mutates_args=())
def _recurrent(
    cell: str,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    vectors: list[Tensor],
    initial: list[Tensor],
    mask: Tensor | None,
    save: bool,
) -> list[Tensor]:
    """[h of every step, final states…, saved…]; see `_run_forward`."""
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    rows = [v.reshape(1, -1) for v in vectors]
    inputs = Inputs(x, weights, rows, initial, mask)
    with torch.autocast(x.device.type, enabled=False):
        return _run_forward(cell_of_text(cell), inputs, save)


@_recurrent.register_fake
def _(
    cell: str,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    vectors: list[Tensor],
    initial: list[Tensor],
    mask: Tensor | None,
    save: bool,
) -> list[Tensor]:
    known, steps, batch, hidden = cell_of_text(cell), x.shape[0], x.shape[1], weight_hh.shape[1]
    final = [x.new_empty(batch, hidden) for _ in initial]
    shapes = [FULL] * (len(known.states) - 1) + list(known.saved.values())
    saved = [_buffer(x, shape, batch, hidden, steps) for shape in shapes] if save else []
    return [_buffer(x, FULL, batch, hidden, steps), *final, *saved]


@torch.library.custom_op("gatelib::recurrent_backward", mutates_args=())
def _recurrent_backward(
    cell: str,
    d_y: Tensor,
    d_final: list[Tensor],
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    vectors: list[Tensor],
    initial: list[Tensor],
    mask: Tensor | None,
    h: Tensor,
    saved: list[Tensor],
    needs_x: bool,
) -> list[Tensor]:
    """Gradients of x (where needed), weights, biases, vectors, initial states, in this order."""
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    rows = [v.reshape(1, -1) for v in vectors]
    inputs = Inputs(x, weights, rows, initial, mask)
    with torch.autocast(x.device.type, enabled=False):
        return _run_backward(cell_of_text(cell), inputs, d_y, d_final, h, saved, needs_x)


@_recurrent_backward.register_fake
def _(
    cell: str,
    d_y: Tensor,
    d_final: list[Tensor],
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    vectors: list[Tensor],
    initial: list[Tensor],
    mask: Tensor | None,
    h: Tensor,
    saved: list[Tensor],
    needs_x: bool,
) -> list[Tensor]:
    inputs = [x] if needs_x else []
    inputs += [v for v in (weight_ih, weight_hh, bias_ih, bias_hh) if v is not None]
    return [v.new_empty(v.shape) for v in (*inputs, *vectors, *initial)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    """Keep what the backward pass needs; the saved values have no gradient of their own."""
    text, x, weight_ih, weight_hh, bias_ih, bias_hh, vectors, initial, mask, _ = inputs
    ctx.set_materialize_grads(False)
    first_saved = 1 + len(initial)
    ctx.cell, ctx.counts = text, (len(vectors), len(initial))
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    ctx.save_for_backward(x, *weights, mask, *vectors, *initial, output[0], *output[first_saved:])


def _backward(ctx: Any, d_outputs: list[Tensor | None]) -> tuple[Any, ...]:
    """The gradient for each argument of `gatelib::recurrent`."""
    x, w, u, b_ih, b_hh, mask, *rest = ctx.saved_tensors
    weights: Weights = (w, u, b_ih, b_hh)
    n_vectors, n_states = ctx.counts
    vectors, initial = rest[:n_vectors], rest[n_vectors : n_vectors + n_states]
    h, *saved = rest[n_vectors + n_states :]
    inputs = Inputs(x, weights, vectors, initial, mask)
    d_y = torch.zeros_like(h) if d_outputs[0] is None else d_outputs[0]
    d_ends = zip(d_outputs[1 : 1 + n_states], initial, strict=True)
    d_final = [torch.zeros_like(s) if d is None else d for d, s in d_ends]
    if torch.is_grad_enabled():
        found = _differentiable_backward(cell_of_text(ctx.cell), inputs, d_y, d_final)
    else:
        needs_x = ctx.needs_input_grad[1]
        arguments = (x, *weights, vectors, initial, mask, h, saved, needs_x)
        found = _recurrent_backward(ctx.cell, d_y, d_final, *arguments)
        found = found if needs_x else [None, *found]
    given = iter(found)
    d_x, *d_weights = (None if v is None else next(given) for v in (x, *weights))
    d_vectors, d_initial = [next(given) for _ in vectors], [next(given) for _ in initial]
    return None, d_x, *d_weights, d_vectors, d_initial, None, None


def _differentiable_backward(
    cell: Cell, inputs: Inputs, d_y: Tensor, d_final: Sequence[Tensor]
) -> list[Tensor | None]:
    """The same gradients as a graph that can be differentiated again: the plain loop's."""
    given = (inputs.x, *inputs.weights, *inputs.vectors, *inputs.initial)
    leaves = [v for v in given if v is not None]
    wanted = [v for v in leaves if v.requires_grad]
    y, final = unrolled(cell, *inputs)
    pairs = zip((y, *final), (d_y, *d_final), strict=True)
    outputs, seeds = zip(*((o, d) for o, d in pairs if o.requires_grad), strict=True)
    found = torch.autograd.grad(outputs, wanted, seeds, create_graph=True, allow_unused=True)
    by_leaf = dict(zip(map(id, wanted), found, strict=True))
    return [by_leaf.get(id(v)) for v in leaves]


torch.library.register_autograd("gatelib::recurrent", _backward, setup_context=_setup_context)
