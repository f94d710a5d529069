"""Training many models as one gives what training each alone gives."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from gatelib.data import digits
from gatelib.lab.fleet import train_together
from gatelib.lab.training import train
from gatelib.nn import Deep

DATA = digits.flat().train
RATES = (1e-3, 1e-2, 3e-3)


def nets(count=3, **options):
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(64, 8), deep, nn.Linear(deep.output_size, 10)).double()
        for deep in [Deep(8, 3, **options) for _ in range(count)]
    ]


DOUBLE = (DATA.x.astype(np.float64), DATA.y)


@pytest.mark.parametrize("options", [{}, {"tied": True}, {"connection": "dense", "growth": 2}])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_together_is_what_each_would_be_alone(options, clip):
    models = nets(**options)
    alone = copy.deepcopy(models)
    losses = train_together(models, DOUBLE, steps=5, rates=RATES, clip=clip, seed=3)
    for model, other, row, lr in zip(models, alone, losses, RATES, strict=True):
        expected = train(other, DOUBLE, steps=5, lr=lr, clip=clip, seed=3)
        np.testing.assert_allclose(row, expected.losses, rtol=1e-6)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-5, atol=1e-7)


def test_a_model_that_diverges_leaves_the_others_alone():
    models = nets()
    alone = copy.deepcopy(models[1])
    with torch.no_grad():
        models[0][0].weight.fill_(torch.nan)
    losses = train_together(models, DOUBLE, steps=4, rates=RATES)
    expected = train(alone, DOUBLE, steps=4, lr=RATES[1])
    assert np.isnan(losses[0]).all()
    np.testing.assert_allclose(losses[1], expected.losses, rtol=1e-6)


def test_the_callers_random_state_is_left_as_it_was():
    models = nets(drop=0.5)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train_together(models, DOUBLE, steps=2, rates=RATES)
    assert torch.equal(torch.rand(1), expected)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="rates"):
        train_together(nets(), DOUBLE, steps=1, rates=(1e-3,))
    with pytest.raises(ValueError, match="models"):
        train_together([nn.BatchNorm1d(64)], DOUBLE, steps=1, rates=(1e-3,))
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match="models"):
        train_together([model], DOUBLE, steps=1, rates=(1e-3,))
