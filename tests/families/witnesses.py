"""What the families' tests share: how witnesses are compared, and a case by the names they use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st


def assert_agree(found, expected, bound=1e-10):
    """The same outputs and gradients, of the same shapes, no further apart than `bound`."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].shape == value.shape, key
        error = np.abs(found[key] - value).max(initial=0.0)
        assert error <= bound, f"{key}: {error:.1e}"


def close(found, expected, bound=1e-10):
    """One array is another, relative to the largest value where that is above 1."""
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    assert np.shape(found) == np.shape(expected)
    assert np.abs(found - expected).max(initial=0.0) <= bound * scale


def assert_upstream_is_checked(gradients):
    """What a function of gradients says of upstream gradients that fit no output."""
    run, x = (lambda v: {"y": v["x"]}), {"x": np.ones((2, 3))}
    with pytest.raises(ValueError, match=r"upstream\['h'\]: expected one of .*'y': \(2, 3\)"):
        gradients(run, x, {"h": np.ones((2, 3))})
    with pytest.raises(ValueError, match=r"upstream\['y'\]: .*got \(3,\)"):
        gradients(run, x, {"y": np.ones(3)})


def assert_read_in_pieces(layer, x, at=2):
    """A sequence (B, T, D) read up to step `at`, and on from the state there, is the sequence."""
    whole, last = layer(x)
    first, state = layer(x[:, :at])
    second, end = layer(x[:, at:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, last)


def named(x, weights, state, dy, d_state, name="h"):
    """A case of one state over time, as `gradients` takes it: inputs and upstream gradients."""
    return {"x": x, f"{name}0": state} | weights, {"y": dy, f"final_{name}": d_state}


def for_any_shape(examples, steps=1, **more):
    """A random test of `shape`, four sizes up to 4, `seed`, and `more`; steps come second."""
    shape = st.tuples(*(st.integers(least, 4) for least in (1, steps, 1, 1)))
    random = given(shape=shape, seed=st.integers(0, 99), **more)
    return lambda test: settings(max_examples=examples, deadline=None)(random(test))


BAD_SEQUENCES = [
    ({"x": np.zeros((3, 5))}, ValueError, "x: expected 3 dimensions"),
    ({"x": np.zeros((3, 5, 4), int)}, TypeError, "x: expected a floating dtype"),
    ({"x": np.zeros((3, 5, 4), "f4")}, TypeError, r"weights\['\w'\]: expected float32 as x"),
    ({"h0": np.zeros((3, 6), int)}, TypeError, "h0: expected float64 as x, got int64"),
    ({"x": np.zeros((3, 5, 9))}, ValueError, r"weights\['W'\]: expected \(\d+, 9\)"),
    ({"h0": np.zeros((3, 5))}, ValueError, r"h0: expected \(3, 6\)"),
    ({"lengths": np.array([1, 2, 6])}, ValueError, "lengths: expected 0 … 5"),
    ({"lengths": np.array([1, 2, -1])}, ValueError, "lengths: expected 0 … 5"),
    ({"lengths": np.array([1.0, 2.0, 3.0])}, TypeError, "lengths: expected whole numbers"),
    ({"lengths": np.array([1])}, ValueError, r"lengths: expected \(3,\)"),
    ({"variant": "none"}, ValueError, "variant: expected one of"),
    ({"weights": {}}, ValueError, "weights: expected"),
]
"""What a reference of a cell refuses, where x is (3, 5, 4) and H is 6: change, error, message."""
