"""What the cases of the generated kernels share: inputs, autograd's answer, how near is near.

Imports torch, gatelib.kernels and gatelib.spec.
Must not import Hypothesis: a machine with a GPU may lack it.

The truth is torch's autograd over the equations, step by step, in float64.
"""

import dataclasses
import math

import pytest
import torch

from gatelib.kernels import launch
from gatelib.kernels import scan as kernel
from gatelib.kernels.launch import interpreted
from gatelib.kernels.scan import scan
from gatelib.spec import Spec
from tests.kernels.triton_cells import all_specs, gates_given, params_of

if not interpreted() and not torch.cuda.is_available():
    pytest.skip("needs TRITON_INTERPRET=1 or a GPU", allow_module_level=True)

DEVICE = "cpu" if interpreted() else "cuda"

HIDDEN = Spec.parse(
    "hidden_state",
    "a x s_prev -> y",
    """
    f = sigmoid(a)
    s = f*s_prev + (1 - f)*x
    y = tanh(s)""",
)
CONSTANT = Spec.parse(
    "constant",
    "x y c_prev -> h c",
    """
    k = 1
    c = k*c_prev/3 + 0.1*x
    h = c**2 + step(y)""",
)
FUNCTIONS = (
    "sigmoid tanh relu exp softplus silu gelu normal_cdf normal_pdf hardsigmoid step identity"
)
POSITIVE = {"epsilon", "s_prev", "t", "v_prev"}
SHARES = {"alpha", "beta1", "beta2", "mu", "n_prev", "p", "p_prev", "q_prev", "u"}
SPECS = all_specs(HIDDEN, CONSTANT)
CELLS = [s for s in SPECS if s.carries]
both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


@pytest.fixture(autouse=True)
def spoiled_buffers(monkeypatch):
    """Every result buffer is NaN before a kernel writes: what it forgets is seen."""

    def spoiled(shape, dtype, device):
        return torch.full(shape, math.nan, dtype=dtype, device=device)

    monkeypatch.setattr(launch, "empty", spoiled)


def steps_at_once(monkeypatch, count):
    """Run the kernels with blocks of `count` steps."""
    chosen = kernel.options
    monkeypatch.setattr(kernel, "options", lambda *a: chosen(*a) | {"AHEAD_": count})


def together(values):
    return values if isinstance(values, tuple) else (values,)


def draw(name, shape, dtype, seed=0, shares=SHARES):
    """A value in the domain of its name, the same for the same name and seed."""
    generator = torch.Generator().manual_seed(seed + sum(map(ord, name)))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = 1 + x.abs() if name in POSITIVE else torch.sigmoid(x) if name in shares else x
    return x.to(dtype).to(DEVICE)


def cell_inputs(spec, shape, dtype, seed=0):
    batch, steps, width = shape
    shapes = {str(v): (batch, steps, width) for v in spec.inputs}
    shapes |= {str(v): (batch, width) for v in spec.carries}
    shapes |= dict.fromkeys(params_of(spec), (width,))
    shares = SHARES | gates_given(spec)
    return {n: draw(n, s, dtype, seed, shares).requires_grad_() for n, s in shapes.items()}


def step_by_step(spec, inputs):
    """(outputs, final states) of the torch source, one step after the other."""
    states = [v for v in spec.carries.values() if v not in spec.outputs]
    cell = dataclasses.replace(spec, outputs=(*spec.outputs, *states))
    run, outputs = cell.compile("torch"), []
    state = {str(p): inputs[str(p)] for p in spec.carries}
    streams = [n for n in inputs if n not in state and n not in params_of(spec)]
    for t in range(inputs[streams[0]].shape[1]):
        now = inputs | {n: inputs[n][:, t] for n in streams} | state
        values = together(run(*(now[str(v)] for v in spec.inputs)))
        value = dict(zip(map(str, cell.outputs), values, strict=True))
        outputs.append([value[str(v)] for v in spec.outputs])
        state = {str(p): value[str(v)] for p, v in spec.carries.items()}
    sequences = [torch.stack(s, 1) for s in zip(*outputs, strict=True)]
    return sequences, list(state.values())


def with_kernels(spec, inputs, keep=""):
    cell = scan(spec, params_of(spec), keep)
    initial = tuple(inputs[str(p)] for p in spec.carries)
    outputs, final = cell(*(inputs[n] for n in cell.names), initial_state=initial)
    return [*together(outputs)], [*together(final)]


def upstream(values, seed=7):
    return [draw(f"g{k}", v.shape, torch.float64, seed).to(v.dtype) for k, v in enumerate(values)]


def gradients(values, inputs, seeds=None):
    """Gradients of every input; zeros where nothing depends on it."""
    pairs = list(zip(values, seeds or upstream(values), strict=True))
    pairs = [(v, g) for v, g in pairs if v.requires_grad]
    found = torch.autograd.grad(
        [v for v, _ in pairs],
        list(inputs.values()),
        [g.to(v.dtype) for v, g in pairs],
        allow_unused=True,
        materialize_grads=True,
    )
    return list(found)


def in_dtype(inputs, dtype):
    return {n: x.detach().to(dtype).requires_grad_() for n, x in inputs.items()}


def assert_close(got, plain, truth, dtype):
    """float64: 1e-12. Below: at most twice the plain path's own error plus one rounding."""
    for k, (mine, theirs, exact) in enumerate(zip(got, plain, truth, strict=True)):
        assert mine.shape == exact.shape
        assert torch.isfinite(mine).all(), f"value {k} is not finite"
        if not exact.numel():
            continue
        largest = exact.abs().max().item()
        error = (mine.double() - exact).abs().max().item()
        budget = 1e-12 * max(1.0, largest)
        if dtype != torch.float64:
            own = (theirs.double() - exact).abs().max().item()
            budget = 2 * (own + torch.finfo(dtype).eps * largest)
        assert error <= budget, f"value {k}: error {error:.2e} above {budget:.2e}"


def assert_scan_agrees(spec, inputs, dtype, kernels=with_kernels):
    results = []
    for run, chosen in ((kernels, dtype), (step_by_step, dtype), (step_by_step, torch.float64)):
        xs = in_dtype(inputs, chosen)
        outputs, final = run(spec, xs)
        values = [*outputs, *final]
        results.append([*values, *gradients(values, xs, upstream([*outputs, *final]))])
    assert_close(*results, dtype)
