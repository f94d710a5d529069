"""Makes the record of a study: what is missing is run, what has ended is kept.

Imports tqdm and gatelib.lab.
Must not import joblib or Dask: gatelib.lab.runs.workers knows where runs run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from gatelib.lab.runs import replay
from gatelib.lab.runs.member import Outcome, Refused
from gatelib.lab.runs.store import Record, Store, Weights, declared
from gatelib.lab.runs.workers import Task, cores, made_by, outcomes
from gatelib.lab.verdict import Line, Member, Runs

__all__ = ["Making"]


@dataclass
class Making:
    """What is needed to make a record.

    runs: the grid, into which lines are put. code: its fingerprint, {"code": …, "arms": …}.
    excused: may a run of this arm fail? Then it isn't tried again. keep: arms that keep weights.
    """

    runs: Runs
    payload: bytes
    code: Mapping[str, Any]
    store: Store
    seconds: float
    excused: Callable[[Member], bool]
    keep: list[Any]

    def make(self, workers: int | None = None, dask: str | None = None) -> None:
        """Run what is missing, failed or changed, and write the record.

        Raises:
            Refused: the function can't be studied, or gives other numbers when it is run twice.
        """
        old = self._old()
        self.head = {"study": self.runs.name, **self.code, **declared(self.runs)}
        self.head["made"] = made_by(dask)
        self.spent = dict(old.seconds)
        journal = list(self._take_over(old))
        self.store.begin(self.head, journal)
        how = {"seconds": self.seconds, "workers": self._count(workers), "dask": dask}
        try:
            weights = self._run(old.weights, how)
        except KeyboardInterrupt:
            tqdm.write(f"{len(self.runs.lines)} runs are kept; the same command goes on from there")
            raise
        needed = {member: self.runs.lines[member] for member in self.runs.needed()}
        self.runs.lines = needed
        self.store.write(Record(self.head, needed, weights, self.spent))

    def _count(self, workers: int | None) -> int:
        return workers or int(os.environ.get("WORKERS") or 0) or cores()

    # --- what is there already

    def _old(self) -> Record:
        self.runs.lines = {}
        old = self.store.read()
        if old.faults and self.store.record.exists() and not self.store.journal.exists():
            told = "\n- ".join([*old.faults, f"`git restore {self.store.record}` brings it back"])
            raise Refused(f"{told}; without it all runs are made anew")
        return old

    def _take_over(self, old: Record) -> Iterator[tuple[Line, float]]:
        """Put the runs that still stand into the grid; yield those that the journal knows."""
        if not old.faults:
            self.runs.lines = dict(self._standing(old.head, old.lines.values()))
        self.reused = set(self.runs.lines)
        arms = {self._arm(member) for member in self.runs.lines}
        self.spent = {arm: spent for arm, spent in self.spent.items() if arm in arms}
        head, noted = self.store.noted()
        spent = {id(line): seconds for line, seconds in noted}
        for member, line in self._standing(head, (line for line, _ in noted)):
            if member not in self.runs.lines:
                self._add(member, line, spent[id(line)])
                yield line, spent[id(line)]

    def _standing(self, head: Mapping[str, Any], lines: Any) -> Iterator[tuple[Member, Line]]:
        """Runs of the same code, data and arm, on the same processor, that didn't fail."""
        same_place = replay.same_processor(head.get("made", {}), self.head["made"])
        if head.get("code") != self.code["code"] or not same_place:
            return
        arms = {name: head["arms"].get(name, {}) for name in self.runs.axes}
        for line in lines:
            if set(self.runs.labels) <= set(line) and all(
                known.get(label := str(line[name])) is not None
                and known[label] == self.code["arms"][name].get(label)
                for name, known in arms.items()
            ):
                member = self.runs.member(line)
                if "failed" not in line or self.excused(member):
                    yield member, line

    def _add(self, member: Member, line: Line, seconds: float) -> Line:
        whole = dict(zip(self.runs.labels, member, strict=True)) | line
        self.runs.lines[member] = whole
        arm = self._arm(member)
        self.spent[arm] = self.spent.get(arm, 0.0) + seconds
        return whole

    def _arm(self, member: Member) -> str:
        return replay.named(member[: len(self.runs.axes)])

    # --- what is not

    def _run(self, old: Mapping[str, Any], how: dict[str, Any]) -> Weights:
        """Run what is missing, then the shown members once more, for their weights."""
        kept: dict[Member, Weights] = {}

        def wanted() -> list[Task]:
            if missing := self.runs.missing():  # a rate that has been chosen asks for fresh seeds
                return [Task(member) for member in missing]
            for member in self._shown():
                mine = replay.set_aside(old, member) if member in self.reused else {}
                kept.update({member: mine} if mine else {})
            return [Task(m, keep=True) for m in self._shown() if m not in kept]

        def done(task: Task, outcome: Outcome) -> None:
            if task.keep:
                self._compare(task.member, outcome.line, exact=True)
                kept[task.member] = outcome.weights
            else:
                line = self._add(task.member, outcome.line, outcome.seconds)
                self.store.note(line, outcome.seconds)

        self._each(wanted, done, how, self.runs.name)
        return {
            f"{replay.named(member)} {name}": value
            for member in self._shown()
            for name, value in kept[member].items()
        }

    def _shown(self) -> list[Member]:
        """The runs whose weights are kept."""
        return self._first(self.keep)

    def _first(self, arms: list[Any]) -> list[Member]:
        """The first fresh run of these arms, unless it failed."""
        first = [self.runs.reported(arm)[0] for arm in arms]
        return [member for member in first if "failed" not in self.runs.lines[member]]

    def _each(
        self,
        wanted: Callable[[], list[Task]],
        done: Callable[[Task, Outcome], None],
        how: dict[str, Any],
        title: str,
    ) -> None:
        """Run tasks until none is wanted, with a bar that says how long that will be."""
        before = len(self.runs.lines)
        with (
            closing(outcomes(self.payload, wanted, **how)) as ended,
            tqdm(desc=title, unit="run", initial=before, smoothing=0.05) as bar,
        ):
            bar.total = before + len(wanted())
            for task, outcome in ended:
                done(task, outcome)
                bar.update()
                bar.total = bar.n + len(wanted())

    def _compare(self, member: Member, found: Line, exact: bool) -> None:
        if wrong := list(replay.differing(member, self.runs.lines[member], found, exact)):
            raise Refused("\n- ".join(["run: another time, other numbers:", *wrong]))

    def restamp(self, record: Record) -> None:
        """Write a record with today's code, once each arm's first fresh run gives its line again.

        That is asked whether its weights are kept or not: the first steps alone don't see a score.

        Raises:
            Refused: one of them doesn't.
        """
        made, left = record.head["made"], self._first(self.runs.arms)
        exact = replay.same_processor(made, made_by(None))

        def done(task: Task, outcome: Outcome) -> None:
            self._compare(task.member, outcome.line, exact)
            left.remove(task.member)

        how = {"seconds": self.seconds, "workers": self._count(None), "dask": None}
        title = f"{self.runs.name}: does the code give the same?"
        self._each(lambda: [Task(member) for member in left], done, how, title)
        head = {"study": self.runs.name, **self.code, **declared(self.runs), "made": made}
        self.store.write(Record(head, self.runs.lines, record.weights, record.seconds))
