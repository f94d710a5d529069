"""Routers by which no token chooses: a hash does, or the experts do.

Imports torch; check and routers of nn.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gatelib.nn.check import ShapeError, check_number, check_sizes, check_tensor
from gatelib.nn.routers import Routing, TopKRouter, flattened, rounded_up

__all__ = ["ExpertChoiceRouter", "HashRouter"]


class HashRouter(nn.Module):
    """A token's id alone says which k experts it has, each with the weight 1/k. Nothing is learned.

    The k experts are different, drawn without replacement by a hash of id, slot and seed; no table
    is kept, so any id may come.

    Args:
        experts: E.
        k: how many experts a token has.
        seed: another seed is another hash.

    Raises: TypeError or ValueError for an argument of another kind or size.

    Source: Roller et al. 2021, arXiv:2106.04426, section 3.1 (random hash).
    """

    causal = True

    def __init__(self, experts: int, k: int = 1, seed: int = 0) -> None:
        super().__init__()
        check_sizes(experts=experts, k=k, seed=seed + 1)
        if k > experts:
            raise ValueError(f"k: expected at most the {experts} experts, got {k}")
        self.experts, self.k, self.seed = experts, k, seed

    def reset_parameters(self) -> None:
        """There are none."""

    def forward(
        self, input: Tensor, live: Tensor | None = None, tokens: Tensor | None = None
    ) -> Routing:
        """Route tokens (...) of int64 by their ids; of x (..., D) the type alone is read.

        Raises:
            TypeError: the tokens are missing, or no whole numbers.
            ValueError: their shape isn't the input's.
        """
        x, alive = flattened(check_tensor("input", input), live)
        ids = _checked_tokens(tokens, input).reshape(-1)
        indices = self._drawn(ids)
        wide = torch.promote_types(x.dtype, torch.float32)
        weights = x.new_full(indices.shape, 1 / self.k, dtype=wide)
        scores = weights.new_zeros(len(x), self.experts).scatter(-1, indices, weights)
        if alive is not None:
            indices = indices.masked_fill(~alive[:, None], self.experts)
            weights = weights.masked_fill(~alive[:, None], 0)
        return Routing(indices, weights, scores, torch.zeros_like(scores), alive)

    def _drawn(self, ids: Tensor) -> Tensor:
        """(N, k): the j-th draw is among the E - j experts that are left."""
        taken: list[Tensor] = []
        for slot in range(self.k):
            pick = _mixed(ids + (self.seed * 8191 + slot) * 1_000_003) % (self.experts - slot)
            for earlier in _sorted(taken):
                pick = pick + (pick >= earlier)
            taken.append(pick)
        return torch.stack(taken, -1)

    def extra_repr(self) -> str:
        """What the router was made with."""
        return f"{self.experts}, {self.k}, seed={self.seed}"


class ExpertChoiceRouter(nn.Module):
    """Each expert chooses its tokens: every expert is full, and a token may have none, or many.

        s = softmax over the experts of W x
        expert e takes the ceil(capacity_factor N / E) tokens with its largest s_e, at weight s_e

    It is not causal: whether a token is chosen depends on all tokens of the call, later ones and
    those of other sequences too. Weights aren't renormalised. Slots stand by expert: slot e of a
    token is e where expert e chose it, and E where it didn't, so `Routing` has k = E.

    Args:
        features: D.
        experts: E.
        capacity_factor: how many experts a token has on average.
        float32: as in `TopKRouter`.
        device: where `weight` (E, D) lives.
        dtype: its floating-point type.

    Raises: TypeError or ValueError for an argument of another kind or size.

    Source: Zhou et al. 2022, arXiv:2202.09368, section 3.2.
    """

    causal = False

    def __init__(
        self,
        features: int,
        experts: int,
        capacity_factor: float = 2.0,
        *,
        float32: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_number(capacity_factor, "capacity_factor")
        if not 0 < capacity_factor <= experts:
            raise ValueError(f"capacity_factor: expected 0 to E, got {capacity_factor}")
        self.capacity_factor, self.experts = float(capacity_factor), experts
        own: dict[str, Any] = {"device": device, "dtype": dtype}
        self.scorer = TopKRouter(features, experts, 1, renormalize=False, float32=float32, **own)

    def reset_parameters(self) -> None:
        """As `TopKRouter`."""
        self.scorer.reset_parameters()

    def forward(self, input: Tensor, live: Tensor | None = None) -> Routing:
        """Route x (..., D), of N tokens in all; padding isn't chosen, and isn't counted in N.

        Raises: TypeError or ValueError, as `TopKRouter`.
        """
        found: Routing = self.scorer(input, live)
        ranked = found.scores.detach()
        if found.live is not None:
            ranked = ranked.masked_fill(~found.live[:, None], -math.inf)
        order = ranked.sort(dim=0, descending=True, stable=True).indices
        tokens = torch.arange(len(order), device=order.device)
        rank = torch.empty_like(order).scatter(0, order, tokens[:, None].expand_as(order))
        alive = torch.isfinite(ranked)
        most = rounded_up(alive[:, 0].sum(), self.capacity_factor / self.experts)
        chosen = (rank < most) & alive
        names = torch.arange(self.experts, device=order.device).expand_as(order)
        indices = torch.where(chosen, names, self.experts)
        return found._replace(indices=indices, weights=torch.where(chosen, found.scores, 0))


def _checked_tokens(tokens: Tensor | None, input: Tensor) -> Tensor:
    if tokens is None or tokens.dtype != torch.int64:
        found = "None" if tokens is None else str(tokens.dtype)
        raise TypeError(f"tokens: expected ids of torch.int64, got {found}")
    if tokens.shape != input.shape[:-1]:
        shape = tuple(input.shape[:-1])
        raise ShapeError(f"tokens: expected shape {shape}, got {tuple(tokens.shape)}")
    return tokens


def _mixed(values: Tensor) -> Tensor:
    """Whole numbers from 0 to 2^31 - 1 that look drawn: products that run over, and shifts."""
    for factor in (0x5851F42D4C957F2D, 0x14057B7EF767814F):
        values = (values ^ (values >> 29)) * factor
    return (values >> 32) & 0x7FFFFFFF


def _sorted(values: list[Tensor]) -> list[Tensor]:
    """Tensors of equal shape, by size at each place."""
    return list(torch.stack(values).sort(dim=0).values) if values else []
