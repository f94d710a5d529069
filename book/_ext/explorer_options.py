"""What the options of an explorer say, as the definition that `book/static/views` draws from.

Imports the standard library. Must not import gatelib: gates come as data of `gatelib.workshop`.

Every function raises ValueError with what was expected where a text is something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

Data = dict[str, Any]

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
SLIDER = re.compile(rf"(\w+) *= *({NUMBER})(?: *\(({NUMBER})\.\.({NUMBER})(?: by ({NUMBER}))?\))?")
TERM = re.compile(rf"({NUMBER}) *\* *(\w+)")
REACH = (-6.0, 6.0)
GATED = ("curve", "time", "traces", "bars")
"""Views that draw gates; any other view's sliders are its own."""
SEQUENCES = ("pulse", "two pulses", "step", "wave", "noise")


def wrong(option: str, expected: str, got: str) -> ValueError:
    """Say what an option should have been."""
    return ValueError(f":{option}: expected {expected}, got {got!r}")


def parts(text: str, by: str) -> Iterator[str]:
    """The parts of a text, without those that are empty."""
    return filter(None, map(str.strip, text.split(by)))


def pair(option: str, text: str, by: str) -> tuple[str, str]:
    """`left BY right`, both there."""
    left, found, right = (part.strip() for part in text.partition(by))
    if not (left and found and right):
        raise wrong(option, f"NAME{by}...", text)
    return left, right


def a_number(option: str, text: str) -> float:
    """One number."""
    if re.fullmatch(NUMBER, text.strip()) is None:
        raise wrong(option, "a number", text)
    return float(text)


def span(option: str, text: str) -> Data:
    """`-4..8` as two ends, the lower one first."""
    found = re.fullmatch(rf"({NUMBER})\.\.({NUMBER})", text.strip())
    if found is None or float(found[1]) >= float(found[2]):
        raise wrong(option, "LOW..HIGH", text)
    return {"low": float(found[1]), "high": float(found[2])}


def slider(text: str) -> Data:
    """`b=1`, `b=1 (-4..8)` or `b=1 (-4..8 by 0.5)`."""
    found = SLIDER.fullmatch(text)
    if found is None:
        raise wrong("sliders", "NAME=VALUE or NAME=VALUE (LOW..HIGH by STEP)", text)
    name, value, low, high, step = found.groups()
    ends = (float(low), float(high)) if low else REACH
    if not ends[0] <= float(value) <= ends[1]:
        raise wrong("sliders", f"{name} between {ends[0]:g} and {ends[1]:g}", value)
    made: Data = {"name": name, "value": float(value), "low": ends[0], "high": ends[1]}
    return made | ({"step": float(step)} if step else {})


def sliders(text: str) -> list[Data]:
    """Sliders, between which commas stand."""
    return [slider(one) for one in parts(text, ",")]


def along(text: str) -> Data:
    """`b -4..8`: the input on the axis, and its ends."""
    name, _, ends = text.strip().partition(" ")
    return {"along": name, "axis": span("along", ends)}


def wires(text: str) -> Data:
    """`a_n=2*x + 1*h, a_z=1*x`: what an input reads of x, and of a value one step before."""
    found: Data = {"wires": {}, "back": None}
    for one in parts(text, ","):
        name, terms = pair("wires", one, "=")
        wire = found["wires"].setdefault(name, {})
        for term in parts(terms, "+"):
            match = TERM.fullmatch(term)
            if match is None or (match[2] != "x" and found["back"] not in (None, match[2])):
                raise wrong("wires", "NUMBER*x or NUMBER*VALUE, of one value", term)
            wire["in" if match[2] == "x" else "back"] = float(match[1])
            found["back"] = found["back"] if match[2] == "x" else match[2]
    return found


def bands(text: str) -> list[Data]:
    """`0..5.3 words; ...`: what is shaded behind curves."""
    made = []
    for one in parts(text, ";"):
        ends, _, words = one.partition(" ")
        made.append(span("band", ends) | {"words": words.strip()})
    return made


def choices(text: str) -> list[Data]:
    """`method=none|loss|bias; ...`: the first option is chosen at the start."""
    made = []
    for one in parts(text, ";"):
        name, options = pair("choose", one, "=")
        found = list(parts(options, "|"))
        made.append({"name": name, "options": found, "value": found[0]})
    return made


def presets(text: str) -> list[Data]:
    """`title: a=1 b=2; ...`: what sets several sliders at once."""
    made = []
    for one in parts(text, ";"):
        title, values = pair("presets", one, ":")
        given = (pair("presets", value, "=") for value in values.split())
        named = {name: a_number("presets", value) for name, value in given}
        made.append({"title": title, "values": named})
    return made


