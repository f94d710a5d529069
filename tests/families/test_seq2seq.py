"""Attention, encoder, decoder and search: the witnesses agree, and a beam finds what there is."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gatelib.equations import lstm as lstm_equations
from gatelib.equations import seq2seq as equations
from gatelib.lab.attended import symbolic
from gatelib.nn import GRU, LSTM, Gate, Recurrent
from gatelib.nn.seq2seq import (
    AdditiveAttention,
    Decoder,
    DotAttention,
    Encoder,
    FixedContext,
    Seq2Seq,
)
from gatelib.reference import seq2seq as reference

SCORES = reference.SCORES
START, END, PADDING = 2, 3, 0


# ---- attention: equations, NumPy, torch ------------------------------------------------------


def problem(score, B=3, T=4, S=5, K=6, seed=0, lengths=None):
    """Queries, keys, weights, upstream gradients and lengths of one case."""
    rng = np.random.default_rng(seed)
    query_size = K + 1 if score in ("additive", "general") else K
    weights = reference.initialize(rng, query_size, K, 7, score)
    lengths = np.arange(B) % S + 1 if lengths is None else lengths
    queries, keys = rng.normal(size=(B, T, query_size)), rng.normal(size=(B, S, K))
    return queries, keys, weights, rng.normal(size=(B, T, K)), lengths


def by_equations(score, queries, keys, weights, upstream, lengths, read=equations.READ):
    return symbolic(equations.SCORES[score], read, queries, keys, weights, upstream, lengths)


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


def by_torch(score, queries, keys, weights, upstream, lengths):
    module, names = module_of(score, queries, keys, weights)
    q, k = (torch.tensor(v, requires_grad=True) for v in (queries, keys))
    context, g = module(q, k, torch.tensor(lengths))
    (context * torch.tensor(upstream)).sum().backward()
    found = {"context": context, "attention": g, "d_queries": q.grad, "d_keys": k.grad}
    found |= {f"d_{key}": getattr(module, name).grad for key, name in names.items()}
    return {key: value.detach().numpy() for key, value in found.items()}


def assert_agree(found, expected, bound=1e-10):
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert value.shape == expected[key].shape, key
        assert np.abs(value - expected[key]).max() <= bound, key


@pytest.mark.parametrize("score", SCORES)
def test_equations_hand_and_torch_agree(score):
    case = problem(score)
    derived = by_equations(score, *case)
    assert_agree(by_hand(score, *case), derived)
    assert_agree(by_torch(score, *case), derived)


@settings(max_examples=15, deadline=None)
@given(
    score=st.sampled_from(SCORES),
    shape=st.tuples(*(st.integers(1, 4) for _ in range(4))),
    seed=st.integers(0, 99),
)
def test_they_agree_for_any_shape(score, shape, seed):
    lengths = np.random.default_rng(seed).integers(1, shape[2] + 1, shape[0])
    case = problem(score, *shape, seed=seed, lengths=lengths)
    derived = by_equations(score, *case)
    assert_agree(by_hand(score, *case), derived)
    assert_agree(by_torch(score, *case), derived)


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


def test_fixed_context_reads_the_last_position_only():
    keys = torch.randn(3, 5, 4)
    context, g = FixedContext(4)(torch.randn(3, 2, 7), keys, torch.tensor([5, 1, 3]))
    expected = torch.stack([keys[0, 4], keys[1, 0], keys[2, 2]])
    torch.testing.assert_close(context, expected[:, None].expand(-1, 2, -1))
    torch.testing.assert_close(torch.bmm(g, keys), context)
    torch.testing.assert_close(FixedContext(4)(keys, keys)[0][:, 0], keys[:, -1])


# ---- encoder, decoder, teacher forcing -------------------------------------------------------

LAYERS = {
    "RNN": partial(nn.RNN, batch_first=True),
    "torch.GRU": partial(nn.GRU, batch_first=True),
    "GRU": partial(GRU, batch_first=True),
    "torch.LSTM": partial(nn.LSTM, batch_first=True),
    "LSTM": partial(LSTM, batch_first=True),
    "peephole": partial(Recurrent, lstm_equations.PEEPHOLE),
}
DESIGNS = {
    "dot": {"attention": DotAttention(6, 6)},
    "additive": {"attention": AdditiveAttention(6, 6, 5)},
    "before": {"attention": AdditiveAttention(6, 6, 5), "attend": "before"},
    "fixed": {"attention": FixedContext(6)},
    "none": {},
}


def model_of(layer="GRU", design="dot", vocabulary=7, seed=0, layers=1, bidirectional=False):
    """A small double-precision model with weights far from zero, so that answers differ."""
    torch.manual_seed(seed)
    make, options = LAYERS[layer], DESIGNS[design]
    reads = make(4, 3 if bidirectional else 6, layers, bidirectional=bidirectional)
    writes = make(4 + 6 * (options.get("attend") == "before"), 6, layers)
    model = Seq2Seq(Encoder(9, 4, reads), Decoder(vocabulary, 4, writes, **options), START, END)
    model = model.double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def sentences(seed=0, batch=4, steps=5, vocabulary=9):
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(1, vocabulary, (batch, steps), generator=generator)
    lengths = torch.tensor([5, 2, 1, 4])[:batch]
    return source.masked_fill(torch.arange(steps) >= lengths[:, None], 0), lengths


CASES = [*((layer, "dot") for layer in LAYERS), *(("GRU", design) for design in DESIGNS)]
CASES += [("torch.LSTM", "before"), ("peephole", "before")]


@pytest.mark.parametrize(("layer", "design"), CASES)
def test_one_call_with_a_teacher_is_the_same_step_by_step(layer, design):
    model = model_of(layer, design, layers=2)
    (source, lengths), target = sentences(), torch.tensor([[4, 5, 3]] * 4)
    whole = model(source, lengths, target)
    memory, state = model.encoder(source, lengths)
    for t, token in enumerate([START, 4, 5]):
        previous = torch.full((4, 1), token)
        logits, _, state = model.decoder(previous, state, memory, lengths)
        torch.testing.assert_close(logits[:, 0], whole[:, t])


BOTH_WAYS = [("GRU", "dot"), ("torch.LSTM", "before"), ("peephole", "fixed")]


@pytest.mark.parametrize(
    ("layer", "design", "bidirectional"),
    [*((*case, False) for case in CASES), *((*case, True) for case in BOTH_WAYS)],
)
def test_a_sentence_in_a_batch_is_the_sentence_alone(layer, design, bidirectional):
    model = model_of(layer, design, bidirectional=bidirectional)
    (source, lengths), target = sentences(), torch.tensor([[4, 5, 3]] * 4)
    together = model(source, lengths, target)
    greedy = model.greedy(source, lengths, 6)
    tokens, scores = model.beam(source, lengths, 3, 4, 0.5)
    for row, length in enumerate(lengths.tolist()[1:3], 1):
        one = source[row : row + 1, :length], None
        torch.testing.assert_close(together[row : row + 1], model(*one, target[:1]))
        assert torch.equal(greedy[row : row + 1], model.greedy(*one, 6))
        alone = model.beam(*one, 3, 4, 0.5)
        assert torch.equal(tokens[row : row + 1], alone[0])
        torch.testing.assert_close(scores[row : row + 1], alone[1])


@pytest.mark.parametrize("design", DESIGNS)
def test_no_logit_sees_its_own_target_or_a_later_one(design):
    model, (source, lengths) = model_of(design=design), sentences()
    target = torch.tensor([[4, 5, 6, 3]] * 4)
    before = model(source, lengths, target)
    for t in range(4):
        changed = target.clone()
        changed[:, t] = 1
        after = model(source, lengths, changed)
        torch.testing.assert_close(after[:, : t + 1], before[:, : t + 1])
        assert t == 3 or not torch.allclose(after[:, t + 1], before[:, t + 1])


def test_the_state_is_the_one_at_each_sentence_end():
    for layer in ("torch.GRU", "LSTM", "peephole"):
        for both in (False, True):
            model, (source, lengths) = model_of(layer, layers=2, bidirectional=both), sentences()
            _, state = model.encoder(source, lengths)
            for row, length in enumerate(lengths.tolist()):
                _, alone = model.encoder(source[row : row + 1, :length])
                parts = (state, alone) if torch.is_tensor(state) else (list(state), list(alone))
                if isinstance(state, dict):
                    parts = list(state.values()), list(alone.values())
                pairs = [parts] if torch.is_tensor(state) else zip(*parts, strict=True)
                for together, one in pairs:
                    assert together.shape == (2, 4, 6)
                    torch.testing.assert_close(together[:, row], one[:, 0])


def test_bidirectional_states_stand_side_by_side():
    model, (source, _) = model_of(bidirectional=True), sentences()
    annotations, state = model.encoder(source[:1])
    torch.testing.assert_close(state[0, 0, :3], annotations[0, -1, :3])
    torch.testing.assert_close(state[0, 0, 3:], annotations[0, 0, 3:])


def test_a_gate_multiplies_the_embedded_tokens():
    torch.manual_seed(0)
    layer, (source, lengths) = nn.GRU(4, 6, batch_first=True), sentences()
    plain = Encoder(9, 4, layer)
    shut = Encoder(9, 4, layer, gate=Gate(4, 1, openness=1e-9))
    gate = Gate(4, 1)
    gated = Encoder(9, 4, layer, gate=gate)
    gated.embedding = shut.embedding = plain.embedding
    nothing, _ = layer(torch.zeros(1, 5, 4))
    torch.testing.assert_close(shut(source[:1])[0], nothing, atol=1e-6, rtol=0)
    embedded = plain.embedding(source)
    expected = layer((gate(embedded) * embedded)[:1])[0]
    torch.testing.assert_close(gated(source, lengths)[0][:1], expected)
    assert gated(source, lengths)[0][2, 1:].abs().max() == 0


def test_attention_and_fixed_context_have_equally_many_parameters():
    sizes = [sum(p.numel() for p in model_of(design=d).parameters()) for d in ("dot", "fixed")]
    assert sizes[0] == sizes[1]


def test_alignments_are_distributions_over_live_positions():
    model, (source, lengths) = model_of(), sentences()
    g = model.align(source, lengths, torch.tensor([[4, 5, 3]] * 4))
    torch.testing.assert_close(g.sum(-1), torch.ones(4, 3, dtype=torch.float64))
    assert not g.transpose(1, 2)[torch.arange(5) >= lengths[:, None]].any()
    with pytest.raises(ValueError, match="decoder: expected a decoder with attention"):
        model_of(design="none").align(source, lengths, torch.tensor([[4]] * 4))


# ---- search ----------------------------------------------------------------------------------


def next_log_probs(model, source):
    """The model as a function of the tokens so far, for one sentence, one token at a time."""
    cache = {}

    def after(tokens):
        if tokens not in cache:
            with torch.no_grad():
                memory, state = model.encoder(source)
                previous = torch.tensor([[START, *tokens]])
                logits = model.decoder(previous, state, memory)[0][0, -1].numpy().copy()
            logits[[PADDING, START]] = -np.inf
            shifted = logits - logits.max()
            cache[tokens] = shifted - np.log(np.exp(shifted).sum())
        return cache[tokens]

    return after


def stripped(tokens):
    """A row of answers without what stands behind the end."""
    tokens = tokens.tolist()
    return tuple(tokens[: tokens.index(END) + 1] if END in tokens else tokens)


PENALTIES = [(0.0, 0.0), (1.0, 0.0), (0.6, 5.0)]


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("layer", ["GRU", "torch.LSTM", "peephole"])
def test_a_beam_that_drops_nothing_finds_the_best_of_all(layer, penalty):
    seed = PENALTIES.index(penalty)
    model, (source, lengths) = model_of(layer, seed=seed, vocabulary=5), sentences(seed, batch=2)
    tokens, scores = model.beam(source, lengths, 5**3, 3, *penalty)
    for row, length in enumerate(lengths.tolist()):
        after = next_log_probs(model, source[row : row + 1, :length])
        best, score = reference.exhaustive(after, END, 3, *penalty)
        assert stripped(tokens[row, 0]) == best
        assert abs(scores[row, 0].item() - score) < 1e-10


@settings(max_examples=8, deadline=None)
@given(
    width=st.integers(1, 4),
    penalty=st.sampled_from(PENALTIES),
    seed=st.integers(0, 50),
    design=st.sampled_from(sorted(DESIGNS)),
)
def test_the_batched_beam_is_the_plain_one_sentence_by_sentence(width, penalty, seed, design):
    model, (source, lengths) = model_of(design=design, seed=seed), sentences(seed, batch=2)
    tokens, scores = model.beam(source, lengths, width, 3, *penalty)
    for row, length in enumerate(lengths.tolist()):
        after = next_log_probs(model, source[row : row + 1, :length])
        expected = reference.beam(after, END, 3, width, *penalty)
        expected = [(t, s) for t, s in expected if np.isfinite(s)]
        live = scores[row].isfinite()
        assert [stripped(t) for t in tokens[row][live]] == [t for t, _ in expected]
        np.testing.assert_allclose(scores[row][live], [s for _, s in expected], atol=1e-10)


@pytest.mark.parametrize("design", DESIGNS)
def test_a_beam_of_width_one_is_greedy(design):
    for seed in range(2):
        model, (source, lengths) = model_of(design=design, seed=seed), sentences(seed)
        found = model.beam(source, lengths, 1, 6)[0][:, 0]
        assert torch.equal(found, model.greedy(source, lengths, 6))


def test_a_beam_s_score_is_the_one_of_teacher_forcing():
    model, (source, lengths) = model_of(seed=3), sentences()
    tokens, scores = model.beam(source, lengths, 4, 5)
    logits = model(source, lengths, tokens[:, 0])
    logits[..., [PADDING, START]] = -torch.inf
    steps = logits.log_softmax(-1).gather(-1, tokens[:, :1].transpose(1, 2))[..., 0]
    total = torch.where(tokens[:, 0] == PADDING, 0.0, steps).sum(1)
    torch.testing.assert_close(scores[:, 0], total)


def test_scores_are_sorted_and_hypotheses_differ():
    model, (source, lengths) = model_of(seed=1), sentences()
    tokens, scores = model.beam(source, lengths, 5, 4, 1.0)
    assert (scores.diff(dim=1) <= 0).all()
    for row in tokens:
        assert len({tuple(t.tolist()) for t in row}) == 5


def test_places_without_a_hypothesis_have_the_score_minus_infinity():
    model, (source, lengths) = model_of(vocabulary=5), sentences()
    tokens, scores = model.beam(source, lengths, 50, 2)
    possible = 1 + 2 * 3  # of the tokens 1, 3 (end) and 4: the end, or 1 or 4 and any of three
    assert (scores.isfinite().sum(1) == possible).all()
    assert tokens.shape == (4, 50, 2)


def test_answers_hold_no_start_and_padding_only_behind_the_end():
    model, (source, lengths) = model_of(vocabulary=5, seed=2), sentences()
    with torch.no_grad():
        model.decoder.readout.bias[[PADDING, START]] += 50
    both = [model.greedy(source, lengths, 8), model.beam(source, lengths, 3, 8)[0].flatten(0, 1)]
    for row in torch.cat(both).tolist():
        answer = stripped(torch.tensor(row))
        assert START not in row and PADDING not in answer
        assert not any(row[len(answer) :])


def chain(probabilities):
    """A language of three tokens by hand: {prefix: (a, b, end)}."""

    def after(tokens):
        return np.log(np.array(probabilities.get(tokens, (0.01, 0.01, 0.98))))

    return after


def test_a_narrow_beam_misses_what_greedy_misses_and_a_wider_one_may_find_it():
    a, b, end = range(3)
    language = chain({(): (0.6, 0.4, 1e-9), (a,): (0.5, 0.5, 1e-9), (b,): (1e-9, 0.99, 0.01)})
    found = {w: reference.beam(language, end, 3, w)[0][0] for w in (1, 2)}
    assert found == {1: (a, a, end), 2: (b, b, end)}
    assert reference.exhaustive(language, end, 3)[0] == (b, b, end)


def test_a_beam_may_do_worse_than_greedy():
    """Greedy keeps `a` to the end; the beam of two is filled by b's children, which end badly."""
    a, b, end = range(3)
    low = 1e-6
    language = chain(
        {
            (): (0.51, 0.49, low),
            (a,): (0.4, 0.3, 0.3),
            (b,): (0.5, 0.5, low),
            (a, a): (low, low, 1.0),
            (b, a): (0.4, 0.4, 0.2),
            (b, b): (0.4, 0.4, 0.2),
        }
    )
    greedy, wide = (reference.beam(language, end, 3, width)[0] for width in (1, 2))
    assert greedy[0] == (a, a, end)
    assert greedy[1] > wide[1]


