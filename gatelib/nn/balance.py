"""What keeps experts equally busy: losses, updates of a selection bias, and what to watch.

Imports torch; check of nn.
Must not import gatelib.reference, gatelib.lab or gatelib.data.

Everywhere N tokens, E experts, k choices a token. An index that isn't in [0, E) names no expert: so
routers mark padding, and a layer the slots that it dropped. `live` is True where a token counts.
Each loss is a function of sums over tokens: `total` makes of a sum over this machine's tokens one
over all machines', as `gatelib.nn.exchange.Exchange.total` does; None for one machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from gatelib.nn.check import ShapeError, check_choice, check_number, check_sizes, check_tensor

__all__ = [
    "Per",
    "Total",
    "dead_experts",
    "expert_counts",
    "importance_loss",
    "load_loss",
    "max_violation",
    "quantile_bias",
    "router_entropy",
    "switch_loss",
    "update_bias",
    "z_loss",
]

Per = Literal["batch", "sequence", "global"]
"""Over which tokens shares are counted."""
Total = Callable[[Tensor], Tensor]
"""From a sum to the sum of all machines' sums."""


def expert_counts(indices: Tensor, experts: int) -> Tensor:
    """How many slots each expert has: (E) int64, from indices (..., k). Exact: whole numbers.

    Raises:
        TypeError: the indices are no tensor of int64.
        ValueError: `experts` is below 1.
    """
    check_sizes(experts=experts)
    if check_tensor("indices", indices).dtype != torch.int64:
        raise TypeError(f"indices: expected torch.int64, got {indices.dtype}")
    flat = _named(indices, experts).reshape(-1)
    counts = flat.new_zeros(experts + 1).scatter_add(0, flat, torch.ones_like(flat))
    return counts[:experts]


def max_violation(counts: Tensor) -> Tensor:
    """MaxVio: by which share the busiest expert is above the mean, max(c)/mean(c) - 1.

    0 is balance, E - 1 is all on one expert. Without a token it is 0. Counts (..., E), float64 out.

    Source: Wang et al. 2024, arXiv:2408.15664, eq. 4.
    """
    wide = check_tensor("counts", counts).double()
    mean = wide.mean(-1)
    return torch.where(mean > 0, wide.amax(-1) / torch.where(mean > 0, mean, 1) - 1, 0)


def dead_experts(counts: Tensor) -> Tensor:
    """How many experts have no token: counts (..., E) to (...) int64."""
    return (check_tensor("counts", counts) == 0).sum(-1)


def router_entropy(scores: Tensor, live: Tensor | None = None) -> Tensor:
    """The mean over tokens of the entropy of one token's scores (..., E), in nats.

    Scores are divided by their sum first, which changes none of a softmax. log E is the most; 0 is
    all on one expert, and what no live token gives.
    """
    shares = _shares(check_tensor("scores", scores))
    return _mean(torch.special.entr(shares).sum(-1), _live(live, shares))


def importance_loss(
    indices: Tensor, weights: Tensor, experts: int, total: Total | None = None
) -> Tensor:
    """The squared coefficient of variation of the sums of weights: CV(importance)^2, 0 at balance.

    Args:
        indices: (..., k) int64.
        weights: (..., k), of the chosen.
        experts: E.
        total: see above.

    Source: Shazeer et al. 2017, arXiv:1701.06538, eqs. 6 and 7.
    """
    check_sizes(experts=experts)
    named = _named(check_tensor("indices", indices), experts)
    wide = check_tensor("weights", weights)
    gates = wide.new_zeros(*named.shape[:-1], experts + 1).scatter_add(-1, named, wide)
    return _variation(_total(gates[..., :experts].reshape(-1, experts).sum(0), total))


def load_loss(
    clean: Tensor,
    noisy: Tensor,
    spread: Tensor,
    k: int,
    live: Tensor | None = None,
    total: Total | None = None,
) -> Tensor:
    """CV(load)^2, where load is the expected number of tokens under a new draw of one noise.

        load_i = sum over tokens of Phi((clean_i - kth largest of the other noisy) / spread_i)

    Args:
        clean: (..., E) logits without noise.
        noisy: (..., E) logits with the noise of this pass.
        spread: (..., E) the standard deviation of the noise.
        k: how many are chosen; fewer than E, for with all of them the load has no gradient.
        live: (...) True where a token counts; None for all.
        total: see above.

    Source: Shazeer et al. 2017, arXiv:1701.06538, appendix A, eqs. 8 to 11.
    """
    check_sizes(k=k)
    experts = check_tensor("clean", clean).size(-1)
    if k >= experts:
        raise ValueError(f"k: expected fewer than the {experts} experts, got {k}")
    top = noisy.topk(k + 1, dim=-1).values
    last, next_one = top[..., k - 1 : k], top[..., k : k + 1]
    others = torch.where(noisy > next_one, next_one, last)
    load = torch.special.ndtr((clean - others) / spread)
    counted = _live(live, load)
    return _variation(_total((load * counted.unsqueeze(-1)).reshape(-1, experts).sum(0), total))


