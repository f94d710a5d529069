"""What a chapter must be as a page: a head, short lines, few words, quoted claims, whole folds.

Imports PyYAML, tests.house.chapter_rules, tools.notebooks.
Must not import gatelib: a chapter is judged as it is stored.

How many screens a chapter fills is measured in a browser, by `tests/site/test_pages.py`.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import yaml
from nbformat import NotebookNode

from tests.house.chapter_rules import ROOT, images, without_code_and_math
from tools.notebooks import code_cells, kind, tags

COLUMNS = 88  # a code line as wide as the text's column at 1400 px
# Prose that stands open, without code, formulas, captions and folds: what is read in one sitting.
WORDS = 3500
WORDS_BEFORE_PICTURE = 120  # so that the picture is on the first screen
EXACT = 0.9
FOLDED = {"hide-input", "hide-cell", "remove-input"}
DRAWING = {"plt", "ax", "axes", "axis", "fig"}  # names by which a cell draws
EXPLORER = re.compile(r"^(`{3,}|:{3,})\{explorer\}.*?^\1 *$", re.M | re.S)
PICTURES = re.compile(r"\{(?:circuit|explorer|figure)\}")

FENCE = re.compile(r"\s*(`{3,}|~{3,}|:{3,})(.*)")
OPTION = re.compile(r"\s*:[\w-]+:")
IN_SHORT = r"^(:{3,}|`{3,})\{admonition\} In short\n:class: in-short\n"
SOLUTION = re.compile(r"^(`{3,})\{solution-start\}.*?\{solution-end\}\s*^\1 *$", re.M | re.S)
LABEL = re.compile(
    r"^\(([^)\s]+)\)=|^\s*:(?:label|name): *(\S+)|^\$\$ *\(([^)\s]+)\)|\{#([\w:.-]+)", re.M
)
ROLE_LINK = re.compile(r"\{(?:numref|ref|eq|prf:ref)\}`(?:[^`<]*<)?([^`<>]+)>?`")
HASH_LINK = re.compile(r"\]\(#([^)\s]+)\)")
CARD = re.compile(r"^(`{3,}|:{3,})\{claim\} +([A-E]\d+)\n+\1 *$", re.M)
CLAIM = re.compile(r"(QUOTED )?\b(?:([A-E]\d{1,2})|[Aa]rticle ([A-E]))\b")
MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
DIARY = re.compile(
    rf"\b\d{{1,2}} {MONTH}\b|\b{MONTH} \d{{1,2}}\b|\b\d{{4}}-\d\d-\d\d\b"
    r"|\b[Tt]his was written\b|\b[Yy]esterday\b|\blast (?:night|week|month)\b|\b[Pp]ilots?\b"
)
BY = re.compile(
    r"\b(?:derivatives?|slopes?|Jacobians?|gradients?(?= of))"
    r"(?: of (?:(?!\w+ed\b|by\b|is\b|are\b|given\b|found\b)[\w’'-]+ ){1,6}| )"
    r"by (?:M\b|its?\b|the\b|an?\b|each\b|every\b|what\b|values?\b)"
)

Rule = Callable[["Chapter"], Iterator[str]]
PAGE_RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """Register a rule: it yields one complaint for each place that breaks it."""
    PAGE_RULES[function.__name__] = function
    return function


def owners() -> dict[str, list[str]]:
    """Each claim of the ledger with the chapters that own it."""
    text = (ROOT / "book" / "claims.yml").read_text(encoding="utf-8")
    claims = yaml.load(text, Loader=yaml.BaseLoader)["claims"]
    return {claim["id"]: claim["chapters"] for claim in claims}


@dataclass(frozen=True)
class Chapter:
    """A chapter by its file's name, and the ledger's claims with their owners."""

    stem: str
    notebook: NotebookNode
    claims: dict[str, list[str]]

    @cached_property
    def markdown(self) -> list[tuple[int, str]]:
        """The number and the text of each Markdown cell."""
        cells = enumerate(self.notebook.cells)
        return [(n, cell.source) for n, cell in cells if cell.cell_type == "markdown"]

    @cached_property
    def prose(self) -> str:
        return "\n\n".join(text for _, text in self.markdown)

    @cached_property
    def open_prose(self) -> str:
        """What a reader sees without opening a fold; formulas stand as M, code is left out."""
        return plain(without_folds(self.prose))

    @cached_property
    def counted_prose(self) -> str:
        """The same without explorers, of which a caption would be left: no caption is counted."""
        return plain(EXPLORER.sub("", without_folds(self.prose)))

    @cached_property
    def labels(self) -> set[str]:
        """What a link can name in this chapter, in lower case as Sphinx keeps it."""
        found = {name for match in LABEL.findall(self.prose) for name in match if name}
        for cell in code_cells(self.notebook):
            found.add(cell.metadata.get("mystnb", {}).get("figure", {}).get("name", ""))
            found |= {f"{self.stem}:{t}" for t in tags(cell) if t.startswith("decides-")}
        return {name.lower() for name in found if name}

    def first(self, test: Callable[[NotebookNode], bool]) -> tuple[int, int]:
        """Where the first cell stands that passes; behind everything if none does."""
        cells = self.notebook.cells
        return next(((n, 0) for n, cell in enumerate(cells) if test(cell)), (len(cells), 0))

    def says(self, pattern: str) -> tuple[int, int]:
        """Where the prose first matches: the cell and the place in it."""
        found = ((n, re.search(pattern, text, re.M)) for n, text in self.markdown)
        place = next(((n, match.start()) for n, match in found if match), None)
        return place or (len(self.notebook.cells), 0)


def plain(text: str) -> str:
    """Markdown as words: formulas stand as M, code, roles and options are left out."""
    text = re.sub(r"\$\$.*?\$\$(?: *\([\w-]+\))?", "", text, flags=re.S)
    text = without_code_and_math(re.sub(r"\$[^$\n]+\$", "M", text))
    return re.sub(r"\{[\w:-]+\}|^:[\w-]+:.*$", "", text, flags=re.M)


def without_folds(text: str) -> str:
    """Markdown without what is shut at first: dropdowns, and solutions that span cells."""
    kept: list[str] = []
    shut: str | None = None
    lines = SOLUTION.sub("", text).splitlines()
    for number, line in enumerate(lines):
        found = FENCE.match(line)
        if shut is None and found and found[2].strip():
            options = list(itertools.takewhile(OPTION.match, lines[number + 1 :]))
            shut = found[1] if any("dropdown" in option.split() for option in options) else None
        if shut is None:
            kept.append(line)
        elif found and not found[2].strip() and found[1] == shut:
            shut = None
    return "\n".join(kept)


def syntax(cell: NotebookNode) -> list[ast.AST]:
    """Everything in a code cell's syntax tree."""
    return list(ast.walk(ast.parse(cell.source)))


