"""What a fold of code says while it is shut: what is in it, and how long it is.

Imports docutils and Sphinx. Must not import gatelib.

MyST-NB writes "Show code cell source" on every fold. A reader wants to know whether to open it.
"""

from __future__ import annotations

import ast
import re

from docutils import nodes
from sphinx.application import Sphinx

NAMES = 3  # as many as a fold names
CAPTION = re.compile(r"<caption>([^<]+)</caption>")


def listed(names: list[str]) -> str:
    """Return names as a sentence lists them; of more than three the first two and a count."""
    if len(names) > NAMES:
        names = [*names[: NAMES - 1], f"{len(names) - NAMES + 1} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def lines_of(source: str) -> str:
    """Return how long a cell's code is."""
    count = len(source.splitlines())
    return f"{count} line" + "s" * (count != 1)


def of_code(source: str, is_figure: bool) -> str:
    """Return what a cell's code is: imports, the code of a figure, or functions by name."""
    length = lines_of(source)
    body = ast.parse(source).body
    named = [n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    if is_figure:
        return f"Code of the figure · {length}"
    if body and isinstance(body[0], ast.Import | ast.ImportFrom) and not named:
        return f"Imports · {length}"
    return f"Code: {listed(named)} · {length}" if named else f"Code · {length}"


def of_output(output: nodes.Element) -> str:
    """Return what a cell's output is: tables by their captions, or just output."""
    html = (node.astext() for node in output.findall(nodes.raw))
    captions = [caption for text in html for caption in CAPTION.findall(text)]
    return f"Table{'s' * (len(captions) > 1)}: {listed(captions)}" if captions else "Output"


def of_both(source: str, output: nodes.Element, is_figure: bool) -> str:
    """Return what a cell is that is hidden whole: what it shows comes before its code."""
    drawn = (node.astext() for node in output.findall(nodes.raw))
    tables = any(output.findall(nodes.table)) or any("<table" in text for text in drawn)
    shown = "Figure" if is_figure else "Table" if tables else "Output"
    return f"{shown} and its code · {lines_of(source)}"


def summary(cell: nodes.Element) -> str:
    """Return what a folded cell says; of a cell with two folds it is the code's."""
    parts = {child.get("nb_element"): child for child in cell.children}
    code, output = parts.get("cell_code_source"), parts.get("cell_code_output")
    if output is not None and (code is None or cell["hide_mode"] == "output"):
        return of_output(output)
    figure = cell.get("cell_metadata", {}).get("mystnb", {}).get("figure")
    source = code.astext() if code is not None else ""
    if output is not None and cell["hide_mode"] == "all":
        return of_both(source, output, bool(figure))
    return of_code(source, bool(figure))


def name_folds(app: Sphinx, doctree: nodes.document) -> None:
    """Give each folded cell its line; the sign beside it says whether it is open."""
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") == "cell_code" and cell.get("hide_mode"):
            cell["prompt_show"] = cell["prompt_hide"] = summary(cell)


def setup(app: Sphinx) -> None:
    """Read every page's folds."""
    app.connect("doctree-read", name_folds)
