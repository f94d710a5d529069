"""The lab trains layers of attention and of experts, alone and many at once.

Imports gatelib.lab, gatelib.nn, torch and tests.nn.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn as torch_nn
from torch.nn import functional as F

from gatelib import nn
from gatelib.lab.fleet import train_together
from gatelib.lab.training import Readout, train
from gatelib.nn import GatedAttention
from tests.nn.attention_forms import FORMS
from tests.nn.moe_layers import D, E, H, drawn, spread

# ---- attention --------------------------------------------------------------------------------


def copying(step, generator):
    """Say what came two positions before."""
    x = torch.from_numpy(generator.standard_normal((8, 10, 16)).astype("float32"))
    return x, torch.roll(x, 2, 1)[..., :1] * (torch.arange(10) > 1)[:, None]


@pytest.mark.parametrize("name", ["RoPE", "output gate per head, all else", "forget gate"])
def test_a_fleet_trains_as_each_alone_does(name):
    def made(seed):
        torch.manual_seed(seed)
        return Readout(GatedAttention(16, 4, **FORMS[name]), 16, 1, every_step=True)

    together, rates = [made(seed) for seed in range(2)], [1e-2, 3e-3]
    losses = train_together(together, copying, steps=6, rates=rates, loss="mse")
    for seed, (model, rate) in enumerate(zip(together, rates, strict=True)):
        alone = made(seed)
        history = train(alone, copying, steps=6, lr=rate, loss="mse")
        assert abs(history.losses - losses[seed]).max() < 1e-5
        for mine, theirs in zip(alone.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-3)


# ---- experts ----------------------------------------------------------------------------------


class Net(torch_nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.moe = nn.MoE(D, E, 2, hidden=H, **options)
        self.out = torch_nn.Linear(D, 3)

    def forward(self, x):
        return self.out(x + self.moe(x))


def trained(balance, **options):
    torch.manual_seed(0)
    net = Net(balance=balance, **options)
    x = drawn(300, D, dtype=torch.float32)
    y = (x[:, :3].argmax(-1) + (x[:, 3] > 0)) % 3
    history = train(
        net,
        (x, y),
        steps=120,
        lr=1e-2,
        loss=lambda logits, y: F.cross_entropy(logits, y) + nn.auxiliary_loss(net),
        optimizer=lambda p, lr: nn.updated_after(torch.optim.Adam(p, lr=lr), net),
    )
    net.eval()(x)
    return history, net.moe.metrics["max_violation"].item()


@pytest.mark.parametrize("balance", [None, "switch", "importance", "bias", "quantile", "global"])
def test_it_trains_under_the_lab_and_balances(balance):
    more = {"balance_rate": 3e-3} if balance == "bias" else {}
    history, violation = trained(balance, **more)
    assert history.losses[-20:].mean() < 0.6 * history.losses[:5].mean()
    if balance in ("bias", "quantile"):
        assert violation < 0.35


def test_many_are_trained_together_as_each_alone():
    x = drawn(64, D, dtype=torch.float32)
    y = (x[:, 0] > 0).long()
    nets = [copy.deepcopy(spread(Net(balance="switch"), torch.float32)) for _ in range(2)]

    def loss(logits, y):
        return F.cross_entropy(logits, y) + nn.auxiliary_loss(nets[0])

    alone = copy.deepcopy(nets[1])
    together = train_together(nets, (x, y), steps=5, rates=[1e-3, 1e-2], loss=loss)
    single = train(
        alone,
        (x, y),
        steps=5,
        lr=1e-2,
        loss=lambda z, y: F.cross_entropy(z, y) + nn.auxiliary_loss(alone),
    )
    assert abs(together[1] - single.losses).max() < 1e-4
