"""A grammar of recurrent cells: random Specs of bounded size, and Specs with one thing changed.

Imports NumPy, gatelib.cell, gatelib.spec; canonical and forms of gatelib.lab.
Must not import torch.

A cell of the grammar is a Spec of one stage whose lines are `FORMS` of `gatelib.lab.forms`: gates,
candidates, and mixtures of what is there. The LSTM, the GRU and most of their variants in
`gatelib.equations` are such cells as they stand, so a search may start from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gatelib.cell import Cell, cell
from gatelib.lab.canonical import canonical
from gatelib.lab.forms import CANDIDATES, FORMS, GATES, Line, lines_of, renamed, spec_of
from gatelib.spec import Spec, SpecError

__all__ = ["Bounds", "in_bounds", "mutate", "reset_before", "sample"]

Lines = tuple[Line, ...]
Seed = int | np.random.Generator

KEYS = tuple("f i o r z g n s p k l t v w x y".split()) + tuple(f"k{n}" for n in range(1, 99))
"""What a new line is called, and its preactivation `a_KEY`."""
NOTHING: Mapping[str, str] = {}
TRIES = 1000
"""Draws, or edits, until one is a cell within its bounds; about every second is."""


@dataclass(frozen=True)
class Bounds:
    """How large a cell may be, and what it is made of.

    lines: equations at most. gates: preactivations `a_k` at most; each has H·(D + H + 1) weights.
    depth: mixtures within mixtures in a sample. candidates, squashes: the functions that a
    candidate, and a gate, may use. cell_state: whether a state beside `h` may be carried, as the
    LSTM's c.

    Raises: ValueError for a size below 1, or a function that the grammar doesn't have.
    """

    lines: int = 9
    gates: int = 4
    depth: int = 2
    candidates: tuple[str, ...] = CANDIDATES
    squashes: tuple[str, ...] = GATES
    cell_state: bool = True

    def __post_init__(self) -> None:
        for name in ("lines", "gates", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name, known in (("candidates", CANDIDATES), ("squashes", GATES)):
            given = getattr(self, name)
            if not given or set(given) - set(known):
                raise ValueError(f"{name}: expected some of {known}, got {given}")


WIDE = Bounds()
"""The bounds where none are given."""


def in_bounds(spec: Spec, bounds: Bounds = WIDE) -> bool:
    """Whether a Spec is a cell of the grammar within these bounds."""
    lines = lines_of(spec)
    return lines is not None and _fits(spec, lines, bounds)


def _fits(spec: Spec, lines: Lines, bounds: Bounds) -> bool:
    read = cell(spec)
    words = [(slot[0], word) for line in lines for slot, word in line.words]
    return (
        len(lines) <= bounds.lines
        and 1 <= len(read.gates) <= bounds.gates
        and {word for slot, word in words if slot == "f"} <= {*bounds.candidates}
        and {word for slot, word in words if slot == "s"} <= {*bounds.squashes}
        and {*read.states} <= ({"h", "c"} if bounds.cell_state else {"h"})
    )


def _finished(lines: Sequence[Line], bounds: Bounds) -> Spec | None:
    """The cell of these lines, without those that it doesn't need; None where it is none."""
    needed, kept = {"h"}, list[Line]()
    while True:
        kept = [line for line in lines if line.name in needed]
        words = {word.removesuffix("_prev") for line in kept for _, word in line.words}
        if words & {line.name for line in lines} <= needed:
            break
        needed |= words
    try:
        spec = spec_of(kept)
    except SpecError:  # two equal values cancelled
        return None
    if any(len({w for s, w in line.words if s[0] == "v"}) < _values(line) for line in kept):
        return None
    return spec if cell(spec).gates and _fits(spec, tuple(kept), bounds) else None


def _values(line: Line) -> int:
    return sum(slot[0] == "v" for slot, _ in line.words)


# ---- lines that are written at random --------------------------------------------------------


