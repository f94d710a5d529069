"""A study: a grid of training runs too long for validation, run once, recorded, and replayed.

Imports torch, gatelib.lab.
Must not import the floors below; it runs whatever function it is given.

In a chapter `study(name, run, **axes)` reads `studies/NAME.jsonl`, shows that this record belongs
to the code of the page, and gives its numbers. `make study` makes the record. The environment
says what is asked for: GATES_STUDY=run makes it, "adopt" keeps a record whose code was changed and
whose numbers were not, "full" replays every run and makes whole runs anew.
"""

from __future__ import annotations

import itertools
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from torch import nn

from gatelib.lab.fingerprint import fingerprint, short
from gatelib.lab.runs import replay
from gatelib.lab.runs.member import made_on, packed, run_member
from gatelib.lab.runs.store import Record, Store, as_runs, declared
from gatelib.lab.training import watched
from gatelib.lab.verdict import Member, Rates, Runs
from gatelib.lab.watch import Watch

__all__ = ["StaleRecord", "Study", "recorded", "study"]

NAME = re.compile(r"(\d\d)_[a-z0-9_]+(-[a-z0-9_]+)+")
SHOWN = 8
"""How many faults an error lists; the rest are counted."""


class StaleRecord(Exception):
    """A record is not of the code on this page, or its numbers don't come out again."""


class NoRecord(StaleRecord, FileNotFoundError):
    """There is no record where the notebook looks for it."""


def study(
    name: str,
    run: Callable[..., Mapping[str, Any]],
    *,
    lr: Rates | None = None,
    choose: int = 3,
    report: int = 10,
    seconds: float = 600,
    may_fail: Collection[Any] = (),
    keep: bool | Collection[Any] = True,
    **arm_axes: Mapping[Any, Any] | Sequence[Any],
) -> Study:
    """Return the record of `run` over a grid, checked; under `make study`, make it first.

    Args:
        name: begins with the chapter's file, as "06_lstm-recall".
        run: called with one value of each axis by name, `lr` if there are rates, and `seed`. It
            trains with `train` or `train_together` and returns {name: number, curve or History}.
            It gets copies of all that it reaches, so no run can change the next.
        lr: what `rates(...)` gave; each arm then runs at its own best rate.
        choose: seeds 0, 1, … that choose the rate. report: fresh seeds 100, 101, … that report.
        seconds: processor time after which a run is recorded as failed.
        may_fail: arms of which a run may fail without failing the check.
        keep: keep the trained weights of one run of each arm, or of these arms; False for what
            can't be measured on a trained model.
        arm_axes: {label: value}, or a sequence of values that are their own labels.

    Raises:
        StaleRecord: the record is absent, damaged, not of this code or grid, has a run that failed,
            or gives other numbers now. To somebody at a keyboard it is a warning, if there is a
            record to be read.
        ValueError: a name or an axis that no record can have.
    """
    axes = {**arm_axes, **({} if lr is None else {"lr": lr})}
    found = Study(
        name, run, axes, choose=choose, report=report, seconds=seconds, may_fail=may_fail, keep=keep
    )
    mode = os.environ.get("GATES_STUDY", "")
    if mode == "run":
        found.compute()
    elif mode == "adopt":
        found.adopt()
    found.check(mode)
    return found


def recorded(name: str, folder: Path | str = "studies") -> Runs:
    """The numbers of a record, for a cell that comes before the study; the study checks them.

    Raises:
        StaleRecord: there is no record of this name, or its files are damaged.
    """
    _chapter(name)
    record = Store(name, Path(folder)).read()
    if record.faults:
        raise _error(record)(_told(name, record.faults))
    found = as_runs(record.head, record.lines.values())
    found.minutes = record.minutes
    return found


