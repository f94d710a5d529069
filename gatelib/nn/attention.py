"""Attention: additive, and by a product; scores, a softmax over the live positions, a read.

Imports torch, gatelib.nn.check and gatelib.nn.impl.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.nn.check import (
    LOW_PRECISION,
    check_dtype,
    check_input,
    check_lengths,
    check_like,
    check_sizes,
)
from gatelib.nn.impl import traced

__all__ = ["AdditiveAttention", "DotAttention"]

Score = Literal["dot", "scaled", "general"]


def live_positions(lengths: Tensor | None, keys: Tensor) -> Tensor | None:
    """(B, 1, S), true where there is a position; None where all are."""
    if lengths is None:
        return None
    check_lengths(lengths, keys.size(1), keys.size(0), least=1)
    positions = torch.arange(keys.size(1), device=keys.device)
    return (positions < lengths.to(keys.device)[:, None]).unsqueeze(1)


def read(scores: Tensor, values: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
    """Contexts (B, T, V) and attention weights (B, T, S): a softmax over the live positions.

    Both are computed in float32 where the values are of lower precision, and rounded once.
    """
    scores = _wide(scores)
    if live is not None:
        scores = scores.masked_fill(~live, -math.inf)
    weights = torch.softmax(scores, dim=-1)
    if values.dtype in LOW_PRECISION:
        context = torch.bmm(weights, _wide(values)).to(values.dtype)
        return context, weights.to(values.dtype)
    weights = weights.to(values.dtype)
    return torch.bmm(weights, values), weights


def _wide(values: Tensor) -> Tensor:
    """In float32 where they are of lower precision: a product of 64 features passes float16's end
    at entries of 32, and bfloat16 rounds a score of 100 by a quarter."""
    return values.float() if values.dtype in LOW_PRECISION else values


class Attention(nn.Module):
    """What all attention shares: sizes, checks, the mask and the read."""

    def __init__(self, query_size: int | None, key_size: int) -> None:
        super().__init__()
        check_sizes(key_size=key_size, **({} if query_size is None else {"query_size": query_size}))
        self.query_size, self.key_size = query_size, key_size

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Scores (B, T, S) of queries (B, T, Q) and keys (B, S, K), before the softmax."""
        raise NotImplementedError

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        lengths: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Read the values where their keys fit the queries.

        Args:
            queries: (B, T, Q).
            keys: (B, S, K).
            lengths: (B,) integers from 1 to S. Positions past them get the weight 0, exactly,
                and whatever stands there, NaN included, has no effect. None: all S are live.
            values: (B, S, V); the keys, if None.

        Returns:
            context: (B, T, V), the weighted mean of the values for each query.
            attention: (B, T, S), the weights; each row sums to 1.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: a shape, a device or a length doesn't fit.
        """
        node = traced(self, queries, keys, lengths, values)
        if node is not None:
            return node  # type: ignore[return-value]
        self._check(queries, keys, values)
        return self.attend(queries, keys, lengths, keys if values is None else values)

    def attend(
        self, queries: Tensor, keys: Tensor, lengths: Tensor | None, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As forward, on checked arguments; what stands past the lengths is put to 0 first."""
        live = live_positions(lengths, keys)
        if live is not None:
            outside = ~live.transpose(1, 2)
            keys, values = keys.masked_fill(outside, 0), values.masked_fill(outside, 0)
        return read(self.scores(queries, keys), values, live)

    def _check(self, queries: Tensor, keys: Tensor, values: Tensor | None) -> None:
        weight = next(self.parameters(), keys)
        check_input("keys", keys, (3,), self.key_size, weight)
        check_input("queries", queries, (3,), self.query_size or queries.size(-1), weight)
        if keys.size(0) != queries.size(0):
            batch, found = queries.size(0), keys.size(0)
            raise ValueError(f"keys: expected batch {batch} as queries, got {found}")
        if keys.size(1) == 0:
            raise ValueError(f"keys: expected at least one position, got {tuple(keys.shape)}")
        if values is not None:
            check_like("values", values, keys, "keys")
            if values.dim() != 3 or values.shape[:2] != keys.shape[:2]:
                expected = (*keys.shape[:2], "V")
                raise ValueError(f"values: expected {expected}, got {tuple(values.shape)}")

    def extra_repr(self) -> str:
        """The sizes."""
        sizes = [] if self.query_size is None else [str(self.query_size)]
        return ", ".join([*sizes, str(self.key_size)])


