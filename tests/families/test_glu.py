"""The witnesses of the GLU family agree: equations, NumPy by hand, torch by autograd."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gatelib import derived, lab
from gatelib.equations import glu as equations
from gatelib.nn import GLU, GatedMLP
from gatelib.reference import glu as reference
from tests.families.witnesses import assert_agree, close

KINDS = sorted(equations.KINDS)
GATED = sorted(equations.GATED)
CLAMPED = ("deepseek_v4", "gpt_oss", "situ", "softcapped")
LIMITS = {"gpt_oss": 7.0, "deepseek_v4": 10.0}
SCALES = [0.0, 1.0, 8.0, 50.0]
"""At 8 about a third of normal numbers are beyond the limits 7 and 10; at 50 nearly all."""


def problem(kind="swiglu", N=4, D=3, H=5, O=2, bias=True, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    weights = reference.initialize(rng, D, H, O, kind, bias)
    return {"x": scale * rng.normal(size=(N, D))} | weights, {"y": rng.normal(size=(N, O))}


def by_hand(given, upstream, kind):
    weights = {name: v for name, v in given.items() if name != "x"}
    y, saved = reference.forward_mlp(given["x"], weights, kind)
    grads = reference.backward_mlp(upstream["y"], saved)
    return {"y": y} | {f"d_{name}": grads[name] for name in given}


def by_equations(given, upstream, kind):
    return derived.gradients(partial(derived.glu.mlp, equations.KINDS[kind]), given, upstream)


NAMES = {"W_in": "weight_in", "W_out": "weight_out", "b_in": "bias_in", "b_out": "bias_out"}


def by_torch(given, upstream, kind, impl):
    (O, H), D = given["W_out"].shape, given["x"].shape[1]
    module = GatedMLP(D, H, O, kind, bias="b_in" in given, impl=impl)

    def run(leaves):
        own = {NAMES[name]: v for name, v in leaves.items() if name != "x"}
        return {"y": lab.called(module, own, leaves["x"])}

    return lab.gradients(run, given, upstream)


def bound_of(expected):
    return 1e-11 * (1 + max(np.abs(v).max(initial=0.0) for v in expected.values()))


# --- the whole MLP ----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    shape=st.tuples(st.integers(0, 4), *(st.integers(1, 5) for _ in range(3))),
    bias=st.booleans(),
    scale=st.sampled_from([0.0, 1.0, 50.0]),
    seed=st.integers(0, 99),
)
def test_three_witnesses_of_the_gated_mlp_agree_for_any_shape_and_size(
    kind, shape, bias, scale, seed
):
    case = problem(kind, *shape, bias, scale, seed)
    expected = by_equations(*case, kind)
    assert_agree(by_hand(*case, kind), expected, bound_of(expected))
    for impl in ("reference", "fused"):
        assert_agree(by_torch(*case, kind, impl), expected, bound_of(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_every_gradient_agree_to_ten_digits(kind):
    case = problem(kind, seed=1)
    expected = by_equations(*case, kind)
    assert_agree(by_hand(*case, kind), expected)
    for impl in ("reference", "fused"):
        assert_agree(by_torch(*case, kind, impl), expected)


# --- the gate alone ---------------------------------------------------------------------------


def parts_of(kind, scale, shape=(6, 5), seed=2):
    rng = np.random.default_rng(seed)
    count = 2 if kind in GATED else 1
    return [scale * rng.normal(size=shape) for _ in range(count)], rng.normal(size=shape)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", KINDS)
def test_three_witnesses_of_the_gate_agree_near_zero_and_far_out(kind, scale):
    parts, dy = parts_of(kind, scale)
    named = dict(zip("av", parts, strict=False))
    y, grads = reference.forward(*parts, variant=kind), {}
    grads = reference.backward(dy, *parts, variant=kind)
    spec = equations.KINDS[kind]
    close(spec.evaluate(named)["y"], y)
    for name, d in spec.vjp(keep="").evaluate(named | {"g_y": dy}).items():
        close(d, grads[name.removeprefix("d_")])
    leaves = [torch.tensor(part, requires_grad=True) for part in parts]
    found = equations_in_torch(kind)(*leaves)
    found.backward(torch.tensor(dy))
    close(found.detach().numpy(), y)
    for leaf, name in zip(leaves, "av", strict=False):
        close(leaf.grad.numpy(), grads[name])


def equations_in_torch(kind):
    return equations.KINDS[kind].compile("torch")


@pytest.mark.parametrize("kind", GATED)
def test_the_layer_is_the_gate_of_its_halves(kind):
    (a, v), dy = parts_of(kind, 8.0)
    expected = {"y": reference.forward(a, v, kind)} | reference.backward(dy, a, v, kind)
    for gate, impl in product(("first", "second"), ("reference", "fused", "auto")):
        halves = (a, v) if gate == "first" else (v, a)
        packed = torch.tensor(np.concatenate(halves, 1), requires_grad=True)
        y = GLU(1, kind, gate, impl=impl)(packed)
        y.backward(torch.tensor(dy))
        close(y.detach().numpy(), expected["y"])
        found = np.split(packed.grad.numpy(), 2, 1)
        for d, name in zip(found, "av" if gate == "first" else "va", strict=True):
            close(d, expected[name])


def test_the_reference_knows_every_kind():
    assert set(reference.VARIANTS) == set(equations.KINDS)


# --- what the clamped forms do at and beyond their limits ---------------------------------------


@pytest.mark.parametrize(("kind", "limit"), LIMITS.items())
def test_beyond_the_limit_the_gradient_is_exactly_zero_and_at_it_it_passes(kind, limit):
    a = np.array([limit - 1, limit, limit + 1e-9, 2 * limit, -2 * limit, 1e4])
    slope = reference.backward(np.ones(6), a, np.ones(6), kind)["a"]
    assert (slope[[0, 1]] > 0.5).all() and not slope[[2, 3, 5]].any()
    assert slope[4] != 0  # the gate is clamped above only
    v = np.array([limit, -limit, limit + 1e-9, -limit - 1e-9, 1e4, 0.0])
    slope = reference.backward(np.ones(6), np.ones(6), v, kind)["v"]
    assert (slope[[0, 1, 5]] > 0.5).all() and not slope[[2, 3, 4]].any()
    for part, other, name in ((a, np.ones(6), "a"), (v, np.ones(6), "v")):
        pair = {"a": part, "v": other} if name == "a" else {"a": other, "v": part}
        leaves = {k: torch.tensor(value, requires_grad=True) for k, value in pair.items()}
        equations_in_torch(kind)(**leaves).sum().backward()
        expected = reference.backward(np.ones(6), *pair.values(), kind)
        found = equations.KINDS[kind].vjp(keep="").evaluate(pair | {"g_y": np.ones(6)})
        for k, leaf in leaves.items():
            close(leaf.grad.numpy(), expected[k])
            close(found[f"d_{k}"], expected[k])


@pytest.mark.parametrize(("kind", "limit"), LIMITS.items())
def test_a_dropped_limit_shows_beyond_it_and_nowhere_else(kind, limit):
    numbers = {"gpt_oss": (1e9, 1.702, 1.0), "deepseek_v4": (1e9, 1.0, 0.0)}[kind]
    dropped = equations.clamped(*numbers)
    inside = {"a": np.linspace(-3 * limit, limit, 50), "v": np.linspace(-limit, limit, 50)}
    beyond = {"a": inside["a"] + 4 * limit, "v": inside["v"] + 2 * limit}
    right = equations.KINDS[kind]
    assert np.array_equal(right.evaluate(inside)["y"], dropped.evaluate(inside)["y"])
    assert np.abs(right.evaluate(beyond)["y"] - dropped.evaluate(beyond)["y"]).max() > 10 * limit


@pytest.mark.parametrize("kind", CLAMPED)
def test_a_clamped_gate_is_bounded_however_large_its_input(kind):
    a, v = (x.ravel() for x in np.meshgrid([-1e4, -9.0, 0.0, 9.0, 1e4], [-1e4, 9.0, 1e4]))
    y = reference.forward(a, v, kind)
    assert np.isfinite(y).all() and np.abs(y).max() <= {"gpt_oss": 56}.get(kind, 100)
    assert np.abs(equations.SWIGLU.evaluate({"a": a, "v": v})["y"]).max() == 1e8


def test_soft_caps_never_have_a_gradient_of_zero_where_hard_limits_do():
    a = np.array([12.0, 20.0])
    for kind in ("situ", "softcapped"):
        assert (reference.backward(np.ones(2), a, np.ones(2), kind)["a"] > 0).all()
    for kind in LIMITS:
        assert not reference.backward(np.ones(2), a, np.ones(2), kind)["a"].any()


# --- algebra ----------------------------------------------------------------------------------


def test_glu_has_a_path_to_its_value_that_only_the_gate_multiplies_and_gtu_has_not():
    assert str(equations.GLU.partial("y", "v")) == "g"
    assert str(sp.factor(equations.GTU.partial("y", "v"))) == "-g*(h - 1)*(h + 1)"


def test_a_gate_computed_from_its_own_value_is_silu():
    a, v = sp.symbols("a v", real=True)
    joined = equations.GLU.compose()["y"].subs(v, a)
    assert sp.simplify(joined - equations.SILU_UNIT.compose()["y"]) == 0


def test_a_gated_form_of_a_value_of_one_is_its_unit():
    pairs = {"reglu": "relu", "geglu": "gelu", "swiglu": "silu", "geglu_tanh": "gelu_tanh"}
    pairs["relu_squared_glu"] = "relu_squared"
    v = sp.Symbol("v", real=True)
    for gated, unit in pairs.items():
        y = equations.KINDS[gated].compose()["y"].subs(v, 1)
        assert sp.simplify(y - equations.KINDS[unit].compose()["y"]) == 0, gated


def test_clamped_and_capped_forms_tend_to_swiglu_as_their_limits_grow():
    a, v = np.random.default_rng(0).normal(size=(2, 50))
    expected = reference.forward(a, v, "swiglu")
    named = {"a": a, "v": v}
    close(equations.clamped(1e6, 1.0, 0.0).evaluate(named)["y"], expected, 1e-12)
    close(equations.softcapped(1e6, 1e6).evaluate(named)["y"], expected, 1e-10)


def test_the_tanh_form_of_gelu_is_within_five_ten_thousandths_of_gelu():
    a = np.linspace(-8, 8, 100_001)
    gap = np.abs(reference.forward(a, variant="gelu") - reference.forward(a, variant="gelu_tanh"))
    assert 4.6e-4 < gap.max() < 4.8e-4
    assert abs(abs(a[gap.argmax()]) - 2.70) < 0.01


@pytest.mark.parametrize("kind", GATED)
def test_inside_its_limits_a_gate_that_adds_and_squashes_nothing_is_linear_in_its_value(kind):
    a, v = np.random.default_rng(1).normal(size=(2, 20))
    twice = reference.forward(a, 2 * v, kind)
    linear = np.abs(twice - 2 * reference.forward(a, v, kind)).max() < 1e-12
    assert linear == (kind not in ("gtu", "gpt_oss", "situ", "softcapped"))


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(KINDS), a=st.floats(-1e4, 1e4), v=st.floats(-1e4, 1e4))
@example(kind="gpt_oss", a=7.0, v=-7.0)
@example(kind="deepseek_v4", a=10.0, v=10.0)
def test_everything_is_finite_at_ten_thousand_and_agrees(kind, a, v):
    parts = [np.array([a]), np.array([v])][: 2 if kind in GATED else 1]
    y = reference.forward(*parts, variant=kind)
    grads = reference.backward(np.ones(1), *parts, variant=kind)
    leaves = [torch.tensor(part, requires_grad=True) for part in parts]
    found = equations_in_torch(kind)(*leaves)
    found.sum().backward()
    close(found.detach().numpy(), y)
    assert np.isfinite(y).all()
    for leaf, name in zip(leaves, "av", strict=False):
        assert torch.isfinite(leaf.grad).all()
        close(leaf.grad.numpy(), grads[name])


# --- bad input --------------------------------------------------------------------------------

X = np.ones((2, 3))
BAD = [
    (lambda: reference.forward(X, X, "swish"), ValueError, "variant: expected one of .*'swiglu'"),
    (lambda: reference.forward(X, None, "glu"), ValueError, "v: expected a value beside a"),
    (lambda: reference.forward(X, X, "relu"), ValueError, "v: expected None for the variant"),
    (lambda: reference.forward(X, X[:1], "glu"), ValueError, r"v: expected \(2, 3\), got \(1, 3\)"),
    (lambda: reference.forward(X.astype(int), X), TypeError, "a: expected a floating dtype"),
    (lambda: reference.forward_mlp(X, {}), ValueError, "weights: expected"),
    (
        lambda: reference.forward_mlp(X, {"W_in": np.ones((9, 3)), "W_out": np.ones((3, 5))}),
        ValueError,
        r"weights\['W_in'\]: expected \(10, 3\), got \(9, 3\)",
    ),
    (lambda: equations.clamped(0.0), ValueError, "limit: expected a number above 0, got 0.0"),
    (lambda: equations.clamped(alpha="2"), TypeError, "alpha: expected a number, got str"),
    (lambda: equations.softcapped(value=np.inf), ValueError, "value: expected a finite number"),
    (lambda: equations.softcapped(-1.0), ValueError, "gate: expected a number above 0, got -1.0"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
