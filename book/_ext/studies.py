"""The table of studies on the status page, read from the first lines of their records.

Imports docutils, Sphinx and records, beside it. Must not import gatelib: what the page shows is
what the record says.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from docutils import nodes
from records import Records, table
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

COLUMNS = ["study", "arms", "runs", "seeds", "core-minutes", "processor"]
NEEDED = {"study", "axes", "choose", "report", "made"}


def read(path: Path) -> tuple[dict[str, Any], int, float | None]:
    """Return the head of a record, how many runs it has, and the core-minutes they took."""
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    made = path.with_suffix(".made.json")
    minutes = (
        json.loads(made.read_text(encoding="utf-8"))["core_minutes"] if made.exists() else None
    )
    return json.loads(head), len(lines), minutes


def row(path: Path, link: str) -> list[Any]:
    """Return one study's line: seeds that chose a rate, where there were rates, and fresh ones."""
    head, runs, minutes = read(path)
    if missing := NEEDED - set(head):
        raise ExtensionError(f"{path.name}: expected {sorted(missing)} in its first line")
    arms = math.prod(len(labels) for labels in head["axes"].values())
    seeds = f"{head['choose']} + {head['report']}" if head.get("rates") else head["report"]
    return [link, arms, runs, seeds, minutes, head["made"]["cpu"]]


class Studies(Records):
    """```` ```{studies-table} ````: what stands behind the measured claims."""

    def run(self) -> list[nodes.Node]:
        """Return one row a study, or a sentence that says that there are none."""
        folder = Path(self.env.srcdir) / "chapters" / "studies"
        self.env.note_dependency(str(folder))
        found = sorted(folder.glob("*.jsonl"))
        rows = [row(path, self.link(path)) for path in found]
        tables = [self.parse(table(COLUMNS, rows), "wide")] if rows else []
        return self.either(tables, "No chapter has recorded a study yet.")

    def link(self, path: Path) -> str:
        """Return the study's name, linked to its chapter where that is in the book."""
        for file in (path, path.with_suffix(".made.json")):
            self.env.note_dependency(str(file))
        chapter = path.stem.partition("-")[0]
        return f"[{path.stem}](/chapters/{chapter}.ipynb)" if self.exists(chapter) else path.stem


def setup(app: Sphinx) -> None:
    """Register the directive."""
    app.add_directive("studies-table", Studies)