class _Writer:
    """Writes lines, each from what stands before it.

    old: the states one step before that a line may use; taken: names that are used elsewhere.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        bounds: Bounds,
        old: Sequence[str],
        lines: Iterable[Line] = (),
        taken: Iterable[str] = (),
    ) -> None:
        self.rng, self.bounds, self.old, self.lines = rng, bounds, tuple(old), list(lines)
        self.taken = {*taken, "h", "c", "q"}

    def pick(self, choices: Iterable[str]) -> str:
        """One of them."""
        listed = list(choices)
        return listed[int(self.rng.integers(len(listed)))]

    def named(self, sort: str) -> list[str]:
        """The names of the gates, "g", or of the values, "v", so far."""
        return [line.name for line in self.lines if line.sort == sort]

    def write(
        self, form: str, given: Mapping[str, str] = NOTHING, depth: int = 0, name: str = ""
    ) -> str:
        """A new line of that form with the words given, and the lines that it needs; its name."""
        key = next(k for k in KEYS if k not in self.taken)
        self.taken.add(key)
        own = given.get("a", f"a_{key}").partition("_")[2]  # u_k stands beside a_k
        words = tuple((s, given.get(s) or self.word(s, own, depth)) for s in FORMS[form].slots)
        self.lines.append(Line(name or key, form, words))
        return name or key

    def word(self, slot: str, key: str, depth: int = 0) -> str:
        """What stands in a slot of the line with that key."""
        match slot[0]:
            case "g":
                return self.gate()
            case "v":
                return self.value(depth)
            case "s":
                return self.pick(self.bounds.squashes)
            case "f":
                return self.pick(self.bounds.candidates)
        return f"{slot}_{key}"

    def gate(self) -> str:
        """A gate: one that is there, the rest of one, or a new one."""
        there, chance = self.named("g"), self.rng.random()
        if there and chance < 0.3:
            return self.pick(there)
        if there and chance < 0.4:
            return self.write("rest", {"g": self.pick(there)})
        forms = [form for form in FORMS if form.startswith("gate:")]
        return self.write("gate:plain" if chance < 0.8 else self.pick(forms))

    def value(self, depth: int) -> str:
        """A value: an old state, one that is there, a candidate, or a mixture."""
        there, chance = self.named("v"), self.rng.random()
        if chance < 0.3:
            return self.pick(self.old)
        if there and chance < 0.4:
            return self.pick(there)
        mixes = depth > 0 and chance < 0.7
        return self.write(self.pick(_forms("mix:" if mixes else "candidate:")), depth=depth - 1)


def _forms(*kinds: str) -> list[str]:
    return [form for form in FORMS if form.startswith(kinds)]


READOUTS = ("mix:squashed", "mix:scaled", "both")
"""How `h` is made of `c`: f(c), o·c, or o·f(c)."""


def _read_out(writer: _Writer) -> None:
    """Lines that make `h` of the cell state `c`."""
    kind, value = writer.pick(READOUTS), "c"
    if kind == "both":
        kind, value = "mix:scaled", writer.write("mix:squashed", {"v": "c"})
    writer.write(kind, {"v": value}, name="h")


def sample(seed: Seed, bounds: Bounds = WIDE) -> Spec:
    """A random cell of the grammar.

    Args:
        seed: a whole number, or a generator of random numbers, which moves on.
        bounds: how large the cell may be.

    Raises: RuntimeError where these bounds leave hardly a cell.
    """
    rng = np.random.default_rng(seed)
    for _ in range(TRIES):
        two = bounds.cell_state and rng.random() < 0.5
        writer = _Writer(rng, bounds, ("c_prev",) if two else ("h_prev",))
        form = writer.pick(
            _forms("mix:") if rng.random() < 0.9 else _forms("candidate:", "linear:")
        )
        writer.write(form, depth=bounds.depth - 1, name="c" if two else "h")
        if two:
            _read_out(writer)
        found = _finished(writer.lines, bounds)
        if found is not None:
            return found
    raise RuntimeError(f"bounds: found no cell in {TRIES} draws within {bounds}")


def reset_before(spec: Spec) -> Cell | None:
    """The cell whose first reset gate acts before the product, in two stages, as Cho's GRU.

    Where a line has `a_k + g*u_k`, the first stage makes q = g·h_prev, and U_k of the second
    multiplies q. None for a cell without such a line, or one of no form.
    """
    lines = lines_of(spec) or ()
    places = [index for index, line in enumerate(lines) if line.form.endswith(":after")]
    if not places:
        return None
    line, rest = lines[places[0]], lines[places[0] + 1 :]
    words = dict(line.words)
    q = Line("q", "mix:scaled", (("g", words["g"]), ("v", "h_prev")))
    kept = tuple((slot, word) for slot, word in line.words if slot not in "gu")
    plain = Line(line.name, line.form.replace(":after", ":plain"), kept)
    first, second = (*lines[: places[0]], q), (plain, *rest)
    later = {word for one in second for _, word in one.words}
    passed = [one.name for one in first if one.name in later]
    carried = {str(v).removesuffix("_prev") for v in spec.inputs} | {"h"}
    outputs = [one.name for one in first if one.name in carried and one.name not in passed]
    ends = [one.name for one in second if one.name in carried]
    stages = spec_of(first, "first", [*passed, *outputs, "q"]), spec_of(second, "last", ends)
    return cell(stages, f"{spec.name}_before")


# ---- one thing changed -----------------------------------------------------------------------

Edit = Callable[[np.random.Generator, Lines, Bounds], Sequence[Line]]


def _at(rng: np.random.Generator, lines: Lines, bounds: Bounds, index: int) -> _Writer:
    """A writer of lines before the one at `index`."""
    names = {line.name for line in lines}
    keys = {word.partition("_")[2] for line in lines for _, word in line.words}
    old = ["c_prev" if "c" in names and bounds.cell_state else "h_prev"]
    return _Writer(rng, bounds, old, lines[:index], names | keys)


def _another_form(rng: np.random.Generator, lines: Lines, bounds: Bounds) -> Sequence[Line]:
    """One line takes another form of its sort, and keeps the words that still have a slot."""
    index = int(rng.integers(len(lines)))
    line, writer = lines[index], _at(rng, lines, bounds, index)
    forms = [f for f, form in FORMS.items() if form.sort == line.sort and f != line.form]
    form, kept = writer.pick(forms), dict(line.words)
    spare = [word for slot, word in line.words if slot[0] == "v"]
    for slot in FORMS[form].slots:
        if slot[0] == "v" and slot not in kept and spare:
            kept[slot] = spare.pop(0)
    writer.write(form, kept, name=line.name)
    return [*writer.lines, *lines[index + 1 :]]


def _another_word(rng: np.random.Generator, lines: Lines, bounds: Bounds) -> Sequence[Line]:
    """One line uses another gate, value or function."""
    index = int(rng.integers(len(lines)))
    line, writer = lines[index], _at(rng, lines, bounds, index)
    slots = [slot for slot, _ in line.words if slot[0] in "gvsf"]
    if not slots:
        return lines
    kept = dict(line.words)
    slot = writer.pick(slots)
    kept[slot] = writer.word(slot, line.name)
    writer.write(line.form, kept, name=line.name)
    return [*writer.lines, *lines[index + 1 :]]


def _one_more(rng: np.random.Generator, lines: Lines, bounds: Bounds) -> Sequence[Line]:
    """A value passes through a new mixture before a line uses it."""
    index = int(rng.integers(len(lines)))
    line, writer = lines[index], _at(rng, lines, bounds, index)
    slots = [slot for slot, _ in line.words if slot[0] == "v"]
    if not slots:
        return lines
    kept, slot, form = dict(line.words), writer.pick(slots), writer.pick(_forms("mix:"))
    place = writer.pick(s for s in FORMS[form].slots if s[0] == "v")
    kept[slot] = writer.write(form, {place: kept[slot]})
    writer.write(line.form, kept, name=line.name)
    return [*writer.lines, *lines[index + 1 :]]


def _one_less(rng: np.random.Generator, lines: Lines, bounds: Bounds) -> Sequence[Line]:
    """A line goes; where it was used stands one of the values that it was made of."""
    index = int(rng.integers(len(lines)))
    line = lines[index]
    like = [word for slot, word in line.words if slot[0] == line.sort]
    if not like or line.name in "hc":
        return lines
    word = like[int(rng.integers(len(like)))]
    rest = (*lines[:index], *lines[index + 1 :])
    return tuple(
        replace(one, words=tuple((s, word if w == line.name else w) for s, w in one.words))
        for one in rest
    )


def _another_output(rng: np.random.Generator, lines: Lines, bounds: Bounds) -> Sequence[Line]:
    """`h` is made of a cell state that was `h` before; or, where it was, is that state itself."""
    names = [line.name for line in lines]
    if "c" in names:
        return renamed(lines[: names.index("c") + 1], {"c": "h"})
    state = renamed(lines, {"h": "c"})
    writer = _at(rng, state, bounds, len(state))
    _read_out(writer)
    return writer.lines


EDITS: tuple[Edit, ...] = (
    _another_form,
    _another_word,
    _one_more,
    _one_less,
    _another_output,
)


def mutate(spec: Spec, seed: Seed, bounds: Bounds = WIDE) -> Spec:
    """A cell in which one thing is different: a form, a word, a line more or less, the output.

    Lines that are no longer used go with it. The result is never the same cell written otherwise.

    Args:
        spec: a cell of the grammar, within the bounds or not.
        seed: a whole number, or a generator of random numbers, which moves on.
        bounds: how large the result may be.

    Raises: ValueError for a Spec that has a line of no form; RuntimeError where no change is found.
    """
    rng, lines, own = np.random.default_rng(seed), lines_of(spec), canonical(spec)
    if lines is None:
        raise ValueError(f"spec: expected a cell of the grammar, got {spec!r}")
    for _ in range(TRIES):
        edit = EDITS[int(rng.integers(len(EDITS)))]
        found = _finished(edit(rng, lines, bounds), bounds)
        if found is not None and canonical(found) != own:
            return found
    raise RuntimeError(f"bounds: found no change of {spec.name} in {TRIES} tries within {bounds}")
