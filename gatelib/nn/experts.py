"""The weights of a stack of experts, each a gated MLP: made, and drawn.

Imports torch.
Must not import any other module of gatelib.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["stack_of", "start_share", "start_stack"]


def stack_of(
    experts: int, hidden: int, features: int, parts: int, **own: Any
) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights (E, parts*H, D) and (E, D, H), not yet drawn."""
    first = nn.Parameter(torch.empty(experts, parts * hidden, features, **own))
    return first, nn.Parameter(torch.empty(experts, features, hidden, **own))


def start_stack(weights: Sequence[Tensor]) -> None:
    """Draw each expert's maps as a `torch.nn.Linear`'s."""
    for weight in weights:
        bound = 1 / math.sqrt(weight.size(-1))
        nn.init.uniform_(weight, -bound, bound)


@torch.no_grad()
def start_share(weights: Sequence[Tensor], experts: int, first: int) -> None:
    """Draw all experts one by one, and keep those from number `first` that the weights hold.

    So a share has, on a CPU, what it would have in a stack of all, and as many numbers are drawn.
    """
    for weight in weights:
        bound = 1 / math.sqrt(weight.size(-1))
        for index in range(-first, experts - first):
            drawn = torch.empty_like(weight[0]).uniform_(-bound, bound)
            if 0 <= index < len(weight):
                weight[index].copy_(drawn)
