"""What is the plain RNN's own: its nonlinearity.

That `gatelib.nn.RNN` is `torch.nn.RNN` is tested in `test_drop_in.py`.
"""

import pytest
import torch
from torch import nn

from gatelib.nn import RNN, RNNCell
from tests.nn.drop_in import D, H


def test_the_nonlinearity_is_torchs_fourth_argument():
    ours, cell = RNN(D, H, 2, "relu"), RNNCell(D, H, True, "relu")
    assert ours.mode == nn.RNN(D, H, 2, "relu").mode
    assert (ours(torch.randn(7, 3, D))[0] >= 0).all()
    assert (cell(torch.randn(3, D)) >= 0).all()


def test_the_repr_shows_what_is_not_default():
    assert repr(RNN(D, H, nonlinearity="relu")) == "RNN(5, 6, nonlinearity='relu')"
    assert repr(RNNCell(D, H, nonlinearity="relu")) == repr(nn.RNNCell(D, H, nonlinearity="relu"))


@pytest.mark.parametrize("kind", [RNN, RNNCell])
def test_another_nonlinearity_is_refused(kind):
    with pytest.raises(ValueError, match=r"nonlinearity: .*'relu'.*got 'gelu'"):
        kind(D, H, nonlinearity="gelu")


def test_the_new_options_are_keyword_only():
    with pytest.raises(TypeError):
        RNN(D, H, 1, "tanh", True, False, 0.0, False, None, None, "fused")
