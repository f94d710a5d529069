"""Pooling over time with a gate that is learned: by attention, or by a softmax of each feature.

Imports torch, gatelib.nn.check and gatelib.nn.impl.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.nn.check import (
    LOW_PRECISION,
    check_choice,
    check_dtype,
    check_flags,
    check_input,
    check_lengths,
    check_number,
    check_sizes,
    check_tensor,
)
from gatelib.nn.impl import traced

__all__ = ["AttentionPool", "SoftPool", "hop_penalty"]

Empty = Literal["error", "zero"]


class _Pool(nn.Module):
    """What both pools share: what a row without a step means, checks, the softmax over time."""

    def __init__(self, features: int, empty: Empty) -> None:
        super().__init__()
        check_sizes(features=features)
        check_choice("empty", empty, get_args(Empty))
        self.features, self.empty = features, empty

    def _read(self, y: Tensor, lengths: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
        """y with zeros in its padding, and what is no padding, (B, T, 1)."""
        check_input("y", y, (3,), self.features, like)
        if y.size(1) == 0:
            raise ValueError(f"y: expected at least one time step, got {tuple(y.shape)}")
        if lengths is None:
            return y, torch.ones(y.size(0), y.size(1), 1, dtype=torch.bool, device=y.device)
        check_lengths(lengths, y.size(1), y.size(0), least=int(self.empty == "error"))
        steps = torch.arange(y.size(1), device=y.device)
        live = (steps < lengths.to(y.device)[:, None]).unsqueeze(-1)
        return y.masked_fill(~live, 0), live


def _shares(scores: Tensor, live: Tensor) -> Tensor:
    """The softmax over dimension 1 of what is live; 0 in a row where nothing is."""
    some = live.any(1, keepdim=True)
    filled = scores.masked_fill(~live & some, -math.inf)
    return torch.softmax(filled, 1).masked_fill(~live, 0)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in LOW_PRECISION else x


class AttentionPool(_Pool):
    """Pool a sequence by how its steps compare with a learned vector, or with several.

        u_t = tanh(W y_t + b)
        g_t = softmax over t of (scale * w . u_t)
        pooled = Σ_t g_t y_t

    Every feature of a step is let through alike. With `hops` above 1 there are as many vectors w,
    each pools by itself, and the results stand side by side. It is additive attention whose query
    is a constant: `AdditiveAttention` with W q = b. Its relatives are limits: at scale 0, or w = 0,
    it is the mean over the live steps, whatever else was learned; as the scale grows it is the
    value of the one step with the largest score, all features of it: no maximum of each feature,
    for which see `SoftPool`.

    Parameters: `weight` W (A, D), `bias` b (A,), `context` w (hops, A).

    Args:
        features: D, of each step.
        hidden_size: units A of the tanh.
        hops: how many vectors w there are. Yang et al. have one, Lin et al. several.
        bias: whether there is b. Yang et al. have it, Lin et al. don't.
        scale: a fixed factor k on the scores, 1 in both papers; not learned.
        empty: what a row of length 0 is: an "error", or pooled to "zero" with all weights 0.
            Where lengths can't be looked at (torch.compile, torch.export, vmap) it is zero.
        device: where the parameters live.
        dtype: their floating-point type.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Source: Yang et al. 2016, "Hierarchical attention networks for document classification",
    section 2.2; Lin et al. 2017, arXiv:1703.03130, section 2.1. Programs differ: several score with
    w . y_t alone, without the layer of tanh, and some take the softmax over padding too.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        features: int,
        hidden_size: int,
        hops: int = 1,
        *,
        bias: bool = True,
        scale: float = 1.0,
        empty: Empty = "error",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(features, empty)
        check_sizes(hidden_size=hidden_size, hops=hops)
        check_flags(bias=bias)
        check_number(scale, "scale")
        check_dtype(dtype)
        self.hidden_size, self.hops, self.scale = hidden_size, hops, float(scale)
        own: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(hidden_size, features, **own))
        shift = nn.Parameter(torch.empty(hidden_size, **own)) if bias else None
        self.register_parameter("bias", shift)
        self.context = nn.Parameter(torch.empty(hops, hidden_size, **own))
        self.reset_parameters()

    @property
    def output_size(self) -> int:
        """Features of what is pooled: hops · D."""
        return self.hops * self.features

    def reset_parameters(self) -> None:
        """Draw each from U(-1/sqrt(n), 1/sqrt(n)), n its inputs, as torch's Linear does."""
        bound = 1 / math.sqrt(self.features)
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)
        bound = 1 / math.sqrt(self.hidden_size)
        nn.init.uniform_(self.context, -bound, bound)

    def forward(self, y: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pool a batch of sequences.

        Args:
            y: (B, T, D).
            lengths: (B,) integers from 1 to T, from 0 where `empty` is "zero"; None where no row
                is padded. What stands past them, NaN included, has no effect.

        Returns:
            pooled: (B, hops * D), in y's dtype; summed in float32 where that is of lower precision.
            weights: (B, hops, T), each row summing to 1, or 0 where there is no step.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape, device or range.
        """
        node = traced(self, y, lengths)
        if node is not None:
            return node  # type: ignore[return-value]
        y, live = self._read(y, lengths, self.weight)
        u = torch.tanh(F.linear(y, self.weight, self.bias))
        weights = _shares(_wide(self.scale * F.linear(u, self.context)), live).transpose(1, 2)
        pooled = (weights.to(_wide(y).dtype) @ _wide(y)).flatten(1)
        return pooled.to(y.dtype), weights.to(y.dtype)

    def extra_repr(self) -> str:
        """The arguments."""
        text = f"{self.features}, {self.hidden_size}, hops={self.hops}"
        return f"{text}, scale={self.scale:g}, empty={self.empty!r}"


class SoftPool(_Pool):
    """Pool each feature by a softmax over time of itself: between the mean and the maximum.

        g_t = softmax over t of (scale * y_t),  pooled = Σ_t g_t y_t,  feature by feature

    At scale 0 it is the mean over the live steps, as the scale grows the maximum, and as it falls
    below 0 the minimum. Steps that tie for the largest value share it, where a maximum sends its
    gradient to one of them.

    Args:
        features: D, of each step.
        scale: where the scale of each feature starts.
        learn: whether it is learned, as a parameter `scale` (D,); otherwise it is that number.
        empty: as for `AttentionPool`.
        device, dtype: where the parameter lives, if there is one, and its type.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """

    scale: Tensor | float

    def __init__(
        self,
        features: int,
        scale: float = 1.0,
        *,
        learn: bool = False,
        empty: Empty = "error",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(features, empty)
        check_number(scale, "scale")
        check_flags(learn=learn)
        check_dtype(dtype)
        self.initial_scale, self.learn = float(scale), learn
        own = nn.Parameter(torch.empty(features, device=device, dtype=dtype)) if learn else None
        self.scale = self.initial_scale if own is None else own
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all scales to where they start."""
        if isinstance(self.scale, Tensor):
            nn.init.constant_(self.scale, self.initial_scale)

    def forward(self, y: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pool a batch of sequences.

        Args:
            y, lengths: as for `AttentionPool`.

        Returns:
            pooled: (B, D), in y's dtype.
            weights: (B, T, D), which sum to 1 over time, or to 0 where there is no step.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape, device or range.
        """
        node = traced(self, y, lengths)
        if node is not None:
            return node  # type: ignore[return-value]
        scale = self.scale
        y, live = self._read(y, lengths, scale if isinstance(scale, Tensor) else y)
        wide = _wide(y)
        scale = scale.to(wide.dtype) if isinstance(scale, Tensor) else scale
        weights = _shares(scale * wide, live)
        return (weights * wide).sum(1).to(y.dtype), weights.to(y.dtype)

    def extra_repr(self) -> str:
        """The arguments."""
        text = f"{self.features}, scale={self.initial_scale:g}, learn={self.learn}"
        return f"{text}, empty={self.empty!r}"


def hop_penalty(weights: Tensor) -> Tensor:
    """The mean over rows of ‖g gᵀ − I‖² (squared Frobenius norm): a loss for hops that read alike.

    It is 0 where each hop reads one step and no two read the same, so it asks for sharp weights as
    well as for different ones. A row without a step adds the number of hops.

    Args:
        weights: g (B, hops, T), as `AttentionPool` gives them.

    Returns: a scalar, float32 where the weights are of lower precision.
    Raises: TypeError or ValueError where `weights` is no tensor of three dimensions.
    Source: Lin et al. 2017, arXiv:1703.03130, section 2.2.
    """
    check_tensor("weights", weights)
    if weights.dim() != 3:
        raise ValueError(f"weights: expected (B, hops, T), got {tuple(weights.shape)}")
    g = _wide(weights)
    one = torch.eye(g.size(1), dtype=g.dtype, device=g.device)
    return (g @ g.transpose(1, 2) - one).square().sum((1, 2)).mean()
