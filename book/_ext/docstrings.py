"""Docstrings for people, made safe for Sphinx on the pages of the library.

Imports Sphinx. Must not import gatelib.

The library's docstrings are plain text with `names` in single backticks. They are escaped before
napoleon reads their sections, so that none is shown as it was written: what docutils still can't
read is a warning, which the build refuses. Of a module's docstring the lines for contributors are
left out, and a Spec's value is shown as the text that makes it.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.autodoc import DataDocumenter

LITERAL = re.compile(r"(:[a-z:]+:`[^`]+`|``.+?``|(?<!`)`[^`\n]+`(?!`))")
ACTIVE = re.compile(r"[*|\\]|(?<=\w)_(?!\w)|(?<=: \w)\.(?=\s|$)")  # the last: `name: D.`, a list
STARRED = re.compile(r"(\s*\*{1,2}\w+:)(.*)")  # napoleon escapes the name of `*args:` itself
FOR_CONTRIBUTORS = re.compile(r"(?ms)^(?:Imports|Must not) [^\n]*?(?:\n[^\n]+?)*?\.(?:\s*\n|\Z)")
PLAIN = ("attribute", "data", "property")  # napoleon takes a colon there for a type
ARRAY = re.compile(
    r"~?(?:numpy\.)?ndarray\[tuple\[~?(?:typing\.)?Any, \.\.\.\], "
    r"~?(?:numpy\.)?dtype\[~?(?:[\w.]*\.)?(\w+)\]\]"
)
LISTED = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): \S.*")
LONGEST_VALUE = 60


def escaped(line: str) -> str:
    """The line with `names` as literals, and without a character that docutils would act on."""
    starred = STARRED.fullmatch(line)
    head, rest = starred.groups() if starred else ("", line)
    parts = LITERAL.split(rest)
    parts[1::2] = [f"`{p}`" if p[0] == "`" and p[1] != "`" else p for p in parts[1::2]]
    parts[::2] = [ACTIVE.sub(r"\\\g<0>", p) for p in parts[::2]]
    return head + "".join(parts)


def safe(lines: list[str]) -> list[str]:
    """The lines of a docstring; literal blocks, which are indented below `::`, stay as they are."""
    out: list[str] = []
    block = -1  # the indent of the line that opened the block
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if block >= 0 and line.strip() and indent <= block:
            block = -1
        out.append(line if block >= 0 else escaped(line))
        if block < 0 and re.fullmatch(r".*::|\s*\.\. code-block:: \w+", line.rstrip()):
            block = indent
    return out


def for_readers(text: str) -> str:
    """A module's docstring without what it imports and must not import."""
    return re.sub(r"\n{3,}", "\n\n", FOR_CONTRIBUTORS.sub("", text))


LABEL = re.compile(r"(Shapes?|Raises|Returns|Attributes|Source[\w ]*): \S.*")


def apart(lines: list[str]) -> list[str]:
    """A line such as `Source: …` as a paragraph, and an indented passage as a block of text."""
    out: list[str] = []
    base = ""  # the last line that stood at the margin
    for line in lines:
        indented = line.startswith("    ")
        if indented and out and not out[-1] and base and not base.endswith(":"):
            out += [".. code-block:: text", ""]
            base = ""
        if LABEL.fullmatch(line):
            out.append("")
        out.append(line)
        base = line if line and not indented else base
    return out


def names_of(what: str, obj: Any) -> set[str]:
    """The arguments of a function, or the fields of a class."""
    if what == "class":
        return {name for base in obj.__mro__ for name in vars(base).get("__annotations__", ())}
    return set(inspect.signature(obj).parameters) if what in ("function", "method") else set()


def sectioned(lines: list[str], what: str, names: set[str]) -> list[str]:
    """Bare lines of `name: what it is` as a section, indented below its title."""
    out: list[str] = []
    inside = False
    for line in lines:
        found = LISTED.fullmatch(line)
        opens = bool(found and set(found[1].split(", ")) <= names)
        if opens and not inside:
            out += ["", "Attributes:" if what == "class" else "Args:"]
        inside = opens or (inside and line.startswith(" "))
        out.append("    " + line if inside else line)
    return out


def is_gate(obj: Any) -> bool:
    """Tell whether an object is a Spec, without importing gatelib."""
    return type(obj).__module__ == "gatelib.spec" and type(obj).__name__ == "Spec"


def before_napoleon(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Escape the text, and keep what napoleon would misread."""
    if what == "module":
        lines[:] = for_readers("\n".join(lines)).splitlines()
    if what == "property":
        lines[:] = (inspect.getdoc(obj) or "\n".join(lines)).splitlines()
    lines[:] = safe(sectioned(apart(lines), what, names_of(what, obj)))
    if what in PLAIN:
        app.env.temp_data["gates_plain"] = list(lines)


def after_napoleon(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Put back what napoleon took for a type, and a Spec's text behind it."""
    if what in PLAIN:
        lines[:] = app.env.temp_data.pop("gates_plain")
    if what == "data" and is_gate(obj):
        text = [f"    {line}" for line in repr(obj).splitlines()]
        lines += ["", ".. code-block:: text", "", *text]
    lines.append("")


def short_arrays(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, result: str
) -> tuple[str, str]:
    """`NDArray[Any]` as the source has it, not NumPy's expansion of that name."""
    return tuple(ARRAY.sub(r"NDArray[\1]", t) if t else t for t in (signature, result))  # type: ignore[return-value]


def skipped(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of a NamedTuple that say nothing but their number."""
    doc = getattr(obj, "__doc__", None) or ""
    return True if doc.startswith("Alias for field number") else None


class Value(DataDocumenter):
    """Module data: a value is shown where it fits beside its name."""

    priority = DataDocumenter.priority + 1

    def should_suppress_value_header(self) -> bool:
        """Hide a Spec, which is shown as text below, and what is long."""
        hidden = is_gate(self.object) or len(repr(self.object)) > LONGEST_VALUE
        return hidden or super().should_suppress_value_header()


def setup(app: Sphinx) -> None:
    """Napoleon turns sections such as `Raises:` into fields, at priority 500."""
    app.setup_extension("sphinx.ext.autodoc")
    app.add_autodocumenter(Value, override=True)
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", after_napoleon, priority=900)
    app.connect("autodoc-process-signature", short_arrays)
    app.connect("autodoc-skip-member", skipped)
