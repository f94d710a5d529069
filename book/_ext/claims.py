"""The claims ledger, the verdict cards and the roles that quote, all made from `book/claims.yml`.

Imports PyYAML, Sphinx and docutils. Must not import gatelib.

A code cell tagged `decides-A8` decides claim A8; its anchor is `decides-a8`. The card in the
chapter and the row in the ledger read the same entry, so they cannot differ. The role
{claim}`A8`, or {claim}`Claim A8`, links a mention to the ledger and brings the claim's words along;
{article}`A` does so for an article, in the words of `book/sources.md`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective, SphinxRole

VERDICTS = {
    "holds": "holds",
    "holds-if": "holds if",
    "false": "false",
    "unknowable": "cannot be known",
    "undecided": "undecided",
}
FIELDS = {"id", "section", "claim", "chapters", "verdicts"}
MEANS = {name: name for name in ("proof", "counts", "timing", "sources")} | {
    "runs": "runs on the page"
}
TAG = re.compile(r"decides-([A-E]\d+)")
MENTION = re.compile(r"([Cc]laim )?([A-Z]\d+)")
ARTICLE = re.compile(r"^Article ([A-Z])\n: (.+)$", re.M)


@dataclass(frozen=True)
class Claim:
    """One claim of one article, and what each chapter that owns it found."""

    id: str
    section: str
    claim: str
    chapters: tuple[str, ...]
    verdicts: dict[str, dict[str, Any]]

    def verdict(self, chapter: str) -> str:
        """Return the chapter's verdict, `undecided` while it has none."""
        return self.verdicts.get(chapter, {}).get("verdict", "undecided")

    def studies(self, chapter: str) -> list[str]:
        """Return the names of the chapter's studies that decided, without the chapter's name."""
        return [name for name in self.verdicts[chapter]["by"] if name not in MEANS]

    def decided_by(self, chapter: str) -> str:
        """Return what decided, in words: `by proof, studies rates and shut`."""
        means = [MEANS[name] for name in self.verdicts[chapter]["by"] if name in MEANS]
        *first, last = self.studies(chapter) or [""]
        if last:
            means.append(f"studies {', '.join(first)} and {last}" if first else f"study {last}")
        return "by " + ", ".join(means)

    def status(self) -> str:
        """Return the one word that the ledger counts: all chapters' verdict, or `holds-if`."""
        found = {self.verdict(chapter) for chapter in self.chapters} - {"undecided"}
        return "undecided" if not found else found.pop() if len(found) == 1 else "holds-if"


def check(entry: dict[str, Any]) -> Claim:
    """Return the Claim that an entry describes; raise ExtensionError naming what is wrong."""
    where = f"claims.yml, claim {entry.get('id', '?')}"
    if set(entry) != FIELDS:
        raise ExtensionError(f"{where}: expected the fields {sorted(FIELDS)}, found {list(entry)}")
    verdicts = entry["verdicts"] or {}
    for chapter, found in verdicts.items():
        if chapter not in entry["chapters"]:
            raise ExtensionError(f"{where}: {chapter} is not one of its chapters")
        if set(found) != {"verdict", "by", "because"}:
            raise ExtensionError(f"{where}, {chapter}: expected the fields verdict, by and because")
        if not isinstance(found["by"], list) or not found["by"]:
            raise ExtensionError(
                f"{where}, {chapter}: expected a list under by, of what decided it"
            )
        if found["verdict"] not in set(VERDICTS) - {"undecided"}:
            raise ExtensionError(f"{where}, {chapter}: unknown verdict {found['verdict']!r}")
    return Claim(**{**entry, "chapters": tuple(entry["chapters"]), "verdicts": verdicts})


def load(path: Path) -> dict[str, Claim]:
    """Return all claims by ID, in the order of the file; raise ExtensionError on a second ID."""
    data = yaml.load(path.read_text(encoding="utf8"), Loader=yaml.BaseLoader)
    claims: dict[str, Claim] = {}
    for entry in data["claims"]:
        claim = check(entry)
        if claim.id in claims:
            raise ExtensionError(f"claims.yml: {claim.id} stands there twice")
        claims[claim.id] = claim
    return claims


@cache
def title(path: Path, changed: float) -> str:
    """Return the title of the chapter at `path`, as it was at the time `changed`."""
    cell = json.loads(path.read_text(encoding="utf8"))["cells"][0]
    return "".join(cell["source"]).splitlines()[0].removeprefix("# ")


