"""What chapter 5 shares: its four tasks, and rivals without a state, as large as its RNN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from num2words import num2words

from chapters.support import rnn as shared
from gatelib.data import mnist


def weights(task):
    return sum(weight.numel() for weight in task[0].parameters())


@pytest.mark.parametrize("number", [0, 7, 19, 20, 100, 342, 1_000, 70_015, 905_300, 9_999_999])
def test_a_number_in_words_is_read_as_its_digits(number):
    assert shared.in_digits(num2words(number)) == [int(digit) for digit in f"{number:07}"]


def test_a_digit_passes_by_whole_in_blank_steps():
    part = mnist.rows().test
    part = part._replace(x=part.x[:40].reshape(40, 14, 56), y=part.y[:40])
    x = shared.placed(part, np.random.default_rng(0)).x
    begins = [next(n for n in range(15) if (row[n : n + 14] == digit).all())
              for row, digit in zip(x, part.x, strict=True)]  # fmt: skip
    assert len(set(begins)) > 5
    np.testing.assert_allclose(x.sum((1, 2)), part.x.sum((1, 2)), rtol=1e-5)


def test_one_map_that_slides_adds_its_answers_at_all_places_as_probabilities():
    net, x = shared.Sliding(), torch.rand(3, shared.STEPS, 56)
    windows = [x[:, n : n + 14].transpose(1, 2).flatten(1) for n in range(shared.STEPS - 13)]
    together = torch.stack([net.linear(window).exp() for window in windows]).sum(0)
    torch.testing.assert_close(net(x), together.log())


@pytest.mark.parametrize(
    ("task", "rival"),
    [
        (shared.spelling, lambda: shared.spelling("MLP")),
        (shared.spelling, lambda: shared.spelling_without_state("RNN")),
        (shared.translating, lambda: shared.translating("MLP")),
        (shared.translating, lambda: shared.translating_without_state("RNN")),
    ],
)
def test_a_rival_without_a_state_has_as_many_weights_as_the_rnn(task, rival):
    assert 0.97 < weights(rival()) / weights(task("RNN")) < 1.03


@pytest.mark.parametrize(
    "make",
    [shared.Translator, lambda letters, phones: shared.Stateless(6, letters, 8, phones, 5, 2)],
)
def test_what_writes_phones_is_taught_in_training_alone(make):
    """Given other right answers it says others while it learns, and the same ones afterwards."""
    torch.manual_seed(0)
    net, x = make(9, 12), torch.randint(1, 9, (4, shared.READ + shared.WRITTEN))
    x[:, shared.READ] = 2
    other = x.clone()
    other[:, shared.READ + 1 :] = 8 - other[:, shared.READ + 1 :]
    taught, told = net(x), net(other)
    assert taught.shape == (4, shared.WRITTEN - 1, 12)
    torch.testing.assert_close(taught[:, 0], told[:, 0])
    assert not torch.allclose(taught[:, 1], told[:, 1])
    net.eval()
    assert torch.equal(net(x), net(other))


def test_a_phone_that_is_taught_is_not_seen_before_it_is_asked_for():
    net = shared.Stateless(6, 9, 8, 12, 5, back=2)
    x = torch.randint(1, 9, (4, shared.READ + shared.WRITTEN))
    for place in range(8):
        other = x.clone()
        other[:, shared.READ + 1 + place] += 1
        assert torch.equal(net(x)[:, : place + 1], net(other)[:, : place + 1])


def test_an_answer_is_right_where_all_that_is_not_padded_is():
    y = np.array([[3, 4, 0], [3, 5, 6]])
    said = torch.eye(9)[torch.tensor([[3, 4, 7], [3, 5, 8]])]
    assert shared.exactly(y, y)(lambda x: said) == 0.5


def test_the_linear_tagger_sees_three_characters_and_none_to_come():
    torch.manual_seed(0)
    net, ids = shared.Tagger(20, recurrent=False), torch.arange(8)[None]
    for place in range(8):
        other = ids.clone()
        other[0, place] = 15
        changed = (net(ids) != net(other)).any(-1)[0]
        assert changed.nonzero().flatten().tolist() == list(range(place, min(place + 3, 8)))
