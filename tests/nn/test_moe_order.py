"""Where the order of tokens matters: who comes first to a full expert, and who may see whom.

Imports gatelib.nn and torch.
Must not import gatelib.reference: tests/families holds the layer against it.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn as torch_nn

from gatelib import nn
from gatelib.nn.balance import expert_counts
from tests.nn.moe_layers import IMPLS, D, E, H, by_hand, drawn, gradients, made, spread

# ---- capacity -----------------------------------------------------------------------------------


class Fixed(torch_nn.Module):
    """A router that says what it was given."""

    causal = True

    def __init__(self, indices, weights):
        super().__init__()
        self.indices, self.weights = torch.tensor(indices), torch.tensor(weights)

    def forward(self, x, live=None):
        scores = torch.full((len(x), E), 1 / E)
        return nn.routers.Routing(self.indices, self.weights, scores, scores, live)


def kept_by(indices, weights, shape, **options):
    layer = nn.MoE(D, E, len(indices[0]), hidden=H, router=Fixed(indices, weights), **options)
    _, routing = layer(torch.randn(*shape, D), return_routing=True)
    return layer._kept(routing, shape).tolist(), layer


def test_an_expert_takes_its_capacity_first_choices_before_second_ones():
    indices, weights = [[0, 1], [0, 1], [1, 0], [0, 1]], [[0.6, 0.4]] * 4
    kept, layer = kept_by(indices, weights, (4,), capacity_factor=1.0)  # 2 slots an expert
    assert kept == [[True, True], [True, False], [True, False], [False, False]]
    assert layer.metrics["dropped"].item() == 0.5


def test_the_earlier_position_of_any_sequence_comes_first():
    indices, weights = [[0]] * 6, [[1.0]] * 6
    kept, _ = kept_by(indices, weights, (2, 3), capacity_factor=2.0)  # 3 slots an expert
    assert kept == [[True], [True], [False], [True], [False], [False]]


def test_the_likelier_token_comes_first_and_of_equals_the_earlier():
    indices, weights = [[0]] * 4, [[0.3], [0.9], [0.5], [0.9]]
    options = {"capacity_factor": 1.0, "priority": "probability"}  # 1 slot an expert
    kept, layer = kept_by(indices, weights, (4,), **options)
    assert kept == [[False], [True], [False], [False]] and not layer.causal


def test_what_was_dropped_gives_0_and_no_gradient_and_isnt_made_up_for():
    for impl in IMPLS:
        layer = made(impl=impl, capacity_factor=0.5)
        x = drawn(12, D).requires_grad_()
        y, routing = layer(x, return_routing=True)
        kept = layer._kept(routing, (12,))
        assert 0 < kept.sum() < kept.numel()
        truth = by_hand(layer, x, routing.indices, routing.weights * kept)
        assert torch.allclose(y, truth)
        counts = expert_counts(routing.indices.masked_fill(~kept, E), E)
        assert counts.max() == 3  # ceil(0.5 * 2 * 12 / 4)


def test_a_capacity_for_all_drops_nothing():
    full, free = made(capacity_factor=float(E)), made()
    x = drawn(3, 7, D)
    assert torch.equal(full(x), free(x)) and full.metrics["dropped"] == 0


def test_identity_experts_are_never_full():
    layer = made(identity_experts=2, k=3, capacity_factor=1e-9)
    x = drawn(11, D)
    y, routing = layer(x, return_routing=True)
    kept = layer._kept(routing, (11,))
    assert (kept | (routing.indices < E)).all()
    assert torch.allclose(y, by_hand(layer, x, routing.indices, routing.weights * kept))


# ---- causality ----------------------------------------------------------------------------------

T = 11
CAUSAL = {
    "softmax": {},
    "sigmoid with groups": {"router": "deepseek_v3", "experts": 16, "k": 4, "shared": 1},
    "identity": {"identity_experts": 2},
    "bias": {"balance": "bias"},
    "one choice by position": {"k": 1, "capacity_factor": 0.7},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", CAUSAL)
def test_a_later_token_changes_no_bit_of_an_earlier_output(name, impl, dtype):
    layer = made(dtype, impl=impl, **CAUSAL[name])
    assert layer.causal
    x = drawn(2, T, D, dtype=dtype)
    y = layer(x)
    for t in range(T):
        changed = x.clone()
        changed[:, t:] = drawn(2, T - t, D, dtype=dtype, seed=t + 9)
        assert torch.equal(layer(changed)[:, :t], y[:, :t]), t


def test_a_hash_is_causal_too():
    layer = made(torch.float32, router=nn.HashRouter(E, 2))
    x, ids = drawn(1, T, D, dtype=torch.float32), torch.arange(T)[None]
    other = torch.where(ids < 6, ids, ids + 100)
    assert torch.equal(layer(x, tokens=ids)[:, :6], layer(x, tokens=other)[:, :6])
    assert not torch.equal(layer(x, tokens=ids)[:, 6:], layer(x, tokens=other)[:, 6:])


LEAKY = {
    "experts choose": lambda: nn.MoE(D, E, 2, hidden=H, router=nn.ExpertChoiceRouter(D, E)),
    "soft": lambda: nn.SoftMoE(D, E, 2, H),
    "depths": lambda: nn.MixtureOfDepths(nn.GatedMLP(D, H), D, 0.5),
    "second choices": lambda: nn.MoE(D, E, 2, hidden=H, capacity_factor=0.5),
    "by probability": lambda: nn.MoE(
        D, E, 1, hidden=H, capacity_factor=0.5, priority="probability", router="switch"
    ),
}


@pytest.mark.parametrize("name", LEAKY)
def test_what_says_that_it_isnt_causal_leaks_the_last_token(name):
    layer = spread(LEAKY[name]())
    assert not layer.causal
    x = drawn(1, T, D)
    changed = [layer(torch.cat([x[:, :-1], 3 * drawn(1, 1, D, seed=s)], 1)) for s in range(9)]
    assert any(not torch.equal(y[:, :-1], changed[0][:, :-1]) for y in changed[1:])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_second_run_gives_the_same_bits(impl):
    layer, x = made(torch.float32, impl=impl), drawn(50, D, dtype=torch.float32).requires_grad_()
    runs = [gradients(layer(x), layer, x, torch.ones(50, D)) for _ in range(2)]
    assert all(map(torch.equal, *runs))
