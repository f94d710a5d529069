"""How long a function and a file may be; the lists of what is still longer may only shrink.

Imports the standard library and pytest.
Must not import what it measures: a file is parsed, never run.

A function's lines are those of its body that hold code: its signature, its docstring, comments
and blank lines do not count. A function inside another counts with it.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("benchmarks", "book/_ext", "chapters", "gatelib", "tests", "tools")
FILE, FUNCTION = 450, 25
SCRIPTS = ("book/static/**/*.js", "tools/*.mjs")
OTHERS = {"book/static/scripts/fontawesome.js"}  # that stand in the place of a package's
NAMED = re.compile(
    r"( *)(?:const (\w+) = .*=> |(?:async )?function (\w+)\(.*\) "
    r"|(?!if|for|while|switch|catch)(?:async )?(\w+)\(.*\) )\{"
)


def sources() -> dict[str, str]:
    """The text of every Python file, by its path from the root."""
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}


def functions(text: str) -> dict[str, int]:
    """Lines of code in the body of each function of a file, by its name."""
    lines, found = text.splitlines(), dict[str, int]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            first = body[0].lineno if body else node.end_lineno + 1
            code = [line.strip() for line in lines[first - 1 : node.end_lineno]]
            count = sum(bool(line) and not line.startswith("#") for line in code)
            found[node.name] = max(count, found.get(node.name, 0))
    return found


def scripts() -> dict[str, str]:
    """The text of every script of the pages and of the build, by its path from the root."""
    files = (path for pattern in SCRIPTS for path in ROOT.glob(pattern))
    texts = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in files}
    return {name: text for name, text in texts.items() if name not in OTHERS}


def script_functions(text: str) -> dict[str, int]:
    """As `functions`, for JavaScript in which a body ends where its first line is indented."""
    lines, found = text.splitlines(), dict[str, int]()
    for number, line in enumerate(lines):
        start = NAMED.fullmatch(line)
        if start:
            body = lines[number + 1 :]
            last = next((k for k, rest in enumerate(body) if rest.startswith(f"{start[1]}}}")), 0)
            code = [rest.strip() for rest in body[:last]]
            name = next(filter(None, start.groups()[1:]))
            count = sum(bool(rest) and not rest.startswith(("//", "/*", "*")) for rest in code)
            found[name] = max(count, found.get(name, 0))
    return found


def test_no_file_is_longer_than_450_lines():
    every = sources() | scripts()
    assert not {name for name, text in every.items() if text.count("\n") > FILE}


def test_no_function_has_more_than_25_lines_of_code():
    measured = {name: functions(text) for name, text in sources().items()}
    measured |= {name: script_functions(text) for name, text in scripts().items()}
    long = {
        f"{name} {function}"
        for name, found in measured.items()
        for function, lines in found.items()
        if lines > FUNCTION
    }
    assert not long


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("  const f = (a) => {\n    // why\n    b();\n\n    c();\n  };\n", {"f": 2}),
        ("async function f(a) {\n  for (const b of a) {\n    c(b);\n  }\n}\n", {"f": 3}),
        ("  move(a) {\n    if (a) {\n      b();\n    }\n  }\n", {"move": 3}),
        ("(() => {\n  const f = (a) => a + 1;\n})();\n", {}),
    ],
)
def test_a_function_of_a_script_is_measured_as_one_of_python(text, found):
    assert script_functions(text) == found


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('def f(\n    a,\n    b,\n):\n    """Say.\n\n    More.\n    """\n    return a + b\n', 1),
        ("def f():\n    # why\n    a = 1\n\n    return a\n", 2),
        ('def f():\n    """Only told."""\n', 0),
        ("def f():\n    def g():\n        return 1\n\n    return g\n", 3),
        ("def f():\n    return (\n        1\n    )\n", 3),
    ],
)
def test_signatures_docstrings_comments_and_blank_lines_do_not_count(text, lines):
    assert functions(text)["f"] == lines
