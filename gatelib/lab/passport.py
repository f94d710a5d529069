"""The passport of a layer: what it costs and how it remembers, counted rather than timed.

Imports NumPy, SymPy, torch, gatelib.spec and the other instruments.
Must not import gatelib.nn; it inspects whatever layer it is given.

Costs are counted on the operators that torch runs for one forward and one backward pass, with the
vendor's fused CPU library switched off, and the rest is measured in float64 and rounded, so that
every machine prints the same passport.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

import numpy as np
import torch
from sympy import Expr
from torch import Tensor, nn
from torch._library.custom_ops import _maybe_get_opdef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from gatelib.lab.instruments import half_life, jacobian_spectrum, saturation
from gatelib.lab.readers import Role, reader_of
from gatelib.lab.record import Recording, record
from gatelib.spec import Spec, symbol

__all__ = ["MIME", "Cost", "Passport", "passport"]

MIME = "application/vnd.gates.passport+json"


@dataclass(frozen=True)
class Cost:
    """What one pass costs.

    flops: floating-point operations of matrix products and convolutions; a multiply-add is 2.
    bytes: read and written if every operator reads its operands and writes its result once.
    """

    flops: int
    bytes: int


@dataclass(frozen=True)
class Passport:
    """What a layer costs (exact) and how it remembers at this input (measured, rounded).

    input_shape: of the only input; a tuple of shapes where there are several.
    saved_bytes: kept for the backward pass, without parameters and input.
    half_life: steps until half of a memory is left, by layer; see `half_life`.
    saturated: share of each gate's values within 0.05 of an end of its range; states and what
        exceeds 1 have no ends.
    spectrum: largest, median and smallest singular value; see `jacobian_spectrum`. What is lost
        in rounding beside the largest is 0.
    """

    name: str
    input_shape: tuple[Any, ...]
    parameters: int
    parameter_bytes: int
    forward: Cost
    backward: Cost
    saved_bytes: int
    half_life: dict[str, float] = field(default_factory=dict)
    saturated: dict[str, dict[str, float]] = field(default_factory=dict)
    spectrum: dict[str, float] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str]]:
        """The passport as pairs of text: what, and how much."""
        several = self.input_shape and isinstance(self.input_shape[0], tuple)
        shapes = self.input_shape if several else (self.input_shape,)
        rows = [
            ("input", ", ".join(" × ".join(map(str, shape)) for shape in shapes)),
            ("parameters", f"{self.parameters:,}"),
            ("parameter bytes", f"{self.parameter_bytes:,}"),
            ("FLOPs forward", f"{self.forward.flops:,}"),
            ("FLOPs backward", f"{self.backward.flops:,}"),
            ("bytes moved forward", f"{self.forward.bytes:,}"),
            ("bytes moved backward", f"{self.backward.bytes:,}"),
            ("saved activations, bytes", f"{self.saved_bytes:,}"),
        ]
        rows += [(f"half-life {path}, steps", f"{n:g}") for path, n in self.half_life.items()]
        for path, shares in self.saturated.items():
            text = ", ".join(f"{gate} {share:.0%}" for gate, share in shares.items())
            rows += [(f"saturated {path}", text)] if text else []
        rows += [(f"Jacobian, {which}", f"{value:g}") for which, value in self.spectrum.items()]
        return rows

    def __repr__(self) -> str:
        rows = self.rows()
        width = max(len(label) for label, _ in rows)
        return "\n".join([self.name, *(f"{label:<{width}}  {value}" for label, value in rows)])

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><th scope="row">{escape(label)}</th><td>{escape(value)}</td></tr>'
            for label, value in self.rows()
        )
        return (
            f'<table class="gates-passport"><caption>{escape(self.name)}</caption>'
            f"<tbody>{rows}</tbody></table>"
        )

    def to_json(self) -> dict[str, Any]:
        """What the site's passport page is made from. No number is infinite or nan."""
        data = asdict(self)
        measured = {key: data.pop(key) for key in ("half_life", "saturated", "spectrum")}
        measured["half_life"] = {
            path: value if np.isfinite(value) else "infinite"
            for path, value in measured["half_life"].items()
        }
        name, shape = data.pop("name"), list(data.pop("input_shape"))
        return {
            "version": 1,
            "name": name,
            "input_shape": shape,
            "exact": data,
            "measured": measured,
        }

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        return {"text/plain": repr(self), "text/html": self._repr_html_(), MIME: self.to_json()}


