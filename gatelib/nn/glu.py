"""The GLU family as torch layers: GLU, for what is packed already, and the gated MLP.
Imports torch, gatelib.equations.glu, gatelib.kernels.glu, gatelib.spec; check and impl of nn.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.equations.glu import GATED, KINDS
from gatelib.equations.glu import GLU as SIGMOID_GLU
from gatelib.kernels import glu as kernel
from gatelib.nn.check import (
    LOW_PRECISION,
    DtypeError,
    ShapeError,
    check_choice,
    check_dim,
    check_dtype,
    check_features,
    check_flags,
    check_sizes,
    check_tensor,
)
from gatelib.nn.impl import Impl, check_impl, may_need_gradient, takes_reference, traced
from gatelib.spec import Spec

__all__ = ["GLU", "GatedMLP", "Gating", "Half", "gating", "takes_plain"]

Half = kernel.Gate
"""Which half of a packed tensor is the gate's preactivation, "first" or "second"."""

FEW = 2**17
"""Preactivations below which "auto" takes the formula on a CPU: there the fused path saves less
than half a megabyte, and its calls cost more than a tenth of the time (`benchmarks/glu.py`)."""
FEW_ALONE = 2**19
"""The same for a gate without a linear map behind it."""


@dataclass(frozen=True)
class Gating:
    """A Spec of the family, ready for tensors: `a v -> y` with a gate, `a -> y` without."""

    spec: Spec

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is made from its Spec again."""
        return Gating, (self.spec,)

    @functools.cached_property
    def parts(self) -> int:
        """How many preactivations it reads: 2 with a gate, 1 without."""
        return len(self.spec.inputs)

    @functools.cached_property
    def known(self) -> kernel.Gated:
        """The Spec as `gatelib.kernels.glu` takes it."""
        return kernel.gated_of(self.spec)

    @functools.cached_property
    def in_torch(self) -> Callable[..., Tensor]:
        """The Spec as a torch function."""
        return self.known.in_torch

    def packed(self, packed: Tensor, impl: Impl, dim: int = -1, gate: Half = "first") -> Tensor:
        """y of a tensor that holds `a` and, with a gate, `v` along one axis, by either path."""
        if takes_plain(impl, (packed,), FEW_ALONE):
            return self(*self.halves(packed, dim, gate))
        return kernel.gated(self.known, packed, dim=dim, gate=gate)

    def halves(self, packed: Tensor, dim: int = -1, gate: Half = "first") -> tuple[Tensor, ...]:
        """`a` and, with a gate, `v` of a packed tensor."""
        parts = packed.chunk(self.parts, dim)
        return parts if gate == "first" else parts[::-1]

    def __call__(self, *parts: Tensor) -> Tensor:
        """y of `a` and, with a gate, `v`, in their type; low precision is widened between."""
        dtype = parts[0].dtype
        if dtype in LOW_PRECISION:
            return self.in_torch(*(part.float() for part in parts)).to(dtype)
        return self.in_torch(*parts)

    def values(self, *parts: Tensor) -> dict[str, Tensor]:
        """The parts and each value of the Spec by name: to look at, differentiable."""
        named = dict(zip(map(str, self.spec.inputs), parts, strict=True))
        return named | self.spec.exposed.evaluate(named, "torch")


def gating(kind: str | Spec, gated: bool = False) -> Gating:
    """A kind by its name in `gatelib.equations.glu`, or a Spec of one's own, ready for tensors.

    `gated` says that it must have a gate. Raises ValueError for an unknown kind, and for a Spec
    whose inputs are not `a v`, or `a`, whose output isn't `y`, or that looks across the features.
    """
    if not isinstance(kind, Spec):
        check_choice("kind", kind, GATED if gated else KINDS)
    spec = KINDS[kind] if isinstance(kind, str) else kind
    inputs, outputs = ([str(v) for v in side] for side in (spec.inputs, spec.outputs))
    expected = (["a", "v"],) if gated else (["a", "v"], ["a"])
    if inputs not in expected or outputs != ["y"] or not spec.is_elementwise:
        signatures = " or ".join(f"{' '.join(names)} -> y" for names in expected)
        raise ValueError(f"kind: expected an elementwise Spec {signatures}, got {spec.name}")
    made = Gating(spec)
    _ = made.parts, made.in_torch  # now, since torch.compile can't trace what makes them
    return made


def takes_plain(impl: Impl, tensors: Sequence[Tensor | None], few: int) -> bool:
    """Whether to take the formula under autograd: as `takes_reference` says, and under "auto" on a
    CPU where that costs no memory worth it: without a backward pass, or for fewer than `few`
    elements of the first tensor. A compiler is asked for no size, which may be dynamic."""
    if takes_reference(impl, tensors):
        return True
    first = tensors[0]
    if impl != "auto" or first is None or first.device.type != "cpu":
        return False
    small = not torch.compiler.is_compiling() and first.numel() < few
    return small or not may_need_gradient(tensors)


class GLU(nn.Module):
    """Halves its input along one axis, and gates one half by the other: `torch.nn.GLU` and kin.

    With its defaults it is `torch.nn.functional.glu`, to the letter: value first, gate second,
    y = value * sigmoid(gate).

    Args:
        dim: the axis that holds both halves. Of (B, 2C, T), as convolutions have it, that is 1.
        kind: "glu", "gtu", "bilinear", "reglu", "geglu", "geglu_tanh", "swiglu",
            "relu_squared_glu", "gpt_oss", "deepseek_v4", "softcapped" or "situ", as
            `gatelib.equations.glu` has them; or a Spec `a v -> y` of your own.
        gate: which half is the gate's preactivation, "first" or "second". Libraries differ, and no
            shape tells: see `gatelib.nn.convert.glu_layout`.
        impl: "reference" is the Spec's formula under autograd, which saves up to 4 values an
            element. "fused" is one operator that saves its input alone, and computes the rest again
            in the backward pass. "auto" is torch's own operator for the defaults; otherwise fused
            where it saves something worth its calls and can go (see `gatelib.nn.impl`), which on a
            CPU is from 2**19 values on, and reference elsewhere.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `kind`, `gate` or `impl` is unknown, or the Spec is no gate.

    Source: Dauphin et al. 2016, arXiv:1612.08083, eq. 1; Shazeer 2020, arXiv:2002.05202.
    """

    def __init__(
        self,
        dim: int = -1,
        kind: str | Spec = "glu",
        gate: Half = "second",
        *,
        impl: Impl = "auto",
    ) -> None:
        super().__init__()
        check_dim(dim)
        check_choice("gate", gate, ("first", "second"))
        check_impl(impl)
        self.dim, self.gate, self.impl = dim, gate, impl
        self.gating = gating(kind, gated=True)

    def forward(self, input: Tensor) -> Tensor:
        """Gate (..., 2N, ...) to (..., N, ...).

        Raises:
            TypeError: the input is no tensor, or not of floating-point numbers.
            ValueError: it has no such axis, or an odd size along it.
        """
        node = traced(self, input)
        if node is not None:
            return node  # type: ignore[return-value]
        self._check(input)
        if self.impl == "auto" and self.gate == "second" and self.gating.spec == SIGMOID_GLU:
            return F.glu(input, self.dim)
        return self.gating.packed(input, self.impl, self.dim, self.gate)

    def values(self, input: Tensor) -> dict[str, Tensor]:
        """Both halves by name, `a` and `v`, and each value of the Spec: to look at."""
        self._check(input)
        return self.gating.values(*self.gating.halves(input, self.dim, self.gate))

    def _check(self, input: object) -> None:
        value = check_tensor("input", input)
        if not value.is_floating_point():
            raise DtypeError(f"input: expected a floating-point tensor, got {value.dtype}")
        if not -value.dim() <= self.dim < value.dim():
            shape = tuple(value.shape)
            raise ShapeError(f"input: expected a shape with an axis {self.dim} (dim), got {shape}")
        if value.size(self.dim) % 2:
            raise ShapeError(
                f"input: expected an even size along axis {self.dim} (dim), for a gate and a value "
                f"alike, got {value.size(self.dim)} in shape {tuple(value.shape)}"
            )

    def extra_repr(self) -> str:
        """What the gate was made with."""
        kind = f"kind={self.gating.spec.name!r}"
        return f"dim={self.dim}, {kind}, gate={self.gate!r}, impl={self.impl!r}"


class GatedMLP(nn.Module):
    """Two linear maps with a gate between them; without one, the plain MLP of the same class.

        a, v = W_in x + b_in        (gated: two blocks of rows, the gate's first)
        y = W_out f(a, v) + b_out

    Parameters, with G = 2 blocks of rows (1 for a kind without a gate): `weight_in`
    (G*hidden, features), `weight_out` (out_features, hidden); `bias_in` (G*hidden) and `bias_out`
    (out_features), None where `bias` is False. `gatelib.nn.convert` reads and writes the names and
    the layouts of other libraries.

    Args:
        features: D, of the input.
        hidden: H, how many gated values; None for as many as give the number of weights of a plain
            MLP of 4*D units: 2/3 of 4*D with a gate, where `out_features` is D.
        out_features: of the output; None for D.
        kind: one of `torch.nn.GLU`'s kin (see `GLU`), or without a gate "relu", "gelu",
            "gelu_tanh", "silu" or "relu_squared"; or a Spec `a v -> y` or `a -> y`.
        bias: whether both maps have a bias. Shazeer's and Llama's have none.
        multiple_of: `hidden`, given or found, is rounded up to a multiple of this: 256 in Llama's
            first sizes, 8 in DINOv2. Both cut 2/3 of 4*D to an integer first, as is done here.
        impl: "reference" is the Spec's formula under autograd, which saves the packed
            preactivations, the gate and the gated values. "fused" saves the preactivations alone,
            half of that, and computes the rest again in the backward pass. "auto" is fused where
            that saves something (a backward pass may follow, and on a CPU there are 2**17
            preactivations or more; or it is a GPU's one kernel) and where it can go (see
            `gatelib.nn.impl`), and reference elsewhere.
        device: where the parameters live.
        dtype: their floating-point type.

    Where parameters or autocast are of lower precision the gate is computed in float32 and rounded
    once. Second derivatives work.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or the Spec is none of this form.

    Source: Shazeer 2020, arXiv:2002.05202, eq. 6.
    """

    def __init__(
        self,
        features: int,
        hidden: int | None = None,
        out_features: int | None = None,
        kind: str | Spec = "swiglu",
        bias: bool = False,
        multiple_of: int = 1,
        *,
        impl: Impl = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out = features if out_features is None else out_features
        check_sizes(features=features, out_features=out, multiple_of=multiple_of)
        check_flags(bias=bias)
        check_dtype(dtype)
        check_impl(impl)
        self.gating, self.impl = gating(kind), impl
        blocks = self.gating.parts
        size = _equal_width(features, out, blocks) if hidden is None else hidden
        check_sizes(hidden=size)
        size = -(-size // multiple_of) * multiple_of
        self.features, self.hidden, self.out_features = features, size, out
        empty = functools.partial(torch.empty, device=device, dtype=dtype)
        self.weight_in = nn.Parameter(empty(blocks * size, features))
        self.weight_out = nn.Parameter(empty(out, size))
        self.bias_in = nn.Parameter(empty(blocks * size)) if bias else None
        self.bias_out = nn.Parameter(empty(out)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each map as a `torch.nn.Linear`: from U(-1/sqrt(N), 1/sqrt(N)), N its inputs."""
        for weight, bias in ((self.weight_in, self.bias_in), (self.weight_out, self.bias_out)):
            bound = 1 / math.sqrt(weight.shape[1])
            for parameter in (weight, bias):
                if parameter is not None:
                    nn.init.uniform_(parameter, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., features) to (..., out_features).

        Raises:
            TypeError: the input is no tensor or of another dtype than the parameters.
            ValueError: its features or device don't fit.
        """
        node = traced(self, input)
        if node is not None:
            return node  # type: ignore[return-value]
        packed, last = self._packed(input), (self.weight_out, self.bias_out)
        if takes_plain(self.impl, (packed, *last), FEW):
            return F.linear(self.gating(*self.gating.halves(packed)), *last)
        return kernel.gated_linear(self.gating.known, packed, *last)

    def _packed(self, input: Tensor) -> Tensor:
        check_features("input", input, self.features, self.weight_in)
        return F.linear(input, self.weight_in, self.bias_in)

    def values(self, input: Tensor) -> dict[str, Tensor]:
        """What stands between both maps, (..., hidden) each: to look at, differentiable.

        Returns:
            `a`, with a gate `v`, and each value of the Spec by its name: `g` is the gate, `y` what
            the second map reads.
        """
        return self.gating.values(*self.gating.halves(self._packed(input)))

    def extra_repr(self) -> str:
        """What the layer was made with."""
        sizes = f"{self.features}, hidden={self.hidden}, out_features={self.out_features}"
        more = f"bias={self.bias_in is not None}, impl={self.impl!r}"
        return f"{sizes}, kind={self.gating.spec.name!r}, {more}"


def _equal_width(features: int, out: int, blocks: int) -> int:
    """H, rounded down, at which (blocks*D + out) H weights are the (D + out) 4D of a plain MLP."""
    return max(1, 4 * features * (features + out) // (blocks * features + out))
