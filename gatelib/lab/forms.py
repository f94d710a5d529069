"""What a line of a cell may be in `gatelib.lab.grammar`: a gate, a candidate, a mixture.

Imports gatelib.cell, gatelib.pieces and gatelib.spec.
Must not import torch.

In a form's text, a name in braces is a slot; its first letter says what may stand there:

- `{s}`, `{f}`: a function that squashes a gate, or makes a candidate
- `{a}`, `{u}`: the preactivations `a_k`, `u_k`; `{w}`, `{b}`: the learned vectors `w_k`, `b_k`
- `{g}`: a gate, which is the name of a line that computes one
- `{v}`: a value: the name of any other line, or a state one step before
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from gatelib import pieces
from gatelib.cell import cell
from gatelib.spec import Spec

__all__ = ["CANDIDATES", "FORMS", "GATES", "Form", "Line", "lines_of", "renamed", "spec_of"]

CANDIDATES = ("tanh", "relu", "silu", "softplus")
"""Functions that make a candidate, or change a value."""
GATES = ("sigmoid", "hardsigmoid")
"""Functions that make a gate."""


@dataclass(frozen=True)
class Form:
    """A kind of line.

    sort: "g" for a gate, "v" for a value. texts: how it is written, then other ways to write it,
    which are read as well.
    """

    sort: str
    texts: tuple[str, ...]

    @functools.cached_property
    def slots(self) -> tuple[str, ...]:
        """The slots in the order of the text, each once."""
        return tuple(dict.fromkeys(re.findall(r"{(\w+)}", self.texts[0])))

    @functools.cached_property
    def patterns(self) -> tuple[re.Pattern[str], ...]:
        """What finds the words of a line in its text."""
        return tuple(re.compile(_pattern(text)) for text in self.texts)


def _pattern(text: str) -> str:
    """A regular expression: a slot takes a name, and the same slot again the same name."""
    seen: set[str] = set()
    parts = []
    for part in re.split(r"({\w+})", text):
        slot = part.strip("{}") if part.startswith("{") else ""
        parts.append(
            (f"(?P={slot})" if slot in seen else rf"(?P<{slot}>\w+)") if slot else re.escape(part)
        )
        seen.add(slot)
    return "".join(parts)


PREACTIVATIONS = {
    "plain": ("{a}",),
    "after": ("{a} + {g}*{u}",),
    "input": ("{g}*{a} + {u}",),
    "peephole": ("{a} + {w}*{v}",),
}
"""A preactivation alone; with a reset gate behind U h, or behind W x; and with a state or value
through a diagonal matrix."""


def _forms() -> dict[str, Form]:
    found = {}
    for kind, (sort, around) in {
        "gate": ("g", "{{s}}({})"),
        "candidate": ("v", "{{f}}({})"),
        "linear": ("v", "{}"),
    }.items():
        for place, texts in PREACTIVATIONS.items():
            found[f"{kind}:{place}"] = Form(sort, tuple(map(around.format, texts)))
    found["gate:open"] = Form("g", ("{s}({a} + 2)",))
    found["gate:bias"] = Form("g", ("{s}({b})",))
    found["rest"] = Form("g", ("1 - {g}",))
    mixtures = {
        "highway": ("{g}*{v1} + (1 - {g})*{v2}", "(1 - {g})*{v2} + {g}*{v1}"),
        "sum": ("{g1}*{v1} + {g2}*{v2}",),
        "leak": ("{g}*{v1} + {v2}", "{v2} + {g}*{v1}"),
        "added": ("{v1} + {v2}",),
        "scaled": ("{g}*{v}",),
        "squashed": ("{f}({v})",),
    }
    return found | {f"mix:{name}": Form("v", texts) for name, texts in mixtures.items()}


FORMS = _forms()
"""{name: form}."""


@dataclass(frozen=True)
class Line:
    """One equation: the name that it defines, its form, and what stands in each slot."""

    name: str
    form: str
    words: tuple[tuple[str, str], ...]

    @property
    def sort(self) -> str:
        """ "g" for a gate, "v" for a value."""
        return FORMS[self.form].sort

    @property
    def text(self) -> str:
        """The right-hand side."""
        return FORMS[self.form].texts[0].format(**dict(self.words))


def renamed(lines: Iterable[Line], names: Mapping[str, str]) -> tuple[Line, ...]:
    """The lines with other names, and the states one step before with them."""
    names = {**names, **{f"{old}_prev": f"{new}_prev" for old, new in names.items()}}
    return tuple(
        replace(
            line,
            name=names.get(line.name, line.name),
            words=tuple((slot, names.get(word, word)) for slot, word in line.words),
        )
        for line in lines
    )


def lines_of(spec: Spec) -> tuple[Line, ...] | None:
    """The lines of a cell, or None where one of them has no form of the grammar."""
    carries = {f"{name}_prev" for name in cell(spec).carries}
    sorts = dict.fromkeys(carries, "v")
    found: list[Line] = []
    for v, e in spec.equations:
        line = _read(str(v), pieces.text(e), sorts)
        if line is None:
            return None
        found.append(line)
        sorts[line.name] = line.sort
    return tuple(found)


def _read(name: str, text: str, sorts: Mapping[str, str]) -> Line | None:
    for form, kind in FORMS.items():
        for pattern in kind.patterns:
            match = pattern.fullmatch(text)
            if match and all(_suits(slot, match[slot], sorts) for slot in kind.slots):
                return Line(name, form, tuple((slot, match[slot]) for slot in kind.slots))
    return None


def _suits(slot: str, word: str, sorts: Mapping[str, str]) -> bool:
    """Whether a word may stand in a slot."""
    match slot[0]:
        case "g" | "v":
            return sorts.get(word) == slot[0]
        case "s":
            return word in GATES
        case "f":
            return word in CANDIDATES
    return word.startswith(f"{slot}_") and word not in sorts


def spec_of(lines: Iterable[Line], name: str = "cell", outputs: Iterable[str] = ()) -> Spec:
    """The Spec of these lines.

    Its outputs are those given, or `h` and every other value that is read one step later. Raises
    SpecError where a line isn't used, or two values cancel.
    """
    lines = tuple(lines)
    words = [word for line in lines for _, word in line.words]
    made = {line.name for line in lines}
    carried = [w.removesuffix("_prev") for w in words if w.endswith("_prev")]
    outputs = dict.fromkeys(outputs or ["h", *carried])
    given = dict.fromkeys(w for w in words if w not in made and not _is_function(w))
    signature = f"{' '.join(sorted(given, key=_rank))} -> {' '.join(outputs)}"
    return Spec.parse(name, signature, "\n".join(f"{line.name} = {line.text}" for line in lines))


def _rank(word: str) -> int:
    """Where an input stands in a signature: preactivations, vectors, states."""
    return 9 if word.endswith("_prev") else "auwb".find(word[0])


def _is_function(word: str) -> bool:
    return word in (*GATES, *CANDIDATES)
