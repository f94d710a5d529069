"""Gates over features, fused: gate and value, with or without the linear map behind them.

Imports torch, gatelib.spec, and of gatelib.kernels blocks, gated, launch and operator.
Must not import gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

Of act(a)·v autograd saves a, v, act(a), and the product where a linear map follows: four values an
element. The operators here, `gatelib::gated` and `gatelib::gated_linear`, save their inputs alone,
two, and compute the rest again. Their backward pass writes the two halves of a packed gradient
where they belong. On a CPU a block of rows stays in the cache from call to call; on a CUDA device
one generated Triton kernel moves 3 values an element forward and 5 back, and 6 where the product is
wanted again for a weight's gradient. Where Triton is not installed the CPU's program runs there.

Low precision is computed in float32 and rounded once. GELU is torch's, exact to some 1e-7 of its
input in float32, not of its value, which vanishes far out on the left. Second derivatives run the
torch source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from gatelib.kernels import blocks, launch
from gatelib.kernels.gated import Gated, gated_of, gated_of_text
from gatelib.kernels.operator import Operator
from gatelib.spec import Spec

__all__ = ["Gate", "Gated", "as_gated", "by_triton", "gated", "gated_linear", "gated_of", "run"]

Gate = Literal["first", "second"]
"""Which half of a packed tensor is the gate's preactivation."""

LANES = 1024
"""Elements per Triton program."""
NARROWEST = 128
"""Lanes of a program in one row at least, where a row has as many."""


