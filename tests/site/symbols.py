"""The letters of mathematics that a chapter prints, and those that the notation page lists.

Imports nbformat. Must not import gatelib.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat

FORMULA = re.compile(
    r"\$\$(.+?)\$\$|(?<![\\$\w])\$([^$\n]+?)\$(?!\d)|```\{math\}(.*?)```"
    r"|\\begin\{(?:align|equation|aligned)\*?\}(.*?)\\end",
    re.DOTALL,
)
CODE = re.compile(r"```(?!\{)[^`]*```|`[^`\n]+`")
WORDS = re.compile(
    r"^\s*:label:.*$|\\(?:operatorname|mathrm|text|label|begin|end|mathtt|mathbf|mathit)\*?\{[^}]*\}",
    re.MULTILINE,
)
LETTER = re.compile(r"\\[A-Za-z]+|[A-Za-z]")
GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi pi rho varrho "
    "sigma varsigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega ell"
)
SYMBOLS = {f"\\{name}" for name in GREEK.split()}


def letters(formula: str) -> set[str]:
    """The Latin and Greek letters of a formula, without those of words and of operators."""
    found = set(LETTER.findall(WORDS.sub("", formula)))
    return {name for name in found if not name.startswith("\\") or name in SYMBOLS}


def formulas(text: str) -> Iterator[str]:
    """The formulas of a text in MyST, code left out."""
    for found in FORMULA.finditer(CODE.sub("", text)):
        yield next(group for group in found.groups() if group)


def printed(chapter: Path) -> set[str]:
    """The letters of a chapter: in its prose, and in the formulas that its cells show."""
    found: set[str] = set()
    for cell in nbformat.read(chapter, 4).cells:
        texts = [cell.source] if cell.cell_type == "markdown" else []
        data = [output.get("data", {}) for output in cell.get("outputs", [])]
        texts += [d[kind] for d in data for kind in ("text/latex", "text/markdown") if kind in d]
        found |= {name for text in texts for part in formulas(text) for name in letters(part)}
    return found


def listed(page: str) -> dict[str, set[str]]:
    """The letters in the first column of the tables, by the heading above them."""
    found: dict[str, set[str]] = {}
    heading = ""
    for line in page.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| ") and "$" in line.split("|")[1]:
            names = {name for part in formulas(line.split("|")[1]) for name in letters(part)}
            found.setdefault(heading, set()).update(names)
    return found
