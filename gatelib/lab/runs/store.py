"""The files of a study: a record that is written whole, and a journal of the runs that ended.

Imports NumPy and gatelib.lab.verdict.
Must not import what runs: a record is read without running anything.

    NAME.jsonl       a first line that says what was run, then one run a line in the grid's order
    NAME.npz         the kept weights of one run of each arm
    NAME.made.json   processor time; apart, since it is measured and differs between two makings
    NAME.journal     while the study is being made: its runs, in the order in which they ended
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.lab.verdict import Line, Member, Rates, Runs

__all__ = ["Record", "Store", "as_runs", "declared"]

Weights = dict[str, NDArray[Any]]


@dataclass
class Record:
    """What stands in the files of a study.

    faults: what is wrong with the files themselves; empty where they are as they were written.
    there: is there a record at all?
    """

    head: dict[str, Any] = field(default_factory=dict)
    lines: dict[Member, Line] = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    there: bool = True

    @property
    def minutes(self) -> float | None:
        """Core-minutes that its runs took; None where that was not kept."""
        return sum(self.seconds.values()) / 60 if self.seconds else None


class Store:
    """The files of the study `name` in a folder."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.record, self.weights, self.made, self.journal = (
            folder / f"{name}.{end}" for end in ("jsonl", "npz", "made.json", "journal")
        )

    # --- the record

    def read(self) -> Record:
        """The record, with all that is wrong with its files."""
        found = Record()
        if not self.record.exists():
            found.there = False
            found.faults.append(
                f"there is no record {self.record} beside the notebook; it comes with the "
                "repository of the book, in chapters/studies"
            )
            return found
        self._read_lines(found)
        self._read_weights(found)
        if self.made.exists():
            found.seconds = json.loads(self.made.read_text(encoding="utf-8"))["seconds"]
        return found

    def _read_lines(self, found: Record) -> None:
        text = self.record.read_text(encoding="utf-8")
        first, _, body = text.partition("\n")
        try:
            found.head = json.loads(first)
            found.lines = as_runs(found.head, _whole(body)).lines
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            found.faults.append(f"{self.record.name} is cut off or not a record: {error}")
            return
        if found.head.get("study") != self.name:
            found.faults.append(
                f"{self.record.name} is the record of the study {found.head.get('study')!r}"
            )
        if found.head.get("sum") != checksum(found.head, body):
            found.faults.append(
                f"{self.record.name} is cut off or was edited by hand: its checksum is another"
            )

    def _read_weights(self, found: Record) -> None:
        data = self.weights.read_bytes() if self.weights.exists() else b""
        if not data:
            found.faults.append(f"there is no {self.weights.name}, the weights of this record")
        elif found.head and found.head.get("weights") != digest(data):
            found.faults.append(f"{self.weights.name} is cut off, or not of this record")
        try:
            with np.load(io.BytesIO(data)) as held:
                found.weights = _named(held)
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile):
            found.weights = {}

    def write(self, record: Record) -> None:
        """Put a whole record in the place of the old one, and forget the journal."""
        self.record.parent.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **_numbered(record.weights))  # type: ignore[arg-type]
        _replace(self.weights, buffer.getvalue())
        seconds = {arm: round(spent, 1) for arm, spent in record.seconds.items()}
        total = round(sum(seconds.values()) / 60, 1)
        made = json.dumps({"core_minutes": total, "seconds": seconds}, ensure_ascii=False)
        _replace(self.made, f"{made}\n".encode())
        body = "".join(_text(line) for line in record.lines.values())
        head = record.head | {"weights": digest(buffer.getvalue())}
        head["sum"] = checksum(head, body)
        record.head = head
        _replace(self.record, (_text(head) + body).encode())
        self.journal.unlink(missing_ok=True)

    # --- the journal

    def begin(self, head: Mapping[str, Any], runs: Iterable[tuple[Line, float]]) -> None:
        """Start a journal anew with those of its runs that still stand."""
        self.journal.parent.mkdir(exist_ok=True)
        entries = [head, *({"line": line, "seconds": spent} for line, spent in runs)]
        _replace(self.journal, "".join(map(_text, entries)).encode())

    def note(self, line: Line, seconds: float) -> None:
        """Keep a run the moment it ends."""
        with self.journal.open("a", encoding="utf-8") as file:
            file.write(_text({"line": line, "seconds": seconds}))

    def noted(self) -> tuple[dict[str, Any], list[tuple[Line, float]]]:
        """The head of a journal and its runs; a last line that was cut off is left out."""
        if not self.journal.exists():
            return {}, []
        entries = list(_whole(self.journal.read_text(encoding="utf-8")))
        runs = [(entry["line"], float(entry["seconds"])) for entry in entries[1:]]
        return (entries[0] if entries else {}), runs


def declared(runs: Runs) -> dict[str, Any]:
    """The part of a record's first line that says which runs were asked for."""
    rates = runs.rates and {"name": runs.rate_name, **runs.rates._asdict()}
    axes = {name: list(axis) for name, axis in runs.axes.items()}
    seeds = {"choose": len(runs.choosing), "report": len(runs.reporting)}
    found: dict[str, Any] = json.loads(json.dumps({"axes": axes, "rates": rates, **seeds}))
    return found


def as_runs(head: Mapping[str, Any], lines: Iterable[Line] = ()) -> Runs:
    """The runs that a record's first line asked for.

    Raises:
        KeyError, TypeError, ValueError: the head or a line lacks a part, or has another kind.
    """
    axes: dict[str, Any] = dict(head["axes"])
    if head["rates"]:
        values, by, further = (head["rates"][part] for part in Rates._fields)
        axes[head["rates"]["name"]] = Rates(tuple(values), by, further)
    numbers = {"choose": int(head["choose"]), "report": int(head["report"])}
    return Runs(head["study"], axes, **numbers, lines=lines)


def _numbered(weights: Weights) -> Weights:
    """Weights under numbers, their names in an array: a zip would write each long name twice."""
    names = np.frombuffer(json.dumps(list(weights)).encode(), np.uint8)
    return {"names": names} | {str(n): value for n, value in enumerate(weights.values())}


def _named(held: Mapping[str, NDArray[Any]]) -> Weights:
    """What `_numbered` was made of."""
    names = json.loads(held["names"].tobytes())
    return {name: held[str(number)] for number, name in enumerate(names)}


def checksum(head: Mapping[str, Any], body: str) -> str:
    """Sixteen hex digits that stand for a whole record; its own place in the head is left out."""
    rest = {name: value for name, value in head.items() if name != "sum"}
    return digest((_text(rest) + body).encode())


def digest(data: bytes) -> str:
    """Sixteen hex digits that stand for bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def _text(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"


def _whole(text: str) -> Iterator[dict[str, Any]]:
    """The entries of a text, one a line; a last line without an end is left out."""
    yield from map(json.loads, text.split("\n")[:-1])


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(data)
    os.replace(new, path)
