"""Three tasks that nothing but memory can solve: adding, copy and recall of the first symbol.

Imports NumPy.
Must not import torch, SymPy or any other floor of gatelib.

The answer depends on steps whose distance is known, so a failure says how far a cell remembers.
Every draw comes from ``numpy.random.default_rng(seed)``.
"""

from collections.abc import Callable

import numpy as np

from gatelib.data._split import Array, Dataset, Split, check_count

Draw = Callable[[np.random.Generator, int], Split]


def _dataset(draw: Draw, train_size: int, test_size: int, seed: int) -> Dataset:
    check_count("train_size", train_size, 1)
    check_count("test_size", test_size, 1)
    check_count("seed", seed, 0)
    generator = np.random.default_rng(seed)
    return Dataset(draw(generator, train_size), draw(generator, test_size))


def _one_hot(symbols: Array, width: int) -> Array:
    hot: Array = np.eye(width, dtype=np.float32)[symbols]
    return hot


def adding(length: int, train_size: int = 2000, test_size: int = 500, seed: int = 0) -> Dataset:
    """Add the two marked numbers of a sequence.

    x (N, length, 2) float32: a number drawn from [0, 1), and a mark that is 1 at one step of the
    first half and at one of the second; y (N, 1) float32: the sum of the two marked numbers.
    Answering 1 without looking costs a mean squared error of 1/6.
    Source: S. Hochreiter and J. Schmidhuber, 1997, "Long short-term memory", section 5.4, with the
    range of Q. Le, N. Jaitly, G. Hinton, arXiv:1504.00941.
    """
    check_count("length", length, 2)

    def draw(generator: np.random.Generator, count: int) -> Split:
        numbers = generator.random((count, length), dtype=np.float32)
        marks = np.zeros((count, length), dtype=np.float32)
        every = np.arange(count)
        marks[every, generator.integers(0, length // 2, count)] = 1
        marks[every, generator.integers(length // 2, length, count)] = 1
        return Split(np.stack([numbers, marks], 2), (numbers * marks).sum(1, keepdims=True))

    return _dataset(draw, train_size, test_size, seed)


def copy(
    delay: int,
    width: int = 10,
    symbols: int = 8,
    train_size: int = 2000,
    test_size: int = 500,
    seed: int = 0,
) -> Dataset:
    """Say ``width`` symbols again after ``delay`` blanks.

    x (N, T, symbols + 2) float32, one-hot, with T = delay + 2·width: the symbols 0…symbols-1,
    then blanks (channel ``symbols``), of which the last before the answer is a signal to speak
    (channel ``symbols + 1``); y (N, T) int64: ``symbols`` (blank), then the symbols in order.
    A memoryless answer costs a cross-entropy of width·ln(symbols)/T per step.
    Source: M. Arjovsky, A. Shah, Y. Bengio, arXiv:1511.06464.
    """
    check_count("delay", delay, 1)
    check_count("width", width, 1)
    check_count("symbols", symbols, 2)

    def draw(generator: np.random.Generator, count: int) -> Split:
        word = generator.integers(0, symbols, (count, width))
        seen = np.full((count, delay + 2 * width), symbols)
        said = seen.copy()
        seen[:, :width] = said[:, -width:] = word
        seen[:, delay + width - 1] = symbols + 1
        return Split(_one_hot(seen, symbols + 2), said.astype(np.int64))

    return _dataset(draw, train_size, test_size, seed)


def recall_first(
    length: int,
    symbols: int = 8,
    distractors: int = 2,
    train_size: int = 2000,
    test_size: int = 500,
    seed: int = 0,
) -> Dataset:
    """Name the first symbol of a sequence at its end.

    x (N, length, symbols + distractors) float32, one-hot: one of ``symbols`` at step 0, then
    ``length - 1`` distractors, drawn at random; y (N,) int64: the symbol of step 0.
    Chance is 1/symbols.
    Source: after the first-symbol task of S. Hochreiter and J. Schmidhuber, 1997, "Long short-term
    memory", section 5.2.
    """
    check_count("length", length, 1)
    check_count("symbols", symbols, 2)
    check_count("distractors", distractors, 1)

    def draw(generator: np.random.Generator, count: int) -> Split:
        seen = generator.integers(symbols, symbols + distractors, (count, length))
        seen[:, 0] = generator.integers(0, symbols, count)
        return Split(_one_hot(seen, symbols + distractors), seen[:, 0].astype(np.int64))

    return _dataset(draw, train_size, test_size, seed)