def gated(spec: Spec | Gated, *values: Tensor, dim: int = -1, gate: Gate = "first") -> Tensor:
    """The gate's output for every element, saving no more than the inputs for the backward pass.

    Args:
        spec: one input or two, the gate's preactivation first, and one output, elementwise. Inside
            `torch.compile` pass `gated_of(spec)`, made outside.
        values: a tensor for each input, all of one shape; or one tensor that packs the two along
            `dim`, of twice the size there.
        dim: where a packed tensor is halved.
        gate: which half is the gate's.

    Returns:
        The output, of the shape of one input and its dtype.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    known = as_gated(spec)
    _check_gate(gate)
    values = tuple(launch.check_floating(f"values[{k}]", v) for k, v in enumerate(values))
    if len(values) == 1 and len(known.inputs) == 2:
        axis = _check_packed(values[0], dim)
    else:
        _check_alike(known, values)
        axis = -1
    lonely = values[0].dim() == (-axis if len(values) < len(known.inputs) else 0)
    given = [v.unsqueeze(0) if lonely else v for v in values]
    y = GATED(known.text, given, axis, gate == "second")[0]
    return y.squeeze(0) if lonely else y


def gated_linear(
    spec: Spec | Gated,
    packed: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gate: Gate = "first",
) -> Tensor:
    """The gate's output through a linear map; saves the arguments alone for the backward pass.

    The same as `F.linear(gated(spec, packed, gate=gate), weight, bias)`, which saves the product
    besides. The backward pass computes it again, for the gradient of the weight.

    Args:
        spec: as in `gated`.
        packed: (..., 2*H), or (..., H) where the gate has one input.
        weight: (O, H).
        bias: (O,).
        gate: which half of `packed` is the gate's.

    Returns:
        (..., O). Under autocast weight and bias are rounded to its type, and so is the product.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    known = as_gated(spec)
    _check_gate(gate)
    given = {"packed": packed, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, value in given.items():
        launch.check_floating(name, value)
    _check_linear(known, packed, weight, bias)
    kind = packed.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    else:
        _check_one_dtype(given)
    flat = packed.dim() == 2
    rows = packed if flat else packed.reshape(-1, packed.shape[-1])
    y = GATED_LINEAR(known.text, rows, weight, bias, gate == "second")[0]
    return y if flat else y.view(*packed.shape[:-1], weight.shape[0])


# ---- what both operators do --------------------------------------------------------------------


def _named(known: Gated, values: Sequence[Tensor], dim: int, second: bool) -> dict[str, Tensor]:
    """{input: its tensor}, a packed one halved."""
    if len(values) < len(known.inputs):
        values = values[0].chunk(2, dim)
        values = values[::-1] if second else values
    return dict(zip(known.inputs, values, strict=True))


def as_gated(spec: Spec | Gated) -> Gated:
    """`gated_of(spec)`, or what is one already.

    Raises:
        TypeError: a Spec inside of `torch.compile`, which can't trace what reads it; or neither.
        ValueError: a Spec that is no gate over features.
    """
    if isinstance(spec, Gated):
        return spec
    if torch.compiler.is_compiling():
        raise TypeError("spec: expected gated_of(spec), made outside of torch.compile, got a Spec")
    return gated_of(spec)


def run(known: Gated, what: str, given: Mapping[str, Tensor], filled: Mapping[str, Tensor]) -> None:
    """Fill the results of one of the gate's programs, where they are.

    Args:
        known: the gate.
        what: the program: "ahead", "back" or "back_again", as `Gated` has them.
        given: {name: what it reads}, all of one shape of two axes or more.
        filled: {name: what it writes}, of the same shape.
    """
    if by_triton(next(iter(filled.values()))):
        _launch(*known.texts[what], given, filled)
    else:
        blocks.run(getattr(known, what), given, filled)


def by_triton(value: Tensor) -> bool:
    """Whether a generated kernel runs where this tensor is."""
    return value.is_cuda and launch.installed()


def _launch(
    text: str, spec: Spec, given: Mapping[str, Tensor], filled: Mapping[str, Tensor]
) -> None:
    """Run the kernel of `spec` over rows."""
    given = {v: given[v] for v in map(str, spec.inputs)}
    filled = {v: filled[v] for v in map(str, spec.outputs)}
    matrices = list(blocks.as_rows(given, filled).values())
    rows, columns = matrices[-1].shape
    lanes = width(columns)
    programs = -(-rows // (LANES // lanes)) * -(-columns // lanes)
    arguments = [*matrices, *(m.stride(0) for m in matrices), rows, columns]
    kernel = launch.load(text)[f"{spec.name}_rows"]
    dtype = launch.in_triton(matrices[-1].dtype)
    launch.run(kernel, programs, arguments, BLOCK_=LANES, WIDTH_=lanes, DTYPE_=dtype)


def width(columns: int) -> int:
    """Lanes of a program in one row, so that few of them lie behind its end."""
    if columns <= NARROWEST:
        return 1 << max(0, columns - 1).bit_length()
    sizes = [LANES >> k for k in range(4)]
    return min(sizes, key=lambda size: (-(-columns // size) * size, -size))


# ---- gatelib::gated ----------------------------------------------------------------------------


def _forward(spec: str, values: list[Tensor], dim: int, second: bool) -> list[Tensor]:
    known = gated_of_text(spec)
    parts = _named(known, values, dim, second)
    part = parts[known.inputs[0]]
    y = part.new_empty(part.shape)
    run(known, "ahead", parts, {known.output: y})
    return [y]


def _shapes(spec: str, values: list[Tensor], dim: int, second: bool) -> list[Tensor]:
    part = next(iter(_named(gated_of_text(spec), values, dim, second).values()))
    return [part.new_empty(part.shape)]


def _backward(
    d_results: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    needs: Sequence[bool],
    spec: str,
    values: list[Tensor],
    dim: int,
    second: bool,
) -> list[Tensor]:
    """Gradients of all values."""
    known, (d_y,) = gated_of_text(spec), d_results
    assert d_y is not None
    found = [v.new_empty(v.shape) for v in values]
    parts = _named(known, found, dim, second).values()
    given = {known.seed: d_y} | _named(known, values, dim, second)
    run(known, "back", given, dict(zip(known.adjoints, parts, strict=True)))
    return found


def _plain(spec: str, values: list[Tensor], dim: int, second: bool) -> list[Tensor]:
    known, dtype = gated_of_text(spec), values[0].dtype
    wide = [v.to(launch.compute_dtype(dtype)) for v in values]
    y: Tensor = known.in_torch(*_named(known, wide, dim, second).values())
    return [y.to(dtype)]


GATED = Operator(
    "gated",
    forward=_forward,
    shapes=_shapes,
    results=lambda *arguments: 1,
    backward=_backward,
    kept=lambda outputs, count: [],
    plain=_plain,
    rows={"values": 0},
    row_axes=lambda *arguments: [0],
)


# ---- gatelib::gated_linear ---------------------------------------------------------------------


def _forward_linear(
    spec: str, packed: Tensor, weight: Tensor, bias: Tensor | None, second: bool
) -> list[Tensor]:
    known = gated_of_text(spec)
    parts = _named(known, [packed], -1, second)
    product = packed.new_empty(len(packed), weight.shape[1], dtype=weight.dtype)
    run(known, "ahead", parts, {known.output: product})
    with torch.autocast(packed.device.type, enabled=False):
        return [F.linear(product, weight, bias)]


def _shapes_linear(
    spec: str, packed: Tensor, weight: Tensor, bias: Tensor | None, second: bool
) -> list[Tensor]:
    return [weight.new_empty(packed.shape[0], weight.shape[0])]


def _backward_linear(
    d_results: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    needs: Sequence[bool],
    spec: str,
    packed: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    second: bool,
) -> list[Tensor]:
    """Gradients of packed, weight and bias."""
    known, (d_out,) = gated_of_text(spec), d_results
    assert d_out is not None
    parts = _named(known, [packed], -1, second)
    d_packed, product = packed.new_empty(packed.shape), None
    filled = dict(zip(known.adjoints, _named(known, [d_packed], -1, second).values(), strict=True))
    with torch.autocast(packed.device.type, enabled=False):
        given = {known.seed: torch.mm(d_out, weight)} | parts
        product = packed.new_empty(len(packed), weight.shape[1], dtype=weight.dtype)
        run(known, "back_again", given, filled | {known.output: product})
        d_weight = torch.mm(d_out.t(), product)
        d_bias = [] if bias is None else [d_out.sum(0)]
    return [d_packed, d_weight, *d_bias]


def _plain_linear(
    spec: str, packed: Tensor, weight: Tensor, bias: Tensor | None, second: bool
) -> list[Tensor]:
    (y,) = _plain(spec, [packed], -1, second)
    with torch.autocast(packed.device.type, enabled=False):
        return [F.linear(y.to(weight.dtype), weight, bias)]


GATED_LINEAR = Operator(
    "gated_linear",
    forward=_forward_linear,
    shapes=_shapes_linear,
    results=lambda *arguments: 1,
    backward=_backward_linear,
    kept=lambda outputs, count: [],
    plain=_plain_linear,
    rows={"packed": 0},
    row_axes=lambda *arguments: [0],
)


# ---- checks ------------------------------------------------------------------------------------


def _check_gate(gate: object) -> None:
    if gate not in get_args(Gate):
        raise ValueError(f"gate: expected 'first' or 'second', got {gate!r}")


def _check_packed(packed: Tensor, dim: int) -> int:
    """The axis that is halved, counted from the end."""
    if not -packed.dim() <= dim < packed.dim():
        raise ValueError(f"dim: expected an axis of {tuple(packed.shape)}, got {dim}")
    if packed.shape[dim] % 2:
        raise ValueError(
            f"values[0]: expected an even size along dim {dim}, got {tuple(packed.shape)}"
        )
    return dim if dim < 0 else dim - packed.dim()


def _check_alike(known: Gated, values: Sequence[Tensor]) -> None:
    if len(values) != len(known.inputs):
        names = ", ".join(known.inputs)
        raise TypeError(f"values: expected one tensor for each of {names}, got {len(values)}")
    first = values[0]
    for k, value in enumerate(values):
        launch.check_like(f"values[{k}]", value, first.shape, "values[0]", first)
        launch.check_dtype(f"values[{k}]", value, [first.dtype], "values[0]")


def _check_linear(known: Gated, packed: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.dim() != 2:
        raise ValueError(f"weight: expected (O, H), got {tuple(weight.shape)}")
    outputs, size = weight.shape
    columns = size * len(known.inputs)
    if packed.dim() < 1 or packed.shape[-1] != columns:
        raise ValueError(
            f"packed: expected (..., {columns}) to go with weight {tuple(weight.shape)}, got "
            f"{tuple(packed.shape)}"
        )
    launch.check_like("weight", weight, weight.shape, "packed", packed)
    if bias is not None:
        launch.check_like("bias", bias, (outputs,), "weight", weight)


def _check_one_dtype(given: Mapping[str, Tensor]) -> None:
    dtype = given["packed"].dtype
    for name, value in given.items():
        launch.check_dtype(name, value, [dtype], "packed")
