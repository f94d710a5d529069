"""What every chapter must be: executed, clean, compared, complete; and that these rules bite.

Imports nbformat, PyYAML and tools.notebooks.
Must not import gatelib: a chapter is judged as it is stored.
"""

from __future__ import annotations

import ast
import copy
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import notebooks
from tools.notebooks import code_cells, kind, tags

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
PARTS = (
    "Derive",
    "Reference",
    "Torch",
    "Experiments",
    "Look inside",
    "Claims",
    "What breaks",
    "Exercises",
    "Further reading",
)
ALLOWED_TAGS = {
    "hide-cell",
    "hide-input",
    "hide-output",
    "measured",
    "nbval-ignore-output",
    "remove-input",
    "timed",
}
DECIDES = re.compile(r"decides-[A-E]\d+")  # the cell that a claim's verdict links to
IMAGES = ("image/png", "image/jpeg", "image/svg+xml")
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|Users|mnt|opt|private)/|[A-Z]:\\\\")
PROGRESS = re.compile(r"\r|\d%\||\d(?:it|s)/(?:s|it)\b")
WARNING = re.compile(r"\b\w*Warning\b:")
HTML = re.compile(r"<(?:!--|/?[a-zA-Z][a-zA-Z0-9-]*(?:\s[^<>]*)?/?>)")
AUTOLINK = re.compile(r"<(?:https?://|mailto:)[^<>\s]+>")

Rule = Callable[[NotebookNode], Iterator[str]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """Register a rule: it yields one complaint for each place that breaks it."""
    RULES[function.__name__] = function
    return function


# --- reading a chapter ------------------------------------------------------------------------


def ignored(cell: NotebookNode) -> bool:
    return "nbval-ignore-output" in tags(cell)


def text_of(cell: NotebookNode) -> str:
    """Everything that a code cell's outputs say in words."""
    pieces = []
    for output in cell.outputs:
        pieces.append(output.get("text", ""))
        pieces += [v for k, v in output.get("data", {}).items() if k.startswith("text/")]
    return "\n".join(pieces)


def images(cell: NotebookNode) -> list[str]:
    """The media types of a cell's pictures; one picture may come in more than one."""
    return [m for output in cell.outputs for m in IMAGES if m in output.get("data", {})]


def prose(notebook: NotebookNode) -> str:
    """The Markdown of a chapter."""
    return "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


def without_fenced_code(text: str) -> str:
    """The lines outside code blocks; what stands in a directive is prose and stays."""
    kept: list[str] = []
    open_fences: list[tuple[str, bool]] = []
    for line in text.splitlines():
        inside_code = bool(open_fences) and open_fences[-1][1]
        found = re.match(r"\s*(`{3,}|~{3,}|:{3,})(.*)", line)
        fence, info = (found[1], found[2].strip()) if found else ("", "")
        if fence and open_fences and not info and fence.startswith(open_fences[-1][0]):
            open_fences.pop()
        elif fence and not inside_code:
            is_code = fence[0] != ":" and not re.match(r"\{(?!code|math)", info)
            open_fences.append((fence, is_code))
        elif not inside_code:
            kept.append(line)
    return "\n".join(kept)


def without_code_and_math(text: str) -> str:
    text = without_fenced_code(text)
    text = re.sub(r"(`+)(?!`)(?:(?!\1).)+?\1(?!`)", "", text)
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.S)
    return re.sub(r"\$[^$\n]+\$", "", text)


def headings(notebook: NotebookNode) -> list[str]:
    """The second-level headings, in order."""
    return re.findall(r"^## +(.+?)\s*$", without_code_and_math(prose(notebook)), flags=re.M)


# --- the rules --------------------------------------------------------------------------------


@rule
def code_cells_ran_in_order(notebook: NotebookNode) -> Iterator[str]:
    for number, cell in enumerate(code_cells(notebook), start=1):
        counts = [o.execution_count for o in cell.outputs if "execution_count" in o]
        if {cell.execution_count, *counts} != {number}:
            yield f"cell {cell.id} ran as {cell.execution_count}, expected {number}"


@rule
def outputs_belong_to_the_code(notebook: NotebookNode) -> Iterator[str]:
    if notebook.metadata.get("ran") != notebooks.code_hash(notebook):
        yield "code has changed since the outputs were stored: make execute"


@rule
def tags_are_known(notebook: NotebookNode) -> Iterator[str]:
    for cell in notebook.cells:
        unknown = {t for t in tags(cell) if t not in ALLOWED_TAGS and not DECIDES.fullmatch(t)}
        if unknown:
            yield f"cell {cell.id} has tags {sorted(unknown)}, allowed are {sorted(ALLOWED_TAGS)}"