class Linked:
    """What directives and roles share: the data and links to labels."""

    env: Any
    get_source_info: Callable[[], tuple[str, int]]

    def claims(self) -> dict[str, Claim]:
        """Return the ledger, and have Sphinx read this page again when it changes."""
        path = Path(self.env.srcdir) / "book" / "claims.yml"
        self.env.note_dependency(str(path))
        return load(path)

    def link(self, label: str, text: str) -> pending_xref:
        """Return a reference to a label, kept by Sphinx's nitpicking."""
        reference = pending_xref(
            "", nodes.inline("", text), refdomain="std", reftype="ref", reftarget=label.lower(),
            refexplicit=True, refwarn=True, refdoc=self.env.docname,
        )  # fmt: skip
        reference.source, reference.line = self.get_source_info()
        return reference


class Base(Linked, SphinxDirective):
    """What the directives share besides: MyST text turned into nodes, and what chapters exist."""

    def parse(self, text: str, *classes: str) -> nodes.container:
        """Return a container that holds `text`, read as MyST."""
        box = nodes.container(classes=list(classes))
        self.state.nested_parse(StringList(text.splitlines(), self.env.docname), 0, box)
        return box

    def badge(self, verdict: str) -> nodes.inline:
        """Return the verdict as a coloured word."""
        return nodes.inline("", VERDICTS[verdict], classes=["verdict", f"verdict-{verdict}"])

    def exists(self, chapter: str) -> bool:
        """Tell whether the chapter is in the book yet."""
        return f"chapters/{chapter}" in self.env.found_docs

    def called(self, chapter: str) -> str:
        """Return what a reader calls the chapter: its number, and its title where it exists."""
        number = f"chapter {int(chapter[:2])}"
        path = Path(self.env.srcdir) / "chapters" / f"{chapter}.ipynb"
        if not self.exists(chapter) or not path.exists():
            return number
        self.env.note_dependency(str(path))
        return f"{number}, {title(path, path.stat().st_mtime)}"


class Card(Base):
    """```` ```{claim} A8 ```` in a chapter: the verdict card of one claim."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the card, or raise for a claim that the chapter does not own."""
        name, chapter = self.arguments[0], Path(self.env.docname).name
        claim = self.claims().get(name)
        if claim is None:
            raise self.error(f"there is no claim {name!r} in book/claims.yml")
        if chapter not in claim.chapters:
            raise self.error(f"claim {name} belongs to {claim.chapters}, not to {chapter}")
        verdict = claim.verdict(chapter)
        card = nodes.container(
            classes=["claim", f"claim-{verdict}"], ids=[f"verdict-{name.lower()}"]
        )
        head = nodes.paragraph(classes=["claim-head"])
        head += [nodes.strong("", f"Claim {name}"), nodes.Text(" "), self.badge(verdict)]
        card += [head, self.parse(claim.claim, "claim-text")]
        if verdict != "undecided":
            card += self.parse(claim.verdicts[chapter]["because"], "claim-because")
        card += self.foot(claim, chapter, verdict)
        return [card]

    def foot(self, claim: Claim, chapter: str, verdict: str) -> nodes.paragraph:
        """Return the card's last line: where the claim stands and which cell decides."""
        foot = nodes.paragraph(classes=["claim-foot"])
        foot += nodes.Text(f"Article {claim.id[0]}, § {claim.section} · ")
        if verdict != "undecided":
            foot += [
                nodes.Text(f"{claim.decided_by(chapter)} · "),
                self.link(f"{chapter}:decides-{claim.id}", "the deciding cell"),
                nodes.Text(" · "),
            ]
        foot += self.link(f"claim-{claim.id}", "in the ledger")
        return foot


class Ledger(Base):
    """```` ```{claims-ledger} A ```` on the claims page: every claim of one article."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return one row per claim."""
        return [self.row(c) for c in self.claims().values() if c.id[0] == self.arguments[0]]

    def row(self, claim: Claim) -> nodes.container:
        """Return the claim, where it was read, and each chapter's verdict."""
        row = nodes.container(classes=["claim", f"claim-{claim.status()}"])
        row["ids"] = [f"claim-{claim.id.lower()}"]
        self.env.get_domain("std").anonlabels[f"claim-{claim.id.lower()}"] = (
            self.env.docname, row["ids"][0],
        )  # fmt: skip
        head = nodes.paragraph(classes=["claim-head"])
        head += [nodes.strong("", claim.id), nodes.Text(" "), self.badge(claim.status())]
        row += [head, self.parse(claim.claim, "claim-text")]
        for chapter in claim.chapters:
            if chapter in claim.verdicts:
                row += self.parse(claim.verdicts[chapter]["because"], "claim-because")
        row += self.foot(claim)
        return row

    def foot(self, claim: Claim) -> nodes.paragraph:
        """Return the row's last line: the section, and a link per chapter that exists."""
        foot = nodes.paragraph(classes=["claim-foot"])
        foot += nodes.Text(f"Article {claim.id[0]}, § {claim.section}")
        for chapter in claim.chapters:
            foot += nodes.Text(" · ")
            if chapter in claim.verdicts:
                text = f"{self.called(chapter)}: the deciding cell"
                foot += self.link(f"{chapter}:decides-{claim.id}", text)
                foot += nodes.Text(f", {claim.decided_by(chapter)}")
            else:
                state = "not yet decided" if self.exists(chapter) else "not yet written"
                foot += nodes.Text(f"{self.called(chapter)}: {state}")
        return foot


