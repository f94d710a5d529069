"""The pages of the library: what a gate's text may use, what is refused, and where modules are.

Imports Sphinx and docutils at once, gatelib when a page asks for a table.
Must not import torch.

The tables are made by the printers and the parser themselves while the book is built, so that they
say what the library does.
"""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from claims import Base
from docutils import nodes
from sphinx.application import Sphinx

PAGES = "book/api"
SHOWN = {"numpy": "NumPy", "torch": "torch", "javascript": "JavaScript", "triton": "Triton"}
BLOCK = re.compile(r"^\.\. automodule:: (\S+)$", re.M)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["--"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---- the functions of a gate ---------------------------------------------------------------


def meanings() -> dict[str, str]:
    """{call: what it is}, from the list in the docstring of `gatelib.functions`."""
    from gatelib import functions

    lines = (functions.__doc__ or "").splitlines()
    found = [line[3:].partition("`") for line in lines if line.startswith("- `")]
    return {call: meaning.removeprefix(": ") for call, _, meaning in found}


def printed(gate: Any) -> str:
    """Which of the languages a gate can be written in."""
    from gatelib.kernels import triton_source
    from gatelib.pieces import UnprintableError
    from gatelib.spec import SpecError

    def can(language: str) -> bool:
        try:
            if language == "triton":
                triton_source.check(gate)
            else:
                gate.source(language)
        except (SpecError, UnprintableError):
            return False
        return True

    lacking = [shown for language, shown in SHOWN.items() if not can(language)]
    return f"all but {', '.join(lacking)}" if lacking else "all"


def derivative(gate: Any) -> str:
    """The partial derivatives by value, or the adjoint of a function over the features."""
    from gatelib.latex import Names, expression

    if not gate.is_elementwise:
        return gate.vjp().latex().splitlines()[1].replace("&", "")
    found = (expression(gate.partial("y", str(x)), Names(gate, {})) for x in gate.inputs)
    return r",\ ".join(text.replace(r"\odot", r"\,") for text in found)


def functions(elementwise: bool) -> list[list[str]]:
    """One row a function: how it is called, what it is, its derivative, and its languages."""
    from gatelib.spec import Spec

    rows = []
    for call, meaning in meanings().items():
        name, _, arguments = call.rstrip(")").partition("(")
        gate = Spec.parse(f"{name}_of", f"{arguments.replace(',', '')} -> y", f"y = {call}")
        if gate.is_elementwise == elementwise:
            rows.append([f"`{call}`", meaning, f"${derivative(gate)}$", printed(gate)])
    return rows


class Functions(Base):
    """```` ```{functions-table} elementwise ````, or `features`: one row a function."""

    required_arguments = 1
    HEADS: ClassVar = {"elementwise": "derivative", "features": "adjoint of x"}

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        self.env.note_dependency(str(Path(self.env.srcdir) / "gatelib" / "functions.py"))
        which = self.arguments[0]
        head = ["call", "meaning", self.HEADS[which], "printed in"]
        return [self.parse(table(head, functions(which == "elementwise")), "functions")]


class Refused(Base):
    """```` ```{refused} inputs -> outputs ````: a line of a gate each, and the error it gets."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return a table of lines and messages."""
        from gatelib.spec import Spec, SpecError

        rows = []
        for line in self.content:
            try:
                Spec.parse("gate", self.arguments[0], line)
            except SpecError as error:
                rows.append([f"`{line}`", self.short(str(error))])
            else:
                raise self.error(f"{line!r} is no longer refused: take it away from the page")
        return [self.parse(table(["line", "message"], rows), "refused")]

    @staticmethod
    def short(message: str) -> str:
        """The message without the place, and with the list of functions cut short."""
        message = message.partition(": ")[2]
        message = re.sub(r"(known are \w+)(, \w+)+", r"\1, …", message)
        return message.replace("|", r"\|").replace("*", r"\*").replace("_", r"\_")


# ---- where a module is ---------------------------------------------------------------------


def places(source: Path) -> dict[str, str]:
    """{module: its page}, in the pages' order."""
    found = {}
    for path in sorted((source / PAGES).glob("*.md")):
        found |= dict.fromkeys(BLOCK.findall(path.read_text(encoding="utf8")), path.stem)
    return found


class Forward(Base):
    """```` ```{forward-anchors} ````: an old address `api.html#NAME` leads to the name's page."""

    def run(self) -> list[nodes.Node]:
        """Return a script, which a page without JavaScript does not need."""
        for path in (Path(self.env.srcdir) / PAGES).glob("*.md"):
            self.env.note_dependency(str(path))
        pages = escape(json.dumps(places(Path(self.env.srcdir))), quote=False)
        script = f"""<script>
(() => {{
  const pages = {pages};
  const name = decodeURIComponent(location.hash.slice(1)).replace("module-", "");
  for (let part = name; part; part = part.slice(0, Math.max(0, part.lastIndexOf("."))))
    if (pages[part]) return location.replace("api/" + pages[part] + ".html" + location.hash);
}})();
</script>"""
        return [nodes.raw("", script, format="html")]


def skipped(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the functions of a gate, which the table shows."""
    bases = [base.__name__ for base in getattr(obj, "__mro__", ())[1:]]
    return True if {"Elementwise", "OverFeatures"} & {*bases} else None


def add_style(app: Sphinx, page: str, template: str, context: Any, doctree: Any) -> None:
    """The library's pages have a style of their own."""
    if page.startswith(PAGES):
        app.add_css_file("api.css", priority=900)


def setup(app: Sphinx) -> None:
    """Register the directives."""
    app.add_directive("functions-table", Functions)
    app.add_directive("refused", Refused)
    app.add_directive("forward-anchors", Forward)
    app.connect("autodoc-skip-member", skipped)
    app.connect("html-page-context", add_style)
