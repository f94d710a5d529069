"""A differentiable torch operator, declared once: schema, shapes, derivatives, vmap.

Imports torch.
Must not import any other module of gatelib.

An operator is opaque to torch: one node of a compiled or exported graph. `Operator` registers
`gatelib::NAME` and `gatelib::NAME_backward`, and everything that torch asks about the two.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack
from torch.autograd import forward_ad

__all__ = ["Operator"]

Arguments = tuple[Any, ...]
Lengths = list[int | None]
"""For each argument, how many values its list has; None for one that is no list."""

OWN = (Tensor, torch.nn.Parameter)
"""torch's own classes of tensors; a subclass may see every operator."""


@dataclass(frozen=True)
class Operator:
    """`gatelib::NAME`; call it with the arguments of `forward`.

    A **leaf** is a floating-point tensor among the arguments, those in lists too, in their order.

    Args:
        name: what stands behind `gatelib::`.
        forward: its annotated arguments are the schema; returns a list of tensors, the results and
            then what is saved for the backward pass. It never returns an argument or a view of one.
        shapes: the same arguments; empty tensors of the shape, type and strides that `forward`
            gives.
        results: the same arguments; how many of the list are results. The rest has no gradient.
        backward: (d_results, kept, needs, *arguments) → the gradient of each leaf, or None where
            `needs`, one bool a leaf, says that nobody wants it. A result whose gradient is 0 has
            None in `d_results`, but never all of them.
        kept: (outputs, number of results) → those that `backward` needs.
        plain: the same arguments → the results, by operations that torch can differentiate. None
            where there is no such path, and so no second derivative.
        rows: {argument: its axis of examples}, and `row_axes`: the same arguments → that axis of
            each of the list, None for one without. Where vmap maps these arguments alone, its axis
            becomes part of theirs; otherwise, and for the backward pass, the operator runs once
            for each index.

    Where nobody looks at the graph (no compiler, transform or mode of torch, tensors of torch's own
    class) a call takes a shorter way to the same functions, without the dispatcher.

    A first backward pass calls NAME_backward. Where a graph of the gradients is asked for
    (`create_graph`), or where torch maps over the gradients that arrive (`is_grads_batched`,
    `jacobian(vectorize=True)`), it runs `plain` again on aliases of the leaves and differentiates
    that: no path from one leaf to another outside the operator is counted, and yet the gradients
    depend on the leaves.
    """

    name: str
    forward: Callable[..., list[Tensor]]
    shapes: Callable[..., list[Tensor]]
    results: Callable[..., int]
    backward: Callable[..., Sequence[Tensor | None]]
    kept: Callable[[Sequence[Tensor], int], Sequence[Tensor]]
    plain: Callable[..., Sequence[Tensor]] | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    row_axes: Callable[..., Sequence[int | None]] | None = None

    def __post_init__(self) -> None:
        schema = torch.library.infer_schema(self.forward, mutates_args=())
        arguments = schema[1 : schema.rindex(") -> ")]
        ahead = "Tensor?[] d_results, Tensor[] kept, bool[] needs, "
        once = self._define("", schema, self.forward)
        back = self._define("_backward", f"({ahead}{arguments}) -> Tensor[]", self._run_backward)
        once.register_fake(self.shapes)
        back.register_fake(self._shapes_backward)
        once.register_autograd(self._differentiate, setup_context=self._keep)
        once.register_vmap(self._mapped)
        back.register_vmap(lambda info, dims, *given: _looped(back, info.batch_size, dims, given))
        object.__setattr__(self, "_once", once)
        object.__setattr__(self, "_back", back)

    def _define(self, suffix: str, schema: str, run: Callable[..., Any]) -> Any:
        define = torch.library.custom_op
        return define(f"gatelib::{self.name}{suffix}", run, mutates_args=(), schema=schema)

    def __call__(self, *arguments: Any) -> list[Tensor]:
        """What `forward` gives, differentiable in the leaves."""
        once: Callable[..., list[Tensor]] = self._once  # type: ignore[attr-defined]
        return once(*arguments) if torch.compiler.is_compiling() else self._run(once, arguments)

    def _run(self, once: Callable[..., list[Tensor]], arguments: Arguments) -> list[Tensor]:
        flat, lengths = _flat(arguments)
        places = [at for at, v in enumerate(flat) if isinstance(v, Tensor)]
        given = [flat[at] for at in places]
        if not _unseen(given):
            return once(*arguments)
        if not torch.is_grad_enabled() or not any(v.requires_grad for v in given):
            return self.forward(*arguments)
        fixed = [None if isinstance(v, Tensor) else v for v in flat]
        return list(_Straight.apply(self, fixed, places, lengths, *given))  # type: ignore[no-untyped-call]

    # ---- first derivative -------------------------------------------------------------------

    def _run_backward(
        self, d_results: list[Tensor | None], kept: list[Tensor], needs: list[bool], *arguments: Any
    ) -> list[Tensor]:
        found = self.backward(d_results, kept, needs, *arguments)
        wanted = zip(found, needs, strict=True)
        return [d.contiguous() for d, needed in wanted if needed and d is not None]

    def _shapes_backward(
        self, d_results: list[Tensor | None], kept: list[Tensor], needs: list[bool], *arguments: Any
    ) -> list[Tensor]:
        leaves = filter(_is_leaf, _flat(arguments)[0])
        return [v.new_empty(v.shape) for v, needed in zip(leaves, needs, strict=True) if needed]

    def _keep(self, ctx: Any, inputs: Arguments, output: list[Tensor]) -> None:
        ctx.set_materialize_grads(False)
        flat, ctx.lengths = _flat(inputs)
        ctx.fixed = [None if isinstance(v, Tensor) else v for v in flat]
        ctx.places = [at for at, v in enumerate(flat) if isinstance(v, Tensor)]
        ctx.count = self.results(*inputs)
        given = [flat[at] for at in ctx.places]
        ctx.save_for_backward(*given, *self.kept(output, ctx.count))

    def _differentiate(self, ctx: Any, gradients: Sequence[Tensor | None]) -> Arguments:
        """The gradient for each argument, nested as the arguments are."""
        given, kept = _parted(ctx.saved_tensors, len(ctx.places))
        flat = _placed(ctx.fixed, ctx.places, given)
        asked, arrived = _flat(ctx.needs_input_grad)[0], list(gradients[: ctx.count])
        return tuple(_nested(self._found(flat, ctx.lengths, asked, kept, arrived), ctx.lengths))

    def _found(
        self,
        flat: list[Any],
        lengths: Lengths,
        asked: Sequence[bool],
        kept: list[Tensor],
        arrived: list[Tensor | None],
    ) -> list[Tensor | None]:
        """The gradient of each of the flat arguments that is asked for; None for the others."""
        leaves = [at for at, v in enumerate(flat) if _is_leaf(v)]
        wanted = [at for at in leaves if asked[at]]
        found: Iterable[Tensor | None] = [None] * len(wanted)
        if torch.is_grad_enabled() or any(map(_is_mapped_over, arrived)):
            found = self._again(flat, lengths, wanted, arrived)
        elif any(d is not None for d in arrived):
            needs = [at in wanted for at in leaves]
            tensors = [v for v in (*flat, *kept, *arrived) if isinstance(v, Tensor)]
            back = self._run_backward if _unseen(tensors) else self._back  # type: ignore[attr-defined]
            found = back(arrived, kept, needs, *_nested(flat, lengths))
        return _placed([None] * len(flat), wanted, found)

    # ---- second derivative ------------------------------------------------------------------

    def _again(
        self, flat: list[Any], lengths: Lengths, wanted: list[int], arrived: Sequence[Tensor | None]
    ) -> Sequence[Tensor | None]:
        """The same gradients, found by differentiating `plain` on aliases of the wanted leaves."""
        if self.plain is None:
            raise NotImplementedError(
                f"create_graph: the kernel of gatelib::{self.name} has no second derivative; "
                "use impl='reference', or don't compile the module"
            )
        with torch.enable_grad():
            own = {at: flat[at].view_as(flat[at]) for at in wanted}
            values = [own.get(at, value) for at, value in enumerate(flat)]
            results = self.plain(*_nested(values, lengths))
        pairs = zip(results, arrived, strict=True)
        ends = [(r, d) for r, d in pairs if d is not None and r.requires_grad]
        if not ends:
            return [None] * len(wanted)
        outputs, seeds = zip(*ends, strict=True)
        again = torch.is_grad_enabled()
        inputs = list(own.values())
        return torch.autograd.grad(outputs, inputs, seeds, create_graph=again, allow_unused=True)

    # ---- vmap -------------------------------------------------------------------------------

    def _mapped(self, info: Any, dims: Arguments, *arguments: Any) -> tuple[list[Tensor], Any]:
        """The rule for `torch.vmap`: one call where examples alone are mapped."""
        names, size = inspect.signature(self.forward).parameters, info.batch_size
        mapped = {name for name, dim in zip(names, dims, strict=True) if _any(dim)}
        if self.row_axes is None or not mapped <= self.rows.keys() or size == 0:
            return _looped(self, size, dims, arguments)
        triples = zip(names, arguments, dims, strict=True)
        found = self(*(_joined(value, dim, self.rows.get(n), size) for n, value, dim in triples))
        axes = list(self.row_axes(*arguments))
        parted = [
            v if axis is None else _split(v, axis, size)
            for v, axis in zip(found, axes, strict=True)
        ]
        return parted, axes


