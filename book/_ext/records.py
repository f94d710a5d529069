"""The agreement, passport and status pages, made from the outputs stored in the chapters.

Imports Sphinx, docutils and nbformat. Must not import gatelib: what the pages show is what nbval
has compared, not what a build would compute.

`gatelib.lab` stores its data beside each table under the two media types below.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

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
OPEN = """for (const event of ["DOMContentLoaded", "hashchange"]) addEventListener(event, () => {
  document.getElementById(location.hash.slice(1))?.closest("details")?.setAttribute("open", "");
});"""  # for browsers that don't open a fold when its content is linked to
RAISED = str.maketrans("+-0123456789", "⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
FIELDS = {  # of a passport: what a reader calls it, and its unit
    "parameters": ("parameters", "numbers"),
    "parameter_bytes": ("memory of the parameters", "bytes"),
    "forward flops": ("operations of a forward pass", "FLOPs"),
    "backward flops": ("operations of a backward pass", "FLOPs"),
    "forward bytes": ("moved in a forward pass", "bytes"),
    "backward bytes": ("moved in a backward pass", "bytes"),
    "saved_bytes": ("saved for the backward pass", "bytes"),
}


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


def table(columns: list[str], rows: list[list[Any]], align: str = "r") -> str:
    """Return a Markdown table whose first column is text and whose others are as `align` says."""
    rest = "--:|" if align == "r" else ":--|"
    lines = ["| " + " | ".join(columns) + " |", "|:--|" + rest * (len(columns) - 1)]
    return "\n".join(lines + ["| " + " | ".join(map(number, row)) + " |" for row in rows])


def bound(text: str) -> str:
    """Return `≤ 1e-12` as `≤ 10⁻¹²`."""
    power = re.compile(r"1e([+-]?)0*(\d+)")
    return power.sub(lambda m: "10" + (m[1] + m[2]).translate(RAISED), text)


def largest(texts: Iterable[str]) -> str:
    """Return the weakest of several bounds."""

    def rank(text: str) -> tuple[int, float]:
        sign, _, value = text.partition(" ")
        return ("≤>".find(sign), float(value)) if sign in ("≤", ">") else (2, 0.0)

    return bound(max(texts, key=rank))


def counted(count: int, what: str) -> str:
    """Return `1 output`, `2 outputs`."""
    return f"{count} {what}{'s' * (count != 1)}"


def compared(outputs: list[str]) -> str:
    """Return how many outputs and gradients there are; a gradient is called `d_…`."""
    slopes = sum(name.startswith("d_") for name in outputs)
    parts = [counted(len(outputs) - slopes, "output")] if len(outputs) > slopes else []
    return ", ".join(parts + [counted(slopes, "gradient")] * bool(slopes))


def size(data: dict[str, Any]) -> str:
    """Return a passport's input, `32 × 28 × 28`; of several inputs, each."""
    shape = data["input_shape"]
    shapes = shape if shape and isinstance(shape[0], list) else [shape]
    return ", ".join(" × ".join(map(str, one)) for one in shapes)


def shares(values: dict[str, float]) -> str:
    """Return `f 0 %, o 12 %`."""
    return ", ".join(f"{gate} {share:.0%}".replace("%", " %") for gate, share in values.items())


def spelled(key: str) -> str:
    """Return a stored name as words, for a field that has none of its own yet."""
    return key.replace("_", " ")


def facts(data: dict[str, Any]) -> list[list[Any]]:
    """Return a passport as rows of a property, its value and its unit."""
    exact, measured = data["exact"], data["measured"]
    rows: list[list[Any]] = [["input", size(data), "batch × …"]]
    for key, value in exact.items():
        of = value if isinstance(value, dict) else {"": value}
        for part, number_ in of.items():
            name, unit = FIELDS.get(f"{key} {part}".strip(), (spelled(f"{key} {part}"), ""))
            rows.append([name, number_, unit])
    order = {name: place for place, (name, _) in enumerate(FIELDS.values(), 1)}
    rows[1:] = sorted(rows[1:], key=lambda row: order.get(row[0], len(order) + 1))
    rows += [[f"half-life, {k}", n, "steps"] for k, n in measured["half_life"].items()]
    found = measured["saturated"].items()
    rows += [[f"saturated, {k}", shares(v), "of all values"] for k, v in found if v]
    found = measured["spectrum"].items()
    return rows + [[f"singular value of the Jacobian, {k}", n, ""] for k, n in found]


