"""A Spec says what its equations say: derivatives, limits, variants, and errors with reasons."""

from __future__ import annotations

import copy
import pickle
import time

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib.equations import gate, lstm
from gatelib.equations.gru import GRU
from gatelib.functions import FUNCTIONS, Elementwise
from gatelib.spec import Spec, SpecError, symbol

RATIONAL = Spec.parse(
    "rational", "x y z -> u", "u = x*y/(z*z) - x/2 - (y - z)*x/3 + x**3 - 1/(1 + y*y)"
)
DEEP = Spec.parse(
    "deep",
    "x y -> u v",
    """
    p = softplus(x)*gelu(y)
    q = sqrt(1 + p*p) - log(2 + x*x)
    u = silu(q) + maximum(p, y)*exp(-q*q)
    v = relu(x - y) + hardsigmoid(u)
    """,
)
OVER_FEATURES = Spec.parse(
    "over_features",
    "x s b -> y p",
    """
    n = normalize(x)
    y = tanh(s*n + b)*rstd(b) + mean(x*s)
    p = softmax(2*x)*n - total(b*b)
    """,
)
FAMILIES = lstm.ALL | gate.ALL
SPECS = [*(known.spec for known in FAMILIES.values()), GRU, RATIONAL, DEEP, OVER_FEATURES]
IDS = [spec.name for spec in SPECS]


def tensors(spec, n=7, seed=0):
    """Random inputs of either sign; positive where the gate takes a logarithm or divides."""
    rng = np.random.default_rng(seed)
    atoms = {str(node.func) for _, e in spec.equations for node in e.atoms(sp.Function, sp.Pow)}
    low = 0.15 if {"log", "<class 'sympy.core.power.Pow'>"} & atoms else -1.5
    draw = {str(v): rng.uniform(low, 0.85, size=(2, n)) for v in spec.inputs}
    return {name: torch.tensor(value, requires_grad=True) for name, value in draw.items()}


def call(spec, known, target="torch"):
    return spec.evaluate(known, target)


def everything(spec):
    values = tuple(v for v, _ in spec.equations)
    return Spec(f"{spec.name}_values", spec.equations, spec.inputs, values)


def seeds(outputs, shape, seed=1):
    rng = np.random.default_rng(seed)
    return {f"g_{name}": torch.tensor(rng.normal(size=shape)) for name in map(str, outputs)}


@pytest.mark.parametrize("keep", [None, ""], ids=["kept", "recomputed"])
@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_the_derived_backward_pass_is_that_of_autograd(spec, keep):
    known = tensors(spec)
    outputs, values = call(spec, known), call(everything(spec), known)
    up = seeds(spec.outputs, (2, 7))
    loss = sum((outputs[n] * up[f"g_{n}"]).sum() for n in outputs)
    expected = torch.autograd.grad(loss, list(known.values()), allow_unused=True)
    found = call(spec.vjp(keep), {**known, **values, **up})
    for name, gradient in zip(known, expected, strict=True):
        gradient = torch.zeros(2, 7) if gradient is None else gradient
        # a vector's adjoint may come back broadcast over the features
        mine = found[f"d_{name}"] + torch.zeros(2, 7)
        assert (mine - gradient).abs().max() < 1e-12, name


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_the_derived_tangents_are_those_of_autograd(spec):
    known = tensors(spec)
    dots = {f"t_{n}": torch.randn_like(v) for n, v in known.items()}
    _, expected = torch.func.jvp(
        lambda *args: tuple(call(spec, dict(zip(known, args, strict=True))).values()),
        tuple(v.detach() for v in known.values()),
        tuple(dots.values()),
    )
    found = call(spec.jvp(), known | dots)
    for name, tangent in zip(map(str, spec.outputs), expected, strict=True):
        assert (found[f"t_{name}"] + torch.zeros(2, 7) - tangent).abs().max() < 1e-12


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_the_backward_pass_of_the_backward_pass_is_double_backward(spec):
    first = spec.vjp("")
    second = first.vjp("")
    known = tensors(spec) | {k: v.requires_grad_() for k, v in seeds(spec.outputs, (2, 7)).items()}
    inputs = {str(v): known[str(v)] for v in first.inputs}
    outputs = {
        n: v + 0 * sum(i.sum() for i in inputs.values()) for n, v in call(first, inputs).items()
    }
    outputs = {n: v + torch.zeros(2, 7) for n, v in outputs.items()}
    up = {str(v): torch.randn(2, 7).double() for v in second.inputs if v not in first.inputs}
    seeded = {n: next((u for k, u in up.items() if k.endswith(f"g_{n}")), 0) for n in outputs}
    loss = sum((v * seeded[n]).sum() for n, v in outputs.items())
    expected = torch.autograd.grad(loss, list(inputs.values()))
    found = call(second, inputs | up)
    for name, mine, gradient in zip(inputs, found.values(), expected, strict=True):
        assert (mine + torch.zeros(2, 7) - gradient).abs().max() < 1e-10, name


