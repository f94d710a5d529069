"""Modules of a user inside a layer: a copy where they may write, packed batches, what fx traces.
Imports torch.
Must not import any other module of gatelib.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["entries", "given", "is_tensor", "may_write", "rewrapped", "unwrapped", "values_of"]

KNOWN = ("torch.nn.modules.", "gatelib.nn.")


def may_write(module: nn.Module) -> bool:
    """Whether a module could write into its input.

    torch's modules and this library's do so only where they say `inplace=True`. A class of a user,
    a hook and a forward that was set on an instance may do anything.
    """
    return any(_is_unknown(part) for part in module.modules())


def _is_unknown(part: nn.Module) -> bool:
    own = part.__dict__
    return bool(
        not type(part).__module__.startswith(KNOWN)
        or own.get("inplace", False)
        or "forward" in own
        or own["_forward_pre_hooks"]
        or own["_forward_hooks"]
    )


def given(module: nn.Module, x: Any) -> Any:
    """x as a module may have it that stands beside others who read x: a copy if it may write.

    Nothing is asked of autograd, whose count of changes rests in `torch.inference_mode` and in
    `torch.compile`.
    """
    if not may_write(module):
        return x
    return x._replace(data=x.data.clone()) if isinstance(x, PackedSequence) else x.clone()


def is_tensor(value: object) -> bool:
    """Whether it is a tensor, or stands for one while torch.fx traces."""
    return isinstance(value, Tensor | torch.fx.Proxy)


def values_of(name: str, x: Any) -> Any:
    """The tensor x, or the tensor (all steps, D) inside a packed batch.

    Raises TypeError for anything else, ValueError for a packed batch without a step.
    """
    if isinstance(x, PackedSequence):
        if len(x.batch_sizes) == 0:
            raise ValueError(f"{name}: expected at least one step, got an empty PackedSequence")
        return x.data
    if not is_tensor(x):
        found = type(x).__name__
        raise TypeError(f"{name}: expected a tensor or a PackedSequence, got {found}")
    return x


def rewrapped(values: Tensor, x: Any) -> Any:
    """`values` as what x is: a tensor, or a packed batch of the same lengths."""
    return x._replace(data=values) if isinstance(x, PackedSequence) else values


def entries(module: nn.Module, found: Any, x: Any) -> tuple[Any, tuple[Any, ...] | None]:
    """The tensor that a module made of x, and what it returned behind that; None for no tuple.

    While torch.fx traces, what came is a symbol: of a recurrent layer it stands for a pair.

    Raises TypeError where the first entry is neither a tensor nor packed, as x is.
    """
    if isinstance(found, torch.fx.Proxy):
        layer = unwrapped(module)
        pair = hasattr(layer, "input_size") and hasattr(layer, "batch_first")
        symbol: Any = found
        return (symbol[0], (symbol[1],)) if pair else (symbol, None)
    alone = isinstance(found, PackedSequence) or not isinstance(found, tuple)
    first = found if alone else found[0] if found else None
    if isinstance(first, PackedSequence) != isinstance(x, PackedSequence) or not (
        is_tensor(first) or isinstance(first, PackedSequence)
    ):
        kind = "PackedSequence" if isinstance(x, PackedSequence) else "tensor"
        raise TypeError(
            f"block: expected a {kind}, or a tuple whose first entry is one, as its input is, "
            f"got {type(first).__name__}"
        )
    return values_of("block", first), None if alone else tuple(found[1:])


def unwrapped(module: nn.Module) -> Any:
    """The module that `torch.compile` wrapped, whose forward and attributes are the real ones."""
    while isinstance(inner := module.__dict__.get("_modules", {}).get("_orig_mod"), nn.Module):
        module = inner
    return module
