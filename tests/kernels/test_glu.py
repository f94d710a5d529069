"""Fused gates over features: every derivative is the equations', and only inputs are saved.

Imports Hypothesis, torch, gatelib.kernels and tests.kernels.
The Triton kernels are tested by `glu_cases.py`, under the interpreter, and by
`test_glu_compiled.py`.
"""

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from gatelib.kernels import blocks
from gatelib.kernels.gated import PROBES, TORCH_CALLS, X, gated_of
from gatelib.kernels.glu import gated, gated_linear
from gatelib.spec import Spec
from tests.kernels.glu_leaves import (
    draw,
    eager,
    eager_linear,
    gradients,
    leaves_of,
    packed_of,
    same,
)
from tests.kernels.glu_specs import ALL, FAMILY, SWIGLU, named

GATES = ("first", "second")


# --- values and derivatives -------------------------------------------------------------------


@named(ALL)
@pytest.mark.parametrize("gate", GATES)
def test_value_and_gradient_are_the_equations(spec, gate):
    packed = packed_of(spec, 3, 7, 5)
    got, expected = gated(spec, packed, gate=gate), eager(spec, packed, gate=gate)
    same(got, expected)
    same(gradients(got, packed), gradients(expected, packed))


@named(ALL)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("biased", [True, False])
def test_value_and_gradients_through_the_linear_map_are_the_equations(spec, gate, biased):
    packed, weight, bias = leaves_of(spec)
    bias, wanted = (bias, (packed, weight, bias)) if biased else (None, (packed, weight))
    got = gated_linear(spec, packed, weight, bias, gate=gate)
    expected = eager_linear(spec, packed, weight, bias, gate)
    same(got, expected)
    same(gradients(got, wanted), gradients(expected, wanted))


@named(ALL)
def test_separate_inputs_are_as_a_packed_one(spec):
    values = [draw(4, 6, seed=k) for k in range(len(spec.inputs))]
    got, expected = gated(spec, *values), spec.compile("torch")(*values)
    same(got, expected)
    options = {"allow_unused": True, "materialize_grads": True}
    same(gradients(got, values, **options), gradients(expected, values, **options))


@named(ALL)
def test_first_and_second_derivatives_are_those_of_differences(spec):
    """Away from kinks, where differences have no derivative to agree with."""
    packed, weight, bias = leaves_of(spec, rows=2, size=2, outputs=2, scale=1.0)
    assert torch.autograd.gradcheck(lambda *v: gated_linear(spec, *v), (packed, weight, bias))
    assert torch.autograd.gradgradcheck(lambda *v: gated_linear(spec, *v), (packed, weight, bias))
    assert torch.autograd.gradcheck(lambda v: gated(spec, v), packed)
    assert torch.autograd.gradgradcheck(lambda v: gated(spec, v), packed)


@named(FAMILY)
def test_gradients_are_the_same_where_a_graph_of_them_is_asked_for(spec):
    leaves = leaves_of(spec)
    once = gradients(gated_linear(spec, *leaves), leaves)
    again = gradients(gated_linear(spec, *leaves), leaves, create_graph=True)
    same(again, once)


