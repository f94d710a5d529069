"""Autograd as a witness: any computation on arrays, and any layer with the weights it is given."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from gatelib import derived, lab
from gatelib.cell import cell
from gatelib.equations import gru, lstm, rnn
from gatelib.nn import GRU, LSTM, RNN, Jordan, Recurrent, SkipRNN
from tests.families.witnesses import assert_agree, assert_upstream_is_checked


def case(spec, seed=0, D=3, H=4, B=2, T=5):
    """Weights, states and upstream gradients of a cell."""
    rng, read = np.random.default_rng(seed), cell(spec)
    rows = len(read.gates) * H
    inputs = {"x": rng.normal(size=(B, T, D)), "W": rng.normal(size=(rows, D))}
    inputs |= {"U": rng.normal(size=(rows, H)), "b": rng.normal(size=rows)}
    inputs |= {f"{name}0": rng.normal(size=(B, H)) for name in read.states}
    upstream = {"y": rng.normal(size=(B, T, H))}
    return inputs, upstream | {f"final_{name}": rng.normal(size=(B, H)) for name in read.states}


LAYERS = {
    "torch.nn.LSTM": (lstm.LSTM, partial(nn.LSTM, 3, 4, batch_first=True)),
    "nn.LSTM": (lstm.LSTM, partial(LSTM, 3, 4, batch_first=True)),
    "a Recurrent with two states": (lstm.LSTM, partial(Recurrent, lstm.LSTM, 3, 4)),
    "torch.nn.GRU": (gru.GRU, partial(nn.GRU, 3, 4, batch_first=True)),
    "nn.GRU": (gru.GRU, partial(GRU, 3, 4, batch_first=True)),
    "torch.nn.RNN": (rnn.ELMAN, partial(nn.RNN, 3, 4, batch_first=True)),
    "nn.RNN": (rnn.ELMAN, partial(RNN, 3, 4, batch_first=True)),
    "a Recurrent with one state": (rnn.LEAKY, partial(Recurrent, rnn.LEAKY, 3, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_with_given_weights_is_the_cell_with_those_weights(name):
    spec, make = LAYERS[name]
    given = case(spec)
    expected = derived.gradients(partial(derived.rnn.over_time, spec), *given)
    assert_agree(lab.gradients(lab.over_time(make()), *given), expected)


def test_the_layers_own_weights_stay_as_they_were():
    layer, given = nn.LSTM(3, 4, batch_first=True), case(lstm.LSTM)
    before = [p.clone() for p in layer.parameters()]
    lab.gradients(lab.over_time(layer), *given)
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    assert all(p.grad is None and p.dtype == torch.float32 for p in layer.parameters())


def test_a_layer_whose_state_has_no_axis_for_layers_takes_it_as_it_is():
    inputs, upstream = case(rnn.ELMAN)
    inputs |= {"V": np.ones((4, 4)), "h0": np.ones((2, 2, 4))}
    upstream["final_h"] = np.ones((2, 2, 4))
    names = {"W": "weight_ih", "U": "weight_hh", "V": "weight_skip", "b": "bias"}
    found = lab.gradients(lab.over_time(SkipRNN(3, 4, 2), **names), inputs, upstream)
    assert_agree(found, derived.gradients(partial(derived.rnn.skip, rnn.ELMAN), inputs, upstream))


def test_jordans_state_is_called_s():
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 3, 3), "s0": (2, 2), "W": (4, 3), "U": (4, 2), "b": (4,), "Q": (2, 4)}
    inputs = {k: rng.normal(size=s) for k, s in (shapes | {"c": (2,)}).items()}
    names = {"W": "weight_ih", "U": "weight_sh", "b": "bias_h", "Q": "weight_ho", "c": "bias_o"}
    run, upstream = lab.over_time(Jordan(3, 4, 2), **names), {"final_s": np.ones((2, 2))}
    found = lab.gradients(run, inputs, upstream)
    assert found["final_s"].shape == (2, 2) and found["d_s0"].any()


def test_an_input_that_is_not_used_has_gradient_zero():
    inputs = {"x": np.ones(2), "z": np.ones(3)}
    found = lab.gradients(lambda v: {"y": 2 * v["x"]}, inputs, {"y": np.ones(2)})
    np.testing.assert_array_equal(found["d_x"], [2, 2])
    np.testing.assert_array_equal(found["d_z"], [0, 0, 0])


def test_outputs_that_depend_on_nothing_leave_gradients_at_zero():
    run = lambda v: {"y": torch.ones(2), "z": v["x"]}  # noqa: E731
    for upstream in ({}, {"y": np.ones(2)}):
        found = lab.gradients(run, {"x": np.ones(3)}, upstream)
        np.testing.assert_array_equal(found["d_x"], [0, 0, 0])


def test_leaves_have_the_dtype_of_their_arrays():
    single = {"x": np.ones(2, "f4")}
    found = lab.gradients(lambda v: {"y": v["x"]}, single, {"y": np.ones(2, "f4")})
    assert found["d_x"].dtype == np.float32


def test_what_is_asked_wrongly_is_named():
    assert_upstream_is_checked(lab.gradients)
    with pytest.raises(ValueError, match=r"weights: expected names of .*got 'W'"):
        lab.called(nn.Linear(2, 2), {"W": torch.ones(2, 2)}, torch.ones(2))
