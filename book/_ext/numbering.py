"""Chapter numbers that come from the file names: `chapters/06_lstm` is chapter 6.

Imports Sphinx, sphinx-external-toc and docutils. Must not import gatelib.

Sphinx restarts its count in every part of the table of contents and would call the second file
that exists chapter 2. The book's chapters keep their number from the day they are planned.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx_external_toc.collectors import TocTreeCollectorWithStyles

Number = list[int] | tuple[int, ...]


def chapter_number(docname: str) -> int | None:
    """Return 6 for `chapters/06_lstm`, None for a page that is no chapter."""
    found = re.fullmatch(r"chapters/(\d+)_\w+", docname)
    return int(found[1]) if found else None


def renumber(env: BuildEnvironment, docname: str, number: int) -> None:
    """Put `number` first in every section number of one chapter."""

    def moved(old: Number | None) -> Number | None:
        return type(old)([number, *old[1:]]) if old else old

    for anchor, old in env.toc_secnumbers.get(docname, {}).items():
        env.toc_secnumbers[docname][anchor] = moved(old)
    for title in (env.titles[docname], env.longtitles[docname]):
        if title.get("secnumber"):
            title["secnumber"] = moved(title["secnumber"])
    for reference in env.tocs[docname].findall(nodes.reference):
        if reference.get("secnumber"):
            reference["secnumber"] = moved(reference["secnumber"])


def setup(app: Sphinx) -> None:
    """Wrap the step in which Sphinx counts sections; figures are counted after it."""
    count = TocTreeCollectorWithStyles.assign_section_numbers

    def assign(self: TocTreeCollectorWithStyles, env: BuildEnvironment) -> list[str]:
        before = {name: dict(numbers) for name, numbers in env.toc_secnumbers.items()}
        count(self, env)
        for docname in env.found_docs:
            number = chapter_number(docname)
            if number is not None and docname in env.titles:
                renumber(env, docname, number)
        return [name for name, now in env.toc_secnumbers.items() if before.get(name) != now]

    TocTreeCollectorWithStyles.assign_section_numbers = assign
