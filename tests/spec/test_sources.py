"""Each source of any gate computes what its author's text says, read by Python itself."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from gatelib.spec import Spec, SpecError
from tests.spec.sources import drawn, evaluated, from_latex, in_javascript, wrong
from tests.strategies import (
    ELEMENTWISE,
    LEGITIMATE,
    OVER_FEATURES,
    Written,
    gates,
    read_or_reject,
)

EVERYTHING = tuple(ELEMENTWISE + OVER_FEATURES)
ANY = gates(names="both", lines=2)
WIDE = gates(EVERYTHING, names="both", lines=2)


def one(text: str) -> Written:
    """A gate of the line `u = text`, its inputs the letters that the text holds."""
    used = dict.fromkeys(re.findall(r"\b[a-z]\b", text))
    return Written("one", tuple(used), ("u",), (("u", text),))


FAILED = [
    "0.9*c + exp(-a/0.1)", "a - b/0.3", "-a/1.5", "tanh(-a/0.5)", "a**1.5", "0.5*h", "-c/(1/2)",
    "b/(1/a)", "(a**0.5)**5", "-a**1.5", "-(a**1.5)*b", "a - (b + c)", "-(a - b) - c", "a - -b",
    "x*a*-b**0.5", "(a*b)**0.5/(a/b)", "a**-2/b**-3", "1/(1/(1/a))", "2**-2*a", "a/3*3", "2/3*a",
    "a/(2/3)", "a - 1e30*(1 - m)", "sigmoid(1/2)*a", "1e-5*a + b", "2.5e-7*a*1e6",
    "(2/3)**0.5*a",
    "2**0.5*2**0.5*a", "a**(1/3)*b**(2/3)", "maximum(a, 1/3)", "maximum(2, a)*b", "(-a)**3/(-b)**2",
    "a*(b - c)/(-(b + c))", "silu(a)/silu(b)", "c/(b*silu(a + b))", "-silu(a)**2",
    "hardsigmoid(a)/b",
    "2*(a + b) - (a + b) + c", "x/3/a", "x/a/3", "1/a/b", "3*0.1*a", "a*0.1*0.2/0.3",
    "step(a)**1.5",
    "gelu(a)/gelu(-b)", "a/b*c/(b*c)", "-2*-a*-(b)", "--a**2", "a**2**3", "(a**2)**0.5",
    "1/4 + a/4",
    "1 - 1/3 + a", "normal_cdf(a)/normal_pdf(b)", "sqrt(2)*a + sqrt(1/2)", "a*exp(1)/exp(0.5)",
]  # fmt: skip


@pytest.mark.parametrize("text", FAILED)
def test_what_once_went_wrong_is_right_in_every_source(text):
    gate = one(text)
    for language in ("numpy", "torch"):
        assert not wrong(gate, evaluated(gate.spec, gate, language))
    assert Spec.read(repr(gate.spec)) == gate.spec
    (found,) = in_javascript([gate])
    assert isinstance(found, dict) and not wrong(gate, found)
    assert not wrong(gate, from_latex(gate))


def assert_computes_what_is_written(gate):
    spec = read_or_reject(gate)
    for language in ("numpy", "torch"):
        problem = wrong(gate, evaluated(spec, gate, language))
        assert not problem, problem


@settings(max_examples=500)
@given(gate=ANY)
def test_numpy_and_torch_compute_what_the_author_wrote(gate):
    assert_computes_what_is_written(gate)


@settings(max_examples=500)
@given(gate=WIDE)
def test_so_do_gates_that_look_across_the_features(gate):
    assert_computes_what_is_written(gate)


def test_javascript_computes_what_the_author_wrote():
    found = [*drawn(ANY, 500), *drawn(WIDE, 500)]
    for gate, answer in zip(found, in_javascript(found), strict=True):
        assert isinstance(answer, dict), (answer, gate)
        problem = wrong(gate, answer)
        assert not problem, problem


@settings(max_examples=500)
@given(gate=WIDE)
def test_latex_says_what_the_author_wrote(gate):
    read_or_reject(gate)
    problem = wrong(gate, from_latex(gate))
    assert not problem, problem


def derived(spec: Spec) -> list[Spec]:
    """The gate, and what is derived from it."""
    found = [spec, spec.exposed, spec.replace("other")]
    for make in (Spec.vjp, lambda s: s.vjp(""), Spec.jvp, lambda s: s.vjp("").vjp("")):
        try:
            found.append(make(spec))
        except SpecError as error:  # an adjoint that is the same for every feature
            assert LEGITIMATE.search(str(error)), error
    first = str(spec.inputs[0])
    for value in ("0.3", "1/3", "2", "-1"):
        try:
            found += [spec.subs(**{first: value}), spec.subs(**{first: value}).vjp("")]
        except SpecError as error:
            assert LEGITIMATE.search(str(error)), error
    return found


@settings(max_examples=500)
@given(gate=WIDE)
def test_every_gate_comes_back_from_its_own_text(gate):
    spec = read_or_reject(gate)
    assert Spec.read(repr(spec)) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


@settings(max_examples=500)
@given(gate=gates(EVERYTHING, names="both", lines=2, depth=1))
def test_so_does_every_gate_that_is_derived_from_it(gate):
    for spec in derived(read_or_reject(gate)):
        assert Spec.read(repr(spec)) == spec
        assert pickle.loads(pickle.dumps(spec)) == spec


def test_a_function_of_a_value_that_no_input_reaches_is_a_number():
    text = "x*maximum(w, 1/2) + exp(w) + mean(v) + rstd(v) + maximum(x, v)"
    lines = (("v", "normal_pdf(1)"), ("w", "tanh(0.3*v)"), ("u", text))
    gate = Written("one", ("x",), ("u", "v"), lines)
    for language in ("numpy", "torch"):
        assert not wrong(gate, evaluated(gate.spec, gate, language))
    found = gate.spec.evaluate({"x": np.ones((2, 3), dtype=np.float32)})
    assert found["v"].shape == (2, 3) and found["v"].dtype == np.float32


def test_torch_keeps_the_tail_of_the_normal_distribution():
    gate = one("gelu(a)**-1*normal_cdf(a)**-1*gelu(a - 1)*normal_cdf(a - 1)")
    found = gate.spec.evaluate({"a": torch.tensor(-20.0, dtype=torch.float64)}, "torch")["u"]
    assert float(found) == pytest.approx(float(gate.spec.evaluate({"a": -20.0})["u"]), rel=1e-12)
