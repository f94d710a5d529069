"""Draws explorers while the book is built, with the functions that the pages run.

Imports the standard library and `vendor`; runs node, one process a build.
Must not import gatelib.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import IO, Any

import vendor

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "book" / "static"
CORE = ("pieces", "axes", "cells", "gate", "sequence")
"""What the views are made of, in the order in which a page loads it."""


class DrawingError(ValueError):
    """A view could not draw what it was asked for."""


def views() -> list[str]:
    """The names of the views: every other file is one."""
    return sorted({path.stem for path in (STATIC / "views").glob("*.js")} - {*CORE})


def files(wanted: list[str]) -> list[str]:
    """The scripts of some views below `book/static`, in their order."""
    return [f"views/{name}.js" for name in (*CORE, *sorted(wanted))]


class Draughtsman:
    """Node with all views loaded; started at the first question, stopped by `close`."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def draw(self, definition: dict[str, Any], width: int) -> dict[str, str]:
        """What a view shows before anybody touches it: {svg, reading}.

        Raises:
            DrawingError: the view failed, or drew what is no number.
        """
        return self.ask(
            {"definition": definition, "width": width}, f"the view {definition['view']}"
        )

    def draw_part(self, part: str, sheet: dict[str, Any], width: int) -> dict[str, str]:
        """The same of a figure of the workshop's page, `knobs` or `overTime`, for a gate."""
        return self.ask({"part": part, "sheet": sheet, "width": width}, f"the workshop's {part}")

    def ask(self, question: dict[str, Any], who: str) -> dict[str, str]:
        """One question, one answer."""
        asked, told = self.pipes()
        asked.write(json.dumps(question) + "\n")
        asked.flush()
        answer: dict[str, str] = json.loads(told.readline() or '{"error": "node has stopped"}')
        if "error" in answer:
            raise DrawingError(f"{who} could not draw: {answer['error']}")
        return answer

    def pipes(self) -> tuple[IO[str], IO[str]]:
        """Where to ask and where to read; starts node where it doesn't run."""
        if self.process is None:
            scripts = [str(STATIC / file) for file in (*files(views()), "workshop/play.js")]
            command = [str(vendor.node()), str(ROOT / "tools" / "draw.mjs"), *scripts]
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, text=True, encoding="utf8"
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        return self.process.stdin, self.process.stdout

    def close(self) -> None:
        """Stop node, if it was needed."""
        if self.process is not None:
            self.process.communicate()
            self.process = None
