"""Experts in several processes give what they give in one, whoever has how many tokens.

Imports gatelib.lab.ranks, gatelib.nn and torch.
Must not take a layer in one process for right: test_moe.py holds that against its definition.
"""

from __future__ import annotations

import pytest
import torch

from tests.nn.parallel_layers import (
    APART,
    CASES,
    SEQUENCES,
    answers,
    each_alone,
    in_one,
)

RANKS = (1, 2, 4)
NEAR = 1e-12


def assert_equal(found, truth):
    for name, exact in truth.items():
        error = (found[name] - exact).abs().max().item() if exact.numel() else 0.0
        most = exact.abs().max().item() if exact.numel() else 0.0
        assert found[name].shape == exact.shape and error <= NEAR * max(1.0, most), (name, error)


def joined(count, name):
    """What the ranks have together: their tokens side by side, and the rest, which is the same."""
    found = [answer[name] for answer in answers(count)]
    for key in set(found[0]) - {"y", "x"}:
        for other in found[1:]:
            assert torch.equal(other[key], found[0][key]), key
    return found[0] | {key: torch.cat([own[key] for own in found]) for key in ("y", "x")}


@pytest.mark.parametrize("count", RANKS)
@pytest.mark.parametrize("name", CASES)
def test_outputs_losses_and_every_gradient_are_those_of_one_process(name, count):
    assert_equal(joined(count, name), in_one(CASES[name]))


@pytest.mark.parametrize("count", RANKS)
@pytest.mark.parametrize("name", APART)
def test_what_compares_tokens_sees_those_of_its_rank_alone(name, count):
    found = joined(count, name)
    assert_equal(found, each_alone(APART[name], SEQUENCES[count]))