class _Straight(torch.autograd.Function):
    """The same operator as a node of autograd alone."""

    @staticmethod
    def forward(
        ctx: Any,
        operator: Operator,
        fixed: list[Any],
        places: list[int],
        lengths: Lengths,
        *given: Tensor,
    ) -> tuple[Tensor, ...]:
        arguments = _nested(_placed(fixed, places, given), lengths)
        outputs = operator.forward(*arguments)
        ctx.operator, ctx.fixed, ctx.places, ctx.lengths = operator, fixed, places, lengths
        ctx.count = operator.results(*arguments)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*outputs[ctx.count :])
        ctx.save_for_backward(*given, *operator.kept(outputs, ctx.count))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        given, kept = _parted(ctx.saved_tensors, len(ctx.places))
        flat = _placed(ctx.fixed, ctx.places, given)
        asked = _placed([False] * len(flat), ctx.places, ctx.needs_input_grad[4:])
        arrived = list(gradients[: ctx.count])
        found = ctx.operator._found(flat, ctx.lengths, asked, kept, arrived)
        return (None, None, None, None, *(found[at] for at in ctx.places))


def _unseen(tensors: Sequence[Tensor]) -> bool:
    """Whether the operator needs no form that torch knows: nothing traces, maps or wraps it."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    if peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return False
    if torch._C._len_torch_dispatch_stack():
        return False
    return all(type(v) in OWN and not v.is_meta and not _is_mapped_over(v) for v in tensors)


def _flat(arguments: Sequence[Any]) -> tuple[list[Any], Lengths]:
    """All values, those in lists one by one. (torch's pytree takes ten times as long.)"""
    flat, lengths = list[Any](), Lengths()
    for value in arguments:
        nested = isinstance(value, list | tuple)
        lengths.append(len(value) if nested else None)
        flat.extend(value) if nested else flat.append(value)
    return flat, lengths


def _nested(flat: Iterable[Any], lengths: Lengths) -> Arguments:
    """The way back from `_flat`."""
    values = iter(flat)
    return tuple(next(values) if n is None else list(islice(values, n)) for n in lengths)


def _looped(
    operator: Callable[..., list[Tensor]], size: int, dims: Arguments, arguments: Arguments
) -> tuple[list[Tensor], list[int]]:
    """One call for each index of the mapped axis, stacked; right for every operator."""
    flat, lengths = _flat(arguments)
    pairs = list(zip(flat, _flat(dims)[0], strict=True))

    def at(index: int) -> list[Tensor]:
        row = [v if dim is None else _row(v, dim, index) for v, dim in pairs]
        return operator(*_nested(row, lengths))

    columns = zip(*(at(index) for index in range(max(size, 1))), strict=True)
    stacked = [torch.stack(column)[:size] for column in columns]
    return stacked, [0] * len(stacked)


def _row(value: Tensor, dim: int, index: int) -> Tensor:
    """One row of a mapped axis; of an empty axis, a row of zeros, whose result has the shape."""
    if value.shape[dim] > 0:
        return value.select(dim, index)
    return value.new_zeros(value.shape[:dim] + value.shape[dim + 1 :])


def _joined(value: Any, dim: Any, axis: int | None, size: int) -> Any:
    """A value whose mapped axis is made part of its axis of examples; repeated if not mapped."""
    if axis is None or value is None:
        return value
    if isinstance(value, list | tuple):
        return [_joined(v, d, axis, size) for v, d in zip(value, dim, strict=True)]
    if dim is None:
        shape = (*value.shape[:axis], size, *value.shape[axis:])
        return value.unsqueeze(axis).expand(shape).flatten(axis, axis + 1)
    return value.movedim(dim, axis).flatten(axis, axis + 1)


def _split(value: Tensor, axis: int, size: int) -> Tensor:
    """The way back: the axis of examples as two, the mapped one first."""
    shape = value.shape
    return value.reshape(*shape[:axis], size, shape[axis] // size, *shape[axis + 1 :])


def _any(dims: int | Sequence[int | None] | None) -> bool:
    return any(dim is not None for dim in _flat([dims])[0])


def _parted(values: Sequence[Tensor], count: int) -> tuple[list[Tensor], list[Tensor]]:
    return list(values[:count]), list(values[count:])


def _placed(flat: Sequence[Any], places: Iterable[int], values: Iterable[Any]) -> list[Any]:
    """A copy of the flat arguments with values in some places."""
    filled = list(flat)
    for at, value in zip(places, values, strict=True):
        filled[at] = value
    return filled


def _is_leaf(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_mapped_over(value: Tensor | None) -> bool:
    """Whether torch's older vmap, that of `is_grads_batched`, maps over this gradient."""
    return value is not None and bool(is_legacy_batchedtensor(value))
