"""What the explorers draw: the numbers of the library, in its colours, legible at any width.

Imports gatelib.equations, gatelib.lab.style, gatelib.workshop, NumPy; runs node.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from gatelib import workshop
from gatelib.equations import gate as gates
from gatelib.equations import gru, lstm
from gatelib.lab import style
from gatelib.spec import Spec
from tests.workshop.views_in_node import ROOT, answers

STEPS = 12
X = [float(np.sin(1.3 * t)) for t in range(STEPS)]
WIRES = {
    "lstm": {
        "a_i": {"in": 1.0, "back": 0.5},
        "a_f": {"in": -0.4},
        "a_g": {"in": 2.0, "back": -1.0},
    },
    "gru": {"a_z": {"in": 0.7, "back": 0.3}, "a_n": {"in": 1.5}, "u_n": {"back": 1.2}},
}
VALUES = {"a_i": -0.5, "a_f": 1.0, "a_o": 0.3, "a_r": 0.4, "a_z": 0.8, "u_n": 0.2}
SPECS = {"lstm": lstm.LSTM, "gru": gru.GRU}
HALF_LIFE = Spec.read("half_life: b -> steps\nf = sigmoid(b)\nsteps = -log(2)/log(f)")


def settings(name: str) -> dict[str, Any]:
    return {"values": VALUES, "wires": WIRES[name], "back": "h", "x": X, "step": 3}


def over_time(spec: Spec, wires: dict[str, Any], x: list[float]) -> list[dict[str, float]]:
    """The same cell over the same sequence, by SymPy's own evaluation in NumPy."""
    carried = {str(old): str(new) for old, new in spec.carries.items()}
    state, before, found = dict.fromkeys(carried, 0.0), 0.0, []
    for now in x:
        given = dict(state)
        for name in (str(v) for v in spec.inputs if str(v) not in carried):
            wire = wires.get(name, {})
            given[name] = (
                VALUES.get(name, 0.0) + wire.get("in", 0) * now + wire.get("back", 0) * before
            )
        all_values = {k: float(v) for k, v in spec.exposed.evaluate(given).items()}
        found.append(all_values)
        state = {old: all_values[new] for old, new in carried.items()}
        before = all_values["h"]
    return found


@pytest.mark.parametrize("name", SPECS)
def test_a_cell_over_a_sequence_is_the_equations_over_a_sequence(name: str) -> None:
    code = "GatesViews.unrolled(gate, settings).map((step) => step.all)"
    found = answers(code, gate=workshop.brief(SPECS[name]), settings=settings(name))
    for mine, theirs in zip(found, over_time(SPECS[name], WIRES[name], X), strict=True):
        np.testing.assert_allclose([mine[k] for k in theirs], list(theirs.values()), rtol=1e-12)


@pytest.mark.parametrize("name", SPECS)
def test_what_the_last_output_owes_to_each_step_is_the_slope_of_the_equations(name: str) -> None:
    code = "GatesViews.blame(gate, settings, GatesViews.unrolled(gate, settings), 'h')"
    found = answers(code, gate=workshop.brief(SPECS[name]), settings=settings(name))

    def last(step: int, change: float) -> float:
        x = [value + change * (k == step) for k, value in enumerate(X)]
        return over_time(SPECS[name], WIRES[name], x)[-1]["h"]

    slopes = [(last(k, 1e-5) - last(k, -1e-5)) / 2e-5 for k in range(STEPS)]
    np.testing.assert_allclose(found, slopes, atol=1e-9)


def test_a_gate_over_features_takes_a_slider_an_element() -> None:
    definition = {"vectors": {"a": 3}}
    given = {"a_1": 2.0, "a_2": -1.0, "a_3": 0.5, "v": 1.0}
    code = """{
      g: GatesViews.evaluate(definition, gate, given).g,
      slope: GatesViews.slope(definition, gate, given, "y", "a_2"),
    }"""
    brief = workshop.brief(gates.SOFTMAX)
    wide = {"vectors": {"a": 3, "v": 3}}
    found = answers(code.replace("definition", "wide"), gate=brief, given=given, wide=wide)
    shares = np.exp([2.0, -1.0, 0.5]) / np.exp([2.0, -1.0, 0.5]).sum()
    np.testing.assert_allclose(found["g"], shares, rtol=1e-13)
    assert found["slope"] == pytest.approx(shares[1] * (1 - shares[1]), rel=1e-12)
    plain = answers(
        "GatesViews.evaluate(definition, gate, given).g",
        gate=workshop.brief(gates.SIGMOID),
        given=given,
        definition=definition,
    )
    np.testing.assert_allclose(plain, 1 / (1 + np.exp([-2.0, 1.0, -0.5])), rtol=1e-13)


