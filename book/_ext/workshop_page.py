"""The parts of the workshop's page, filled with its first gate when the book is built.

Imports docutils, Sphinx, and `catalogue`, `explorers` and `policy` beside it; gatelib when the
page is read.
Must not import torch.

`{workshop} editor`, `formulas`, `backward`, `circuit`, `layer`, `source`, `knobs`, `time` or
`policy` stands where a part belongs. Without JavaScript the page is whole and shows the LSTM; its
scripts put any other gate in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any, ClassVar

import catalogue
import explorers
import policy
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

VIEWS = ["curve", "time"]
SCRIPTS = (
    "katex/katex.min.js",
    f"{catalogue.WHERE}/index.js",
    "code.js",
    "python.js",
    *(f"workshop/{name}.js" for name in ("text", "editor", "shown", "play", "page")),
)
LANGUAGES = {"numpy": "NumPy", "torch": "PyTorch", "triton": "Triton", "javascript": "JavaScript"}
EDITOR = """<div class="workshop-editor" id="workshop-editor">
<noscript><p>Typing needs JavaScript. Without it the page shows the LSTM, whole.</p></noscript>
<div class="workshop-bar" hidden></div>
<div class="workshop-text"><div class="workshop-gutter" aria-hidden="true">{numbers}</div>
<textarea id="workshop-text" aria-label="Equations of the gate" aria-describedby="workshop-status"
 spellcheck="false" autocapitalize="off" autocomplete="off" wrap="off" readonly rows="{rows}">
{text}</textarea></div>
<div class="workshop-status" id="workshop-status" role="status"></div></div>"""
NOTE = '<p class="workshop-note" hidden></p>'
FIGURE = f'<figure class="explorer">{{drawn}}</figure>{NOTE}'


def first() -> Any:
    """The gate that the page shows when it is opened."""
    from gatelib.equations.lstm import LSTM

    return LSTM


def editor(spec: Any) -> str:
    """The editor."""
    text = catalogue.text_of(spec)
    rows = len(text.splitlines())
    numbers = "\n".join(str(k + 1) for k in range(rows))
    return EDITOR.format(numbers=numbers, rows=rows, text=escape(text))


def circuit(spec: Any) -> str:
    """The drawing, as the `circuit` directive places it."""
    from gatelib import workshop

    drawn = workshop.picture(spec)["svg"]
    drawn = drawn[drawn.index("<svg") :]
    return f'<div class="circuit"><div class="circuit-drawing workshop-drawing">{drawn}</div></div>'


def figure(part: str, spec: Any) -> str:
    """A figure that can be played with, as the scripts would draw it first."""
    from gatelib import workshop

    drawn = explorers.draughtsman.draw_part(part, workshop.sheet(spec), explorers.WIDTH)
    return FIGURE.format(drawn=explorers.picture(drawn))


def block(language: str, source: dict[str, str]) -> str:
    """A block of code in Markdown, or why there is none."""
    lexer = "javascript" if language == "javascript" else "python"
    return f"```{lexer}\n{source.get('code') or source['none']}\n```"


def layer(spec: Any) -> str:
    """How the gate becomes a layer, in Markdown."""
    from gatelib import workshop

    return block("python", workshop.sheet(spec)["layer"])


def sources(spec: Any) -> str:
    """The code in every language, in Markdown: one tab each."""
    from gatelib import workshop

    made = workshop.sheet(spec)["source"]
    tabs = (
        f":::{{tab-item}} {title}\n:class-content: workshop-{name}\n{block(name, made[name])}\n:::"
        for name, title in LANGUAGES.items()
    )
    return "\n".join(["::::{tab-set}", *tabs, "::::"])


MARKDOWN: dict[str, Callable[[Any], str]] = {
    "formulas": lambda spec: f"```{{math}}\n{spec.latex()}\n```",
    "backward": lambda spec: f"```{{math}}\n{spec.vjp().latex()}\n```",
    "layer": layer,
    "source": sources,
    "policy": lambda spec: f"```text\n{policy.in_words()}\n```",
}
HTML: dict[str, Callable[[Any], str]] = {
    "editor": editor,
    "circuit": circuit,
    "knobs": lambda spec: figure("knobs", spec),
    "time": lambda spec: figure("overTime", spec),
}


class Workshop(SphinxDirective):
    """```` ```{workshop} formulas ````: one part of the page."""

    required_arguments = 1
    option_spec: ClassVar = {}

    def run(self) -> list[nodes.Node]:
        """Return the part, filled with the first gate."""
        part = directives.choice(self.arguments[0], (*MARKDOWN, *HTML))
        explorers.need(self.env, self.env.docname, VIEWS)
        box = nodes.container(classes=["workshop-part", f"workshop-{part}"])
        if part in HTML:
            box += nodes.raw("", HTML[part](first()), format="html")
        else:
            text = StringList(MARKDOWN[part](first()).splitlines(), source="workshop")
            self.state.nested_parse(text, self.content_offset, box)
        if part == "layer":
            box += nodes.raw("", NOTE, format="html")
        return [box]


def add_scripts(app: Sphinx, page: str, template: str, context: Any, tree: Any) -> None:
    """The workshop's page alone loads its style and its scripts, in this order."""
    if page == catalogue.PAGE and app.builder.name == "html":
        app.add_css_file("workshop.css", priority=900)
        for script in SCRIPTS:
            app.add_js_file(script, loading_method="defer", priority=900)


def setup(app: Sphinx) -> None:
    """Register the directive."""
    app.add_directive("workshop", Workshop)
    app.connect("html-page-context", add_scripts, priority=900)  # behind the views
    catalogue.setup(app)
