"""What both kinds of generated Triton kernels need to run: Triton, checks, buffers, a launch.

Imports torch, gatelib.spec and gatelib.load; Triton when a kernel is first needed.
Must not import gatelib.nn, gatelib.lab or gatelib.reference.

Kernels run on CUDA tensors, or on CPU tensors where `TRITON_INTERPRET=1` was set before Triton was
imported. They compute in float32 (float64 for float64 input), whatever is stored, use no atomics,
and give the same bits on every run.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gatelib.load import load as load_source
from gatelib.spec import Spec

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
State = Tensor | tuple[Tensor, ...]

# ---- from text to kernels ------------------------------------------------------------------


def triton() -> Any:
    """The package. Raises ImportError that says how to get it."""
    try:
        import triton
    except ImportError as error:
        raise ImportError("Triton kernels need triton: pip install 'gatelib[triton]'") from error
    return triton


@functools.cache
def installed() -> bool:
    """Whether Triton can be imported; doesn't import it."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU."""
    return bool(triton().knobs.runtime.interpret)


@functools.lru_cache(maxsize=512)
def load(text: str) -> Mapping[str, Any]:
    """The functions of a generated source; `inspect` and tracebacks show its lines."""
    triton()
    return load_source(text, "triton")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a kernel computes in, and keeps states in, for values of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def in_triton(dtype: torch.dtype) -> Any:
    """The same as Triton calls it."""
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A buffer for a kernel to fill; tests fill it with NaN first."""
    return torch.empty(shape, dtype=dtype, device=device)


def run(kernel: Any, programs: int, arguments: Sequence[Any], **options: Any) -> None:
    """Run `programs` instances on the device of the arguments; nothing to do for none."""
    if programs:
        place = next(a for a in arguments if isinstance(a, Tensor))
        with torch.cuda.device_of(place):  # type: ignore[no-untyped-call]
            kernel[(programs,)](*arguments, **options)


# ---- checks --------------------------------------------------------------------------------


def check_floating(name: str, value: object) -> Tensor:
    """A floating tensor, or an error that names it."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name}: expected a floating dtype, got {value.dtype}")
    return value


def check_tensor(name: str, value: object) -> Tensor:
    """A floating, contiguous tensor where a kernel can run, or an error that names it."""
    value = check_floating(name, value)
    on_cpu = value.device.type == "cpu" and (torch.compiler.is_compiling() or interpreted())
    if value.device.type != "cuda" and not on_cpu:  # a graph is asked when it runs, by Triton
        raise ValueError(
            f"{name}: expected a CUDA tensor, got one on {value.device}; Triton runs on the CPU "
            "only where TRITON_INTERPRET=1 is set before it is imported"
        )
    if not value.is_contiguous():
        raise ValueError(
            f"{name}: expected a contiguous tensor, got strides {tuple(value.stride())} for shape "
            f"{tuple(value.shape)}; call .contiguous()"
        )
    return value


def check_like(name: str, value: Tensor, shape: Sequence[int], first: str, like: Tensor) -> None:
    """Shape and device must be those that `first` asks for."""
    if tuple(value.shape) != tuple(shape):
        raise ValueError(
            f"{name}: expected shape {tuple(shape)} to go with {first} {tuple(like.shape)}, "
            f"got {tuple(value.shape)}"
        )
    if value.device != like.device:
        raise ValueError(f"{name}: expected device {like.device} as {first}, got {value.device}")


def check_dtype(name: str, value: Tensor, allowed: Sequence[torch.dtype], first: str) -> None:
    """The dtype must be one of `allowed`."""
    if value.dtype not in allowed:
        expected = " or ".join(str(d) for d in dict.fromkeys(allowed))
        raise TypeError(f"{name}: expected {expected} to go with {first}, got {value.dtype}")


def check_count(spec: Spec, names: Sequence[str], values: Sequence[object]) -> None:
    """One value for each name."""
    if len(values) != len(names):
        raise TypeError(
            f"{spec.name}: expected {len(names)} tensors ({', '.join(names)}), got {len(values)}"
        )


def one_or_all(values: Sequence[Tensor]) -> State:
    """A tensor alone where there is one, otherwise a tuple."""
    return values[0] if len(values) == 1 else tuple(values)
