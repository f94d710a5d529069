"""How the heads of an attention read: positions, masks, biases, sinks, by SDPA or written out.

Imports torch, gatelib.nn.check and gatelib.nn.impl.
Must not import gatelib.reference, gatelib.lab or gatelib.data.

Shapes: B sequences, T queries, S keys (those of a cache first), H heads that read, G heads of keys
and values, d features of a head. Head h reads the keys of head h // (H/G).
"""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gatelib.nn.check import (
    LOW_PRECISION,
    autocast_is_on,
    check_lengths,
    check_like,
    check_sizes,
    check_tensor,
)
from gatelib.nn.impl import Impl, takes_reference

__all__ = [
    "AttentionState",
    "Positions",
    "Reading",
    "WrittenOut",
    "alibi",
    "behind",
    "blank",
    "check_heads",
    "check_state",
    "full_precision",
    "given_live",
    "normed",
    "positions",
    "rebased",
    "rotated",
    "wide",
]

ROPE_BASE = 10_000.0
"""The period of RoPE's slowest pair of features is 2 pi times this, for many features."""
NORM_EPS = 1e-6
"""Added to the mean square of a query or key before the root, as Qwen3 has it."""


def wide(values: Tensor) -> Tensor:
    """In float32 where they are of lower precision."""
    return values.float() if values.dtype in LOW_PRECISION else values


