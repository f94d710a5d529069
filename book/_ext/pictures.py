"""Makes the pictures of the pages light: measured figures get a palette of 256 colours.

Imports Sphinx and Pillow. Must not import gatelib or torch.

The notebooks keep the pictures as drawn. A chart has few colours, so a palette loses nothing that
can be seen, and a page stays below a megabyte.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from sphinx.application import Sphinx


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


def setup(app: Sphinx) -> None:
    """Run when the pages are there."""
    app.connect("build-finished", lighten)
