"""Does a record hold? First steps run again, kept weights scored again, whole runs made anew.

Imports NumPy, SciPy where runs of another processor are compared, and gatelib.lab.
Must not import joblib or Dask: it runs here, one after the other.

Where the processor is the one that made the record, numbers must be the same to the last digit.
Elsewhere most first losses agree to 1e-5, but where a training explodes the last of them are
chaos; their median deviation tells a wrong seed, rate or cell all the same (3e-4 and more).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.lab.runs.member import Refused, run_member, scored, told
from gatelib.lab.verdict import Line, Member
from gatelib.lab.watch import FIRST, Watch

__all__ = ["anew", "differing", "named", "prefixes", "rescored", "same_processor", "set_aside"]

Lines = Mapping[Member, Line]
Weights = Mapping[str, NDArray[Any]]

FIRST_LOSSES, SCORES, SMALL = 1e-4, 2e-2, 2e-3
"""Elsewhere: the largest relative deviation of first losses, of other numbers; what is small."""
CHANCE = 0.01
"""Whole runs made anew elsewhere are another sample: how unlikely it may be (Mann-Whitney)."""


def same_processor(made: Mapping[str, str], here: Mapping[str, str]) -> bool:
    """Do both give the same last digits? Python's version has no part in that."""
    return all(made.get(part) == here[part] for part in ("cpu", "torch", "numpy"))


def prefixes(payload: bytes, lines: Lines, which: Iterable[Member], exact: bool) -> Iterator[str]:
    """The first steps of these runs, from scratch, against the record."""
    for member in which:
        again = partial(run_member, payload, member, Watch(stop=FIRST))
        yield from _again(again, lines, member, exact)


def rescored(
    payload: bytes, lines: Lines, weights: Weights, which: Iterable[Member], exact: bool
) -> Iterator[str]:
    """These runs with kept weights in the place of their training, against the record."""
    for member in which:
        mine = set_aside(weights, member)
        if not mine:
            yield f"{named(member)}: no weights are kept of it"
            continue
        yield from _again(partial(scored, payload, member, mine), lines, member, exact)


def set_aside(weights: Weights, member: Member) -> dict[str, NDArray[Any]]:
    """The kept weights of one run."""
    start = f"{named(member)} "
    return {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}


def anew(payload: bytes, lines: Lines, which: Sequence[Member], exact: bool) -> Iterator[str]:
    """Whole runs of one arm made anew; on another processor they are compared as a sample."""
    if exact:
        for member in which:
            again = partial(run_member, payload, member, Watch())
            yield from _again(again, lines, member, exact)
        return
    with _no_bars():
        made = {member: run_member(payload, member, Watch()) for member in which}
    from scipy.stats import mannwhitneyu

    for name in [n for n, value in made[which[0]].items() if isinstance(value, int | float)]:
        now, then = ([_float(each[m].get(name)) for m in which] for each in (made, lines))
        if mannwhitneyu(now, then, nan_policy="omit").pvalue < CHANCE:
            yield f"{named(which[0][:-1])}: {name} is {then} in the record and {now} here"


def _again(run: Callable[[], Line], lines: Lines, member: Member, exact: bool) -> Iterator[str]:
    try:
        with _no_bars():
            found = run()
    except (Exception, Refused) as error:
        yield f"{named(member)} can't be run again: {told(error)}"
        return
    yield from differing(member, lines[member], found, exact)


def differing(member: Member, stored: Line, found: Line, exact: bool) -> Iterator[str]:
    """What of a run came out otherwise than its line says."""
    for name, value in found.items():
        there = stored.get(name)
        if there == value or (not exact and _near(name, there, value)):
            continue
        brief = (text if len(text := str(x)) < 80 else f"{text[:60]}…" for x in (there, value))
        yield "{}: {} is {} in the record and {} here".format(named(member), name, *brief)


def _near(name: str, there: Any, value: Any) -> bool:
    if any(isinstance(x, str | bool) for x in (there, value)):
        return False
    a, b = (np.array(x, float).ravel() for x in (there, value))
    if a.shape != b.shape:
        return False
    allowed = FIRST_LOSSES if name == "first" else SCORES
    slack = 0.0 if name == "first" else SMALL
    apart = np.where(np.isnan(a) & np.isnan(b), 0.0, abs(a - b))
    excess = apart - slack - allowed * np.fmax(abs(a), abs(b))
    return bool(np.median(np.nan_to_num(excess, nan=np.inf)) <= 0)


def _float(value: Any) -> float:
    return float("nan") if value is None else float(value)


def named(member: Member) -> str:
    """A run as messages and kept weights call it: its labels, its rate, its seed."""
    return "/".join(f"{label:g}" if isinstance(label, float) else str(label) for label in member)


@contextmanager
def _no_bars() -> Iterator[None]:
    """No progress bars for a few steps."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before
