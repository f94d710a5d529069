"""Pairs of a token and a slot in the order of their experts: where each stands, and whose it is.

Imports torch.
Must not import gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ROWS", "Segments", "sorted_again", "sorted_pairs"]

ROWS = 8
"""A product's rows are as many as a multiple of this. BLAS sums the last few rows of a product in
another order, so that a token's last bits would tell how many others went to its expert."""


@dataclass(frozen=True)
class Segments:
    """Pairs (token, slot) in the order of their experts, and of tokens for one expert.

    order: (N*k,), which pair stands where, as token*k + slot. Pairs without an expert come last.
    offsets: (E,), int32, where each expert's pairs end: what `F.grouped_mm` calls `offs`.
    slots: k.
    """

    order: Tensor
    offsets: Tensor
    slots: int

    @functools.cached_property
    def token(self) -> Tensor:
        """(N*k,), the token of the pair that stands there."""
        return self.order // max(1, self.slots)

    @functools.cached_property
    def counts(self) -> Tensor:
        """(E,), how many pairs each expert has."""
        return torch.diff(self.offsets, prepend=self.offsets.new_zeros(1)).long()

    @functools.cached_property
    def place(self) -> Tensor:
        """(N*k,), where each pair stands: the inverse of `order`."""
        numbers = torch.arange(len(self.order), device=self.order.device)
        return torch.empty_like(self.order).scatter_(0, self.order, numbers)

    @functools.cached_property
    def live(self) -> Tensor:
        """(1,), how many pairs have an expert: all that stand before."""
        return self.offsets[-1:]

    @functools.cached_property
    def ends(self) -> list[int]:
        """`offsets` as numbers; a GPU has to be waited for."""
        return [int(end) for end in self.offsets.tolist()]


def sorted_pairs(indices: Tensor, experts: int) -> Segments:
    """Sort the pairs of (N, k) indices; stable, so that the order depends on the indices alone."""
    found, order = torch.sort(_keys(indices, experts), stable=True)
    return Segments(order, _ends(found, experts), indices.shape[1])


def sorted_again(indices: Tensor, experts: int, order: Tensor) -> Segments:
    """The same, from the order that was found."""
    found = _keys(indices, experts).index_select(0, order)
    return Segments(order, _ends(found, experts), indices.shape[1])


def _keys(indices: Tensor, experts: int) -> Tensor:
    """The expert of each pair; `experts` for none."""
    flat = indices.reshape(-1)
    return flat.masked_fill((flat < 0) | (flat >= experts), experts)


def _ends(found: Tensor, experts: int) -> Tensor:
    numbers = torch.arange(experts, dtype=found.dtype, device=found.device)
    return torch.searchsorted(found, numbers, right=True).int()
