"""What every chapter must be: executed, clean, compared, complete. Each rule yields complaints.

Imports nbformat, PyYAML and tools.notebooks.
Must not import gatelib: a chapter is judged as it is stored.
"""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from nbformat import NotebookNode

from tools import notebooks
from tools.notebooks import code_cells, kind, tags

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
PARTS = (
    "Derive",
    "Reference",
    "Torch",
    "Experiments",
    "Look inside",
    "Claims",
    "What breaks",
    "Exercises",
    "Further reading",
)
ALLOWED_TAGS = {
    "hide-cell",
    "hide-input",
    "hide-output",
    "measured",
    "nbval-ignore-output",
    "remove-input",
    "timed",
}
DECIDES = re.compile(r"decides-[A-E]\d+")  # the cell that a claim's verdict links to
IMAGES = ("image/png", "image/jpeg", "image/svg+xml")
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|Users|mnt|opt|private)/|[A-Z]:\\\\")
PROGRESS = re.compile(r"\r|\d%\||\d(?:it|s)/(?:s|it)\b")
WARNING = re.compile(r"\b\w*Warning\b:")
HTML = re.compile(r"<(?:!--|/?[a-zA-Z][a-zA-Z0-9-]*(?:\s[^<>]*)?/?>)")
AUTOLINK = re.compile(r"<(?:https?://|mailto:)[^<>\s]+>")

FORMULA = re.compile(r"\$\$.*?\$\$|(?<![\\$])\$[^$]+\$", re.S)
LETTERING = re.compile(  # what stands in braces behind these is no mathematics
    r"\\(?:text\w*|math\w+|operatorname\*?|begin|end|label|tag)\s*\{(?:[^{}]|\{[^{}]*\})*\}"
)
LOST_COMMAND = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4,}")
LOST_ESCAPE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]\w{0,9}")

Rule = Callable[[NotebookNode], Iterator[str]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """Register a rule: it yields one complaint for each place that breaks it."""
    RULES[function.__name__] = function
    return function


# --- reading a chapter ------------------------------------------------------------------------


def ignored(cell: NotebookNode) -> bool:
    return "nbval-ignore-output" in tags(cell)


def text_of(cell: NotebookNode) -> str:
    """Everything that a code cell's outputs say in words."""
    pieces = []
    for output in cell.outputs:
        pieces.append(output.get("text", ""))
        pieces += [v for k, v in output.get("data", {}).items() if k.startswith("text/")]
    return "\n".join(pieces)


def images(cell: NotebookNode) -> list[str]:
    """The media types of a cell's pictures; one picture may come in more than one."""
    return [m for output in cell.outputs for m in IMAGES if m in output.get("data", {})]


def prose(notebook: NotebookNode) -> str:
    """The Markdown of a chapter."""
    return "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


def without_fenced_code(text: str) -> str:
    """The lines outside code blocks; what stands in a directive is prose and stays."""
    kept: list[str] = []
    open_fences: list[tuple[str, bool]] = []
    for line in text.splitlines():
        inside_code = bool(open_fences) and open_fences[-1][1]
        found = re.match(r"\s*(`{3,}|~{3,}|:{3,})(.*)", line)
        fence, info = (found[1], found[2].strip()) if found else ("", "")
        if fence and open_fences and not info and fence.startswith(open_fences[-1][0]):
            open_fences.pop()
        elif fence and not inside_code:
            is_code = fence[0] != ":" and not re.match(r"\{(?!code|math)", info)
            open_fences.append((fence, is_code))
        elif not inside_code:
            kept.append(line)
    return "\n".join(kept)


def without_code_and_math(text: str) -> str:
    text = without_fenced_code(text)
    text = re.sub(r"(`+)(?!`)(?:(?!\1).)+?\1(?!`)", "", text)
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.S)
    return re.sub(r"\$[^$\n]+\$", "", text)


def headings(notebook: NotebookNode) -> list[str]:
    """The second-level headings, in order."""
    return re.findall(r"^## +(.+?)\s*$", without_code_and_math(prose(notebook)), flags=re.M)


# --- the rules --------------------------------------------------------------------------------


