"""Gates over features that the tests of their kernels run: the family, and odd ones.

Imports gatelib.spec and gatelib.equations.
Must not import torch, Triton or Hypothesis.
"""

import pytest

from gatelib.equations.glu import KINDS, SWIGLU
from gatelib.spec import Spec

__all__ = ["ALL", "FAMILY", "ODD", "SWIGLU", "named"]


def _spec(name, text, inputs="a v"):
    return Spec.parse(name, f"{inputs} -> y", text.replace("; ", "\n"))


FAMILY = list(KINDS.values())
ODD = [
    _spec("unit_read_beside_its_input", "g = silu(a); y = g*v + a*a"),
    _spec("two_units_of_one_input", "g = silu(a); h = gelu(a); y = g*h*v + g"),
    _spec("units_of_both_inputs", "g = silu(a); h = silu(v); y = g*h"),
    _spec("unit_inside", "y = exp(-v*v)*a*sigmoid(a)"),
    _spec("unit_of_a_sum", "y = silu(a + v)"),
    _spec("order_turned", "g = sigmoid(v); y = a*g"),
    _spec("constant_slope", "y = a + 2*v"),
    _spec("slope_0", "y = a + step(v)"),
    _spec("names_taken", "d_a = silu(a); g_y = d_a*v; y = g_y*g_y + v"),
    _spec("quotient", "e = exp(-a); y = v/(1.5 + e)"),
    _spec("value_used_late", "g = silu(a); h = g*v; k = tanh(h); y = k*g + h*v - g"),
]
ALL = [*FAMILY, *ODD]


def named(specs):
    """Run a test for each of them, under its name."""
    return pytest.mark.parametrize("spec", specs, ids=lambda spec: spec.name)
