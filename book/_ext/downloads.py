"""What a reader takes away: chapters that run where they land, and the book as one PDF.

Imports Sphinx and `tools/colab.py`. Must not import gatelib.

`make pdf` prints `_build/gates.pdf` and then builds the site again; the pages offer it as long as
it is younger than everything it was printed from.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import colab
from sphinx.application import Sphinx

SOURCES = ("_config.yml", "_toc.yml", "book/**/*", "chapters/*.ipynb", "gatelib/**/*.py")
PDF = "gates.pdf"


def current_pdf(root: Path) -> bool:
    """Tell whether the book was printed, and nothing it is printed from has changed since."""
    printed = root / "_build" / PDF
    sources = (p for pattern in SOURCES for p in root.glob(pattern) if "__pycache__" not in p.parts)
    return printed.exists() and printed.stat().st_mtime > max(p.stat().st_mtime for p in sources)


def offer(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Say what the buttons of a page give: the notebook, the page on paper, the whole book."""
    groups = [g for g in context.get("header_buttons", []) if g.get("label") == "download-buttons"]
    for button in groups[0]["buttons"] if groups else []:
        if button["label"] == "download-pdf-button":
            button |= {"text": "print this page", "tooltip": "Print this page, or keep it as PDF"}
    if groups and app.config.gates_pdf:
        book = {"type": "link", "url": context["pathto"](PDF, 1), "icon": "fas fa-book"}
        book |= {"text": "the book.pdf", "label": "download-book-button"}
        groups[0]["buttons"].append(book | {"tooltip": "Download the whole book"})


def write(app: Sphinx, error: Exception | None) -> None:
    """Put the chapters that run, and the PDF where there is one, beside the pages."""
    if error is not None or app.builder.name != "html":
        return
    root, out = Path(app.srcdir), Path(app.outdir)
    site = (root / "book" / "site.yml").read_text(encoding="utf8")
    for path in sorted((root / "chapters").glob("*.ipynb")):
        if f"chapters/{path.stem}" in app.env.found_docs:
            target = out / "_sources" / "chapters" / path.name
            target.write_text(colab.copy(path, site), encoding="utf8")
    (out / PDF).unlink(missing_ok=True)
    if app.config.gates_pdf:
        shutil.copy(root / "_build" / PDF, out / PDF)


def setup(app: Sphinx) -> None:
    """Name the buttons once the theme has made them, and write when the pages are there."""
    app.add_config_value("gates_pdf", current_pdf(Path(app.confdir)), "html", types=bool)
    app.connect("html-page-context", offer, priority=900)
    app.connect("build-finished", write)
