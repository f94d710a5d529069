"""What decides: rates chosen on some seeds, arms compared on fresh ones, intervals and counts.

Imports NumPy, IPython, pandas where a frame is asked for, and its neighbours in the lab.
Must not import gatelib.lab.study: it reads runs, whoever made them and wherever they are kept.

A run is a line: the labels of its arm, its rate and seed, and the numbers it ended with. The page
*How we decide* of the book says what makes a difference count, and why.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from IPython.display import Markdown
from numpy.typing import NDArray

from gatelib.lab.compared import Difference, Fisher, Solved
from gatelib.lab.tables import table
from gatelib.lab.training import Seeds

__all__ = ["Difference", "Fisher", "Line", "Member", "Rates", "Runs", "Solved", "rates"]

Array = NDArray[Any]
Member = tuple[Any, ...]
"""One run: the labels of its arm, its rate where the study has rates, its seed."""
Line = dict[str, Any]
"""What is kept of a run: labels and numbers by name, or labels and `failed`."""

FRESH = 100
"""The first of the seeds that report; those that choose a rate begin at 0."""
STILL = 0.05
"""A loss that falls by more than this share in its last third is still falling."""
LEARNED = 0.05
"""A loss that has fallen by less than this share of its start has not learned."""


class Rates(NamedTuple):
    """Learning rates in equal ratios, and how one of them is chosen. Made by `rates`."""

    values: tuple[float, ...]
    by: str
    further: int

    @property
    def name(self) -> str:
        """The number of a run that chooses."""
        return self.by.removeprefix("-")

    @property
    def sign(self) -> int:
        """1 where the largest is best, -1 where the smallest is."""
        return -1 if self.by.startswith("-") else 1

    def beyond(self, rate: float, way: int) -> float:
        """The next larger rate (way 1) or the next smaller one (way -1), to two digits."""
        ratio = (self.values[-1] / self.values[0]) ** (1 / (len(self.values) - 1))
        return float(f"{rate * ratio**way:.2g}")


def rates(low: float, high: float, count: int, *, by: str = "valid", further: int = 3) -> Rates:
    """`count` learning rates from low to high in equal ratios, two digits each.

    Args:
        by: the number of a run that chooses among them, by its mean over the choosing seeds: the
            largest is best; with a minus before it (`"-loss"`), the smallest. It must be measured
            on training or validation data.
        further: how often the grid may grow beyond each end, for an arm whose best rate lies there.

    Raises: ValueError for rates that aren't positive, rising and at least two, or for a `by` that
        is a number of the test set.
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"low, high: expected 0 < low < high, got {low} and {high}")
    if count < 2 or further < 0:
        raise ValueError(f"count, further: expected ≥ 2 and ≥ 0, got {count} and {further}")
    if by.removeprefix("-").startswith("test"):
        raise ValueError(f"by: expected a number of training or validation data, got {by!r}")
    values = tuple(float(f"{rate:.2g}") for rate in np.geomspace(low, high, count))
    if len(set(values)) < count:
        raise ValueError(f"count: expected rates that differ in two digits, got {values}")
    return Rates(values, by, further)


