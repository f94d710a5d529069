"""Tasks that nothing but memory can solve: adding, copy, recall of the first symbol, registers.

Imports NumPy.
Must not import torch, SymPy or any other floor of gatelib.

The answer depends on steps whose distance is known, or seen in the input, so a failure says how far
a cell remembers.
Every draw comes from ``numpy.random.default_rng(seed)``.
"""

from collections.abc import Callable

import numpy as np

from gatelib.data._split import Array, Dataset, Split, check_count

Draw = Callable[[np.random.Generator, int], Split]

UNASKED = -100
"""The answer where none is asked for; torch's cross-entropy and `lab.accuracy` leave it out."""


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


def registers(
    length: int,
    keys: int = 3,
    values: int = 4,
    write: float = 0.35,
    query: float = 0.35,
    train_size: int = 4000,
    test_size: int = 1000,
    seed: int = 0,
) -> Dataset:
    """Say the latest value of a register whenever it is asked for.

    x (N, length, 3 + keys + values) float32: what a step does (it writes, asks, or is noise), then
    one-hot the register that it names, then one-hot its value. A write has both, a question no
    value, noise no register. The first step writes; any other writes with the probability
    ``write``, asks with ``query``, and is noise otherwise. y (N, length) int64: at a question, the
    value that was last written to the register; ``UNASKED`` elsewhere, and where nothing was
    written yet.

    A value is kept past other writes and noise until a new one takes its place. Without memory the
    share of right answers is 1/values. Naming whatever was written last, to any register, gives
    1/keys + (1 - 1/keys)/values late in a sequence, and more at its beginning.
    Source: after the multi-query associative recall of S. Arora et al., arXiv:2312.04927, with
    keys that are written again.
    """
    check_count("length", length, 2)
    check_count("keys", keys, 1)
    check_count("values", values, 2)
    _check_shares(write=write, query=query)

    def draw(generator: np.random.Generator, count: int) -> Split:
        shape = (count, length)
        kind = generator.choice(3, p=[write, query, max(0.0, 1 - write - query)], size=shape)
        key, value = generator.integers(0, keys, shape), generator.integers(0, values, shape)
        kind[:, 0] = 0
        names, shows = kind != 2, kind != 1
        seen = [_one_hot(kind, 3), _one_hot(key, keys) * names[..., None]]
        seen.append(_one_hot(value, values) * shows[..., None])
        return Split(np.concatenate(seen, 2), _latest(kind, key, value, keys))

    return _dataset(draw, train_size, test_size, seed)


def _latest(kind: Array, key: Array, value: Array, keys: int) -> Array:
    """At each question the value last written to its key; UNASKED where there is none."""
    answers = np.full(kind.shape, UNASKED, np.int64)
    for k in range(keys):
        written = np.where((kind == 0) & (key == k), np.arange(kind.shape[1]), -1)
        last = np.maximum.accumulate(written, axis=1)
        asked = (kind == 1) & (key == k) & (last >= 0)
        answers[asked] = np.take_along_axis(value, last, axis=1)[asked]
    return answers


def _check_shares(**shares: float) -> None:
    """Raise unless each is a number above 0, and together they are at most 1."""
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise TypeError(f"{name}: expected a number, got {share!r}")
        if not 0 < share < 1:
            raise ValueError(f"{name}: expected a number between 0 and 1, got {share}")
    if sum(shares.values()) > 1:
        raise ValueError(f"{' + '.join(shares)}: expected at most 1, got {sum(shares.values())}")