def test_every_function_has_its_derivative_by_value():
    x, y = sp.symbols("x y", real=True)
    for name, kind in FUNCTIONS.items():
        if not issubclass(kind, Elementwise) or name == "step":
            continue
        node = kind(*(x, y)[: next(iter(kind.nargs))])
        for position, argument in enumerate(node.args):
            at = {x: 0.3, y: -0.7}
            true = sp.diff(node.exact(), argument).subs(at)
            from gatelib.functions import exact

            mine = exact(node.derivative(position, node)).subs(at)
            assert abs(float(true) - float(mine)) < 1e-12, name


def test_a_backward_pass_is_derived_in_under_50_ms():
    lstm.PEEPHOLE.vjp()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        lstm.PEEPHOLE.vjp()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05


def test_the_cell_state_is_a_straight_wire():
    assert str(lstm.LSTM.partial("c", "c_prev")) == "f"
    assert lstm.LSTM.partial("c", "a_o") == 0


def test_peepholes_bend_the_wire():
    bent = sp.expand(lstm.PEEPHOLE.partial("c", "c_prev"))
    c, f, g, i, wf, wi = (sp.Symbol(n, real=True) for n in "c_prev f g i w_f w_i".split())
    expected = f + c * f * (1 - f) * wf + g * i * (1 - i) * wi
    assert sp.simplify(bent - expected) == 0


def test_partial_refuses_a_gate_that_looks_across_features():
    with pytest.raises(SpecError, match="elementwise"):
        lstm.LAYERNORM.partial("c", "c_prev")


def test_only_useful_values_are_saved():
    saved = {str(v) for v in lstm.LSTM.vjp().inputs}
    assert saved == {"c_prev", "i", "f", "g", "o", "m", "g_h", "g_c"}
    kept = {str(v) for v in lstm.LSTM.vjp("f o").inputs}
    assert {"f", "o", "a_i", "a_g"} <= kept and not {"i", "g", "m"} & kept


def test_a_value_that_does_not_exist_cannot_be_kept():
    with pytest.raises(SpecError, match="`q` is not a value that lstm computes"):
        lstm.LSTM.vjp(keep="q")


def test_an_open_forget_gate_is_a_limit():
    open_gate = lstm.LSTM.limit(a_f=sp.oo)
    assert "c = c_prev + i * g" in open_gate.source("numpy")
    assert "a_f" not in {str(v) for v in open_gate.inputs}


def test_a_limit_that_does_not_exist_is_refused():
    with pytest.raises(SpecError, match="no finite limit"):
        Spec.parse("grows", "a x -> y", "g = exp(a)\ny = g*x").limit(a=sp.oo)


def test_a_limit_can_be_differentiated_and_typeset():
    without = lstm.PEEPHOLE.limit(w_i=0, w_f=0, w_o=0)
    assert dict(without.equations) == dict(lstm.LSTM.equations)
    assert dict(without.vjp().equations) == dict(lstm.LSTM.vjp().equations)
    decay = Spec.parse("decay", "x t -> y", "y = exp(x + exp(-t))*relu(x)").limit(t=sp.oo)
    assert decay.same_as(Spec.parse("decay", "x -> y", "y = exp(x)*relu(x)"))
    assert "relu" in decay.latex() and str(decay.vjp().outputs[0]) == "d_x"


@pytest.mark.parametrize("line", ["y = p/q", "y = x*log(q) + p", "y = p*log(q)"])
def test_a_limit_that_divides_nothing_by_nothing_is_refused(line):
    spec = Spec.parse("ratio", "x -> y", f"p = exp(-x)\nq = 2*exp(-x)\n{line}")
    with pytest.raises(SpecError, match=r"divides by 0|logarithm of 0|no finite limit"):
        spec.limit(x=sp.oo)


