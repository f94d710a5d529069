"""The plain recurrent unit and its relatives as equations: Elman, Jordan, rectified, leaky.

Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

The input `a_h` is the preactivation W x_t + U h_{t−1} + b; a skip over k steps adds V h_{t−k} to
it and changes nothing else here. `h_prev` is the state one step before. In Jordan's net `a_h` is
W x_t + U s_{t−1} + b, `a_y` is Q h_t + c, and the state is `s`.
"""

from __future__ import annotations

from fractions import Fraction

from gatelib.cell import named
from gatelib.spec import Spec

CEILING = 20
"""Where the clipped ReLU of Hannun et al. 2014 stops growing (Deep Speech, arXiv:1412.5567)."""


def _unit(name: str, activation: str) -> Spec:
    return Spec.parse(name, "a_h -> h", f"h = {activation}")


ELMAN = _unit("elman", "tanh(a_h)")
"""Elman 1990, with tanh where the paper has the logistic function."""

LINEAR = _unit("linear_rnn", "a_h")
"""No nonlinearity: the Jacobian over T steps is U^T, the T-th power."""

RELU = _unit("relu_rnn", "relu(a_h)")
"""A rectified unit; with U = 1 at the start it is the IRNN of Le et al. 2015, arXiv:1504.00941."""


def clipped_relu(ceiling: int = CEILING) -> Spec:
    """A rectified unit that stops growing: min(max(a, 0), ceiling)."""
    return _unit("clipped_relu_rnn", f"relu(a_h) - relu(a_h - {ceiling})")


CLIPPED_RELU = clipped_relu()
"""A ReLU that is clipped from above, at the default of `clipped_relu`."""


def leaky(rate: str = "1/4") -> Spec:
    """A unit that keeps the share 1 − rate of itself: a skip over every step.

    Raises ValueError unless 0 < rate < 1; at 1 it is ELMAN.
    """
    new = Fraction(rate)
    if not 0 < new < 1:
        raise ValueError(f"rate: expected a number between 0 and 1, got {rate}")
    text = f"g = tanh(a_h)\nh = {1 - new}*h_prev + {new}*g"
    return Spec.parse("leaky_rnn", "a_h h_prev -> h", text)


LEAKY = leaky()
"""A leaky integrator; Jaeger 2001 uses it in echo state networks."""


def jordan_output(activation: str = "sigmoid", decay: float = 0) -> Spec:
    """Jordan's output and state units: y = activation(a_y), s = decay·s_prev + y.

    Jordan 1986, ICS Report 8604. Many textbooks leave the decay out: s = y. Raises ValueError
    unless 0 ≤ decay < 1.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay: expected a number in [0, 1), got {decay}")
    text = f"y = {activation}(a_y)\ns = decay*s_prev + y"
    spec = Spec.parse("jordan_output", "a_y decay s_prev -> y s", text)
    return spec.subs(decay=decay)


ALL = named(ELMAN, LINEAR, RELU, CLIPPED_RELU, LEAKY)
