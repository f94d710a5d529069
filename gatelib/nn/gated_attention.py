"""Causal attention of many heads with gates: on queries, keys, values, scores and outputs.

Imports torch; check, impl, init and reading of gatelib.nn.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

import functools
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.nn.check import (
    check_choice,
    check_dtype,
    check_features,
    check_flags,
    check_gate,
    check_number,
)
from gatelib.nn.impl import Impl, check_impl, traced
from gatelib.nn.reading import (
    NORM_EPS,
    AttentionState,
    Positions,
    Reading,
    alibi,
    behind,
    blank,
    check_heads,
    check_state,
    full_precision,
    given_live,
    normed,
    positions,
    rebased,
    rotated,
    wide,
)

__all__ = ["AttentionState", "GatedAttention"]

Gate = Literal["none", "query", "key", "value", "score", "output"]
Per = Literal["element", "head"]
Sink = Literal["learned", "zero"]
Activation = Literal["softmax", "sigmoid"]
Position = Literal["rope", "alibi"]

USUAL: dict[str, Any] = {"gate": "none", "per": "element", "sink": None, "forget": False}
USUAL |= {"qk_norm": False, "activation": "softmax", "position": None, "impl": "auto"}
"""The options that a layer doesn't tell of."""


class GatedAttention(nn.Module):
    """Causal self-attention of H heads, with gates where one asks for them.

        q, k, v = W x + b                        by heads of d = D/H features; x is the input
        g = sigmoid(W_g x + b_g)                 the gate, on q, k, v, the score or the output
        e_ij = q_i . k_j / sqrt(d) + c_i - c_j   c: the running sum of log sigmoid(W_f x + b_f)
        w_i = softmax(e_i1, ..., e_ii, s)        s: the sink's logit, whose weight is dropped
        y_i = W_o (g * sum_j w_ij v_j) + b_o     the gate of outputs stands here

    With all options at their defaults it is a causal `torch.nn.MultiheadAttention`: it loads that
    module's `state_dict`, draws the same numbers under a seed, and computes the same. It reads
    (B, T, D).

    Parameters, with G heads of keys and values: `in_proj_weight` (D + 2*G*d, D) and `in_proj_bias`,
    rows of q, k and v in this order; `out_proj`, a Linear(D, D). Where there is a gate
    `gate_weight` (rows, D) and `gate_bias`; H or G rows per head, d times as many per element.
    Where there is a forget gate `forget_weight` (H, D) and `forget_bias` (H,), whatever `bias`
    says. `sinks` (H,), where they are learned. `q_norm` and `k_norm`, where there are norms, each
    with a `weight` (d,) that all heads share.

    Args:
        embed_dim: D.
        num_heads: H, a divisor of D.
        num_kv_heads: G, a divisor of H; None for H. Head h reads keys and values h // (H/G).
        gate: what the gate multiplies. "output" is what the heads read, before `out_proj`. "score"
            is q . k before anything is added: per head by sigmoid(a_i), which is "query" per head
            in other words; per element by sigmoid(a_i + c_j), H rows for a, then G for c.
        per: one gate for each "element" of a head's features, or one for each "head".
        sink: one more key in each softmax, that has no value: its logit is "learned", from 0, or
            "zero", which adds 1 to the softmax's denominator.
        forget: whether each head multiplies the exponential of its older scores, step by step,
            with a gate of the input.
        forget_bias: where `forget_bias` starts, in units of the preactivation.
        qk_norm: whether queries and keys are divided by their root mean square, before the gate.
        activation: "sigmoid" has w_ij = sigmoid(e_ij - log n_i) in the place of the softmax, n_i
            the number of positions that i reads: i + 1, counted from 0. So a later token changes
            nothing, as with a softmax.
        position: "rope" turns queries and keys after their gates, features m and m + d/2 in pairs,
            base 10,000; "alibi" adds -slope_h (i - j) to the scores. None: the mask alone.
        bias: whether q, k, v, the gate and the output have a bias.
        impl: "fused" is `F.scaled_dot_product_attention`, with forget gate, ALiBi
            and sinks as a float mask; it has no second derivative on a CPU. "reference" writes the
            scores out. "auto" is fused where that can express the form and is no slower: not for
            sigmoids and score gates per element, in torch.func's transforms and forward-mode
            differentiation, nor on a CPU where the mask itself has a gradient.
        device: where the parameters live.
        dtype: their floating-point type.

    Log-gates, norms, angles, gates and masks are float32 where parameters or autocast are of lower
    precision.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a size or a name doesn't fit; a sink without a softmax; a start of a forget gate
            that isn't there.

    Sources: gates, Qiu et al. 2025, arXiv:2505.06708 ("output" is their G1, "value" G2, "key" G3,
    "query" G4); forget gate, Lin et al. 2025, arXiv:2503.02130, eq. 5; sigmoid, Ramapuram et al.
    2024, arXiv:2409.04431; sinks, gpt-oss; RoPE, arXiv:2104.09864; ALiBi, arXiv:2108.12409.
    """

    in_proj_weight: nn.Parameter
    in_proj_bias: nn.Parameter | None
    gate_weight: nn.Parameter | None
    gate_bias: nn.Parameter | None
    forget_weight: nn.Parameter | None
    forget_bias: nn.Parameter | None
    sinks: nn.Parameter | None
    memory_gates = ("forget", None)
    batch_first = True

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        gate: Gate = "none",
        per: Per = "element",
        sink: Sink | None = None,
        forget: bool = False,
        forget_bias: float = 0.0,
        qk_norm: bool = False,
        activation: Activation = "softmax",
        position: Position | None = None,
        bias: bool = True,
        impl: Impl = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        groups = num_heads if num_kv_heads is None else num_kv_heads
        check_heads(embed_dim, num_heads, groups, position == "rope")
        _check_names(gate, per, sink, activation, position)
        check_flags(forget=forget, qk_norm=qk_norm, bias=bias)
        _check_start(forget, forget_bias)
        check_dtype(dtype)
        check_impl(impl)
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, groups
        self.head_dim, self.gate, self.per, self.sink = embed_dim // num_heads, gate, per, sink
        self.forget, self.initial_forget_bias, self.qk_norm = forget, float(forget_bias), qk_norm
        self.activation, self.position, self.impl = activation, position, impl
        self._make_parameters(bias, functools.partial(torch.empty, device=device, dtype=dtype))
        own = {"device": device, "dtype": dtype}
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias, **own)
        if qk_norm:
            self.q_norm = nn.RMSNorm(self.head_dim, NORM_EPS, **own)
            self.k_norm = nn.RMSNorm(self.head_dim, NORM_EPS, **own)
        self._draw()

    def _make_parameters(self, bias: bool, empty: Any) -> None:
        """The parameters that no module of its own holds, without numbers."""
        rows = self.embed_dim + 2 * self.num_kv_heads * self.head_dim
        gates = self._gate_rows()
        shapes = {
            "in_proj_weight": (rows, self.embed_dim),
            "in_proj_bias": (rows,) if bias else None,
            "gate_weight": (gates, self.embed_dim) if gates else None,
            "gate_bias": (gates,) if gates and bias else None,
            "forget_weight": (self.num_heads, self.embed_dim) if self.forget else None,
            "forget_bias": (self.num_heads,) if self.forget else None,
            "sinks": (self.num_heads,) if self.sink == "learned" else None,
        }
        for name, shape in shapes.items():
            self.register_parameter(name, None if shape is None else nn.Parameter(empty(shape)))

    def _gate_rows(self) -> int:
        """How many gates a position has."""
        heads, groups = self.num_heads, self.num_kv_heads
        if self.gate == "score":
            return heads if self.per == "head" else heads + groups
        size = 1 if self.per == "head" else self.head_dim
        return {"none": 0, "query": heads, "output": heads}.get(self.gate, groups) * size

    def reset_parameters(self) -> None:
        """Draw `out_proj`, then all else, as `torch.nn.MultiheadAttention` draws under a seed.

        Matrices by Xavier's uniform draw, `out_proj` as torch's Linear, biases and sinks 0, norms
        1, the forget gate's bias as asked.
        """
        self.out_proj.reset_parameters()
        self._draw()

    def _draw(self) -> None:
        for matrix in (self.in_proj_weight, self.gate_weight, self.forget_weight):
            if matrix is not None:
                nn.init.xavier_uniform_(matrix)
        for vector in (self.in_proj_bias, self.out_proj.bias, self.gate_bias, self.sinks):
            if vector is not None:
                nn.init.zeros_(vector)
        if self.forget_bias is not None:
            nn.init.constant_(self.forget_bias, self.initial_forget_bias)
        if self.qk_norm:
            self.q_norm.reset_parameters()
            self.k_norm.reset_parameters()

    def gate_biases(self, gate: str) -> list[tuple[Tensor, ...]]:
        """The bias of the gate, "query" or what it is, or of "forget": see `gatelib.nn.init`."""
        known = {self.gate: self.gate_bias, "forget": self.forget_bias}
        found = {name: bias for name, bias in known.items() if bias is not None}
        check_gate(gate, tuple(found), self)
        return [(found[gate].detach(),)]

    def forward(
        self,
        input: Tensor,
        initial_state: AttentionState | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, AttentionState]:
        """Run over a batch of sequences, behind what was run before.

        Args:
            input: x, (B, T, D).
            initial_state: what an earlier call returned, to go on from there; None to begin.
            lengths: (B,) integers from 0 to T. Positions past them are padding: nothing of them,
                NaN included, reaches another position, their outputs are 0, and what follows in a
                later call follows on the last live one. None: all positions are live.

        Returns:
            output: (B, T, D). final_state: the cache of S + T positions.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: a shape, a device or a length doesn't fit; `impl` can't express the form.
        """
        node = traced(self, input, initial_state, lengths)
        if node is not None:
            return node  # type: ignore[return-value]
        x, live = self._given(input, initial_state, lengths)
        state, reading, gate = self._read(x, initial_state, live)
        output = self._output(reading.context(self.impl), gate)
        if lengths is not None and live is not None:
            output = blank(output, live[:, live.size(1) - x.size(1) :])
        return output, state

    def values(
        self,
        input: Tensor,
        initial_state: AttentionState | None = None,
        lengths: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What the layer does, to look at, differentiable, in float32 at least.

        Returns:
            `q` (B, H, T, d), `k` and `v` (B, G, S, d), as they are read; `e`, the scores with all
            that is added, -inf where nothing is read, and `w`, the weights, (B, H, T, S); `y`
            (B, H, T, d), what `out_proj` reads. Where there are such: `sink` (B, H, T), the
            dropped weight; `g`, the gate, (B, heads, T, d), 1 or S in the place of d per head or
            of scores; `forget`, the forget gate, (B, H, T).
        """
        x, live = self._given(input, initial_state, lengths)
        _, reading, gate = self._read(x, initial_state, live)
        read = reading.written_out()
        found = {"q": reading.queries, "k": reading.keys, "v": reading.values}
        found |= {"e": read.scores, "w": read.weights, "y": read.context}
        if read.sink is not None:
            found["sink"] = read.sink.squeeze(-1)
        if gate is not None:
            found["g"] = gate
        if self.gate == "output" and gate is not None:
            found["y"] = read.context * gate
        if self.forget:
            found["forget"] = self._log_gates(x).exp()
        return found

    # ---- from the input to what is read ------------------------------------------------------

    def _given(
        self, input: Tensor, state: AttentionState | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The input with 0 in padding; which of all keys, cached and new, are live."""
        check_features("input", input, self.embed_dim, self.in_proj_weight)
        if input.dim() != 3:
            raise ValueError(f"input: expected (B, T, {self.embed_dim}), got {tuple(input.shape)}")
        if state is not None:
            self._check_state(state, input)
        return given_live(input, state, lengths)

    def _read(
        self, x: Tensor, before: AttentionState | None, live: Tensor | None
    ) -> tuple[AttentionState, Reading, Tensor | None]:
        """The cache; what reads what in it; the gate, (B, heads, T, d or 1)."""
        cached = 0 if before is None else before["keys"].size(2)
        places = positions(x.size(1), cached, live, x)
        parts, gate, logits = self._gated(x)
        if self.position == "rope":
            parts["query"] = rotated(parts["query"], places.queries)
            parts["key"] = rotated(parts["key"], places.queries)
        state = {"keys": parts["key"], "values": parts["value"]}
        if self.forget:
            state["log_gates"] = self._log_gates(x, live).cumsum(-1)
        if logits is not None:
            state["gate_logits"] = logits
        if live is not None:
            state["live"] = live
        if before is not None:
            state = behind(before, state)
        if self.by_pair and gate is not None:
            gate = torch.sigmoid(gate + self._by_head(state["gate_logits"]).transpose(-1, -2))
        return rebased(state), self._reading(parts["query"], state, places, gate), gate

    def _gated(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None]:
        """Queries, keys and values through their gate; the gate; for one per pair, what queries
        and keys have in it each."""
        parts, gate = self._projected(x), self._gate_logits(x)
        if gate is None:
            return parts, None, None
        if self.by_pair:
            own, keys = torch.split(gate, [self.num_heads, self.num_kv_heads], 1)
            return parts, own, keys
        gate = torch.sigmoid(gate)
        place = "query" if self.gate == "score" else self.gate
        if place in parts:
            parts[place] = (wide(parts[place]) * gate).to(parts[place].dtype)
        return parts, gate, None

    @property
    def by_pair(self) -> bool:
        """Whether there is a gate for each pair of a query and a key."""
        return self.gate == "score" and self.per == "element"

    def _projected(self, x: Tensor) -> dict[str, Tensor]:
        """Queries (B, H, T, d), keys and values (B, G, T, d), normed."""
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        rows = self.num_kv_heads * self.head_dim
        split = torch.split(packed, [self.embed_dim, rows, rows], -1)
        query, key, value = (self._heads(part, self.head_dim) for part in split)
        if self.qk_norm:
            query, key = normed(query, self.q_norm.weight), normed(key, self.k_norm.weight)
        return {"query": query, "key": key, "value": value}

    def _heads(self, rows: Tensor, size: int) -> Tensor:
        """(B, T, heads*size) to (B, heads, T, size)."""
        return rows.reshape(*rows.shape[:2], rows.size(-1) // size, size).transpose(1, 2)

    def _gate_logits(self, x: Tensor) -> Tensor | None:
        """The gate's preactivations (B, heads, T, d), or 1 in the place of d."""
        if self.gate_weight is None:
            return None
        rows = wide(F.linear(x, self.gate_weight, self.gate_bias))
        scalar = self.per == "head" or self.gate == "score"
        return self._heads(rows, 1 if scalar else self.head_dim)

    def _log_gates(self, x: Tensor, live: Tensor | None = None) -> Tensor:
        """log sigmoid of the forget gate (B, H, T), 0 in padding; the product is float32 too."""
        if self.forget_weight is None or self.forget_bias is None:
            raise ValueError("forget: expected True, got False")
        with full_precision(x):
            logits = F.linear(wide(x), wide(self.forget_weight), wide(self.forget_bias))
        gates = F.logsigmoid(logits)
        if live is not None:
            gates = blank(gates, live[:, live.size(1) - x.size(1) :])
        return gates.transpose(1, 2)

    def _by_head(self, grouped: Tensor) -> Tensor:
        """What each head reads of (B, G, ...): (B, H, ...)."""
        return grouped.repeat_interleave(self.num_heads // self.num_kv_heads, 1)

    def _reading(
        self, queries: Tensor, state: AttentionState, places: Positions, gate: Tensor | None
    ) -> Reading:
        bias = sink = counts = None
        keys, values = state["keys"], state["values"]
        if self.forget:
            sums = state["log_gates"]
            bias = sums[..., keys.size(2) - queries.size(2) :, None] - sums[..., None, :]
        if self.position == "alibi":
            slopes = alibi(places, self.num_heads, wide(queries).dtype)
            bias = slopes if bias is None else bias + slopes
        if self.sink is not None:
            sink = queries.new_zeros(self.num_heads) if self.sinks is None else self.sinks
        if self.activation == "sigmoid":
            counts = places.queries[..., None] + 1
            counts = counts if counts.dim() == 2 else counts[:, None]
        by_pair = gate if self.by_pair else None
        return Reading(queries, keys, values, places.allowed, bias, sink, by_pair, counts)

    def _output(self, context: Tensor, gate: Tensor | None) -> Tensor:
        """Heads together again, through the gate of outputs and the last product."""
        if self.gate == "output" and gate is not None:
            context = (wide(context) * gate).to(context.dtype)
        output: Tensor = self.out_proj(context.transpose(1, 2).flatten(2))
        return output

    def _check_state(self, state: object, input: Tensor) -> None:
        """It must be a cache of this layer's form, for a batch of this size."""
        heads, groups = self.num_heads, self.num_kv_heads
        size = groups, self.head_dim
        sizes: dict[str, tuple[int, ...]] = {"keys": size, "values": size}
        sizes |= {"log_gates": (heads,)} if self.forget else {}
        sizes |= {"gate_logits": (groups, 1)} if self.by_pair else {}
        check_state(state, input, sizes)

    def extra_repr(self) -> str:
        """The sizes, and the arguments that aren't at their defaults."""
        text = [str(self.embed_dim), str(self.num_heads)]
        told = {name: getattr(self, name) for name in USUAL}
        text += [f"{name}={value!r}" for name, value in told.items() if value != USUAL[name]]
        if self.num_kv_heads != self.num_heads:
            text.append(f"num_kv_heads={self.num_kv_heads}")
        return ", ".join(text + ["bias=False"] * (self.in_proj_bias is None))


def _check_names(gate: str, per: str, sink: object, activation: str, position: object) -> None:
    check_choice("gate", gate, get_args(Gate))
    check_choice("per", per, get_args(Per))
    check_choice("activation", activation, get_args(Activation))
    for name, value, known in (("sink", sink, Sink), ("position", position, Position)):
        if value is not None:
            check_choice(name, value, get_args(known))
    if sink is not None and activation == "sigmoid":
        raise ValueError(
            f"sink: expected None, for a sink is a term of the softmax's sum and sigmoid attention "
            f"has none, got {sink!r}"
        )


def _check_start(forget: bool, forget_bias: float) -> None:
    check_number(forget_bias, "forget_bias")
    if forget_bias and not forget:
        raise ValueError(f"forget_bias: expected 0 without forget=True, got {forget_bias}")
