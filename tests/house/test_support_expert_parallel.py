"""What chapter 15 shares: letters, loads of experts and of ranks, and its nets do as they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chapters.support import expert_parallel as shared


def test_what_is_no_letter_is_one_space():
    found = shared.letters(["A b<br />c!", "d"], 20)
    assert found.tolist() == [1, 0, 2, 0, 3, 0, 4]


def test_a_batch_asks_for_the_letter_that_follows_each_eight():
    text = torch.arange(27).repeat(20).to(torch.uint8)
    x, y = shared.batches(text, rows=3, length=5)(0, np.random.default_rng(0))
    assert x.shape == (3, 12)
    assert y.shape == (3, 5)
    assert torch.equal(y, (x[:, 7:] + 1) % 27)


def test_a_net_answers_once_for_each_eight_letters():
    net = shared.speller(experts=16, k=2)
    assert net(torch.randint(27, (2, 20))).shape == (2, 13, 27)
    assert shared.chosen(net, torch.randint(27, (2048 + 7,))).shape == (2048, 2)


@pytest.mark.parametrize(("experts", "k"), [(64, 8), (32, 4)])
def test_all_nets_hold_as_many_units_and_use_as_many(experts, k):
    layer = shared.speller(experts=experts, k=k).layer
    assert layer.experts * layer.hidden == shared.UNITS
    assert layer.k * layer.hidden == 64


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_a_letter_reaches_no_more_nodes_than_it_may(nodes):
    torch.manual_seed(0)
    net = shared.speller(nodes=nodes)
    sent = shared.chosen(net, torch.randint(27, (2048 + 7,)))
    assert max(len(set(row)) for row in (sent // 8).tolist()) == nodes
    assert shared.nodes_reached(sent, 64) <= nodes < shared.nodes_reached(sent, 64) + 0.2


def test_rows_are_counted_by_expert_for_each_stretch_of_letters():
    sent = torch.tensor([[0, 2], [0, 1], [2, 1], [2, 0]])
    assert shared.counted(sent, 4, tokens=2).tolist() == [[2, 1, 1, 0], [1, 1, 2, 0]]


def test_neighbouring_experts_share_a_rank():
    assert shared.ranked(np.array([[1, 2, 3, 4]]), 2).tolist() == [[3, 7]]


def test_the_speed_kept_is_the_mean_load_over_that_of_the_slowest_rank():
    rows = np.array([[3, 1], [3, 1], [1, 3], [2, 2]])
    assert shared.kept_speed(rows, 1) == 1
    assert shared.kept_speed(rows, 2) == pytest.approx((4 / 6 + 4 / 5) / 2)
    assert shared.kept_speed(rows, 4) == pytest.approx(4 / 6)  # two copies of both experts


def test_shares_come_back_from_the_curves_of_a_record():
    shares = np.random.default_rng(0).dirichlet(np.ones(64), 3)

    class Record:
        def of(self, arm, name):
            return np.stack([shared.split("load", row)[name] for row in shares])

    assert np.allclose(shared.joined(Record(), "any", "load"), shares)
