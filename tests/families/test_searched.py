"""The witnesses of cells that a search found agree: equations, NumPy by hand, torch by autograd."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import strategies as st

from gatelib import derived, lab
from gatelib.cell import cell
from gatelib.equations import gru, highway
from gatelib.equations import searched as equations
from gatelib.nn import HighwayNodes, Mutated, Recurrent, RecurrentHighway
from gatelib.reference import gru as gru_reference
from gatelib.reference import searched as reference
from gatelib.spec import symbol
from tests.families.witnesses import (
    BAD_SEQUENCES,
    assert_agree,
    assert_read_in_pieces,
    for_any_shape,
    named,
)

VARIANTS = sorted(reference.VARIANTS)
CELLS = {
    "enas": equations.ENAS,
    "darts_first": equations.DARTS_FIRST,
    "darts_second": equations.DARTS_SECOND,
    "plain": equations.Nodes((("sigmoid", 0), ("identity", 0), ("relu", 2)), (1, 3, 3)),
}
WEIGHTS = {"W": "weight_x", "U": "weight_hh", "b": "bias", "c": "bias_x"}


def problem(variant="mut1", B=3, T=5, H=6, D=None, seed=0):
    """Random weights, input, initial state and upstream gradients."""
    rng = np.random.default_rng(seed)
    features = H if D is None else D
    weights = reference.initialize(rng, features, H, variant)
    x, h0, dy, dh = (rng.normal(size=s) for s in ((B, T, features), (B, H), (B, T, H), (B, H)))
    return x, weights, h0, dy, dh


def by_hand(variant, x, weights, h0, dy, dh, lengths=None):
    y, h, saved = reference.forward(x, weights, h0, lengths, variant)
    found = reference.backward(dy, dh, saved)
    return {"y": y, "final_h": h} | {f"d_{name}": value for name, value in found.items()}


def by_equations(variant, *args):
    return derived.gradients(partial(derived.searched.mutated, variant), *named(*args))


def by_torch(layer, *args):
    own = WEIGHTS if isinstance(layer, Mutated) else WEIGHTS | {"W": "weight_ih"}
    names = {short: own[short] for short in args[1]}
    return lab.gradients(lab.over_time(layer, **names), *named(*args))


# --- the mutated units ------------------------------------------------------------------------


@for_any_shape(40, steps=0, variant=st.sampled_from(VARIANTS))
def test_hand_and_derivation_agree_for_any_shape(variant, shape, seed):
    B, T, H, D = shape
    itself = reference.VARIANTS[variant].itself
    args = problem(variant, B, T, H, None if itself else D, seed)
    assert_agree(by_hand(variant, *args), by_equations(variant, *args))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_torch_layer_has_the_gradients_by_hand(variant):
    args = problem(variant, seed=1)
    assert_agree(by_torch(Mutated(6, 6, variant), *args), by_hand(variant, *args))


def test_a_padded_row_is_the_row_alone():
    for variant in VARIANTS:
        x, weights, h0, dy, dh = problem(variant, seed=2)
        together = by_hand(variant, x, weights, h0, dy, dh, np.array([5, 2, 0]))
        alone = by_hand(variant, x[1:2, :2], weights, h0[1:2], dy[1:2, :2], dh[1:2])
        for name in ("y", "d_x"):
            np.testing.assert_allclose(together[name][1:2, :2], alone[name], atol=1e-14)
            assert not together[name][1, 2:].any() and not together[name][2].any()
        np.testing.assert_allclose(together["d_h0"][1:2], alone["d_h0"], atol=1e-14)
        np.testing.assert_array_equal(together["d_h0"][2], dh[2])


def test_saturated_gates_stay_finite():
    for variant in VARIANTS:
        x, *rest = problem(variant)
        found = by_hand(variant, 1e4 * x, *rest)
        assert all(np.isfinite(v).all() for v in found.values())


def test_mut2_of_public_code_is_chungs_gru():
    """Where r sees W x in the place of x, nothing is left that sets MUT2 apart."""
    x, weights, h0, dy, dh = problem("mut2_code", D=4)
    z, r, n = (slice(k * 6, k * 6 + 6) for k in range(3))
    order = np.r_[r, z, n]
    turned = {name: value[order] for name, value in weights.items()}
    y, _, saved = gru_reference.forward(x, turned, h0, variant="chung")
    back = gru_reference.backward(dy, dh, saved)
    found = by_hand("mut2_code", x, weights, h0, dy, dh)
    np.testing.assert_allclose(found["y"], y, atol=1e-13)
    np.testing.assert_allclose(found["d_U"][order], back["U"], atol=1e-12)
    assert equations.MUTATED["mut2_code"] is gru.CHUNG


@pytest.mark.parametrize(("printed", "code"), [("mut1", "mut1_code"), ("mut2", "mut2_code")])
def test_public_code_is_the_paper_where_its_product_is_the_identity(printed, code):
    x, weights, h0, dy, dh = problem(printed, seed=3)
    W = reference._blocks(weights["W"], reference.VARIANTS[printed].of_x)
    W |= {"n" if printed == "mut1" else "r": np.eye(6)}
    own = weights | {"W": np.concatenate([W[k] for k in "zrn"])}
    own |= {"c": np.zeros(6)} if code == "mut1_code" else {}
    found, expected = by_hand(code, x, own, h0, dy, dh), by_hand(printed, x, weights, h0, dy, dh)
    for name in ("y", "final_h", "d_x", "d_h0", "d_U", "d_b"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-13)


def test_paper_and_code_are_not_the_same_equations():
    first, second = (equations.MUT1.stages[1], equations.MUT1_CODE.stages[1])
    assert not first.same_as(second)
    assert first.compose()["h"].subs(symbol("x"), symbol("a_n")) == second.compose()["h"]


def test_what_sets_the_three_apart_is_what_a_gate_sees():
    """z of MUT1 sees no state; r of MUT2 sees the input itself; z of MUT3 sees a squashed state."""
    x, weights, h0, *_ = problem("mut1")
    near, far = (reference.forward(x[:, :1], weights, s * h0)[2].steps[0] for s in (1, 9))
    assert (near["z"] == far["z"]).all() and (near["r"] != far["r"]).any()
    assert symbol("x") in equations.MUT2.stages[0].inputs
    look, *rest = equations.MUT3.stages
    assert tuple(rest) == gru.CHUNG.stages and str(look.equations[0][1]) == "tanh(h_prev)"


def test_no_reset_hides_the_state_from_the_candidate():
    """The check that finds a candidate whose product reads z in the place of r."""
    for variant in VARIANTS:
        x, weights, h0, *_ = problem(variant, T=1)
        weights["b"][6:12] = -60.0
        steps = [reference.forward(x, weights, s * h0, variant=variant)[2].steps[0] for s in (1, 2)]
        np.testing.assert_allclose(steps[0]["n"], steps[1]["n"], atol=1e-12)


@pytest.mark.parametrize("name", ["mut1", "mut2", "mut3"])
def test_a_cell_whose_products_are_others_is_no_layer_of_recurrent(name):
    with pytest.raises(ValueError, match="spec: mut"):
        Recurrent(equations.ALL[name], 3, 3)


@pytest.mark.parametrize("impl", ["reference", "fused"])
def test_mut1_of_public_code_is_a_layer_of_recurrent_with_a_product_that_nothing_reads(impl):
    x, weights, h0, dy, dh = problem("mut1_code", D=4, seed=4)
    dead, b_n = np.full((6, 6), 3.0), weights["b"][12:]
    rows = {"W": weights["W"], "U": np.r_[dead, weights["U"]]}
    rows |= {"b": np.r_[weights["b"][:12], weights["c"]], "b_u": np.r_[np.zeros(12), b_n]}
    layer = Recurrent(equations.MUT1_CODE, 4, 6, impl=impl)
    found = lab.gradients(lab.over_time(layer), *named(x, rows, h0, dy, dh))
    expected = by_hand("mut1_code", x, weights, h0, dy, dh)
    for name in ("y", "final_h", "d_x", "d_h0", "d_W"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-12)
    np.testing.assert_allclose(found["d_U"][6:], expected["d_U"], atol=1e-12)
    assert not found["d_U"][:6].any() and not found["d_b_u"][:6].any()


# --- cells of nodes ---------------------------------------------------------------------------


def nodes_problem(nodes, B=2, T=4, H=5, D=3, seed=0):
    rng = np.random.default_rng(seed)
    weights = reference.initialize_nodes(rng, D, H, len(nodes.steps) + 1)
    x, h0, dy, dh = (rng.normal(size=s) for s in ((B, T, D), (B, H), (B, T, H), (B, H)))
    return x, weights, h0, dy, dh


def nodes_by_hand(nodes, x, weights, h0, dy, dh, lengths=None):
    y, h, saved = reference.forward_nodes(x, weights, *nodes, h0, lengths)
    found = reference.backward_nodes(dy, dh, saved)
    return {"y": y, "final_h": h} | {f"d_{name}": value for name, value in found.items()}


@for_any_shape(20, name=st.sampled_from(sorted(CELLS)), steps=0)
def test_a_cell_of_nodes_by_hand_is_the_one_derived(name, shape, seed):
    args = nodes_problem(CELLS[name], *shape, seed=seed)
    found = derived.gradients(partial(derived.searched.nodes, CELLS[name]), *named(*args))
    assert_agree(nodes_by_hand(CELLS[name], *args), found)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_of_nodes_by_hand_is_the_torch_layer(name):
    args = nodes_problem(CELLS[name], seed=1)
    layer = HighwayNodes(3, 5, CELLS[name])
    assert_agree(by_torch(layer, *args), nodes_by_hand(CELLS[name], *args))


def test_a_padded_row_of_nodes_is_the_row_alone():
    x, weights, h0, dy, dh = nodes_problem(equations.DARTS_SECOND, B=3)
    together = nodes_by_hand(equations.DARTS_SECOND, x, weights, h0, dy, dh, np.array([4, 2, 0]))
    alone = nodes_by_hand(
        equations.DARTS_SECOND, x[1:2, :2], weights, h0[1:2], dy[1:2, :2], dh[1:2]
    )
    np.testing.assert_allclose(together["y"][1:2, :2], alone["y"], atol=1e-14)
    np.testing.assert_allclose(together["d_h0"][1:2], alone["d_h0"], atol=1e-14)


@pytest.mark.parametrize("activation", equations.ACTIVATIONS)
def test_every_node_is_a_highway_layer(activation):
    """y = s + c(n − s) is t·h + (1 − t)·x, with c for the transform gate t and s for x."""
    ours = equations.node(activation).compose()["y"]
    theirs = highway.layer(activation, True).compose()["y"]
    names = {"a_c": "a_t", "a_n": "a_h", "s": "x"}
    renamed = ours.xreplace({symbol(a): symbol(b) for a, b in names.items()})
    assert sp.simplify(renamed - theirs) == 0


@pytest.mark.parametrize("name", CELLS)
def test_along_a_node_the_way_straight_through_is_one_minus_its_gate(name):
    nodes = CELLS[name]
    spec = equations.whole(nodes)
    for i, (_, place) in enumerate((("tanh", -1), *nodes.steps)):
        before = "h_prev" if place < 0 else f"s_{place}"
        assert sp.expand(cell(spec).factor(f"s_{i}", before) - (1 - symbol(f"c_{i}"))) == 0


def test_the_whole_cell_is_the_nodes_one_by_one():
    nodes = CELLS["plain"]
    x, weights, h0, *_ = nodes_problem(nodes, T=1)
    _, h, saved = reference.forward_nodes(x, weights, *nodes, h0)
    values, places = {"h_prev": h0}, (-1, *(place for _, place in nodes.steps))
    for i, place in enumerate(places):
        s = h0 if place < 0 else saved.steps[0][place][2]
        packed = s @ weights["U"][i].T + (x[:, 0] @ weights["W"].T if i == 0 else 0)
        values |= {f"a_c{i}": packed[:, :5], f"a_n{i}": packed[:, 5:]}
    np.testing.assert_allclose(equations.whole(nodes).evaluate(values)["h"], h, atol=1e-13)


def test_a_chain_of_nodes_is_a_recurrent_highway_net():
    """Zilly et al. 2016: each node reads the one before, and the last is the output."""
    chain = equations.Nodes((("tanh", 0), ("tanh", 1)), (2,))
    ours, theirs = HighwayNodes(3, 5, chain), RecurrentHighway(3, 5, 3, bias=0.0)
    with torch.no_grad():
        theirs.bias.zero_()
        turned = torch.cat([torch.arange(5, 10), torch.arange(5)])
        theirs.weight_ih.copy_(ours.weight_ih[turned])
        theirs.weight_hh.copy_(ours.weight_hh[:, turned])
    x = torch.randn(2, 6, 3)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])


def test_the_published_cells_have_the_nodes_that_are_published():
    assert len(equations.ENAS.steps) == 11 and equations.ENAS.read == (2, 5, 6, 9, 10, 11)
    for darts in (equations.DARTS_FIRST, equations.DARTS_SECOND):
        assert len(darts.steps) == 8 and darts.read == tuple(range(1, 9))
        assert equations.check_nodes(darts) is darts
    assert equations.DARTS_SECOND.steps[0] == ("sigmoid", 0)
    used = {place for _, place in equations.ENAS.steps}
    assert set(range(12)) - used == set(equations.ENAS.read)  # what no node reads is read out


# --- torch layers -----------------------------------------------------------------------------

LAYERS = [
    *(Mutated(3, 3, variant) for variant in VARIANTS),
    HighwayNodes(3, 4, equations.DARTS_SECOND),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_gradcheck_in_float64(layer):
    x = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    layer = layer.double()
    assert torch.autograd.gradcheck(lambda x: layer(x)[0], x)
    layer.float()


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_sequence_may_be_read_in_pieces(layer):
    assert_read_in_pieces(layer, torch.randn(2, 7, 3))


@pytest.mark.parametrize("make", [Mutated, lambda d, h: HighwayNodes(d, h, equations.ENAS)])
def test_several_networks_train_side_by_side(make):
    from gatelib.lab.fleet import train_together

    torch.manual_seed(0)
    models = [lab.Readout(make(3, 3), 3, 2) for _ in range(2)]
    data = torch.randn(16, 4, 3), torch.randint(2, (16,))
    losses = train_together(models, data, steps=30, rates=[0.05, 0.05], batch_size=16)
    assert (losses[:, -1] < losses[:, 0]).all()


def test_parameters_are_those_of_the_formulas():
    count = {v: sum(p.numel() for p in Mutated(4, 4, v).parameters()) for v in VARIANTS}
    square = 16
    assert count == {
        "mut1": 4 * square + 12,
        "mut1_code": 5 * square + 16,
        "mut2": 5 * square + 12,
        "mut2_code": 6 * square + 12,
        "mut3": 6 * square + 12,
    }
    nodes = HighwayNodes(3, 4, equations.DARTS_SECOND)
    assert sum(p.numel() for p in nodes.parameters()) == 2 * 4 * 3 + 9 * 2 * 4 * 4


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        *BAD_SEQUENCES,
        ({"variant": "mut1_code"}, ValueError, r"weights: expected \['U', 'W', 'b', 'c'\]"),
    ],
)
def test_bad_input_is_named(change, error, says):
    x, weights, *_ = problem(D=4, variant="mut2_code")
    with pytest.raises(error, match=says):
        reference.forward(**{"x": x, "weights": weights, "variant": "mut2_code"} | change)


def test_the_papers_forms_need_an_input_as_wide_as_the_state():
    rng = np.random.default_rng(0)
    for variant in ("mut1", "mut2"):
        with pytest.raises(ValueError, match="x: expected 6 features, as many as the state, got 4"):
            weights = reference.initialize(rng, 4, 6, variant)
            reference.forward(np.zeros((2, 3, 4)), weights, variant=variant)
        with pytest.raises(ValueError, match="input_size: expected 6, as many as hidden_size"):
            Mutated(4, 6, variant)


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        (equations.Nodes((("tanh", 1),), (1,)), "expected node 1 to read one of 0 … 0, got 1"),
        (equations.Nodes((("gelu", 0),), (1,)), "expected one of|expected activations"),
        (equations.Nodes((("tanh", 0),), (2,)), "expected"),
        (equations.Nodes((("tanh", 0),), ()), "expected"),
    ],
)
def test_nodes_that_cannot_be_made_are_refused(nodes, says):
    with pytest.raises(ValueError, match=says):
        equations.check_nodes(nodes)
    with pytest.raises(ValueError, match=says):
        HighwayNodes(3, 4, nodes)
    with pytest.raises(ValueError, match=says):
        x, weights, *_ = nodes_problem(equations.Nodes((("tanh", 0),), (1,)))
        reference.forward_nodes(x, weights, *nodes)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Mutated(3, 3, "mut4"), ValueError, "variant: expected one of"),
        (lambda: Mutated(0, 3), ValueError, "input_size: expected at least 1"),
        (lambda: HighwayNodes(3, 4, "enas"), TypeError, "nodes: expected Nodes"),
        (lambda: Mutated(3, 3)(torch.zeros(2, 3)), ValueError, "input: expected 3 dimensions"),
    ],
)
def test_bad_arguments_to_a_layer_are_named(make, error, says):
    with pytest.raises(error, match=says):
        make()
