"""Numbers in a sentence that the book counts itself: {count}`claims`, {count}`exact cells`, ….

Imports Sphinx, docutils, and `claims`, `glossary` and `records` beside it. Must not import gatelib.

No page types such a number: it would be right on the day it was typed.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import claims
import glossary
import records
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxRole


def of_claims(root: Path) -> dict[str, int]:
    """Count the claims, by verdict too: `claims`, `claims decided`, `claims holds if`, …."""
    found = Counter(claim.status() for claim in claims.load(root / "book" / "claims.yml").values())
    named = {f"claims {name}": found[verdict] for verdict, name in claims.VERDICTS.items()}
    total = sum(found.values())
    return {"claims": total, "claims decided": total - found["undecided"], **named}


def of_cells(root: Path, chapters: list[Path]) -> dict[str, int]:
    """Count the chapters that the book has, and their code cells by kind."""
    kinds = Counter(records.kind(c) for path in chapters for c in records.code_cells(path))
    cells = {f"{kind} cells": kinds[kind] for kind in records.KINDS}
    return {"chapters": len(chapters), "cells": sum(kinds.values()), **cells}


def of_terms(root: Path) -> dict[str, int]:
    """Count the terms of the glossary."""
    return {"terms": len(glossary.load(root / "book" / "glossary.yml"))}


class Count(SphinxRole):
    """{count}`claims` in a sentence."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the number; raise ExtensionError for something that isn't counted."""
        numbers = self.numbers()
        if self.text not in numbers:
            source, line = self.get_source_info()
            counted = ", ".join(numbers)
            raise ExtensionError(f"{source}:{line}: {self.text!r} is not counted; {counted} are")
        return [nodes.inline("", f"{numbers[self.text]:,}", classes=["count"])], []

    def numbers(self) -> dict[str, Any]:
        """Return all counts, and have Sphinx read this page again when one can change."""
        root = Path(self.env.srcdir)
        found = [p for p in records.chapters(root) if f"chapters/{p.stem}" in self.env.found_docs]
        data = [root / "book" / name for name in ("claims.yml", "glossary.yml")]
        for path in [*found, *data]:
            self.env.note_dependency(str(path))
        return of_claims(root) | of_cells(root, found) | of_terms(root)


def setup(app: Sphinx) -> None:
    """Register the role."""
    app.add_role("count", Count())
