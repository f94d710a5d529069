"""Weights of a ConvLSTM go between layouts and come back, and compute the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gatelib.nn import ConvLSTM2d, convert
from gatelib.nn.convert import CONV_LAYOUTS, conv_lstm


def weights_of(layers=1, channels=2, bias=True, kernel=(3, 1), **options):
    return ConvLSTM2d(3, channels, kernel, layers, bias, **options).state_dict()


@settings(max_examples=30, deadline=None)
@given(
    target=st.sampled_from(CONV_LAYOUTS),
    layers=st.integers(1, 3),
    channels=st.integers(1, 3),
    bias=st.booleans(),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_there_and_back_are_the_same_weights(target, layers, channels, bias, kernel):
    weights = weights_of(layers, channels, bias, kernel)
    back = conv_lstm(conv_lstm(weights, "gatelib", target), target, "gatelib")
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], value) for name, value in weights.items())
    changed = next(iter(back.values())).zero_()
    assert changed.shape and weights["weight_ih_l0"].any()  # in memory of their own


def one_kernel_cell(x, weights, channels):
    """The loop of the programs that join x and h: gates in the order i, f, o, g."""
    weight, bias = weights["cell_list.0.conv.weight"], weights["cell_list.0.conv.bias"]
    h = c = torch.zeros(len(x), channels, *x.shape[3:], dtype=x.dtype)
    outputs = []
    for frame in x.unbind(1):
        a = F.conv2d(torch.cat([frame, h], 1), weight, bias, padding=weight.shape[2] // 2)
        i, f, o, g = a.split(channels, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs, 1)


def test_one_kernel_over_both_computes_the_same():
    layer = ConvLSTM2d(3, 2, 3).double()
    x = torch.randn(2, 4, 3, 5, 4, dtype=torch.float64)
    theirs = conv_lstm(layer.state_dict(), "gatelib", "one_kernel")
    torch.testing.assert_close(one_kernel_cell(x, theirs, 2), layer(x)[0])
    swapped = theirs | {"cell_list.0.conv.bias": theirs["cell_list.0.conv.bias"].roll(2)}
    assert not torch.allclose(one_kernel_cell(x, swapped, 2), layer(x)[0])


def test_keras_has_its_axes_last_and_its_blocks_in_the_same_order():
    weights = weights_of()
    found = conv_lstm(weights, "gatelib", "keras")
    assert {name: array.shape for name, array in found.items()} == {
        "kernel": (3, 1, 3, 8),
        "recurrent_kernel": (3, 1, 2, 8),
        "bias": (8,),
    }
    assert found["kernel"][2, 0, 1, 5] == weights["weight_ih_l0"][5, 1, 2, 0]
    several = conv_lstm(weights_of(2), "gatelib", "keras")
    assert [own["kernel"].shape for own in several] == [(3, 1, 3, 8), (3, 1, 2, 8)]


def test_peepholes_stay_where_there_is_a_place_for_them():
    weights = weights_of(peephole=(4, 4))
    assert conv_lstm(weights, "gatelib", "gatelib").keys() == weights.keys()
    for target in ("keras", "one_kernel"):
        with pytest.raises(ValueError, match=f"target: '{target}' has no place for peepholes"):
            conv_lstm(weights, "gatelib", target)


KERAS = {"kernel": np.zeros((3, 3, 2, 8)), "recurrent_kernel": np.zeros((3, 3, 2, 8))}
ONE = {"cell_list.0.conv.weight": torch.zeros(8, 5, 3, 3)}
BAD = [
    (KERAS, "torch", ValueError, "source: expected one of 'gatelib', 'keras', 'one_kernel'"),
    ([3], "keras", TypeError, r"weights\[0\]: expected a mapping of names, got int"),
    ([], "keras", ValueError, "weights: expected a layer at least"),
    (KERAS | {"beta": 1}, "keras", ValueError, "weights: expected .'kernel', 'recurrent_kernel'"),
    (KERAS | {"bias": np.zeros(7)}, "keras", ValueError, r"weights\['bias'\]: .*got \(7,\)"),
    (KERAS | {"bias": np.zeros(8, int)}, "keras", TypeError, r"weights\['bias'\]: expected one fl"),
    (KERAS | {"bias": "none"}, "keras", TypeError, r"weights\['bias'\]: expected a tensor or an"),
    (
        KERAS | {"kernel": np.zeros((3, 8))},
        "keras",
        ValueError,
        r"weights\['kernel'\]: expected fo",
    ),
    (
        KERAS | {"recurrent_kernel": np.zeros((1, 3, 2, 8))},
        "keras",
        ValueError,
        r"weights\['recurrent_kernel'\]: expected a shape for 2 channels",
    ),
    (ONE | {"cell_list.2.conv.bias": torch.zeros(8)}, "one_kernel", ValueError, "the layers 0, 1"),
    (ONE | {"head.weight": torch.zeros(8)}, "one_kernel", ValueError, "got 'head.weight'"),
    ({"weight_ih_l0": torch.zeros(8, 1, 3, 3)}, "gatelib", ValueError, "expected a weight U in"),
]


@pytest.mark.parametrize(("weights", "source", "error", "says"), BAD)
def test_weights_that_are_not_of_their_layout_are_named(weights, source, error, says):
    with pytest.raises(error, match=says):
        convert.conv_lstm(weights, source, "gatelib")
