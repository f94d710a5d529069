"""Which gate keeps a cell's memory follows from its equations, whatever the letters are.

Imports gatelib.cell, gatelib.equations, gatelib.spec and pytest.
"""

from __future__ import annotations

import pytest

from gatelib.cell import cell
from gatelib.equations import ALL
from gatelib.spec import Spec

KEEPS = {
    "lstm": {"c": "f"},
    "peephole": {"c": "f"},
    "layernorm": {"c": "f"},
    "layernorm_apart": {"c": "f"},
    "cifg": {"c": "f"},
    "no_forget": {},
    "gru": {"h": "z"},
    "cho": {"h": "z"},
    "chung": {"h": "1 - z"},
    "mgu": {"h": "1 - f"},
    "recurrent_uncoupled": {"h": "c"},
    "recurrent_highway": {"h": "1 - t"},
    "elman": {},
    "leaky_rnn": {},
}


@pytest.mark.parametrize("name", KEEPS)
def test_the_factor_of_the_old_value_is_the_gate_that_keeps(name):
    assert {k: str(v) for k, v in ALL[name].keeps.items()} == KEEPS[name]


def test_over_depth_the_stream_has_its_factor_too():
    assert [str(ALL[k].factor("y", "x")) for k in ("highway", "uncoupled", "gtrxl")] == [
        "1 - t",
        "c",
        "1 - z",
    ]


def test_a_carry_is_followed_through_sums_but_not_into_a_gate_that_sees_it():
    slstm = Spec.parse(
        "slstm",
        "a_i a_f a_g a_o c_prev n_prev m_prev -> h c n m",
        """
        m = maximum(a_f + m_prev, a_i)
        i = exp(a_i - m)
        f = exp(a_f + m_prev - m)
        kept = f*c_prev
        c = kept + i*tanh(a_g)
        n = f*n_prev + i
        h = sigmoid(a_o)*c/n
        """,
    )
    assert {k: str(v) for k, v in cell(slstm).keeps.items()} == {"c": "f", "n": "f"}


def test_letters_do_not_matter():
    renamed = Spec.parse(
        "renamed",
        "a_f a_z s_prev -> h s",
        "f = tanh(a_f)\nz = sigmoid(a_z)\ns = (1 - z)*f + z*s_prev\nh = tanh(s)",
    )
    assert {k: str(v) for k, v in cell(renamed).keeps.items()} == {"s": "z"}