def full_precision(like: Tensor) -> contextlib.AbstractContextManager[object]:
    """Where autocast, if it is on, doesn't narrow what was widened."""
    device = like.device.type
    if autocast_is_on(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def normed(values: Tensor, weight: Tensor) -> Tensor:
    """Over the root of the mean square of a head's features, times the weight."""
    found = F.rms_norm(wide(values), (values.size(-1),), wide(weight), NORM_EPS)
    return found.to(values.dtype)


def blank(values: Tensor, live: Tensor) -> Tensor:
    """(B, T, ...) with 0 where there is padding."""
    return values.masked_fill(~live[..., None], 0)


# ---- where queries and keys stand -----------------------------------------------------------


class Positions(NamedTuple):
    """Where queries and keys stand, counted over live positions from 0; and who may read whom.

    queries: (T,), or (B, T) where rows of a cache differ.
    keys: (S,) or (B, S).
    allowed: whether a query reads a key, (T, S) or (B, 1, T, S); None for all keys up to the
        query's own, of as many queries as keys.
    """

    queries: Tensor
    keys: Tensor
    allowed: Tensor | None


def positions(steps: int, cached: int, live: Tensor | None, like: Tensor) -> Positions:
    """The positions of `steps` queries behind `cached` keys; `live` (B, S) says which keys are."""
    keys = torch.arange(cached + steps, device=like.device)
    queries = keys[cached:]
    if not cached:
        return Positions(queries, keys, None)
    allowed = keys <= queries[:, None]
    if live is None:
        return Positions(queries, keys, allowed)
    counted = (live.long().cumsum(1) - 1).clamp(min=0)
    own = keys == queries[:, None]
    allowed = (allowed & live[:, None]) | own
    return Positions(counted[:, cached:], counted, allowed[:, None])


def rotated(values: Tensor, places: Tensor, base: float = ROPE_BASE) -> Tensor:
    """RoPE: features m and m + d/2 of (B, H, T, d) turned by place * base^(-2m/d).

    The angles are float32, or the values' type where that is wider.
    """
    size = values.size(-1)
    dtype = torch.promote_types(values.dtype, torch.float32)
    rates = torch.arange(0, size, 2, device=values.device, dtype=dtype) / size
    angles = places.to(dtype)[..., None] * torch.pow(base, -rates)
    angles = angles if places.dim() == 1 else angles[:, None]
    cosine, sine = angles.cos(), angles.sin()
    first, second = values.to(dtype).chunk(2, -1)
    turned = first * cosine - second * sine, second * cosine + first * sine
    return torch.cat(turned, -1).to(values.dtype)


def alibi(places: Positions, heads: int, dtype: torch.dtype) -> Tensor:
    """ALiBi's biases -slope_h (i - j), (H, T, S) or (B, H, T, S).

    The slopes are 2^(-8h/H) for h = 1 to H, a power of two; otherwise those of the next power
    below, and as many as are missing of those between them: 2^(-4/P), 2^(-12/P), …

    Source: Press, Smith & Lewis 2021, arXiv:2108.12409, section 3, and its published code.
    """
    below, device = 2 ** (heads.bit_length() - 1), places.keys.device
    order = torch.arange(heads, device=device, dtype=dtype)
    order = torch.where(order < below, order + 1, order - below + 0.5)
    slopes = torch.exp2(order * (-8 / below))[:, None, None]
    distance = places.keys[..., None, :] - places.queries[..., None]
    return slopes * (distance if distance.dim() == 2 else distance[:, None])


AttentionState = dict[str, Tensor]
"""What later positions read: a cache of S positions, by name.

keys: (B, G, S, d), gated and turned, as they are read. values: (B, G, S, d), gated. Where there is
such: log_gates, (B, H, S), minus the sum of the log-gates of all later positions, so that the last
is 0 and a long past rounds none that is near, in float32 at least; gate_logits, (B, G, S, 1), the
keys' part of a score gate per element; live, (B, S), false where a position is padding."""


def behind(before: AttentionState, new: AttentionState) -> AttentionState:
    """The positions `before` and those of a cache that begins behind them; `live` is of all."""
    joined = {name: torch.cat([before[name], new[name]], 2) for name in new if name != "live"}
    return new | joined


def rebased(state: AttentionState) -> AttentionState:
    """The sums of log-gates counted from the last position."""
    if "log_gates" not in state:
        return state
    sums = state["log_gates"]
    return state | {"log_gates": sums - sums[..., -1:]}


def check_heads(embed_dim: int, heads: int, groups: int, turned: bool) -> None:
    """Heads divide the features and groups the heads; what RoPE turns is even."""
    check_sizes(embed_dim=embed_dim, num_heads=heads, num_kv_heads=groups)
    if embed_dim % heads:
        raise ValueError(f"num_heads: expected a divisor of embed_dim = {embed_dim}, got {heads}")
    if heads % groups:
        raise ValueError(f"num_kv_heads: expected a divisor of num_heads = {heads}, got {groups}")
    if turned and embed_dim // heads % 2:
        size = embed_dim // heads
        raise ValueError(f"position: 'rope' turns pairs of features, got {size} in each head")


def check_state(state: object, input: Tensor, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """It must be a cache for the input's batch.

    `sizes` has for each name but `live` the sizes between batch and positions, with those behind.
    """
    if not isinstance(state, dict):
        raise TypeError(f"initial_state: expected a dict, got {type(state).__name__}")
    if set(state) - {"live"} != set(sizes):
        raise ValueError(f"initial_state: expected {sorted(sizes)}, got {sorted(state)}")
    keys = check_tensor("initial_state['keys']", state["keys"])
    check_like("initial_state['keys']", keys, input, "input")
    batch, steps = input.size(0), keys.size(2) if keys.dim() == 4 else 0
    for name in state:
        value, size = check_tensor(f"initial_state[{name!r}]", state[name]), sizes.get(name, ())
        expected = (batch, *size[:1], steps, *size[1:])
        if tuple(value.shape) != expected:
            shape = tuple(value.shape)
            raise ValueError(f"initial_state[{name!r}]: expected {expected}, got {shape}")


def given_live(
    input: Tensor, before: AttentionState | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The input (B, T, D) with 0 in padding; which of all keys, cached and new, are live (B, S)."""
    seen = None if before is None else before.get("live")
    if lengths is None and seen is None:
        return input, None
    batch, steps, _ = input.shape
    live = torch.ones(batch, steps, dtype=torch.bool, device=input.device)
    if lengths is not None:
        check_lengths(lengths, steps, batch)
        places = torch.arange(steps, device=input.device)
        live = places < lengths.to(input.device)[:, None]
        input = blank(input, live)
    if before:
        seen = live.new_ones(batch, before["keys"].size(2)) if seen is None else seen
        live = torch.cat([seen, live], 1)
    return input, live


# ---- the read -------------------------------------------------------------------------------


class WrittenOut(NamedTuple):
    """What a read does, in float32 at least: the scores with all that is added, the weights
    (B, H, T, S), the weight of the sink (B, H, T, 1) if any, the context (B, H, T, d)."""

    scores: Tensor
    weights: Tensor
    sink: Tensor | None
    context: Tensor


@dataclass(frozen=True)
class Reading:
    """Queries that read keys and values.

    Args:
        queries: (B, H, T, d).
        keys: (B, G, S, d).
        values: (B, G, S, d).
        allowed: as `Positions.allowed`.
        bias: added to the scores; broadcast to (B, H, T, S).
        sink: (H,), the logit of one more key, without a value; None for none.
        gate: what the scores are multiplied with, broadcast to (B, H, T, S); None for nothing.
        counts: of the keys that a query reads, (T, 1) or (B, 1, T, 1), for a sigmoid in the place
            of the softmax; None for the softmax.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    allowed: Tensor | None = None
    bias: Tensor | None = None
    sink: Tensor | None = None
    gate: Tensor | None = None
    counts: Tensor | None = None

    @property
    def hindrance(self) -> str:
        """Why scaled_dot_product_attention can't express this; empty where it can."""
        if self.counts is not None:
            return "its weights are a softmax's, and activation='sigmoid' has no such sum"
        if self.gate is not None:
            return "it adds to the scores, and gate='score' with per='element' multiplies them"
        return ""

    def context(self, impl: Impl) -> Tensor:
        """What is read, (B, H, T, d), in the values' type."""
        if self._takes_plain(impl):
            return self.written_out().context.to(self.values.dtype)
        with full_precision(self.queries):
            return self.by_sdpa()

    def _takes_plain(self, impl: Impl) -> bool:
        given = (self.queries, self.keys, self.values, self.bias, self.sink)
        if impl == "fused" and self.hindrance:
            raise ValueError(
                "impl: expected 'auto' or 'reference', got 'fused', which is "
                f"scaled_dot_product_attention: {self.hindrance}"
            )
        if takes_reference(impl, given, ("functionalize", "onnx")) or self.hindrance:
            return True
        return impl == "auto" and self._learns_its_mask()

    def _learns_its_mask(self) -> bool:
        """Torch's fused kernel for CPUs has no gradient of a mask: it writes all out, slower."""
        if self.queries.device.type != "cpu" or not torch.is_grad_enabled():
            return False
        return any(part is not None and part.requires_grad for part in (self.bias, self.sink))

    def by_sdpa(self) -> Tensor:
        """Through `F.scaled_dot_product_attention`."""
        keys, values, mask, scale = self.keys, self.values, self._mask(), self.queries.size(-1)
        if self.sink is not None:
            keys, values = (F.pad(part, (0, 0, 0, 1)) for part in (keys, values))
        return F.scaled_dot_product_attention(
            self.queries,
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=1 / math.sqrt(scale),
            enable_gqa=self.keys.size(1) != self.queries.size(1),
        )

    def _mask(self) -> Tensor | None:
        """The mask of SDPA: none where it is causal, of bool without a bias, else of float.

        It has two axes or four: with three, torch's kernel for CPUs leaves it to a slower one.
        """
        if self.bias is None and self.sink is None:
            return self.allowed
        mask = self._added()
        if self.sink is not None:
            sink = wide(self.sink)[:, None, None].to(mask.dtype)
            if mask.dim() < 3 or mask.size(-3) == 1:
                mask = mask.expand(*mask.shape[:-3], sink.size(0), *mask.shape[-2:])
            mask = torch.cat([mask, sink.expand(*mask.shape[:-1], 1)], -1)
        return mask[None] if mask.dim() == 3 else mask

    def _added(self) -> Tensor:
        """What is added to the scores: the bias, and -inf where a key isn't read."""
        queries, keys = self.queries.size(2), self.keys.size(2)
        allowed = self.allowed
        if allowed is None:
            allowed = self.queries.new_ones(queries, keys, dtype=torch.bool).tril()
        zero = wide(self.queries).new_zeros(())
        bias = zero if self.bias is None else self.bias
        return torch.where(allowed, bias, -math.inf)

    def written_out(self) -> WrittenOut:
        """The same, each step by itself: products, softmax or sigmoid, products."""
        with full_precision(self.queries):
            return self._written_out()

    def _written_out(self) -> WrittenOut:
        groups = self.queries.size(1) // self.keys.size(1)
        keys, values = wide(self.keys), wide(self.values)
        if groups > 1:
            keys, values = (part.repeat_interleave(groups, 1) for part in (keys, values))
        queries = wide(self.queries) / math.sqrt(self.queries.size(-1))
        scores = queries @ keys.transpose(-1, -2)
        if self.gate is not None:
            scores = scores * self.gate
        scores = scores + self._added()
        weights, sink = self._weights(scores)
        return WrittenOut(scores, weights, sink, weights.to(values.dtype) @ values)

    def _weights(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.counts is not None:
            return torch.sigmoid(scores - self.counts.to(scores.dtype).log()), None
        if self.sink is None:
            return torch.softmax(scores, -1), None
        logit = self.sink.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
        weights = torch.softmax(torch.cat([scores, logit], -1), -1)
        return weights[..., :-1], weights[..., -1:]