class Records(Base):
    """What the three pages share: every chapter is a dependency, a chapter's part has a link."""

    def chapters(self) -> list[Path]:
        """Return the chapters that the book lists, and note that this page depends on them."""
        found = [p for p in chapters(Path(self.env.srcdir)) if self.exists(p.stem)]
        for path in found:
            self.env.note_dependency(str(path))
        return found

    def found(self, media: str) -> list[tuple[Path, dict[str, Any]]]:
        """Return what all chapters stored of one media type, with the chapter."""
        return [(path, data) for path in self.chapters() for data in stored(path, media)]

    def chapter(self, path: Path) -> str:
        """Return a link to the chapter that says its number."""
        return f"[chapter\N{NO-BREAK SPACE}{int(path.stem[:2])}](/chapters/{path.name})"

    def folded(self, path: Path, name: str, mark: str, text: str) -> nodes.container:
        """Return a fold that a table's row leads to."""
        title = f"{name}, chapter {int(path.stem[:2])}"
        return self.parse(f"::::{{dropdown}} {title}\n({mark})=\n\n{text}\n::::", "wide")

    def either(self, found: list[nodes.Node], empty: str) -> list[nodes.Node]:
        """Return what was found, or a sentence that says that nothing was."""
        return found or [nodes.paragraph("", empty)]


class Agreement(Records):
    """```` ```{agreement-matrix} ````: one row a gate, and below it each gate in detail."""

    HEAD: ClassVar = ["gate", "witnesses", "largest difference", "compared"]

    def run(self) -> list[nodes.Node]:
        """Return the table and the folded matrices."""
        found = [(p, d, f"agreement-{n}") for n, (p, d) in enumerate(self.found(AGREEMENT), 1)]
        rows = [self.row(*each) for each in found]
        out = [self.parse(table(self.HEAD, rows, "l"), "gates-rows", "agreements")] if rows else []
        out += [self.folded(p, d["name"], mark, self.matrix(d)) for p, d, mark in found]
        return self.either(out, "No chapter has stored an agreement matrix yet.")

    def row(self, path: Path, data: dict[str, Any], mark: str) -> list[str]:
        """Return one gate: who agrees, how closely, over how much."""
        witnesses = ", ".join([data["reference"], *data["witnesses"]])
        gate = f"[{data['name']}](#{mark}), {self.chapter(path)}"
        return [gate, witnesses, largest(data["largest"].values()), compared(data["outputs"])]

    def matrix(self, data: dict[str, Any]) -> str:
        """Return outputs and gradients down, witnesses across, and the largest at the foot."""
        bounds, witnesses = data["bounds"], data["witnesses"]
        rows = [
            [f"`{out}`", *(bound(bounds[w][out]) for w in witnesses)] for out in data["outputs"]
        ]
        rows.append(["**largest**", *(bound(data["largest"][w]) for w in witnesses)])
        return table([f"against {data['reference']}", *witnesses], rows)


class Passports(Records):
    """```` ```{passport-table} ````: one row a gate, and below it each gate in detail."""

    HEAD: ClassVar = ["gate", "parameters", "FLOPs forward", "bytes saved", "half-life, steps"]

    def run(self) -> list[nodes.Node]:
        """Return the table and the folded passports."""
        found = [(p, d, f"passport-{n}") for n, (p, d) in enumerate(self.found(PASSPORT), 1)]
        rows = [self.row(*each) for each in found]
        out = [self.parse(table(self.HEAD, rows), "gates-rows", "passports")] if rows else []
        head = ["property", "value", "unit"]
        out += [self.folded(p, d["name"], mark, table(head, facts(d))) for p, d, mark in found]
        return self.either(out, "No chapter has stored a passport yet.")

    def row(self, path: Path, data: dict[str, Any], mark: str) -> list[Any]:
        """Return one gate: its sizes, and the four numbers that one compares first."""
        exact, lives = data["exact"], data["measured"]["half_life"]
        gate = f"[{data['name']}](#{mark}), {self.chapter(path)}; input {size(data)}"
        cost = exact["parameters"], exact["forward"]["flops"], exact["saved_bytes"]
        return [gate, *cost, ", ".join(map(number, lives.values())) or None]


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


def add_style(app: Sphinx, page: str, template: str, context: Any, doctree: Any) -> None:
    """The two pages have a style of their own."""
    if page in ("book/agreement", "book/passports"):
        app.add_css_file("records.css", priority=900)
        app.add_js_file(None, body=OPEN)


def setup(app: Sphinx) -> None:
    """Register the directives."""
    app.add_directive("agreement-matrix", Agreement)
    app.add_directive("passport-table", Passports)
    app.add_directive("status-table", Status)
    app.connect("env-before-read-docs", check)
    app.connect("html-page-context", add_style)
