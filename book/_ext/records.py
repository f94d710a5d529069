"""The agreement, passport and status pages, made from the outputs stored in the chapters.

Imports Sphinx, docutils and nbformat. Must not import gatelib: what the pages show is what nbval
has compared, not what a build would compute.

`gatelib.lab` stores its data beside each table under the two media types below.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
from claims import Base
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

AGREEMENT = "application/vnd.gates.agreement+json"
PASSPORT = "application/vnd.gates.passport+json"
PACKAGES = ("numpy", "sympy", "torch", "triton", "jupyter-book")
MATRIX = {"name", "reference", "witnesses", "outputs", "bounds", "largest"}
PASSES = {"name", "input_shape", "exact", "measured"}
KINDS = ("exact", "measured", "timed")


def chapters(root: Path) -> list[Path]:
    """Return the chapters in their order."""
    return sorted((root / "chapters").glob("*.ipynb"))


def code_cells(path: Path) -> list[Any]:
    """Return a chapter's code cells."""
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]


def stored(path: Path, media: str) -> Iterator[dict[str, Any]]:
    """Yield the data of one media type in a chapter's stored outputs."""
    for cell in code_cells(path):
        for output in cell.get("outputs", []):
            if media in output.get("data", {}):
                data = output["data"][media]
                yield json.loads(data) if isinstance(data, str) else data


def kind(cell: Any) -> str:
    """Return `exact`, `measured` or `timed`."""
    tags = set(cell.metadata.get("tags", []))
    return next((k for k in KINDS[1:] if k in tags), KINDS[0])


def number(value: Any) -> str:
    """Return a value as a reader wants it: integers grouped, small numbers to two digits."""
    if value is None or isinstance(value, bool):
        return {None: "—", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return "0" if value == 0 else f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.3g}"
    return str(value).replace("|", r"\|")


def table(columns: list[str], rows: list[list[Any]]) -> str:
    """Return a Markdown table whose first column is text and whose others are numbers."""
    lines = ["| " + " | ".join(columns) + " |", "|:--|" + "--:|" * (len(columns) - 1)]
    return "\n".join(lines + ["| " + " | ".join(map(number, row)) + " |" for row in rows])


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested facts as one row each: {"forward": {"flops": 1}} is {"forward flops": 1}."""
    rows: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix} {key}".strip().replace("_", " ")
        rows |= flat(value, name) if isinstance(value, dict) else {name: value}
    return rows


def passport(data: dict[str, Any]) -> dict[str, Any]:
    """Return one gate's column."""
    shape = " × ".join(map(str, data["input_shape"]))
    return {"input": shape, **flat(data["exact"]), **flat(data["measured"])}


class Records(Base):
    """What the three pages share: every chapter is a dependency, a chapter's part has a link."""

    def chapters(self) -> list[Path]:
        """Return the chapters that the book lists, and note that this page depends on them."""
        found = [p for p in chapters(Path(self.env.srcdir)) if self.exists(p.stem)]
        for path in found:
            self.env.note_dependency(str(path))
        return found

    def titled(self, path: Path, name: str) -> nodes.paragraph:
        """Return a caption that links to the chapter."""
        line = f"**{name}**, [](/chapters/{path.name})"
        return self.parse(line, "record-title")

    def either(self, found: list[nodes.Node], empty: str) -> list[nodes.Node]:
        """Return what was found, or a sentence that says that nothing was."""
        return found or [nodes.paragraph("", empty)]


class Agreement(Records):
    """```` ```{agreement-matrix} ````: the largest error of each witness, per gate."""

    def run(self) -> list[nodes.Node]:
        """Return one table per stored matrix."""
        out: list[nodes.Node] = []
        for path in self.chapters():
            for data in stored(path, AGREEMENT):
                out += [self.titled(path, data["name"]), self.parse(self.matrix(data), "wide")]
        return self.either(out, "No chapter has stored an agreement matrix yet.")

    def matrix(self, data: dict[str, Any]) -> str:
        """Return outputs and gradients down, witnesses across, and the largest at the foot."""
        bounds, witnesses = data["bounds"], data["witnesses"]
        rows = [[f"`{out}`", *(bounds[w][out] for w in witnesses)] for out in data["outputs"]]
        rows.append(["**largest**", *(data["largest"][w] for w in witnesses)])
        return table([f"against {data['reference']}", *witnesses], rows)


class Passports(Records):
    """```` ```{passport-table} ````: one row per gate and one column per property."""

    def run(self) -> list[nodes.Node]:
        """Return one table of all passports."""
        found = [(p, data) for p in self.chapters() for data in stored(p, PASSPORT)]
        facts = [passport(data) for _, data in found]
        names = list(dict.fromkeys(name for fact in facts for name in fact))
        rows = [[name, *(fact.get(name) for fact in facts)] for name in names]
        columns = ["property", *(f"[{d['name']}](/chapters/{p.name})" for p, d in found)]
        tables = [self.parse(table(columns, rows), "wide")] if found else []
        return self.either(tables, "No chapter has stored a passport yet.")


class Status(Records):
    """```` ```{status-table} ````: how much of each chapter is compared, and what it took."""

    def run(self) -> list[nodes.Node]:
        """Return the table of chapters and the table of versions."""
        rows = [self.row(path) for path in self.chapters()]
        columns = ["chapter", *KINDS, "exact share", "seconds"]
        versions = [[name, version(name)] for name in PACKAGES]
        return [
            self.parse(table(columns, rows), "wide"),
            self.parse(table(["package", "version of this build"], versions)),
        ]

    def row(self, path: Path) -> list[Any]:
        """Return one chapter's counts."""
        counts = Counter(kind(cell) for cell in code_cells(path))
        total = sum(counts.values())
        share = f"{counts['exact'] / total:.0%}" if total else None
        link = f"[](/chapters/{path.name})"
        return [link, *(counts[k] for k in KINDS), share, self.seconds(path)]

    def seconds(self, path: Path) -> Any:
        """Return what the runner measured, where it has run on this machine."""
        file = Path(self.env.srcdir) / "_build" / "status.json"
        if not file.exists():
            return None
        self.env.note_dependency(str(file))
        try:
            return float(json.loads(file.read_text())["chapters"][path.stem]["seconds"])
        except (KeyError, TypeError, ValueError):
            return None


def check(app: Sphinx, env: Any, docnames: list[str]) -> None:
    """Stop the build where stored data has not the form that the pages read."""
    need = {AGREEMENT: MATRIX, PASSPORT: PASSES}
    for path in chapters(Path(app.srcdir)):
        for media, keys in need.items():
            for data in stored(path, media):
                if not keys <= set(data):
                    raise ExtensionError(
                        f"{path.name}, {media}: expected {keys}, found {set(data)}"
                    )


def setup(app: Sphinx) -> None:
    """Register the directives."""
    app.add_directive("agreement-matrix", Agreement)
    app.add_directive("passport-table", Passports)
    app.add_directive("status-table", Status)
    app.connect("env-before-read-docs", check)
