"""The text of a circuit: names as labels, how wide a label is, and how it is set in SVG.

Imports gatelib.spec and the standard library.
Must not import printers, equations, references, torch or anything that draws.

A label is `base`, `base_sub`, `base_{sub}` or `base^sup`; Greek names stand for their letters.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from gatelib.spec import Spec

SIZE, SMALL = 18, 14  # font sizes in drawing units: names and functions, subscripts
GREEK = dict(
    zip(
        "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi "
        "chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega".split(),
        "αβγδεζηθκλμνξπρστφχψωΓΔΘΛΣΦΨΩ",
        strict=True,
    )
)


def symbol_labels(spec: Spec, names: Mapping[str, str] | None) -> dict[str, str]:
    """The label of every symbol of `spec`; `names` overrides. Raises TypeError or ValueError."""
    if names is not None and not isinstance(names, Mapping):
        raise TypeError(f"names: expected a mapping of names to labels, got {type(names).__name__}")
    known = [str(s) for s in (*spec.inputs, *(s for s, _ in spec.equations))]
    for name, label in (names or {}).items():
        if name not in known:
            raise ValueError(
                f"names: expected names of {spec.name} ({' '.join(known)}), got {name!r}"
            )
        text: object = label
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"names: expected a label for {name!r}, got {label!r}")
    return {name: _default_label(spec, name) for name in known} | dict(names or {})


def _default_label(spec: Spec, name: str) -> str:
    """c_prev is c_{t−1}; in a Spec with a carry, states and outputs are at time t."""
    if name.endswith("_prev"):
        base, _, below = name.removesuffix("_prev").partition("_")
        return f"{base}_{{{below + ',' if below else ''}t−1}}"
    timed = {str(s) for s in (*spec.carries.values(), *(spec.outputs if spec.carries else ()))}
    return f"{name}_{{t}}" if name in timed and "_" not in name else name


def text_width(label: str) -> float:
    """An estimate, in drawing units, that holds for every font that may be used."""
    base, below, above = _split(label)
    wide = 0.6 * len(base) - 0.22 * sum(base.count(c) for c in "iljtf()1,. ")
    small = 0.56 * len(below + above) - 0.2 * sum((below + above).count(c) for c in "iljtf1,")
    return round(SIZE * wide + SMALL * small + 1, 2)


def label_svg(
    text: str, x: float, y: float, anchor: str, colour: str, *, italic: bool = True
) -> str:
    """A label as an SVG text element: its baseline at `y`, its `anchor` at `x`."""
    base, below, above = _split(text)
    style = ' font-style="italic"' if italic else ""
    inner = escape(base)
    if below:
        inner += f'<tspan dy="5" font-size="{SMALL}">{escape(below)}</tspan>'
    if above:
        inner += f'<tspan dy="{-12 if below else -7}" font-size="{SMALL}">{escape(above)}</tspan>'
    place = f'x="{decimals(x)}" y="{decimals(y)}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}"{style}>{inner}</text>'


def decimals(value: float) -> str:
    """Two decimals at most, without a trailing zero."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _split(label: str) -> tuple[str, str, str]:
    """`a_f` → ("a", "f", ""), `x^2` → ("x", "", "2"); Greek names become letters."""
    label, _, above = label.partition("^")
    base, _, below = label.partition("_")
    below = below.removeprefix("{").removesuffix("}").replace("_", ",")
    base, below = (GREEK.get(part.lstrip("\\"), part) for part in (base, below))
    return base, below, above.removeprefix("{").removesuffix("}")
