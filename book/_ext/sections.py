"""The search index: every section of the book, with the prose that a reader sees.

Imports Sphinx, docutils, and `numbering` and `glossary` beside it. Must not import gatelib.

Sphinx's own index knows whole pages. This one has an entry for each section, each object of the
API, each claim and each glossary entry, so that a hit leads to the place and shows its sentence.
Code, its outputs and displayed equations stay out; their captions are in. Objects of the API are in
with their beginning only: their whole text is a third of the book's.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numbering
from docutils import nodes
from glossary import ANCHOR, ENTRY, names
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

SILENT = (
    nodes.image, nodes.raw, nodes.comment, nodes.target, nodes.math_block, nodes.literal_block,
    nodes.meta, addnodes.index, addnodes.toctree, addnodes.only, addnodes.desc_signature,
)  # fmt: skip
CELL = {"cell_input", "cell_output", "circuit-drawing"}
TEX_WORD = re.compile(r"\\([A-Za-z]+)")
TEX_SPACE = re.compile(r"\\[,;:! ]")
FRACTION = re.compile(r"\\[td]?frac\{?([^{}]|(?<=\{)[^{}]*)\}?\{?([^{}]|(?<=\{)[^{}]*)\}?")
KEPT = {"ln", "log", "exp", "tanh", "max", "min", "sin", "cos"}
SIGNS = dict(zip(
    "cdot odot times le ge ne approx to prod sum partial sqrt infty pm in ldots dots".split(),
    "· ⊙ × ≤ ≥ ≠ ≈ → ∏ ∑ ∂ √ ∞ ± ∈ … …".split(), strict=True,
))  # fmt: skip
LONGEST_FORMULA = 28
BEGINNING = 500  # characters of an object of the API: found by its name and by how it begins


@dataclass
class Entry:
    """One hit: where it leads, what it is called, and the prose that is searched."""

    title: str
    anchor: str
    kind: str
    where: list[str]
    words: list[str] = field(default_factory=list)
    anchors: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the prose as one line."""
        return re.sub(r" ([,.;:!?)])", r"\1", " ".join("".join(self.words).split()))


def letter(name: str) -> str:
    """Return the sign that a TeX command prints: σ for sigma, nothing for a font."""
    case = "CAPITAL" if name[0].isupper() else "SMALL"
    try:
        return unicodedata.lookup(f"GREEK {case} LETTER {name.upper()}")
    except KeyError:
        return SIGNS.get(name, name if name in KEPT else "")


def formula(tex: str) -> str:
    """Return a short formula as one would type it, and a long one as an ellipsis."""
    text = TEX_SPACE.sub(" ", FRACTION.sub(r" \1/\2", tex))
    text = TEX_WORD.sub(lambda found: letter(found[1]), text)
    text = " ".join(re.sub(r"[{}\\]", "", text).split())
    return text if len(text) <= LONGEST_FORMULA else "…"


def has_class(node: nodes.Node, names: set[str]) -> bool:
    """Tell whether a node has one of the classes."""
    return isinstance(node, nodes.Element) and not names.isdisjoint(node.get("classes", []))


def started(node: nodes.Element, parent: Entry) -> Entry | None:
    """Return the entry that a node starts, if it starts one below `parent`."""
    below = [*parent.where, parent.title] if parent.title else parent.where
    if node.get(ENTRY):
        return Entry(node[ENTRY], node[ANCHOR], "term", below[:1])
    if isinstance(node, nodes.section) and isinstance(node[0], nodes.title):
        return Entry(spoken(node[0]), node["ids"][0], parent.kind, below)
    if isinstance(node, addnodes.desc):
        signature = next(iter(node.findall(addnodes.desc_signature)), None)
        if signature is not None and signature.get("ids"):
            return Entry(signature["ids"][0], signature["ids"][0], "api", below[:1])
    if node["ids"] and re.fullmatch(r"claim-[a-e]\d+", node["ids"][0]):
        name = node["ids"][0].removeprefix("claim-").upper()
        return Entry(f"Claim {name}", node["ids"][0], "claim", below[:1])
    return None


def spoken(node: nodes.Node) -> str:
    """Return the text of one node, its formulas made readable."""
    entry = Entry("", "", "", [])
    list(collect(node, entry))
    return entry.text()