def test_without_normalisation_short_answers_win():
    a, end = 0, 2
    language = chain(dict.fromkeys([(), (a,), (a, a)], (0.65, 1e-9, 0.35)))
    found = {power: reference.exhaustive(language, end, 4, power)[0] for power in (0.0, 1.0)}
    assert found == {0.0: (end,), 1.0: (a, a, a, end)}


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


def layer_of(*sizes, **options):
    return nn.GRU(*sizes, **{"batch_first": True} | options)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: DotAttention(4, 5), ValueError, "query_size: expected key_size = 5, got 4"),
        (lambda: DotAttention(4, 4, "cosine"), ValueError, "score: expected 'dot', 'scaled'"),
        (lambda: AdditiveAttention(4, 4, 0), ValueError, "hidden_size: expected at least 1"),
        (lambda: AdditiveAttention(4, 4.0, 2), TypeError, "key_size: expected an integer"),
        (lambda: Encoder(9, 4, nn.Linear(4, 4)), TypeError, "layer: expected a recurrent layer"),
        (lambda: Encoder(9, 4, nn.GRU(4, 6)), ValueError, "layer: expected batch_first=True"),
        (lambda: Encoder(9, 4, layer_of(5, 6)), ValueError, "layer: expected input_size = 4"),
        (lambda: Encoder(9, 4, layer_of(4, 6), 9), ValueError, "padding: expected a token from 0"),
        (
            lambda: Encoder(9, 4, nn.LSTM(4, 6, batch_first=True, proj_size=2)),
            ValueError,
            "layer: expected no projection",
        ),
        (
            lambda: Decoder(9, 4, layer_of(4, 6, bidirectional=True)),
            ValueError,
            "layer: expected one direction",
        ),
        (
            lambda: Decoder(9, 4, layer_of(4, 6), DotAttention(5, 5)),
            ValueError,
            "attention: expected query_size = 6",
        ),
        (
            lambda: Decoder(9, 4, layer_of(4, 6), DotAttention(6, 6), "before"),
            ValueError,
            "layer: expected input_size = 10",
        ),
        (
            lambda: Decoder(9, 4, layer_of(4, 6), attend="before"),
            ValueError,
            "attend: expected 'after', got 'before'",
        ),
        (
            lambda: Decoder(9, 4, layer_of(4, 6), DotAttention(6, 6), "during"),
            ValueError,
            "attend: expected 'after' or 'before'",
        ),
    ],
)
def test_a_module_names_bad_arguments(make, error, says):
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize(
    ("encoder", "decoder", "tokens", "error", "says"),
    [
        (layer_of(4, 6), nn.LSTM(4, 6, batch_first=True), (2, 3), ValueError, "expected states"),
        (layer_of(4, 6, 2), layer_of(4, 6), (2, 3), ValueError, "decoder: expected layers 2"),
        (layer_of(4, 5), layer_of(4, 6), (2, 3), ValueError, "decoder: expected features 5"),
        (layer_of(4, 6), layer_of(4, 6), (2, 2), ValueError, "start: expected start, end and"),
        (layer_of(4, 6), layer_of(4, 6), (2, 9), ValueError, "end: expected a token from 0 to 8"),
        (layer_of(4, 6), layer_of(4, 6), (2.0, 3), TypeError, "start: expected a token"),
    ],
)
def test_parts_that_do_not_fit_are_named(encoder, decoder, tokens, error, says):
    with pytest.raises(error, match=says):
        Seq2Seq(Encoder(9, 4, encoder), Decoder(9, 4, decoder), *tokens)


