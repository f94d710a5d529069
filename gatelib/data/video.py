"""Video: a real digit that moves with constant velocity on a torus of 16 × 16 pixels.

Imports NumPy and reads scikit-learn's digits through gatelib.data.digits.
Must not import torch, SymPy or any other floor of gatelib.

What leaves the frame on one side comes back on the other, so that no place is special, and a single
frame says nothing of the motion. A digit moves by whole pixels a frame and keeps its form.
Train, validation and test share no digit. Pixels are float32 from 0 (paper) to 1 (ink), before the
noise.
"""

import math

import numpy as np

from gatelib.data import digits
from gatelib.data._split import Array, Split, Validated, check_count, with_validation

SIZE = 16
"""Pixels of a side of a frame."""

VELOCITIES = np.array([(x, y) for y in range(-2, 3) for x in range(-2, 3) if x or y])
"""(24, 2), pixels a frame to the right and down: the velocities of `coasting` and `names`."""

DIRECTIONS = np.array([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)])
"""(8, 2), pixels a frame to the right and down: the answers of `motion`, in their order."""


def coasting(
    seen: int = 10,
    hidden: int = 5,
    noise: float = 0.3,
    train_size: int = 2000,
    valid_size: int = 500,
    test_size: int = 500,
    seed: int = 0,
    velocities: Array = VELOCITIES,
) -> Validated:
    """Return clips that go dark: x (N, seen + hidden, 1, 16, 16), y (N, hidden, 1, 16, 16).

    The last ``hidden`` frames of x are blank, exactly 0; y has what moves on behind them, clean.
    ``noise`` is the standard deviation of what is added to every pixel that is seen; velocities
    are drawn from ``velocities`` (K, 2), such as ``DIRECTIONS``, whose digits move by one pixel.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``seen`` is below 2, a size or ``hidden`` below 1, ``noise`` or ``seed``
            below 0.
        DataPackageMissing: scikit-learn is not installed.
    """
    check_count("seen", seen, 2)
    check_count("hidden", hidden, 1)
    if velocities.ndim != 2 or velocities.shape[1] != 2 or velocities.dtype.kind not in "iu":
        found = f"{velocities.shape} of {velocities.dtype}"
        raise ValueError(f"velocities: expected (K, 2) of whole numbers, got {found}")
    sizes = {"train": train_size, "valid": valid_size, "test": test_size}
    parts = []
    for (x, clean), _, _ in _clips(velocities, seen + hidden, noise, sizes, seed):
        x[:, seen:] = 0
        parts.append(Split(x, clean[:, seen:].copy()))
    return Validated(*parts)


def motion(
    steps: int = 8,
    noise: float = 0.5,
    train_size: int = 2000,
    valid_size: int = 500,
    test_size: int = 500,
    seed: int = 0,
) -> Validated:
    """Return clips and where they move: x (N, steps, 1, 16, 16), y (N,) int64, of ``DIRECTIONS``.

    One frame says nothing: all places and directions are equally likely. The frames without their
    order, or their mean, say no more than the axis: a clip that is run backwards has the same
    frames and the opposite answer, so at most half of the answers are right.

    Raises: as ``coasting``; ``steps`` is at least 2.
    """
    check_count("steps", steps, 2)
    sizes = {"train": train_size, "valid": valid_size, "test": test_size}
    made = _clips(DIRECTIONS, steps, noise, sizes, seed)
    return Validated(*(Split(x, which) for (x, _), _, which in made))


def names(
    steps: int = 8,
    noise: float = 1.0,
    train_size: int = 2000,
    valid_size: int = 500,
    test_size: int = 500,
    seed: int = 0,
) -> Validated:
    """Return clips and the digits in them: x (N, steps, 1, 16, 16), y (N,) int64 from 0 to 9.

    The noise is as strong as the ink, so that one frame hardly tells the digit. The mean of all
    frames has less noise, but smears a digit that isn't brought to one place first.

    Raises: as ``coasting``; ``steps`` is at least 2.
    """
    check_count("steps", steps, 2)
    sizes = {"train": train_size, "valid": valid_size, "test": test_size}
    made = _clips(VELOCITIES, steps, noise, sizes, seed)
    return Validated(*(Split(x, label) for (x, _), label, _ in made))


def _clips(
    velocities: Array, steps: int, noise: float, sizes: dict[str, int], seed: int
) -> list[tuple[tuple[Array, Array], Array, Array]]:
    """Draw for each split (noisy and clean clips), labels, and which velocity each clip has."""
    check_count("seed", seed, 0)
    for name, size in sizes.items():
        check_count(f"{name}_size", size, 1)
    _check_noise(noise)
    pools = with_validation(digits.images(seed=seed), 200, seed)
    generator = np.random.default_rng(seed)
    made = []
    for pool, size in zip(pools, sizes.values(), strict=True):
        chosen = generator.integers(0, len(pool.x), size)
        which = generator.integers(0, len(velocities), size)
        start = generator.integers(0, SIZE, (size, 2))
        clean = moved(pool.x[chosen, 0], start, velocities[which], steps)
        noisy = generator.standard_normal(clean.shape, np.float32)
        noisy *= np.float32(noise)
        noisy += clean
        made.append(((noisy, clean), pool.y[chosen], which))
    return made


def moved(images: Array, start: Array, velocity: Array, steps: int) -> Array:
    """Return clips (N, steps, 1, 16, 16) of images (N, h, w) no larger than a frame.

    The upper left pixel of image n is at ``start[n] + t * velocity[n]`` in frame t, (x, y) modulo
    16; what is not covered is 0.
    """
    padded = np.zeros((len(images), SIZE, SIZE), images.dtype)
    padded[:, : images.shape[1], : images.shape[2]] = images
    at = start[:, None] + np.arange(steps)[:, None] * velocity[:, None]
    column, line = ((np.arange(SIZE) - at[..., k, None]) % SIZE for k in (0, 1))
    row = np.arange(len(images))[:, None, None, None]
    clips: Array = padded[row, line[..., None], column[:, :, None]]
    return clips[:, :, None]


def _check_noise(noise: object) -> None:
    if isinstance(noise, bool) or not isinstance(noise, int | float):
        raise TypeError(f"noise: expected a number, got {type(noise).__name__}")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise: expected a finite number of at least 0, got {noise}")
