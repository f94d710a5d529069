"""The agreement matrix finds every disagreement and prints the same text on every machine."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gatelib.lab.agreement import BOUNDS, MIME, agreement, error_bound

TRUTH = {"h": np.array([1.0, -2.0]), "dW": np.eye(2)}


def matrix(change: float = 0.0, **options):
    other = {"h": TRUTH["h"] + [0, change], "dW": torch.eye(2, dtype=torch.float64)}
    return agreement({"reference": TRUTH, "torch": lambda: other}, name="LSTM", **options)


def test_witnesses_that_agree_pass_and_print_bounds():
    table = matrix(1e-14)
    assert table.assert_below(1e-10) is table
    assert repr(table) == (
        "LSTM\n"
        "against reference  torch\n"
        "h                  ≤ 1e-12\n"
        "dW                 ≤ 1e-12\n"
        "--------------------------\n"
        "largest            ≤ 1e-12"
    ).replace("-" * 26, "-" * len("against reference  torch"))


def test_one_wrong_number_is_found_and_named():
    table = matrix(3e-6)
    with pytest.raises(AssertionError, match=r"LSTM: torch differs from reference in h by 1\.5"):
        table.assert_below(1e-10)
    assert table.worst == pytest.approx(1.5e-6) and table.worst_of("torch") == table.worst
    assert table.table()[1] == ["h", "≤ 1e-05"]


def test_a_witness_may_have_its_own_bound():
    matrix(3e-6).assert_below(1e-10, torch=1e-5)
    with pytest.raises(ValueError, match=r"bounds: expected witnesses of .'torch'.*got .'jax'"):
        matrix().assert_below(jax=1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_agrees(bad):
    table = matrix(bad)
    with pytest.raises(AssertionError):
        table.assert_below(1e300)
    assert table.table()[1] == ["h", "not finite"]


def test_the_same_infinity_agrees_but_nan_does_not_agree_with_nan():
    infinite, nan = {"h": np.array([-np.inf, 1.0])}, {"h": np.array([np.nan])}
    assert agreement({"a": infinite, "b": infinite}).worst == 0
    assert agreement({"a": nan, "b": nan}).worst == np.inf


def test_errors_are_relative_for_large_arrays_and_absolute_for_small():
    large = agreement({"a": {"h": np.array([1e6, 0.0])}, "b": {"h": np.array([1e6, 1.0])}})
    small = agreement({"a": {"h": np.array([1e-6])}, "b": {"h": np.array([3e-6])}})
    assert large.worst == pytest.approx(1e-6) and small.worst == pytest.approx(2e-6)


@given(st.floats(0, 1e3))
def test_a_printed_bound_holds(error):
    text = error_bound(error)
    assert error <= float(text[2:]) if text[0] == "≤" else error > BOUNDS[-1]


@given(st.floats(0, 1e-13), st.floats(0, 1e-13))
def test_rounding_errors_do_not_change_the_page(one, other):
    assert matrix(one)._repr_mimebundle_() == matrix(other)._repr_mimebundle_()


def test_the_site_gets_stable_json():
    bundle = matrix()._repr_mimebundle_()
    assert json.loads(json.dumps(bundle[MIME])) == {
        "version": 1,
        "name": "LSTM",
        "reference": "reference",
        "witnesses": ["torch"],
        "outputs": ["h", "dW"],
        "bounds": {"torch": {"h": "≤ 1e-12", "dW": "≤ 1e-12"}},
        "largest": {"torch": "≤ 1e-12"},
    }
    assert '<th scope="row">dW</th><td>≤ 1e-12</td>' in bundle["text/html"]


def test_names_are_escaped_in_html():
    table = agreement({"a<b": TRUTH, "c": TRUTH}, name="x & y")
    assert "a&lt;b" in table._repr_html_() and "x &amp; y" in table._repr_html_()


def test_a_missing_gradient_is_an_error_unless_it_may_be_skipped():
    less = {"h": TRUTH["h"]}
    with pytest.raises(ValueError, match=r"fast: expected .* missing \['dW'\]"):
        agreement({"reference": TRUTH, "fast": less})
    table = agreement({"reference": TRUTH, "fast": less}, may_skip=["dW"])
    assert table.table()[2] == ["dW", "not given"] and table.worst == 0


def test_a_witness_that_gives_nothing_is_refused_even_if_it_may_skip_all():
    with pytest.raises(TypeError, match="fast: expected a non-empty dict of arrays"):
        agreement({"reference": TRUTH, "fast": {}}, may_skip=["h", "dW"])


def test_an_output_that_the_reference_does_not_know_is_refused():
    with pytest.raises(ValueError, match=r"fast: .* unknown \['dU'\]"):
        agreement({"reference": TRUTH, "fast": TRUTH | {"dU": np.eye(2)}})


def test_arrays_that_would_broadcast_are_refused():
    wide = TRUTH | {"h": np.array([[1.0, -2.0]])}
    with pytest.raises(ValueError, match=r"fast\['h'\]: expected shape \(2,\) .* got \(1, 2\)"):
        agreement({"reference": TRUTH, "fast": wide})


@pytest.mark.parametrize("value", ["text", None, np.array([]), np.array([1j])])
def test_what_is_no_array_of_numbers_is_refused(value):
    with pytest.raises(TypeError, match=r"fast\['h'\]: expected a non-empty array of numbers"):
        agreement({"reference": TRUTH, "fast": TRUTH | {"h": value}})


def test_one_witness_is_no_comparison():
    with pytest.raises(ValueError, match="witnesses: expected at least two"):
        agreement({"alone": TRUTH})


def test_low_precision_is_compared_as_it_is():
    x = torch.tensor([1.0, 1 / 3], dtype=torch.float64)
    table = agreement({"float64": {"h": x}, "bfloat16": {"h": x.bfloat16().requires_grad_()}})
    assert 1e-4 < table.worst < 1e-2
