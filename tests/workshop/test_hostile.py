"""No text raises from `answer`, none hangs it, and what it takes round-trips.

Imports gatelib.workshop, Hypothesis.
Must not import torch: a page has none.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gatelib import printers, printers_javascript, workshop
from gatelib.functions import FUNCTIONS
from tests.strategies import ELEMENTWISE, OVER_FEATURES, Written, gates

FAULT = "the workshop fails"
SECONDS = 6


def nested(form: str, depth: int, inner: str = "a") -> str:
    for _ in range(depth):
        inner = form.format(inner)
    return inner


def many(form: str, count: int, between: str) -> str:
    return between.join(form.format(n, n + 1) for n in range(2, count))


def gate(line: str, names: str = "a b") -> str:
    return f"g: {names} -> y\ny = {line}"


TOO_MUCH = {
    "minus signs": gate("-" * 19_000 + "a", "a"),
    "open brackets": gate("(" * 5_000 + "a", "a"),
    "brackets": gate(nested("({})", 1_000), "a"),
    "tanh of tanh": gate(nested("tanh({})", 500), "a"),
    "powers above": gate("a" + "**2" * 4_000, "a"),
    "if and else": gate("a if a else " * 900 + "a", "a"),
    "functions of nothing": gate("lambda:" * 2_000 + "a", "a"),
    "lists": gate("[" * 190 + "]" * 190, "a"),
    "points": gate("a" + ".b" * 6_000, "a"),
    "calls": gate("a" + "()" * 6_000, "a"),
    "1e400": gate("1e400*a", "a"),
    "ten above ten": gate("10**10**10*a", "a"),
    "nine above nine": gate("9**9**9*a", "a"),
    "digits": gate("9" * 5_000 + "*a", "a"),
    "decimals": gate("0." + "1" * 5_000 + "*a", "a"),
    "exponents": gate("exp(exp(exp(exp(9))))*a", "a"),
    "a long fraction": gate("a*" + many("{0}/{1}", 900, "*"), "a"),
    "a long sum": gate("a + " + many("1/{0}", 1_500, " + "), "a"),
    "roots": gate("a*" + many("{0}**0.5", 400, "*"), "a"),
    "a product that expands": gate(many("(a*{0} + b)**{0}", 300, "*")),
    "a product of functions": gate(many("tanh({0}*a + b)", 250, "*")),
    "a sum of powers": gate(many("a**{0}*b", 1_000, " + ")),
    "softmax of softmax": gate(nested("softmax(a*{})", 30, "b")),
    "norm of norm": gate(nested("normalize(a*{} + b)", 30, "b")),
    "silu of silu": gate(nested("silu({})*b", 40)),
    "roots of roots": gate(nested("({})**1.5", 80), "a"),
    "maxima": gate(nested("maximum({}, b)", 80)),
    "10,000 lines": "g: a -> y\n" + "\n".join(f"v{n} = a" for n in range(10_000)),
    "10,000 empty calls": "g: a -> y\n" + "f()\n" * 4_000,
    "a name of 5,000 letters": gate("k" * 5_000, "k" * 5_000),
    "a null": gate("a\0", "a"),
    "a smile": gate("😀", "😀"),
}


@pytest.mark.parametrize("text", TOO_MUCH.values(), ids=TOO_MUCH)
def test_what_is_too_much_ends_in_a_message_within_seconds(text):
    start = time.process_time()
    error = json.loads(workshop.answer(text))["error"]
    assert time.process_time() - start < SECONDS
    assert not error["message"].startswith(FAULT) and len(error["message"]) < 600
    assert 1 <= error["line"] <= text.count("\n") + 1 and error["column"] >= 1
    assert "name" in json.loads(workshop.answer("g: a -> y\ny = sigmoid(a)")), "the next gate works"


MUCH = {
    "tanh of tanh": gate(nested("tanh({})", 65), "a"),
    "quotients": gate(nested("1/(a + {})", 33, "b")),
    "two softmaxes": gate(nested("softmax(a*{})", 3, "b")),
    "a hundred carries": "\n".join(
        [
            f"g: a {' '.join(f'v{n}_prev' for n in range(100))} -> {many('v{0}', 100, ' ')}",
            "v0 = tanh(a)*v0_prev",
            "v1 = v0*v1_prev",
            *(f"v{n} = v{n - 1}*v{n}_prev" for n in range(2, 100)),
        ]
    ),
    "two hundred lines": "\n".join(
        ["g: a -> v199", "v0 = tanh(a)"]
        + [f"v{n} = v{n - 1}*tanh(v{n // 2}) + v{n // 3}" for n in range(1, 199)]
        + ["v199 = v198"]
    ),
    "letters of any script": "é: ü 变 -> ψ\nψ = tanh(ü)*变",
    "from right to left": "א: ב -> ג\nג = tanh(ב)",
    "what a script keeps": "static: package eval -> y\ny = package*sigmoid(eval)",
    "a small number": gate("5e-324*a", "a"),
    "what cancels": gate("a*(exp(1/3)*exp(-1/3) - 1 + sigmoid(2))", "a"),
}


@pytest.mark.parametrize("text", MUCH.values(), ids=MUCH)
def test_what_is_much_is_taken_within_seconds(text):
    start = time.process_time()
    found = json.loads(workshop.answer(text))
    assert time.process_time() - start < SECONDS
    assert "error" not in found, found
    assert workshop.read(found["text"]) == workshop.read(text)


def test_functions_that_are_written_twice_are_known():
    forms = [printers.NUMPY, printers.TORCH, printers_javascript.FORMS]
    for name in FUNCTIONS:
        copies = max(form.get(name, "").count("{0}") for form in forms)
        assert copies < 2 or name in workshop.TWICE or name in OVER_FEATURES, name


# ---- at random ---------------------------------------------------------------------------------

PIECES = (
    "g: a b -> y\n", "y = ", "a", "b", "y", "sigmoid(", "softmax(", ")", "(", "*", "/", "**", "-",
    "+", " ", "\n", "\t", "#", ":", "->", "=", "0", "1", "2.5", "1e400", "0.1", "1/3", "h_prev",
    "h", "mean(", "log(", ",", "if", "é", "\u2028", "\0", "\\", "'", '"""', "_", "np", "torch",
    "lambda",
)  # fmt: skip


def is_answered(text: str) -> dict[str, Any]:
    found = json.loads(workshop.answer(text))
    if "error" in found:
        assert not found["error"]["message"].startswith(FAULT), text
        assert found["error"]["line"] <= len(re.split("\r\n|\r|\n", text))
    else:
        assert workshop.read(found["text"]) == workshop.read(text)
        assert workshop.sheet(workshop.read(found["text"])) == found
    return found


@settings(max_examples=150)
@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=30).map("".join)))
@example("g: a -> y\n\x0cy = a")
@example("g: a -> y\r\ny = a\rz = a")
@example("g: a -> y\ny = a # made by derivation: d: a")
@example("g: a -> y\n# made by derivation: x: a\ny = a")
def test_no_text_raises(text):
    is_answered(text)


@settings(max_examples=30)
@given(gates(tuple(ELEMENTWISE + OVER_FEATURES), names="both"))
def test_what_an_author_may_write_is_taken_or_refused_with_a_reason(written: Written):
    is_answered(f"{written.name}: {written.signature}\n{written.text}")
