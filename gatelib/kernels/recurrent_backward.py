"""Any recurrent cell over a sequence, backward: the generated vector-Jacobian product step by step.

Imports torch and gatelib.kernels.
Must not import gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

All tensors are time first; steps run from the last to the first, and stages too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from gatelib.kernels.products import Gradients, Map, rows_of, slices
from gatelib.kernels.recurrent_forward import Columns, arguments_of, own_buffers
from gatelib.kernels.steps import Stage, Steps
from gatelib.kernels.unrolled import Inputs

__all__ = ["run_backward"]


def run_backward(
    steps: Steps,
    inputs: Inputs,
    d_y: Tensor | None,
    d_final: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    needs_x: bool,
) -> list[Tensor | None]:
    """Gradients of x (where needed), weights, biases, learned vectors and initial states.

    `kept` is h of every step, then what the forward pass saved.
    """
    values = dict(zip((*steps.cell.states, *steps.saved), kept, strict=True))
    adjoints = _Adjoints(steps, d_final, inputs)
    gradients = Gradients(steps, inputs, values["h"], values.get("q"), needs_x)
    d_vectors = {v: torch.zeros_like(adjoints.pairs["h"][0]) for v in steps.cell.vectors}
    parts = []
    for index, stage in reversed(list(enumerate(steps.stages))):
        columns = _columns(steps, stage, inputs, values)
        columns |= _adjoint_columns(steps, stage, gradients, adjoints, d_vectors)
        run, arguments = stage.step_back.compile(), arguments_of(stage.step_back, columns)
        parts.append((index, run, arguments, stage.source))
    count, d_ys = values["h"].shape[0], None if d_y is None else d_y.unbind(0)
    for turn, t in enumerate(range(count - 1, -1, -1)):
        adjoints.before(t, turn % 2, None if d_ys is None else d_ys[t])
        for index, run, arguments, source in parts:
            run(*next(arguments))
            d_u = gradients.join(index, t)
            if source == "q":
                adjoints.through_q(index, turn % 2, d_u)
        gradients.add(t)
        adjoints.after(t, turn % 2, gradients.steps[0][t % gradients.block])
    d_rows = [d.sum(0) for d in d_vectors.values()]
    return [*gradients.all(), *d_rows, *adjoints.initial(count)]


class _Adjoints:
    """The adjoints of the states, which flow back from step to step, and of what stages pass on.

    Each carry's has two buffers that take turns: one is read while the other is filled. That of
    `h` has one, filled by the recurrent product after the step. A passed value's is filled by the
    later stages and read by the earlier one, within a step.
    """

    def __init__(self, steps: Steps, d_final: Sequence[Tensor | None], inputs: Inputs) -> None:
        known, u = steps.cell, inputs.weights[1]
        self.carries, self.states = (
            known.carries,
            dict(zip(known.states, inputs.initial, strict=True)),
        )
        count, batch, _ = inputs.x.shape
        rows = [rows_of(stage, u.shape[1]) for stage in steps.stages]
        self.maps = [Map(u[r].t(), batch, count) for r in rows]
        ends = zip(self.states.items(), d_final, strict=True)
        self.pairs = {s: (_start(d, v), torch.empty_like(v)) for (s, v), d in ends}
        self.passed = {v: torch.empty_like(inputs.initial[0]) for v in steps.passed}
        self.q_is_written = any("q" in stage.adjoints for stage in steps.stages)
        self.first = bool(steps.stages[0].gates)
        self.here = None if inputs.mask is None else inputs.mask.to(inputs.initial[0].dtype)
        self.past = None if self.here is None else 1 - self.here
        self.masked = {s: torch.empty_like(v) for s, v in self.states.items()}

    def of(self, v: str) -> Iterable[Tensor]:
        """The adjoint of a value at every step: a state's, or a passed value's."""
        if v in self.passed:
            return itertools.repeat(self.passed[v])
        if self.here is not None:
            return itertools.repeat(self.masked[v])
        one, two = self.pairs[v]
        return itertools.repeat(one) if v == "h" else itertools.cycle((one, two))

    def of_previous(self, s: str) -> Iterable[Tensor]:
        """Where the adjoint of a state's value before the step goes, at every step."""
        one, two = self.pairs[s]
        return itertools.repeat(two) if s == "h" else itertools.cycle((two, one))

    def before(self, t: int, turn: int, d_y: Tensor | None) -> None:
        """Add the upstream gradient of h_t; where the mask is False, nothing enters the cell."""
        if d_y is not None:
            self.pairs["h"][0].add_(d_y)
        if self.here is not None:
            for s, pair in self.pairs.items():
                torch.mul(pair[0 if s == "h" else turn], self.here[t], out=self.masked[s])

    def through_q(self, stage: int, turn: int, d_u: Tensor) -> None:
        """The product of a later stage, back to `q`."""
        if "q" in self.passed and not self.q_is_written:
            self.maps[stage].into(self.passed["q"], d_u, None)
            return
        if "q" in self.passed:
            d_q = self.passed["q"]
        else:
            d_q = self.pairs["q"][turn] if self.here is None else self.masked["q"]
        self.maps[stage].added(d_q, d_q, d_u)

    def after(self, t: int, turn: int, d_u: Tensor) -> None:
        """The recurrent product; where the mask is False, adjoints pass by the cell."""
        d_h, d_h_prev = self.pairs["h"]
        through = None
        if self.past is not None:
            through = d_h * self.past[t]
            for s, pair in self.pairs.items():
                if s != "h":
                    pair[1 - turn].addcmul_(pair[turn], self.past[t])
        self._into_h(d_h, d_h_prev, d_u)
        if through is not None:
            d_h.add_(through)

    def _into_h(self, d_h: Tensor, d_h_prev: Tensor, d_u: Tensor) -> None:
        if self.first and "h" in self.carries:
            self.maps[0].added(d_h, d_h_prev, d_u)
        elif self.first:
            self.maps[0].into(d_h, d_u, None)
        elif "h" in self.carries:
            d_h.copy_(d_h_prev)
        else:
            d_h.zero_()

    def initial(self, steps: int) -> list[Tensor]:
        """The adjoints of the initial states, after that many steps."""
        return [pair[0 if s == "h" else steps % 2] for s, pair in self.pairs.items()]