def named_numbers(option: str, text: str, by: str = ",") -> dict[str, float]:
    """`tokens=128, experts=8`."""
    found = (pair(option, one, "=") for one in parts(text, by))
    return {name: a_number(option, value) for name, value in found}


def vectors(text: str) -> dict[str, int]:
    """`a=4`: a is a vector of four elements, a_1 to a_4."""
    return {name: int(count) for name, count in named_numbers("vectors", text).items()}


def sequence(text: str) -> str:
    """A sequence's name."""
    if text not in SEQUENCES:
        raise wrong("sequence", " or ".join(SEQUENCES), text)
    return text


def log_range(text: str) -> Data:
    """The ends of a logarithmic axis."""
    ends = span("log", text)
    if ends["low"] <= 0:
        raise wrong("log", "ends above 0", text)
    return {"range": ends, "log": True}


OWN: dict[str, Callable[[str], Data]] = {
    "along": along,
    "wires": wires,
    "log": log_range,
    "set": lambda text: dict(named_numbers("set", text)),
    "show": lambda text: {"show": text.split()},
    "read": lambda text: {"read": text.split()},
    "range": lambda text: {"range": span("range", text)},
    "band": lambda text: {"bands": bands(text)},
    "marks": lambda text: {"marks": [a_number("marks", one) for one in text.split()]},
    "choose": lambda text: {"choices": choices(text)},
    "presets": lambda text: {"presets": presets(text)},
    "vectors": lambda text: {"vectors": vectors(text)},
    "sequence": lambda text: {"sequence": sequence(text)},
    "sliders": lambda text: {"sliders": sliders(text)},
    "slope": lambda _: {"slope": True},
    "alt": lambda text: {"alt": text},
    "labels": lambda text: {"labels": dict(pair("labels", one, "=") for one in parts(text, ";"))},
}
"""What each option adds to a definition."""


def definition(view: str, options: dict[str, str | None], gates: list[Data]) -> Data:
    """Everything that a view needs, checked: a page must not show an empty figure.

    Raises:
        ValueError: an option says something that it can't, or names what no gate has.
    """
    found: Data = {"view": view, "gates": titled(gates, options.get("titles")), "sliders": []}
    for option, read in OWN.items():
        if option in options:
            found |= read(options[option] or "")
    if view in GATED:
        complete(found)
        check(found)
    return found


def titled(gates: list[Data], titles: str | None) -> list[Data]:
    """The gates with their titles, where they are given any."""
    if titles is None:
        return gates
    given = list(parts(titles, ";"))
    if len(given) != len(gates):
        raise wrong("titles", f"{len(gates)} titles with ; between them", titles)
    return [gate | {"title": title} for gate, title in zip(gates, given, strict=True)]


def complete(found: Data) -> None:
    """Add what goes without saying: what is shown, and the slider of the axis."""
    if not found["gates"]:
        raise ValueError(f"the view {found['view']} needs a gate: name a Spec, or write equations")
    found.setdefault("show", found["gates"][0]["outputs"])
    name, axis = found.get("along"), found.get("axis")
    if name and not any(one["name"] == name for one in found["sliders"]):
        middle = (axis["low"] + axis["high"]) / 2
        found["sliders"].insert(0, {"name": name, "value": middle, **axis})


NEEDS = {"curve": ("along",), "time": ("wires",), "traces": ("wires",), "bars": ("vectors",)}


def check(found: Data) -> None:
    """Refuse names that no gate has, and views without what they need."""
    for option in NEEDS[found["view"]]:
        if option not in found:
            raise ValueError(f"the view {found['view']} needs :{option}:")
    inputs = {name for gate in found["gates"] for name in gate["inputs"]}
    values = {name for gate in found["gates"] for name in gate["values"]} | inputs
    wide = found.get("vectors", {})
    free = {f"{name}_{k + 1}" for name, count in wide.items() for k in range(count)}
    known = (inputs - set(wide)) | free
    refuse("show", "a value", set(found["show"]) | set(found.get("read", ())), values)
    refuse("sliders", "an input", {one["name"] for one in found["sliders"]}, known)
    refuse("along", "an input", {found["along"]} if "along" in found else set(), known)
    refuse("wires", "an input", set(found.get("wires", {})), inputs)
    refuse("wires", "a value", {found["back"]} if found.get("back") else set(), values)
    refuse("vectors", "an input", set(wide), inputs)


def refuse(option: str, what: str, names: set[str], known: set[str]) -> None:
    """Raise ValueError for names that are not among those known."""
    if unknown := sorted(names - known):
        there = ", ".join(sorted(known))
        raise ValueError(
            f":{option}: no gate here has {what} {', '.join(unknown)}; there are {there}"
        )
