"""Search for the best answer to one sentence, in plain loops: everything, or the best few.

Imports NumPy alone.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["beam", "exhaustive", "normalised"]

Array = NDArray[Any]
Tokens = tuple[int, ...]
NextLogProbs = Callable[[Tokens], Array]
"""From the tokens so far to log-probabilities (V,) of the next one."""


def normalised(total: float, length: int, length_power: float, length_offset: float) -> float:
    """A hypothesis' score: its log-probability over ((offset + length)/(offset + 1))^power.

    Offset 5 is Wu et al. 2016, arXiv:1609.08144, equation 14, without coverage; offset 0 divides
    by a power of the length alone; power 0 leaves the log-probability as it is.
    """
    return float(total / ((length_offset + length) / (length_offset + 1)) ** length_power)


def exhaustive(
    next_log_probs: NextLogProbs,
    end: int,
    max_length: int,
    length_power: float = 0.0,
    length_offset: float = 0.0,
) -> tuple[Tokens, float]:
    """The best hypothesis of all, and its score, by looking at every one.

    A hypothesis ends with its first `end`, or is cut after `max_length` tokens.
    """
    best: tuple[Tokens, float] = ((), -np.inf)
    vocabulary = len(next_log_probs(()))
    for length in range(1, max_length + 1):
        for tokens in product(range(vocabulary), repeat=length):
            whole = tokens[-1] == end or length == max_length
            if end in tokens[:-1] or not whole:
                continue
            total = sum(float(next_log_probs(tokens[:t])[tokens[t]]) for t in range(length))
            score = normalised(total, length, length_power, length_offset)
            if score > best[1]:
                best = tokens, score
    return best


def beam(
    next_log_probs: NextLogProbs,
    end: int,
    max_length: int,
    width: int,
    length_power: float = 0.0,
    length_offset: float = 0.0,
) -> list[tuple[Tokens, float]]:
    """At most `width` hypotheses and their scores, the best first.

    At each step every unfinished hypothesis is tried with every next token, finished ones stay as
    they are, and the `width` best scores of all survive.
    """
    alive: list[tuple[Tokens, float]] = [((), 0.0)]

    def score(hypothesis: tuple[Tokens, float]) -> float:
        tokens, total = hypothesis
        return normalised(total, len(tokens), length_power, length_offset)

    for _ in range(max_length):
        tried: list[tuple[Tokens, float]] = []
        for tokens, total in alive:
            if end in tokens:
                tried.append((tokens, total))
                continue
            steps = next_log_probs(tokens)
            tried += [((*tokens, v), total + float(steps[v])) for v in range(len(steps))]
        alive = sorted(tried, key=score, reverse=True)[:width]
    return [(tokens, score((tokens, total))) for tokens, total in alive]
