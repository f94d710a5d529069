"""The chapters against their rules, and each rule against a notebook that breaks it.

Imports nbformat, tests.house.chapter_rules, tests.house.page_rules, tools.notebooks.
Must not import gatelib: a chapter is judged as it is stored.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from tests.house.chapter_rules import CHAPTERS, ROOT, RULES, without_fenced_code
from tests.house.page_rules import PAGE_RULES, WORDS, Chapter, owners, without_folds
from tests.house.sample import LABELS, code, good_notebook, good_page, picture
from tools import notebooks
from tools.notebooks import code_cells

# --- the chapters against the rules -----------------------------------------------------------


def test_there_are_chapters_and_the_contents_list_them():
    contents = (ROOT / "_toc.yml").read_text()
    assert CHAPTERS
    for path in CHAPTERS:
        assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)
        assert f"chapters/{path.stem}" in contents


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", RULES)
def test_chapter_keeps_the_rule(path, name):
    complaints = list(RULES[name](nbformat.read(path, as_version=4)))
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("name", PAGE_RULES)
def test_chapters_keep_the_rule_of_pages(name):
    complaints = []
    for path in CHAPTERS:
        notebook = nbformat.read(path, as_version=4)
        complaints += PAGE_RULES[name](Chapter(path.stem, notebook, owners()))
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_is_stored_as_the_runner_would_store_it(path, tmp_path):
    copied = tmp_path / path.name
    notebooks.write(notebooks.clean(nbformat.read(path, as_version=4)), copied)
    assert copied.read_text(encoding="utf-8") == path.read_text(encoding="utf-8")


def test_figure_names_differ_between_chapters():
    seen: dict[str, str] = {}
    for path in CHAPTERS:
        for cell in code_cells(nbformat.read(path, as_version=4)):
            name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
            assert name is None or name not in seen, f"{name} in {seen[name]} and {path.stem}"
            if name:
                seen[name] = path.stem


# --- the rules against bad notebooks ----------------------------------------------------------

FENCES = """before
```{note}
in a directive
~~~
code <b>
~~~
```
```python
code
```
```{code-block} python
code
```
````{solution} x
```
code
```
still prose
````
after"""


def test_code_blocks_are_told_from_directives():
    kept = without_fenced_code(FENCES).splitlines()
    assert kept == ["before", "in a directive", "still prose", "after"]


def say(text: str) -> Callable[[NotebookNode], None]:
    """Add printed text to the first code cell."""
    return lambda nb: code(0)(nb).outputs.append(new_output("stream", name="stdout", text=text))


def write_prose(text: str) -> Callable[[NotebookNode], None]:
    return lambda nb: nb.cells.insert(1, new_markdown_cell(text))


def add_ignored_cells(notebook: NotebookNode) -> None:
    """Escape comparison with two more cells."""
    for number in (5, 6):
        cell = new_code_cell("assert True", execution_count=number)
        cell.metadata["tags"] = ["timed", "nbval-ignore-output"]
        notebook.cells.append(cell)


def drop(text: str) -> Callable[[NotebookNode], None]:
    """Remove a text wherever it stands in Markdown."""

    def spoil(notebook: NotebookNode) -> None:
        for cell in notebook.cells:
            cell.source = cell.source.replace(text, "")

    return spoil


def swap_parts(notebook: NotebookNode) -> None:
    notebook.cells[1], notebook.cells[2] = notebook.cells[2], notebook.cells[1]


SPOILS: list[tuple[str, Callable[[NotebookNode], object]]] = [
    ("code_cells_ran_in_order", lambda nb: code(1)(nb).update(execution_count=None)),
    ("code_cells_ran_in_order", lambda nb: code(1)(nb).update(execution_count=7)),
    ("code_cells_ran_in_order", lambda nb: code(0)(nb).outputs[0].update(execution_count=2)),
    ("outputs_belong_to_the_code", lambda nb: code(2)(nb).update(source="assert 1")),
    ("outputs_belong_to_the_code", lambda nb: nb.metadata.pop("ran")),
    ("tags_are_known", lambda nb: code(0)(nb).metadata.update(tags=["nbval-skip"])),
    ("tags_are_known", lambda nb: code(0)(nb).metadata.update(tags=["remove-cell"])),
    ("tags_are_known", lambda nb: code(0)(nb).metadata.update(tags=["decides-X1"])),
    ("kinds_are_consistent", lambda nb: code(0)(nb).metadata.update(tags=["measured"])),
    ("kinds_are_consistent", lambda nb: code(0)(nb).metadata.update(tags=["nbval-ignore-output"])),
    ("kinds_are_consistent", lambda nb: tags_of(nb, 2).append("timed")),
    ("ignored_cells_assert", lambda nb: code(2)(nb).update(source="train()  # assert")),
    ("few_cells_escape_comparison", add_ignored_cells),
    ("nothing_fails_or_warns", say("x.py:1: UserWarning: no")),
    ("nothing_fails_or_warns", lambda nb: code(3)(nb).outputs[0].update(name="stderr")),
    ("nothing_fails_or_warns", lambda nb: code(0)(nb).outputs.append(new_output("error"))),
    ("no_machine_path", say("saved in " + "/ho" + "me/someone/x.npy")),
    ("no_machine_path", write_prose("Look in " + "/tm" + "p/x.")),
    ("formulas_are_whole", write_prose("by Adam's $\narepsilon$")),
    ("formulas_are_whole", write_prose("$$\na = \frac{1}{2}\n$$")),
    ("no_progress_bar", say("100%|##########| 10/10")),
    ("no_progress_bar", say("epoch 3, 14.2it/s")),
    ("no_progress_bar", say("epoch 1\repoch 2")),
    ("pictures_have_the_right_format", lambda nb: code(0)(nb).outputs.append(picture("image/png"))),
    (
        "pictures_have_the_right_format",
        lambda nb: code(2)(nb).outputs.append(picture("image/svg+xml")),
    ),
    ("pictures_are_labelled", lambda nb: code(1)(nb).metadata["mystnb"].pop("image")),
    ("pictures_are_labelled", lambda nb: code(1)(nb).metadata["mystnb"]["figure"].pop("caption")),
    ("pictures_are_labelled", lambda nb: code(1)(nb).metadata["mystnb"]["figure"].pop("name")),
    ("pictures_are_labelled", lambda nb: code(1)(nb).outputs.append(picture("image/svg+xml"))),
    ("figure_names_are_unique", lambda nb: code(0)(nb).metadata.update(mystnb=LABELS)),
    ("cells_are_short", lambda nb: code(0)(nb).update(source="1\n" * 31)),
    ("cells_are_short", lambda nb: [c.update(source="1\n" * 10) for c in code_cells(nb)]),
    ("tables_come_from_the_library", lambda nb: code(0)(nb).update(source='"|:--|--:|"')),
    ("metadata_is_clean", lambda nb: nb.metadata.update(widgets={})),
    ("metadata_is_clean", lambda nb: nb.metadata["language_info"].update(version="3.11.7")),
    ("metadata_is_clean", lambda nb: code(0)(nb).metadata.update(execution={})),
    ("ids_are_unique", lambda nb: nb.cells[1].update(id=nb.cells[0].id)),
    ("anatomy_is_complete", drop("## Look inside")),
    ("anatomy_is_complete", drop("# Title")),
    ("anatomy_is_complete", swap_parts),
    ("exercises_have_solutions", drop("{solution} ex-b")),
    ("exercises_have_solutions", drop(":label: ex-b")),
    ("exercises_have_solutions", drop("{exercise-start}")),
    ("solutions_are_executed", write_prose("```python\nprint(1)\n```")),
    ("solutions_are_executed", drop("{solution-start}")),
    ("markup_is_portable", write_prose('<div class="x">hello</div>')),
    ("markup_is_portable", write_prose("a<br/>b")),
    ("markup_is_portable", write_prose("<!-- later -->")),
    ("markup_is_portable", write_prose("````{tab-set-code}\n````")),
]


def tags_of(notebook: NotebookNode, number: int) -> list[str]:
    return code_cells(notebook)[number].metadata["tags"]


def test_a_good_notebook_keeps_every_rule():
    notebook = good_notebook()
    complaints = {name: list(check(notebook)) for name, check in RULES.items()}
    assert not any(complaints.values()), complaints


@pytest.mark.parametrize(("name", "spoil"), SPOILS, ids=[name for name, _ in SPOILS])
def test_rule_finds_the_fault(name, spoil):
    notebook = good_notebook()
    spoil(notebook)
    assert list(RULES[name](notebook))


def test_every_rule_is_tried_against_a_fault():
    assert {name for name, _ in SPOILS} == set(RULES)


# --- the rules of pages against bad pages -----------------------------------------------------

OWNERS = {"A8": ["06_lstm"], "A9": ["14_moe"], "B7": ["05_rnn"]}
FOLDS = """open
:::{note}
:class: dropdown
shut
```python
shut
```
shut
:::
```{note}
open
```
```{solution-start} ex-a
:class: dropdown
```
shut
```{solution-end}
```
open"""


def test_what_is_folded_is_told_from_what_stands_open():
    kept = without_folds(FOLDS).splitlines()
    assert [line for line in kept if line in ("open", "shut")] == ["open", "open", "open"]


def change(old: str, new: str) -> Callable[[NotebookNode], None]:
    """Replace a text, which must be there, wherever it stands in Markdown."""

    def spoil(notebook: NotebookNode) -> None:
        assert any(old in cell.source for cell in notebook.cells)
        for cell in notebook.cells:
            cell.source = cell.source.replace(old, new)

    return spoil


def move(source: int, target: int) -> Callable[[NotebookNode], None]:
    """Put a cell in another place."""
    return lambda nb: nb.cells.insert(target, nb.cells.pop(source))


def say_openly(text: str) -> Callable[[NotebookNode], None]:
    """Add prose to the end of the head."""
    return lambda nb: nb.cells.insert(4, new_markdown_cell(text))


PAGE_SPOILS: list[tuple[str, Callable[[NotebookNode], object]]] = [
    ("head_is_in_order", change("it do?", "it do.")),
    ("head_is_in_order", move(1, 2)),
    ("head_is_in_order", move(2, 4)),
    ("head_is_in_order", move(3, 5)),
    ("head_is_in_order", change("After this chapter you can", "You can")),
    ("head_is_in_order", lambda nb: nb.cells.pop(2)),
    ("head_is_in_order", drop(":class: in-short\n")),
    (
        "picture_is_on_the_first_screen",
        lambda nb: nb.cells.insert(1, new_markdown_cell("w " * 120)),
    ),
    ("in_short_is_linked", drop("- {claim}`A8` holds ({ref}`the cell <06_lstm:decides-A8>`).\n")),
    ("in_short_is_linked", change("- Start", "- One\n- Start")),
    ("in_short_is_linked", change("#sec-a", "#sec-elsewhere")),
    ("in_short_is_linked", change("{numref}`fig-a`", "the figure")),
    ("in_short_is_linked", change("06_lstm:", "05_rnn:")),
    (
        "in_short_is_linked",
        change("- Open", "".join("- A [x](#sec-a)\n" for _ in range(4)) + "- B"),
    ),
    (
        "proofs_fold_as_boxes",
        say_openly("```{prf:proof}\n:class: dropdown\nAs $0 < g < 1$.\n```"),
    ),
    ("code_lines_fit", lambda nb: code(0)(nb).update(source="x = " + "1" * 85)),
    ("prose_is_short", say_openly("word " * WORDS)),
    ("imports_and_drawing_are_folded", lambda nb: code(0)(nb).metadata.pop("tags")),
    ("imports_and_drawing_are_folded", lambda nb: code(4)(nb).update(source="plt.plot(x)")),
    ("imports_and_drawing_are_folded", lambda nb: code(4)(nb).update(source="ax.plot(x)")),
    ("cells_are_exact", lambda nb: code(4)(nb).metadata.update(tags=["timed"])),
    ("first_mention_of_a_claim_quotes_it", say_openly("As claim B7 says.")),
    ("first_mention_of_a_claim_quotes_it", say_openly("As article B says.")),
    ("owned_claims_have_cards", drop("```{claim} A8\n```")),
    ("nothing_is_a_diary", say_openly("On 21 November the grid grew.")),
    ("nothing_is_a_diary", say_openly("Since 2026-11-21 it is so.")),
    ("nothing_is_a_diary", say_openly("In a pilot it was so.")),
    ("derivatives_are_with_respect_to", say_openly("The derivative of the loss by $v$ is")),
    ("derivatives_are_with_respect_to", say_openly("the derivative of $c_T$\nby $c_0$")),
    ("derivatives_are_with_respect_to", say_openly("its slope by the gate's weight")),
]
KEEPS = [
    "The gradient is multiplied by $f_t$, and the slopes of the steps, by the chain rule, too.",
    "The slope by which a preactivation moves the cell; the gradient by length of path.",
    "As {claim}`B7` says, and claim B7 again; on an H100, as {article}`B` and article B say.",
    "```{explorer}\n:view: paths\n:name: fig-b\n\n" + "word " * WORDS + "\n```",
    "```{note}\n:class: dropdown\nA pilot on 21 November 2026: claim A100.\n```",
    "Gates may be two; 21 gates do.",
    "```{prf:proof}\nIt stands open.\n```\n```{admonition} Proof\n:class: dropdown\nShut.\n```",
]


def page_complaints(notebook: NotebookNode) -> dict[str, list[str]]:
    """What each rule of pages says of a page of chapter 6, which owns one claim."""
    chapter = Chapter("06_lstm", notebook, OWNERS)
    return {name: list(check(chapter)) for name, check in PAGE_RULES.items()}


@pytest.mark.parametrize("text", ["", *KEEPS])
def test_a_good_page_keeps_every_rule(text):
    notebook = good_page()
    if text:
        say_openly(text)(notebook)
    complaints = page_complaints(notebook)
    complaints |= {name: list(check(notebook)) for name, check in RULES.items()}
    assert not any(complaints.values()), complaints


@pytest.mark.parametrize(("name", "spoil"), PAGE_SPOILS, ids=[name for name, _ in PAGE_SPOILS])
def test_rule_of_pages_finds_the_fault(name, spoil):
    notebook = good_page()
    spoil(notebook)
    assert page_complaints(notebook)[name]


def test_every_rule_of_pages_is_tried_against_a_fault():
    assert {name for name, _ in PAGE_SPOILS} == set(PAGE_RULES)


def test_the_rules_know_the_owners_of_the_books_claims():
    assert owners()["A9"] == ["06_lstm", "14_moe"]
