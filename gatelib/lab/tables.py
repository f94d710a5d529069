"""Tables on a page: a header and rows of numbers or text, as Markdown.

Imports IPython.
Must not import the floors below; it shows what it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from IPython.display import Markdown

__all__ = ["table"]

ALIGNED = {"l": ":--", "c": ":-:", "r": "--:"}


def table(
    header: str | Sequence[str],
    rows: Iterable[Iterable[Any]],
    align: str = "lr",
    form: str = "",
) -> Markdown:
    """A table as a notebook shows it.

    Args:
        header: the columns' titles, in a row or as one text with " | " between them.
        rows: the cells of each row; text stands as it is, in Markdown.
        align: "l", "c" or "r" for each column; the last holds for all that follow.
        form: how what is no text is written, by Python's format specifications for each column
            with spaces between them; the last holds for all that follow. `"d .1f"`: 10, 2.5, 0.1.

    Raises: ValueError for a row of another length than the header, a cell that holds "|", or a
        letter that is none of the three; TypeError for a cell that can't be written in that form.
    """
    if not align or set(align) - set(ALIGNED):
        raise ValueError(f"align: expected letters of l, c and r, got {align!r}")
    titles = header.split(" | ") if isinstance(header, str) else list(header)
    width = range(len(titles))
    forms = form.split() or [""]
    sides = [ALIGNED[_at(align, column)] for column in width]
    lines = [_line(titles), "|" + "|".join(sides) + "|"]
    for row in rows:
        cells = list(row)
        if len(cells) != len(titles):
            raise ValueError(f"rows: expected {len(titles)} cells, got {cells}")
        lines.append(_line([_text(cells[k], _at(forms, k)) for k in width]))
    return Markdown("\n".join(lines))  # type: ignore[no-untyped-call]


def _at(given: Sequence[str], column: int) -> str:
    return given[min(column, len(given) - 1)]


def _text(cell: Any, form: str) -> str:
    return cell if isinstance(cell, str) else format(cell, form)


def _line(cells: Sequence[str]) -> str:
    """One row; an empty cell is one space wide."""
    for cell in cells:
        if "|" in cell:
            raise ValueError(f"rows: expected cells without '|', got {cell!r}")
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)
