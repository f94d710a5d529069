"""Search: the batched beam is the plain one, and a beam finds what there is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib.reference import decoding as reference
from tests.families.sentences import DESIGNS, END, PADDING, START, model_of, sentences


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


def test_a_traced_search_runs_to_its_last_step_and_answers_the_same():
    model, (source, _) = model_of(seed=2).eval(), sentences()
    for search in (lambda s: model.greedy(s, None, 6), lambda s: model.beam(s, None, 3, 6, 0.5)):
        traced = torch.compile(search, fullgraph=True, backend="eager")
        torch.testing.assert_close(traced(source), search(source))


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m, s, n: m.greedy(s, n, 0), ValueError, "max_length: expected at least 1"),
        (lambda m, s, n: m.beam(s, n, 0, 3), ValueError, "width: expected at least 1"),
        (lambda m, s, n: m.beam(s, n, 1, 3, -1.0), ValueError, "length_power: expected a finite"),
        (lambda m, s, n: m.beam(s, n, 1, 3, 1, "5"), TypeError, "length_offset: expected a number"),
    ],
)
def test_a_search_names_bad_input(call, error, says):
    model, (source, lengths) = model_of(), sentences()
    with pytest.raises(error, match=says):
        call(model, source, lengths)
