"""A gate that can't be is refused with a reason, a line, a column, and the name that was meant."""

from __future__ import annotations

import pickle

import pytest
import sympy as sp

from gatelib.spec import Spec, SpecError

INDENTED = """

    f = sigmoid(a)
    c = f*c_prev + {}
"""


def refused(line: str, signature: str = "a c_prev -> c", text: str = INDENTED) -> SpecError:
    """The error that the gate raises; no other type comes through."""
    with pytest.raises(SpecError) as caught:
        Spec.parse("cell", signature, text.format(line))
    return caught.value


@pytest.mark.parametrize(
    ("line", "column", "says"),
    [
        ("sigmiod(a)", 20, "`sigmiod` is not a known function.*; did you mean `sigmoid`"),
        ("Sigmoid(a)", 20, "did you mean `sigmoid`"),
        ("max(a, f)", 20, "did you mean `maximum`"),
        ("min(a, f)", 20, "did you mean `minimum`"),
        ("2*c_pre", 22, "`c_pre` is neither an input nor defined above; did you mean `c_prev`"),
        ("2*tanh", 22, r"`tanh` is a function: write `tanh\(\.\.\.\)`"),
        ("tanh(a, f)", 20, r"`tanh` takes 1 argument\(s\), got 2"),
        ("a**f", 23, "only"),
        ("a if a else f", 9, "is not an expression"),
        ("a/0", 20, "`a/0` has no finite real value: it divides by 0"),
        ("a/(1 - 1)", 20, "divides by 0"),
        ("1e400*a", 20, "`1e400`.*too large"),
        ("1e-400*a", 20, "too small"),
        ("1e999999999*a", 20, "too large"),
        ("10**400*a", 20, "too large"),
        ("9**9**9*a", 20, "too large"),
        ("1.0000001**10000*a", 20, "too large|too long"),
        ("a**1e30", 20, "exponent is too large"),
        ("log(0)*a", 20, "logarithm of 0"),
        ("0*log(0)", 22, "logarithm of 0"),
        ("log(-2)*a", 20, "not real"),
        ("sqrt(-1)*a", 20, "not real"),
        ("(-2)**0.5*a", 20, "not real"),
        ("0**-1", 20, "divides by 0"),
        ("exp(1000)*a", 20, "not finite"),
        ("exp(exp(exp(9)))*a", 24, "not finite"),
        ("a*1e200*1e200", 20, "too large"),
    ],
)
def test_line_and_column_are_those_of_the_given_text(line, column, says):
    error = refused(line)
    assert error.line == 4 and error.column == column
    assert __import__("re").search(says, str(error)), error
    assert "line 4" in str(error)


@pytest.mark.parametrize(
    "line",
    [
        "-" * 5000 + "a",
        "(" * 5000 + "a" + ")" * 5000,
        "tanh(" * 150 + "a" + ")" * 150,
        "a**" + "2**" * 3000 + "2",
        "a - (" * 95 + "a" + ")" * 95,
        "\0",
        "9" * 5000,
    ],
)
def test_what_is_nested_too_deeply_is_refused(line):
    error = refused(line)
    assert error.line is not None and error.column is not None


def test_a_long_chain_is_no_nesting():
    spec = Spec.parse(
        "long", "a b -> c", "c = " + " + b*".join(["a"] * 300) + " - " + "-" * 80 + "b"
    )
    assert Spec.read(repr(spec)) == spec


def test_a_line_that_nothing_uses_is_found():
    error = refused("a\n    d = f")
    assert (error.line, error.column, error.about) == (5, 5, "d")


def test_columns_count_letters_and_lines_those_of_the_whole_text():
    with pytest.raises(SpecError) as caught:
        Spec.read("cell: α β -> h\n    α_b = α*β\n    h = α_b + γ")
    assert (caught.value.line, caught.value.column) == (3, 15)


def test_an_error_of_a_constant_chain_has_a_place():
    error = refused("step(0)", "a -> c", "f = {}\nc = a*f**-0.5")
    assert error.line == 2 and "divides by 0" in str(error)


def test_an_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(refused("2*c_pre")))
    assert (error.line, error.column, error.about) == (4, 22, "c_pre")


@pytest.mark.parametrize(
    "make",
    [
        lambda s: s.subs(a="b +"),
        lambda s: s.subs(a="q"),
        lambda s: s.subs(b=0),
        lambda s: s.subs(b="1e400"),
        lambda s: s.replace(y="a/0"),
        lambda s: s.replace(why="a"),
        lambda s: s.vjp("g"),
        lambda s: s.limit(b=0),
        lambda s: s.limit(a=sp.pi),
        lambda s: s.partial("y", "x"),
    ],
)
def test_variants_that_cannot_be_are_refused(make):
    spec = Spec.parse("quotient", "a b -> y", "r = a/b\ny = tanh(a) + r")
    with pytest.raises(SpecError):
        make(spec)


def test_a_step_has_no_limit_at_its_jump():
    with pytest.raises(SpecError, match="no finite limit"):
        Spec.parse("jump", "a x -> y", "y = step(a)*x").limit(a=0)


def test_an_expression_made_by_hand_is_read_as_the_parser_reads_it():
    x, y = sp.Symbol("x"), sp.Symbol("y")
    spec = Spec("hand", ((y, 0.5 * x**2 + sp.Rational(1, 3)),), (x,), (y,))
    assert Spec.read(repr(spec)) == spec
    with pytest.raises(SpecError, match="is not an expression that a gate may use"):
        Spec("hand", ((y, sp.sin(x)),), (x,), (y,))


@pytest.mark.parametrize("line", ["x + z/sqrt(6*z)", "x + z*log(z)", "x + z*(1 - z/-sqrt(z)/-z)"])
def test_a_factor_of_zero_hides_no_division_by_zero(line):
    with pytest.raises(SpecError, match=r"divides by 0|logarithm of 0"):
        Spec.parse("hidden", "x -> y", f"z = x - x\ny = {line}")
