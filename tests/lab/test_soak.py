"""Fifty cells of the grammar give the same outputs and gradients on every floor."""

from __future__ import annotations

import itertools

import pytest

from tests.lab import soak


def test_fifty_cells_agree_on_every_floor():
    worst = soak.soak(50, seed=7)
    assert max(worst.values()) <= soak.BOUND


def test_the_soak_sees_cells_of_one_stage_and_of_two_with_all_kinds_of_inputs():
    seen = list(itertools.islice(soak.cells(7), 50))
    assert {len(one.stages) for one in seen} == {1, 2}
    assert any(one.split for one in seen) and any(one.vectors for one in seen)
    assert {len(one.states) for one in seen} == {1, 2}


def test_the_soak_tells_a_wrong_gradient(monkeypatch):
    right = soak.by_layer

    def wrong(given, impl, padded=False):
        found = right(given, impl, padded)
        return found | ({"d_U": found["d_U"] + 1e-6} if impl == "fused" else {})

    monkeypatch.setattr(soak, "by_layer", wrong)
    with pytest.raises(AssertionError, match="cell 1 of seed 7"):
        soak.soak(1, seed=7)
