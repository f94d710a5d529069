"""A rank that fails ends in an error on the others that names it, and ranks that differ are told.

Imports gatelib.lab.ranks, gatelib.nn and torch.
Must not wait for a failure longer than a few seconds.
"""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
import torch
from torch import distributed as dist

from gatelib import nn
from gatelib.lab import ranks
from gatelib.nn import exchange

D, E, H = 6, 6, 5
MISSING = "group: expected every rank to take part in this exchange, got no answer from rank 1"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Little grace, and what a process loads on its first pass the ranks needn't load each."""
    monkeypatch.setattr(exchange, "GRACE", 1.0)
    nn.MoE(D, E, 2, hidden=H, shared=1)(torch.randn(3, D)).sum().backward()


def made(**options):
    torch.manual_seed(0)
    return nn.MoE(D, **{"experts": E, "k": 2, "hidden": H, "group": dist.group.WORLD} | options)


def after_one_pass(what, rank=1):
    """All ranks pass once; then one does `what`, and the others go on."""

    def task():
        module, x = made(), torch.randn(4, D)
        module(x).sum().backward()
        if dist.get_rank() == rank:
            what()
        module(x).sum().backward()

    return task


def seconds(task, **options):
    start = time.monotonic()
    found = ranks.outcomes(task, **{"ranks": 3, "timeout": 60} | options)
    return found, time.monotonic() - start


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_rank_that_dies_is_named_by_all_others_long_before_their_patience_ends():
    found, took = seconds(after_one_pass(killed), patience=50)
    assert str(found[1]) == "rank 1 died: killed by SIGKILL"
    for rank in (0, 2):
        assert str(found[rank].error) == MISSING
    assert took < 30


def test_the_first_rank_is_named_as_well():
    found, _ = seconds(after_one_pass(killed, rank=0), patience=50)
    for rank in (1, 2):
        assert str(found[rank].error) == MISSING.replace("rank 1", "rank 0")


def test_a_rank_that_stalls_is_named_once_patience_ends():
    found, took = seconds(after_one_pass(lambda: time.sleep(60)), patience=2.5, timeout=6)
    assert str(found[1]) == "rank 1 did not end within 6 s, and was stopped"
    assert {str(found[rank].error) for rank in (0, 2)} == {MISSING}
    assert took < 30


def test_a_rank_that_raises_an_error_is_named_by_the_others_and_tells_its_own():
    def fails():
        raise KeyError("data")

    found, _ = seconds(after_one_pass(fails), patience=50)
    assert isinstance(found[1].error, KeyError)
    assert {str(found[rank].error) for rank in (0, 2)} == {MISSING}


def test_a_rank_that_leaves_out_its_backward_pass_is_named():
    def task():
        y = made()(torch.randn(4, D))
        if dist.get_rank() != 1:
            y.sum().backward()
        return "done"

    found, _ = seconds(task, patience=50)
    assert found[1] == "done" and str(found[0].error) == MISSING


# ---- ranks that differ ---------------------------------------------------------------------------


def differing(options):
    """Rank 1 has these, and the others the usual."""

    def task():
        other = dist.get_rank() == 1
        own = options if other else {}
        features = own.get("features", D)
        if "seed" in own:
            module = made()
            torch.manual_seed(7)
            module.router.reset_parameters()
        else:
            module = made(**{k: v for k, v in own.items() if k not in CALLS and k != "features"})
        x = torch.randn(4, features).requires_grad_("input" in own)
        module.train("eval" not in own)
        with (
            torch.autocast("cpu", torch.bfloat16, enabled="autocast" in own),
            torch.set_grad_enabled("no_grad" not in own),
        ):
            module(x)

    return task


CALLS = {"seed", "input", "eval", "autocast", "no_grad"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"experts": 9}, "experts: expected the same on all ranks, got 6 on rank 0, 9 on rank 1"),
        ({"hidden": 8}, "hidden: expected the same on all ranks, got 5 on rank 0, 8 on rank 1"),
        ({"k": 3}, "k: expected the same on all ranks, got 2 on rank 0, 3 on rank 1"),
        ({"identity_experts": 1}, "identity_experts: .*got 0 on rank 0, 1 on rank 1"),
        ({"kind": "geglu"}, "layer: .* got one that prints itself as .* on rank 0, one that "),
        ({"shared": 1}, "layer: expected the same on all ranks"),
        ({"seed": 1}, "router.weight: .* got bits whose sum is .* on rank 0, bits whose sum is"),
        ({"input": 1}, "gradients of input and weights: .* got weights on rank 0, both on rank 1"),
        ({"eval": 1}, "training: .* got True on rank 0, False on rank 1"),
        ({"autocast": 1}, "input: .* got torch.float32 on rank 0, torch.bfloat16 on rank 1"),
        ({"no_grad": 1}, r"torch.is_grad_enabled\(\): .* got True on rank 0, False on rank 1"),
    ],
    ids=str,
)
def test_ranks_that_differ_are_told_in_what_on_each_of_them(options, says):
    found, _ = seconds(differing(options), patience=50)
    for outcome in found:
        assert isinstance(outcome.error, ValueError)
        assert re.match(says, str(outcome.error))
