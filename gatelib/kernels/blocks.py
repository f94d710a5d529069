"""A program of calls that fill buffers, over large tensors: a block of rows in the cache at a time.

Imports torch, gatelib.kernels.inplace.
Must not import gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

Each call reads and writes memory; in a block it finds what the call before it left in the cache.
Values of lower precision are widened to float32 block by block, and results rounded once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from gatelib.kernels.inplace import FULL, Program

__all__ = ["as_rows", "run"]

BLOCK_BYTES = 1 << 22
"""Of all values that a program touches: what stays in the caches of a processor."""
LEAST = 1 << 12
"""Elements of a block at least, so that a call costs more than its start."""

Named = Mapping[str, Tensor]


def as_rows(given: Named, filled: Named) -> dict[str, Tensor]:
    """The same tensors, all of one shape, as matrices of one shape.

    The values of a row lie side by side, in as long rows as most tensors allow. What is filled is
    viewed; what is given is copied where it can't be.
    """
    shape = next(iter(filled.values())).shape
    together = {**given, **filled}
    first = {v: _first_joined(t) for v, t in together.items()}

    def fitting(names: Iterable[str], split: int) -> int:
        return sum(first[v] <= split and _joins(together[v], 0, split) for v in names)

    options = {max(first[v] for v in filled), *(first[v] for v in given if first[v] < len(shape))}
    options = {split for split in options if fitting(filled, split) == len(filled)}
    split = max(sorted(options), key=lambda split: fitting(given, split))
    size = shape[:split].numel(), shape[split:].numel()
    return {
        v: t.contiguous().view(size) if first[v] > split else t.reshape(size)
        for v, t in together.items()
    }


def _first_joined(tensor: Tensor) -> int:
    """The first axis from which on all values lie side by side."""
    if tensor.is_contiguous():
        return 0
    last = [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1]
    axes = range(tensor.dim()) if last[-1] == 1 else ()
    return next((k for k in axes if _joins(tensor, k, tensor.dim())), tensor.dim())


def _joins(tensor: Tensor, start: int, stop: int) -> bool:
    """Whether these axes can be seen as one."""
    sizes, strides = tensor.shape, tensor.stride()
    axes = [k for k in range(start, stop) if sizes[k] != 1]
    return all(strides[i] == strides[k] * sizes[k] for i, k in itertools.pairwise(axes))


def run(program: Program, given: Named, filled: Named) -> None:
    """Compute what `filled` holds from what is `given`, all of one shape.

    Args:
        program: its arguments are names of both, scratch and constants.
        given: read, never written.
        filled: written, each contiguous or a part of a contiguous tensor; may lack nothing that
            the program fills.
    """
    like = next(iter(filled.values()))
    if not like.numel():
        return
    matrices = {**given, **filled} if like.dim() == 2 else as_rows(given, filled)
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    narrow = [v for v, m in matrices.items() if m.dtype != wide]
    own = [*(v for v, shape in program.scratch.items() if shape == FULL), *narrow]
    rows, columns = matrices[next(iter(filled))].shape
    size = _block(rows, columns, (len(matrices) + len(own)) * wide.itemsize, like.device)
    buffers = _buffers(program, own, size, like, wide)
    step = program.compile()
    if not narrow and size == (rows, columns):
        buffers |= matrices
        step(*[buffers[v] for v in program.arguments])
        return
    for block in _blocks(matrices, size):
        known = {**block, **_cut(buffers, next(iter(block.values())).shape, size)}
        for v in narrow:
            if v in given:
                known[v].copy_(block[v])
        step(*[known[v] for v in program.arguments])
        for v in narrow:
            if v in filled:
                block[v].copy_(known[v])


def _cut(buffers: Named, shape: torch.Size, size: tuple[int, int]) -> Named:
    """The buffers in the shape of a block, which may be smaller than most."""
    return buffers if shape == size else {v: b[: shape[0], : shape[1]] for v, b in buffers.items()}


def _buffers(
    program: Program, own: list[str], size: tuple[int, int], like: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Buffers of a block, one after the other in memory, and those and constants of one value."""
    if not (own or program.scratch or program.constants):
        return {}
    place = like.new_empty((len(own), *size), dtype=dtype).unbind(0)
    made = dict(zip(own, place, strict=True))
    made |= {v: like.new_empty(1, 1, dtype=dtype) for v in program.scratch if v not in made}
    pairs = program.constants.items()
    return made | {v: like.new_full((1, 1), number, dtype=dtype) for v, (number, _) in pairs}


def _block(rows: int, columns: int, bytes_each: int, device: torch.device) -> tuple[int, int]:
    """(rows, columns) of a block; all of it where a device has no such cache."""
    elements = max(LEAST, BLOCK_BYTES // bytes_each)
    if device.type != "cpu" or rows * columns <= elements:
        return rows, columns
    down = -(-rows // max(1, elements // columns))
    right = -(-columns // elements)
    return -(-rows // down), -(-columns // right)


def _blocks(matrices: Named, size: tuple[int, int]) -> Iterator[Named]:
    """The parts of all matrices that belong together, one block after the other."""
    rows, columns = next(iter(matrices.values())).shape
    down, right = -(-rows // size[0]), -(-columns // size[1])
    parts = [list(m.chunk(down)) for m in matrices.values()]
    if right > 1:
        parts = [[part for strip in strips for part in strip.chunk(right, 1)] for strips in parts]
    for block in zip(*parts, strict=True):
        yield dict(zip(matrices, block, strict=True))
