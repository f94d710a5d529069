"""What every loader returns, and the one way in which examples are shuffled and split.

Imports NumPy.
Must not import torch, SymPy or any other floor of gatelib.
"""

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


def check_count(name: str, value: int, low: int, high: int | None = None) -> None:
    """Raise unless ``value`` is a whole number with ``low <= value`` (``<= high``)."""
    limit = "" if high is None else f" and at most {high}"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name}: expected at least {low}{limit}, got {value}")


def shuffle_split(x: Array, y: Array, train_size: int, seed: int) -> Dataset:
    """Shuffle the rows of ``x`` and ``y`` alike; the first ``train_size`` become ``train``."""
    check_count("seed", seed, 0)
    check_count("train_size", train_size, 1, len(x) - 1)
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = order[:train_size], order[train_size:]
    return Dataset(Split(x[train], y[train]), Split(x[test], y[test]))
