"""Random gates and cells as Triton kernels; `test_scan.py` runs this file under the interpreter.

Imports Hypothesis, NumPy, torch, gatelib.kernels and tests.strategies.
Must not be run where Triton has neither its interpreter nor a GPU.

The truth is the author's text, read by Python itself: NumPy judges values with a bound on their
rounding, torch's autograd judges gradients.
"""

import math
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, example, given, settings

from gatelib.kernels import launch, scan
from gatelib.kernels.elementwise import elementwise
from gatelib.kernels.scan import TimeScan
from tests.judge import in_torch
from tests.strategies import SMOOTH, Written, cells, gates, read_or_reject

if not launch.interpreted() and not torch.cuda.is_available():
    pytest.skip("needs TRITON_INTERPRET=1 or a GPU", allow_module_level=True)

DEVICE = "cpu" if launch.interpreted() else "cuda"
COUNT = int(os.environ.get("RANDOM_GATES", "200"))
SEEN = {"gates": 0, "judged": 0, "cells": 0, "gradients": 0}
pytestmark = pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")


def random(count):
    """That many examples, none of them shrunk: it takes minutes under the interpreter."""
    slow = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    phases = [Phase.explicit, Phase.generate]
    return settings(max_examples=count, phases=phases, suppress_health_check=slow)


@pytest.fixture(autouse=True, scope="module")
def spoiled_buffers():
    """Every result buffer is NaN before a kernel writes; three steps are a block and a rest."""

    def spoiled(shape, dtype, device):
        return torch.full(shape, math.nan, dtype=dtype, device=device)

    chosen = scan.options
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "empty", spoiled)
        patch.setattr(scan, "options", lambda *a: chosen(*a) | {"AHEAD_": 2})
        yield


def written(*lines, inputs="a b", outputs="y", name="gate"):
    pairs = tuple(tuple(line.split(" = ")) for line in lines)
    return Written(name, tuple(inputs.split()), tuple(outputs.split()), pairs)


@random(COUNT)
@given(gates(names="both"))
@example(written("y = b/(1/a)"))
@example(written("y = (a**0.5)**5 + b"))
@example(written("y = -a**1.5 - b/(1/a)/(b/a)"))
@example(written("y = a - 1e30*(1 - b)"))
@example(written("y = sigmoid(1/2)*a + maximum(0.5, b)"))
@example(written("y = a**0.3 + b**(-0.7) + a**17 - b**-9"))
@example(written("y = exp(600*a) - exp(-600*b)"))
@example(written("y = step(0*a) + step(b - b + 0)"))
@example(written("log1p = a*b", "y = softplus(log1p) + log1p"))
@example(written("range = a + b", "y = range*float", inputs="a b float"))
def test_a_kernel_computes_what_the_author_wrote(gate):
    spec = read_or_reject(gate)
    values = gate.values()
    inputs = [torch.from_numpy(values[str(v)]).to(DEVICE) for v in spec.inputs]
    found = elementwise.__wrapped__(spec)(*inputs)
    found = found if isinstance(found, tuple) else (found,)
    judged = gate.judge(values)
    SEEN["gates"] += 1
    for v, value in zip(spec.outputs, found, strict=True):
        judgement = judged[str(v)]
        SEEN["judged"] += bool(judgement.counts.any())
        wrong = judgement.wrong(value.cpu().numpy())
        assert not wrong.any(), (str(v), value.numpy()[wrong], judgement.value[wrong])


def streams(cell, spec, steps=3, rows=2, width=4):
    """Inputs of a scan by name: streams, parameters and initial states."""
    rng, values = np.random.default_rng(0), {}
    carries, vectors = [str(p) for p in spec.carries], vectors_of(spec)
    for v in map(str, spec.inputs):
        kind = (rows, width) if v in carries else (width,) if v in vectors else (rows, steps, width)
        value = rng.uniform(0.2, 1.6, kind)  # roots and logarithms have no other gradients
        values[v] = torch.from_numpy(value).to(DEVICE).requires_grad_()
    return values


def vectors_of(spec):
    """Half of the inputs that are no preactivations, as vectors over the features."""
    others = [v for v in map(str, spec.inputs) if not v.startswith("a_")]
    return [v for v in others if not v.endswith("_prev")][::2]


def by_hand(cell, spec, values):
    """The text step by step, under autograd: (outputs, final states)."""
    state = {str(p): values[str(p)] for p in spec.carries}
    still, outputs = vectors_of(spec), []
    for t in range(3):
        now = {v: x if v in still else x[:, t] for v, x in values.items() if v not in state}
        scope = cell.run(in_torch(), now | state)
        scope = {v: torch.as_tensor(x, dtype=torch.float64).expand(2, 4) for v, x in scope.items()}
        outputs.append([scope[str(v)] for v in spec.outputs])
        state = {str(p): scope[str(v)] for p, v in spec.carries.items()}
    return [torch.stack(s, 1) for s in zip(*outputs, strict=True)], list(state.values())


def gradients(results, values):
    seeds = [torch.linspace(0.3, 1, r.numel(), dtype=r.dtype).view_as(r) for r in results]
    pairs = [(r, s.to(DEVICE)) for r, s in zip(results, seeds, strict=True) if r.requires_grad]
    ends, seeds = zip(*pairs, strict=True)
    inputs = list(values.values())
    given = {"allow_unused": True, "materialize_grads": True}
    return torch.autograd.grad(ends, inputs, seeds, **given)


def by_kernels(run, spec, values):
    """The same from the kernels: outputs, then final states."""
    initial = tuple(values[str(p)] for p in spec.carries)
    found, final = run(*(values[n] for n in run.names), initial_state=initial)
    found = found if isinstance(found, tuple) else (found,)
    return [*found, *(final if isinstance(final, tuple) else (final,))]


@random(COUNT // 20)
@given(cells(functions=tuple(SMOOTH)))
def test_a_cell_over_time_has_the_gradients_of_its_text(cell):
    """Kernels run only where the text has finite values: they take seconds for each cell."""
    spec = read_or_reject(cell)
    assume(spec.carries and any(str(v).startswith("a_") for v in spec.inputs))
    values = streams(cell, spec)
    outputs, ends = by_hand(cell, spec, values)
    truth = [*outputs, *ends]
    assume(any(r.requires_grad for r in truth))
    slopes = gradients(truth, values)
    run = TimeScan(spec, vectors_of(spec))
    SEEN["cells"] += 1
    every = torch.cat([x.flatten() for x in (*truth, *slopes)])
    assume(every.isfinite().all() and every.abs().max() < 1e6)
    found = by_kernels(run, spec, values)
    mine = gradients(found, values)
    SEEN["gradients"] += 1
    near = {"rtol": 1e-9, "atol": 1e-9 * (1 + every.abs().max().item())}
    for name, a, b in zip(values, mine, slopes, strict=True):
        assert torch.allclose(a, b, **near), name
    for a, b in zip(found, truth, strict=True):
        assert torch.allclose(a, b, **near)


def test_the_random_gates_were_judged():
    """Most of what was drawn must have counted, or the two tests above say nothing."""
    print(SEEN)
    assert SEEN["judged"] > 0.5 * SEEN["gates"] > 0
    assert SEEN["gradients"] > 0.2 * SEEN["cells"] > 0