class Runs:
    """Runs of a grid: arms × rates × seeds. It knows what is needed, and reads what is there.

    Args:
        name: of the study.
        axes: {name: axis}; an axis of arms is {label: value} or a sequence of values, and at most
            one is made by `rates`.
        choose: seeds 0…choose-1 choose each arm's rate.
        report: seeds 100…100+report-1, fresh ones, run at the chosen rate and report.
        lines: the runs there are.

    An arm is named by its label where there is one axis, by a tuple of labels where there are more.
    """

    minutes: float | None = None
    """Core-minutes that the runs took, where that is known."""

    def __init__(
        self,
        name: str,
        axes: Mapping[str, Any],
        *,
        choose: int = 3,
        report: int = 10,
        lines: Iterable[Line] = (),
    ) -> None:
        if not (1 <= choose <= FRESH and report >= 1):
            raise ValueError(f"choose, report: expected 1…{FRESH} and ≥ 1, got {choose}, {report}")
        if "seed" in axes:
            raise ValueError("axes: expected no axis 'seed': `choose` and `report` say which")
        found = {key: axis for key, axis in axes.items() if isinstance(axis, Rates)}
        if len(found) > 1:
            raise ValueError(f"axes: expected rates for one axis, got them for {list(found)}")
        self.name = name
        self.rate_name: str | None = next(iter(found), None)
        self.rates: Rates | None = next(iter(found.values()), None)
        self.axes = {key: _labelled(key, axis) for key, axis in axes.items() if key not in found}
        self.choosing, self.reporting = range(choose), range(FRESH, FRESH + report)
        self.labels = (*self.axes, *found, "seed")
        self.arms = [_short(arm) for arm in itertools.product(*self.axes.values())]
        self.lines: dict[Member, Line] = {self.member(line): line for line in lines}

    # --- which runs

    def member(self, line: Line) -> Member:
        """The run that a line is of."""
        return tuple(line[label] for label in self.labels)

    def members(self, arm: Any, rate: float | None, seeds: Iterable[int]) -> list[Member]:
        """An arm at a rate (None in a study without rates): one run a seed."""
        head = (*_long(arm, self.axes), *(() if self.rates is None else (rate,)))
        return [(*head, seed) for seed in seeds]

    def tried(self, arm: Any) -> list[float]:
        """The declared rates, and those beyond an end that the results so far ask for; rising."""
        if self.rates is None:
            return []
        found = sorted(self.rates.values)
        left = {-1: self.rates.further, 1: self.rates.further}
        while (best := self._best(arm, found)) is not None:
            way = -1 if best == found[0] else 1 if best == found[-1] else 0
            if not way or not left[way]:
                break
            left[way] -= 1
            found = sorted([*found, self.rates.beyond(best, way)])
        return found

    def best(self, arm: Any) -> float | None:
        """The rate of the best mean over the choosing seeds, of equal ones the innermost.

        None while a run of the grid is missing, and in a study without rates. A rate at which a run
        failed or gave no number is the worst.
        """
        return self._best(arm, self.tried(arm))

    def _best(self, arm: Any, among: Sequence[float]) -> float | None:
        members = {rate: self.members(arm, rate, self.choosing) for rate in among}
        if self.rates is None or any(m not in self.lines for ms in members.values() for m in ms):
            return None
        ranked = {}
        for place, rate in enumerate(among):
            mean = float(np.mean([self._number(m, self.rates.name) for m in members[rate]]))
            score = -math.inf if math.isnan(mean) else self.rates.sign * mean
            ranked[rate] = (score, min(place, len(among) - 1 - place))
        return max(ranked, key=ranked.__getitem__)

    def at_edge(self, arm: Any) -> bool:
        """Is the best rate still the smallest or the largest tried?"""
        tried = self.tried(arm)
        return bool(tried) and self._best(arm, tried) in (tried[0], tried[-1])

    def needed(self) -> list[Member]:
        """Every run that the grid asks for so far: arm by arm, rates rising, then fresh seeds."""
        return [member for arm in self.arms for member in self._needed(arm)]

    def _needed(self, arm: Any) -> list[Member]:
        tried = self.tried(arm)
        found = [m for rate in tried for m in self.members(arm, rate, self.choosing)]
        best = self._best(arm, tried)
        ready = self.rates is None or best is not None
        return found + (self.members(arm, best, self.reporting) if ready else [])

    def missing(self) -> list[Member]:
        """Runs that are needed and not there. As results come, they may ask for more."""
        return [member for member in self.needed() if member not in self.lines]

    # --- their numbers

    def _number(self, member: Member, name: str) -> Any:
        """A number or curve of a run; nan where it failed, diverged or isn't there."""
        line = self.lines.get(member, {"failed": "not run"})
        if "failed" in line:
            return math.nan
        if name not in line:
            raise ValueError(f"name: expected one of {self.numbers()}, got {name!r}")
        value = line[name]
        if isinstance(value, list):
            return np.array([math.nan if v is None else v for v in value], float)
        return math.nan if value is None else float(value)

    def numbers(self) -> list[str]:
        """The names of what a run gives."""
        seen = dict.fromkeys(key for line in self.lines.values() for key in line)
        return [key for key in seen if key not in (*self.labels, "failed", "first")]

    def reported(self, arm: Any) -> list[Member]:
        """The runs of an arm that report: its fresh seeds at its best rate.

        Raises: ValueError while they haven't run.
        """
        found = self.members(arm, self.best(arm), self.reporting)
        if absent := [member for member in found if member not in self.lines]:
            raise ValueError(f"{self.name}: {len(absent)} runs of {arm!r} are missing")
        return found

    def failed(self, arm: Any) -> dict[Member, str]:
        """The runs of an arm that report and failed, with the reason."""
        lines = {member: self.lines[member] for member in self.reported(arm)}
        return {member: line["failed"] for member, line in lines.items() if "failed" in line}

    def of(self, arm: Any, name: str) -> Array:
        """The number (seeds,) or curve (seeds, points) `name` of each reporting seed of an arm.

        A run that failed, or a number that wasn't finite, is nan.
        """
        found = [self._number(member, name) for member in self.reported(arm)]
        points = max((np.size(v) for v in found if np.ndim(v)), default=0)
        if points:
            found = [v if np.size(v) == points else np.full(points, math.nan) for v in found]
        return np.array(found, float)

    def chose(self, arm: Any, rate: float, name: str) -> Array:
        """As `of`, of each choosing seed of an arm at a rate."""
        return np.array([self._number(m, name) for m in self.members(arm, rate, self.choosing)])

    def scores(self, name: str = "test") -> dict[Any, Seeds]:
        """{arm: one number a seed}."""
        return {arm: Seeds(tuple(self.of(arm, name).tolist())) for arm in self.arms}

    def difference(self, a: Any, b: Any, name: str = "test") -> Difference:
        """a - b, each arm at its own best rate, seed by seed.

        Raises: ValueError where a run of either failed or gave no number: then there is no mean.
        """
        for arm in (a, b):
            if failed := self.failed(arm):
                member, reason = next(iter(failed.items()))
                raise ValueError(f"{self.name}: {len(failed)} of {arm!r} failed: {member} {reason}")
        return Difference.paired(self.of(a, name), self.of(b, name))

    def solved(
        self, name: str = "test", *, above: float | None = None, below: float | None = None
    ) -> dict[Any, Solved]:
        """{arm: runs whose number lies above, or below, a threshold}; a failed run isn't solved."""
        return {arm: self._solved(arm, name, above, below) for arm in self.arms}

    def _solved(self, arm: Any, name: str, above: float | None, below: float | None) -> Solved:
        if (above is None) == (below is None):
            raise ValueError(f"above, below: expected one of them, got {above} and {below}")
        values = self.of(arm, name)
        reached = values > above if above is not None else values < below
        return Solved(int(reached.sum()), len(values))

    def fisher(
        self,
        a: Any,
        b: Any,
        name: str = "test",
        *,
        above: float | None = None,
        below: float | None = None,
    ) -> Fisher:
        """Are a and b solved equally often? Fisher's exact test of the two counts, two-sided."""
        return Fisher.exact(*(self._solved(arm, name, above, below) for arm in (a, b)))

    def falling(self, arm: Any, name: str = "loss") -> float:
        """How much of its whole fall the training loss of an arm makes in the last third.

        Both falls are of the mean curve over the reporting seeds: that of the last third along a
        straight line fitted to it, the whole one from the first point to that line's end. 1/3 is
        a loss that falls evenly to the end, 0 a plateau, less than 0 a loss that rises. nan where
        the loss has fallen by less than 5 % of its start: nothing was learned that could level off.
        A loss can lie flat for long before it breaks through, so a plateau is no proof of an end.
        """
        curve = np.nanmean(self.of(arm, name), 0)
        if np.ndim(curve) != 1 or len(curve) < 6:
            raise ValueError(f"name: expected a curve of at least 6 points, got {name!r}")
        last = curve[-(len(curve) // 3) :]
        slope, start = np.polyfit(np.arange(len(last)), last, 1)
        whole = curve[0] - (start + slope * (len(last) - 1))
        return float(-slope * len(last) / whole) if whole > LEARNED * abs(curve[0]) else math.nan

    # --- shown

    def dots(self, name: str = "test", **options: Any) -> Array:
        """Every reporting seed a dot: `gatelib.lab.shown.dots` says what the options are."""
        from gatelib.lab import shown  # it reads this module

        return shown.dots(self, name, **options)

    def rate_curves(self, name: str = "valid", **options: Any) -> Array:
        """Every choosing seed over its rate: `gatelib.lab.shown.rate_curves` has the options."""
        from gatelib.lab import shown

        return shown.rate_curves(self, name, **options)

    def over(self, axis: str, name: str = "test", **options: Any) -> Any:
        """A number over an axis: `gatelib.lab.shown.over` says what the options are."""
        from gatelib.lab import shown

        return shown.over(self, axis, name, **options)

    def frame(self) -> Any:
        """Every run as a row of a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(list(self.lines.values()))

    def table(self, *names: str) -> Markdown:
        """Each arm at its best rate: mean ± standard deviation over the seeds, and what to mind."""
        shown = names or ("test",)
        rows = []
        for arm in self.arms:
            best = [f"{self.best(arm):g}"] if self.rates else []
            means = [_mean(self.of(arm, name)) for name in shown]
            rows.append([*map(str, _long(arm, self.axes)), *best, *means, self.mind(arm)])
        rate = [self.rate_name] if self.rate_name else []
        header = [*self.axes, *rate, *shown, "mind"]
        align = "l" * len(self.axes) + "r" * (len(rate) + len(shown)) + "l"
        return table(header, rows, align)

    def mind(self, arm: Any) -> str:
        """What a reader of an arm's numbers should know: an edge, a loss that falls, failures."""
        found = []
        if self.at_edge(arm):
            end = "smallest" if self.best(arm) == self.tried(arm)[0] else "largest"
            found.append(f"best rate is the {end} tried")
        if "loss" in self.numbers():
            share = self.falling(arm)
            if math.isnan(share):
                found.append("loss has not fallen")
            elif share > STILL:
                found.append(f"loss still falling ({100 * share:.0f} %)")
        if failed := self.failed(arm):
            found.append(f"{len(failed)} of {len(self.reporting)} runs failed")
        return "; ".join(found)


def _labelled(name: str, axis: Any) -> dict[Any, Any]:
    """{label: value} of an axis; of a sequence each value is its own label."""
    found = dict(axis) if isinstance(axis, Mapping) else {value: value for value in axis}
    if not found or any(not isinstance(label, str | int | float) for label in found):
        raise ValueError(f"{name}: expected labels that are text or numbers, got {list(found)}")
    return found


def _short(arm: tuple[Any, ...]) -> Any:
    return arm[0] if len(arm) == 1 else arm


def _long(arm: Any, axes: Mapping[str, Mapping[Any, Any]]) -> tuple[Any, ...]:
    """The labels of an arm, one for each axis."""
    labels = arm if isinstance(arm, tuple) else (arm,)
    known = len(labels) == len(axes) and all(
        label in axis for label, axis in zip(labels, axes.values(), strict=True)
    )
    if not known:
        expected = ", ".join(f"{name} of {list(axis)}" for name, axis in axes.items())
        raise ValueError(f"arm: expected {expected or '()'}, got {arm!r}")
    return labels


def _mean(values: Array) -> str:
    """Mean ± standard deviation, of the runs that gave a number."""
    there = values[np.isfinite(values)]
    if not len(there):
        return "none"
    spread = f" ± {there.std(ddof=1):.3f}" if len(there) > 1 else ""
    return f"{there.mean():.3f}{spread}"
