"""A stack of experts, each a gated MLP, run on the tokens that a router gave to each.

Imports torch; check, glu and impl of nn.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.nn.check import known
from gatelib.nn.glu import Gating
from gatelib.nn.impl import transforms

__all__ = ["experts_dense", "experts_loop", "experts_plain", "run_stack", "stack_of", "start_stack"]

ROWS = 8
"""A segment is filled up with rows of zeros to a multiple of this. In a shorter one the last rows
take another path through the processor's matrix product, and other last bits: the output of a token
would depend on how many others came to its expert."""


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


def experts_plain(
    gating: Gating, x: Tensor, indices: Tensor, weights: Tensor, first: Tensor, last: Tensor
) -> Tensor:
    """y_t = sum over slots of w_ts f_i(x_t), i = indices[t, s], by the plainest way that can go.

    That is expert by expert on its own tokens, or every expert on every token where how many each
    has can't be read: under vmap, on meta, and while torch compiles, exports or traces.

    Args:
        gating: what stands between both maps.
        x: (N, D).
        indices: (N, k); what isn't in [0, E) is no expert, and gives 0.
        weights: (N, k).
        first, last: (E, parts*H, D) and (E, D, H).

    Returns:
        (N, D), in the experts' type. The sum over slots is a sum along an axis: no two rows are
        added in an order that may change.
    """
    readable = not transforms_hide() and known(lambda: indices.sum()) is not None
    run = experts_loop if readable else experts_dense
    slots = run(gating, x, indices, first, last)
    there = (indices >= 0) & (indices < len(first))
    shares = torch.where(there, weights, 0).unsqueeze(-1)
    return (slots * shares).sum(1).to(slots.dtype)


def transforms_hide() -> bool:
    """Whether a transform of torch.func hides numbers."""
    return not torch.compiler.is_compiling() and "vmap" in transforms()


def experts_loop(gating: Gating, x: Tensor, indices: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """(N, k, D): each slot's expert on its token; 0 where there is none."""
    k, flat = indices.size(1), indices.reshape(-1)
    rows = x.unsqueeze(1).expand(-1, k, -1).reshape(-1, x.size(-1))
    order, outputs = [], []
    for expert, weights in enumerate(zip(first.unbind(), last.unbind(), strict=True)):
        slots = (flat == expert).nonzero().squeeze(1)
        own = F.pad(rows[slots], (0, 0, 0, -len(slots) % ROWS))
        outputs.append(run_stack(gating, own, *weights)[: len(slots)])
        order.append(slots)
    none = ((flat < 0) | (flat >= len(first))).nonzero().squeeze(1)
    outputs.append(outputs[0].new_zeros(len(none), x.size(-1)))
    place = torch.cat([*order, none]).argsort()
    return torch.cat(outputs)[place].reshape(-1, k, x.size(-1))


def experts_dense(
    gating: Gating, x: Tensor, indices: Tensor, first: Tensor, last: Tensor
) -> Tensor:
    """The same by way of every expert on every token, E/k times the work, in fixed shapes."""
    every = run_stack(gating, x, first, last).transpose(0, 1)  # (N, E, D)
    there = ((indices >= 0) & (indices < len(first))).unsqueeze(-1)
    named = torch.where(there, indices.unsqueeze(-1), 0)
    found = every.gather(1, named.expand(-1, -1, x.size(-1)))
    return torch.where(there, found, 0)


def run_stack(gating: Gating, rows: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Every expert on its own rows: (E, M, D) to the same; or one on (M, D)."""
    packed = torch.matmul(rows, first.mT)
    return torch.matmul(gating(*gating.halves(packed)), last.mT)