def _bytes(values: Any) -> int:
    return sum(v.numel() * v.element_size() for v in tree_leaves(values) if isinstance(v, Tensor))


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts FLOPs and bytes of every operator that runs inside it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = _formula(func._overloadpacket)
        if formula is None:
            with self:
                inside = _parts(func, args, kwargs)
            if inside is not NotImplemented:
                return inside
        result = func(*args, **kwargs)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=result))
        if not _moves_nothing(func):
            self.bytes += _bytes(result) if _fills(func) else _bytes((args, kwargs, result))
        return result

    @property
    def cost(self) -> Cost:
        return Cost(self.flops, self.bytes)


PRODUCTS = re.compile(r"attention|cdist|fft|gru|linalg_(?!vector_norm)|lstm|rnn|mm(_|$)")
"""Names of operators that multiply matrices, inside, where no formula says how often."""


def _formula(packet: Any) -> Any:
    """How torch counts the FLOPs of an operator, or of its namesake on a GPU or out of place."""
    name = packet.__name__.removesuffix("_").replace("_for_cpu", "")
    return flop_registry.get(packet, flop_registry.get(getattr(torch.ops.aten, name, None)))


def _parts(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operator made of others, each of which is counted; or NotImplemented."""
    own = _maybe_get_opdef(func)
    if own is not None:
        return own._init_fn(*args, **kwargs)
    counted = func.namespace in ("aten", "prim", "prims")
    inside = func.decompose(*args, **kwargs) if counted else NotImplemented
    if inside is NotImplemented and PRODUCTS.search(func._overloadpacket.__name__):
        counted = False
    if not counted:
        raise ValueError(f"layer: expected operators that can be counted, got {func}")
    return inside


EMPTY = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "detach",
    "lift_fresh",
    "_unsafe_view",
}


def _moves_nothing(func: Any) -> bool:
    """Is this a view, or memory that nobody wrote yet?"""
    return func.is_view or func._overloadpacket.__name__ in EMPTY


FILLS = {
    "fill_",
    "full_like",
    "new_full",
    "new_ones",
    "new_zeros",
    "ones_like",
    "zero_",
    "zeros_like",
}


def _fills(func: Any) -> bool:
    """Does this write a constant, and look at no more of its operand than the shape?"""
    return func._overloadpacket.__name__ in FILLS


@contextmanager
def _plain_operators() -> Iterator[None]:
    """Switch oneDNN off, whose recurrent layers are one operator on some processors only."""
    enabled: bool = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


def _output(result: Any) -> Tensor:
    """The first output of a layer that has a gradient: a recurrent layer's whole sequence."""
    tensors = [v for v in tree_leaves(result) if isinstance(v, Tensor) and v.requires_grad]
    if not tensors:
        raise ValueError("layer: expected an output that depends on parameters or input, got none")
    return tensors[0]


def _counted(layer: nn.Module, inputs: list[Tensor]) -> tuple[Cost, Cost, int]:
    """The cost of a forward and a backward pass, and the bytes saved between them."""
    there = [*layer.parameters(), *layer.buffers(), *inputs]
    known = {p.untyped_storage().data_ptr() for p in there}
    saved: dict[int, Tensor] = {}

    def pack(value: Tensor) -> Tensor:
        if value.untyped_storage().data_ptr() not in known:
            saved[value.untyped_storage().data_ptr()] = value
        return value

    forward, backward = _Counter(), _Counter()
    with _plain_operators():
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v), forward:
            result = layer(*inputs)
        wanted = [p for p in [*layer.parameters(), *inputs] if p.requires_grad]
        output = _output(result)
        seed = torch.ones_like(output)
        with backward:
            torch.autograd.grad(output, wanted, seed, allow_unused=True)
    size = sum(value.untyped_storage().nbytes() for value in saved.values())
    return forward.cost, backward.cost, size


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def _recorded(layer: nn.Module, inputs: list[Tensor]) -> Recording:
    if not any(reader_of(module) for module in layer.modules()):
        return Recording()
    with torch.no_grad(), record(layer) as gates:
        layer(*inputs)
    return gates


def _memory(gates: Recording, keep: str | None) -> dict[str, float]:
    """The half-life of each layer whose equations say what keeps its memory, a share of it."""
    found = {}
    for path, layer in gates.items():
        values = _factor(gates.roles[path].keep, layer) if keep is None else layer.get(keep)
        if values is None or (keep is None and not _are_shares(values)):
            continue
        found[path] = _rounded(half_life(values))
    if keep is not None and not found:
        names = sorted({name for layer in gates.values() for name in layer})
        raise ValueError(f"keep: expected a gate of {names}, got {keep!r}")
    return found