class AdditiveAttention(Attention):
    """Attention by a small network: e_j = w . tanh(W q + U k_j), a softmax over j, a mean.

    Parameters: `weight_query` W (A, Q), `weight_key` U (A, K), `weight_score` w (A,).

    Args:
        query_size: features Q of a query.
        key_size: features K of a key.
        hidden_size: features A of the tanh.
        device: where the parameters live.
        dtype: their floating-point type.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a size is below 1.

    Source: Bahdanau, Cho & Bengio 2014, arXiv:1409.0473, appendix A.1.2.
    """

    def __init__(
        self,
        query_size: int,
        key_size: int,
        hidden_size: int,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(query_size, key_size)
        check_sizes(hidden_size=hidden_size)
        check_dtype(dtype)
        own: dict[str, Any] = {"device": device, "dtype": dtype}
        self.hidden_size = hidden_size
        self.weight_query = nn.Parameter(torch.empty(hidden_size, query_size, **own))
        self.weight_key = nn.Parameter(torch.empty(hidden_size, key_size, **own))
        self.weight_score = nn.Parameter(torch.empty(hidden_size, **own))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw each weight from U(-1/sqrt(n), 1/sqrt(n)), n its inputs, as torch's Linear does."""
        for weight in self.parameters():
            bound = 1 / math.sqrt(weight.size(-1))
            nn.init.uniform_(weight, -bound, bound)

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Scores (B, T, S); the tanh between them is (B, T, S, A)."""
        query = F.linear(queries, self.weight_query).unsqueeze(2)
        key = F.linear(keys, self.weight_key).unsqueeze(1)
        return _wide(torch.tanh(query + key)) @ _wide(self.weight_score.to(query.dtype))

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{super().extra_repr()}, {self.hidden_size}"


class DotAttention(Attention):
    """Attention by a product: e_j = q . k_j ("dot"), over sqrt(K) ("scaled"), or W q . k_j
    ("general").

    Only "general" has a parameter, `weight` W (K, Q).

    Args:
        query_size: features Q of a query; K, unless the score is "general".
        key_size: features K of a key.
        score: which of the three.
        device: where the parameter lives.
        dtype: its floating-point type.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a size is below 1, the sizes differ without a matrix between them, or the
            score is unknown.

    Source: Luong, Pham & Manning 2015, arXiv:1508.04025, section 3.1; scaled, arXiv:1706.03762.
    """

    weight: nn.Parameter | None

    def __init__(
        self,
        query_size: int,
        key_size: int,
        score: Score = "dot",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(query_size, key_size)
        check_dtype(dtype)
        if score not in ("dot", "scaled", "general"):
            raise ValueError(f"score: expected 'dot', 'scaled' or 'general', got {score!r}")
        if score != "general" and query_size != key_size:
            raise ValueError(f"query_size: expected key_size = {key_size}, got {query_size}")
        self.score = score
        matrix = torch.empty(key_size, query_size, device=device, dtype=dtype)
        self.register_parameter("weight", nn.Parameter(matrix) if score == "general" else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight from U(-1/sqrt(Q), 1/sqrt(Q)), as torch's Linear does."""
        if self.weight is not None:
            bound = 1 / math.sqrt(self.weight.size(1))
            nn.init.uniform_(self.weight, -bound, bound)

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Scores (B, T, S)."""
        if self.weight is not None:
            queries = F.linear(queries, self.weight)
        queries = _wide(queries)
        if self.score == "scaled":
            queries = queries / math.sqrt(self.key_size)
        return torch.bmm(queries, _wide(keys).transpose(1, 2))

    def extra_repr(self) -> str:
        """The sizes and the score."""
        return f"{super().extra_repr()}, score={self.score!r}"
