"""Cells that both test files of the Triton kernels run: three written here, and the library's.

Imports gatelib.spec and gatelib.equations.
Must not import torch or Triton.
"""

import pytest

from gatelib import equations
from gatelib.equations.lstm import LSTM, PEEPHOLE
from gatelib.spec import Spec

__all__ = [
    "LSTM",
    "MINGRU",
    "PEEPHOLE",
    "RGLRU",
    "SLSTM",
    "all_specs",
    "gates_given",
    "named",
    "params_of",
]


def parse(name, signature, *lines):
    return Spec.parse(name, signature, "\n".join(lines))


MINGRU = parse("mingru", "a_z n h_prev -> h", "z = sigmoid(a_z)", "h = (1 - z)*h_prev + z*n")
RGLRU = parse(
    "rglru",
    "a_r a_i w x h_prev -> h",
    "r = sigmoid(a_r)",
    "i = sigmoid(a_i)",
    "a = exp(-8*r*softplus(w))",
    "b = sqrt(1 - a*a)",
    "h = a*h_prev + b*(i*x)",
)
SLSTM = parse(
    "slstm",
    "a_i a_f a_z a_o c_prev n_prev m_prev -> h c n m",
    "l = -softplus(-a_f)",
    "p = l + m_prev",
    "m = maximum(p, a_i)",
    "i = exp(a_i - m)",
    "f = exp(p - m)",
    "z = tanh(a_z)",
    "o = sigmoid(a_o)",
    "c = f*c_prev + i*z",
    "n = f*n_prev + i",
    "h = o*c/n",
)
PARAMS = {"w", "w_i", "w_f", "w_o"}


def params_of(spec):
    """Inputs that are one vector for all steps, in a Spec that has steps."""
    return tuple(str(v) for v in spec.inputs if str(v) in PARAMS and spec.carries)


def gates_given(spec):
    """The inputs of a stage that an earlier stage of a cell makes by a sigmoid."""
    found = set()
    for known in equations.ALL.values():
        for place, stage in enumerate(known.stages):
            made = [line for earlier in known.stages[:place] for line in earlier.equations]
            gates = {v for v, e in made if e.func.__name__ == "sigmoid"}
            found |= gates & {*stage.inputs} if stage == spec else set()
    return {str(v) for v in found}


def all_specs(*more):
    """`more`, the cells above, and every elementwise Spec of the equations."""
    specs = [*more, MINGRU, RGLRU, SLSTM]
    for known in equations.ALL.values():
        specs += [stage for stage in known.stages if stage.is_elementwise]
    return specs


def named(specs):
    return pytest.mark.parametrize("spec", specs, ids=lambda spec: spec.name)
