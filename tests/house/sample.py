"""A small notebook that keeps every rule of chapters, for tests to spoil or to run.

Imports nbformat, tests.house.chapter_rules.
Must not import gatelib: a chapter is judged as it is stored.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tests.house.chapter_rules import PARTS
from tools import notebooks
from tools.notebooks import code_cells

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
    return as_run(notebook)


def as_run(notebook: NotebookNode) -> NotebookNode:
    """The notebook as it is stored after its cells ran in order."""
    for number, cell in enumerate(code_cells(notebook), start=1):
        cell.execution_count = number
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
    return notebooks.clean(notebook)


IN_SHORT = """:::{admonition} In short
:class: in-short
- Open the gate ({numref}`fig-a`).
- Start it
  so ([above](#sec-a)).
- {claim}`A8` holds ({ref}`the cell <06_lstm:decides-A8>`).
:::

After this chapter you can do it."""


def good_page() -> NotebookNode:
    """The same notebook with a page's head."""
    notebook = good_notebook()
    title, rest = notebook.cells[0], notebook.cells[1:]
    title.source = "# Title\n\nWhat does\nit do? It gates."
    imports = new_code_cell("import gates", metadata={"tags": ["hide-input"]})
    claims = new_markdown_cell("```{claim} A8\n```\n\n(sec-a)=\nThe gradient with respect to $x$.")
    decided = new_code_cell("assert True", metadata={"tags": ["decides-A8"]})
    drawing = rest.pop(next(n for n, cell in enumerate(rest) if cell.source == "draw()"))
    exact = [new_code_cell(f"{number}") for number in range(8)]
    head = [title, imports, drawing, new_markdown_cell(IN_SHORT)]
    place = next(n for n, cell in enumerate(rest) if "## Claims" in cell.source) + 1
    notebook.cells = [*head, *rest[:place], claims, decided, *exact, *rest[place:]]
    return as_run(notebook)


def code(number: int) -> Callable[[NotebookNode], NotebookNode]:
    return lambda notebook: code_cells(notebook)[number]
