"""The runner of chapters: a second run changes no byte, and a failure changes nothing.

Imports nbformat, PyYAML, tools.notebooks.
Must not import gatelib: a chapter is judged as it is stored.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tests.house.chapter_rules import ROOT, RULES
from tests.house.sample import code, good_notebook
from tools import notebooks

# --- the runner -------------------------------------------------------------------------------


def stored(folder: Path, *cells: NotebookNode) -> Path:
    path = folder / "01_small.ipynb"
    notebooks.write(notebooks.clean(new_notebook(cells=list(cells))), path)
    return path


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small chapter with an exact and a timed cell, run once."""
    timed = new_code_cell("import time\nassert time.time() > 0\nprint(time.perf_counter())")
    timed.metadata["tags"] = ["timed", "nbval-ignore-output"]
    exact = new_code_cell("print({'b', 'a', 'c'}, hash('gate'))")
    path = stored(tmp_path_factory.mktemp("chapters"), new_markdown_cell("# T"), exact, timed)
    notebooks.execute(path)
    return path


@pytest.fixture
def chapter(executed: Path, tmp_path: Path) -> Path:
    path = tmp_path / executed.name
    path.write_bytes(executed.read_bytes())
    return path


def test_running_a_chapter_again_changes_no_byte(chapter):
    before = chapter.read_bytes()
    cost = notebooks.execute(chapter)
    assert chapter.read_bytes() == before
    assert cost["seconds"] > 0 and cost["megabytes"] > 10


def test_timed_cells_are_measured_anew_when_asked(chapter):
    before = nbformat.read(chapter, as_version=4)
    notebooks.execute(chapter, timed=True)
    after = nbformat.read(chapter, as_version=4)
    assert code(0)(after).outputs == code(0)(before).outputs
    assert code(1)(after).outputs != code(1)(before).outputs


def test_timed_outputs_are_kept_only_while_the_code_is_the_same():
    before = good_notebook()
    code(2)(before).metadata["tags"] = ["timed", "nbval-ignore-output"]
    code(2)(before).outputs = [new_output("stream", text="1.4 times\n")]
    after = copy.deepcopy(before)
    code(2)(after).outputs = []
    notebooks.keep_timed_outputs(before, after)
    assert code(2)(after).outputs
    code(2)(after).outputs = []
    code(0)(after).source = "1 + 2"
    notebooks.keep_timed_outputs(before, after)
    assert code(2)(after).outputs == []


def test_a_chapter_that_fails_is_left_as_it_was(tmp_path):
    path = stored(tmp_path, new_code_cell("1 / 0"))
    before = path.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        notebooks.execute(path)
    assert path.read_bytes() == before


def test_text_twins_agree_at_once_and_carry_figures(tmp_path):
    path = tmp_path / "01_small.ipynb"
    notebooks.write(good_notebook(), path)
    before = path.read_bytes()
    assert notebooks.pair(path) == "text written"
    assert notebooks.pair(path) == "in agreement"
    assert path.read_bytes() == before
    assert "caption: A line." in path.with_suffix(".md").read_text()


def test_a_line_edited_in_the_text_is_a_line_changed_in_the_chapter(tmp_path):
    path = tmp_path / "01_small.ipynb"
    notebooks.write(good_notebook(), path)
    notebooks.pair(path)
    before, twin = path.read_text().splitlines(), path.with_suffix(".md")
    twin.write_text(twin.read_text().replace("A paper.", "Two papers."))
    assert notebooks.pair(path).startswith("notebook updated")
    after = path.read_text().splitlines()
    assert len(before) == len(after)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_edited_code_loses_its_output_and_keeps_its_id(tmp_path):
    path = tmp_path / "01_small.ipynb"
    notebooks.write(good_notebook(), path)
    notebooks.pair(path)
    twin, before = path.with_suffix(".md"), nbformat.read(path, as_version=4)
    twin.write_text(twin.read_text().replace("1 + 1", "1 + 2"))
    notebooks.pair(path)
    after = nbformat.read(path, as_version=4)
    assert [c.id for c in after.cells] == [c.id for c in before.cells]
    assert code(0)(after).outputs == [] and code(1)(after).outputs
    assert list(RULES["outputs_belong_to_the_code"](after))


def test_edits_on_both_sides_are_refused(tmp_path):
    path = tmp_path / "01_small.ipynb"
    notebooks.write(good_notebook(), path)
    notebooks.pair(path)
    twin = path.with_suffix(".md")
    twin.write_text(twin.read_text().replace("A paper.", "Two papers."))
    path.write_text(path.read_text().replace("A paper.", "No paper."))
    with pytest.raises(notebooks.EditedTwiceError, match="both edited"):
        notebooks.pair(path)
    assert notebooks.pair_all([path]) == 1


FIGURE = "from IPython.display import SVG\nSVG('<svg>1</svg>')"


@pytest.fixture
def twin(tmp_path):
    """The text twin of a chapter that holds a figure and was run."""
    path = stored(tmp_path, new_code_cell("value = 1"), new_code_cell(FIGURE))
    notebooks.execute(path)
    notebooks.pair(path)
    return path.with_suffix(".md")


def test_an_edit_in_the_text_reaches_the_chapter_when_every_cell_has_passed(twin):
    path = twin.with_suffix(".ipynb")
    twin.write_text(twin.read_text().replace("<svg>1", "<svg>2"))
    notebooks.execute(path)
    after = nbformat.read(path, as_version=4)
    assert "<svg>2" in after.cells[1].outputs[0].data["image/svg+xml"]
    assert notebooks.pair(path) == "in agreement"


@pytest.mark.parametrize(
    ("old", "new"), [("value = 1", "1 / 0"), ("<svg>1</svg>')", "<svg>2</svg>')\n1 / 0")]
)
def test_a_failing_edit_in_the_text_stays_there_and_the_chapter_keeps_its_figure(twin, old, new):
    path = twin.with_suffix(".ipynb")
    before, edited = path.read_bytes(), twin.read_text().replace(old, new)
    twin.write_text(edited)
    assert new in edited and notebooks.execute_all([path], timed=False) == 1
    assert path.read_bytes() == before and twin.read_text() == edited
    files = sorted(file.name for file in path.parent.iterdir())
    assert files == [path.name, twin.name]


def test_a_chapter_that_was_edited_twice_is_not_run(twin):
    path = twin.with_suffix(".ipynb")
    twin.write_text(twin.read_text().replace("value = 1", "value = 2"))
    path.write_text(path.read_text().replace("value = 1", "value = 3"))
    before = path.read_bytes()
    with pytest.raises(notebooks.EditedTwiceError, match="delete 01_small"):
        notebooks.execute(path)
    assert path.read_bytes() == before


def test_sanitisers_hide_names_and_keep_numbers():
    rules = (ROOT / "tests" / "nbval.cfg").read_text()
    pairs = re.findall(r"^regex: (.*)\nreplace: (.*)$", rules, flags=re.M)

    def sanitise(text: str) -> str:
        for pattern, replacement in pairs:
            text = re.sub(pattern, replacement, text)
        return text

    assert sanitise("<f at 0x7f3a2b1c>") == sanitise("<f at 0x7fffffff>")
    assert sanitise("[-0. 0.]") == sanitise("[0. 0.]") == "[0. 0.]"
    assert sanitise("-0.00") == "0.00"
    for kept in ("-0.01", "1-0.5", "-0.0e-3 1e-0", "-10.0", "-0.5"):
        assert sanitise(kept) == kept


def test_contents_are_yaml():
    assert yaml.safe_load((ROOT / "_toc.yml").read_text())["root"]
