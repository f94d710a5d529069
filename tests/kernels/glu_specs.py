"""Gates over features that the tests of their kernels run: the family, and odd ones.

Imports gatelib.spec.
Must not import torch, Triton or Hypothesis.
"""

import pytest

from gatelib.spec import Spec

__all__ = ["ALL", "FAMILY", "ODD", "SWIGLU", "named"]


def _spec(name, text, inputs="a v"):
    return Spec.parse(name, f"{inputs} -> y", text.replace("; ", "\n"))


_TANH = "s = tanh(0.7978845608028654*(a + 0.044715*a**3))"
SWIGLU = _spec("swiglu", "g = silu(a); y = g*v")
FAMILY = [
    SWIGLU,
    _spec("glu", "g = sigmoid(a); y = g*v"),
    _spec("gtu", "g = sigmoid(a); h = tanh(v); y = g*h"),
    _spec("bilinear", "y = a*v"),
    _spec("reglu", "g = relu(a); y = g*v"),
    _spec("geglu", "g = gelu(a); y = g*v"),
    _spec("geglu_tanh", f"{_TANH}; g = a*(1 + s)/2; y = g*v"),
    _spec("relu_squared_glu", "r = relu(a); g = r**2; y = g*v"),
    _spec("clamped", "c = -maximum(-a, -7); u = maximum(v, -7); y = c*sigmoid(1.702*c)*(u + 1)"),
    _spec("softcapped", "c = 4*tanh(a/4); u = 25*tanh(v/25); g = c*sigmoid(a); y = g*u"),
    _spec("relu_unit", "y = relu(a)", "a"),
    _spec("gelu_unit", "y = gelu(a)", "a"),
    _spec("silu_unit", "y = silu(a)", "a"),
    _spec("gelu_tanh_unit", f"{_TANH}; y = a*(1 + s)/2", "a"),
    _spec("relu_squared_unit", "r = relu(a); y = r**2", "a"),
]
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
