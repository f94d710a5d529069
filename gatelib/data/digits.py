"""Digits 8×8: 1,797 real handwritten digits of 64 pixels, from the files of scikit-learn.

Imports NumPy and reads scikit-learn's CSV.
Must not import torch, SymPy or any other floor of gatelib.

Pixels are float32 from 0 (paper) to 1 (ink), in steps of 1/16; labels are int64 from 0 to 9.
By default 1,397 digits train and 400 test.
Source: E. Alpaydin and C. Kaynak, 1998, "Optical recognition of handwritten digits", UCI
repository (its test set).
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from gatelib.data._package import read_table
from gatelib.data._split import Array, Dataset, shuffle_split

SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"


@cache
def _table() -> NDArray[np.uint8]:
    """Return the file as it is: (1797, 65), 64 pixels from 0 to 16 and the label."""
    table = read_table("sklearn", "scikit-learn", "datasets/data/digits.csv.gz", SHA256)
    table.flags.writeable = False
    return table


def _load(shape: tuple[int, ...], train_size: int, seed: int) -> Dataset:
    pixels: Array = _table()[:, :-1].reshape(-1, *shape).astype(np.float32) / np.float32(16)
    return shuffle_split(pixels, _table()[:, -1].astype(np.int64), train_size, seed)


def images(train_size: int = 1397, seed: int = 0) -> Dataset:
    """Return images for convolutions: x (N, 1, 8, 8), y (N,)."""
    return _load((1, 8, 8), train_size, seed)


def flat(train_size: int = 1397, seed: int = 0) -> Dataset:
    """Return one feature vector per digit: x (N, 64), y (N,)."""
    return _load((64,), train_size, seed)


def rows(train_size: int = 1397, seed: int = 0) -> Dataset:
    """Return sequences of 8 steps, the rows from the top: x (N, 8, 8), y (N,)."""
    return _load((8, 8), train_size, seed)
