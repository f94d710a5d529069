"""Processes that run one function as ranks: each answers, and who doesn't is named.

Imports gatelib.lab.ranks and torch.
Must not wait for a rank longer than a few seconds.
"""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from torch import distributed as dist

from gatelib.lab.ranks import RankError, outcomes, run


def summed(x):
    dist.all_reduce(x)
    return dist.get_rank(), x


def test_every_rank_answers_and_they_meet_in_a_collective():
    found = run(summed, torch.ones(2), ranks=3)
    assert [rank for rank, _ in found] == [0, 1, 2]
    assert all(torch.equal(x, torch.full((2,), 3.0)) for _, x in found)


def test_a_function_that_was_made_here_runs_there_and_nothing_of_it_stays(capsys):
    seen = []

    def told():
        seen.append(dist.get_rank())
        print(f"rank {dist.get_rank()} of {dist.get_world_size()}")
        os.write(1, b"from below")
        return torch.randn(3), torch.get_num_threads()

    torch.manual_seed(3)
    (one, threads), (two, _) = run(told, ranks=2)
    assert seen == [] and not dist.is_initialized() and threads == 1
    assert torch.equal(one, two) and torch.equal(one, torch.randn(3))  # the parent's random numbers
    assert capsys.readouterr().out == "rank 0 of 2\nrank 1 of 2\n"


def test_large_answers_come_through():
    found = run(lambda: torch.full((3, 400, 500), float(dist.get_rank())), ranks=2)
    assert [x.mean().item() for x in found] == [0.0, 1.0]


def test_an_error_comes_with_the_number_of_its_rank_and_where_it_was_raised():
    def fails():
        if dist.get_rank() == 1:
            raise ValueError("x: expected 3, got 4")
        summed(torch.ones(1))

    with pytest.raises(RankError, match="rank 1 raised ValueError: x: expected 3, got 4") as caught:
        run(fails, ranks=3, timeout=10)
    assert caught.value.rank == 1 and isinstance(caught.value.__cause__, ValueError)
    assert any("in fails" in note for note in caught.value.error.__notes__)


def test_a_rank_that_dies_is_named_and_the_others_tell_what_they_saw():
    def dies():
        if dist.get_rank() == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        summed(torch.ones(1))

    start = time.monotonic()
    found = outcomes(dies, ranks=3, timeout=20)
    assert time.monotonic() - start < 15
    assert str(found[2]) == "rank 2 died: killed by SIGKILL"
    assert all(isinstance(found[rank].error, RuntimeError) for rank in (0, 1))
    with pytest.raises(RankError, match="rank 2 died"):
        run(dies, ranks=3, timeout=20)


def test_a_rank_that_leaves_by_itself_is_named_with_its_status():
    found = outcomes(lambda: os._exit(7) if dist.get_rank() else 5, ranks=2)
    assert found[0] == 5 and str(found[1]) == "rank 1 died: exit status 7"


def test_a_rank_that_does_not_end_is_stopped():
    start = time.monotonic()
    with pytest.raises(RankError, match=r"rank 1 did not end within 1 s, and was stopped"):
        run(lambda: time.sleep(60 * dist.get_rank()), ranks=2, timeout=1)
    assert time.monotonic() - start < 5


def test_what_cannot_be_sent_is_that_ranks_error():
    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(one)

    def raises():
        raise Odd("lost", 2)

    with pytest.raises(RankError, match="rank 0 raised RuntimeError: Odd: lost"):
        run(raises, ranks=1)
    with pytest.raises(RankError, match=r"rank 0 raised .*[Pp]ickle"):
        run(lambda: lambda: 0, ranks=1)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"function": 3}, TypeError, "function: expected a function, got int"),
        ({"ranks": 0}, ValueError, "ranks: expected at least 1, got 0"),
        ({"ranks": 2.0}, TypeError, "ranks: expected an integer, got float"),
        ({"timeout": 0}, ValueError, "timeout: expected more than 0 seconds, got 0"),
        ({"patience": -1.0}, ValueError, "patience: expected more than 0 seconds, got -1"),
    ],
)
def test_a_wrong_argument_is_named(given, error, says):
    with pytest.raises(error, match=says):
        run(**{"function": lambda: 0} | given)