@rule
def code_cells_ran_in_order(notebook: NotebookNode) -> Iterator[str]:
    for number, cell in enumerate(code_cells(notebook), start=1):
        counts = [o.execution_count for o in cell.outputs if "execution_count" in o]
        if {cell.execution_count, *counts} != {number}:
            yield f"cell {cell.id} ran as {cell.execution_count}, expected {number}"


@rule
def outputs_belong_to_the_code(notebook: NotebookNode) -> Iterator[str]:
    if notebook.metadata.get("ran") != notebooks.code_hash(notebook):
        yield "code has changed since the outputs were stored: make execute"


@rule
def tags_are_known(notebook: NotebookNode) -> Iterator[str]:
    for cell in notebook.cells:
        unknown = {t for t in tags(cell) if t not in ALLOWED_TAGS and not DECIDES.fullmatch(t)}
        if unknown:
            yield f"cell {cell.id} has tags {sorted(unknown)}, allowed are {sorted(ALLOWED_TAGS)}"


@rule
def kinds_are_consistent(notebook: NotebookNode) -> Iterator[str]:
    for cell in code_cells(notebook):
        kinds = {"measured", "timed"} & set(tags(cell))
        if len(kinds) > 1:
            yield f"cell {cell.id} is both measured and timed"
        if bool(kinds) != ignored(cell):
            yield f"cell {cell.id}: nbval-ignore-output goes with measured or timed, and only so"


@rule
def ignored_cells_assert(notebook: NotebookNode) -> Iterator[str]:
    for cell in filter(ignored, code_cells(notebook)):
        found = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Assert)]
        if not found:
            yield f"cell {cell.id} is {kind(cell)} and asserts nothing"


@rule
def few_cells_escape_comparison(notebook: NotebookNode) -> Iterator[str]:
    cells = code_cells(notebook)
    escaped = sum(map(ignored, cells))
    if escaped > 0.35 * len(cells):
        yield f"{escaped} of {len(cells)} code cells are not compared, at most 35 % may"


@rule
def nothing_fails_or_warns(notebook: NotebookNode) -> Iterator[str]:
    for cell in code_cells(notebook):
        if any(o.output_type == "error" or o.get("name") == "stderr" for o in cell.outputs):
            yield f"cell {cell.id} writes to stderr or ends in an error"
        if WARNING.search(text_of(cell)):
            yield f"cell {cell.id} shows a warning"


@rule
def no_machine_path(notebook: NotebookNode) -> Iterator[str]:
    for cell in notebook.cells:
        text = cell.source + (text_of(cell) if cell.cell_type == "code" else "")
        if found := MACHINE_PATH.search(text):
            yield f"cell {cell.id} names a path of one machine: {found[0]}"


@rule
def formulas_are_whole(notebook: NotebookNode) -> Iterator[str]:
    r"""A program that edits a notebook can make of \varepsilon a line break and "arepsilon"."""
    if found := LOST_ESCAPE.search(prose(notebook)):
        yield f"the text has a character that can't be seen: {found[0]!r}"
    text = re.sub(r"(`+)(?!`)(?:(?!\1).)+?\1(?!`)", "", without_fenced_code(prose(notebook)))
    for formula in FORMULA.findall(text):
        if found := LOST_COMMAND.search(LETTERING.sub("", formula)):
            yield f"in {formula[:40]!r} a command has lost its backslash: {found[0]!r}"


@rule
def no_progress_bar(notebook: NotebookNode) -> Iterator[str]:
    for cell in code_cells(notebook):
        if PROGRESS.search(text_of(cell)):
            yield f"cell {cell.id} has the rest of a progress bar"


@rule
def pictures_have_the_right_format(notebook: NotebookNode) -> Iterator[str]:
    for cell in code_cells(notebook):
        found = set(images(cell))
        if ignored(cell) and "image/svg+xml" in found:
            yield f"cell {cell.id} is {kind(cell)}: its picture must be PNG"
        if not ignored(cell) and found - {"image/svg+xml"}:
            yield f"cell {cell.id} is exact: its picture must be SVG, which nbval compares"


@rule
def pictures_are_labelled(notebook: NotebookNode) -> Iterator[str]:
    for cell in code_cells(notebook):
        mystnb = cell.metadata.get("mystnb", {})
        figure, image = mystnb.get("figure", {}), mystnb.get("image", {})
        labels = {
            "figure.name": figure.get("name"),
            "figure.caption": figure.get("caption"),
            "image.alt": image.get("alt"),
        }
        if images(cell) and not all(labels.values()):
            missing = [name for name, value in labels.items() if not value]
            yield f"cell {cell.id} has a picture without {', '.join(missing)}"
        if len(images(cell)) > 1:
            yield f"cell {cell.id} has more than one picture under one caption"


