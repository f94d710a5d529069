"""A circuit of any Spec ends: drawn, or refused with its size.

Imports gatelib.circuit, gatelib.spec.
Must not import torch: a diagram needs nothing but equations.
"""

from __future__ import annotations

import time

import pytest

from gatelib.circuit import draw, layout
from gatelib.spec import Spec, SpecError
from tests.circuit.sound import is_sound


def chain(count: int) -> Spec:
    """Each value reads others far above it."""
    lines = [f"v{n} = v{n - 1}*tanh(b + v{n // 2}) + v{n // 3}" for n in range(1, count)]
    return Spec.read("\n".join(["chain: a b -> y", "v0 = tanh(a)", *lines, f"y = v{count - 1}"]))


def carries(count: int) -> Spec:
    """Each value is carried, and reads the one above it."""
    old, new = ([f"v{n}{end}" for n in range(count)] for end in ("_prev", ""))
    lines = [f"v{n} = v{n - 1}*v{n}_prev" for n in range(1, count)]
    head = f"carries: a {' '.join(old)} -> {' '.join(new)}"
    return Spec.read("\n".join([head, "v0 = tanh(a)*v0_prev", *lines]))


def readers(count: int) -> Spec:
    """One carry that hundreds of values read."""
    lines = [f"x{n} = tanh({n + 2}*v_prev)" for n in range(count)]
    total = " + ".join(f"x{n}" for n in range(count))
    head = "readers: a v_prev -> v y"
    return Spec.read("\n".join([head, "v = a*v_prev", *lines, f"y = {total}"]))


@pytest.mark.parametrize("make", [chain, carries, readers])
def test_hundreds_of_equations_are_drawn_in_seconds(make):
    start = time.process_time()
    drawn = draw(make(300))
    assert time.process_time() - start < 10
    if make is chain:
        is_sound(drawn)


@pytest.mark.parametrize("make", [chain, carries, readers])
def test_what_is_larger_is_refused_with_its_size(make):
    start = time.process_time()
    with pytest.raises(SpecError, match=r"too large to be drawn: expected at most 1,500 .* got \d"):
        draw(make(600))
    assert time.process_time() - start < 10


def test_the_search_counts_what_it_asks_for(monkeypatch):
    """An arrangement that never pleases ends too."""
    asked = []
    monkeypatch.setattr(layout, "WORK", 200_000)
    evaluate = layout.Layout._cost
    monkeypatch.setattr(layout.Layout, "_cost", lambda *s: asked.append(1) or evaluate(*s))
    draw(chain(40))
    assert len(asked) * 100**2 < 1_000_000
