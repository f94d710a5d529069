"""What chapter 9 shares: noise, rules, tables of letters, a copier and its years do as they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chapters.support import seq2seq as shared
from gatelib.data import translation


@pytest.fixture(scope="module")
def dates():
    return shared.encoded(translation.dates(600, 50, 0, ("de", "en")), valid=100)


@pytest.fixture(scope="module")
def told():
    """Dates as words; of the years a third is known, a third rare, a third new."""
    years = [str(year) for year in range(1900, 2100)]
    groups = {"known": set(years[::3]), "rare": set(years[1::3]), "new": set(years[2::3])}
    return shared.date_words(translation.dates(4000, 100, 0, ("en",)), groups, groups["known"])


def test_noise_replaces_no_digit_and_no_padding(dates):
    change, x = shared.noise_for(dates), dates.test[0]
    found = change(x, np.random.default_rng(0), 1.0)
    digits = [i for i, token in enumerate(dates.source.tokens) if token.isdigit() or i < 4]
    kept = np.isin(x, digits)
    assert (found[kept] == x[kept]).all()
    assert (found[~kept] != x[~kept]).mean() > 0.9
    assert (change(x, np.random.default_rng(0), 0.0) == x).all()


def test_a_batch_holds_answers_beside_their_sources_which_are_of_like_length(dates):
    x, y = dates.train
    answers = {tuple(row): tuple(answer) for row, answer in zip(x, y, strict=True)}
    batch, generator = shared.batches((x, y), 16), np.random.default_rng(0)
    spreads = []
    for step in range(16):
        both, target = batch(step, generator)
        source = both[:, : x.shape[1]]
        assert len(both) == 16 and (both[:, x.shape[1] :] == target).all()
        assert [answers[tuple(row)] for row in source] == [tuple(row) for row in target]
        spreads.append((source != 0).sum(1).std())
    assert np.mean(spreads) < 0.3 * (x != 0).sum(1).std()


def test_rules_read_a_date_they_have_counted():
    pairs = (
        ["5. Mai 2001", "6. Mai 2002", "7. Juni 2003"],
        ["2001-05-05", "2002-05-06", "2003-06-07"],
    )
    counts = shared.count_months(*pairs)
    assert shared.by_rules("9. Mai 1999", counts) == "1999-05-09"
    assert shared.by_rules("09.12.1999", counts) == "1999-12-09"


def test_the_distance_counts_edits():
    assert shared.distance("kitten", "sitting") == 3
    assert shared.distance("", "abc") == 3
    assert shared.error_rate([[1, 2]], [[1, 3, 4]]) == pytest.approx(2 / 3)


def test_a_table_says_letters_as_it_has_seen_them_between_their_neighbours():
    pairs = [("ab", ["A", "B"]), ("cb", ["C", "X"])]
    say = shared.speller(shared.aligned(pairs), 1)
    assert say("ab") == ["A", "B"]
    assert say("cb") == ["C", "X"]


def test_a_year_outside_the_vocabulary_is_one_word_and_new_ones_are_only_tested(told):
    for part in (told.train, told.valid):
        assert (part[1][:, 0] <= told.size).all()
    assert (told.tests["new"][1][:, 0] == told.size).all()
    assert (told.tests["known"][1][:, 0] < told.size).all()
    assert ((told.tests["new"][0] == told.size).sum(1) == 1).all()


def test_a_word_that_cannot_be_said_is_left_out_of_the_loss():
    answers = torch.log(torch.tensor([[[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]]))
    target = torch.tensor([[2, 1]])
    assert shared.word_loss(answers, target).item() == pytest.approx(np.log(4))


@pytest.mark.parametrize("how", ["write", "constant", "seen", 0.0, -200.0])
def test_a_copiers_answers_are_a_distribution_and_greedy_takes_the_likeliest(told, how):
    torch.manual_seed(0)
    model = shared.Copier(told.size, how)
    x, n, y = shared.tensors(tuple(part[:8] for part in told.tests["new"]))
    answers = model(x, n, y)
    torch.testing.assert_close(answers.exp().sum(-1), torch.ones(8, 4))
    said, seen = model.greedy(x, n, 4)
    first = model(x, n, said)[:, 0, 3:].argmax(-1) + 3
    assert torch.equal(said[:, 0], first)
    assert all(word in row for word, row in zip(seen[:, 0].tolist(), x.tolist(), strict=True))


@pytest.mark.parametrize("feed", ["own", "random"])
def test_a_speaker_replaces_tokens_in_training_alone(dates, feed):
    torch.manual_seed(0)
    parts = (shared.Encoder(len(dates.source), 4, shared.GRU(4, 6, batch_first=True)),)
    writes = shared.GRU(4, 6, batch_first=True)
    parts += (shared.Decoder(len(dates.target), 4, writes, shared.DotAttention(6, 6)),)
    model = shared.Speaker(*parts, start=2, end=3)
    given = shared.tensors(tuple(part[:16] for part in dates.test))
    taught = model(*given)
    model.feed = feed
    assert not torch.equal(model(*given), taught)
    assert torch.equal(model.eval()(*given), taught)


@pytest.mark.parametrize("how", ["seen", "constant", 0.0])
def test_a_word_that_cannot_be_said_is_left_out_and_sends_no_gradient_that_is_no_number(how):
    torch.manual_seed(0)
    model, source = shared.Copier(10, how), torch.randint(4, 10, (3, 5))
    target = source[:, :4].clone()
    target[0, 0] = 10  # neither in the vocabulary nor in this source
    answers = model(source, torch.full((3,), 5), target)
    assert torch.isinf(answers[0, 0, 10])
    shared.word_loss(answers, target).backward()
    slopes = [p.grad for p in model.parameters() if p.grad is not None]
    assert slopes and all(torch.isfinite(slope).all() for slope in slopes)
