"""Layers of experts to be tested, with weights far from their start, and their definition by hand.

Imports torch and gatelib.nn.
Must not import Hypothesis or SciPy: a machine with a GPU may have neither.
"""

from __future__ import annotations

import torch
from torch import nn as torch_nn

from gatelib import nn

D, E, H = 8, 4, 12
IMPLS = ["reference", "fused", "auto"]
KINDS = ["swiglu", "gpt_oss", "relu_squared"]


def spread(module, dtype=torch.float64):
    """Weights far from their start, on which the choice of experts is not a toss."""
    torch.manual_seed(5)
    module = module.to(dtype)
    for parameter in module.parameters():
        torch_nn.init.normal_(parameter, std=0.5)
    return module


def made(dtype=torch.float64, **options):
    return spread(nn.MoE(D, **{"experts": E, "k": 2, "hidden": H} | options), dtype)


def drawn(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_hand(layer, x, indices, weights):
    """The definition: one token, one slot at a time, each expert a `GatedMLP`."""
    rows = []
    for token, own, shares in zip(x, indices.tolist(), weights, strict=True):
        total = torch.zeros_like(token)
        for i, w in zip(own, shares, strict=True):
            if i < layer.experts:
                parts = (layer.weight_in[i] @ token).chunk(layer.gating.parts)
                total = total + w * (layer.weight_out[i] @ layer.gating(*parts))
            elif i < layer.every:
                total = total + w * token
        rows.append(total)
    return torch.stack(rows)


def gradients(y, layer, x, dy):
    wanted = [x, *layer.parameters()]
    return torch.autograd.grad((y * dy).sum(), wanted, retain_graph=True, materialize_grads=True)
