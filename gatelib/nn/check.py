"""What the layers check of their arguments, each error naming the argument, expected and found.
Imports torch.
Must not import any other module of gatelib.
"""

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = [
    "DtypeError",
    "KindError",
    "OptionError",
    "ShapeError",
    "autocast_is_on",
    "check_batch_sizes",
    "check_choice",
    "check_dim",
    "check_dropout",
    "check_dtype",
    "check_features",
    "check_flags",
    "check_gate",
    "check_input",
    "check_lengths",
    "check_like",
    "check_no_more",
    "check_noise",
    "check_number",
    "check_projection",
    "check_sizes",
    "check_state",
    "check_states",
    "check_steps",
    "check_tensor",
    "known",
]


LOW_PRECISION = (torch.bfloat16, torch.float16)
"""What sums and softmaxes are not taken in: they are widened to float32."""


class ShapeError(ValueError, RuntimeError, IndexError):
    """A size, a rank or a device that doesn't fit; torch's own layers raise one of the three."""


class DtypeError(TypeError, ValueError, RuntimeError):
    """A number of the wrong type; torch's own layers raise one of the three."""


class OptionError(TypeError, ValueError):
    """An option of the wrong kind, or none of the layer's; torch's layers raise one of the two."""


class KindError(TypeError, AttributeError, RuntimeError, IndexError):
    """Another thing than a tensor, or than a pair of them; torch's layers raise one of the four."""


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
            raise ShapeError(f"{name}: expected at least 1, got {size}")


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


def check_noise(noise: object, shape: tuple[int, ...], like: Tensor) -> None:
    """It must be a tensor of this shape, where `like` is."""
    if not isinstance(noise, Tensor):
        raise TypeError(f"noise: expected a tensor, got {type(noise).__name__}")
    if tuple(noise.shape) != shape:
        raise ValueError(f"noise: expected shape {shape}, got {tuple(noise.shape)}")
    if noise.device != like.device:
        raise ValueError(f"noise: expected device {like.device}, got {noise.device}")


def check_gate(gate: object, known: Sequence[str], layer: object) -> None:
    """It must be one of the `known` gates of the layer."""
    if gate not in tuple(known):
        have = f"one of {', '.join(known)}" if known else "a layer with gates"
        raise ValueError(f"gate: expected {have}, got {gate!r} for {type(layer).__name__}")


def check_dropout(dropout: object, name: str = "dropout") -> None:
    """It must be a real number in [0, 1]."""
    if isinstance(dropout, bool) or not isinstance(dropout, int | float):
        raise OptionError(f"{name}: expected a probability, got {type(dropout).__name__}")
    if not 0 <= dropout <= 1:
        raise ValueError(f"{name}: expected a probability in [0, 1], got {dropout}")


def check_dtype(dtype: object) -> None:
    """It must be None or a floating-point torch.dtype."""
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return
    found = dtype if isinstance(dtype, torch.dtype) else type(dtype).__name__
    raise DtypeError(f"dtype: expected a floating-point torch.dtype, got {found}")


def check_choice(name: str, value: object, known: Iterable[str]) -> None:
    """It must be one of the `known` names."""
    names = sorted(known)
    if not isinstance(value, str) or value not in names:
        found = repr(value) if isinstance(value, str | int | float) else type(value).__name__
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, names))}; got {found}")


def check_dim(dim: object) -> None:
    """It must be an integer."""
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim: expected an integer, got {type(dim).__name__}")


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


def check_no_more(options: Mapping[str, object], layer: object) -> None:
    """No more options may be given; that torch knows `proj_size` of an LSTM alone is said."""
    for name in options:
        known = "an LSTM" if name == "proj_size" else f"no such argument of {type(layer).__name__}"
        raise OptionError(f"{name}: expected {known}, got {type(layer).__name__}({name}=…)")


def check_projection(proj_size: object, hidden_size: int) -> None:
    """It must be an integer from 0 to hidden_size - 1."""
    if isinstance(proj_size, bool) or not isinstance(proj_size, int):
        raise TypeError(f"proj_size: expected an integer, got {type(proj_size).__name__}")
    if not 0 <= proj_size < hidden_size:
        raise ValueError(
            f"proj_size: expected 0 (none) to hidden_size - 1 = {hidden_size - 1}, got {proj_size}"
        )


