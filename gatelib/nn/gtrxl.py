"""The block of GTrXL: attention and an MLP, each let into the stream by a gate.

Imports torch; check, gated_attention, highway, impl and reading of gatelib.nn.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.nn.check import check_choice, check_features, check_number, check_sizes
from gatelib.nn.gated_attention import GatedAttention
from gatelib.nn.highway import GTrXLGate
from gatelib.nn.impl import traced
from gatelib.nn.reading import AttentionState, blank, given_live

__all__ = ["GTrXLBlock"]

Stream = Literal["gru", "sum"]


class GTrXLBlock(nn.Module):
    """A block of GTrXL, the gated transformer for reinforcement learning.

        g = gate1(x, relu(attention(norm1(x))))
        y = gate2(g, relu(W_out relu(W_in norm2(g) + b_in) + b_out))

    Both submodules read the normalised stream, and end in a relu. A gate, `GTrXLGate`, resets the
    stream before the product, and has a bias on z alone: above 0 it starts near the identity.

    Parameters: `norm1`, `attention` (a `GatedAttention`), `gate1`, `norm2`, `linear_in` (F, D),
    `linear_out` (D, F), `gate2`; without gates those two are None.

    Args:
        features: D, of the stream.
        heads: H, of the attention.
        hidden: F, of the MLP; None for 4D.
        stream: how a submodule meets the stream: "gru" by a gate, or "sum", which adds it: the
            paper's TrXL-I, the strongest baseline without a gate.
        gate_bias: where the bias of both gates starts, as `bias` of `GTrXLGate`.
        device: where the parameters live.
        dtype: their floating-point type.
        options: further arguments of `GatedAttention`: the paper's attention has relative
            positions, which are not here; `position="alibi"` stands for them.

    The paper's memory of earlier segments is the cache that a call returns and the next one takes;
    gradients flow through it unless it is detached.

    Raises: TypeError or ValueError, as `GatedAttention` and `GTrXLGate`.

    Source: Parisotto et al. 2019, arXiv:1910.06764, sections 3.1 and 3.2.
    """

    gate1: GTrXLGate | None
    gate2: GTrXLGate | None
    batch_first = True

    def __init__(
        self,
        features: int,
        heads: int,
        hidden: int | None = None,
        *,
        stream: Stream = "gru",
        gate_bias: float = 2.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_sizes(features=features, heads=heads)
        size = 4 * features if hidden is None else hidden
        check_sizes(hidden=size)
        check_choice("stream", stream, ("gru", "sum"))
        check_number(gate_bias, "gate_bias")
        own: dict[str, Any] = {"device": device, "dtype": dtype}
        gated = stream == "gru"
        self.features, self.heads, self.hidden, self.stream = features, heads, size, stream
        self.norm1 = nn.LayerNorm(features, **own)
        self.attention = GatedAttention(features, heads, **options, **own)
        self.gate1 = GTrXLGate(features, gate_bias, **own) if gated else None
        self.norm2 = nn.LayerNorm(features, **own)
        self.linear_in = nn.Linear(features, size, **own)
        self.linear_out = nn.Linear(size, features, **own)
        self.gate2 = GTrXLGate(features, gate_bias, **own) if gated else None

    def reset_parameters(self) -> None:
        """Draw each part as it draws itself."""
        for part in self.children():
            part.reset_parameters()  # type: ignore[operator]

    def forward(
        self,
        input: Tensor,
        initial_state: AttentionState | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, AttentionState]:
        """Pass the stream (B, T, D) through the block, behind what was passed before.

        Args and returns as `GatedAttention.forward`: the stream (B, T, D), and the attention's
        cache.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: a shape, a device or a length doesn't fit.
        """
        node = traced(self, input, initial_state, lengths)
        if node is not None:
            return node  # type: ignore[return-value]
        check_features("input", input, self.features, self.norm1.weight)
        if input.dim() != 3:
            raise ValueError(f"input: expected (B, T, {self.features}), got {tuple(input.shape)}")
        x, live = given_live(input, None, lengths)
        attended, state = self.attention(self.norm1(x), initial_state, lengths)
        g = _let_in(self.gate1, x, F.relu(attended))
        inner = F.relu(self.linear_in(self.norm2(g)))
        y = _let_in(self.gate2, g, F.relu(self.linear_out(inner)))
        return y if live is None else blank(y, live), state

    def extra_repr(self) -> str:
        """The sizes; the parts tell the rest."""
        return f"{self.features}, heads={self.heads}, hidden={self.hidden}, stream={self.stream!r}"


def _let_in(gate: GTrXLGate | None, stream: Tensor, submodule: Tensor) -> Tensor:
    """The stream with what a submodule found."""
    if gate is None:
        return stream + submodule
    mixed: Tensor = gate(stream, submodule)
    return mixed