def imports(cell: NotebookNode) -> bool:
    """Tell whether a cell is code that imports."""
    kinds = (ast.Import, ast.ImportFrom)
    return cell.cell_type == "code" and any(isinstance(node, kinds) for node in syntax(cell))


def draws(cell: NotebookNode) -> bool:
    """Tell whether a cell draws line by line, with matplotlib's own calls."""
    attributes = (node for node in syntax(cell) if isinstance(node, ast.Attribute))
    used = {(node.value.id, node.attr) for node in attributes if isinstance(node.value, ast.Name)}
    return any(name in DRAWING and attribute != "show" for name, attribute in used)


def is_picture(cell: NotebookNode) -> bool:
    """Tell whether a cell shows a picture."""
    return bool(images(cell) if cell.cell_type == "code" else PICTURES.search(cell.source))


def in_solutions(notebook: NotebookNode) -> set[str]:
    """The ids of the code cells that stand in a solution."""
    found, inside = set(), False
    for cell in notebook.cells:
        marks = re.findall(r"\{solution-(start|end)\}", cell.source)
        inside = marks[-1] == "start" if marks else inside
        if inside:
            found.add(cell.id)
    return found


# --- the head ---------------------------------------------------------------------------------


@rule
def head_is_in_order(chapter: Chapter) -> Iterator[str]:
    places = {
        "a title with a question in the first cell": chapter.says(r"\A# \S.*\n+(?:.+\n)*?.*\?"),
        "the imports": chapter.first(imports),
        "a picture": chapter.first(is_picture),
        "In short": chapter.says(IN_SHORT),
        "After this chapter you can": chapter.says("After this chapter you can"),
        "the first part": chapter.says("^## "),
    }
    order = list(places.values())
    if places["a title with a question in the first cell"] != (0, 0):
        yield "the first cell is not a title followed by a question"
    if order != sorted(set(order)):
        yield f"the head has {sorted(places, key=places.__getitem__)}, expected {list(places)}"


