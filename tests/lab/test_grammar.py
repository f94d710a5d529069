"""Cells of the grammar are cells, stay in bounds, and are kept once.

The witness of a canonical form is a number: a cell under all renamings and signs of its inputs.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib.cell import cell
from gatelib.equations import ALL, gru, lstm, rnn
from gatelib.lab import forms
from gatelib.lab.canonical import canonical, distinct
from gatelib.lab.grammar import Bounds, in_bounds, mutate, reset_before, sample
from gatelib.spec import Spec

SEEDS = st.integers(0, 10**6)
SMALL = Bounds(lines=5, gates=2, candidates=("tanh",), squashes=("sigmoid",), cell_state=False)
BOUNDS = st.sampled_from([Bounds(), SMALL, Bounds(lines=12, gates=5, depth=3)])
KNOWN = (
    "lstm peephole cifg no_input no_forget elman relu_rnn linear_rnn gru no_reset light leaky"
    " reset_only reset_input mgu_after recurrent_highway"
).split()


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, bounds=BOUNDS)
def test_a_sample_is_a_cell_within_its_bounds_that_reads_back_and_has_a_backward_pass(seed, bounds):
    spec = sample(seed, bounds)
    assert in_bounds(spec, bounds)
    assert Spec.read(repr(spec)) == spec
    assert cell(spec).checked().states[0] == "h"
    assert set(spec.vjp().adjoint_of) >= {str(v) for v in spec.inputs}


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, more=SEEDS, bounds=BOUNDS)
def test_a_mutation_is_another_cell_within_the_bounds(seed, more, bounds):
    spec = sample(seed, bounds)
    changed = mutate(spec, more, bounds)
    assert in_bounds(changed, bounds)
    assert canonical(changed) != canonical(spec)


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_cell_is_in_the_grammar_and_can_be_mutated(name):
    spec = ALL[name].spec
    assert in_bounds(spec, Bounds(lines=7))
    assert forms.spec_of(forms.lines_of(spec), name).same_as(spec)
    assert in_bounds(mutate(spec, 0))


def test_the_same_seed_gives_the_same_cell_and_a_generator_moves_on():
    rng = np.random.default_rng(3)
    first, second = sample(rng), sample(rng)
    assert first == sample(3) and first != second
    assert mutate(first, 5) == mutate(first, 5)


def test_mutations_lead_from_the_plain_unit_to_the_gru_and_to_a_cell_state():
    """Every kind of edit is reached: some walk of single steps gives gates, and a state c."""
    spec, seen = rnn.ELMAN, set()
    for seed in range(120):
        spec = mutate(spec, seed)
        seen |= {line.form for line in forms.lines_of(spec)} | set(cell(spec).states)
    assert seen >= {*forms.FORMS, "h", "c"}


def test_what_is_no_cell_of_the_grammar_is_refused():
    with pytest.raises(ValueError, match="spec: expected a cell of the grammar, got layernorm"):
        mutate(lstm.LAYERNORM, 0)
    assert not in_bounds(lstm.LAYERNORM)
    assert not in_bounds(lstm.LSTM, Bounds(gates=3))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lines": 0}, "lines: expected at least 1, got 0"),
        ({"candidates": ()}, "candidates: expected some of"),
        ({"squashes": ("tanh",)}, "squashes: expected some of"),
    ],
)
def test_bounds_that_leave_nothing_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        Bounds(**change)


# --- canonical forms --------------------------------------------------------------------------


def is_weighed(name):
    """Whether it is a preactivation or a learned vector, whose letters and sign are free."""
    return name[:2] in ("a_", "u_", "w_", "b_")


def other_words(spec, rng):
    """Another name for each name but the states, and the keys of preactivations to turn."""
    keys = list(dict.fromkeys(str(v)[2:] for v in spec.inputs if is_weighed(str(v))))
    new = {key: f"n{i}" for i, key in enumerate(rng.permutation(keys))}
    names = {v: v[:2] + new[v[2:]] for v in map(str, spec.inputs) if is_weighed(v)}
    made = [str(v) for v, _ in spec.equations if v not in spec.outputs]
    names |= {v: f"made{i}" for i, v in enumerate(rng.permutation(made))}
    return names, {str(k) for k in rng.permutation(keys)[: len(keys) // 2]}


def written_otherwise(spec, rng):
    """The same cell: other names, other order of inputs and sums, some preactivations turned."""
    names, keys = other_words(spec, rng)
    turned = {v: f"(-{n})" for v, n in names.items() if is_weighed(v) and v[2:] in keys}
    text = []
    for line in forms.lines_of(spec):
        words = tuple((slot, (names | turned).get(w, w)) for slot, w in line.words)
        parts = forms.Line(line.name, line.form, words).text.split(" + ")
        parts = parts if "(" in "".join(parts) else list(rng.permutation(parts))
        text.append(f"{names.get(line.name, line.name)} = {' + '.join(parts)}")
    inputs = [names.get(v, v) for v in rng.permutation([str(v) for v in spec.inputs])]
    outputs = " ".join(map(str, spec.outputs))
    return Spec.parse("other", f"{' '.join(inputs)} -> {outputs}", "\n".join(text))


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS)
def test_a_canonical_form_knows_no_names_no_order_and_no_signs(seed):
    spec = sample(seed)
    assert canonical(written_otherwise(spec, np.random.default_rng(seed))) == canonical(spec)


def values_of(spec, values):
    found = spec.evaluate(values)
    return np.concatenate([found[name] for name in sorted(found)])


def are_one_function(one, other):
    """Whether some renaming and some signs of the inputs make the numbers of both the same."""
    given = {kind: [str(v) for v in one.inputs if str(v).startswith(kind)] for kind in "auwb"}
    mine = {kind: [str(v) for v in other.inputs if str(v).startswith(kind)] for kind in "auwb"}
    carries = {str(v) for v in one.inputs if str(v).endswith("_prev")}
    if {k: len(v) for k, v in given.items()} != {k: len(v) for k, v in mine.items()}:
        return False
    if carries != {str(v) for v in other.inputs if str(v).endswith("_prev")}:
        return False
    rng = np.random.default_rng(0)
    values = {str(v): rng.normal(size=5) for v in one.inputs}
    expected = values_of(one, values)
    names = [name for kind in "auwb" for name in given[kind]]
    orders = itertools.product(*(itertools.permutations(mine[kind]) for kind in "auwb"))
    for order in orders:
        renamed = dict(zip(itertools.chain(*order), names, strict=True))
        for signs in itertools.product((1, -1), repeat=len(names)):
            turned = dict(zip(names, signs, strict=True))
            now = {new: turned[old] * values[old] for new, old in renamed.items()}
            now |= {name: values[name] for name in carries}
            if np.allclose(values_of(other, now), expected, rtol=1e-12, atol=1e-12):
                return True
    return False


def test_no_two_cells_that_are_kept_are_one_function_and_those_left_out_are():
    bounds = Bounds(lines=4, gates=2, candidates=("tanh",), squashes=("sigmoid",))
    drawn = [sample(seed, bounds) for seed in range(60)]
    kept = distinct(drawn)
    assert 20 < len(kept) < len(drawn)
    alike = [(a, b) for a, b in itertools.combinations(kept, 2) if are_one_function(a, b)]
    assert not alike
    firsts = {canonical(one): one for one in reversed(drawn)}
    assert all(are_one_function(firsts[canonical(one)], one) for one in drawn[:20])


def test_kept_cells_of_one_signature_are_not_proven_the_same():
    bounds = Bounds(lines=3, gates=2, candidates=("tanh",), squashes=("sigmoid",))
    kept = distinct([sample(seed, bounds) for seed in range(60)])
    pairs = [p for p in itertools.combinations(kept, 2) if set(p[0].inputs) == set(p[1].inputs)]
    assert len(pairs) > 5
    assert not any(one.same_as(other) for one, other in pairs[:6])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lstm.LSTM, lstm.CIFG),
        (gru.GRU, gru.MGU_AFTER),
        (gru.NO_RESET, gru.LIGHT),
        (gru.CHO, gru.GRU),
        (lstm.LSTM, lstm.PEEPHOLE),
    ],
)
def test_different_cells_have_different_forms(one, other):
    assert canonical(one) != canonical(other)


def test_which_way_the_update_gate_points_is_a_matter_of_writing():
    """Cho's z keeps and Chung's z writes: one cell, in two stages."""
    assert canonical(gru.CHO) == canonical(gru.CHUNG)


def test_a_gate_that_starts_open_is_another_cell():
    text = "f = sigmoid(a_f{})\ng = tanh(a_g)\nh = f*h_prev + (1 - f)*g"
    shut, open_ = (Spec.parse("s", "a_f a_g h_prev -> h", text.format(s)) for s in ("", " + 2"))
    assert canonical(shut) != canonical(open_)


def test_what_has_no_state_is_no_cell():
    with pytest.raises(ValueError, match="has no output `h`"):
        canonical(gru.RESET)


# --- the reset gate before the product --------------------------------------------------------


def test_the_twin_of_torchs_gru_is_chos_and_of_the_minimal_unit_the_papers():
    assert canonical(reset_before(gru.GRU)) == canonical(gru.CHO)
    assert canonical(reset_before(gru.MGU_AFTER)) == canonical(gru.MGU)
    assert reset_before(gru.NO_RESET) is None
    assert reset_before(lstm.LAYERNORM) is None


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_a_twin_is_a_cell_of_two_stages_with_the_same_states(seed):
    spec = sample(seed)
    twin = reset_before(spec)
    if twin is not None:
        assert len(twin.checked().stages) == 2
        assert {*twin.states} == {*cell(spec).states, "h"}
        assert len(twin.gates) == len(cell(spec).gates)
