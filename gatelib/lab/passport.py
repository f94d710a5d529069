"""The passport of a layer: what it costs and how it remembers, counted rather than timed.

Imports torch and the other instruments.
Must not import the floors below; it inspects whatever layer it is given.

Costs are counted on the operators that torch runs for one forward and one backward pass, with the
vendor's fused CPU library switched off, and the rest is measured in float64 and rounded, so that
every machine prints the same passport.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._library.custom_ops import _maybe_get_opdef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from gatelib.lab.instruments import half_life, jacobian_spectrum, saturation
from gatelib.lab.record import Recording, record

__all__ = ["MIME", "Cost", "Passport", "passport"]

MIME = "application/vnd.gates.passport+json"
KEEP = ("f", "z")
"""Gates that multiply the old memory: an LSTM's and a GRU's."""


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

    saved_bytes: kept for the backward pass, without parameters and input.
    half_life: steps until half of a memory is left, by layer; see `half_life`.
    saturated: share of each gate's values within 0.05 of an end of its range.
    spectrum: largest, median and smallest singular value; see `jacobian_spectrum`. What is lost
        in rounding beside the largest is 0.
    """

    name: str
    input_shape: tuple[int, ...]
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
        rows = [
            ("input", " × ".join(map(str, self.input_shape))),
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


def _formula(packet: Any) -> Any:
    """How torch counts the FLOPs of an operator, or of its namesake that doesn't work in place."""
    apart = getattr(torch.ops.aten, packet.__name__.removesuffix("_"), None)
    return flop_registry.get(packet, flop_registry.get(apart))


def _parts(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operator made of others, each of which is counted; or NotImplemented."""
    own = _maybe_get_opdef(func)
    if own is not None:
        return own._init_fn(*args, **kwargs)
    if func.namespace not in ("aten", "prim", "prims"):
        raise ValueError(f"layer: expected operators that can be counted, got {func}")
    return func.decompose(*args, **kwargs)


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


def _counted(layer: nn.Module, x: Tensor) -> tuple[Cost, Cost, int]:
    """The cost of a forward and a backward pass, and the bytes saved between them."""
    known = {p.untyped_storage().data_ptr() for p in [*layer.parameters(), *layer.buffers(), x]}
    saved: dict[int, Tensor] = {}

    def pack(value: Tensor) -> Tensor:
        if value.untyped_storage().data_ptr() not in known:
            saved[value.untyped_storage().data_ptr()] = value
        return value

    forward, backward = _Counter(), _Counter()
    with _plain_operators():
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v), forward:
            result = layer(x)
        inputs = [p for p in [*layer.parameters(), x] if p.requires_grad]
        output = _output(result)
        seed = torch.ones_like(output)
        with backward:
            torch.autograd.grad(output, inputs, seed, allow_unused=True)
    size = sum(value.untyped_storage().nbytes() for value in saved.values())
    return forward.cost, backward.cost, size


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def _recorded(layer: nn.Module, x: Tensor) -> Recording:
    try:
        with torch.no_grad(), record(layer) as gates:
            layer(x)
    except TypeError:
        return Recording()
    return gates


def _memory(gates: Recording, keep: str | None) -> dict[str, float]:
    found = {}
    for path, layer in gates.items():
        name = keep or next((k for k in KEEP if k in layer), None)
        if name in layer:
            found[path] = _rounded(half_life(layer[name]))
    if keep is not None and not found:
        names = sorted({name for layer in gates.values() for name in layer})
        raise ValueError(f"keep: expected a gate of {names}, got {keep!r}")
    return found


def _saturated(layer: dict[str, Any]) -> dict[str, float]:
    """The saturation of each value that is bounded by 1, states apart."""
    bounded = {k: v for k, v in layer.items() if k not in ("c", "h") and np.nanmax(abs(v)) <= 1}
    return {name: round(saturation(value), 2) for name, value in bounded.items()}


def _spectrum(layer: nn.Module, x: Tensor) -> dict[str, float]:
    values = jacobian_spectrum(layer, x)
    values = np.where(values > values[0] * np.finfo(np.float64).eps * len(values), values, 0)
    named = {"largest": values[0], "median": np.median(values), "smallest": values[-1]}
    return {which: _rounded(float(value)) for which, value in named.items()}


def passport(
    layer: nn.Module,
    example: Tensor,
    *,
    name: str | None = None,
    keep: str | None = None,
    spectrum: bool = True,
) -> Passport:
    """Inspect a layer at an example input: cost, memory, saturation, Jacobian spectrum.

    Args:
        layer: called as `layer(example)`; on CPU.
        example: a batch of inputs; for recurrent layers (B, T, D) or as the layer wants it.
        name: the title; by default the class's name.
        keep: the gate whose half-life is told; by default "f" or "z", where there is one.
        spectrum: False leaves out the Jacobian, which costs one backward pass of a large batch.

    Raises:
        TypeError: `layer` is no module, or `example` no floating-point tensor.
        ValueError: `layer` is not on CPU, `keep` names no gate, or the Jacobian is too large.
    """
    if not isinstance(layer, nn.Module):
        raise TypeError(f"layer: expected a torch.nn.Module, got {type(layer).__name__}")
    if not (isinstance(example, Tensor) and example.is_floating_point()):  # type: ignore[redundant-expr]
        raise TypeError(f"example: expected a tensor of floats, got {type(example).__name__}")
    devices = {p.device.type for p in [*layer.parameters(), example]}
    if devices != {"cpu"}:
        raise ValueError(f"layer: expected layer and example on cpu, got {sorted(devices)}")
    x = example.detach().clone().requires_grad_()
    forward, backward, saved = _counted(layer, x)
    precise, wide = copy.deepcopy(layer).double(), example.detach().double()
    gates = _recorded(precise, wide)
    sizes = [p.numel() for p in layer.parameters()]
    return Passport(
        name=name or type(layer).__name__,
        input_shape=tuple(example.shape),
        parameters=sum(sizes),
        parameter_bytes=_bytes(list(layer.parameters())),
        forward=forward,
        backward=backward,
        saved_bytes=saved,
        half_life=_memory(gates, keep),
        saturated={path: _saturated(layer) for path, layer in gates.items()},
        spectrum=_spectrum(precise, wide) if spectrum else {},
    )
