"""Context gates: how much of the next word a decoder takes from its source, how much from itself.

Imports torch, gatelib.nn.check and gatelib.nn.impl.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from gatelib.nn.check import (
    check_choice,
    check_dtype,
    check_features,
    check_flags,
    check_gate,
    check_sizes,
)
from gatelib.nn.impl import traced

__all__ = ["ContextGate"]

Kind = Literal["both", "source", "target", "none"]


class ContextGate(nn.Module):
    """Mix what attention read with what the decoder has, by a gate that sees both.

        z = sigmoid(W_z [target, source] + b_z)
        y = tanh((1 - z) * (W_t target + b_t) + z * (W_s source + b_s))      ("both")

    "source" gates the source alone, and leaves the target whole: W_t target + z * W_s source.
    "target" gates the target alone: z * W_t target + W_s source. "none" adds them without a gate;
    it is the baseline of the other three, and has fewer parameters.

    It takes the place of `tanh(combine [context, y])` in a decoder: `source` is the context,
    `target` the decoder's output, with the embedding of the word before it if you like.

    Parameters: `gate` (a Linear from T + S to H), `target_proj` (T to H), `source_proj` (S to H).
    With target = [embedding, decoder state] these are the names, the order and the biases of
    OpenNMT-py's ContextGate, so that its checkpoints load. The paper's gate has no biases, and
    stands inside the decoder's recurrence, where it weighs what the next state is made of;
    OpenNMT-py has it between attention and readout, as here.

    Args:
        target_size: features T of the target context.
        source_size: features S of the source context.
        hidden_size: features H of the result, and gates.
        kind: which context is gated.
        bias: whether the three maps have biases.
        device: where the parameters live.
        dtype: their floating-point type.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a size is below 1, or the kind is unknown.

    Source: Tu, Liu, Lu, Liu & Li 2017, arXiv:1608.06043.
    """

    def __init__(
        self,
        target_size: int,
        source_size: int,
        hidden_size: int,
        kind: Kind = "both",
        *,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(target_size=target_size, source_size=source_size, hidden_size=hidden_size)
        check_choice("kind", kind, get_args(Kind))
        check_flags(bias=bias)
        check_dtype(dtype)
        self.target_size, self.source_size = target_size, source_size
        self.hidden_size, self.kind = hidden_size, kind
        own: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        self.gate = None
        if kind != "none":
            self.gate = nn.Linear(target_size + source_size, hidden_size, **own)
        self.target_proj = nn.Linear(target_size, hidden_size, **own)
        self.source_proj = nn.Linear(source_size, hidden_size, **own)

    def reset_parameters(self) -> None:
        """Draw all weights and biases as torch's Linear does."""
        for part in (self.gate, self.target_proj, self.source_proj):
            if part is not None:
                part.reset_parameters()

    def gate_biases(self, gate: str) -> list[tuple[Tensor, ...]]:
        """The bias of gate "z": see `gatelib.nn.init`."""
        check_gate(gate, () if self.gate is None else ("z",), self)
        assert self.gate is not None
        if self.gate.bias is None:
            raise ValueError("bias: expected a layer with biases, got bias=False")
        return [(self.gate.bias.detach(),)]

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """Both contexts in one: target (..., T) and source (..., S) to (..., H).

        Raises:
            TypeError: an argument is no tensor, or of another dtype than the parameters.
            ValueError: a shape or a device doesn't fit.
        """
        node = traced(self, target, source)
        if node is not None:
            return node  # type: ignore[return-value]
        return torch.tanh(self.mix(target, source))

    def mix(self, target: Tensor, source: Tensor) -> Tensor:
        """What stands in `forward`'s tanh, (..., H), for a decoder that has a tanh of its own."""
        z = self.gates(target, source)
        from_target: Tensor = self.target_proj(target)
        from_source: Tensor = self.source_proj(source)
        if z is None:
            return from_target + from_source
        if self.kind == "both":
            return (1 - z) * from_target + z * from_source
        if self.kind == "source":
            return from_target + z * from_source
        return z * from_target + from_source

    def gates(self, target: Tensor, source: Tensor) -> Tensor | None:
        """z (..., H) of `forward`'s inputs, to look at; None without a gate."""
        check_features("target", target, self.target_size, self.target_proj.weight)
        check_features("source", source, self.source_size, self.source_proj.weight)
        if target.shape[:-1] != source.shape[:-1]:
            expected = (*target.shape[:-1], self.source_size)
            raise ValueError(f"source: expected {expected}, got {tuple(source.shape)}")
        if self.gate is None:
            return None
        return torch.sigmoid(self.gate(torch.cat([target, source], -1)))

    def extra_repr(self) -> str:
        """The sizes and the kind."""
        sizes = f"{self.target_size}, {self.source_size}, {self.hidden_size}"
        return f"{sizes}, kind={self.kind!r}"
