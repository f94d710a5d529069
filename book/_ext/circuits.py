"""The `circuit` directive: a gate drawn by the program from its equations.

Imports Sphinx, docutils, and `catalogue` and `open_gate` beside it; gatelib when a page asks for a
circuit.
Must not import torch.

The drawing goes into the page as SVG, not as a picture, so that it takes the page's colours.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import ClassVar

import catalogue
import open_gate
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Circuit(SphinxDirective):
    """```` ```{circuit} gatelib.equations.lstm.LSTM ````, with `:alt:` and a caption as content."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Return a figure with the drawing and the caption."""
        if importlib.util.find_spec("gatelib.circuit") is None:
            return []
        spec = self.spec()
        drawing = importlib.import_module("gatelib.circuit").draw(spec).svg
        box = nodes.container(classes=["circuit"])
        picture = nodes.container(classes=["circuit-drawing"])
        picture += nodes.raw("", drawing[drawing.index("<svg") :], format="html")
        box += picture
        box += open_gate.link(self.env, catalogue.text_of(spec))
        caption = nodes.container(classes=["circuit-caption"])
        self.state.nested_parse(self.content, self.content_offset, caption)
        box += caption
        return [box]

    def spec(self) -> object:
        """Return the Spec that the argument names."""
        module, _, name = self.arguments[0].rpartition(".")
        return getattr(importlib.import_module(module), name)


def setup(app: Sphinx) -> None:
    """Register the directive."""
    app.add_directive("circuit", Circuit)
