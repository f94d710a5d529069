"""What the workshop says of a gate: its values, and code that runs as it is pasted."""

from __future__ import annotations

import pytest
import torch

from gatelib import equations, workshop
from gatelib.equations import gate, lstm
from gatelib.nn import recurrent
from gatelib.spec import Spec

GATES = [known.stages[0] for known in equations.ALL.values() if len(known.stages) == 1]
MINGRU = Spec.parse("mingru", "a_z n h_prev -> h", "z = sigmoid(a_z)\nh = (1 - z)*h_prev + z*n")


def named(specs):
    return pytest.mark.parametrize("spec", specs, ids=lambda spec: spec.name)


def test_a_brief_names_what_an_explorer_asks_for():
    found = workshop.brief(MINGRU)
    assert found["inputs"] == ["a_z", "n", "h_prev"] and found["outputs"] == ["h"]
    assert found["values"] == ["z", "h"] and found["carries"] == {"h_prev": "h"}
    assert found["open"] == ["z"] and found["elementwise"] is True
    assert found["run"]["takes"] == ["a_z", "n", "h_prev", "g_h"]
    assert found["run"]["seeds"] == {"h": "g_h"}


def test_a_state_that_is_no_output_has_a_seed_too():
    hidden = Spec.parse("hidden", "a c_prev -> h", "c = c_prev*sigmoid(a)\nh = tanh(c)")
    assert workshop.brief(hidden)["run"]["seeds"] == {"h": "g_h", "c": "g_c"}


@pytest.mark.parametrize(
    ("line", "is_open"),
    [
        ("y = sigmoid(a)", True),
        ("y = 1 - sigmoid(a)", True),
        ("y = sigmoid(a)*hardsigmoid(b)", True),
        ("y = 0.5*sigmoid(a)", True),
        ("y = softmax(a)*b", False),
        ("y = maximum(sigmoid(a), 0.1)", True),
        ("y = 2*sigmoid(a)", False),
        ("y = 2 - sigmoid(a)", False),
        ("y = sigmoid(a) - 1", False),
        ("y = tanh(a)", False),
    ],
)
def test_a_gate_is_open_by_the_form_of_its_equation(line, is_open):
    names = " ".join(n for n in "ab" if f"({n})" in line or f"*{n}" in line)
    spec = workshop.read(f"g: {names} -> y\n{line}")
    assert workshop.brief(spec)["open"] == ["y"] * is_open


@named(GATES)
def test_every_gate_of_the_book_has_a_sheet_that_reads_back(spec):
    found = workshop.sheet(spec)
    assert workshop.read(found["text"]) == spec
    assert set(found["source"]) == {"numpy", "torch", "triton", "javascript"}
    assert all(list(source) in (["code"], ["none"]) for source in found["source"].values())
    assert found["latex"].startswith(r"\begin{aligned}") and found["backward"]


# ---- a layer -----------------------------------------------------------------------------------


@named([*GATES, MINGRU])
def test_what_makes_it_a_layer_runs_as_it_is_pasted(spec):
    layer = workshop.sheet(spec)["layer"]
    names: dict[str, object] = {}
    exec(compile(layer["code"], "pasted", "exec"), names)
    if layer["kind"] == "recurrent":
        assert isinstance(names["layer"], recurrent.Recurrent)
        assert names["layer"].spec == spec and names["y"].shape == (2, 5, 4)
    elif layer["kind"] == "function":
        assert torch.is_tensor(names["values"]) or isinstance(names["values"], tuple | float | int)
    else:
        assert set(names["state"]) == {str(v) for v in spec.carries}


def test_a_layer_says_what_becomes_of_an_input_that_is_no_preactivation():
    assert workshop.sheet(lstm.LSTM)["layer"]["note"] == ""
    note = workshop.sheet(MINGRU)["layer"]["note"]
    assert note == "`n` is a learned vector of the layer; what it computes from x is called `a_n`."


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("g: a b -> y\ny = a*sigmoid(b)", "function", ""),
        ("g: x -> y\ny = softmax(x)*x", "function", ""),
        ("g: a x c_prev -> c\nc = c_prev*sigmoid(a) + x", "step", "has no output `h`"),
        ("g: a weight_hh a_k h_prev -> h\nh = a*weight_hh*a_k*h_prev", "step", "its own weights"),
    ],
)
def test_where_no_layer_can_be_made_it_says_why_and_what_serves(text, kind, words):
    layer = workshop.sheet(workshop.read(text))["layer"]
    assert layer["kind"] == kind and words in layer["note"]
    exec(compile(layer["code"], "pasted", "exec"), {})


def test_the_names_that_a_layer_keeps_for_itself_are_the_layers():
    assert workshop.PACKED == recurrent.PACKED


def test_a_gate_over_features_has_no_kernel_and_says_why():
    found = workshop.sheet(gate.SOFTMAX)
    assert "across the features" in found["source"]["triton"]["none"]
    assert "elementwise" not in found["layer"]["code"]