def _factor(keep: Expr | None, layer: dict[str, Any]) -> Any:
    """The values of an expression in a layer's recorded values: f, or 1 - z."""
    if keep is None or not {str(v) for v in keep.free_symbols} <= set(layer):
        return None
    if keep.is_Symbol:
        return layer[str(keep)]
    kept = symbol("kept")
    spec = Spec("keep", ((kept, keep),), tuple(sorted(keep.free_symbols, key=str)), (kept,))
    return spec.evaluate(layer)["kept"]


def _are_shares(values: Any) -> bool:
    return bool(np.nanmin(values) >= 0 and np.nanmax(values) <= 1)


def _saturated(layer: dict[str, Any], role: Role) -> dict[str, float]:
    """The saturation of each value that is bounded by 1, states apart."""
    gates = {k: v for k, v in layer.items() if k not in role.free and v.size}
    bounded = {k: v for k, v in gates.items() if np.nanmax(abs(v)) <= 1}
    return {name: round(saturation(value), 2) for name, value in bounded.items()}


def _spectrum(layer: nn.Module, inputs: list[Tensor]) -> dict[str, float]:
    """Empty where the first input holds tokens, which have no derivative."""
    if not inputs[0].is_floating_point():
        return {}
    values = jacobian_spectrum(layer, *inputs)
    values = np.where(values > values[0] * np.finfo(np.float64).eps * len(values), values, 0)
    named = {"largest": values[0], "median": np.median(values), "smallest": values[-1]}
    return {which: _rounded(float(value)) for which, value in named.items()}


def passport(
    layer: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    *,
    name: str | None = None,
    keep: str | None = None,
    spectrum: bool = True,
) -> Passport:
    """Inspect a layer at an example input: cost, memory, saturation, Jacobian spectrum.

    Args:
        layer: called as `layer(example)`; on CPU.
        example: a batch of inputs; for recurrent layers (B, T, D) or as the layer wants it, for a
            model that begins with an embedding (B, T) tokens. A tuple for a layer of several
            inputs, called as `layer(*example)`.
        name: the title; by default the class's name.
        keep: the gate whose half-life is told; by default the one that multiplies the old memory
            in the cell's equations, where there is one.
        spectrum: False leaves out the Jacobian, which costs one backward pass of a large batch.
            It is empty for tokens, which have no derivative.

    Raises:
        TypeError: `layer` is no module, or `example` no tensor of floats or tokens.
        ValueError: `layer` is not on CPU, `keep` names no gate, or the Jacobian is too large.
    """
    _check_options(layer, name, keep, spectrum)
    given = _checked_inputs(layer, example)
    own = [v.detach().clone().requires_grad_(v.is_floating_point()) for v in given]
    forward, backward, saved = _counted(layer, own)
    precise = copy.deepcopy(layer).double()
    wide = [v.detach().double() if v.is_floating_point() else v for v in given]
    gates = _recorded(precise, wide)
    shapes = tuple(tuple(v.shape) for v in given)
    sizes = [p.numel() for p in layer.parameters()]
    return Passport(
        name=name or type(layer).__name__,
        input_shape=shapes if len(shapes) > 1 else shapes[0],
        parameters=sum(sizes),
        parameter_bytes=_bytes(list(layer.parameters())),
        forward=forward,
        backward=backward,
        saved_bytes=saved,
        half_life=_memory(gates, keep),
        saturated={path: _saturated(layer, gates.roles[path]) for path, layer in gates.items()},
        spectrum=_spectrum(precise, wide) if spectrum else {},
    )


def _check_options(layer: object, name: object, keep: object, spectrum: object) -> None:
    if not isinstance(layer, nn.Module):
        raise TypeError(f"layer: expected a torch.nn.Module, got {type(layer).__name__}")
    for argument, text in (("name", name), ("keep", keep)):
        if text is not None and not isinstance(text, str):
            raise TypeError(f"{argument}: expected a string or None, got {type(text).__name__}")
    if not isinstance(spectrum, bool):
        raise TypeError(f"spectrum: expected True or False, got {type(spectrum).__name__}")


def _checked_inputs(layer: nn.Module, example: Any) -> list[Tensor]:
    """The inputs as a list: tensors of floats or of tokens, on CPU as the layer is."""
    given: list[Any] = list(example) if isinstance(example, tuple | list) else [example]
    for value in given or [example]:
        if not isinstance(value, Tensor) or not (
            value.is_floating_point() or value.dtype in (torch.int64, torch.int32)
        ):
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"example: expected a tensor of floats or of tokens, got {found}")
    devices = {p.device.type for p in [*layer.parameters(), *given]}
    if devices != {"cpu"}:
        raise ValueError(f"layer: expected layer and example on cpu, got {sorted(devices)}")
    return given