def test_the_half_life_is_that_of_the_formula() -> None:
    code = "biases.map((b) => GatesViews.forward(gate, { b }).steps)"
    biases = [-2.0, 0.0, 1.0, 3.0, 5.0]
    found = answers(code, gate=workshop.brief(HALF_LIFE), biases=biases)
    np.testing.assert_allclose(found, np.log(2) / np.log1p(np.exp(-np.array(biases))), rtol=1e-12)


def test_the_colours_are_the_books() -> None:
    names = ("COLOURS", "GATE_COLOURS", "OPEN", "SIGNED", "INK")
    found = answers(f"[{', '.join(f'GatesViews.{name}' for name in names)}]")
    assert found[0] == list(style.COLOURS) and found[1] == style.GATE_COLOURS
    assert found[4] == style.INK
    for colours, theirs in ((found[2], style.OPEN), (found[3], style.SIGNED)):
        mine = [[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in colours]
        places = np.arange(len(colours))
        np.testing.assert_allclose(mine, 255 * theirs.resampled(len(places))(places)[:, :3])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (-0.0, "0"), (2.2126, "2.21"), (-0.5, "−0.5"), (14.27, "14.3"), (1234.5, "1,235"),
        (103.4, "103"), (0.0004, "4·10⁻⁴"), (3.2e7, "3.2·10⁷"), (-1.5e-9, "−1.5·10⁻⁹"),
        (1e6, "10⁶"), (-1e-4, "−10⁻⁴"),
    ],
)  # fmt: skip
def test_a_number_has_three_digits_and_a_real_minus(value: float, text: str) -> None:
    assert answers("GatesViews.number(value)", value=value) == text


def test_what_is_no_number_says_so() -> None:
    code = "[NaN, Infinity, -Infinity].map(GatesViews.number)"
    assert answers(code) == ["undefined", "∞", "−∞"]


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-4, 6, [-4, -2, 0, 2, 4, 6]),
        (0, 0.3, [0, 0.1, 0.2, 0.3]),
    ],
)
def test_ticks_are_round(low: float, high: float, found: list[float]) -> None:
    count = 3 if high < 1 else 5
    assert answers("GatesViews.ticks(low, high, count)", low=low, high=high, count=count) == found


def test_labels_that_would_stand_on_each_other_are_pushed_apart() -> None:
    found = answers("GatesViews.spread([10, 11, 12, 90], 17, 4, 92)")
    assert all(b - a >= 17 - 1e-9 for a, b in pairwise(found))
    assert min(found) >= 4 and max(found) <= 92


# ---- every view, at every width ---------------------------------------------------------------


def definitions() -> dict[str, dict[str, Any]]:
    """One of each view that draws gates."""
    cells = [workshop.brief(spec) for spec in (gru.GRU, gru.NO_RESET)]
    named = [cell | {"title": f"cell {k}"} for k, cell in enumerate(cells)]
    wires = {"a_n": {"in": 2.0, "back": 1.0}}
    slid = [{"name": "a_z", "low": -6, "high": 6, "value": 0}]
    timed = {"gates": named, "show": ["z", "h"], "sliders": slid, "wires": wires, "back": "h"}
    curve = {"along": "a_z", "axis": {"low": -6, "high": 6}, "slope": True}
    wide = {"vectors": {"a": 3}, "show": ["g"], "gates": [workshop.brief(gates.SOFTMAX)]}
    elements = [{"name": f"a_{k}", "low": -6, "high": 6, "value": k} for k in (1, 2, 3)]
    vectors = {"vectors": {"a": 3, "v": 3}}
    return {
        "curve": {"view": "curve", "gates": cells[:1], "show": ["h"], "sliders": slid, **curve},
        "curve of two": {"view": "curve", "gates": named, "show": ["h"], "sliders": slid, **curve},
        "curve over features": {
            "view": "curve", "along": "a_2", "slope": True, **wide, **vectors, "sliders": elements,
        },
        "time": {"view": "time", **timed},
        "traces": {"view": "traces", **timed, "show": ["h"]},
        "bars": {"view": "bars", **wide, "sliders": elements},
    }  # fmt: skip


