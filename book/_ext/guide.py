"""The field guide, made from `book/guide.yml`: by need, what to do, why, and where it is shown.

Imports PyYAML, Sphinx, docutils and `claims` beside it. Must not import gatelib.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from claims import Base
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError

KINDS = {"use": "use", "start": "start", "beware": "beware"}
FIELDS = {"need", "kind", "do", "because", "chapter", "link"}
DOMAINS = {"thm": ("prf", "ref"), "lem": ("prf", "ref"), "eq": ("math", "eq")}


@dataclass(frozen=True)
class Line:
    """One piece of advice and the place that shows it."""

    need: str
    kind: str
    do: str
    because: str
    chapter: str
    link: str


def check(entry: dict[str, Any]) -> Line:
    """Return the Line that an entry describes; raise ExtensionError naming what is wrong."""
    where = f"guide.yml, {str(entry.get('do', '?'))[:40]!r}"
    if set(entry) != FIELDS:
        raise ExtensionError(f"{where}: expected the fields {sorted(FIELDS)}, found {list(entry)}")
    if entry["kind"] not in KINDS:
        raise ExtensionError(f"{where}: expected a kind of {list(KINDS)}, found {entry['kind']!r}")
    if not re.fullmatch(r"\d\d_\w+", entry["chapter"]):
        raise ExtensionError(f"{where}: expected a chapter, found {entry['chapter']!r}")
    return Line(**entry)


def load(path: Path) -> dict[str, list[Line]]:
    """Return the lines by need, both in the order of the file."""
    data = yaml.load(path.read_text(encoding="utf8"), Loader=yaml.BaseLoader)
    found: dict[str, list[Line]] = {}
    for line in map(check, data["lines"]):
        found.setdefault(line.need, []).append(line)
    return found


class Guide(Base):
    """```` ```{field-guide} ````: a section for each need, a card for each line."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        path = Path(self.env.srcdir) / "book" / "guide.yml"
        self.env.note_dependency(str(path))
        return [self.section(need, lines) for need, lines in load(path).items()]

    def section(self, need: str, lines: list[Line]) -> nodes.section:
        """Return one need with its lines."""
        title = self.parse(need).children[0]
        plain = re.sub(r"[^a-z]+", "-", need.lower()).strip("-")
        section = nodes.section("", nodes.title("", "", *title.children), ids=[plain])
        section["names"] = [need.lower()]
        section += [self.card(line) for line in lines]
        return section

    def card(self, line: Line) -> nodes.container:
        """Return one line: its kind, what to do, why, and where that is shown."""
        card = nodes.container(classes=["guide", f"guide-{line.kind}"])
        head = self.parse(line.do).children[0]
        assert isinstance(head, nodes.paragraph)
        head["classes"].append("guide-do")
        head.insert(0, nodes.inline("", KINDS[line.kind], classes=["guide-kind"]))
        why = self.parse(line.because).children[0]
        assert isinstance(why, nodes.paragraph)
        why += [nodes.Text(" → "), self.place(line)]
        card += [head, why]
        return card

    def place(self, line: Line) -> pending_xref:
        """Return the reference to the place; Sphinx complains where there is none."""
        domain, role = DOMAINS.get(line.link.partition("-")[0], ("std", "ref"))
        label = f"{line.chapter}:{line.link}" if self.is_anchor(line) else line.link
        reference = self.link(label, self.called(line.chapter))
        reference["refdomain"], reference["reftype"] = domain, role
        return reference

    def is_anchor(self, line: Line) -> bool:
        """Tell whether the link is an anchor or a section's label rather than a named object."""
        return line.link.partition("-")[0] not in {*DOMAINS, "fig", "ex"}


def in_its_chapter(app: Sphinx, env: BuildEnvironment) -> None:
    """Stop the build where a line names a figure of another chapter than it says."""
    path = Path(app.srcdir) / "book" / "guide.yml"
    labels = env.get_domain("std").anonlabels
    for line in (line for lines in load(path).values() for line in lines) if path.exists() else ():
        docname = labels.get(line.link, (f"chapters/{line.chapter}",))[0]
        if docname != f"chapters/{line.chapter}":
            raise ExtensionError(f"guide.yml: {line.link} is in {docname}, not in {line.chapter}")


def setup(app: Sphinx) -> None:
    """Register the directive and the check."""
    app.add_directive("field-guide", Guide)
    app.connect("env-check-consistency", in_its_chapter)
