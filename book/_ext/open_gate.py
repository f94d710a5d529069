"""A link beside each gate that a page shows: "Open this gate in the workshop".

Imports docutils, Sphinx, and `catalogue` beside it.
Must not import gatelib: a stored output says which gate it shows.

A cell that ends with a Spec has two outputs: its formulas, and beside them the text that the
workshop reads. A `{circuit}` names its Spec. The link takes no room: it stands in the margin of
what it belongs to, which is as high as before.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from html import escape
from urllib.parse import quote

from catalogue import PAGE
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

HEADER = re.compile(r"[^\W\d]\w*: [\w ]+ -> [\w ]+")
DERIVED = re.compile(r"_(?:vjp|jvp)(?:_|:)")
WORDS = "Open this gate in the workshop"


def gate_in(text: str) -> str | None:
    """The gate that an output's plain text is, as the workshop reads it; None for anything else.

    A derived backward pass is left out: the workshop derives it from the gate again.
    """
    first, *rest = (line.strip() for line in text.strip().splitlines())
    if not HEADER.fullmatch(first) or DERIVED.search(first):
        return None
    lines = [line for line in rest if line and not line.startswith("#")]
    return "\n".join([first, *lines]) if lines and all(" = " in line for line in lines) else None


def link(env: BuildEnvironment, gate: str) -> nodes.raw:
    """The link from the page that is read to the workshop with a gate in it."""
    if PAGE not in env.found_docs:
        return nodes.raw("", "", format="html")
    page = posixpath.relpath(PAGE, posixpath.dirname(env.docname))
    address = escape(f"{page}.html#gate={quote(gate, safe='')}")
    words = f'<span class="visually-hidden">{WORDS}</span>'
    return nodes.raw(
        "", f'<a class="open-gate" href="{address}" title="{WORDS}">{words}</a>', format="html"
    )


def outputs(doctree: nodes.document) -> Iterator[tuple[nodes.Element, str]]:
    """Each output that is shown as formulas, with its plain text."""
    for bundle in doctree.findall(nodes.container):
        if bundle.get("nb_element") == "mime_bundle":
            kinds = {child.get("mime_type"): child for child in bundle.children}
            if {"text/latex", "text/plain"} <= kinds.keys():
                yield kinds["text/latex"], kinds["text/plain"].astext()


def add_links(app: Sphinx, doctree: nodes.document) -> None:
    """Put the link into the box of every gate that a cell shows."""
    for shown, text in list(outputs(doctree)):
        if gate := gate_in(text):
            box = nodes.container("", *shown.children, classes=["shown-gate"])
            shown.children = []
            box += link(app.env, gate)
            shown += box


def setup(app: Sphinx) -> None:
    """Read every page's outputs."""
    app.connect("doctree-read", add_links)
