"""Docstrings for people, made safe for Sphinx on the API page.

Imports docutils and Sphinx. Must not import gatelib.

The library's docstrings are plain text with `names` in single backticks. What docutils cannot
read without a complaint is shown as it was written.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from docutils.core import publish_doctree
from docutils.utils import SystemMessage
from sphinx.application import Sphinx

SINGLE = re.compile(r"(?<![`:])`([^`\n]+)`(?![`_])")
ROLE = re.compile(r":[a-z:]+:`")  # Sphinx's roles; docutils alone does not know them


def is_clean(text: str) -> bool:
    """Tell whether docutils reads the text without a warning."""
    settings = {"report_level": 2, "halt_level": 2, "warning_stream": False}
    try:
        publish_doctree(ROLE.sub("`", text), settings_overrides=settings)
    except (AttributeError, SystemMessage):  # a directive of Sphinx asks for its environment
        return False
    return True


def make_safe(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn `name` into a literal, and text that docutils rejects into a literal block."""
    if what in ("attribute", "property"):  # napoleon takes a colon there for a type
        lines[:] = (inspect.getdoc(obj) or "\n".join(lines)).splitlines()
    text = SINGLE.sub(r"``\1``", "\n".join(lines))
    if not is_clean(text):
        text = "::\n\n" + "\n".join(f"    {line}" for line in lines)
    lines[:] = [*text.splitlines(), ""]


def setup(app: Sphinx) -> None:
    """Run after napoleon, which turns sections such as `Raises:` into fields."""
    app.connect("autodoc-process-docstring", make_safe, priority=900)
