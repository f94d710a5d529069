"""Cells that a reader might write train through the fast path as through the plain loop."""

from __future__ import annotations

import pytest
import torch

from gatelib.cell import cell
from gatelib.kernels.steps import steps, steps_of_text
from gatelib.nn import Recurrent
from gatelib.spec import Spec, symbol
from tests.nn.cells import LINES, WRITTEN, of_lines
from tests.nn.witness import derivatives, poisoned

B, T, D, H = 3, 4, 3, 5
every_cell = pytest.mark.parametrize("spec", WRITTEN, ids=lambda spec: spec.name)
every_line = pytest.mark.parametrize("title", LINES)


def layer(spec, impl, seed=0, **options):
    """A layer with small weights, as some cells grow without bound."""
    torch.manual_seed(seed)
    made = Recurrent(spec, D, H, impl=impl, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(0.3)
    return made


def scene(made):
    """Input and positive states of a layer (sLSTM divides by one)."""
    torch.manual_seed(1)
    shape = (1, B, H)
    state = {k: torch.rand(shape, dtype=torch.float64).add_(0.5) for k in made.cell.states}
    x = torch.randn(B, T, D, dtype=torch.float64).requires_grad_()
    return x, {k: v.requires_grad_() for k, v in state.items()}


def assert_alike(spec, order, tolerance=1e-10):
    found = {}
    for impl in ("fused", "reference"):
        made = layer(spec, impl)
        with poisoned():
            found[impl] = derivatives(made, *scene(made), order)
    for name, true in found["reference"].items():
        assert true.isfinite().all(), name
        error = (found["fused"][name] - true).abs().max()
        assert error <= tolerance * max(1.0, true.abs().max()), f"{name}: {error}"


@every_cell
@pytest.mark.parametrize("order", [1, 2])
def test_fused_equals_the_plain_loop(spec, order):
    assert_alike(spec, order)


@every_line
@pytest.mark.parametrize("order", [1, 2])
def test_numbers_mean_the_same_on_both_paths(title, order):
    assert_alike(of_lines(title), order)


@every_cell
def test_a_cell_trains_to_the_same_weights(spec):
    """Twenty steps towards a fixed sequence; the loss falls."""
    losses, weights = {}, {}
    for impl in ("fused", "reference"):
        made = layer(spec, impl, num_layers=2, bidirectional=True)
        torch.manual_seed(2)
        x, goal = torch.randn(B, T, D).double(), torch.rand(B, T, 2 * H).double().mul_(0.4)
        start = {k: torch.ones(4, B, H, dtype=torch.float64) for k in made.cell.states}
        optimiser = torch.optim.Adam(made.parameters(), 0.02)
        losses[impl] = []
        for _ in range(20):
            loss = (made(x, start)[0] - goal).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses[impl].append(loss.item())
        weights[impl] = torch.cat([p.detach().flatten() for p in made.parameters()])
    assert losses["fused"][-1] < losses["fused"][0]
    torch.testing.assert_close(losses["fused"], losses["reference"], atol=1e-9, rtol=0)
    torch.testing.assert_close(weights["fused"], weights["reference"], atol=1e-7, rtol=0)


def test_the_default_computes_what_the_lines_say():
    made = Recurrent(of_lines("a decay by an exponential"), 1, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(0.0)
        made.weight_ih_l0[0] = 1.0
    values = made.values(torch.tensor([[[0.3], [-0.91]]], dtype=torch.float64))[""]["c"]
    _, last = made(torch.tensor([[[0.3], [-0.91]]], dtype=torch.float64))
    first = torch.exp(torch.tensor(-3.0, dtype=torch.float64))
    second = 0.9 * first + torch.exp(torch.tensor(9.1, dtype=torch.float64))
    torch.testing.assert_close(values.flatten(), torch.stack([first, second]), atol=0, rtol=1e-14)
    torch.testing.assert_close(last["c"].flatten(), second[None], atol=0, rtol=1e-14)


@every_line
def test_the_text_of_a_cell_loses_nothing(title):
    known = cell(of_lines(title))
    assert steps_of_text(steps(known).text).cell == known


def test_the_text_of_a_cell_keeps_what_its_names_were_derived_from():
    back = of_lines("a quotient inside").vjp()
    equations = (*back.equations, (symbol("h"), back.equations[0][1]))
    outputs = (*back.outputs, symbol("h"))
    known = cell(Spec("derived", equations, (*back.inputs, symbol("a_z")), outputs, back.roles))
    assert steps_of_text(steps(known).text).cell == known and known.spec.roles
