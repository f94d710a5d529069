"""What every loader returns, and the one way in which examples are shuffled and split.

Imports NumPy.
Must not import torch, SymPy or any other floor of gatelib.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Split(NamedTuple):
    """Examples ``x`` (N, ...) and their answers ``y`` (N, ...), row by row."""

    x: Array
    y: Array


class Dataset(NamedTuple):
    """A ``train`` and a ``test`` split that share no example."""

    train: Split
    test: Split


class Validated(NamedTuple):
    """Three splits that share no example: choose on ``valid``, and look at ``test`` once."""

    train: Split
    valid: Split
    test: Split


def check_count(name: str, value: int, low: int, high: int | None = None) -> None:
    """Raise unless ``value`` is a whole number with ``low <= value`` (``<= high``)."""
    limit = "" if high is None else f" and at most {high}"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name}: expected at least {low}{limit}, got {value}")


def objects(items: Iterable[object]) -> Array:
    """Return an array (N,) of dtype object with one item a row, even if the items are arrays."""
    kept = list(items)
    rows = np.empty(len(kept), dtype=object)
    for i, item in enumerate(kept):
        rows[i] = item
    return rows


def shuffle_split(
    x: Array, y: Array, train_size: int, seed: int, test_size: int | None = None
) -> Dataset:
    """Shuffle the rows of ``x`` and ``y`` alike; the first ``train_size`` become ``train``.

    The last ``test_size`` rows become ``test``, or all that are left if it is None.
    """
    check_count("seed", seed, 0)
    check_count("train_size", train_size, 1, len(x) - 1)
    if test_size is None:
        test_size = len(x) - train_size
    check_count("test_size", test_size, 1, len(x) - train_size)
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = order[:train_size], order[len(x) - test_size :]
    return Dataset(Split(x[train], y[train]), Split(x[test], y[test]))


def with_validation(dataset: Dataset, size: int, seed: int = 0) -> Validated:
    """Set ``size`` examples of ``train`` apart as ``valid``, drawn by ``seed``; ``test`` stays.

    Learning rates and stopping are chosen on ``valid``, so that ``test`` has no say in them. Both
    parts are copies in which the examples keep the order that they have in ``train``.

    Raises:
        TypeError: ``dataset`` is no ``Dataset``, ``size`` or ``seed`` no whole number.
        ValueError: ``size`` is below 1 or leaves nothing to train on, or ``seed`` is below 0.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(f"dataset: expected a Dataset, got {type(dataset).__name__}")
    train, test = dataset
    check_count("seed", seed, 0)
    check_count("size", size, 1, len(train.x) - 1)
    held = np.zeros(len(train.x), dtype=bool)
    held[np.random.default_rng(seed).permutation(len(train.x))[:size]] = True
    return Validated(
        Split(train.x[~held], train.y[~held]), Split(train.x[held], train.y[held]), test
    )
