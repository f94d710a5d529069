"""The examples on the pages of the library: they run, say what they print, and leave no layer out.

Imports doctest; each example imports what it shows.
Must not import chapters or the site's extension.

An example is a block of Python with prompts. Each runs in a namespace of its own, so that a reader
may copy any one of them alone.
"""

from __future__ import annotations

import ast
import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "book" / "api.md", *(ROOT / "book" / "api").glob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
MODULE = "```{eval-rst}\n.. automodule::"
COLUMNS = 88


def examples(path: Path) -> dict[str, doctest.DocTest]:
    text = path.read_text(encoding="utf8")
    parser = doctest.DocTestParser()
    found = {}
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        name = f"{path.name}:{line}"
        found[name] = parser.get_doctest(match[1], {}, name, str(path), line)
    return found


EXAMPLES = {name: one for path in PAGES for name, one in examples(path).items()}


def problems(example: doctest.DocTest) -> str:
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    return "".join(said)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_the_page_says(name):
    assert EXAMPLES[name].examples, f"{name}: a block of Python without prompts is not tried"
    said = problems(EXAMPLES[name])
    assert not said, said


def test_an_example_that_says_something_else_is_noticed():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert "Expected:\n    3\nGot:\n    2" in problems(wrong)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_opens_with_an_example(path):
    above = path.read_text(encoding="utf8").partition(MODULE)[0]
    assert BLOCK.search(above), f"{path.name} has no example above its first module"


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_fits_its_column(name):
    text = EXAMPLES[name].docstring
    assert max(map(len, text.splitlines())) <= COLUMNS


def shown(names: set[str], texts: list[str]) -> set[str]:
    """The names of gatelib.nn that some example uses."""
    return {n for n in names if any(re.search(rf"\bnn\.{n}\b", text) for text in texts)}


def layers() -> set[str]:
    stub = (ROOT / "gatelib" / "nn" / "__init__.pyi").read_text(encoding="utf8")
    lines = [node for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in lines for alias in node.names}


def test_every_layer_has_an_example():
    texts = [one.docstring.replace("torch.nn.", "") for one in EXAMPLES.values()]
    missing = sorted(layers() - shown(layers(), texts))
    assert not missing, f"no example on the pages of the library uses nn.{', nn.'.join(missing)}"


def test_a_layer_without_an_example_is_missed():
    assert shown({"Gate", "GateKeeper"}, [">>> nn.GateKeeper(3)\n"]) == {"GateKeeper"}
