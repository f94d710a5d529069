"""The nets that chapter 4 compares over depth, with as many parameters each.

Imports torch and gatelib.nn. benchmarks/highway.py finds their learning rates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.nn import Deep, Highway

__all__ = ["DEPTHS", "NETS", "Thin", "growth", "net"]

DEPTHS = (10, 30, 50, 100)
NETS = ("plain", "plain, orthogonal", "residual", "highway", "highway, by depth", "dense")


class Thin(nn.Module):
    """`gatelib.nn.Deep` with all matrices in one parameter, as many thin layers train sooner so.

    "plain" has a ReLU and weights as torch draws them; "plain, orthogonal" a tanh and orthogonal
    matrices; "residual" a ReLU and branches of variance 1/depth. Weights (L, D, D), biases (L, D)
    start at 0.
    """

    def __init__(self, kind: str, size: int, depth: int) -> None:
        super().__init__()
        self.residual, self.phi = kind == "residual", torch.relu
        self.weight = nn.Parameter(torch.empty(depth, size, size))
        self.bias = nn.Parameter(torch.zeros(depth, size))
        deviation = math.sqrt(2 / depth if self.residual else 1 / 3) / math.sqrt(size)
        nn.init.normal_(self.weight, std=deviation)
        if kind == "plain, orthogonal":
            self.phi = torch.tanh
            for matrix in self.weight.data:
                nn.init.orthogonal_(matrix)

    def forward(self, x: Tensor) -> Tensor:
        """Run all layers on (N, D)."""
        for weight, bias in zip(self.weight.unbind(0), self.bias.unbind(0), strict=True):
            a = F.linear(self.phi(x), weight, bias)
            x = x + a if self.residual else a
        return x


def growth(budget: int, size: int, depth: int) -> int:
    """Features that each of `depth` dense layers must add for about `budget` parameters."""
    costs = {g: sum((size + k * g + 1) * g for k in range(depth)) for g in range(1, size + 1)}
    return min(costs, key=lambda g: abs(costs[g] - budget))


def net(
    name: str, depth: int, inputs: int = 64, size: int = 32, bias: float = -2.0, outputs: int = 10
) -> nn.Sequential:
    """A linear map to the width, the stack, and a linear answer.

    The highway nets have `size` units; their transform gates start at `bias`, or "by depth" at
    the bias whose expected path length is 2. The others have the width at which their stack has
    about as many parameters, 2 (size² + size) a layer.
    """
    if name not in NETS:
        raise ValueError(f"name: expected one of {NETS}, got {name!r}")
    budget, width = depth * 2 * size * (size + 1), size
    if name.startswith("highway"):
        start = bias if name == "highway" else -math.log(depth / 2 - 1)
        stack: nn.Module = Highway(size, depth, bias=start)
    elif name == "dense":
        stack = Deep(size, depth, "dense", growth=growth(budget, size, depth))
    else:
        width = round(math.sqrt(budget / depth + 0.25) - 0.5)
        stack = Thin(name, width, depth)
    after = getattr(stack, "output_size", width)
    return nn.Sequential(nn.Linear(inputs, width), stack, nn.Linear(after, outputs))
