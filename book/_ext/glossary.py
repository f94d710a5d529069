"""The glossary, English and Chinese, made from `book/glossary.yml`.

Imports PyYAML, Sphinx, docutils and `claims` beside it. Must not import gatelib.

Each term links to the section that defines it; a link that leads nowhere fails the build. The
search knows that section by all the names of the term (`sections.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml
from claims import Base
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

ENTRY, ANCHOR = "search_entry", "search_anchor"  # what makes a node an entry of the search
FIELDS = {"term", "chinese", "means", "defined"}


@dataclass(frozen=True, order=True)
class Term:
    """One term: its names, what it means, and the label of the section that defines it."""

    term: str
    chinese: tuple[str, ...]
    means: str
    defined: str
    also: tuple[str, ...] = ()

    def anchor(self) -> str:
        """Return the term's place on the page: `term-forget-gate`."""
        return "term-" + self.term.lower().replace(" ", "-")

    def chapter(self) -> str:
        """Return the chapter that defines the term."""
        return self.defined.partition(":")[0]

    def names(self) -> list[str]:
        """Return all its names, the book's own first."""
        return [self.term, *self.also, *self.chinese]


def check(entry: dict[str, Any]) -> Term:
    """Return the Term that an entry describes; raise ExtensionError naming what is wrong."""
    where = f"glossary.yml, term {entry.get('term', '?')!r}"
    if set(entry) - {"also"} != FIELDS:
        raise ExtensionError(f"{where}: expected the fields {sorted(FIELDS)}, found {list(entry)}")
    if not entry["chinese"]:
        raise ExtensionError(f"{where}: expected at least one Chinese name, found none")
    if not re.fullmatch(r"\d\d_\w+:[\w-]+", entry["defined"]):
        raise ExtensionError(f"{where}: expected chapter:label, found {entry['defined']!r}")
    if not entry["means"].endswith("."):
        raise ExtensionError(f"{where}: expected one sentence, found {entry['means']!r}")
    return Term(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()})


def load(path: Path) -> list[Term]:
    """Return all terms in the order of the alphabet; raise ExtensionError for a second one."""
    data = yaml.load(path.read_text(encoding="utf8"), Loader=yaml.BaseLoader)
    terms = [check(entry) for entry in data["terms"]]
    for term in terms:
        if [other.term for other in terms].count(term.term) > 1:
            raise ExtensionError(f"glossary.yml: {term.term!r} stands there twice")
    return sorted(terms, key=lambda term: term.term.casefold())


def file(app: Sphinx | Any) -> Path:
    """Return the path of the glossary's data."""
    return Path(app.srcdir) / "book" / "glossary.yml"


def names(app: Sphinx) -> dict[tuple[str, str], list[list[str]]]:
    """Return the terms' names by page and anchor: where a term is defined, and its own entry."""
    found: dict[tuple[str, str], list[list[str]]] = {}
    labels = app.env.get_domain("std").anonlabels
    for term in load(file(app)) if file(app).exists() else []:
        for label in (term.defined.lower(), term.anchor()):
            if label in labels:
                found.setdefault(labels[label], []).append(term.names())
    return found


def chinese(text: str) -> nodes.raw:
    """Return a Chinese name, marked as Chinese for screen readers and fonts."""
    return nodes.raw("", f'<span lang="zh">{escape(text)}</span>', format="html")


class Glossary(Base):
    """```` ```{gates-glossary} ````: every term with its names, its meaning and its section."""

    def terms(self) -> list[Term]:
        """Return the terms, and have Sphinx read this page again when they change."""
        self.env.note_dependency(str(file(self.env)))
        return load(file(self.env))

    def run(self) -> list[nodes.Node]:
        """Return one list of definitions."""
        return [nodes.definition_list("", *map(self.entry, self.terms()), classes=["glossary"])]

    def entry(self, term: Term) -> nodes.definition_list_item:
        """Return a term, and a label that other pages can name."""
        anchor = term.anchor()
        self.env.get_domain("std").anonlabels[anchor] = (self.env.docname, anchor)
        title = nodes.term("", term.term, nodes.Text(" "), chinese("、".join(term.chinese)))
        title["ids"] = [anchor]
        meaning = self.parse(term.means).children[0]
        assert isinstance(meaning, nodes.paragraph)
        if term.also:
            meaning += nodes.Text(f" Also called {', '.join(term.also)}.")
        meaning += [nodes.Text(" → "), self.link(term.defined, self.called(term.chapter()))]
        item = nodes.definition_list_item("", title, nodes.definition("", meaning))
        item[ENTRY], item[ANCHOR] = term.term, anchor
        return item


class ChineseNames(Glossary):
    """```` ```{gates-chinese} ````: the Chinese names in the order of their characters."""

    def run(self) -> list[nodes.Node]:
        """Return a list of names, each with the term that it leads to."""
        pairs = sorted((name, term) for term in self.terms() for name in term.chinese)
        items = [self.item(name, term) for name, term in pairs]
        return [nodes.bullet_list("", *items, classes=["chinese-names"])]

    def item(self, name: str, term: Term) -> nodes.list_item:
        """Return one name and its link."""
        link = self.link(term.anchor(), term.term)
        return nodes.list_item("", nodes.paragraph("", "", chinese(name), nodes.Text(" "), link))


def setup(app: Sphinx) -> None:
    """Register the directives."""
    app.add_directive("gates-glossary", Glossary)
    app.add_directive("gates-chinese", ChineseNames)
