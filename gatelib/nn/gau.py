"""The gated attention unit: one head of squared relus, read through a gate of features.

Imports torch; check, impl and reading of gatelib.nn.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

import functools
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.nn.check import (
    check_choice,
    check_dtype,
    check_features,
    check_flags,
    check_number,
    check_sizes,
)
from gatelib.nn.impl import traced
from gatelib.nn.reading import (
    AttentionState,
    Positions,
    behind,
    blank,
    check_state,
    full_precision,
    given_live,
    positions,
    rotated,
    wide,
)

__all__ = ["GatedAttentionUnit"]

Position = Literal["rotary"]


class GatedAttentionUnit(nn.Module):
    """Attention and the gated linear unit in one: a gate of features on what one head reads.

        u, v, z = silu(W_in x + b_in)            E, E and S features
        q, k = gamma * z + beta                  a scale and a shift each, for every feature
        w_ij = relu(q_i . k_j / n_i + b_ij)^2    n_i: the number of positions that i reads
        y_i = W_out (u_i * sum_j w_ij v_j) + b_out

    Parameters: `weight_in` (2E + S, D), rows of u, v and z in this order, and `bias_in`; `scale`
    and `offset` (2, S), gamma and beta of queries, then of keys; `weight_out` (D, E) and
    `bias_out`; with rotary biases `bias_vectors` (2, S).

    Args:
        features: D.
        hidden: E; None for 2D, the paper's.
        key_size: S.
        causal: whether a position reads none after it.
        n: a constant in the place of n_i. Public programs disagree here: the length of the batch,
            the longest length in training, each row's own count. None is the count, which is the
            same in a batch, alone and step by step.
        position: "rotary" adds b_ij = <R_i a, R_j b>, two learned vectors turned by RoPE, before
            the square and not divided by n; None adds nothing.
        bias: whether both maps have a bias.
        device: where the parameters live.
        dtype: their floating-point type.

    There is no norm and no residual: the paper's layer is x + unit(norm(x)). Scores and weights are
    float32 where parameters or autocast are of lower precision.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a size or a name doesn't fit; `n` isn't above 0.

    Source: Hua, Dai, Liu & Le 2022, arXiv:2202.10447, section 3 and appendix A.1.
    """

    bias_in: nn.Parameter | None
    bias_out: nn.Parameter | None
    bias_vectors: nn.Parameter | None
    batch_first = True

    def __init__(
        self,
        features: int,
        hidden: int | None = None,
        key_size: int = 128,
        *,
        causal: bool = True,
        n: float | None = None,
        position: Position | None = None,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(features=features, key_size=key_size)
        size = 2 * features if hidden is None else hidden
        check_sizes(hidden=size)
        check_flags(causal=causal, bias=bias)
        check_dtype(dtype)
        _check_pairs(n, position, key_size)
        self.features, self.hidden, self.key_size = features, size, key_size
        self.causal, self.n, self.position = causal, n, position
        empty = functools.partial(torch.empty, device=device, dtype=dtype)
        rows = 2 * size + key_size
        self.weight_in = nn.Parameter(empty(rows, features))
        self.bias_in = nn.Parameter(empty(rows)) if bias else None
        self.scale = nn.Parameter(empty(2, key_size))
        self.offset = nn.Parameter(empty(2, key_size))
        self.bias_vectors = nn.Parameter(empty(2, key_size)) if position else None
        self.weight_out = nn.Parameter(empty(features, size))
        self.bias_out = nn.Parameter(empty(features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices and bias vectors from U(-1/sqrt(N), 1/sqrt(N)), N their columns; scales 1; the
        rest 0."""
        for matrix in (self.weight_in, self.bias_vectors, self.weight_out):
            if matrix is not None:
                bound = 1 / math.sqrt(matrix.size(-1))
                nn.init.uniform_(matrix, -bound, bound)
        for vector in (self.bias_in, self.offset, self.bias_out):
            if vector is not None:
                nn.init.zeros_(vector)
        nn.init.ones_(self.scale)

    def forward(
        self,
        input: Tensor,
        initial_state: AttentionState | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, AttentionState]:
        """Run over a batch of sequences, behind what was run before.

        Args:
            input: x, (B, T, D).
            initial_state: what an earlier call returned, to go on from there; None to begin, and
                always where the unit isn't causal.
            lengths: (B,) integers from 0 to T. Positions past them are padding: nothing of them,
                NaN included, reaches another position, and their outputs are 0. None: all are live.

        Returns:
            output: (B, T, D). final_state: the cache of S positions, `keys` (B, 1, S, key_size),
            `values` (B, 1, S, E) and, with lengths, `live` (B, S); empty where not causal.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: a shape, a device or a length doesn't fit; a state without a causal unit.
        """
        node = traced(self, input, initial_state, lengths)
        if node is not None:
            return node  # type: ignore[return-value]
        found, live, state = self._pass(input, initial_state, lengths)
        output = F.linear(found["y"].to(found["u"].dtype), self.weight_out, self.bias_out)
        if lengths is not None and live is not None:
            output = blank(output, live[:, live.size(1) - input.size(1) :])
        return output, state if self.causal else {}

    def values(
        self,
        input: Tensor,
        initial_state: AttentionState | None = None,
        lengths: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What the unit does, to look at, differentiable.

        Returns:
            `u`, the gate, (B, T, E); `q` (B, T, key_size); `e`, the scores with their bias, and
            `w`, the weights, 0 where nothing is read, (B, T, S); `y` = u * sum w v (B, T, E).
        """
        return self._pass(input, initial_state, lengths)[0]

    def _pass(
        self, input: Tensor, before: AttentionState | None, lengths: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor | None, AttentionState]:
        self._check(input, before)
        x, live = given_live(input, before, lengths)
        cached = 0 if not before else before["keys"].size(2)
        places = positions(x.size(1), cached, live, x)
        hidden = F.silu(F.linear(x, self.weight_in, self.bias_in))
        sizes = [self.hidden, self.hidden, self.key_size]
        u, v, z = torch.split(hidden, sizes, -1)
        q, k = (self.scale[i] * z + self.offset[i] for i in (0, 1))
        state = {"keys": k[:, None], "values": v[:, None]}
        if live is not None:
            state["live"] = live
        if before:
            state = behind(before, state)
        with full_precision(x):
            found = self._read(wide(q), state, places)
        return found | {"u": u, "q": q, "y": wide(u) * found["y"]}, live, state

    def _read(self, q: Tensor, state: AttentionState, places: Positions) -> dict[str, Tensor]:
        """Scores, weights and what is read, in float32 at least."""
        keys, values = (wide(state[name].squeeze(1)) for name in ("keys", "values"))
        allowed = self._allowed(q, state, places)
        n = allowed.sum(-1, keepdim=True).clamp(min=1) if self.n is None else self.n
        scores = q @ keys.transpose(1, 2) / n
        if self.bias_vectors is not None:
            scores = scores + self._pair_bias(wide(self.bias_vectors), places)
        weights = torch.where(allowed, F.relu(scores).square(), 0)
        return {"e": scores, "w": weights, "y": weights @ values}

    def _allowed(self, q: Tensor, state: AttentionState, places: Positions) -> Tensor:
        """Whether a query reads a key, (T, S) or (B, T, S)."""
        if places.allowed is not None:
            return places.allowed if places.allowed.dim() == 2 else places.allowed[:, 0]
        everywhere = q.new_ones(q.size(1), q.size(1), dtype=torch.bool)
        if self.causal:
            return everywhere.tril()
        return everywhere & state["live"][:, None] if "live" in state else everywhere

    def _pair_bias(self, vectors: Tensor, places: Positions) -> Tensor:
        """<R_i a, R_j b>, (T, S) or (B, T, S)."""
        at_i, at_j = (_turned(*pair) for pair in zip(vectors, places[:2], strict=True))
        return at_i @ at_j.transpose(-1, -2)

    def _check(self, input: Tensor, state: AttentionState | None) -> None:
        check_features("input", input, self.features, self.weight_in)
        if input.dim() != 3:
            raise ValueError(f"input: expected (B, T, {self.features}), got {tuple(input.shape)}")
        if state and not self.causal:
            raise ValueError("initial_state: expected None where causal is False, got a cache")
        if state:
            check_state(state, input, {"keys": (1, self.key_size), "values": (1, self.hidden)})

    def extra_repr(self) -> str:
        """The sizes, and the arguments that aren't at their defaults."""
        text = [str(self.features), f"hidden={self.hidden}", f"key_size={self.key_size}"]
        usual = {"causal": True, "n": None, "position": None}
        text += [f"{k}={getattr(self, k)!r}" for k, v in usual.items() if getattr(self, k) != v]
        return ", ".join(text + ["bias=False"] * (self.bias_in is None))


def _turned(vector: Tensor, places: Tensor) -> Tensor:
    """A vector (S,) turned by each of the places (..., T): (..., T, S)."""
    rows = vector.expand(*places.shape, -1)
    return rotated(rows[:, None], places)[:, 0] if places.dim() == 2 else rotated(rows, places)


def _check_pairs(n: object, position: object, key_size: int) -> None:
    if n is not None:
        check_number(n, "n")
        if n <= 0:  # type: ignore[operator]
            raise ValueError(f"n: expected a number above 0, got {n}")
    if position is not None:
        check_choice("position", position, ("rotary",))
        if key_size % 2:
            raise ValueError(f"key_size: expected an even number for 'rotary', got {key_size}")