def switch_loss(
    scores: Tensor,
    indices: Tensor,
    live: Tensor | None = None,
    *,
    per: Per = "batch",
    counts: Tensor | None = None,
    total: Total | None = None,
) -> Tensor:
    """E times the sum over experts of (share of the slots) (mean score): 1 at balance.

        f_i = slots of expert i / slots          no gradient
        P_i = mean over tokens of score_i / sum of the token's scores
        L   = E sum_i f_i P_i

    At worst it is E/k, when all scores and 1/k of the slots are one expert's. Public programs
    differ by constants: with f over tokens instead of slots, balance gives k.

    Args:
        scores: (N, E) or (B, T, E), positive.
        indices: (N, k) or (B, T, k) int64.
        live: (N) or (B, T), True where a token counts; None for all.
        per: "batch" takes shares over all tokens. "sequence" takes them in each of B sequences, and
            the mean over the sequences that have a token. "global" takes f from `counts`.
        counts: (E), of all tokens of an optimiser step on all machines; with per="global" alone.
        total: see above.

    Raises:
        ValueError: a shape doesn't fit, or `counts` is there without "global", or not with it.

    Source: Fedus et al. 2021, arXiv:2101.03961, eqs. 4 to 6; per sequence DeepSeek-AI 2024,
    arXiv:2412.19437, eqs. 17 to 20; global Qiu et al. 2025, arXiv:2501.11873.
    """
    check_choice("per", per, get_args(Per))
    if (counts is not None) != (per == "global"):
        given = "None" if counts is None else "a tensor"
        raise ValueError(f"counts: expected a tensor with per='global' alone, got {given}, {per!r}")
    shares, counted = _in_rows(scores, indices, live, per)
    experts = scores.size(-1)
    slots = _hot(indices.reshape(*shares.shape[:-1], indices.size(-1)), experts, counted)
    of_all, of_rows = (None, total) if per == "sequence" else (total, None)
    chosen = (
        _total(slots.sum(1), of_all) if counts is None else counts.to(slots).reshape(1, experts)
    )
    tokens = _total(counted.sum(1), of_all)
    f = chosen / chosen.sum(-1, keepdim=True).clamp(min=1)
    mass = _total((shares * counted.unsqueeze(-1)).sum(1), of_all)
    each = experts * (f * (mass / tokens.clamp(min=1).unsqueeze(-1))).sum(-1)
    return _mean(each, (tokens > 0).to(each), of_rows)


def z_loss(logits: Tensor, live: Tensor | None = None, total: Total | None = None) -> Tensor:
    """The mean over tokens of (log of the sum of exp(logits))^2; logits (..., E).

    Source: Zoph et al. 2022, arXiv:2202.08906, eq. 5.
    """
    lse = torch.logsumexp(check_tensor("logits", logits), -1)
    return _mean(lse.square(), _live(live, lse.unsqueeze(-1)), total)


@torch.no_grad()
def update_bias(bias: Tensor, counts: Tensor, rate: float, centred: bool = True) -> Tensor:
    """The selection bias after a step: up by `rate` where an expert has less than the mean.

        d_i = rate sign(mean(c) - c_i)
        b_i + d_i - mean(d)          centred;  b_i + d_i without

    Signs come from whole numbers, so no rounding of a mean can turn one. Without centring all
    biases drift up together, since a few busy experts face many that are below the mean.

    Args:
        bias: (E).
        counts: (E) whole numbers: slots of each expert since the last update.
        rate: 1e-3 in DeepSeek-V3.
        centred: whether the mean of the step is taken out.

    Raises:
        TypeError: the counts aren't whole numbers.
        ValueError: a shape doesn't fit.

    Source: Wang et al. 2024, arXiv:2408.15664, algorithm 1.
    """
    check_number(rate, "rate")
    if check_tensor("counts", counts).dtype not in (torch.int64, torch.int32):
        raise TypeError(f"counts: expected whole numbers (torch.int64), got {counts.dtype}")
    if counts.shape != bias.shape or counts.dim() != 1:
        found = f"{tuple(counts.shape)} for a bias {tuple(bias.shape)}"
        raise ShapeError(f"counts: expected (E) as the bias, got {found}")
    whole = counts.long()
    step = rate * torch.sign(whole.sum() - whole * len(whole)).to(bias)
    return bias + (step - step.mean() if centred else step)


