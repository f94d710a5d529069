"""Convolutions in NumPy along any number of axes, and their backward pass by hand.

Imports NumPy.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

A convolution is a sum over the offsets of its kernel: at each, one matrix multiplies the channels
of shifted values. Its backward pass walks the same offsets. As in deep learning's libraries the
kernel isn't turned round: y(t) = Σ_j w(j) x(t + j).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Frame:
    """How a kernel lies on values: for each axis the zeros (before, behind) and the dilation.

    wrap: whether the values from the other end stand in the place of the zeros, as on a torus.
    """

    zeros: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    wrap: bool = False

    def padded(self, x: Array) -> Array:
        """x (N, C, …) with its zeros, or wrapped round."""
        return np.pad(x, ((0, 0), (0, 0), *self.zeros), mode="wrap" if self.wrap else "constant")

    def padded_backward(self, d: Array, sizes: Sequence[int]) -> Array:
        """The gradient of what was padded, of these sizes: what stood at an edge is cut away, or
        goes to where it came from."""
        for axis, ((before, _), size) in enumerate(zip(self.zeros, sizes, strict=True), 2):
            places = np.arange(d.shape[axis]) - before
            inside = (places >= 0) & (places < size)
            kept = np.compress(inside, d, axis)
            if self.wrap:
                for place in np.flatnonzero(~inside):
                    to = (slice(None),) * axis + (places[place] % size,)
                    kept[to] += d.take(place, axis)
            d = kept
        return d

    def offsets(self, kernel: Array, padded: Array) -> Iterator[tuple[Any, Any]]:
        """Each offset's place in the kernel, and the part of the padded values that it meets."""
        axes = list(zip(kernel.shape[2:], padded.shape[2:], self.dilation, strict=True))
        for place in np.ndindex(kernel.shape[2:]):
            steps = zip(place, axes, strict=True)
            part = (slice(d * j, d * j + n - d * (k - 1)) for j, (k, n, d) in steps)
            yield (..., *place), (..., *part)


def reach(kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """How far a kernel reaches beyond one value, along each axis."""
    return [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]


def same(kernel: Sequence[int], dilation: Sequence[int], wrap: bool = False) -> Frame:
    """The frame that keeps all sizes; an odd zero goes behind."""
    zeros = tuple((n // 2, n - n // 2) for n in reach(kernel, dilation))
    return Frame(zeros, tuple(dilation), wrap)


def convolve(x: Array, kernel: Array, frame: Frame) -> Array:
    """y[r] = Σ over channels and offsets of kernel[r, c, offset] · x[c, place + offset].

    x (N, C, …), kernel (R, C, …) with as many axes; y (N, R, …).
    """
    padded = frame.padded(x)
    offsets = frame.offsets(kernel, padded)
    terms = (np.einsum("nc...,rc->nr...", padded[part], kernel[place]) for place, part in offsets)
    return np.asarray(sum(terms))


def convolve_backward(dy: Array, x: Array, kernel: Array, frame: Frame) -> tuple[Array, Array]:
    """The gradients of x and of the kernel, from dy (N, R, …)."""
    padded, d_kernel = frame.padded(x), np.zeros_like(kernel)
    d_padded, rest = np.zeros_like(padded), (0, *range(2, x.ndim))
    for place, part in frame.offsets(kernel, padded):
        d_padded[part] += np.einsum("nr...,rc->nc...", dy, kernel[place])
        d_kernel[place] += np.tensordot(dy, padded[part], (rest, rest))
    return frame.padded_backward(d_padded, x.shape[2:]), d_kernel
