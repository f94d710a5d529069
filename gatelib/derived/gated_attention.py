"""Causal multi-head attention with its gates, head by head.

Imports NumPy, gatelib.equations: attention, gated_attention, gmlp, and
gatelib.derived.tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.derived.tape import Value, Values, gate, join, linear, split, swap
from gatelib.equations import attention as reads
from gatelib.equations import gated_attention as around
from gatelib.equations.gmlp import MASK

__all__ = ["Form", "layer", "live_steps", "turned"]

Array = NDArray[Any]
Lengths = Array | None


@dataclass(frozen=True)
class Form:
    """What a layer does that its weights don't tell.

    gate: "query", "key", "value", "score", "output" or "none"; per: "element" or "head". sink:
    whether there is one; activation: "softmax" or "sigmoid"; position: None, "rope" or "alibi".
    """

    heads: int = 1
    kv_heads: int | None = None
    gate: str = "none"
    per: str = "element"
    sink: bool = False
    activation: str = "softmax"
    position: str | None = None

    @property
    def shared(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def gated(self) -> int:
        """Heads of what is gated."""
        return self.shared if self.gate in ("key", "value") else self.heads

    def read_by(self, head: int) -> int:
        """The head of keys and values that a head of queries reads."""
        return head // (self.heads // self.shared)


def layer(form: Form, given: Values, lengths: Lengths = None) -> dict[str, Value]:
    """A whole layer: `x` (B, T, D) to `y` (B, T, D); position t reads 0 … t.

    given: `W` (D + 2C, D), `b`, rows of queries, keys and values; with a gate `W_g`, `b_g`; with
    norms `w_q`, `w_k` (d,); with learned sinks `s` (H,); with forgetting `W_f` (H, D), `b_f`; `W_o`
    (D, D), `b_o`. lengths (B,): live positions.
    """
    live = live_steps(given["x"], lengths)
    x = gate(MASK, x=given["x"], mask=live)["y"]
    inside = {**given, "x": x}
    parts = _parts(form, inside)
    mask = (live[:, None, :, 0] > 0) & np.tri(x.shape[1], dtype=bool)
    made = []
    for head in range(form.heads):
        at = form.read_by(head)
        own = parts["query"][head], parts["key"][at], parts["value"][at]
        e = _score(form, head, inside, own[0], own[1])
        c = _read(form, head, inside, e, own[2], mask)
        made.append(_gated(form, "output", head, inside, c))
    y = linear(join(made), given["W_o"], given.get("b_o"))
    return {"y": gate(MASK, x=y, mask=live)["y"]}


def live_steps(x: Value, lengths: Lengths) -> Array:
    """(B, T, 1) of 1 where there is a position, of 0 for padding."""
    given = np.full(x.shape[0], x.shape[1]) if lengths is None else lengths
    return np.asarray(np.arange(x.shape[1]) < given[:, None], x.array.dtype)[..., None]


# ---- queries, keys and values ---------------------------------------------------------------


def _parts(form: Form, given: Values) -> dict[str, list[Value]]:
    """Each head's queries, keys and values (B, T, d): normalised, gated, turned."""
    rows = split(linear(given["x"], given["W"], given.get("b")), form.heads + 2 * form.shared)
    ends = form.heads, form.heads + form.shared
    made = {"query": rows[: ends[0]], "key": rows[ends[0] : ends[1]], "value": rows[ends[1] :]}
    for place, gain in (("query", "w_q"), ("key", "w_k")):
        if gain in given:
            made[place] = [gate(around.QK_NORM, x=v, w=given[gain])["n"] for v in made[place]]
    made = {
        place: [_gated(form, place, at, given, value) for at, value in enumerate(values)]
        for place, values in made.items()
    }
    if form.position == "rope":
        made |= {place: [turned(v) for v in made[place]] for place in ("query", "key")}
    return made


def _gated(form: Form, place: str, head: int, given: Values, value: Value) -> Value:
    """The value (B, T, d), gated if this is the place."""
    if form.gate != place:
        return value
    a = split(linear(given["x"], given["W_g"], given.get("b_g")), form.gated)[head]
    return gate(reads.OUTPUT_GATE, a=a, o=value)["y"]


