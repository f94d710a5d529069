"""What the families' tests share: how witnesses are compared, and a case by the names they use."""

from __future__ import annotations

import numpy as np


def assert_agree(found, expected, bound=1e-10):
    """The same outputs and gradients, of the same shapes, no further apart than `bound`."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].shape == value.shape, key
        error = np.abs(found[key] - value).max(initial=0.0)
        assert error <= bound, f"{key}: {error:.1e}"


def named(x, weights, state, dy, d_state, name="h"):
    """A case of one state over time, as `gradients` takes it: inputs and upstream gradients."""
    return {"x": x, f"{name}0": state} | weights, {"y": dy, f"final_{name}": d_state}