@pytest.mark.parametrize(
    "make", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
@pytest.mark.parametrize("spec", [*SPECS, lstm.LSTM.vjp(), DEEP.jvp()], ids=lambda s: s.name)
def test_a_copy_keeps_the_order_of_the_author(spec, make):
    assert make(spec) == spec
    assert repr(make(spec)) == repr(spec)


def test_substitution_reorders_and_refuses_circles():
    with pytest.raises(SpecError, match="depend on each other in a circle"):
        lstm.PEEPHOLE.subs(f="o")
    later = Spec.parse("later", "x -> y z", "y = sigmoid(x)\nz = tanh(x)").subs(y="z")
    assert [str(v) for v, _ in later.equations] == ["z", "y"]


@pytest.mark.parametrize("line", ["y = v + total(mean(u))", "y = v*softmax(rstd(u))"])
def test_a_sum_over_features_that_are_all_alike_is_refused(line):
    with pytest.raises(SpecError, match="the same for every feature"):
        Spec.parse("alike", "u v -> y", line)


def test_a_backward_pass_that_would_sum_equal_adjoints_is_refused():
    spec = Spec.parse("alike", "u v -> y", "y = mean(total(u) + v)")
    with pytest.raises(SpecError, match=r"alike\.vjp: `d_u` takes total .* same for every feature"):
        spec.vjp()


@pytest.mark.parametrize("inner", ["total(u**2)", "softmax(u)", "mean(v*u)", "normalize(u)"])
def test_a_slope_of_0_is_not_summed_over_the_features(inner):
    alone = Spec.parse("flat", "u v -> y", f"y = v + step({inner})")
    assert [str(value) for _, value in alone.vjp().equations] == ["0", "g_y"]
    beside = Spec.parse("flat", "u v -> y", f"y = v*tanh(u) + maximum(step({inner}), 0)")
    smooth = Spec.parse("flat", "u v -> y", "y = v*tanh(u)")
    assert [e for _, e in beside.vjp().equations] == [e for _, e in smooth.vjp().equations]


def test_an_equation_made_by_hand_may_use_only_what_stands_above_it():
    x, y, z = (sp.Symbol(name, real=True) for name in "xyz")
    with pytest.raises(SpecError, match="`y` uses `z`, neither an input nor defined above"):
        Spec("hand", ((y, z), (z, x)), (x,), (y,))


def test_an_update_gate_of_one_copies_the_state():
    assert GRU.subs(z=1).source("numpy").count("=") == 1
    assert [str(v) for v in GRU.subs(z=1).inputs] == ["h_prev"]


def test_coupled_gates_are_one_gate_seen_twice():
    other = lstm.LSTM.replace("cifg", i="sigmoid(-a_f)")
    assert lstm.CIFG.same_as(other)
    assert not lstm.CIFG.same_as(lstm.LSTM)


def test_replace_reorders_and_refuses_circles():
    assert "a_i" not in {str(v) for v in lstm.CIFG.inputs}
    with pytest.raises(SpecError, match="circle"):
        lstm.LSTM.replace(i="1 - f", f="1 - i")
    with pytest.raises(SpecError, match="is an input"):
        lstm.LSTM.replace(a_i="1")


def test_a_missing_value_is_named():
    with pytest.raises(ValueError, match="values: expected a_g, c_prev too"):
        lstm.LSTM.evaluate({"a_i": 0.0, "a_f": 0.0, "a_o": 0.0})


def test_carries_are_found_by_name():
    assert {str(k): str(v) for k, v in lstm.LSTM.carries.items()} == {"c_prev": "c"}
    assert lstm.LSTM.is_elementwise and not lstm.LAYERNORM.is_elementwise


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_what_a_spec_prints_can_be_read_back(spec):
    for part in (spec, spec.vjp(), spec.jvp()):
        again = Spec.read(repr(part))
        known = tensors(part)
        for a, b in zip(call(part, known).values(), call(again, known).values(), strict=True):
            assert torch.allclose(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-12, atol=1e-14)


def test_latex_keeps_the_order_of_the_author():
    tex = lstm.LSTM.latex()
    assert r"c_{t} &= f_{t} \odot c_{t-1} + i_{t} \odot g_{t}" in tex
    assert r"\bar{c}_{t-1} &= \bar{c}_{t} \odot f_{t}" in lstm.LSTM.vjp().latex()
    assert r"w^{f}" in lstm.PEEPHOLE.latex() or r"w_{f}" in lstm.PEEPHOLE.latex()
    assert r"\frac{x \odot y}{z^{2}}" in RATIONAL.latex()
    assert lstm.LSTM.latex({"f": r"\phi"}).count(r"\phi") == 2


@pytest.mark.parametrize(
    ("signature", "text", "says"),
    [
        ("a -> i", "i = y", "line 1: `y` is neither an input nor defined above"),
        ("a -> i", "i = sigmoid(a)\ni = tanh(a)", "line 2: `i` is already defined"),
        ("a -> i", "a = 1", "line 1: `a` is already defined"),
        ("a -> i", "i = a +", "line 1: invalid syntax"),
        ("a -> i", "i = foo(a)", "line 1: `foo` is not a known function"),
        ("a -> i", "i = tanh(a, a)", r"line 1: `tanh` takes 1 argument\(s\), got 2"),
        ("a -> i", "i = a**a", "line 1: only"),
        ("a -> i", "1 + 1", "line 1: expected 'name = expression'"),
        ("a -> i", "i = a if a else 3", "is not an expression that a gate may use"),
        ("a -> i", "i = a\nj = a", "`j` is defined but nothing uses it"),
        ("a b -> i", "i = a", "`b` is defined but nothing uses it"),
        ("a -> i k", "i = a", "the output `k` is never defined"),
        ("a a -> i", "i = a", "`a` stands twice in the signature"),
        ("a -> i i", "i = a", "`i` stands twice in the signature"),
        ("a i", "i = a", "expected a signature 'inputs -> outputs'"),
        ("-> i", "i = 1", "needs inputs and outputs"),
        ("a -> tanh", "tanh = a", "`tanh` is the name of a function"),
        ("a -> F", "F = a", "`F` is the name of a module"),
        ("a -> i_", "i_ = a", "may not start or end with _"),
        ("a -> lambda", "i = a", "`lambda` is not a name"),
        ("a -> i", "i = a and a", "is not an expression"),
        ("a -> i", "i = 'a'", "is not an expression"),
        ("a -> i", "i = True", "is not an expression"),
    ],
)
def test_a_wrong_gate_is_refused_with_line_and_reason(signature, text, says):
    with pytest.raises(SpecError, match=says):
        Spec.parse("bad", signature, text)


LEAVES = st.sampled_from(["x", "y", "z", "2", "0.5", "3"])
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
        inner.map(lambda e: f"tanh({e})"),
        inner.map(lambda e: f"sigmoid({e})"),
        inner.map(lambda e: f"(-{e})"),
        inner.map(lambda e: f"{e}**2" if e.isidentifier() else f"({e})**2"),
        st.tuples(inner, inner).map(lambda p: f"({p[0]} / (2 + ({p[1]})**2))"),
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(tree=TREES)
def test_any_expression_computes_what_python_would(tree):
    text = f"x + y + z + {tree}"
    try:
        spec = Spec.parse("any_gate", "x y z -> out", f"out = {text}")
    except SpecError as error:  # x - x cancels, and then nothing uses x
        assert "nothing uses it" in str(error)
        return
    values = dict(zip("xyz", (0.3, -0.7, 1.1), strict=True))
    scope = {"tanh": np.tanh, "sigmoid": lambda a: 1 / (1 + np.exp(-a))}
    try:
        expected = eval(text, {}, scope | values)
    except OverflowError:
        return
    if abs(expected) > 1e6:
        return
    found = spec.compile("numpy")(*(np.float64(values[str(v)]) for v in spec.inputs))
    assert abs(found - expected) <= 1e-9 * max(1, abs(expected))
    step = 1e-6
    back = call(spec.vjp(""), {**values, "g_out": 1.0}, "numpy")
    for n in "xyz":
        low, high = (eval(text, {}, scope | values | {n: values[n] + s}) for s in (-step, step))
        slope = (high - low) / (2 * step)
        if abs(slope) < 1e5:
            assert abs(back[f"d_{n}"] - slope) <= 1e-4 * max(1, abs(slope))


def test_text_that_is_no_spec_is_refused():
    with pytest.raises(SpecError, match="text: expected 'name: inputs -> outputs' first"):
        Spec.read("i = sigmoid(a)")


def test_a_root_is_set_as_a_root():
    spec = Spec.parse("root", "p -> q", "q = 1/(sqrt(p) + sqrt(1 + p))")
    assert spec.latex().count(r"\sqrt{") == 2 and "operatorname" not in spec.latex()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("maximum(2, gelu(-1e2))*x", 6.0),
        ("minimum(0, gelu(-1e2)) + x", 3.0),
        ("relu(gelu(-1e2)) + x", 3.0),
        ("maximum(x, gelu(-100))", 3.0),
    ],
)
def test_numbers_that_sympy_cannot_tell_apart_are_compared_as_floats(text, value):
    spec = Spec.parse("near", "x -> y", f"y = {text}")
    assert spec.evaluate({"x": np.array([3.0])})["y"] == [value]
    assert float(spec.compose()["y"].subs(symbol("x"), 3)) == value
