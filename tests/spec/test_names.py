"""A name that a derivation makes is free, says what it belongs to, and stays so in every text."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings

from gatelib.equations import lstm
from gatelib.spec import Spec, SpecError, free
from tests.judge import in_torch
from tests.strategies import SMOOTH, Written, gates, read_or_reject

CROWDED = Spec.parse(
    "crowded",
    "d_f f g_c c_prev t_x x dd_f t_max d_k g_in -> c h",
    "f_d = sigmoid(d_f + f)\nc = f_d*c_prev + g_c*dd_f*t_max\nh = c*t_x*x*d_k*g_in",
)
TRICKY = gates(tuple(SMOOTH), names="adversarial", lines=3, depth=1)


def test_adjoints_seeds_and_tangents_are_found_without_reading_names():
    back = CROWDED.vjp()
    assert [back.adjoint_of[str(v)] for v in CROWDED.inputs] == list(map(str, back.outputs))
    assert back.adjoint_of["f"] == "ddd_f" and back.adjoint_of["d_f"] == "ddd_d_f"
    assert back.seed_of == {"h": "gg_h", "c": "gg_c"}
    assert CROWDED.jvp().tangent_of["x"] == "tt_x"


def test_names_are_the_short_ones_where_these_are_free():
    back = lstm.LSTM.vjp()
    assert back.seed_of == {"h": "g_h", "c": "g_c"} and back.adjoint_of["a_f"] == "d_a_f"
    again = back.vjp()
    assert again.seed_of["d_a_f"] == "g_d_a_f" and again.adjoint_of["g_h"] == "dd_g_h"
    assert lstm.LSTM.roles == () and lstm.LSTM.adjoint_of == {}


@pytest.mark.parametrize("spec", [CROWDED, lstm.LSTM, lstm.PEEPHOLE], ids=lambda s: s.name)
def test_what_was_derived_is_still_known_after_a_trip(spec):
    back = spec.vjp("")
    for made in (back, spec.jvp(), back.vjp(""), back.jvp(), back.exposed, back.replace("mine")):
        for again in (Spec.read(repr(made)), pickle.loads(pickle.dumps(made))):
            assert again == made and again.roles == made.roles and again.latex() == made.latex()


def test_a_gate_of_its_author_has_no_roles_whatever_it_is_called():
    mine = Spec.parse("my_vjp", "g_h f -> d_f", "d_f = g_h*f")
    assert mine.roles == () and Spec.read(repr(mine)) == mine
    assert r"\bar" not in mine.latex() and r"\nabla" not in mine.latex()


def test_latex_puts_bars_only_on_what_a_derivation_made():
    assert not re.search(r"\\bar|\\dot|\\nabla", CROWDED.latex())
    for part in ("d^{k}_{t}", r"t^{max}_{t}", "g^{in}_{t}"):
        assert part in CROWDED.latex()
    assert r"\bar{\bar{\bar{d}}}^{k}_{t} &=" in CROWDED.vjp().latex()
    assert r"\nabla_{\!\nabla" not in CROWDED.vjp().latex()


def test_a_name_of_many_parts_is_tex():
    tex = Spec.parse("long", "a_b_c_d x -> y", "y = a_b_c_d*x*1e-5 + 2.5e-7").latex()
    assert r"a_{b_{c_d}}" in tex and "10^{-5}" in tex and r"2.5 \cdot 10^{-7}" in tex


def test_a_role_that_is_none_is_refused():
    d, c = CROWDED.inputs[0], CROWDED.inputs[1]
    with pytest.raises(SpecError, match="roles: expected `d_d_f`"):
        Spec("one", ((c, d),), (d,), (c,), ((c, d),))


def test_free_asks_whether_a_name_is_free():
    assert free("tmp", {"x"}) == "tmp" and free("tmp", {"tmp", "tmp_1"}) == "tmp_2"


@pytest.mark.parametrize("name", ["new", "let", "arguments", "await_1", "Math", "NaN", "switch"])
def test_words_that_javascript_keeps_are_moved_aside_everywhere(name):
    spec = Spec.parse(name, f"{name} x -> y", f"y = {name}*x")
    text = spec.source("javascript")
    assert (
        text.count(f"{name}_") == (0 if name == "await_1" else 3) and Spec.read(repr(spec)) == spec
    )


@pytest.mark.parametrize("name", ["np", "torch", "F", "special", "lambda", "None", "x__y", "_x"])
def test_words_that_python_keeps_are_refused(name):
    with pytest.raises(SpecError):
        Spec.parse("gate", f"{name} x -> y", f"y = {name}*x")


def test_an_input_that_is_an_output_has_a_tangent_and_an_adjoint():
    spec = Spec.parse("through", "x z -> x y", "y = z*z")
    known = {"x": 2.0, "z": 3.0}
    moved = spec.jvp().evaluate(known | {"t_x": 5.0, "t_z": 1.0})
    assert moved == {"t_x": 5.0, "t_y": 6.0}
    assert spec.vjp("").evaluate(known | {"g_x": 7.0, "g_y": 1.0}) == {"d_x": 7.0, "d_z": 6.0}


def _close(found, expected, counts):
    """Whether most elements agree: a wrong name is wrong nearly everywhere."""
    found = np.broadcast_to(np.asarray(found, dtype=float), expected.shape)[counts]
    expected = expected[counts]
    assume(np.isfinite(expected).all() and (np.abs(expected) < 1e8).all())
    return np.median(np.abs(found - expected) / (1 + np.abs(expected))) < 1e-8


def _by_autograd(gate, values, seeds):
    """The gradients of the author's text, by input: what no Spec had a hand in."""
    leaves = {n: torch.tensor(v, requires_grad=True) for n, v in values.items()}
    outputs = gate.run(in_torch(), leaves)
    zero = sum(v.sum() * 0 for v in leaves.values())
    loss = sum((outputs[n] * torch.tensor(seeds[n])).sum() for n in gate.outputs) + zero
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {n: g.numpy() for n, g in zip(leaves, gradients, strict=True)}


def _along(forward, gate, values, dots, seeds):
    """The seeds' sum of the tangents of all outputs, where inputs move by `dots`."""
    known = {forward.tangent_of[n]: d for n, d in dots.items() if n in forward.tangent_of}
    moved = forward.evaluate(values | known)
    zero = sum(v * 0 for v in seeds.values())
    return sum((seeds[n] * moved[forward.tangent_of[n]] for n in gate.outputs), zero)


@settings(max_examples=500)
@given(gate=TRICKY)
def test_derivatives_are_right_whatever_the_names_are(gate: Written):
    spec = read_or_reject(gate)
    values = gate.values()
    counts = np.all([j.counts for j in gate.judge(values).values()], axis=0)
    assume(counts.sum() > 3)
    rng = np.random.default_rng(1)
    seeds, dots = (
        {n: rng.uniform(0.5, 1.5, size=counts.shape) for n in names}
        for names in (gate.outputs, values)
    )
    gradients, back = _by_autograd(gate, values, seeds), spec.vjp("")
    known = values | {back.seed_of[n]: seeds[n] for n in gate.outputs if n in back.seed_of}
    with np.errstate(all="ignore"):
        found = back.evaluate(known)
        total = _along(spec.jvp(), gate, values, dots, seeds)
    for name in map(str, spec.inputs):
        assert _close(found[back.adjoint_of[name]], gradients[name], counts), name
    assert _close(total, sum(gradients[n] * dots[n] for n in values), counts)