@rule
def kinds_are_consistent(notebook: NotebookNode) -> Iterator[str]:
    for cell in code_cells(notebook):
        kinds = {"measured", "timed"} & set(tags(cell))
        if len(kinds) > 1:
            yield f"cell {cell.id} is both measured and timed"
        if bool(kinds) != ignored(cell):
            yield f"cell {cell.id}: nbval-ignore-output goes with measured or timed, and only so"


@rule
def ignored_cells_assert(notebook: NotebookNode) -> Iterator[str]:
    for cell in filter(ignored, code_cells(notebook)):
        found = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Assert)]
        if not found:
            yield f"cell {cell.id} is {kind(cell)} and asserts nothing"


@rule
def few_cells_escape_comparison(notebook: NotebookNode) -> Iterator[str]:
    cells = code_cells(notebook)
    escaped = sum(map(ignored, cells))
    if escaped > 0.35 * len(cells):
        yield f"{escaped} of {len(cells)} code cells are not compared, at most 35 % may"


@rule
def nothing_fails_or_warns(notebook: NotebookNode) -> Iterator[str]:
    for cell in code_cells(notebook):
        if any(o.output_type == "error" or o.get("name") == "stderr" for o in cell.outputs):
            yield f"cell {cell.id} writes to stderr or ends in an error"
        if WARNING.search(text_of(cell)):
            yield f"cell {cell.id} shows a warning"


@rule
def no_machine_path(notebook: NotebookNode) -> Iterator[str]:
    for cell in notebook.cells:
        text = cell.source + (text_of(cell) if cell.cell_type == "code" else "")
        if found := MACHINE_PATH.search(text):
            yield f"cell {cell.id} names a path of one machine: {found[0]}"


@rule
def no_progress_bar(notebook: NotebookNode) -> Iterator[str]:
    for cell in code_cells(notebook):
        if PROGRESS.search(text_of(cell)):
            yield f"cell {cell.id} has the rest of a progress bar"


@rule
def pictures_have_the_right_format(notebook: NotebookNode) -> Iterator[str]:
    for cell in code_cells(notebook):
        found = set(images(cell))
        if ignored(cell) and "image/svg+xml" in found:
            yield f"cell {cell.id} is {kind(cell)}: its picture must be PNG"
        if not ignored(cell) and found - {"image/svg+xml"}:
            yield f"cell {cell.id} is exact: its picture must be SVG, which nbval compares"


@rule
def pictures_are_labelled(notebook: NotebookNode) -> Iterator[str]:
    for cell in code_cells(notebook):
        mystnb = cell.metadata.get("mystnb", {})
        figure, image = mystnb.get("figure", {}), mystnb.get("image", {})
        labels = {
            "figure.name": figure.get("name"),
            "figure.caption": figure.get("caption"),
            "image.alt": image.get("alt"),
        }
        if images(cell) and not all(labels.values()):
            missing = [name for name, value in labels.items() if not value]
            yield f"cell {cell.id} has a picture without {', '.join(missing)}"
        if len(images(cell)) > 1:
            yield f"cell {cell.id} has more than one picture under one caption"


@rule
def figure_names_are_unique(notebook: NotebookNode) -> Iterator[str]:
    names = [c.metadata.get("mystnb", {}).get("figure", {}).get("name") for c in notebook.cells]
    for name in {name for name in names if name and names.count(name) > 1}:
        yield f"figure name {name!r} is used twice"


@rule
def cells_are_short(notebook: NotebookNode) -> Iterator[str]:
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    if statistics.median(lengths) >= 10:
        yield f"the median code cell has {statistics.median(lengths)} lines, fewer than 10 expected"
    if max(lengths) > 30:
        yield f"a code cell has {max(lengths)} lines, at most 30 expected"


@rule
def metadata_is_clean(notebook: NotebookNode) -> Iterator[str]:
    expected = notebooks.NOTEBOOK_METADATA | {"ran": notebook.metadata.get("ran")}
    if notebook.metadata != expected:
        yield f"notebook metadata {sorted(notebook.metadata)}, expected {sorted(expected)}"
    for cell in notebook.cells:
        if extra := set(cell.metadata) - set(notebooks.CELL_METADATA):
            yield f"cell {cell.id} has metadata {sorted(extra)}"


@rule
def ids_are_unique(notebook: NotebookNode) -> Iterator[str]:
    ids = [cell.id for cell in notebook.cells]
    for name in {name for name in ids if ids.count(name) > 1}:
        yield f"two cells have the id {name}"


