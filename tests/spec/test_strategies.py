"""The judge of the random tests computes what NumPy and torch do; unsound elements do not count."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from gatelib.functions import FUNCTIONS
from tests.judge import JUDGES, Measured, in_torch
from tests.strategies import (
    ELEMENTWISE,
    OF_TWO,
    OVER_FEATURES,
    Written,
    cells,
    gates,
    read_or_reject,
)


def test_the_judge_knows_every_function_of_a_gate():
    assert set(JUDGES) == set(FUNCTIONS) == set(in_torch()) == {*ELEMENTWISE, *OVER_FEATURES}


@pytest.mark.parametrize("name", sorted(JUDGES))
def test_the_judge_and_torch_have_the_same_functions(name):
    rng = np.random.default_rng(0)
    arguments = [rng.uniform(0.1, 2.0, size=(3, 4)) for _ in range(1 + (name in OF_TWO))]
    mine = JUDGES[name](*map(Measured, arguments)).value
    theirs = in_torch()[name](*map(torch.tensor, arguments)).numpy()
    np.testing.assert_allclose(mine, theirs, rtol=1e-13)


def test_a_pole_a_jump_and_a_logarithm_of_a_negative_do_not_count():
    poles = Written("poles", ("x",), ("y",), (("y", "1/x + log(x) + step(x - 1)"),))
    x = np.array([[0.0, 1.0, -2.0, -1e-12, 0.5]])
    assert poles.judge({"x": x})["y"].counts.tolist() == [[False, False, False, False, True]]


def test_a_lost_bracket_is_seen():
    spec = Written("lost", ("a", "b", "c"), ("y",), (("y", "a - (b - c)"),))
    values = spec.values()
    judged = spec.judge(values)["y"]
    assert not judged.wrong(values["c"] + values["a"] - values["b"]).any()
    assert judged.wrong(values["a"] - values["b"] - values["c"]).all()


@settings(max_examples=40, deadline=None)
@given(cell=cells())
def test_a_random_cell_has_the_names_of_a_cell(cell):
    spec = read_or_reject(cell)
    assert "h" in map(str, spec.outputs)
    assert any(str(v).startswith("a_") for v in spec.inputs)


@settings(max_examples=40, deadline=None)
@given(gate=gates(tuple(ELEMENTWISE + OVER_FEATURES), names="adversarial"))
def test_a_random_gate_is_evaluated_without_an_exception(gate):
    values = gate.values()
    for name, judged in gate.judge(values).items():
        assert judged.value.shape == (6, 4) and not judged.wrong(judged.value).any(), name