def _start(d_final: Tensor | None, state: Tensor) -> Tensor:
    if d_final is None:
        return torch.zeros_like(state, memory_format=torch.contiguous_format)
    return d_final.clone(memory_format=torch.contiguous_format)


def _columns(steps: Steps, stage: Stage, inputs: Inputs, values: dict[str, Tensor]) -> Columns:
    """For each parameter of a stage's backward step that it reads, its tensor, last step first."""
    batch, hidden = values["h"].shape[1:]
    columns = own_buffers(stage.step_back, values["h"], batch, hidden)
    for s, start in zip(steps.cell.states, inputs.initial, strict=True):
        every = [start, *values[s].unbind(0)]
        columns |= {s: every[:0:-1], f"{s}_prev": every[-2::-1]}
    columns |= {v: values[v].unbind(0)[::-1] for v in steps.saved}
    vectors = zip(steps.cell.vectors, inputs.vectors, strict=True)
    return columns | {v: itertools.repeat(w) for v, w in vectors}


def _adjoint_columns(
    steps: Steps,
    stage: Stage,
    gradients: Gradients,
    adjoints: _Adjoints,
    d_vectors: dict[str, Tensor],
) -> Columns:
    """For each adjoint of a stage's backward step its tensor, last step first."""
    gates, block = steps.cell.gates, gradients.block
    rows = slices(gradients.d_a, gates, "a_") | (
        slices(gradients.d_u, gates, "u_") if steps.cell.split else {}
    )
    places = [t % block for t in range(len(gradients.h) - 1, -1, -1)]
    columns: Columns = {seed: adjoints.of(v) for v, seed in stage.seeds.items()}
    for v, adjoint in stage.adjoints.items():
        if v in rows:
            columns[adjoint] = [rows[v][at] for at in places]
        elif v in d_vectors:
            columns[adjoint] = itertools.repeat(d_vectors[v])
        elif v.removesuffix("_prev") in steps.cell.carries and v not in steps.cell.made:
            columns[adjoint] = adjoints.of_previous(v.removesuffix("_prev"))
        else:
            columns[adjoint] = adjoints.of(v)
    return columns