def turned(value: Value) -> Value:
    """Features m and m + d/2 of (…, T, d), turned by the position times 10000^(−2m/d)."""
    steps, size = value.shape[-2:]
    angle = np.arange(steps)[:, None] / 10_000.0 ** (2 * np.arange(size // 2) / size)
    cosine, sine = (np.concatenate(two, -1) for two in _two(angle))
    partner = value[..., np.roll(np.arange(size), size // 2)]
    return gate(around.ROTATION, x=value, p=partner, c=cosine, s=sine)["y"]


def _two(angle: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The cosines and sines of both halves: y = x cos − p sin, and p sin + x cos of the partner."""
    return (np.cos(angle), np.cos(angle)), (-np.sin(angle), np.sin(angle))


# ---- scores and reads -----------------------------------------------------------------------


def _score(form: Form, head: int, given: Values, query: Value, key: Value) -> Value:
    """A head's scores (B, T, 1, S), with what is put on them."""
    size = float(key.shape[-1])
    e = gate(reads.SCALED, q=query[:, :, None], k=key[:, None], d=size)["e"]
    e = e[..., 0][:, :, None]
    if form.gate == "score":
        e = gate(around.SCORE_GATE, a=_score_gate(form, head, given), e=e)["s"]
    if "W_f" in given:
        l = gate(around.LOG_GATE, a=linear(given["x"], given["W_f"], given["b_f"]))["l"]
        sums = _running(l[..., head])
        e = gate(around.FORGET_BIAS, e=e, l_i=_by_query(sums), l_j=_by_key(sums))["s"]
    if form.position == "alibi":
        steps = np.arange(e.shape[-1])
        back = (steps[:, None] - steps)[:, None].astype(float)
        e = gate(around.ALIBI_BIAS, e=e, m=_slope(head, form.heads), r=back)["s"]
    return e


def _score_gate(form: Form, head: int, given: Values) -> Value:
    """What opens the scores of a head: of the query, or of the query and the key."""
    a = linear(given["x"], given["W_g"], given.get("b_g"))
    own = _by_query(a[..., head])
    if form.per == "head":
        return own
    return own + _by_key(a[..., form.heads + form.read_by(head)])


def _by_query(value: Value) -> Value:
    """(B, T) against the axes (B, T, 1, S)."""
    return value[:, :, None, None]


def _by_key(value: Value) -> Value:
    """(B, S) against the axes (B, T, 1, S)."""
    return value[:, None, None]


def _running(value: Value) -> Value:
    """Sums (B, T) of (B, T) up to each step: a product with a triangle of ones."""
    return linear(value, Value(np.tri(value.shape[1]), value.tape))


def _slope(head: int, heads: int) -> float:
    """ALiBi's slope of a head, 2^(−8 (head + 1)/H); see the authors' code where H is no 2^n."""
    below = 1 << (heads.bit_length() - 1)
    if head < below:
        return float(2.0 ** (-8 * (head + 1) / below))
    return _slope(2 * (head - below), 2 * below)


def _read(form: Form, head: int, given: Values, e: Value, value: Value, mask: Array) -> Value:
    """What a head reads (B, T, d) by its scores (B, T, 1, S), where the mask (B, T, S) is true.

    A softmax is the same after a shift of all scores and the sink, here by the largest of them; a
    query that sees nothing is let see all, for its output is shut.
    """
    v = swap(value, 1, 2)[:, None]
    open_ = (mask | ~mask.any(axis=-1, keepdims=True))[:, :, None]
    seen = open_.sum(axis=-1, keepdims=True)
    if form.activation == "sigmoid":
        found = gate(reads.SIGMOID_READ, e=_shifted(e, open_, 0.0), mask=open_ + 0.0, n=seen, v=v)
        return found["c"][..., 0]
    known = np.where(open_, e.array, -np.inf)
    top = known.max(axis=-1, keepdims=True, initial=-np.inf)
    if not form.sink:
        return gate(reads.MASKED, e=_shifted(e, open_, -top), mask=open_ + 0.0, v=v)["c"][..., 0]
    s = given["s"][head : head + 1] if "s" in given else Value(np.zeros(1), e.tape)
    top = np.maximum(top, s.array)
    more = {"s": s + Value(-top, e.tape), "mask": open_ + 0.0}
    return gate(reads.SINK_READ, e=_shifted(e, open_, -top), v=v, **more)["c"][..., 0]


def _shifted(e: Value, open_: Array, by: Any) -> Value:
    """Scores plus a constant where a position is seen, −∞ elsewhere."""
    return e + Value(np.where(open_, by, -np.inf), e.tape)
