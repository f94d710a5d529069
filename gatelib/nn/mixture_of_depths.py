"""Mixture of depths: a block that only some tokens of each sequence pass through.

Imports torch; attention, check, impl and routers of nn.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gatelib.nn.attention import live_positions
from gatelib.nn.check import ShapeError, check_dtype, check_features, check_number, check_sizes
from gatelib.nn.impl import traced
from gatelib.nn.routers import rounded_up

__all__ = ["MixtureOfDepths"]


class MixtureOfDepths(nn.Module):
    """The tokens that a router rates highest pass through a block; the others pass by.

        r_t = <w, x_t>
        y_t = x_t + r_t f(x)_t      for the ceil(share * T) tokens of a sequence with the largest r
        y_t = x_t                   for the others

    f sees the chosen tokens alone, as a shorter sequence in their order. It is not causal: whether
    a token is chosen depends on all later ones of its sequence, so that a model that writes token
    by token needs another rule to choose by. Of equal r the earlier token is chosen.

    Parameters: `weight` (1, D), and the block's.

    Args:
        block: f, from (B, T', D) to the same shape, or to a tuple that starts with it. Without the
            shortcut, which is added here.
        features: D.
        share: which part of the tokens passes through the block.
        device: where `weight` lives.
        dtype: its floating-point type.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Source: Raposo et al. 2024, arXiv:2404.02258, eq. 1.
    """

    causal = False

    def __init__(
        self,
        block: nn.Module,
        features: int,
        share: float = 0.125,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(block, nn.Module):
            raise TypeError(f"block: expected a torch.nn.Module, got {type(block).__name__}")
        check_sizes(features=features)
        check_number(share, "share")
        if not 0 < share <= 1:
            raise ValueError(f"share: expected more than 0 and at most 1, got {share}")
        check_dtype(dtype)
        self.block, self.features, self.share = block, features, float(share)
        self.weight = nn.Parameter(torch.empty(1, features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The router as a `torch.nn.Linear`; the block is left as it is."""
        bound = 1 / math.sqrt(self.features)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map x (B, T, D) to y of the same shape.

        Args:
            input: x.
            lengths: (B) whole numbers, 1 to T: later positions are padding, never chosen and not
                counted in T. A sequence that chooses fewer tokens than another has rows of zeros
                behind them in the block; what they give isn't used.

        Raises:
            TypeError: the input is no tensor or of another dtype than the parameters.
            ValueError: a shape, a device or a length doesn't fit; the block changes the shape.
        """
        node = traced(self, input, lengths)
        if node is not None:
            return node  # type: ignore[return-value]
        check_features("input", input, self.features, self.weight)
        if input.dim() != 3:
            raise ShapeError(f"input: expected (B, T, {self.features}), got {tuple(input.shape)}")
        live = live_positions(lengths, input)
        rating = nn.functional.linear(input, self.weight)  # (B, T, 1)
        places, there = self._chosen(rating.detach().squeeze(-1), live)
        wide = places.unsqueeze(-1).expand(-1, -1, self.features)
        rows = torch.where(there, input.gather(1, wide), 0)
        made = self.block(rows)
        made = made[0] if isinstance(made, tuple) else made
        if made.shape != rows.shape:
            found = f"{tuple(rows.shape)} to {tuple(made.shape)}"
            raise ShapeError(f"block: expected one that keeps the shape, got {found}")
        added = torch.where(there, rating.gather(1, places.unsqueeze(-1)) * made, 0)
        return input + torch.zeros_like(input).scatter(1, wide, added.to(input.dtype))

    def values(self, input: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        """`r` (B, T, 1), the rating, and `mask`, 1 where a token is chosen: to look at."""
        rating = nn.functional.linear(input, self.weight)
        places, there = self._chosen(rating.detach().squeeze(-1), live_positions(lengths, input))
        chosen = torch.zeros_like(rating).scatter(1, places.unsqueeze(-1), there.to(rating))
        return {"r": rating, "mask": chosen}

    def _chosen(self, rating: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
        """Places (B, C) of the chosen, ascending, and whether there is one, (B, C, 1)."""
        steps = rating.size(1)
        most = math.ceil(self.share * steps - 1e-9)
        if live is not None:
            rating = rating.masked_fill(~live.squeeze(1), -math.inf)
        places = rating.sort(dim=1, descending=True, stable=True).indices[:, :most]
        there = torch.ones_like(places, dtype=torch.bool)
        if live is not None:
            kept = rounded_up(live.sum(-1), self.share)
            there = torch.arange(most, device=places.device) < kept
        key = torch.where(there, places, places + steps)  # those that aren't there stand last
        order = key.argsort(dim=1)
        return places.gather(1, order), there.gather(1, order).unsqueeze(-1)

    def extra_repr(self) -> str:
        """What the layer was made with."""
        return f"{self.features}, share={self.share:g}"
