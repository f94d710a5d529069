"""Random cells, called as generators call their own things, compute what their text says."""

from __future__ import annotations

import keyword

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from gatelib.cell import cell
from gatelib.nn import Recurrent
from gatelib.spec import SpecError
from tests.nn.witness import ByText, derivatives, poisoned
from tests.strategies import (
    ADVERSARIAL,
    ELEMENTWISE,
    LEGITIMATE,
    OVER_FEATURES,
    SMOOTH,
    cells,
    closed,
    read_or_reject,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # Python's and torch's, of numbers out of range
B, T, D, H = 3, 2, 2, 4
FUNCTIONS = tuple(ELEMENTWISE + OVER_FEATURES)
OWN = {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}
"""Names that no learned vector may have."""


def layer_of(spec):
    """A fused layer with small weights, and biases and vectors that are positive."""
    torch.manual_seed(0)
    made = Recurrent(spec, D, H, dtype=torch.float64, impl="fused")
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.mul_(0.2) if name.startswith("weight") else parameter.uniform_(0.3, 1.3)
    return made


def scene(made):
    """An input, and positive states."""
    x = torch.randn(B, T, D, dtype=torch.float64).requires_grad_()
    states = {k: torch.empty(1, B, H, dtype=torch.float64) for k in made.cell.states}
    return x, {k: v.uniform_(0.3, 1.2).requires_grad_() for k, v in states.items()}


class Watched(TorchDispatchMode):
    """Sees whether anything on the way is no number, which a step can hide."""

    left_numbers = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        filled = isinstance(result, torch.Tensor) and "empty" not in str(function)
        if filled and result.is_floating_point():
            self.left_numbers |= bool(result.isnan().any())
        return result


def found_by(run, given, order):
    """What it computes; the example is dropped where that is no number, or a huge one, or what it
    is made of is no number: a fused mask takes a slope at NaN for 1, the text for 0."""
    try:
        with Watched() as watched:
            found = derivatives(run, *given, order)
        assume(not watched.left_numbers)
    except (ZeroDivisionError, OverflowError):  # of numbers alone, which Python computes itself
        found = {"nothing": torch.tensor(torch.nan)}
    assume(all(v.isfinite().all() and (v.abs() < 1e8).all() for v in found.values()))
    return found


def sensitivity(run, made, given, order, true):
    """How far each result moves when everything moves by a part in 10¹²."""
    tensors, draw = [given[0], *given[1].values(), *made.parameters()], torch.Generator()
    before = [t.detach().clone() for t in tensors]
    with torch.no_grad():
        for t in tensors:
            t.mul_(1 + 1e-12 * torch.randn(t.shape, generator=draw, dtype=t.dtype))
    near = derivatives(run, *given, order)
    with torch.no_grad():
        for t, old in zip(tensors, before, strict=True):
            t.copy_(old)
    return {name: (near[name] - v).abs().max() for name, v in true.items()}


def assert_right(made, witness, order=1):
    """The fused layer and a witness agree to 1e-10, or to what a rounding makes of the cell.

    Where the plain loop gives no number either, a function of torch has left its range.
    """
    given, plain = scene(made), Recurrent(made.cell, D, H, dtype=torch.float64, impl="reference")
    plain._parameters = made._parameters  # the same tensors
    found_by(plain, given, order)
    true = found_by(witness, given, order)
    moved = sensitivity(witness, made, given, order, true)
    with poisoned():
        got = derivatives(made, *given, order)
    for name, value in true.items():
        error = (got[name] - value).abs().max()
        bound = 1e-10 * max(1.0, value.abs().max()) + 10 * moved[name]
        assert error <= bound, f"{name}: {error:.1e} > {bound:.1e} for {made.cell.stages}"


def layer_or_reject(written):
    """The layer; names of its own parameters are refused, and so no example."""
    spec = read_or_reject(written)
    assume(not OWN & set(cell(spec).vectors))
    try:
        spec.vjp()
    except SpecError as error:  # a total of equal adjoints has no text: mean(total(u) + v)
        assume(not LEGITIMATE.search(str(error)))
        raise
    return layer_of(spec)


@pytest.mark.timeout(900)
@settings(max_examples=500, suppress_health_check=[HealthCheck.filter_too_much])
@given(cells(FUNCTIONS, names="both"))
def test_the_fast_path_computes_what_the_text_says(written):
    made = layer_or_reject(written)
    assert_right(made, ByText([written], made))


@pytest.mark.timeout(900)
@settings(max_examples=150, suppress_health_check=[HealthCheck.filter_too_much])
@given(cells(tuple(SMOOTH), names="adversarial", lines=2))
def test_second_derivatives_are_those_of_the_text(written):
    made = layer_or_reject(written)
    assert_right(made, ByText([written], made), order=2)


SMALL = tuple("sigmoid tanh relu exp softplus silu mean normalize maximum".split())


def says_nothing(name):
    """Whether a name is free, and has no meaning by the convention of cells."""
    special = name.startswith(("a_", "u_")) or name.endswith("_prev") or keyword.iskeyword(name)
    return not special and name not in {"h", "q", *OWN}


@st.composite
def staged(draw):
    """Two stages whose names are of all kinds; the second takes values of the first, and `q`."""
    pool = [name for name in draw(st.permutations(ADVERSARIAL)) if says_nothing(name)]
    carry, shared, own, passed, more = pool[:5]
    k, other = draw(st.permutations("f i g r x".split()))[:2]
    first = [f"a_{k}", "h_prev", *draw(st.sampled_from([[], [shared], [f"{carry}_prev"]]))]
    first += draw(st.sampled_from([[], [f"u_{k}"]]))
    one = closed(draw, "one", (), first, [passed, "q"], SMALL, 1, (passed, "q"))
    second = [f"a_{other}", passed, *draw(st.sampled_from([[], ["q"], ["h_prev"], [own]]))]
    second += [f"{carry}_prev", *draw(st.sampled_from([[], [f"u_{other}"], [shared]]))]
    two = closed(draw, "two", (), second, [more, carry, "h"], SMALL, 1, ("h", carry))
    return one, two


@pytest.mark.timeout(900)
@settings(max_examples=200, suppress_health_check=[HealthCheck.filter_too_much])
@given(staged())
def test_two_stages_compute_what_their_text_says(stages):
    made = layer_of([read_or_reject(stage) for stage in stages])
    assert_right(made, ByText(stages, made))