class Study(Runs):
    """The runs of a record that is checked against the code on the page. Made by `study`."""

    def __init__(
        self,
        name: str,
        run: Callable[..., Mapping[str, Any]],
        axes: Mapping[str, Any],
        *,
        choose: int,
        report: int,
        seconds: float,
        may_fail: Collection[Any],
        keep: bool | Collection[Any],
        folder: Path | str = "studies",
    ) -> None:
        _chapter(name)
        super().__init__(name, axes, choose=choose, report=report)
        self.seconds, self.may_fail = seconds, self._some("may_fail", may_fail)
        whole = self.arms if keep else []
        self.keep = list(whole) if isinstance(keep, bool) else self._some("keep", keep)
        self.store = Store(name, Path(folder))
        self.payload = packed(run, self)
        self.functions, self.values = fingerprint(run=run), self._arms()
        self._read()

    def _some(self, argument: str, arms: Collection[Any]) -> list[Any]:
        if unknown := [arm for arm in arms if arm not in self.arms]:
            raise ValueError(f"{argument}: expected some of the arms {self.arms}, got {unknown}")
        return list(arms)

    def _arms(self) -> dict[str, dict[str, str]]:
        """A hash of each label's value: a new arm leaves the runs of the others valid."""
        return {
            name: {str(k): short(repr(fingerprint(value=v))) for k, v in axis.items()}
            for name, axis in self.axes.items()
        }

    def _read(self) -> None:
        self.record = self.store.read()
        self.minutes = self.record.minutes
        self.regrouped = [
            f"{part}: {there!r} in the record, {here!r} here"
            for part, here in declared(self).items()
            if self.record.head and (there := self.record.head.get(part)) != here
        ]
        names = [set(self.labels) <= set(line) for line in self.record.lines.values()]
        lines = self.record.lines.values() if all(names) else ()
        self.lines = {self.member(line): line for line in lines}

    # --- making it

    def compute(self, workers: int | None = None, dask: str | None = None) -> None:
        """Run what is missing, failed or changed, and write the record; Ctrl-C keeps what ended.

        Args:
            workers: processes on this machine; WORKERS of the environment, or one for each core.
            dask: the address of a Dask scheduler; GATES_DASK of the environment.
        """
        self._making().make(workers, dask or os.environ.get("GATES_DASK") or None)
        self._read()

    def adopt(self) -> None:
        """Keep a record whose code was changed, once each arm's first fresh run comes out the same.

        Raises:
            StaleRecord: a number came out otherwise, or the record has other faults.
        """
        if self.record.faults or self.regrouped or self.missing():
            return
        if self._changed():
            making = self._making()
            making.restamp(self.record)
            self._read()

    def _making(self) -> Any:
        from gatelib.lab.runs.making import Making  # brings joblib, which a reader doesn't need

        code = {"code": self.functions, "arms": self.values}
        return Making(self, self.payload, code, self.store, self.seconds, self._excused, self.keep)

    def _arm_of(self, member: Member) -> Any:
        return member[0] if len(self.axes) == 1 else member[: len(self.axes)]

    def _excused(self, member: Member) -> bool:
        return self._arm_of(member) in self.may_fail

    # --- checking it

    def check(self, mode: str = "") -> None:
        """Raise StaleRecord for all that is wrong; warn where somebody is there to read it."""
        wrong = list(self._faults(mode))
        if not wrong:
            return
        text = _told(self.name, wrong)
        if mode or self.record.faults or self.missing() or not watched():
            raise _error(self.record)(text)
        note = "What follows is the record, not this code; `.rerun(...)` makes one run anew."
        warnings.warn(f"{text}\n{note}", stacklevel=3)

    def _faults(self, mode: str) -> Iterator[str]:
        """All that is wrong with the record, the cheapest to find first."""
        yield from self.record.faults
        yield from self.regrouped
        if not self.lines:
            return
        changed = self._changed()
        if changed:
            yield f"changed since the record was made: {', '.join(changed)}"
        yield from self._misplaced()
        for member, line in self.lines.items():
            if "failed" in line and not self._excused(member):
                yield f"{replay.named(member)} failed: {line['failed']}"
        broken = list(self._replayed(mode))
        yield from broken
        if changed and not broken:
            yield f"replayed, all is the same: `{_command(self.name)} ADOPT=1` may keep the runs"

    def _changed(self) -> list[str]:
        """What isn't as it was: functions, modules and data that `run` reaches, or arms."""
        head = self.record.head
        was, now = head.get("code", {}), self.functions
        found = [name for name in sorted(was | now) if was.get(name) != now.get(name)]
        for axis, labels in self.values.items():
            was = head.get("arms", {}).get(axis, {})
            found += [f"{axis} {k!r}" for k, v in labels.items() if was.get(k) not in (None, v)]
        return found

    def _misplaced(self) -> Iterator[str]:
        needed = self.needed()
        if todo := [member for member in needed if member not in self.lines]:
            yield f"{len(todo)} runs are missing, the first {replay.named(todo[0])}"
        elif other := [member for member in self.lines if member not in set(needed)]:
            yield f"{len(other)} runs are not of this grid, the first {replay.named(other[0])}"
        elif needed != list(self.lines):
            yield "the runs stand in another order than the grid's"

    def _replayed(self, mode: str) -> Iterator[str]:
        exact = replay.same_processor(self.record.head.get("made", {}), made_on())
        ran = {member: line for member, line in self.lines.items() if "failed" not in line}
        drawn = self._drawn(list(ran), date.today().isoformat())
        one = {self._arm_of(member): member for member in drawn}
        which = drawn if mode == "full" else list(one.values())
        yield from replay.prefixes(self.payload, ran, which, exact)
        if self.missing():
            return
        if self.keep:
            yield from replay.rescored(self.payload, ran, self.record.weights, self._shown(), exact)
        if mode == "full":
            week = "-".join(map(str, date.today().isocalendar()[:2]))
            arm = self._arm_of(self._drawn(list(ran), week)[0])
            members = [member for member in self.reported(arm) if member in ran]
            yield from replay.anew(self.payload, ran, members, exact)

    def _shown(self) -> list[Member]:
        """The runs whose weights are kept: an arm's first fresh one, unless it failed."""
        first = [self.reported(arm)[0] for arm in self.keep]
        return [member for member in first if "failed" not in self.lines[member]]

    def _drawn(self, members: list[Member], when: str) -> list[Member]:
        """In an order that nobody chose and that changes with the day."""
        salt = f"{when}{self.record.head.get('sum')}"
        return sorted(members, key=lambda member: short(f"{salt}{member}"))

    # --- for a reader

    def rerun(self, **labels: Any) -> dict[str, tuple[Any, Any]]:
        """Make one run here and now; {number: (now, in the record)}.

        Args:
            labels: one of each axis, `lr` if there are rates, and `seed`.
        """
        if set(labels) != set(self.labels):
            raise ValueError(f"labels: expected {', '.join(self.labels)}, got {', '.join(labels)}")
        member = tuple(labels[name] for name in self.labels)
        line, there = run_member(self.payload, member, Watch()), self.lines.get(member, {})
        numbers = itertools.filterfalse(self.labels.__contains__, line)
        return {name: (line[name], there.get(name)) for name in numbers}

    def model(self, arm: Any, index: int = 0) -> nn.Module:
        """The trained network of an arm at its best rate, from its kept weights, in eval mode.

        Args:
            index: which one, where a run trains several: in the order in which training ended.

        Raises:
            ValueError: no weights are kept of it.
        """
        member = self.reported(arm)[0]
        weights = replay.set_aside(self.record.weights, member)
        if not weights:
            raise ValueError(f"arm: expected one whose weights are kept, got {arm!r}")
        seen = Watch(weights=weights)
        run_member(self.payload, member, seen)
        return list(itertools.chain(*seen.models))[index].eval()

    def __repr__(self) -> str:
        """The same as plain text: no address of this process's memory gets into a notebook."""
        return self._repr_markdown_().replace("*", "")

    def _repr_markdown_(self) -> str:
        """One line that says what stands behind the numbers."""
        made = self.record.head.get("made", {})
        spent = "" if self.minutes is None else f"{self.minutes:.1f} core-minutes, "
        failed = sum("failed" in line for line in self.lines.values())
        return (
            f"*Study {self.name}*: {len(self.lines)} runs"
            f"{f' ({failed} failed)' if failed else ''}, {len(self.arms)} arms, "
            f"{len(self.choosing) if self.rates else 0} seeds to choose a rate and "
            f"{len(self.reporting)} fresh ones to report, {spent}"
            f"{made.get('cpu')}, torch {made.get('torch')}."
        )


def _chapter(name: str) -> None:
    """Refuse a name that doesn't say whose study it is."""
    here = os.environ.get("GATES_CHAPTER")
    if not NAME.fullmatch(name) or (here and not name.startswith(f"{here}-")):
        expected = f'"{here}-…"' if here else 'the chapter\'s file and a word, as "06_lstm-recall"'
        raise ValueError(f"name: expected {expected}, got {name!r}")


def _error(record: Record) -> type[StaleRecord]:
    return StaleRecord if record.there else NoRecord


def _command(name: str) -> str:
    return f"make study CHAPTER={name[:2]}"


def _told(name: str, wrong: list[str]) -> str:
    more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
    faults = "\n- ".join([f"study {name}:", *wrong[:SHOWN], *more])
    return f"{faults}\n`{_command(name)}` brings the record up to date."
