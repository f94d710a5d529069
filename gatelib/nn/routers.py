"""Routers: which experts a token goes to, and how much each counts.

Imports torch, gatelib.equations.routers; check of nn.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.equations.routers import CONFIGURATIONS
from gatelib.nn.check import (
    LOW_PRECISION,
    ShapeError,
    autocast_is_on,
    check_choice,
    check_dropout,
    check_dtype,
    check_features,
    check_flags,
    check_number,
    check_sizes,
    check_tensor,
)

__all__ = ["Routing", "TopKRouter", "flattened", "rounded_up", "top_indices"]

Score = Literal["softmax", "sigmoid", "sqrt_softplus"]
Select = Literal["after", "before"]


class Routing(NamedTuple):
    """Where N tokens go. An index E, one beyond the last expert, is no expert: that of padding.

    indices: (N, k) int64, best first.
    weights: (N, k); 0 where the index is E.
    scores: (N, E) of all experts, without a selection bias.
    logits: (N, E), with the noise of this pass.
    live: (N) False for padding; None where there is none.
    clean, spread: (N, E) logits without noise, and its standard deviation; None without noise.
    """

    indices: Tensor
    weights: Tensor
    scores: Tensor
    logits: Tensor
    live: Tensor | None = None
    clean: Tensor | None = None
    spread: Tensor | None = None

    def dense(self) -> Tensor:
        """The weights by expert, (N, E): 0 where a token doesn't go."""
        tokens, experts = self.scores.shape
        wide = self.weights.new_zeros(tokens, experts + 1)
        return wide.scatter_add(1, self.indices, self.weights)[:, :experts]


_CONFIGURED = (
    *("experts", "k", "score", "select", "renormalize", "scale", "groups", "kept_groups"),
    *("group_score", "bias", "selection_bias", "noise"),
)
"""What a RouterConfig says of the router itself."""


def top_indices(values: Tensor, k: int) -> Tensor:
    """Indices (..., k) of the largest values (..., E), best first; of equal ones the lowest index.

    torch.topk leaves open which of equal values it takes; a stable sort doesn't.
    """
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :k]