def check_tensor(name: str, value: object) -> Tensor:
    """It must be a tensor; here it is."""
    if not isinstance(value, Tensor):
        raise KindError(f"{name}: expected a tensor, got {type(value).__name__}")
    return value


def check_like(name: str, tensor: Tensor, like: Tensor, what: str) -> None:
    """Dtype and device must be those of `like`; under autocast the dtype may differ."""
    if tensor.dtype != like.dtype and not autocast_is_on(tensor.device.type):
        raise DtypeError(f"{name}: expected {like.dtype} as the {what}, got {tensor.dtype}")
    if tensor.device != like.device:
        raise ShapeError(
            f"{name}: expected device {like.device} as the {what}, got {tensor.device}"
        )


def autocast_is_on(device: str) -> bool:
    """Whether autocast is on for a kind of device; some, as meta, don't have it."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def check_input(
    name: str, input: object, ranks: tuple[int, ...], size: int, weight: Tensor
) -> None:
    """It must be a tensor of one of `ranks` with `size` features, of the weights' type."""
    value = check_tensor(name, input)
    if value.dim() not in ranks:
        expected = " or ".join(str(rank) for rank in ranks)
        raise ShapeError(
            f"{name}: expected {expected} dimensions, got {value.dim()} {tuple(value.shape)}"
        )
    if value.size(-1) != size:
        raise ShapeError(
            f"{name}: expected {size} features (input_size), got {value.size(-1)} in the last "
            f"dimension of {tuple(value.shape)}"
        )
    check_like(name, value, weight, "weights")


def check_features(name: str, input: object, size: int, weight: Tensor) -> None:
    """It must be a tensor (..., size) of the weights' type."""
    value = check_tensor(name, input)
    if value.dim() < 1 or value.size(-1) != size:
        raise ShapeError(f"{name}: expected (..., {size}), got shape {tuple(value.shape)}")
    check_like(name, value, weight, "weights")


def check_state(name: str, state: object, shape: tuple[int, ...], like: Tensor, what: str) -> None:
    """It must be a tensor of that shape, and of the type of `like`, which is `what`."""
    value = check_tensor(name, state)
    if tuple(value.shape) != shape:
        raise ShapeError(f"{name}: expected shape {shape}, got {tuple(value.shape)}")
    check_like(name, value, like, what)


def check_states(
    hx: object, shapes: Sequence[tuple[int, ...]], input: Tensor
) -> tuple[Tensor, ...]:
    """It must be a tensor, or a pair for two `shapes`, with these shapes and the input's type."""
    names: list[str] = ["hx"] if len(shapes) == 1 else ["hx[0]", "hx[1]"]
    if len(shapes) == 1:
        hx = (hx,)
    elif not isinstance(hx, tuple | list) or len(hx) != 2:
        found = f"{len(hx)} items" if isinstance(hx, tuple | list) else type(hx).__name__
        raise KindError(f"hx: expected a pair (h_0, c_0), got {found}")
    for name, state, shape in zip(names, hx, shapes, strict=True):
        check_state(name, state, shape, input, "input")
    return tuple(hx)


def check_batch_sizes(batch_sizes: Tensor, data: Tensor) -> None:
    """A packed batch made by hand may contradict itself, and torch's kernel doesn't look."""
    if batch_sizes.dim() != 1 or batch_sizes.size(0) == 0:
        shape = tuple(batch_sizes.shape)
        raise ShapeError(f"input.batch_sizes: expected one size a step at least, got shape {shape}")
    if known(batch_sizes.sum) is None:
        return
    sizes = batch_sizes.tolist()
    if sum(sizes) != data.size(0) or sizes != sorted(sizes, reverse=True) or min(sizes) < 1:
        raise ShapeError(
            "input.batch_sizes: expected positive sizes that never grow and whose sum is "
            f"{data.size(0)}, the rows of input.data, got {sizes}"
        )
