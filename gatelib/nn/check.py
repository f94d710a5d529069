"""What the layers check of their arguments, each error naming the argument, expected and found.
Imports torch.
Must not import any other module of gatelib.
"""

import math
import numbers
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = [
    "check_batch_sizes",
    "check_dropout",
    "check_dtype",
    "check_flags",
    "check_gate",
    "check_input",
    "check_lengths",
    "check_like",
    "check_number",
    "check_projection",
    "check_sizes",
    "check_states",
    "check_steps",
    "known",
]


LOW_PRECISION = (torch.bfloat16, torch.float16)
"""What sums and softmaxes are not taken in: they are widened to float32."""


def known(number: Callable[[], Tensor]) -> int | None:
    """The integer that `number()` holds; None where no number can be read.

    That is on meta, in a fake tensor, under vmap, and while torch compiles, exports or traces:
    there shapes are checked and values are not. `known(lengths.max)`, `known(done.all)`.
    """
    traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if traced or torch.compiler.is_compiling():
        return None
    try:
        return int(number())
    except RuntimeError:  # meta, fake and batched tensors raise one each, all of this kind
        return None


def check_sizes(**sizes: object) -> None:
    """Each must be an integer of at least 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"{name}: expected an integer, got {type(size).__name__}")
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")


def check_flags(**flags: object) -> None:
    """Each must be a bool."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name}: expected True or False, got {type(flag).__name__}")


def check_number(number: object, name: str) -> None:
    """It must be a finite real number."""
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        raise TypeError(f"{name}: expected a real number, got {type(number).__name__}")
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {number}")


def check_steps(steps: object, name: str) -> None:
    """It must be an integer of at least 2."""
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"{name}: expected an integer number of steps, got {type(steps).__name__}")
    if steps < 2:
        raise ValueError(f"{name}: expected at least 2 steps, got {steps}")


def check_gate(gate: object, known: Sequence[str], layer: object) -> None:
    """It must be one of the `known` gates of the layer."""
    if gate not in tuple(known):
        have = f"one of {', '.join(known)}" if known else "a layer with gates"
        raise ValueError(f"gate: expected {have}, got {gate!r} for {type(layer).__name__}")


def check_dropout(dropout: object, name: str = "dropout") -> None:
    """It must be a real number in [0, 1]."""
    if isinstance(dropout, bool) or not isinstance(dropout, int | float):
        raise TypeError(f"{name}: expected a probability, got {type(dropout).__name__}")
    if not 0 <= dropout <= 1:
        raise ValueError(f"{name}: expected a probability in [0, 1], got {dropout}")


def check_dtype(dtype: object) -> None:
    """It must be None or a floating-point torch.dtype."""
    if dtype is not None and not getattr(dtype, "is_floating_point", False):
        raise TypeError(f"dtype: expected a floating-point torch.dtype, got {dtype}")


def check_lengths(lengths: object, steps: int, batch: int, least: int = 0) -> None:
    """One integer for each row of a padded batch, from `least` to the steps of the batch."""
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths: expected a tensor, got {type(lengths).__name__}")
    if lengths.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"lengths: expected torch.int64 or torch.int32, got {lengths.dtype}")
    if tuple(lengths.shape) != (batch,):
        raise ValueError(f"lengths: expected shape ({batch},), got {tuple(lengths.shape)}")
    if batch == 0:
        return
    low, high = known(lengths.min), known(lengths.max)
    if low is not None and high is not None and (low < least or high > steps):
        raise ValueError(f"lengths: expected {least} to T = {steps}, got {low} to {high}")


def check_projection(proj_size: object, hidden_size: int) -> None:
    """It must be an integer from 0 to hidden_size - 1."""
    if isinstance(proj_size, bool) or not isinstance(proj_size, int):
        raise TypeError(f"proj_size: expected an integer, got {type(proj_size).__name__}")
    if not 0 <= proj_size < hidden_size:
        raise ValueError(
            f"proj_size: expected 0 (none) to hidden_size - 1 = {hidden_size - 1}, got {proj_size}"
        )


def check_like(name: str, tensor: Tensor, like: Tensor, what: str) -> None:
    """Dtype and device must be those of `like`; under autocast the dtype may differ."""
    if tensor.dtype != like.dtype and not torch.is_autocast_enabled(tensor.device.type):
        raise TypeError(f"{name}: expected {like.dtype} as the {what}, got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(
            f"{name}: expected device {like.device} as the {what}, got {tensor.device}"
        )


def check_input(
    name: str, input: object, ranks: tuple[int, ...], size: int, weight: Tensor
) -> None:
    """It must be a tensor of one of `ranks` with `size` features, of the weights' type."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(input).__name__}")
    if input.dim() not in ranks:
        expected = " or ".join(str(rank) for rank in ranks)
        raise ValueError(
            f"{name}: expected {expected} dimensions, got {input.dim()} {tuple(input.shape)}"
        )
    if input.size(-1) != size:
        raise ValueError(
            f"{name}: expected {size} features (input_size), got {input.size(-1)} in the last "
            f"dimension of {tuple(input.shape)}"
        )
    check_like(name, input, weight, "weights")


def check_states(
    hx: object, shapes: Sequence[tuple[int, ...]], input: Tensor
) -> tuple[Tensor, ...]:
    """It must be a tensor, or a pair for two `shapes`, with these shapes and the input's type."""
    names: list[str] = ["hx"] if len(shapes) == 1 else ["hx[0]", "hx[1]"]
    if len(shapes) == 1:
        hx = (hx,)
    elif not isinstance(hx, tuple | list) or len(hx) != 2:
        found = f"{len(hx)} items" if isinstance(hx, tuple | list) else type(hx).__name__
        raise TypeError(f"hx: expected a pair (h_0, c_0), got {found}")
    for name, state, shape in zip(names, hx, shapes, strict=True):
        if not isinstance(state, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(state).__name__}")
        if tuple(state.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(state.shape)}")
        check_like(name, state, input, "input")
    return tuple(hx)


def check_batch_sizes(batch_sizes: Tensor, data: Tensor) -> None:
    """A packed batch made by hand may contradict itself, and torch's kernel doesn't look."""
    if torch.compiler.is_compiling():
        return
    sizes = batch_sizes.tolist()
    if sum(sizes) != data.size(0) or sizes != sorted(sizes, reverse=True) or min(sizes) < 1:
        raise ValueError(
            "input.batch_sizes: expected positive sizes that never grow and whose sum is "
            f"{data.size(0)}, the rows of input.data, got {sizes}"
        )
