"""The text of the generated Triton kernels: names, numbers, powers, what is refused.

Imports SymPy and gatelib; Triton where a test loads a kernel.
"""

import inspect
import re

import pytest
import sympy as sp

from gatelib.kernels import scan_source, triton_source
from gatelib.kernels.launch import load
from gatelib.spec import SpecError
from tests.kernels.triton_cells import (
    LSTM,
    MINGRU,
    RGLRU,
    all_specs,
    named,
    params_of,
    parse,
)


@named(all_specs())
def test_harness_names_and_gate_names_are_apart(spec):
    """Names of the harness end in _, which no name of a Spec may do."""
    texts = [triton_source.elementwise(spec)]
    if spec.carries:
        texts.append(scan_source.time_scan(spec, params_of(spec)).text)
    names = {str(v) for s in (spec, spec.vjp("")) for v in (*s.inputs, *dict(s.equations))}
    for text in texts:
        kernels = text[re.search(rf"def {spec.name}_", text).start() :]
        assigned = set(re.findall(r"^ +(\w+) [-+]?= ", kernels, re.M))
        assert all(name in names or name.endswith("_") for name in assigned)


def test_the_prelude_holds_only_what_is_called():
    text = triton_source.elementwise(MINGRU)
    assert "def tanh" not in text
    assert "def log1p" in triton_source.elementwise(RGLRU)


def test_python_can_show_the_source_of_a_kernel():
    kernel = load(triton_source.elementwise(LSTM))["lstm_elementwise"]
    assert "c = f * c_prev + i * g" in inspect.getsource(kernel.fn)


def test_tanh_near_zero_is_the_pade_approximant():
    """[7/6]: its series agrees with tanh's through x**13; at 1/2 the rest is below 2**-52."""
    x = sp.Symbol("x")
    s = x * x
    above = x * (135135 + s * (17325 + s * (378 + s)))
    below = 135135 + s * (62370 + s * (3150 + s * 28))
    assert sp.series(above / below - sp.tanh(x), x, 0, 15).removeO() == 0
    half = sp.Rational(1, 2)
    assert abs(sp.N((above / below).subs(x, half) / sp.tanh(half) - 1, 30)) < 2**-52
    body = triton_source.PRELUDE["tanh"]
    assert str(below.as_poly(x).coeff_monomial(1)) in body


def test_a_name_that_triton_needs_is_refused():
    with pytest.raises(SpecError, match="`tl` is a name that Triton's own language needs"):
        triton_source.elementwise(parse("odd", "tl -> y", "y = 2*tl"))


def lines(expression, inputs="x"):
    """The equations of a kernel that computes one expression."""
    return triton_source.equations(parse("odd", f"{inputs} -> y", f"y = {expression}"))


def test_every_power_has_a_form():
    """Small whole and half powers by products and roots, all others by a logarithm in float64."""
    assert lines("x**1.5") == "    y = x * tl.sqrt(x)\n"
    assert lines("x**-2") == "    y = 1 / x / x\n"
    assert lines("x**0.3") == "    y = power_(x, 0.3)\n"
    assert lines("x**-0.3") == "    y = 1 / power_(x, 0.3)\n"
    assert lines("x**21") == "    y = whole_power_(x, 21.0, -1.0)\n"
    text = triton_source.elementwise(parse("odd", "x -> y", "y = x**0.3"))
    assert "def power_" in text and "def whole_power_" not in text


def test_numbers_are_written_so_that_triton_can_hold_them():
    """Its whole numbers end at 64 bits, and a value that is a number alone would be a float32."""
    assert "1e+30 * x" in lines("1e30*x")
    assert "9007199254740993" not in lines("9007199254740993*x")
    assert lines("sigmoid(1/2)*x") == "    y = 0.6224593312018546 * x\n"
    assert lines("2**0.3*x") == f"    y = {2**0.3!r} * x\n"
    assert "k = tl.full([BLOCK_], 0.9, DTYPE_)" in triton_source.equations(
        parse("odd", "x -> y", "k = 0.9", "y = k*x")
    )
    assert "maximum(x, tl.full([BLOCK_], 0.5, DTYPE_))" in lines("maximum(x, 0.5)")
    assert "minimum(tl.full([BLOCK_], 2.0, DTYPE_), x)" in lines("minimum(2, x)")
