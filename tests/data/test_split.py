"""A validation part is taken from what trains, by the seed alone, and test stays as it is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatelib.data import Dataset, Split, diagnostics, names, with_validation


def numbered(count: int) -> Dataset:
    """Examples that say their number, so that one can see where each went."""
    rows = np.arange(count)
    return Dataset(Split(rows, -rows), Split(1000 + rows, -1000 - rows))


@given(count=st.integers(2, 60), share=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_the_parts_share_no_example_and_lose_none(count, share, seed):
    size = 1 + int(share * (count - 2))
    train, valid, _ = with_validation(numbered(count), size, seed)
    assert len(valid.x) == size
    assert sorted([*train.x, *valid.x]) == list(range(count))


@given(seed=st.integers(0, 2**32))
def test_each_example_keeps_its_answer_and_its_place(seed):
    for part in with_validation(numbered(40), 10, seed)[:2]:
        assert np.array_equal(part.y, -part.x)
        assert (np.diff(part.x) > 0).all()


def test_the_test_split_is_the_same_whoever_chooses():
    data = names.languages(train_size=500, test_size=100)
    assert with_validation(data, 100).test is data.test


def test_the_seed_alone_decides_which_are_set_apart():
    first, again, other = (with_validation(numbered(50), 10, seed).valid.x for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_examples_are_drawn_from_everywhere_not_cut_from_the_end():
    drawn = [with_validation(numbered(20), 5, seed).valid.x for seed in range(200)]
    counts = np.bincount(np.concatenate(drawn), minlength=20)
    assert counts.min() > 25 and counts.max() < 80  # 50 each, give or take four deviations


def test_the_stream_of_numpy_has_not_moved():
    assert with_validation(numbered(12), 4).valid.x.tolist() == [2, 4, 7, 9]


def test_a_change_of_a_part_leaves_the_data_alone():
    data = diagnostics.adding(5, train_size=20, test_size=5)
    kept = data.train.x.copy()
    parts = with_validation(data, 5)
    parts.train.x[:] = parts.valid.x[:] = 7
    assert np.array_equal(data.train.x, kept)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: with_validation(numbered(5), 5), ValueError, "size: expected .* 4, got 5"),
        (lambda: with_validation(numbered(5), 0), ValueError, "size: expected at least 1"),
        (lambda: with_validation(numbered(5), 0.2), TypeError, "size: expected a whole number"),
        (lambda: with_validation(numbered(5), 2, seed=-1), ValueError, "seed: expected at least 0"),
        (lambda: with_validation(numbered(5).train, 2), TypeError, "dataset: expected a Dataset"),
    ],
)
def test_bad_arguments_are_named(call, error, says):
    with pytest.raises(error, match=says):
        call()