@given(
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    at=st.integers(0, 3),
    spec=st.sampled_from(ALL),
    gate=st.sampled_from(GATES),
    order=st.randoms(use_true_random=False),
    elements=st.sampled_from([1, 3, 8, 10**6]),
)
def test_any_shape_layout_and_axis_gives_the_equations(shape, at, spec, gate, order, elements):
    """Views of every order, expanded gradients, blocks of a few elements, empty tensors."""
    at %= len(shape)
    shape[at] *= len(spec.inputs)
    axes = list(range(len(shape)))
    order.shuffle(axes)
    turned = draw(*(shape[axis] for axis in axes))
    packed = turned.permute([axes.index(k) for k in range(len(shape))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "LEAST", elements)
        patch.setattr(blocks, "BLOCK_BYTES", 0)
        got = gated(spec, packed, dim=at, gate=gate)
        (slope,) = torch.autograd.grad(got.sum(), turned)
    expected = eager(spec, packed, at, gate)
    same(got, expected)
    same(slope, torch.autograd.grad(expected.sum(), turned, materialize_grads=True)[0])


@given(
    rows=st.lists(st.integers(0, 4), max_size=3),
    size=st.integers(1, 5),
    outputs=st.integers(1, 4),
    spec=st.sampled_from(ALL),
)
def test_any_number_of_rows_goes_through_the_linear_map(rows, size, outputs, spec):
    packed = packed_of(spec, *rows, size)
    weight, bias = draw(outputs, size, seed=1), draw(outputs, seed=2)
    got, expected = (run(spec, packed, weight, bias) for run in (gated_linear, eager_linear))
    same(got, expected)
    wanted = (packed, weight, bias)
    found, known = (torch.autograd.grad(y.sum(), wanted) for y in (got, expected))
    same(found, known)


# --- what is saved, and what is left alone ----------------------------------------------------


def held(run, known):
    """Elements of the distinct storages that the graph of `run()` holds, apart from `known`."""
    found = {}

    def keep(value):
        found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        y = run()
    own = {value.untyped_storage().data_ptr() for value in known}
    return sum(size for at, size in found.items() if at not in own) // y.element_size()


@named([s for s in FAMILY if len(s.inputs) == 2])
def test_only_the_inputs_are_saved(spec):
    """Two values an element, where autograd of the usual form saves four: a, v, act(a), product."""
    x, up, weight = draw(8, 3), draw(32, 3, seed=1), draw(5, 16, seed=2)
    own = held(lambda: gated_linear(spec, F.linear(x, up), weight), (x, up, weight))
    assert own == 8 * 32


def test_the_usual_form_saves_twice_as_much():
    x, up, weight = draw(8, 3), draw(32, 3, seed=1), draw(5, 16, seed=2)

    def usual():
        a, v = F.linear(x, up).chunk(2, -1)
        return F.linear(F.silu(a) * v, weight)

    assert held(usual, (x, up, weight)) == 2 * 8 * 32


@named(ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_inputs_are_not_written_and_a_second_backward_gives_the_same_bits(spec, dtype):
    leaves = leaves_of(spec, dtype=dtype)
    before = [v.detach().clone() for v in leaves]
    y = gated_linear(spec, *leaves)
    upstream = torch.ones_like(y)
    first = torch.autograd.grad(y, leaves, upstream, retain_graph=True)
    bits = [g.clone() for g in first]
    second = torch.autograd.grad(y, leaves, upstream)
    assert all(map(torch.equal, second, bits)) and all(map(torch.equal, first, bits))
    assert all(map(torch.equal, before, leaves)) and torch.equal(upstream, torch.ones_like(y))


def test_the_gradient_that_arrives_is_not_written():
    packed, upstream = draw(4, 6), draw(4, 3, seed=1).detach()
    before = upstream.clone()
    gated(SWIGLU, packed).backward(upstream)
    assert torch.equal(upstream, before)


@named(ALL)
def test_one_tensor_may_be_gate_and_value(spec):
    x = draw(3, 4)
    values = [x] * len(spec.inputs)
    got, expected = gated(spec, *values), spec.compile("torch")(*values)
    same(got, expected)
    same(gradients(got, x), gradients(expected, x))


@named(ALL)
def test_every_buffer_is_written_before_it_is_read(spec, monkeypatch):
    """New memory holds NaN here, so what nobody wrote would be seen."""
    new_empty = torch.Tensor.new_empty

    def spoiled(*given, **options):
        return new_empty(*given, **options).fill_(torch.nan)

    monkeypatch.setattr(torch.Tensor, "new_empty", spoiled)
    leaves = leaves_of(spec)
    y = gated_linear(spec, *leaves)
    assert not any(v.isnan().any() for v in (y, *gradients(y, leaves)))


# --- low precision ----------------------------------------------------------------------------


@named(ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_error_is_one_rounding_and_a_few_of_float32(spec, dtype):
    """Measured from float64; torch's own form in the lower precision rounds after each call."""
    packed = packed_of(spec, 40, 50, dtype=dtype)
    wide = packed.detach().double().requires_grad_()
    got, truth = gated(spec, packed), eager(spec, wide)
    upstream = draw(*got.shape, seed=3, dtype=dtype).detach()
    (slope,) = torch.autograd.grad(got, packed, upstream)
    (true_slope,) = torch.autograd.grad(truth, wide, upstream.double())
    for value, exact in ((got, truth), (slope, true_slope)):
        assert value.dtype == dtype
        rounding = torch.finfo(dtype).eps / 2 * exact.abs() + torch.finfo(dtype).smallest_normal
        budget = rounding + 16 * torch.finfo(torch.float32).eps * (1 + exact.abs().max())
        assert ((value.double() - exact).abs() <= budget).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_linear_map_of_low_precision_is_no_worse_than_torchs(dtype):
    packed, weight, bias = leaves_of(SWIGLU, 64, 48, 32, dtype=dtype)
    wide = [v.detach().double().requires_grad_() for v in (packed, weight, bias)]
    results = []
    for run, leaves in (
        (gated_linear, (packed, weight, bias)),
        (eager_linear, (packed, weight, bias)),
        (eager_linear, wide),
    ):
        y = run(SWIGLU, *leaves)
        results.append([y, *gradients(y, leaves)])
    for mine, theirs, exact in zip(*results, strict=True):
        own, usual = ((v.double() - exact).abs().max() for v in (mine, theirs))
        assert own <= 1.5 * usual + torch.finfo(dtype).eps * exact.abs().max()


def test_autocast_rounds_the_weight_and_the_product():
    packed, weight, bias = leaves_of(SWIGLU, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, expected = (run(SWIGLU, packed, weight, bias) for run in (gated_linear, eager_linear))
    assert got.dtype == expected.dtype == torch.bfloat16
    wanted = (packed, weight, bias)
    for mine, theirs in zip(gradients(got, wanted), gradients(expected, wanted), strict=True):
        assert mine.dtype == theirs.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.1)


# --- what torch computes by one call ----------------------------------------------------------


@pytest.mark.parametrize("kind", TORCH_CALLS)
def test_what_torch_computes_by_one_call_is_what_is_said(kind):
    call = {
        "silu": F.silu,
        "gelu_erf": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    }
    points = torch.linspace(-9, 9, 37, dtype=torch.float64)
    expected = [float(TORCH_CALLS[kind].evalf(20, subs={X: float(x)})) for x in points]
    found = call[kind](points)
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14
    )


FORMS = {
    "y = a*sigmoid(a)*v": "silu",
    "s = sigmoid(a); g = a*s; y = g*v": "silu",
    "e = exp(-a); g = a/(1 + e); y = g*v": "silu",
    "g = a*normal_cdf(a); y = g*v": "gelu_erf",
    "g = a*(1 + tanh((2/3.141592653589793)**0.5*(a + 0.044715*a**3)))/2; y = g*v": "gelu_tanh",
    "g = a*sigmoid(1.702*a); y = g*v": None,
    "g = a*sigmoid(a) + 1e-9; y = g*v": None,
    "g = 0.5*a*(1 + tanh(0.79788*(a + 0.044715*a**3))); y = g*v": None,
}


@pytest.mark.parametrize("text", FORMS)
def test_a_unit_is_found_by_its_numbers_and_not_by_its_form(text):
    spec = Spec.parse("form", "a v -> y", text.replace("; ", "\n"))
    kind, known = FORMS[text], gated_of(spec)
    called = "gelu_" if kind == "gelu_erf" else kind if kind == "silu" else "gelu_(a, approx"
    whole = text.startswith("y =")
    if kind and not whole:
        assert called in known.ahead.source and f"{called[:4]}_backward_" in known.back.source
    if kind is None or whole:
        assert "_backward_(d_" not in known.back.source.replace("sigmoid_backward_", "")
    packed = draw(4, 6)
    got, expected = gated(spec, packed), eager(spec, packed)
    same(got, expected)
    same(gradients(got, packed), gradients(expected, packed))


def test_units_are_compared_where_they_differ():
    columns = [[float(e.evalf(subs={X: at})) for at in PROBES] for e in TORCH_CALLS.values()]
    for one, other in itertools.combinations(columns, 2):
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 1e-4


LIMITS = {
    "c = minimum(a, 10); g = silu(c); y = g*v": "Min",
    "c = maximum(a, -30); g = gelu(c); y = g*v": "Max",
    "c = (a + 10 - sqrt((a - 10)**2))/2; g = silu(c); y = g*v": "a minimum without a name",
}


@pytest.mark.parametrize("text", LIMITS)
def test_a_limit_far_out_is_not_dropped(text):
    """silu(min(a, 10)) was taken for silu(a), which it is wherever the two had been compared."""
    spec = Spec.parse("limited", "a v -> y", text.replace("; ", "\n"))
    a = torch.tensor([-100.0, -31.0, -3.0, 9.0, 11.0, 100.0], dtype=torch.float64)
    packed = torch.stack([a, a.flip(0)], 1).requires_grad_()
    got, expected = gated(spec, packed), eager(spec, packed)
    same(got, expected)
    same(gradients(got, packed), gradients(expected, packed))


@named(FAMILY)
def test_far_out_values_are_the_equations(spec):
    packed = packed_of(spec, 40, 8, scale=30.0)
    got, expected = gated(spec, packed), eager(spec, packed)
    same(got, expected)
    same(gradients(got, packed), gradients(expected, packed))


def test_swiglu_needs_no_buffer_but_its_results():
    known = gated_of(SWIGLU)
    for program in (known.ahead, known.back, known.back_again):
        assert not program.scratch and not program.constants


def test_a_gate_is_copied_and_pickled():
    known = gated_of(SWIGLU)
    for again in (copy.deepcopy(known), pickle.loads(pickle.dumps(known))):
        assert again == known and again.text == known.text