def test_the_attention_of_a_decoder_must_read_the_encoder_s_features():
    attention = DotAttention(6, 5, "general")
    with pytest.raises(ValueError, match="decoder: expected key_size 6 as the encoder, got 5"):
        encoder = Encoder(9, 4, layer_of(4, 6))
        Seq2Seq(encoder, Decoder(9, 4, layer_of(4, 6), attention), START, END)
    with pytest.raises(TypeError, match="encoder: expected Encoder, got GRU"):
        Seq2Seq(layer_of(4, 6), Decoder(9, 4, layer_of(4, 6)), START, END)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m, s, n: m(s.float(), n, s % 7), TypeError, "source: expected torch.int64"),
        (lambda m, s, n: m.greedy(s[0], n, 3), ValueError, r"source: expected \(B, T\)"),
        (lambda m, s, n: m(s + 9, n, s % 7), ValueError, "source: expected tokens from 0 to 8"),
        (lambda m, s, n: m(s, n * 0, s % 7), ValueError, "lengths: expected 1 to T = 5"),
        (lambda m, s, n: m(s, n, s[:1] % 7), ValueError, "target: expected batch 4 as source"),
        (lambda m, s, n: m(s, n, s * 0 - 1), ValueError, "target: expected tokens from 0 to 6"),
        (lambda m, s, n: m.greedy(s, n, 0), ValueError, "max_length: expected at least 1"),
        (lambda m, s, n: m.beam(s, n, 0, 3), ValueError, "width: expected at least 1"),
        (lambda m, s, n: m.beam(s, n, 1, 3, -1.0), ValueError, "length_power: expected a finite"),
        (lambda m, s, n: m.beam(s, n, 1, 3, 1, "5"), TypeError, "length_offset: expected a number"),
    ],
)
def test_a_model_names_bad_input(call, error, says):
    model, (source, lengths) = model_of(), sentences()
    with pytest.raises(error, match=says):
        call(model, source, lengths)


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