@torch.no_grad()
def quantile_bias(
    scores: Tensor,
    k: int,
    bias: Tensor | None = None,
    live: Tensor | None = None,
    steps: int = 1,
) -> Tensor:
    """The selection bias b, to add to the scores, that gives each expert its share of these tokens.

    Alternates, with T tokens and b = -beta:

        alpha_t = (k+1)-th largest of  s_t + b            what a token's next choice would offer
        beta_j  = (T k/E + 1)-th largest of  s_j - alpha  what the first token left out offers j

    Args:
        scores: (..., E), as the router compares them.
        k: how many are chosen; fewer than E.
        bias: (E) to start from; None for 0.
        live: (...) True where a token counts; None for all.
        steps: how often both are found.

    Returns:
        (E) in float32 at least; `bias` again where no token counts.

    Source: Su 2026, quantile balancing: the dual of the assignment of tokens to experts.
    """
    check_sizes(k=k, steps=steps)
    experts = check_tensor("scores", scores).size(-1)
    if k >= experts:
        raise ValueError(f"k: expected fewer than the {experts} experts, got {k}")
    wide = scores.double() if scores.dtype == torch.float64 else scores.float()
    counted = _live(live, wide).reshape(-1).bool()
    wide = wide.reshape(-1, experts)
    start = wide.new_zeros(experts) if bias is None else bias.to(wide)
    if not len(wide):
        return start
    tokens = counted.sum()
    place = torch.div(tokens * k, experts, rounding_mode="floor").clamp(max=len(wide) - 1)
    found = start
    for _ in range(steps):
        alpha = (wide + found).topk(k + 1, dim=-1).values[:, k:]
        offers = (wide - alpha).masked_fill(~counted[:, None], -torch.inf)
        ranked = offers.sort(dim=0, descending=True).values
        found = -ranked.index_select(0, place.reshape(1)).squeeze(0)
    return torch.where(tokens * k // experts < tokens, found, start)


# --- what they share ----------------------------------------------------------------------------


def _named(indices: Tensor, experts: int) -> Tensor:
    """Indices with E in the place of each that names no expert."""
    return torch.where((indices >= 0) & (indices < experts), indices, experts)


def _shares(scores: Tensor) -> Tensor:
    """Scores divided by their sum, in float32 at least; 0 where all are 0."""
    wide = scores if scores.dtype == torch.float64 else scores.float()
    total = wide.sum(-1, keepdim=True)
    return wide / torch.where(total > 0, total, 1)


def _live(live: Tensor | None, values: Tensor) -> Tensor:
    """1 where a token of values (..., E) counts, and 0 elsewhere: (...), of their type."""
    shape = values.shape[:-1]
    if live is None:
        return values.new_ones(shape)
    if check_tensor("live", live).dtype != torch.bool or live.shape != shape:
        found = f"{live.dtype} {tuple(live.shape)}"
        raise ShapeError(f"live: expected torch.bool {tuple(shape)}, got {found}")
    return live.to(values)


def _total(value: Tensor, total: Total | None) -> Tensor:
    return value if total is None else total(value)


def _mean(values: Tensor, counted: Tensor, total: Total | None = None) -> Tensor:
    """The mean of what counts; 0 where nothing does."""
    kept = torch.where(counted > 0, values, 0)
    return _total(kept.sum(), total) / _total(counted.sum(), total).clamp(min=1)


def _variation(values: Tensor) -> Tensor:
    """The squared coefficient of variation over experts; 0 where their sum is 0."""
    mean = values.mean()
    there = mean != 0
    relative = values / torch.where(there, mean, 1) - 1
    return torch.where(there, relative.square().mean(), 0)


def _in_rows(
    scores: Tensor, indices: Tensor, live: Tensor | None, per: Per
) -> tuple[Tensor, Tensor]:
    """Shares (rows, tokens, E) and what counts (rows, tokens); f and P are taken within a row."""
    shares = _shares(check_tensor("scores", scores))
    if check_tensor("indices", indices).shape[:-1] != shares.shape[:-1]:
        found = f"{tuple(indices.shape)} for scores {tuple(scores.shape)}"
        raise ShapeError(f"indices: expected the tokens of the scores, got {found}")
    if per == "sequence" and shares.dim() != 3:
        raise ShapeError(f"scores: expected (B, T, E) per sequence, got {tuple(scores.shape)}")
    counted = _live(live, shares)
    if per == "sequence":
        return shares, counted
    return shares.reshape(1, -1, shares.size(-1)), counted.reshape(1, -1)


def _hot(indices: Tensor, experts: int, counted: Tensor) -> Tensor:
    """How many of a token's slots are with each expert: (rows, tokens, E), no gradient."""
    named = _named(indices, experts)
    ones = counted.unsqueeze(-1).expand(named.shape)
    hot = counted.new_zeros(*named.shape[:-1], experts + 1).scatter_add(-1, named, ones)
    return hot[..., :experts].detach()
