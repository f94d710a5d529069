"""Which runs a study asks for: arms, learning rates that grow to enclose the best, fresh seeds.

Imports NumPy.
Must not import torch or gatelib: it counts runs and reads their numbers, whoever made them.

A member names one run: (*arm, rate, seed), or (*arm, seed) where no rate is chosen. Its line is
what the run gave. Seeds 0, 1, … choose the rate of each arm; seeds 100, 101, … run at it alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

__all__ = ["FRESH", "Arm", "Grid", "Label", "Line", "Member", "Rates", "rates"]

Label = str | int | float | bool
Arm = tuple[Label, ...]
Member = tuple[Label, ...]
Line = dict[str, Any]
Lines = Mapping[Member, Line]

FRESH = 100
"""The first of the seeds that report. No seed that chose a rate is among them."""


class Rates(NamedTuple):
    """Learning rates in equal ratios, and the number of a run that chooses among them."""

    values: tuple[float, ...]
    by: str
    further: int

    @property
    def name(self) -> str:
        """The number that chooses."""
        return self.by.removeprefix("-")

    @property
    def sign(self) -> int:
        """1 where the largest is the best, -1 where the smallest is."""
        return -1 if self.by.startswith("-") else 1

    def beyond(self, rate: float, way: int) -> float:
        """The next larger rate (way 1) or the next smaller one (way -1)."""
        ratio: float = (self.values[-1] / self.values[0]) ** (1 / (len(self.values) - 1))
        return _two_digits(rate * ratio**way)


def rates(low: float, high: float, count: int, *, by: str = "valid", further: int = 3) -> Rates:
    """Learning rates from `low` to `high` in equal ratios, and how the best is chosen.

    Args:
        low, high: the ends, each above 0.
        count: how many, at least 3, so that one can lie strictly inside.
        by: the number of a run whose mean over the choosing seeds decides: the largest, or for
            "-NAME" the smallest. It must not be a number of the test set.
        further: how many rates the grid may grow beyond each end while the best lies there.

    Raises:
        ValueError: a bound that is not positive and increasing, or a count that is too small.
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"low, high: expected 0 < low < high, got {low!r} and {high!r}")
    if count < 3:
        raise ValueError(f"count: expected at least 3 rates, got {count!r}")
    if further < 0:
        raise ValueError(f"further: expected 0 or more, got {further!r}")
    if not by.removeprefix("-"):
        raise ValueError(f'by: expected the name of a number, or "-NAME", got {by!r}')
    values = tuple(_two_digits(rate) for rate in np.geomspace(low, high, count).tolist())
    return Rates(values, by, further)


def _two_digits(rate: float) -> float:
    return float(f"{rate:.2g}")


@dataclass(frozen=True)
class Grid:
    """The arms, rates and seeds of a study.

    axes: {name: labels} of what an arm is made of, such as its cell and its length.
    rates: None where the run takes no learning rate.
    choose, report: how many seeds choose an arm's rate, and how many others report at it.
    """

    axes: Mapping[str, tuple[Label, ...]]
    rates: Rates | None
    choose: int
    report: int

    # --- names

    @property
    def names(self) -> tuple[str, ...]:
        """What the values of a member are called, in its order."""
        return (*self.axes, *(("lr",) if self.rates else ()), "seed")

    @property
    def arms(self) -> list[Arm]:
        """Every combination of labels."""
        return list(itertools.product(*self.axes.values()))

    @property
    def choosing(self) -> range:
        """The seeds that choose a rate."""
        return range(self.choose if self.rates else 0)

    @property
    def reporting(self) -> range:
        """The seeds that report."""
        return range(FRESH, FRESH + self.report)

    def member(self, arm: Arm, rate: float | None, seed: int) -> Member:
        """The name of one run."""
        return (*arm, *(() if rate is None else (rate,)), seed)

    def arm_of(self, member: Member) -> Arm:
        """The arm that a run belongs to."""
        return member[: len(self.axes)]

    def named(self, line: Line) -> Member:
        """The name of the run that gave a line.

        Raises:
            KeyError: the line lacks a label.
        """
        return tuple(line[name] for name in self.names)

    # --- rates

    def chosen(self, arm: Arm, rate: float) -> list[Member]:
        """The runs that say how good a rate is for an arm."""
        return [self.member(arm, rate, seed) for seed in self.choosing]

    def tried(self, arm: Arm, lines: Lines) -> list[float]:
        """The declared rates, and those beyond an end that the results so far ask for."""
        if self.rates is None:
            return []
        found = sorted(self.rates.values)
        left = {-1: self.rates.further, 1: self.rates.further}
        while (best := self._best(arm, found, lines)) is not None:
            way = -1 if best == found[0] else 1 if best == found[-1] else 0
            if not way or not left[way]:
                break
            left[way] -= 1
            found = sorted([*found, self.rates.beyond(best, way)])
        return found

    def best(self, arm: Arm, lines: Lines) -> float | None:
        """The rate of the best mean over choosing seeds; None without rates, or if unfinished."""
        return self._best(arm, self.tried(arm, lines), lines)

    def inside(self, arm: Arm, lines: Lines) -> bool:
        """Does the best rate lie strictly between others that were tried?"""
        found = self.tried(arm, lines)
        return not found or self.best(arm, lines) in found[1:-1]

    def _best(self, arm: Arm, among: Sequence[float], lines: Lines) -> float | None:
        """Of equal means the innermost. A run that failed or diverged makes its rate the worst."""
        if self.rates is None or any(
            m not in lines for rate in among for m in self.chosen(arm, rate)
        ):
            return None
        ranked = {}
        for place, rate in enumerate(among):
            values = [lines[m].get(self.rates.name) for m in self.chosen(arm, rate)]
            finite = [v for v in values if v is not None]
            mean = math.fsum(finite) / len(values) if len(finite) == len(values) else None
            rank = -math.inf if mean is None else self.rates.sign * mean
            ranked[rate] = rank, min(place, len(among) - 1 - place)
        return max(ranked, key=ranked.__getitem__)

    # --- runs

    def reported(self, arm: Arm, lines: Lines) -> list[Member]:
        """The fresh runs of an arm at its best rate; none while that is unknown."""
        rate = self.best(arm, lines)
        if self.rates is not None and rate is None:
            return []
        return [self.member(arm, rate, seed) for seed in self.reporting]

    def needed(self, lines: Lines) -> list[Member]:
        """Every run that the grid asks for, given those there are, in the order of the record."""
        return [member for arm in self.arms for member in self._needed_by(arm, lines)]

    def _needed_by(self, arm: Arm, lines: Lines) -> Iterator[Member]:
        for rate in self.tried(arm, lines):
            yield from self.chosen(arm, rate)
        yield from self.reported(arm, lines)

    # --- the record's first line

    def head(self) -> dict[str, Any]:
        """What `read` makes the same grid of, as JSON keeps it."""
        rates = self.rates and {
            "values": list(self.rates.values),
            "by": self.rates.by,
            "further": self.rates.further,
        }
        axes = {name: list(labels) for name, labels in self.axes.items()}
        return {"axes": axes, "rates": rates, "choose": self.choose, "report": self.report}

    @classmethod
    def read(cls, head: Mapping[str, Any]) -> Grid:
        """The grid that a record's first line declares.

        Raises:
            KeyError, TypeError: the line lacks a part, or has one of another kind.
        """
        axes = {name: tuple(labels) for name, labels in head["axes"].items()}
        declared = head["rates"]
        rates = declared and Rates(
            tuple(declared["values"]), declared["by"], int(declared["further"])
        )
        return cls(axes, rates, int(head["choose"]), int(head["report"]))