class TopKRouter(nn.Module):
    """A linear map to one logit an expert; a token goes to the k largest.

        z = W x (+ b)
        s = score(z)                                  softmax over the experts, or each by itself
        i = the k largest of s + selection bias       (select="after"), or of z + it ("before")
        w = s_i / sum(s_i) * scale                    renormalised, or s_i * scale

    The selection bias, a buffer, takes part in the choice alone: no weight and no gradient sees it.
    With select="before" a softmax is taken over the chosen logits, which equals select="after" with
    renormalisation. With k = 1 and renormalisation w is `scale`, and the router learns nothing.

    Parameters: `weight` (E, D), `bias` (E) or None, `weight_noise` (E, D) or None; the buffer
    `selection_bias` (E), float32, or None.

    Args:
        features: D.
        experts: E.
        k: how many experts a token has.
        score: "softmax", "sigmoid", or "sqrt_softplus", sqrt(log(1 + e^z)).
        select: see above.
        renormalize: whether the weights of a token sum to `scale`.
        scale: what they are multiplied by.
        groups: experts stand in this many groups of equal size, in order.
        kept_groups: how many groups a token may choose from.
        group_score: groups are ranked by the sum of so many of their largest: 2 in DeepSeek-V3.
        bias: whether the logits have a bias that is learned.
        selection_bias: whether there is one; see `gatelib.nn.balance.update_bias`.
        noise: whether N(0, 1) softplus(W_n x) is added to the logits in training.
        jitter: in training the router, and it alone, reads x times U(1 - jitter, 1 + jitter).
        float32: whether logits and scores are computed in float32 where x is of lower precision,
            and under autocast.
        device: where the parameters live.
        dtype: their floating-point type.

    Shapes: x (..., D), of N tokens in all, to a `Routing`. Of equal values the lowest index wins.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Source: Shazeer et al. 2017, arXiv:1701.06538 (noise; W and W_n start at 0); Fedus et al. 2021,
    arXiv:2101.03961 (jitter); DeepSeek-AI 2024, arXiv:2412.19437, eqs. 12 to 16 (sigmoid, bias).
    """

    causal = True

    def __init__(
        self,
        features: int,
        experts: int,
        k: int,
        *,
        score: Score = "softmax",
        select: Select = "after",
        renormalize: bool = True,
        scale: float = 1.0,
        groups: int = 1,
        kept_groups: int | None = None,
        group_score: int = 1,
        bias: bool = False,
        selection_bias: bool = False,
        noise: bool = False,
        jitter: float = 0.0,
        float32: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(features=features, experts=experts, k=k, groups=groups)
        kept = groups if kept_groups is None else kept_groups
        check_sizes(kept_groups=kept, group_score=group_score)
        _check_groups(experts, k, groups, kept, group_score)
        check_choice("score", score, get_args(Score))
        check_choice("select", select, get_args(Select))
        check_flags(renormalize=renormalize, bias=bias, selection_bias=selection_bias)
        check_flags(noise=noise, float32=float32)
        check_number(scale, "scale")
        check_dropout(jitter, "jitter")
        check_dtype(dtype)
        self.features, self.experts, self.k = features, experts, k
        self.score, self.select, self.renormalize = score, select, renormalize
        self.scale, self.jitter, self.float32 = float(scale), float(jitter), float32
        self.groups, self.kept_groups, self.group_score = groups, kept, group_score
        own: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(experts, features, **own))
        self.bias = nn.Parameter(torch.empty(experts, **own)) if bias else None
        self.weight_noise = nn.Parameter(torch.empty(experts, features, **own)) if noise else None
        start = torch.zeros(experts, device=device) if selection_bias else None
        self.register_buffer("selection_bias", start)
        self.selection_bias: Tensor | None
        self.reset_parameters()

    @classmethod
    def from_config(cls, name: str, features: int, **changes: Any) -> Self:
        """The router of a published model, by its name in `gatelib.equations.routers`.

        Args:
            name: a key of CONFIGURATIONS, where each names its source.
            features: D.
            changes: arguments that shall differ: experts=8, k=2 for a small one. Where `experts` is
                too small for the model's groups, `groups=1` has to be among them.

        Raises:
            TypeError: an argument is unknown, or has the wrong type.
            ValueError: the name is unknown, or the arguments don't fit each other.
        """
        check_choice("name", name, CONFIGURATIONS)
        given = CONFIGURATIONS[name]
        own = {key: getattr(given, key) for key in _CONFIGURED}
        if "groups" in changes and "kept_groups" not in changes:
            own["kept_groups"], own["group_score"] = None, 1
        return cls(features, **own | changes)

    def reset_parameters(self) -> None:
        """W as a `torch.nn.Linear`, or 0 where there is noise; biases and W_n at 0."""
        bound = 1 / math.sqrt(self.features)
        nn.init.uniform_(self.weight, -bound, bound)
        zeros = [self.bias, self.weight_noise, self.selection_bias]
        zeros += [] if self.weight_noise is None else [self.weight]
        for value in zeros:
            if value is not None:
                nn.init.zeros_(value)

    def forward(self, input: Tensor, live: Tensor | None = None) -> Routing:
        """Route x (..., D).

        Args:
            input: x.
            live: (...) of torch.bool, False for padding, which has no expert; None for none.

        Raises:
            TypeError: the input is no tensor or of another dtype than the weights.
            ValueError: a shape or a device doesn't fit.
        """
        check_features("input", input, self.features, self.weight)
        x, alive = flattened(input, live)
        if self.training and self.jitter:
            x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
        clean = self._linear(x, self.weight, self.bias)
        logits, spread = clean, None
        if self.weight_noise is not None:
            spread = F.softplus(self._linear(x, self.weight_noise, None))
            logits = clean + torch.randn_like(clean) * spread if self.training else clean
        scores = _log_scores(logits, self.score).exp()
        indices = top_indices(self._ranked(logits, scores), self.k)
        weights = self._weights(logits, indices)
        if alive is not None:
            indices = indices.masked_fill(~alive[:, None], self.experts)
            weights = weights.masked_fill(~alive[:, None], 0)
        noisy = (None, None) if spread is None else (clean, spread)
        return Routing(indices, weights, scores, logits, alive, *noisy)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.float32:
            return F.linear(x, weight, bias)
        wide = [None if v is None else _wide(v) for v in (x, weight, bias)]
        if autocast_is_on(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return F.linear(*wide)  # type: ignore[arg-type]
        return F.linear(*wide)  # type: ignore[arg-type]

    def _ranked(self, logits: Tensor, scores: Tensor) -> Tensor:
        """What the choice compares: no gradient comes from here."""
        ranked = (logits if self.select == "before" else scores).detach()
        if self.selection_bias is not None:
            ranked = ranked + self.selection_bias
        if self.kept_groups == self.groups:
            return ranked
        grouped = ranked.reshape(len(ranked), self.groups, self.experts // self.groups)
        of_group = grouped.topk(self.group_score, dim=-1).values.sum(-1)
        kept = top_indices(of_group, self.kept_groups)
        out = torch.ones_like(of_group, dtype=torch.bool).scatter(-1, kept, False)
        return grouped.masked_fill(out.unsqueeze(-1), -math.inf).flatten(-2)

    def _weights(self, logits: Tensor, indices: Tensor) -> Tensor:
        """Of the chosen. Ratios are taken between logarithms: no sum of scores can be 0."""
        if self.select == "before" and self.score == "softmax":
            weights = torch.softmax(logits.gather(-1, indices), -1)
        else:
            chosen = _log_scores(logits, self.score).gather(-1, indices)
            weights = torch.softmax(chosen, -1) if self.renormalize else chosen.exp()
        return weights * self.scale

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move or cast; the selection bias stays in float32 at least, to the bit."""
        before = self.selection_bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = self.selection_bias
        if before is not None and after is not None and after.dtype in LOW_PRECISION:
            self.selection_bias = before.to(after.device)
        return self

    def extra_repr(self) -> str:
        """The arguments that aren't at their defaults."""
        text = [f"{self.features}, {self.experts}, {self.k}", f"score={self.score!r}"]
        told: dict[str, tuple[Any, Any]] = {
            "select": (self.select, "after"),
            "renormalize": (self.renormalize, True),
            "scale": (self.scale, 1.0),
            "groups": (self.groups, 1),
            "kept_groups": (self.kept_groups, self.groups),
            "bias": (self.bias is not None, False),
            "selection_bias": (self.selection_bias is not None, False),
            "noise": (self.weight_noise is not None, False),
            "jitter": (self.jitter, 0.0),
            "float32": (self.float32, True),
        }
        return ", ".join(text + [f"{k}={v!r}" for k, (v, usual) in told.items() if v != usual])


def flattened(input: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Tokens (N, D), 0 where there is padding, and which are live (N)."""
    rows = input.reshape(-1, input.size(-1))
    if live is None:
        return rows, None
    if check_tensor("live", live).dtype != torch.bool or live.shape != input.shape[:-1]:
        found = f"{live.dtype} {tuple(live.shape)}"
        raise ShapeError(f"live: expected torch.bool {tuple(input.shape[:-1])}, got {found}")
    if live.device != input.device:
        raise ShapeError(f"live: expected device {input.device} as the input, got {live.device}")
    flat = live.reshape(-1)
    return rows.masked_fill(~flat[:, None], 0), flat


def rounded_up(tokens: int | Tensor, share: float) -> float | Tensor:
    """ceil(share * tokens), where what a product lacks or has too much in its last digits is none.

    A count that is a tensor gives a tensor: nothing is read from it.
    """
    if isinstance(tokens, Tensor):
        return torch.ceil(tokens.double() * share - 1e-9)
    return math.ceil(tokens * share - 1e-9)


def _wide(values: Tensor) -> Tensor:
    """In float32 where they are of lower precision."""
    return values.float() if values.dtype in LOW_PRECISION else values


def _log_scores(logits: Tensor, score: str) -> Tensor:
    """The logarithm of each expert's score: finite wherever the logits are."""
    if score == "softmax":
        return torch.log_softmax(logits, -1)
    if score == "sigmoid":
        return F.logsigmoid(logits)
    low = logits.clamp(min=-40)  # below it log(softplus(z)) is z, to the last bit of float64
    return torch.where(logits < -40, logits, torch.logaddexp(low, low.new_zeros(())).log()) / 2


def _check_groups(experts: int, k: int, groups: int, kept: int, group_score: int) -> None:
    if experts % groups:
        raise ValueError(f"groups: expected a divisor of the {experts} experts, got {groups}")
    if kept > groups:
        raise ValueError(f"kept_groups: expected at most groups = {groups}, got {kept}")
    if group_score > experts // groups:
        found = f"the {experts // groups} experts of a group, got {group_score}"
        raise ValueError(f"group_score: expected at most {found}")
    if k > kept * (experts // groups):
        most = kept * (experts // groups)
        raise ValueError(f"k: expected at most the {most} experts to choose from, got {k}")