class Summary(Base):
    """```` ```{claims-summary} ````: how many claims of each article got which verdict."""

    def run(self) -> list[nodes.Node]:
        """Return a table, articles down and verdicts across."""
        claims = self.claims().values()
        lines = ["| article | " + " | ".join(VERDICTS.values()) + " | all |"]
        lines += ["|:--|" + "--:|" * (len(VERDICTS) + 1)]
        for letter in [*sorted({c.id[0] for c in claims}), "all"]:
            rows = [c.status() for c in claims if letter in (c.id[0], "all")]
            counts = [str(rows.count(verdict)) for verdict in VERDICTS]
            lines += [f"| {letter} | " + " | ".join(counts) + f" | {len(rows)} |"]
        return self.parse("\n".join(lines), "claims-summary").children


class Mention(Linked, SphinxRole):
    """{claim}`A8` in a sentence: a link to the ledger, with the claim's words as a gloss."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the link and the gloss; raise ExtensionError for what the ledger does not hold."""
        found = MENTION.fullmatch(self.text)
        claim = self.claims().get(found[2]) if found else None
        if found is None or claim is None:
            raise self.unknown("claim", "book/claims.yml")
        link = self.link(f"claim-{claim.id}", f"{found[1] or 'claim '}{claim.id}")
        return self.glossed(link, claim.claim)

    def unknown(self, what: str, where: str) -> ExtensionError:
        """Return the error for a name that is not there."""
        source, line = self.get_source_info()
        return ExtensionError(f"{source}:{line}: there is no {what} {self.text!r} in {where}")

    def glossed(self, link: nodes.Node, words: str) -> tuple[list[nodes.Node], list[Any]]:
        """Return the link followed by the words, which the style shows where they fit."""
        parsed, messages = self.inliner.parse(f"“{words}”", self.lineno, self.inliner, link)
        before, after = (nodes.inline("", mark, classes=["bracket"]) for mark in (" (", ")"))
        gloss = nodes.inline("", "", before, *parsed, after, classes=["gloss"])
        return [nodes.inline("", "", link, gloss, classes=["glossed"])], messages


class Article(Mention):
    """{article}`A` in a sentence: a link to the sources, and what the article is as a gloss."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the link and the gloss; raise ExtensionError for an article that is not there."""
        path = Path(self.env.srcdir) / "book" / "sources.md"
        self.env.note_dependency(str(path))
        words = dict(ARTICLE.findall(path.read_text(encoding="utf8")))
        name = self.text.removeprefix("Article ")
        if name not in words:
            raise self.unknown("article", "book/sources.md")
        text = self.text if name != self.text else f"article {name}"
        return self.glossed(self.link(f"article-{name}", text), words[name])


def mark_articles(app: Sphinx, doctree: nodes.document) -> None:
    """Give each article on the page of sources its anchor and its label."""
    if app.env.docname != "book/sources":
        return
    for term in doctree.findall(nodes.term):
        anchor = term.astext().lower().replace(" ", "-")
        term["ids"].append(anchor)
        app.env.get_domain("std").anonlabels[anchor] = (app.env.docname, anchor)


def mark_deciding_cells(app: Sphinx, doctree: nodes.document) -> None:
    """Give each cell tagged `decides-A8` its anchor, and a label that other pages can name."""
    std, docname = app.env.get_domain("std"), app.env.docname
    marked: set[str] = set()
    for cell in doctree.findall(nodes.container):
        tags = (TAG.fullmatch(name.removeprefix("tag_")) for name in cell.get("classes", []))
        for claim in (tag[1] for tag in tags if tag):
            if claim in marked:
                raise ExtensionError(f"{docname}: two cells are tagged decides-{claim}")
            marked.add(claim)
            cell["ids"].append(f"decides-{claim.lower()}")
            label = f"{Path(docname).name}:decides-{claim}".lower()
            std.anonlabels[label] = (docname, f"decides-{claim.lower()}")


def setup(app: Sphinx) -> None:
    """Register the directives and the roles."""
    app.add_directive("claim", Card)
    app.add_directive("claims-ledger", Ledger)
    app.add_directive("claims-summary", Summary)
    app.add_role("claim", Mention())
    app.add_role("article", Article())
    app.connect("doctree-read", mark_articles)
    app.connect("doctree-read", mark_deciding_cells)
