"""The deep nets that chapter 4 compares: plain, residual, and with gates that see the input or not.

Imports torch. Its "dynamic" stack is `gatelib.nn.Highway` with a start of its own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["KINDS", "TRANSFORMS", "Stack", "net", "width"]

KINDS = ("plain", "residual", "static", "dynamic", "shortcut")
TRANSFORMS = {"relu": torch.relu, "tanh": torch.tanh, "linear": lambda a: a}


class Stack(nn.Module):
    """`depth` layers of `size` units, with h = phi(W x + b) in each.

        plain      x <- h
        residual   x <- x + h
        static     x <- t h + (1 - t) x      t = sigmoid(b_t), which sees no input
        dynamic    x <- t h + (1 - t) x      t = sigmoid(W_t x + b_t)
        shortcut   x <- h + (1 - t) x        t as in dynamic

    Args:
        bias: where b_t starts; None for the bias at which a path is expected to have 2 transforms.
        variance: of a transform's weights at the start, times `size`: 2 is He's. Left out, it is
            2 / depth for residual and shortcut, and 1/3, as torch draws them, for the others.
        norm: whether a layer's matrices read x without its mean and at unit variance.
    """

    def __init__(
        self,
        kind: str,
        size: int,
        depth: int,
        bias: float | None = 0.0,
        variance: float | None = None,
        phi: str = "relu",
        norm: bool = False,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
        self.kind, self.phi, self.norm = kind, phi, norm
        if variance is None:
            variance = 2 / depth if kind in ("residual", "shortcut") else 1 / 3
        deviation = math.sqrt(variance / size)
        self.weight = nn.Parameter(torch.randn(depth, size, size) * deviation)
        self.bias = nn.Parameter(torch.zeros(depth, size))
        self.gate_weight = self.gate_bias = None
        if kind in ("static", "dynamic", "shortcut"):
            start = -math.log(depth / 2 - 1) if bias is None else float(bias)
            self.gate_bias = nn.Parameter(torch.full((depth, size), start))
        if kind in ("dynamic", "shortcut"):
            drawn = torch.empty(depth, size, size).uniform_(-1, 1) / math.sqrt(size)
            self.gate_weight = nn.Parameter(drawn)

    def forward(self, x: Tensor) -> Tensor:
        """Run all layers on (N, D)."""
        for k in range(len(self.weight)):
            x = self.layer(k, x)
        return self.read(x)

    def layer(self, k: int, x: Tensor) -> Tensor:
        """Layer `k` on (N, D)."""
        seen = self.read(x)
        h = TRANSFORMS[self.phi](F.linear(seen, self.weight[k], self.bias[k]))
        if self.gate_bias is None:
            return h if self.kind == "plain" else x + h
        t = self.gate(k, seen)
        return h + (1 - t) * x if self.kind == "shortcut" else x + t * (h - x)

    def read(self, x: Tensor) -> Tensor:
        """What the matrices see of the stream."""
        return F.layer_norm(x, x.shape[-1:]) if self.norm else x

    def gate(self, k: int, seen: Tensor) -> Tensor:
        """The gate of layer `k`: (N, D), or (D,) where it sees no input."""
        a = self.gate_bias[k]
        if self.gate_weight is not None:
            a = F.linear(seen, self.gate_weight[k], a)
        return torch.sigmoid(a)

    def gates(self, x: Tensor) -> Tensor:
        """The gates of all layers for a batch, (L, N, D)."""
        found = []
        for k in range(len(self.weight)):
            found.append(self.gate(k, self.read(x)).expand_as(x))
            x = self.layer(k, x)
        return torch.stack(found)

    def freeze(self, means: Tensor) -> None:
        """Turn the gates into constants at these values, (L, D)."""
        self.kind, self.gate_weight = "static", None
        self.gate_bias = nn.Parameter(torch.logit(means, eps=1e-6))


def width(kind: str, size: int) -> int:
    """The width at which a layer has about the parameters of a dynamic one, 2 size (size + 1)."""
    if kind in ("dynamic", "shortcut"):
        return size
    vectors = 2 if kind == "static" else 1
    return round(math.sqrt(2 * size * (size + 1) + vectors**2 / 4) - vectors / 2)


def net(
    kind: str,
    depth: int,
    size: int = 32,
    same: bool = False,
    ends: tuple[int, int] = (784, 10),
    **options: Any,
) -> nn.Sequential:
    """A linear map to the width, the stack, and a linear answer; `ends` inputs and outputs.

    Its stack has about as many parameters as a dynamic one of `size` units, or with `same` its
    width; options are those of `Stack`.
    """
    units = size if same else width(kind, size)
    stack = Stack(kind, units, depth, **options)
    return nn.Sequential(nn.Linear(ends[0], units), stack, nn.Linear(units, ends[1]))
