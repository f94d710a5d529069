"""What stands between a branch and its shortcut; each is one node where torch.fx traces.
Imports torch and gatelib.nn.check.
Must not import any other module of gatelib.
"""

import torch
from torch import Tensor, fx

from gatelib.nn.check import check_features, check_noise

__all__ = ["appended", "check_stream", "fitting", "gated_rows", "scaled"]


@fx.wrap
def gated_rows(x: Tensor, noise: Tensor | None, keep: float) -> Tensor:
    """x times one gate for each row: 1/keep where the noise is below `keep`, else 0."""
    if x.dim() == 0:
        raise ValueError("x: expected at least 1 dimension, the batch, got a number")
    if noise is None:
        noise = torch.rand(x.shape[0], device=x.device)
    else:
        check_noise(noise, (x.shape[0],), x)
    gate = (noise < keep).to(x.dtype) / (keep or 1.0)
    return x * gate.reshape(-1, *[1] * (x.dim() - 1))


@fx.wrap
def fitting(name: str, branch: Tensor, skip: Tensor) -> Tensor:
    """The branch, whose shape must be the shortcut's."""
    if not isinstance(branch, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(branch).__name__}")
    if branch.shape != skip.shape:
        raise ValueError(
            f"{name}: expected an output of shape {tuple(skip.shape)} as the shortcut, "
            f"got {tuple(branch.shape)}"
        )
    return branch


@fx.wrap
def appended(x: Tensor, found: Tensor, dim: int) -> Tensor:
    """x, and what was found behind it, which differs in `dim` alone."""
    shape, other = list(x.shape), list(found.shape)
    if not -len(shape) <= dim < len(shape):
        raise ValueError(f"dim: expected a dimension of {tuple(shape)}, got {dim}")
    if len(other) == len(shape):
        other[dim] = shape[dim]
    if other != shape:
        raise ValueError(
            f"block: expected an output of shape {tuple(shape)} but for dimension {dim}, "
            f"got {tuple(found.shape)}"
        )
    return torch.cat([x, found], dim)


@fx.wrap
def check_stream(x: Tensor, size: int, like: Tensor | None) -> None:
    """What a deep net reads must be (..., size), of the type of its weights, if it has any left."""
    if like is not None:
        check_features("x", x, size, like)


@fx.wrap
def scaled(branch: Tensor, alpha: Tensor, dim: int) -> Tensor:
    """alpha, one number or one a feature, times the branch, whose features stand in `dim`."""
    if alpha.numel() == 1:
        return alpha * branch
    if not -branch.dim() <= dim < branch.dim():
        raise ValueError(f"dim: expected a dimension of {tuple(branch.shape)}, got {dim}")
    if branch.shape[dim] != alpha.numel():
        raise ValueError(
            f"features: expected {branch.shape[dim]} as dimension {dim} of the branch "
            f"{tuple(branch.shape)}, got {alpha.numel()}"
        )
    if dim in (-1, branch.dim() - 1):
        return alpha * branch
    shape = [1] * branch.dim()
    shape[dim] = -1
    return alpha.reshape(shape) * branch
