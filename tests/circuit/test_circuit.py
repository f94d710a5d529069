"""The drawn circuits: complete, deterministic, and geometrically sound.

Imports gatelib.circuit, gatelib.equations, gatelib.spec.
Must not import torch: a diagram needs nothing but equations.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gatelib.circuit import Circuit, draw
from gatelib.circuit.graph import graph_of
from gatelib.equations import ALL
from gatelib.spec import Spec
from tests.circuit.sound import SVG, is_sound, meet, upright

LSTM = ALL["lstm"].spec
GATES = {name: ALL[name].spec for name in ("lstm", "peephole", "cifg", "layernorm", "gru")} | {
    "gate": Spec.parse("gate", "a x -> y", "g = sigmoid(a)\ny = g*x"),
    "interpolation": Spec.parse(
        "interpolation", "a_g a b -> y", "g = sigmoid(a_g)\ny = (1 - g)*a + g*b"
    ),
    "highway": Spec.parse(
        "highway", "a_t a_h x -> y", "t = sigmoid(a_t)\nk = relu(a_h)\ny = t*k + (1 - t)*x"
    ),
    "glu": Spec.parse("glu", "a v -> y", "g = silu(a)\ny = g*v"),
    "mingru": Spec.parse(
        "mingru", "a_z a_h h_prev -> h", "z = sigmoid(a_z)\nh = (1 - z)*h_prev + z*a_h"
    ),
    "rglru": Spec.parse(
        "rglru",
        "a_r a_i x w h_prev -> h",
        """
    r = sigmoid(a_r)
    i = sigmoid(a_i)
    a = exp(-8*softplus(w)*r)
    s = sqrt(1 - a**2)
    h = a*h_prev + s*(i*x)""",
    ),
    "slstm": Spec.parse(
        "slstm",
        "a_i a_f a_z a_o c_prev n_prev m_prev -> h c n m",
        """
    z = tanh(a_z)
    o = sigmoid(a_o)
    k = a_f + m_prev
    m = maximum(k, a_i)
    i = exp(a_i - m)
    f = exp(k - m)
    c = f*c_prev + i*z
    n = f*n_prev + i
    h = o*c/n""",
    ),
}
drawn = cache(draw)


@pytest.fixture(params=GATES)
def gate(request: pytest.FixtureRequest) -> tuple[Spec, Circuit]:
    spec = GATES[request.param]
    return spec, drawn(spec)


def shown_texts(circuit: Circuit) -> list[str]:
    root = ElementTree.fromstring(circuit.svg)
    return ["".join(t.itertext()) for t in root.iter(f"{SVG}text")]


def plain(name: str, spec: Spec) -> str:
    """The label that stands for a symbol, as plain text."""
    if name.endswith("_prev"):
        return name.removesuffix("_prev") + "t−1"
    timed = {str(s) for s in (*spec.outputs, *spec.carries.values())} if spec.carries else set()
    return name + "t" if name in timed else name.replace("_", "")


# ------------------------------------------------------------------ tests


def test_the_geometry_of_every_gate_is_sound(gate: tuple[Spec, Circuit]) -> None:
    is_sound(gate[1])


def test_every_symbol_of_the_equations_is_shown(gate: tuple[Spec, Circuit]) -> None:
    spec, circuit = gate
    texts = [t.lstrip("×+") for t in shown_texts(circuit)]
    for symbol in (*spec.inputs, *(s for s, _ in spec.equations)):
        assert plain(str(symbol), spec) in texts


def test_every_equation_stands_in_the_alt_text(gate: tuple[Spec, Circuit]) -> None:
    spec, circuit = gate
    assert all(f"{symbol} = " in circuit.alt for symbol, _ in spec.equations)


def test_every_carry_is_a_straight_rail_across_the_top(gate: tuple[Spec, Circuit]) -> None:
    spec, circuit = gate
    lowest_rail = 0.0
    for previous, current in spec.carries.items():
        start = next(s for s in circuit.shapes if s.kind == "pin" and s.name == str(previous))
        end = next(s for s in circuit.shapes if s.kind == "out" and s.name == str(current))
        assert start.y == end.y
        spans = sorted(w.segments[0] for w in circuit.wires if w.segments[0][1] == start.y)
        assert spans[0][0] < 5 and spans[-1][2] > circuit.size[0] - 10
        assert all(b[0] - a[2] <= 70 for a, b in pairwise(spans))
        lowest_rail = max(lowest_rail, start.y)
    others = [s for s in circuit.shapes if s.kind == "pin" and not s.name.endswith("_prev")]
    assert all(s.y > lowest_rail for s in others)


def test_a_wire_jumps_over_each_wire_that_it_crosses(gate: tuple[Spec, Circuit]) -> None:
    levels = [wire.segments[0] for wire in gate[1].wires]
    drops = [upright(drop) for wire in gate[1].wires for drop in wire.segments[1:]]
    crossings = [
        drop for x1, y, x2, _ in levels for drop in drops if meet((x1, y, x2 + 0.01, y), drop)
    ]
    assert gate[1].svg.count("A5 5 ") == len(crossings)


def test_the_lstm_rail_holds_one_product_and_one_sum() -> None:
    shapes = drawn(LSTM).shapes
    top = min(s.y for s in shapes)
    rail = [s.label for s in sorted(shapes, key=lambda s: s.x) if s.y == top]
    assert rail == ["c_{t−1}", "⊙", "+", "c_{t}"]


def test_a_rail_runs_through_products_rather_than_functions() -> None:
    spec = Spec.parse("residual", "a h_prev -> h", "p = tanh(h_prev)\nq = a*h_prev\nh = p + q")
    shapes = drawn(spec).shapes
    assert {s.label for s in shapes if s.role == "state"} == {"h_{t−1}", "⊙", "+", "h_{t}"}


@pytest.mark.parametrize(
    ("signature", "text"),
    [
        ("a p_prev -> y p", "y = a*p_prev\np = y + a"),  # an output in the middle of a rail
        ("p_prev q_prev -> p q", "p = maximum(p_prev, q_prev)\nq = p_prev*q_prev"),
        ("a p_prev q_prev -> p q", "p = a*p_prev + q_prev\nq = p*q_prev + p_prev"),
    ],
)
def test_who_else_reads_a_rail_is_drawn_beside_it(signature: str, text: str) -> None:
    spec = Spec.parse("branches", signature, text)
    is_sound(drawn(spec))
    for carry in spec.carries.items():
        ends = {s.y for s in drawn(spec).shapes if s.name in map(str, carry)}
        assert len(ends) == 1


def test_where_two_carries_meet_the_first_keeps_its_rail() -> None:
    spec = Spec.parse("meet", "a p_prev q_prev -> p q", "p = a*p_prev + q_prev\nq = tanh(p)")
    is_sound(drawn(spec))
    assert len({s.y for s in drawn(spec).shapes if s.name in ("p_prev", "p")}) == 1


def test_gates_that_multiply_are_coloured_and_candidates_are_not() -> None:
    roles = {s.name: s.role for s in drawn(LSTM).shapes if s.kind == "box"}
    assert roles == {"i": "gate", "f": "gate", "o": "gate", "g": "plain", "m": "plain"}


@pytest.mark.parametrize("name", ["lstm", "cifg", "peephole", "gru", "cho", "mgu", "light"])
def test_what_keeps_a_state_is_drawn_as_a_gate_and_what_it_keeps_as_a_state(name: str) -> None:
    """By the equations, whatever the letters: a `c` may be a cell or a carry gate."""
    cell = ALL[name]
    roles = {node.name: node.role for node in graph_of(cell.joined()).nodes if node.name}
    for state, factor in cell.keeps.items():
        assert roles[state] == roles[f"{state}_prev"] == "state"
        assert {roles[str(v)] for v in factor.free_symbols} == {"gate"}
    assert roles_of("c = sigmoid(a_c)\nh = c*h_prev + (1 - c)*a_h")["c"] == "gate"


def roles_of(text: str) -> dict[str, str]:
    return {n.name: n.role for n in graph_of(Spec.parse("x", "a_c a_h h_prev -> h", text)).nodes}


def test_a_minus_is_drawn_where_a_value_is_taken_away() -> None:
    spec = Spec.parse("difference", "a b -> y", "y = a - b")
    assert "−" in shown_texts(draw(spec))
    assert "−" not in shown_texts(draw(Spec.parse("total", "a b -> y", "y = a + b")))


def test_the_usual_gates_are_legible_on_a_phone() -> None:
    for name in ("lstm", "gru", "gate", "peephole", "cifg", "highway", "glu", "interpolation"):
        assert 18 * min(1.35, 358 / drawn(GATES[name]).size[0]) >= 11, name


def test_no_ids_and_no_styles_clash_between_two_figures(gate: tuple[Spec, Circuit]) -> None:
    svg = gate[1].svg
    assert " id=" not in svg and "<style" not in svg and "url(" not in svg
    assert 'role="img"' in svg and "<title>" in svg and "<desc>" in svg
    assert "href" not in svg and "@import" not in svg


def test_the_drawing_is_the_same_in_another_process() -> None:
    code = (
        "import sys; from gatelib.circuit import draw; from gatelib.equations.lstm import LSTM;"
        "sys.stdout.buffer.write(draw(LSTM).svg.encode())"
    )
    root = Path(__file__).parents[2]
    for seed in ("1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, check=True
        )
        assert done.stdout.decode() == drawn(LSTM).svg


@pytest.mark.parametrize(
    ("signature", "text"),
    [
        ("a h_prev -> h", "m = a*h_prev\nh = m"),
        ("a h_prev c_prev -> h c", "m = a*h_prev + c_prev\nh = m\nc = h"),
        ("a x -> y z", "g = sigmoid(a)\nk = g\ny = k*x\nz = k + g"),
        ("a -> y z", "y = a\nz = y"),
    ],
)
def test_another_name_for_a_value_is_a_plain_wire(signature: str, text: str) -> None:
    spec = Spec.parse("alias", signature, text)
    circuit = draw(spec)
    is_sound(circuit)
    assert "id" not in shown_texts(circuit)
    for symbol in (*spec.inputs, *(s for s, _ in spec.equations)):
        assert plain(str(symbol), spec) in shown_texts(circuit)


def test_a_gate_under_another_name_is_still_a_gate() -> None:
    spec = Spec.parse("alias", "a x -> y", "g = sigmoid(a)\nk = g\ny = k*x")
    assert {s.name for s in draw(spec).shapes if s.role == "gate"} == {"g", "k"}


def test_names_replace_labels_and_keep_subscripts() -> None:
    texts = shown_texts(draw(GATES["gate"], names={"g": r"\alpha_k", "x": "x<1"}))
    assert "αk" in texts and "x<1" in texts and "g" not in texts


def test_the_backward_pass_is_drawn_too() -> None:
    circuit = draw(GATES["gate"].vjp())
    is_sound(circuit)
    names = {str(s) for s in GATES["gate"].vjp().outputs}
    assert names == {s.name for s in circuit.shapes if s.kind == "out"}


def test_a_previous_value_with_a_subscript_keeps_both() -> None:
    spec = Spec.parse("two", "a s_x_prev -> s_x", "s_x = a*s_x_prev")
    assert "sx,t−1" in shown_texts(draw(spec))


def test_a_name_with_two_subscripts_shows_both() -> None:
    assert "ab,c" in shown_texts(draw(Spec.parse("two", "a_b_c -> y", "y = tanh(a_b_c)")))


def test_width_sets_the_natural_width_in_pixels() -> None:
    circuit = draw(GATES["gate"], width=300)
    assert 'width="300"' in circuit.svg
    assert circuit.size == drawn(GATES["gate"]).size


def test_save_writes_the_svg(tmp_path: Path) -> None:
    circuit = drawn(GATES["gate"])
    circuit.save(tmp_path / "gate.svg")
    assert (tmp_path / "gate.svg").read_text(encoding="utf-8") == circuit._repr_svg_()
    with pytest.raises(ValueError, match=r"path: expected a name ending in \.svg"):
        circuit.save(tmp_path / "gate.png")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"names": {"q": "x"}}, ValueError, "names: .*'q'"),
        ({"names": {"g": ""}}, ValueError, "names: expected a label for 'g'"),
        ({"names": {"g": 3}}, ValueError, "names: expected a label for 'g', got 3"),
        ({"names": "g"}, TypeError, "names: expected a mapping"),
        ({"width": 0}, ValueError, "width: expected a positive"),
        ({"width": float("nan")}, ValueError, "width: expected a positive"),
        ({"width": "wide"}, TypeError, "width: expected a number"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        draw(GATES["gate"], **arguments)


def test_what_is_not_a_spec_is_refused() -> None:
    with pytest.raises(TypeError, match=r"spec: expected a gatelib\.spec\.Spec, got str"):
        draw("lstm")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["y = a", "y = a*a", "y = -a", "y = 2*a - 3", "y = 1/a", "y = a**3", "y = 1 - a", "y = a/2"],
)
def test_small_expressions_are_drawn(text: str) -> None:
    is_sound(draw(Spec.parse("small", "a -> y", text)))


def test_a_value_that_is_read_twice_by_one_function_has_one_wire() -> None:
    wires = draw(Spec.parse("twice", "a -> y", "y = maximum(a, a)")).wires
    assert [len(wire.sinks) for wire in wires] == [1, 1]


def test_a_bias_beside_a_constant_is_shown() -> None:
    spec = Spec.parse("bias", "b_p p_prev -> p", "p = 1 - p_prev + b_p")
    assert {"+bp", "+1"} <= set(shown_texts(draw(spec)))
