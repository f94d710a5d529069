"""The chapters against their rules, and each rule against a notebook that breaks it.

Imports nbformat, PyYAML, tests.house.chapter_rules, tools.notebooks.
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
from tests.house.sample import LABELS, code, good_notebook, picture
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