@rule
def anatomy_is_complete(notebook: NotebookNode) -> Iterator[str]:
    if not re.match(r"# \S", notebook.cells[0].source):
        yield "the first cell is not Markdown with the chapter's title"
    found = [p for h in headings(notebook) for p in PARTS if h.lower().startswith(p.lower())]
    if found != list(PARTS):
        yield f"the parts are {found}, expected {list(PARTS)}, once each and in this order"


@rule
def exercises_have_solutions(notebook: NotebookNode) -> Iterator[str]:
    text = prose(notebook)
    exercise = r"\{exercise(?:-start)?\}[^\n]*\n(?:\s*:\w+:[^\n]*\n)*?\s*:label:\s*(\S+)"
    exercises = re.findall(exercise, text)
    solutions = re.findall(r"\{solution(?:-start)?\}[ \t]+(\S+)", text)
    if len(exercises) < 3 or len(exercises) != len(re.findall(r"\{exercise(?:-start)?\}", text)):
        yield f"labelled exercises: {exercises}; three at least, and a label for each, are expected"
    for name in set(exercises) ^ set(solutions):
        yield f"exercise {name} has no solution, or the solution no exercise"


@rule
def solutions_are_executed(notebook: NotebookNode) -> Iterator[str]:
    if re.search(
        r"^\s*(`{3,}|~{3,}|:{3,})\s*(?:python|\{code(?:-block)?\} *python)", prose(notebook), re.M
    ):
        yield "Python stands in Markdown, where nothing runs it"
    opened = False
    cells_inside = solutions = 0
    for cell in notebook.cells:
        opened = (
            opened or "{solution-start}" in cell.source
        ) and "{solution-end}" not in cell.source
        solutions += "{solution-start}" in cell.source
        cells_inside += opened and cell.cell_type == "code"
    if not solutions or not cells_inside:
        yield "no solution holds a code cell"


@rule
def markup_is_portable(notebook: NotebookNode) -> Iterator[str]:
    text = AUTOLINK.sub("", without_code_and_math(prose(notebook)))
    if found := HTML.search(text):
        yield f"raw HTML: {found[0]}"
    for directive in ("tab-set-code", "raw", "eval-rst"):
        if f"{{{directive}}}" in prose(notebook):
            yield f"the directive {directive} is not read by Jupyter Book 2"


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

EXERCISES = "\n\n".join(
    f"```{{exercise-start}}\n:label: ex-{n}\n```\nDo.\n```{{exercise-end}}\n```" for n in "abc"
)
LABELS = {"figure": {"name": "fig-a", "caption": "A line."}, "image": {"alt": "a line"}}


def picture(media: str) -> NotebookNode:
    return new_output("display_data", {media: "<svg/>", "text/plain": "<Figure>"})


def good_notebook() -> NotebookNode:
    """A small notebook that keeps every rule."""
    ignore = ["nbval-ignore-output"]
    cells = [
        new_markdown_cell("# Title\n\nIs $a<b$ and `<b>` fine? See <https://example.org/tmp/x>."),
        *(new_markdown_cell(f"## {p}\n\n```{{note}}\n{p}\n```\n\nX.") for p in PARTS[:-2]),
        new_code_cell("1 + 1", outputs=[new_output("execute_result", {"text/plain": "2"})]),
        new_code_cell("draw()", outputs=[picture("image/svg+xml")]),
        new_code_cell("assert train() > 0.9", metadata={"tags": ["measured", *ignore]}),
        new_markdown_cell(f"## Exercises\n\n{EXERCISES}"),
        new_markdown_cell("```{solution} ex-a\nYes.\n```\n\n```{solution} ex-b\nNo.\n```"),
        new_markdown_cell("```{solution-start} ex-c\n:class: dropdown\n```"),
        new_code_cell("print(3)", outputs=[new_output("stream", name="stdout", text="3\n")]),
        new_markdown_cell("```{solution-end}\n```\n\n## Further reading\n\nA paper."),
    ]
    notebook = new_notebook(cells=cells)
    code_cells(notebook)[1].metadata["mystnb"] = copy.deepcopy(LABELS)
    for number, cell in enumerate(code_cells(notebook), start=1):
        cell.execution_count = number
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
    return notebooks.clean(notebook)


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


def code(number: int) -> Callable[[NotebookNode], NotebookNode]:
    return lambda notebook: code_cells(notebook)[number]


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
    with pytest.raises(SystemExit, match="both edited"):
        notebooks.pair(path)


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