@rule
def figure_names_are_unique(notebook: NotebookNode) -> Iterator[str]:
    names = [c.metadata.get("mystnb", {}).get("figure", {}).get("name") for c in notebook.cells]
    for name in {name for name in names if name and names.count(name) > 1}:
        yield f"figure name {name!r} is used twice"


@rule
def cells_are_short(notebook: NotebookNode) -> Iterator[str]:
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    if statistics.median(lengths) >= 10:
        yield f"the median code cell has {statistics.median(lengths)} lines, fewer than 10 expected"
    if max(lengths) > 30:
        yield f"a code cell has {max(lengths)} lines, at most 30 expected"


@rule
def metadata_is_clean(notebook: NotebookNode) -> Iterator[str]:
    expected = notebooks.NOTEBOOK_METADATA | {"ran": notebook.metadata.get("ran")}
    if notebook.metadata != expected:
        yield f"notebook metadata {sorted(notebook.metadata)}, expected {sorted(expected)}"
    for cell in notebook.cells:
        if extra := set(cell.metadata) - set(notebooks.CELL_METADATA):
            yield f"cell {cell.id} has metadata {sorted(extra)}"


@rule
def ids_are_unique(notebook: NotebookNode) -> Iterator[str]:
    ids = [cell.id for cell in notebook.cells]
    for name in {name for name in ids if ids.count(name) > 1}:
        yield f"two cells have the id {name}"


@rule
def anatomy_is_complete(notebook: NotebookNode) -> Iterator[str]:
    if not re.match(r"# \S", notebook.cells[0].source):
        yield "the first cell is not Markdown with the chapter's title"
    found = [p for h in headings(notebook) for p in PARTS if h.lower().startswith(p.lower())]
    if found != list(PARTS):
        yield f"the parts are {found}, expected {list(PARTS)}, once each and in this order"


@rule
def exercises_have_solutions(notebook: NotebookNode) -> Iterator[str]:
    text = prose(notebook)
    exercise = r"\{exercise(?:-start)?\}[^\n]*\n(?:\s*:\w+:[^\n]*\n)*?\s*:label:\s*(\S+)"
    exercises = re.findall(exercise, text)
    solutions = re.findall(r"\{solution(?:-start)?\}[ \t]+(\S+)", text)
    if len(exercises) < 3 or len(exercises) != len(re.findall(r"\{exercise(?:-start)?\}", text)):
        yield f"labelled exercises: {exercises}; three at least, and a label for each, are expected"
    for name in set(exercises) ^ set(solutions):
        yield f"exercise {name} has no solution, or the solution no exercise"


@rule
def solutions_are_executed(notebook: NotebookNode) -> Iterator[str]:
    if re.search(
        r"^\s*(`{3,}|~{3,}|:{3,})\s*(?:python|\{code(?:-block)?\} *python)", prose(notebook), re.M
    ):
        yield "Python stands in Markdown, where nothing runs it"
    opened = False
    cells_inside = solutions = 0
    for cell in notebook.cells:
        opened = (
            opened or "{solution-start}" in cell.source
        ) and "{solution-end}" not in cell.source
        solutions += "{solution-start}" in cell.source
        cells_inside += opened and cell.cell_type == "code"
    if not solutions or not cells_inside:
        yield "no solution holds a code cell"


@rule
def markup_is_portable(notebook: NotebookNode) -> Iterator[str]:
    text = AUTOLINK.sub("", without_code_and_math(prose(notebook)))
    if found := HTML.search(text):
        yield f"raw HTML: {found[0]}"
    for directive in ("tab-set-code", "raw", "eval-rst"):
        if f"{{{directive}}}" in prose(notebook):
            yield f"the directive {directive} is not read by Jupyter Book 2"


@rule
def tables_come_from_the_library(notebook: NotebookNode) -> Iterator[str]:
    for cell in code_cells(notebook):
        if re.search(r"\|:?-+:?\|", cell.source):
            yield f"cell {cell.id} glues a table of Markdown: gatelib.lab.table"
