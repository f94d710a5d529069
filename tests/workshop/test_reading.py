"""What a reader types becomes a Spec, or a message at the line and column where it was typed."""

from __future__ import annotations

import json

import pytest

from gatelib import workshop
from gatelib.equations.lstm import LSTM
from gatelib.spec import Spec, SpecError


def error_of(text: str) -> dict[str, object]:
    """What the page is told about a text that is no gate."""
    found = json.loads(workshop.answer(text))
    assert list(found) == ["error"], found
    return found["error"]


def test_blank_lines_comments_and_any_indent_are_allowed():
    text = "\n# mine\n  g : a  b->y   # a header\n\n      f = sigmoid(a)  # open\n y = f*b\n\n"
    assert workshop.read(text) == Spec.parse("g", "a b -> y", "f = sigmoid(a)\ny = f*b")


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("g: a -> y\nb = tanh(a)\ny = sigmod(b)", 3, 5, "did you mean `sigmoid`"),
        ("g: a -> y\n\n# a comment\ny = sigmoid(b)", 4, 13, "neither an input nor defined above"),
        ("\n\ng: a -> y\n\n    y = sigmoid(a) + b", 5, 22, "neither an input nor defined above"),
        ("g: a -> y\n  b = tanh(a)\n      y = 2*b + sigmod(b)", 3, 17, "not a known function"),
        ("g: a b -> y\ny = sigmoid(a)", 1, 1, "`b` is defined but nothing uses it"),
        ("g: a -> y\nz = tanh(a)\ny = sigmoid(a)", 2, 1, "`z` is defined but nothing uses it"),
        ("g: a -> y\ny = sigmoid(a", 2, 12, "never closed"),
        ("g: a -> y z\ny = sigmoid(a)", 1, 1, "the output `z` is never defined"),
        ("# one\ng: a -> y\na = 2\ny = a", 3, 1, "`a` is already defined"),
        ("g: a a -> y\ny = a", 1, 1, "`a` stands twice in the signature"),
        ("g a: a -> y\ny = a", 1, 1, "expected a free identifier"),
        ("g: a -> y\ny = np*a", 2, 5, "neither an input nor defined"),
        ("g: torch -> y\ny = torch", 1, 1, "name of a module in generated source"),
        ("g: a -> y\ny = 1e400*a", 2, 5, "too large"),
        ("g: a -> y\ny = a\ty", 2, 7, "invalid syntax"),
        ("", 1, 1, "expected `name: inputs -> outputs` first"),
        ("  \n# nothing\n", 1, 3, "expected `name: inputs -> outputs` first"),
        ("g: a", 1, 1, "expected a signature"),
        ("g: a -> y", 1, 1, "the output `y` is never defined"),
        ("g: x -> y\nm = mean(x)\ny = total(m)*x", 3, 1, "takes total of a value that is the same"),
    ],
)
def test_an_error_names_line_and_column_of_the_text_as_it_was_typed(text, line, column, words):
    error = error_of(text)
    assert (error["line"], error["column"]) == (line, column) and words in error["message"]
    with pytest.raises(SpecError) as caught:
        workshop.read(text)
    assert (caught.value.line, caught.value.column) == (line, column)


def test_a_message_leaves_out_the_place_that_the_page_shows_beside_it():
    assert error_of("g: a -> y\ny = sigmod(a)")["message"].startswith("`sigmod` is not a known")
    assert error_of("g: a b -> y\ny = a")["message"] == "`b` is defined but nothing uses it"
    assert error_of("ǆ: a b -> y\ny = a")["message"] == "`b` is defined but nothing uses it"


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("y = sigmoid(a)*x", "gate: a x -> y"),
        ("i = sigmoid(a_i)\nc = c_prev + i*x", "gate: a_i c_prev x -> c"),
        ("f = sigmoid(a)\nh = f*h_prev + (1 - f)*n", "gate: a h_prev n -> h"),
        ("\n  y = tanh(α)", "gate: α -> y"),
        ("y = sigmoid(a", None),
        ("y = 2", None),
        ("g: a -> y\ny = b", None),
    ],
)
def test_a_header_that_would_fit_is_offered_where_there_is_none(text, header):
    error = error_of(text)
    assert error.get("header") == header
    if header:
        assert "error" not in json.loads(workshop.answer(f"{header}\n{text}"))


def test_what_is_too_long_for_a_page_is_refused_in_words():
    many = "\n".join(f"v{n} = tanh(v{n - 1})" for n in range(1, 300))
    assert "at most 200 equations, got 300" in error_of(f"g: a -> v299\nv0 = a\n{many}")["message"]
    long = error_of(f"g: a -> y\ny = {'a + ' * 6000}a")
    assert "at most 20,000 letters, got 24,0" in long["message"]
    error = error_of(f"g: a -> y\n\nb = a\n{'k' * 61} = b\ny = {'k' * 61}")
    assert error["line"] == 4 and "at most 60 letters" in error["message"]


def test_a_sheet_and_its_text_are_one_gate():
    found = json.loads(workshop.answer(repr(LSTM)))
    assert found == json.loads(json.dumps(workshop.sheet(LSTM)))
    assert workshop.read(found["text"]) == LSTM
    assert found["text"].splitlines()[1] == "i = sigmoid(a_i)"


def test_a_derived_gate_is_read_with_the_names_that_its_derivation_made():
    derived = Spec.parse("g", "d_x x -> y", "y = d_x*tanh(x)").vjp()
    assert workshop.read(workshop.sheet(derived)["text"]) == derived


def test_the_circuit_comes_apart_and_so_does_its_error():
    found = json.loads(workshop.drawing("g: a -> y\ny = sigmoid(a)"))
    assert found["svg"].endswith("</svg>\n") or found["svg"].endswith("</svg>")
    assert found["alt"].startswith("Circuit of g.")
    assert json.loads(workshop.drawing("g: a -> y\ny = b"))["error"]["line"] == 2
