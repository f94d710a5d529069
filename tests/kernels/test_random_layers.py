"""Random layers over depth: the operator and the plain loop compute the same, gradients too."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gatelib.kernels.layers import layer as layer_of
from gatelib.nn import Highway
from gatelib.spec import SpecError
from tests.nn.witness import poisoned
from tests.strategies import (
    ADVERSARIAL,
    ELEMENTWISE,
    LEGITIMATE,
    OVER_FEATURES,
    Written,
    closed,
    read_or_reject,
)

FUNCTIONS = tuple(ELEMENTWISE + OVER_FEATURES)
TAKEN = ("x", "y")


@st.composite
def layers(draw):
    """Preactivations, what the layer receives, values of any name, the output `y`; some gates."""
    keys = draw(st.permutations("h t c f x d_x y_1".split()))
    pool = [n for n in draw(st.permutations(ADVERSARIAL)) if says_nothing(n)]
    count, gates = draw(st.integers(1, 2)), draw(st.integers(0, 2))
    inputs = [f"a_{k}" for k in keys[:count]] + draw(st.sampled_from([["x"], ["x"], []]))
    values = [*pool[gates : gates + draw(st.integers(0, 2))], "y"]
    own = closed(draw, "layer", (), [*inputs, *pool[:gates]], values, FUNCTIONS, 2, ("y",))
    read = dict(zip(pool[:gates], (f"a_{k}" for k in keys[count:]), strict=False))
    opened = tuple((gate, f"sigmoid({a})") for gate, a in read.items())
    given = tuple(read.get(v, v) for v in own.inputs)
    return Written("layer", given, ("y",), (*opened, *own.lines))


def says_nothing(name):
    return not name.startswith(("a_", "u_")) and not name.endswith("_prev") and name not in TAKEN


def stack_or_reject(written):
    """A stack of two such layers; a Spec that is refused for a good reason is no example."""
    spec = read_or_reject(written)
    try:
        known = layer_of(spec)
        assert known.step.arguments and known.step_back.arguments
    except SpecError as error:
        assume(not LEGITIMATE.search(str(error)))
        raise
    except ValueError as error:
        assume("every feature" not in str(error))
        raise
    torch.manual_seed(0)
    module = Highway(3, 2, spec=spec, impl="fused", dtype=torch.float64)
    with torch.no_grad():
        module.weight.mul_(0.3)
        module.bias.uniform_(0.3, 1.3)
    return module


def everything(module, x):
    """The output and all gradients of a fixed function of it."""
    x = x.detach().clone().requires_grad_()
    y = module(x)
    seed = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view_as(y)
    wanted = (x, *module.parameters())
    if not y.requires_grad:  # steps alone, which have no slope
        return [y, *map(torch.zeros_like, wanted)]
    return [y, *torch.autograd.grad(y, wanted, seed, allow_unused=True, materialize_grads=True)]


@pytest.mark.timeout(900)
@settings(max_examples=200, suppress_health_check=[HealthCheck.filter_too_much])
@given(layers())
def test_the_operator_computes_what_the_plain_loop_does(written):
    fused = stack_or_reject(written)
    plain = copy.deepcopy(fused)
    plain.impl = "reference"
    x = torch.rand(4, 3, dtype=torch.float64) + 0.3
    try:
        true, near = everything(plain, x), everything(plain, x * (1 + 1e-12))
    except (ZeroDivisionError, OverflowError):  # of numbers alone, which Python computes itself
        assume(False)
    assume(all(v.isfinite().all() and (v.abs() < 1e8).all() for v in (*true, *near)))
    with poisoned():
        found = everything(fused, x)
    for got, value, moved in zip(found, true, near, strict=True):
        bound = 1e-10 * max(1.0, value.abs().max()) + 100 * (moved - value).abs().max()
        assert (got - value).abs().max() <= bound, fused.spec