def collect(node: nodes.Node, entry: Entry) -> Iterator[Entry]:
    """Yield the entries that start inside `node`; everything else is `entry`'s own text."""
    for child in node.children:
        if isinstance(child, nodes.Text):
            entry.words.append(child.astext())
        elif isinstance(child, nodes.math):
            entry.words.append(formula(child.astext()))
        elif has_class(child, CELL):
            for caption in child.findall(nodes.caption):
                entry.words.append(f" {spoken(caption)} ")
        elif not isinstance(child, SILENT) and not has_class(child, {"gloss"}):
            yield from enter(child, entry)


def is_name(node: nodes.Element) -> bool:
    """Tell whether a node is the name of an entry, which is no part of its text."""
    of_section = isinstance(node, nodes.title) and isinstance(node.parent, nodes.section)
    return of_section or (isinstance(node, nodes.term) and bool(node.parent.get(ENTRY)))


def enter(child: nodes.Element, entry: Entry) -> Iterator[Entry]:
    """Yield what starts at `child` or inside it, and hand `entry` the text that is its own."""
    new = started(child, entry)
    if new is not None:
        yield new
    elif is_name(child):
        entry.anchors += child.get("ids", [])
        return
    inside = new or entry
    inside.anchors += child.get("ids", [])
    yield from collect(child, inside)
    if not isinstance(child, nodes.Inline):
        inside.words.append(" ")


def page_title(env: BuildEnvironment, docname: str) -> str:
    """Return a page's title, with the chapter's number where it has one."""
    number, title = numbering.chapter_number(docname), spoken(env.titles[docname])
    return f"{number}. {title}" if number else title


def remember(app: Sphinx, page: str, template: str, context: Any, doctree: Any) -> None:
    """Keep the entries of a page that is being written; pages that aren't keep theirs."""
    if doctree is None or app.builder.format != "html":
        return
    top = Entry("", "", "chapter" if page.startswith("chapters/") else "page", [])
    found = [entry for entry in collect(doctree, top) if entry.text() or entry.title]
    if found:
        found[0].title = page_title(app.env, page)
        for entry in found[1:]:
            entry.where = [found[0].title, *entry.where[1:]]
    kept = Path(app.doctreedir, f"{page}.sections.json")
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps([asdict(e) | {"text": e.text()} for e in found]), encoding="utf8")


def entries(app: Sphinx) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every page's entries in the order of the pages' names."""
    for page in sorted(app.env.found_docs):
        kept = Path(app.doctreedir, f"{page}.sections.json")
        if kept.exists():
            for entry in json.loads(kept.read_text(encoding="utf8")):
                yield page, entry


def row(app: Sphinx, page: str, entry: dict[str, Any], known: dict[Any, Any]) -> list[Any]:
    """Return an entry as the page's script reads it: address, title, where, text, names, kind."""
    first = not entry["where"]
    address = app.builder.get_target_uri(page) + ("" if first else "#" + entry["anchor"])
    also = [group for anchor in entry["anchors"] for group in known.get((page, anchor), [])]
    place, text = " › ".join(entry["where"]), entry["text"]
    if entry["kind"] == "api" and len(text) > BEGINNING:
        text = text[:BEGINNING].rpartition(" ")[0]
    return [address, entry["title"], place, text, also, entry["kind"]]


def write(app: Sphinx, error: Exception | None) -> None:
    """Write the index as a script, which a page opened from a disk can load too."""
    if error is not None or app.builder.name != "html":
        return
    known = names(app)
    rows = [row(app, page, entry, known) for page, entry in entries(app)]
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
    file = Path(app.outdir, "_static", "search", "sections.js")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"globalThis.GATES_SECTIONS = {text};\n", encoding="utf8")


def page_of_results(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Write search.html, which Sphinx leaves out where its own search is off."""
    yield "search", {}, "search.html"


def switch_off(app: Sphinx) -> None:
    """Switch off the index of whole pages that Sphinx would make."""
    if app.builder.name == "html":
        app.builder.search = False


def name_anchors(app: Sphinx, doctree: nodes.document) -> None:
    """Give each section of a chapter a label, so that other pages can name it: `06_lstm:adding`."""
    docname = app.env.docname
    if numbering.chapter_number(docname) is None:
        return
    labels = app.env.get_domain("std").anonlabels
    for section in doctree.findall(nodes.section):
        for anchor in section["ids"]:
            labels[f"{Path(docname).name}:{anchor}".lower()] = (docname, anchor)


def setup(app: Sphinx) -> None:
    """Collect while pages are written, and write at the end."""
    app.connect("builder-inited", switch_off)
    app.connect("doctree-read", name_anchors)
    app.connect("html-collect-pages", page_of_results)
    app.connect("html-page-context", remember)
    app.connect("build-finished", write)
