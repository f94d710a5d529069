"""Two arms compared: the interval of their difference, and counts of what is solved.

Imports NumPy and SciPy.
Must not import the floors below; it compares the numbers it is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Difference", "Fisher", "Solved"]

Array = NDArray[Any]


class Difference(NamedTuple):
    """Mean of a - b over pairs of runs with one seed, and Student's 95 % interval of that mean.

    values: a - b for each seed. Where these are all the same number, Student's interval would have
    no width, which is no certainty: `low` and `high` are nan then.
    """

    mean: float
    low: float
    high: float
    values: tuple[float, ...]

    @classmethod
    def paired(cls, a: Sequence[float] | Array, b: Sequence[float] | Array) -> Difference:
        """a - b, seed by seed.

        Raises: ValueError for fewer than two seeds, for a and b of different lengths, and for
            numbers that aren't finite.
        """
        one, other = np.asarray(a, float), np.asarray(b, float)
        if one.shape != other.shape or one.ndim != 1 or len(one) < 2:
            shapes = f"{one.shape} and {other.shape}"
            raise ValueError(f"a, b: expected a number for each of at least 2 seeds, got {shapes}")
        if not (np.isfinite(one).all() and np.isfinite(other).all()):
            raise ValueError(f"a, b: expected finite numbers, got {one} and {other}")
        gaps = one - other
        from scipy import stats  # takes longer to load than all else in the lab

        low = high = math.nan
        if not np.allclose(gaps, gaps[0], rtol=1e-9, atol=1e-12):
            low, high = map(float, stats.ttest_rel(one, other).confidence_interval(0.95))
        return cls(float(gaps.mean()), low, high, tuple(gaps.tolist()))

    @property
    def identical(self) -> bool:
        """Is the difference the same in every seed, so that there is no interval?"""
        return math.isnan(self.low)

    def counts(self, matters: float) -> bool:
        """Does the interval exclude 0, and is the mean at least as large as what matters?

        `matters` is said before the first run. False where there is no interval: then count what is
        solved and ask `Runs.fisher`.
        """
        if not matters > 0:
            raise ValueError(f"matters: expected a positive number, got {matters}")
        return (self.low > 0 or self.high < 0) and abs(self.mean) >= matters

    def __repr__(self) -> str:
        seeds = len(self.values)
        if self.identical:
            return f"{self.mean:+.3f} in each of {seeds} seeds, so no interval"
        return (
            f"{self.mean:+.3f}, 95 % interval {self.low:+.3f} to {self.high:+.3f} ({seeds} seeds)"
        )


class Solved(NamedTuple):
    """How many runs of an arm reached a threshold."""

    reached: int
    seeds: int

    def __repr__(self) -> str:
        return f"{self.reached} of {self.seeds}"


class Fisher(NamedTuple):
    """Solved runs of two arms, and how often chance alone would part them so far (two-sided)."""

    a: Solved
    b: Solved
    p: float

    @classmethod
    def exact(cls, a: Solved, b: Solved) -> Fisher:
        """Fisher's exact test of two counts."""
        from scipy import stats

        rows = [[s.reached, s.seeds - s.reached] for s in (a, b)]
        return cls(a, b, float(stats.fisher_exact(rows).pvalue))

    def __repr__(self) -> str:
        return f"{self.a} against {self.b}, p = {self.p:.2g} (Fisher's exact test)"
