"""Makes the pictures of the pages light, and lets films obey a reader's wish for little motion.

Imports docutils, Sphinx and Pillow. Must not import gatelib or torch.

The notebooks keep the pictures as drawn. A chart has few colours, so a palette loses nothing that
can be seen, and a page stays below a megabyte.
"""

from __future__ import annotations

import html
import io
from pathlib import Path

from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx

FILM = 'id="film-'


def lightened(content: bytes) -> bytes:
    """The same PNG with 256 colours, or as it came where that is no smaller."""
    with Image.open(io.BytesIO(content)) as picture:
        few = picture.convert("RGBA").quantize(256, Image.Quantize.FASTOCTREE)
    file = io.BytesIO()
    few.save(file, "PNG", optimize=True)
    return min(content, file.getvalue(), key=len)


def lighten(app: Sphinx, error: Exception | None) -> None:
    """Replace every picture that the build copied from a notebook."""
    if error is None and app.builder.format == "html":
        for path in sorted(Path(app.outdir, "_images").glob("*.png")):
            path.write_bytes(lightened(path.read_bytes()))


def inlined(drawing: str, alt: str) -> str:
    """A film as it stands in a page, with its description."""
    start = drawing[drawing.index("<svg") :]
    return start.replace('role="img"', f'role="img" aria-label="{html.escape(alt)}"', 1)


def put_films(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Replace every image that is a film by the film itself."""
    if app.builder.format != "html":
        return
    for image in list(tree.findall(nodes.image)):
        path = Path(app.srcdir, image["uri"])
        if path.suffix == ".svg" and FILM in (drawing := path.read_text(encoding="utf-8")):
            raw = nodes.raw("", inlined(drawing, image.get("alt", "")), format="html")
            box = nodes.container("", raw, classes=["film"])
            image.replace_self(box)


def setup(app: Sphinx) -> None:
    """Run when a page is read, and when all are there."""
    app.connect("doctree-resolved", put_films)
    app.connect("build-finished", lighten)