@rule
def picture_is_on_the_first_screen(chapter: Chapter) -> Iterator[str]:
    picture, _ = chapter.first(is_picture)
    before = " ".join(text for number, text in chapter.markdown if number < picture)
    if len(before.split()) > WORDS_BEFORE_PICTURE:
        words = len(before.split())
        yield f"{words} words stand before the picture, at most {WORDS_BEFORE_PICTURE} may"


@rule
def in_short_is_linked(chapter: Chapter) -> Iterator[str]:
    box = re.search(IN_SHORT + r"(.*?)^\1 *$", chapter.prose, re.M | re.S)
    items = re.split(r"^- ", box[2], flags=re.M)[1:] if box else []
    if not 3 <= len(items) <= 6:
        yield f"In short has {len(items)} items, three to six are expected"
    for item in items:
        links = {name.lower() for name in ROLE_LINK.findall(item) + HASH_LINK.findall(item)}
        if not links & chapter.labels:
            yield f"no link into this chapter: {item.strip()!r} (found {sorted(links)})"


# --- its length -------------------------------------------------------------------------------


@rule
def code_lines_fit(chapter: Chapter) -> Iterator[str]:
    for cell in code_cells(chapter.notebook):
        for line in cell.source.splitlines():
            if len(line) > COLUMNS:
                yield f"cell {cell.id}, {len(line)} columns, at most {COLUMNS}: {line.strip()}"


@rule
def prose_is_short(chapter: Chapter) -> Iterator[str]:
    words = len(re.findall(r"\b[^\W\d_][\w’'-]*", chapter.counted_prose))
    if words > WORDS:
        yield f"{words} words of prose stand open, at most {WORDS} may"


@rule
def imports_and_drawing_are_folded(chapter: Chapter) -> Iterator[str]:
    solutions = in_solutions(chapter.notebook)
    for cell in code_cells(chapter.notebook):
        if cell.id in solutions or FOLDED & set(tags(cell)):
            continue
        if imports(cell) or draws(cell):
            what = "imports" if imports(cell) else "draws"
            yield f"cell {cell.id} {what} and is not folded: tag it hide-input"


@rule
def proofs_fold_as_boxes(chapter: Chapter) -> Iterator[str]:
    """A proof has no title to fold under: the script ends there, and later folds stay open."""
    lines = chapter.prose.splitlines()
    for number, line in enumerate(lines):
        options = itertools.takewhile(OPTION.match, lines[number + 1 :])
        if "{prf:proof}" in line and any("dropdown" in option.split() for option in options):
            yield f"{line.strip()} can't be a dropdown: write {{admonition}} Proof"


@rule
def cells_are_exact(chapter: Chapter) -> Iterator[str]:
    kinds = [kind(cell) for cell in code_cells(chapter.notebook)]
    if kinds.count("exact") < EXACT * len(kinds):
        yield f"{kinds.count('exact')} of {len(kinds)} code cells are exact, {EXACT:.0%} must be"


# --- its words --------------------------------------------------------------------------------


@rule
def first_mention_of_a_claim_quotes_it(chapter: Chapter) -> Iterator[str]:
    text = CARD.sub(r"QUOTED \2", chapter.prose)
    text = re.sub(r"\{claim\}`(?:[Cc]laim )?([A-E]\d+)`", r"QUOTED \1", text)
    text = re.sub(r"\{article\}`(?:Article )?([A-E])`", r"QUOTED article \1", text)
    known: set[str] = {""}
    for quoted, claim, article in CLAIM.findall(without_code_and_math(text)):
        name = claim if claim in chapter.claims else article
        if name not in known and not quoted:
            role = "claim" if claim else "article"
            yield f"{role} {name} is first met without its words: write {{{role}}}`{name}`"
        known.add(name)


@rule
def owned_claims_have_cards(chapter: Chapter) -> Iterator[str]:
    cards = set(re.findall(r"^(?:`{3,}|:{3,})\{claim\} +(\S+)", chapter.prose, re.M))
    owned = {name for name, chapters in chapter.claims.items() if chapter.stem in chapters}
    for name in sorted(owned - cards):
        yield f"claim {name} belongs to this chapter and has no card"


@rule
def nothing_is_a_diary(chapter: Chapter) -> Iterator[str]:
    for found in DIARY.finditer(chapter.open_prose):
        yield f"{found[0]!r}: dates and pilots go into a fold"


@rule
def derivatives_are_with_respect_to(chapter: Chapter) -> Iterator[str]:
    for found in BY.finditer(" ".join(chapter.open_prose.split())):
        yield f"{found[0]!r}: say 'with respect to'"