TEXT = re.compile(r'<text x="(-?[\d.]+)" y="(-?[\d.]+)".*?font-size="([\d.]+)"')


@pytest.mark.parametrize("name", definitions())
def test_a_view_is_whole_and_legible_at_any_width(name: str) -> None:
    code = """[260, 330, 480, 720].flatMap((width) => [-6, 0, 6].map((value) => {
      const settings = GatesViews.initial(definition);
      Object.keys(settings.values).forEach((key) => { settings.values[key] = value; });
      const drawn = GatesViews.views[definition.view](definition, settings, width);
      return [width, drawn.svg, drawn.reading, drawn.area ?? null];
    }))"""
    for width, drawn, reading, area in answers(code, definition=definitions()[name]):
        assert not re.search(r"NaN|undefined|Infinity", drawn + reading)
        height = float(re.search(r'viewBox="0 0 \S+ (\S+)"', drawn)[1])
        for x, y, size in TEXT.findall(drawn):
            assert -1 <= float(x) <= width + 1 and 0 <= float(y) <= height and float(size) >= 11
        assert (area is not None) == (name in ("time", "traces"))
        assert 'aria-label="' in drawn and len(reading) > 20


@pytest.mark.parametrize("view", ["curve", "time", "traces"])
def test_a_value_that_is_no_number_leaves_a_gap(view: str) -> None:
    root = Spec.read("root: a h_prev -> h\nl = log(a)\nh = l + 0*h_prev")
    definition = {
        "view": view, "gates": [workshop.brief(root)], "show": ["h"], "wires": {"a": {"in": 1}},
        "along": "a", "axis": {"low": -2, "high": 2}, "slope": True, "back": None,
        "sliders": [{"name": "a", "low": -2, "high": 2, "value": 0.5}],
    }  # fmt: skip
    code = "GatesViews.views[definition.view](definition, GatesViews.initial(definition), 400)"
    found = answers(code, definition=definition)
    assert not re.search(r"NaN|undefined|Infinity", found["svg"])


def specs_of(chapter: str, name: str) -> list[Spec]:
    """The Specs that an explorer of a chapter writes out."""
    cells = json.loads((ROOT / "chapters" / f"{chapter}.ipynb").read_text(encoding="utf8"))["cells"]
    text = next(t for t in ("".join(c["source"]) for c in cells) if f":name: {name}\n" in t)
    body = text.split(f":name: {name}\n")[1].split("\n---\n")[0].partition("\n\n")[2]
    return [Spec.read(one) for one in body.split("\n\n")]


def test_the_conventions_that_chapter_7_moves_are_the_librarys() -> None:
    given = dict(
        zip(("a_r", "a_z", "a_n", "b", "h_prev"), (0.3, -0.8, 0.6, 0.4, -0.7), strict=True)
    )
    after, before, writes = specs_of("07_gru", "fig-gru-conventions")
    own = [float(spec.evaluate(given)["h"]) for spec in (after, before, writes)]
    reset = gru.RESET.evaluate({k: given[k] for k in ("a_r", "a_z", "h_prev")})
    second = {"a_n": given["a_n"] + reset["q"] + given["b"], "z": reset["z"], "h_prev": -0.7}
    found = [gru.GRU.evaluate({**given, "u_n": given["h_prev"] + given["b"]})["h"]]
    found += [stage.evaluate(second)["h"] for stage in (gru.KEEP, gru.WRITE)]
    np.testing.assert_allclose(own, [float(h) for h in found], rtol=1e-13)
