"""Soft MoE: experts work on weighted means of a sequence's tokens, and no token is dropped.

Imports torch, gatelib.kernels.segment_plain, gatelib.spec; attention, check, experts, glu and impl
of nn.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gatelib.kernels.segment_plain import mapped
from gatelib.nn.attention import live_positions
from gatelib.nn.check import LOW_PRECISION, ShapeError, check_dtype, check_features, check_sizes
from gatelib.nn.experts import stack_of, start_stack
from gatelib.nn.glu import gating
from gatelib.nn.impl import traced
from gatelib.spec import Spec

__all__ = ["SoftMoE"]

EPSILON = 1e-6
"""Under the root of a norm, as the authors' program has it."""


class SoftMoE(nn.Module):
    """E experts of S slots each; a slot reads a mean of all tokens, a token a mean of all slots.

        l_ts = scale <x_t, phi_s> / (|x_t| |phi_s|)
        x~_s = sum over t of softmax_t(l_ts) x_t       what slot s reads
        y_t = sum over s of softmax_s(l_ts) f(x~_s)    f: the expert that owns slot s

    It is not causal: every output depends on every token of its sequence. Sequences of a batch do
    not meet.

    Parameters: `phi` (E, S, D); `scale`, a number, 1 at first; `weight_in` (E, G*H, D) and
    `weight_out` (E, D, H), as in `gatelib.nn.MoE`.

    Args:
        features: D.
        experts: E.
        slots: S, of each expert.
        hidden: H of an expert.
        kind: the gate between both maps, as in `GatedMLP`.
        device: where the parameters live.
        dtype: their floating-point type.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Source: Puigcerver et al. 2023, arXiv:2308.00951, section 2 and, for the norms, 2.3.
    """

    causal = False

    def __init__(
        self,
        features: int,
        experts: int,
        slots: int,
        hidden: int,
        kind: str | Spec = "swiglu",
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(features=features, experts=experts, slots=slots, hidden=hidden)
        check_dtype(dtype)
        own: dict[str, Any] = {"device": device, "dtype": dtype}
        self.gating = gating(kind)
        self.features, self.experts, self.slots, self.hidden = features, experts, slots, hidden
        self.phi = nn.Parameter(torch.empty(experts, slots, features, **own))
        self.scale = nn.Parameter(torch.empty((), **own))
        parts = self.gating.parts
        self.weight_in, self.weight_out = stack_of(experts, hidden, features, parts, **own)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """phi from N(0, 1/D), scale at 1, the experts' maps as a `torch.nn.Linear`'s."""
        nn.init.normal_(self.phi, std=1 / math.sqrt(self.features))
        nn.init.ones_(self.scale)
        start_stack((self.weight_in, self.weight_out))

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map x (B, T, D) to y of the same shape.

        Args:
            input: x.
            lengths: (B) whole numbers, 1 to T: later positions are padding, which no slot reads,
                and whose outputs are 0.

        Raises:
            TypeError: the input is no tensor or of another dtype than the parameters.
            ValueError: a shape, a device or a length doesn't fit.
        """
        node = traced(self, input, lengths)
        if node is not None:
            return node  # type: ignore[return-value]
        x, dispatch, combine = self._shares(input, lengths)
        wide = x.float() if x.dtype in LOW_PRECISION else x
        slots = torch.bmm(dispatch.transpose(1, 2), wide).to(x.dtype)  # (B, E*S, D)
        rows = slots.reshape(len(x), self.experts, self.slots, -1).transpose(0, 1).flatten(1, 2)
        made = mapped(self.gating.known, rows, self.weight_in, self.weight_out)
        made = made.reshape(self.experts, len(x), self.slots, -1).transpose(0, 1).flatten(1, 2)
        return torch.bmm(combine, made.to(combine.dtype)).to(made.dtype)

    def values(self, input: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        """`dispatch` and `combine`, (B, T, E*S) each: to look at, differentiable."""
        _, dispatch, combine = self._shares(input, lengths)
        return {"dispatch": dispatch, "combine": combine}

    def _shares(self, input: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The live x, the shares of its tokens in each slot, and of the slots in each token."""
        check_features("input", input, self.features, self.phi)
        if input.dim() != 3:
            raise ShapeError(f"input: expected (B, T, {self.features}), got {tuple(input.shape)}")
        live = live_positions(lengths, input)
        mask = None if live is None else live.transpose(1, 2)
        x = input if mask is None else input.masked_fill(~mask, 0)
        logits = self.scale.to(_unit(x)) * torch.matmul(_unit(x), _unit(self.phi.flatten(0, 1)).t())
        combine = torch.softmax(logits, -1)
        if mask is not None:
            logits, combine = logits.masked_fill(~mask, -math.inf), combine.masked_fill(~mask, 0)
        return x, torch.softmax(logits, 1), combine

    def extra_repr(self) -> str:
        """What the layer was made with."""
        sizes = f"{self.features}, {self.experts}, {self.slots}, {self.hidden}"
        return f"{sizes}, kind={self.gating.spec.name!r}"


def _unit(values: Tensor) -> Tensor:
    """Divided by the norm along the last axis, in float32 at least."""
    wide = values.float() if values.dtype in LOW_PRECISION else values
    return wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + EPSILON)
