"""Gated convolutions over sequences: causal, dilated, with any gate of the GLU family.

Imports torch, gatelib.spec; check, glu, impl and recurrent of gatelib.nn.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from gatelib.nn.check import (
    ShapeError,
    check_dtype,
    check_flags,
    check_like,
    check_sizes,
    check_state,
    check_tensor,
)
from gatelib.nn.glu import GLU, gating
from gatelib.nn.impl import Impl, check_impl, traced
from gatelib.spec import Spec

__all__ = ["GatedConv1d", "receptive_field"]


class GatedConv1d(nn.Module):
    """A convolution along time whose output is gated: (B, C_in, T) to (B, C_out, T).

        v = V * x + b        a = W * x + c
        y = v sigmoid(a)     (kind "glu"; others as `GLU` of gatelib.nn has them)

    One convolution makes both. With the defaults it is `F.glu(conv(F.pad(x, (d (k - 1), 0))), 1)`:
    value first, gate second. Parameters are `torch.nn.Conv1d`'s: `weight` (G*C_out, C_in, k) and
    `bias` (G*C_out,), with G = 2 blocks of rows, 1 for a kind without a gate; with weight norm
    `weight` is computed from its rows' lengths `parametrizations.weight.original0` (G*C_out, 1, 1)
    and directions `original1`, the names that `torch.nn.utils.parametrizations.weight_norm` gives.
    As with all of torch's parametrizations, such a layer is copied but not pickled: save its
    `state_dict`.

    Args:
        in_channels: C_in.
        out_channels: C_out, after the gate.
        kernel_size: k, in steps.
        dilation: d, how many steps the places of the kernel are apart.
        causal: whether an output sees its own and earlier steps alone: all d (k - 1) zeros stand
            before the first. Otherwise half of them do, and an odd one stands behind the last.
        kind: a name in `gatelib.equations.glu.KINDS`, or a Spec `a v -> y` or `a -> y`.
        weight_norm: whether length and direction of each row are learned apart.
        bias: whether the convolution has a bias.
        impl: of the gate: "reference" is its Spec's formula under autograd; "auto" as for `GLU`.
        device: where the parameters live.
        dtype: their floating-point type.

    An output sees 1 + d (k - 1) steps; for layers on each other see `receptive_field`. Where
    parameters or autocast are of lower precision the gate is computed in float32.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or the Spec is none of this form.

    Source: Dauphin et al. 2016, arXiv:1612.08083, eq. 1; weight norm, Salimans & Kingma 2016,
    arXiv:1602.07868; dilation, van den Oord et al. 2016, arXiv:1609.03499.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int = 1,
        causal: bool = True,
        kind: str | Spec = "glu",
        weight_norm: bool = False,
        bias: bool = True,
        *,
        impl: Impl = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, out_channels=out_channels)
        check_sizes(kernel_size=kernel_size, dilation=dilation)
        check_flags(causal=causal, weight_norm=weight_norm, bias=bias)
        check_dtype(dtype)
        check_impl(impl)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.dilation, self.causal = kernel_size, dilation, causal
        self.gating, self.impl = gating(kind), impl
        rows, options = self.gating.parts * out_channels, {"device": device, "dtype": dtype}
        self.gate = GLU(1, kind, impl=impl) if self.gating.parts == 2 else None
        self.weight = nn.Parameter(torch.empty(rows, in_channels, kernel_size, **options))
        self.bias = nn.Parameter(torch.empty(rows, **options)) if bias else None
        if weight_norm:
            nn.init.ones_(self.weight)  # a length of 0 has no direction
            parametrize.register_parametrization(self, "weight", _WeightNorm())
        self.weight_norm = weight_norm
        self.reset_parameters()

    @property
    def reach(self) -> int:
        """How many steps beside its own an output sees: d (k - 1)."""
        return self.dilation * (self.kernel_size - 1)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As a `torch.nn.Conv1d`: from U(-1/sqrt(N), 1/sqrt(N)), N = C_in * k."""
        bound = 1 / math.sqrt(self.in_channels * self.kernel_size)
        drawn = torch.empty_like(self.weight).uniform_(-bound, bound)
        if self.weight_norm:
            self.weight = drawn  # its length and its direction
        else:
            self.weight.copy_(drawn)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B, C_in, T) and gate; the result is (B, C_out, T).

        A sequence may be shorter than the kernel, or empty.

        Raises:
            TypeError: the input is no tensor or of another dtype than the parameters.
            ValueError: its shape or device doesn't fit.
        """
        node = traced(self, input)
        if node is not None:
            return node  # type: ignore[return-value]
        return self._gated(self._packed(self._padded(input), input.shape[2]))

    def stream(self, input: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One piece of a sequence, of any length, after what came before it.

        Args:
            input: (B, C_in, T), T may be 1 or 0.
            state: (B, C_in, d (k - 1)), the last inputs; None at the start, for zeros.

        Returns:
            output: (B, C_out, T); the state for the next piece. The pieces' outputs, one behind the
            other, are those of the whole sequence.

        Raises:
            TypeError, ValueError: as `forward`; and ValueError where the layer isn't causal.
        """
        if not self.causal:
            raise ValueError("causal: expected True, as half of what an output sees is to come")
        x = self._padded(input)
        if state is not None:
            shape = (input.shape[0], self.in_channels, self.reach)
            check_state("state", state, shape, input, "input")
            x = torch.cat([state, input], -1)
        last = x[..., x.shape[2] - self.reach :]
        return self._gated(self._packed(x, input.shape[2])), last

    def values(self, input: Tensor) -> dict[str, Tensor]:
        """The values of the gate, (B, C_out, T) each: to look at, differentiable.

        Returns:
            `a`, with a gate `v`, and each value of the Spec by its name: `g` is the gate, `y` the
            output.
        """
        packed = self._packed(self._padded(input), input.shape[2])
        return self.gating.values(*reversed(packed.chunk(self.gating.parts, 1)))

    def _padded(self, input: Tensor) -> Tensor:
        """The input, checked, with its zeros."""
        x = check_tensor("input", input)
        if x.dim() != 3 or x.shape[1] != self.in_channels:
            expected = f"(B, {self.in_channels}, T)"
            raise ShapeError(f"input: expected {expected}, got shape {tuple(x.shape)}")
        check_like("input", x, self.weight, "weights")
        behind = 0 if self.causal else self.reach - self.reach // 2
        return F.pad(x, (self.reach - behind, behind))

    def _packed(self, padded: Tensor, steps: int) -> Tensor:
        """The convolution; torch has none of no steps, so one is made and cut away."""
        x = padded if steps else F.pad(padded, (1, 0))
        return F.conv1d(x, self.weight, self.bias, dilation=self.dilation)[..., :steps]

    def _gated(self, packed: Tensor) -> Tensor:
        if self.gate is None:
            return self.gating.packed(packed, self.impl)
        gated: Tensor = self.gate(packed)
        return gated

    def extra_repr(self) -> str:
        """What the convolution was made with."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", dilation={self.dilation}, causal={self.causal}"
        more = f"weight_norm={self.weight_norm}, bias={self.bias is not None}"
        return f"{text}, kind={self.gating.spec.name!r}, {more}, impl={self.impl!r}"


class _WeightNorm(nn.Module):
    """Length times direction, row by row, and both of a weight.

    `torch._weight_norm`, which is behind torch's own, has a wrong second derivative by the
    direction (2.13, first axis), so the formula is written out.
    """

    def forward(self, length: Tensor, direction: Tensor) -> Tensor:
        return length * direction / _row_norm(direction)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return _row_norm(weight), weight


def _row_norm(weight: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)
    return norm


def receptive_field(layers: Iterable[nn.Module | tuple[int, int]]) -> int:
    """How many steps one output sees behind layers that stand one behind the other.

    It is 1 + Σ (k - 1) d over their kernel sizes k and dilations d: L layers of one kernel and no
    dilation see 1 + L (k - 1) steps, and layers whose dilations are 1, 2, 4, … 2^(L-1) see
    1 + (k - 1) (2^L - 1).

    Args:
        layers: pairs (kernel size, dilation), or modules: each GatedConv1d or `torch.nn.Conv1d` in
            them counts as one behind the other, and what isn't a convolution sees one step.

    Raises:
        TypeError: a layer is neither a pair of integers nor a module.
        ValueError: a size is below 1, or a module has a kernel that isn't known here: a stride, a
            pool, more than one axis.
    """
    total = 1
    for size, dilation in (pair for layer in layers for pair in _pairs(layer)):
        check_sizes(kernel_size=size, dilation=dilation)
        total += (size - 1) * dilation
    return total


def _pairs(layer: object) -> list[tuple[int, int]]:
    """Kernel size and dilation of each convolution in a layer."""
    if isinstance(layer, tuple | list) and len(layer) == 2:
        return [(layer[0], layer[1])]
    if not isinstance(layer, nn.Module):
        expected = "a module or a pair (kernel size, dilation)"
        raise TypeError(f"layers: expected {expected} for each, got {layer!r:.60}")
    return [_pair(module) for module in layer.modules() if hasattr(module, "kernel_size")]


def _pair(module: Any) -> tuple[int, int]:
    if isinstance(module, GatedConv1d):
        return module.kernel_size, module.dilation
    if not isinstance(module, nn.Conv1d) or module.stride != (1,):
        raise ValueError(f"layers: expected Conv1d of stride 1 or GatedConv1d, got {module}")
    return module.kernel_size[0], module.dilation[0]
