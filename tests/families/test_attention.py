"""Attention: equations, NumPy and torch agree, and padding gets exactly nothing."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import strategies as st

from gatelib import derived, lab
from gatelib.equations import attention as equations
from gatelib.nn import AdditiveAttention, DotAttention
from gatelib.reference import attention as reference
from tests.families.witnesses import assert_agree, for_any_shape

SCORES = reference.SCORES


def problem(score, B=3, T=4, S=5, K=6, seed=0, lengths=None):
    """Queries, keys, weights, upstream gradients and lengths of one case."""
    rng = np.random.default_rng(seed)
    query_size = K + 1 if score in ("additive", "general") else K
    weights = reference.initialize(rng, query_size, K, 7, score)
    lengths = np.arange(B) % S + 1 if lengths is None else lengths
    queries, keys = rng.normal(size=(B, T, query_size)), rng.normal(size=(B, S, K))
    return queries, keys, weights, rng.normal(size=(B, T, K)), lengths


def named(queries, keys, weights, upstream):
    """A case as `gradients` takes it: inputs and upstream gradients."""
    return {"queries": queries, "keys": keys} | weights, {"context": upstream}


def by_equations(score, *case, read=equations.READ):
    *arrays, lengths = case
    run = partial(derived.attention.attend, equations.SCORES[score], read, lengths=lengths)
    return derived.gradients(run, *named(*arrays))


def by_hand(score, queries, keys, weights, upstream, lengths):
    context, g, saved = reference.forward(queries, keys, weights, score, lengths)
    found = reference.backward(upstream, None, saved)
    return {"context": context, "attention": g} | {f"d_{k}": v for k, v in found.items()}


def module_of(score, queries, keys, weights, dtype=torch.float64):
    """The torch module with these weights."""
    sizes = queries.shape[2], keys.shape[2]
    if score == "additive":
        module = AdditiveAttention(*sizes, len(weights["w"]), dtype=dtype)
        names = {"W": "weight_query", "U": "weight_key", "w": "weight_score"}
    else:
        module = DotAttention(*sizes, score, dtype=dtype)
        names = {"W": "weight"}
    with torch.no_grad():
        for key, value in weights.items():
            getattr(module, names[key]).copy_(torch.tensor(value))
    return module, {key: names[key] for key in weights}


def by_torch(score, *case):
    *arrays, lengths = case
    module, names = module_of(score, *arrays[:3])

    def run(given):
        own = {place: given[key] for key, place in names.items()}
        found = lab.called(module, own, given["queries"], given["keys"], torch.tensor(lengths))
        return dict(zip(("context", "attention"), found, strict=True))

    return lab.gradients(run, *named(*arrays))


@pytest.mark.parametrize("score", SCORES)
def test_equations_hand_and_torch_agree(score):
    case = problem(score)
    expected = by_equations(score, *case)
    assert_agree(by_hand(score, *case), expected)
    assert_agree(by_torch(score, *case), expected)


@for_any_shape(15, score=st.sampled_from(SCORES))
def test_they_agree_for_any_shape(score, shape, seed):
    lengths = np.random.default_rng(seed).integers(1, shape[2] + 1, shape[0])
    case = problem(score, *shape, seed=seed, lengths=lengths)
    expected = by_equations(score, *case)
    assert_agree(by_hand(score, *case), expected)
    assert_agree(by_torch(score, *case), expected)


def test_a_softmax_is_exponential_gates_over_their_sum():
    case = problem("additive")
    assert_agree(
        by_equations("additive", *case, read=equations.MASKED), by_equations("additive", *case)
    )


@pytest.mark.parametrize("score", SCORES)
def test_gradcheck_passes(score):
    queries, keys, weights, _, lengths = problem(score, 2, 2, 3, 2)
    module, _ = module_of(score, queries, keys, weights)
    inputs = [torch.tensor(v, requires_grad=True) for v in (queries, keys)]
    values = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    call = partial(_call, module, torch.tensor(lengths))
    assert torch.autograd.gradcheck(call, (*inputs, values, *module.parameters()))


def _call(module, lengths, queries, keys, values, *_):
    return module(queries, keys, lengths, values)


@pytest.mark.parametrize("score", SCORES)
def test_given_values_and_given_gradients_of_the_weights_agree(score):
    queries, keys, weights, _, lengths = problem(score)
    rng = np.random.default_rng(1)
    values, d_context, d_g = (rng.normal(size=s) for s in ((3, 5, 2), (3, 4, 2), (3, 4, 5)))
    context, g, saved = reference.forward(queries, keys, weights, score, lengths, values)
    expected = reference.backward(d_context, d_g, saved)
    module, names = module_of(score, queries, keys, weights)
    leaves = {"queries": queries, "keys": keys, "values": values}
    leaves = {k: torch.tensor(v, requires_grad=True) for k, v in leaves.items()}
    found = module(leaves["queries"], leaves["keys"], torch.tensor(lengths), leaves["values"])
    upstream = torch.tensor(d_context), torch.tensor(d_g)
    torch.autograd.backward(found, upstream)
    np.testing.assert_allclose(found[0].detach(), context, atol=1e-12)
    np.testing.assert_allclose(found[1].detach(), g, atol=1e-12)
    for key, leaf in leaves.items():
        np.testing.assert_allclose(leaf.grad, expected[key], atol=1e-12, err_msg=key)
    for key, name in names.items():
        np.testing.assert_allclose(getattr(module, name).grad, expected[key], atol=1e-12)


@pytest.mark.parametrize("score", SCORES)
def test_padding_gets_exactly_nothing_and_gives_nothing(score):
    queries, keys, weights, upstream, lengths = problem(score)
    poisoned, dead = keys.copy(), np.arange(5) >= lengths[:, None]
    poisoned[dead] = np.nan
    clean = by_torch(score, queries, keys, weights, upstream, lengths)
    found = by_torch(score, queries, poisoned, weights, upstream, lengths)
    for key in clean:
        np.testing.assert_array_equal(found[key], clean[key], err_msg=key)
    for result in (found, by_hand(score, queries, keys, weights, upstream, lengths)):
        assert not result["attention"].transpose(0, 2, 1)[dead].any()
        assert not result["d_keys"][dead].any()
        np.testing.assert_allclose(result["attention"].sum(-1), 1, atol=1e-12)


@pytest.mark.parametrize("score", SCORES)
def test_a_padded_sentence_is_the_sentence_alone(score):
    queries, keys, weights, upstream, _ = problem(score)
    lengths = np.array([2, 5, 3])
    together = by_hand(score, queries, keys, weights, upstream, lengths)
    alone = by_hand(score, queries[:1], keys[:1, :2], weights, upstream[:1], np.array([2]))
    np.testing.assert_allclose(together["context"][:1], alone["context"], atol=1e-14)
    np.testing.assert_allclose(together["d_keys"][:1, :2], alone["d_keys"], atol=1e-14)


@pytest.mark.parametrize("score", SCORES)
def test_huge_scores_stay_finite(score):
    queries, keys, weights, upstream, lengths = problem(score)
    case = 1e3 * queries, 1e3 * keys, weights, upstream, lengths
    for found in (by_hand(score, *case), by_torch(score, *case)):
        assert all(np.isfinite(value).all() for value in found.values())


def test_the_softmax_is_a_competition():
    """Raising one score shuts the other gates: rows of its Jacobian sum to 0."""
    e = torch.randn(5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(partial(torch.softmax, dim=-1), e)
    g = reference.softmax(e.numpy())
    np.testing.assert_allclose(jacobian, np.diag(g) - np.outer(g, g), atol=1e-14)
    np.testing.assert_allclose(jacobian.sum(0), 0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("score", SCORES)
def test_the_softmax_is_taken_in_float32_under_low_precision(score, dtype):
    queries, keys, weights, _, lengths = problem(score, S=64, lengths=np.array([64, 9, 1]))
    q, k = (torch.tensor(v).to(dtype) for v in (queries, keys))
    low, _ = module_of(score, queries, keys, weights, dtype)
    high, _ = module_of(score, queries, keys, weights, torch.float64)
    high.load_state_dict(low.state_dict())
    found = low(q, k, torch.tensor(lengths))
    exact = high(q.double(), k.double(), torch.tensor(lengths))
    plain = torch.softmax(low.scores(q, k)[0].double(), -1)
    eps = torch.finfo(dtype).eps
    assert found[0].dtype == found[1].dtype == dtype
    assert (found[1][0].double() - plain).abs().max() <= eps * plain.max()
    assert (found[0] - exact[0]).abs().max() < 40 * eps


def test_attention_compiles_as_one_graph_and_runs_under_autocast():
    for module in (AdditiveAttention(4, 6, 5), DotAttention(4, 6, "general")):
        q, k, lengths = torch.randn(2, 3, 4), torch.randn(2, 5, 6), torch.tensor([5, 2])
        expected = module(q, k, lengths)[0]
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(q, k, lengths)[0], expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert (module(q, k, lengths)[0] - expected).abs().max() < 0.1


# ---- sinks, gates and forgetting, proven on the equations --------------------------------------


def on_three(spec, shared=(), mask=(1, 1, 1), **given):
    """A read at three positions, written out."""
    return equations.written_out(spec, 3, shared, mask=mask, **given)


def test_a_dropped_sink_is_an_output_gate_on_the_read_without_it():
    """softmax over [e, s] with s dropped = σ(lse − s) · softmax over e, masked or not."""
    for mask in ((1, 1, 1), (1, 0, 1), (0, 1, 0)):
        sink = on_three(equations.SINK_READ, "s", mask)["c"][0]
        gated = on_three(equations.SINK_AS_GATE, "s", mask)["c"][0]
        assert sp.simplify(sink - gated) == 0


def test_the_gradient_of_a_sink_is_that_of_the_gate():
    """∂c/∂s = −t (1 − t) o, exactly, with t = σ(lse − s) and o the read without the sink."""
    sink = on_three(equations.SINK_READ, "s")
    gated = on_three(equations.SINK_AS_GATE, "s")
    t, o, s = gated["t"][0], gated["o"][0], sink["s"][0]
    assert sp.simplify(sp.diff(sink["c"][0], s) + t * (1 - t) * o) == 0
    assert str(dict(equations.SINK_AS_GATE.vjp().equations)[sp.Symbol("d_s", real=True)]) == (
        "-d_t*t*(1 - t)"
    )


def test_what_the_positions_of_a_sink_keep_is_the_gate():
    sink, gated = (on_three(s, "s") for s in (equations.SINK_READ, equations.SINK_AS_GATE))
    assert sp.simplify(sum(sink["g"]) - gated["t"][0]) == 0


def test_a_row_without_a_live_position_reads_nothing_from_a_sink_and_0_over_0_from_a_softmax():
    shut = (0, 0, 0)
    assert on_three(equations.SINK_READ, "s", shut)["c"][0] == 0
    assert on_three(equations.SIGMOID_READ, "n", shut)["c"][0] == 0
    for spec in (equations.MASKED, equations.FORGET_READ, equations.GATED_READ):
        assert on_three(spec, (), shut)["c"][0] is sp.nan


def test_a_score_of_minus_infinity_is_a_mask():
    e = sp.Symbol("e_2", real=True)
    for spec, shared in ((equations.MASKED, ()), (equations.SINK_READ, "s")):
        masked = on_three(spec, shared, (1, 0, 1))["c"][0]
        assert sp.simplify(sp.limit(on_three(spec, shared)["c"][0], e, -sp.oo) - masked) == 0


def test_sigmoids_at_equal_scores_open_by_one_in_n_plus_one():
    found = on_three(equations.SIGMOID_READ, "n", e=(0, 0, 0))["g"][1]
    n = sp.Symbol("n", real=True)
    assert sp.simplify(found - 1 / (n + 1)) == 0


def test_forgetting_with_a_constant_gate_is_alibi_with_the_slope_of_its_logarithm():
    """l_i − l_j = Σ log f over j < k ≤ i: the slope m is the mean of −log f over that span."""
    f = sp.symbols("f_1:5", positive=True)
    sums = [sp.Add(*map(sp.log, f[: j + 1])) for j in range(4)]
    slopes = [-sp.Add(*map(sp.log, f[j + 1 :])) / (3 - j) for j in range(3)]
    forgetting = on_three(equations.FORGET_READ, l_i=[sums[3]] * 3, l_j=sums[:3])
    alibi = on_three(equations.ALIBI_READ, m=slopes, r=(3, 2, 1))
    for ours, theirs in zip(forgetting["s"], alibi["s"], strict=True):
        assert sp.simplify(ours - theirs) == 0
    for slope in slopes:
        assert sp.simplify(slope.subs(dict.fromkeys(f, f[0])) + sp.log(f[0])) == 0


def test_the_jacobian_of_a_gated_score():
    """∂g_i/∂e_j = t_j g_i (δ_ij − g_j), and ∂g_i/∂a_j = e_j t_j (1 − t_j) g_i (δ_ij − g_j)."""
    found = on_three(equations.GATED_READ)
    g, t, e, a = (found[name] for name in "gtea")
    for i in range(3):
        for j in range(3):
            softmax = g[i] * (int(i == j) - g[j])
            assert sp.simplify(sp.diff(g[i], e[j]) - t[j] * softmax) == 0
            by_gate = e[j] * t[j] * (1 - t[j]) * softmax
            assert sp.simplify(sp.diff(g[i], a[j]) - by_gate) == 0


def test_one_gate_for_all_scores_of_a_query_moves_them_by_their_distance_from_the_mean_score():
    """∂g_i/∂a = t (1 − t) g_i (e_i − Σ g e): nothing where all scores are equal."""
    found = on_three(equations.GATED_READ, "a")
    g, t, e, a = (found[name] for name in "gtea")
    mean = sum(share * score for share, score in zip(g, e, strict=True))
    for i in range(3):
        expected = t[0] * (1 - t[0]) * g[i] * (e[i] - mean)
        assert sp.simplify(sp.diff(g[i], a[0]) - expected) == 0
    assert sp.simplify(sp.diff(g[0], a[0]).subs(dict.fromkeys(e, e[0]))) == 0


def test_a_shut_score_gate_reads_the_mean_and_a_shut_output_gate_nothing():
    a, e = sp.Symbol("a", real=True), on_three(equations.GATED_READ, "a")
    mean = on_three(equations.READ)["v"]
    assert sp.simplify(sp.limit(e["c"][0], a, -sp.oo) - sp.Add(*mean) / 3) == 0
    assert equations.OUTPUT_GATE.limit(a=-sp.oo).compose()["y"] == 0


def test_a_gate_of_the_score_is_a_gate_of_the_query():
    gated = on_three(equations.GATED_SCORE, "d")
    gate = equations.OUTPUT_GATE.compose()["y"]
    scaled = on_three(equations.SCALED, "d")["e"][0]
    for j in (1, 2, 3):
        names = {"a": f"a_{j}", "o": f"q_{j}"}
        own = gate.subs(
            {sp.Symbol(k, real=True): sp.Symbol(v, real=True) for k, v in names.items()}
        )
        scaled = scaled.subs(sp.Symbol(f"q_{j}", real=True), own)
    assert sp.simplify(scaled - gated["e"][0]) == 0


def test_only_sums_means_and_softmax_are_written_out():
    spec = equations.READ.replace("normed", g="normalize(e)")
    with pytest.raises(ValueError, match="spec: expected sums, means and softmax"):
        equations.written_out(spec, 3)


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"score": "cosine"}, ValueError, "score: expected one of"),
        ({"queries": np.zeros((3, 5))}, ValueError, "queries: expected 3 dimensions"),
        ({"keys": np.zeros((3, 5, 6), int)}, TypeError, "keys: expected a floating dtype"),
        ({"keys": np.zeros((3, 5, 6), "f4")}, TypeError, "keys: expected float64 as queries"),
        ({"keys": np.zeros((2, 5, 6))}, ValueError, r"keys: expected \(3, S, K\)"),
        ({"values": np.zeros((3, 4, 6))}, ValueError, r"keys: expected \(3, S, K\)"),
        ({"keys": np.zeros((3, 5, 5))}, ValueError, r"weights\['U'\]: expected"),
        ({"weights": {}}, ValueError, r"weights: expected \['U', 'W', 'w'\], got \[\]"),
        ({"lengths": np.array([0, 1, 2])}, ValueError, "lengths: expected 1 … 5, got 0 … 2"),
        ({"lengths": np.array([6, 1, 2])}, ValueError, "lengths: expected 1 … 5"),
        ({"lengths": np.array([1.0, 1.0, 1.0])}, TypeError, "lengths: expected whole numbers"),
        ({"lengths": np.array([1])}, ValueError, r"lengths: expected \(3,\)"),
        ({"score": "dot", "weights": {}}, ValueError, "queries: expected 6 features as keys"),
    ],
)
def test_the_reference_names_bad_input(change, error, says):
    queries, keys, weights, _, lengths = problem("additive")
    arguments = {"queries": queries, "keys": keys, "weights": weights, "lengths": lengths}
    with pytest.raises(error, match=says):
        reference.forward(**{"score": "additive"} | arguments | change)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: DotAttention(4, 5), ValueError, "query_size: expected key_size = 5, got 4"),
        (lambda: DotAttention(4, 4, "cosine"), ValueError, "score: expected 'dot', 'scaled'"),
        (lambda: AdditiveAttention(4, 4, 0), ValueError, "hidden_size: expected at least 1"),
        (lambda: AdditiveAttention(4, 4.0, 2), TypeError, "key_size: expected an integer"),
    ],
)
def test_a_module_names_bad_arguments(make, error, says):
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"queries": torch.zeros(3, 2, 5)}, ValueError, "queries: expected 4 features"),
        ({"keys": torch.zeros(3, 5)}, ValueError, "keys: expected 3 dimensions"),
        ({"keys": torch.zeros(2, 5, 6)}, ValueError, "keys: expected batch 3 as queries, got 2"),
        ({"keys": torch.zeros(3, 0, 6)}, ValueError, "keys: expected at least one position"),
        ({"keys": torch.zeros(3, 5, 6).double()}, TypeError, "keys: expected torch.float32"),
        ({"values": torch.zeros(3, 4, 6)}, ValueError, r"values: expected \(3, 5, 'V'\)"),
        ({"lengths": torch.tensor([0, 1, 1])}, ValueError, "lengths: expected 1 to T = 5"),
    ],
)
def test_attention_names_bad_input(change, error, says):
    arguments = {"queries": torch.zeros(3, 2, 4), "keys": torch.zeros(3, 5, 6)}
    with pytest.raises(error, match=says):
        AdditiveAttention(4, 6, 5)(**arguments | change)
