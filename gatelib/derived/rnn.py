"""Cells over time: any recurrent cell, Jordan's net, a skip over k steps.

Imports gatelib.cell, gatelib.spec and gatelib.derived.tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from gatelib.cell import Cell, cell
from gatelib.derived.tape import Value, Values, gate, linear, split, stack
from gatelib.spec import Spec

__all__ = ["jordan", "over_time", "preactivations", "skip", "through"]


def over_time(stages: Spec | Sequence[Spec] | Cell, given: Values) -> dict[str, Value]:
    """A cell of one or several stages over a sequence.

    given: `x` (B, T, D); `W` (G·H, D), `U` (G·H, H) and `b` (G·H,) in the order of the cell's
    preactivations `a_k`; where it has `u_k`, perhaps a second bias `b_u`, added to U h; its
    vectors (H,); and the initial states `h0`, `c0`, … (B, H). Returns `y` (B, T, H) and the final
    states as `final_h`, `final_c`, …; an empty sequence gives the initial states back.
    """
    read = cell(stages).checked()
    state, ys = {name: given[f"{name}0"] for name in read.states}, []
    vectors = {name: given[name] for name in read.vectors}
    for t in range(given["x"].shape[1]):
        known = vectors | {f"{name}_prev": value for name, value in state.items()}
        from_x = linear(given["x"][:, t], given["W"], given["b"])
        known = through(read, from_x, state["h"], given["U"], known, given.get("b_u"))
        state = {name: known[name] for name in read.states}
        ys.append(state["h"])
    y = stack(ys, like=given["h0"])
    return {"y": y} | {f"final_{name}": value for name, value in state.items()}


def through(
    read: Cell, from_x: Value, source: Value, U: Value, known: Values, bias: Value | None = None
) -> dict[str, Value]:
    """All stages of a cell in one step, from W x + b (B, G·H) and what else they may use by name.

    U (G·H, H) multiplies `source` in the first stage, and the output `q` behind it. Returns the
    values that were known and those that the stages compute.
    """
    known, start = dict(known), 0
    for stage in read.stages:
        gates = read.gates_of(stage)
        rows = slice(start, start + len(gates) * U.shape[1])
        from_h = linear(source, U[rows], None if bias is None else bias[rows])
        blocks = zip(split(from_x[:, rows], len(gates)), split(from_h, len(gates)), strict=True)
        for k, (a, u) in zip(gates, blocks, strict=True):
            known |= {f"a_{k}": a, f"u_{k}": u} if k in read.split else {f"a_{k}": a + u}
        known |= gate(stage, **known)
        source, start = known.get("q", source), rows.stop
    return known


def preactivations(spec: Spec, packed: Value) -> dict[str, Value]:
    """The `a_k` of a Spec by name, from blocks of the last axis in their order."""
    names = [f"a_{k}" for k in cell(spec).gates]
    return dict(zip(names, split(packed, len(names)), strict=True))


def skip(spec: Spec, given: Values) -> dict[str, Value]:
    """A cell whose preactivation is W x_t + U h_{t−1} + V h_{t−k} + b.

    given: `x` (B, T, D), `W`, `U`, `V`, `b`, and `h0` (B, k, H), the states before the first step.
    Returns `y` (B, T, H) and `final_h` (B, k, H), the last k states.
    """
    back = given["h0"].shape[1]
    states = [given["h0"][:, j] for j in range(back)]
    for t in range(given["x"].shape[1]):
        a = linear(given["x"][:, t], given["W"], given["b"])
        a = a + linear(states[-1], given["U"]) + linear(states[-back], given["V"])
        states.append(gate(spec, h_prev=states[-1], **preactivations(spec, a))["h"])
    like = states[0]
    return {"y": stack(states[back:], like), "final_h": stack(states[-back:], like)}


def jordan(hidden: Spec, output: Spec, given: Values) -> dict[str, Value]:
    """Jordan's net, whose hidden units read the state of its outputs.

    given: `x` (B, T, D); `W`, `U`, `b` of the hidden units, `Q`, `c` of the outputs; `s0` (B, O).
    Returns `y` (B, T, O) and `final_s` (B, O).
    """
    s, ys = given["s0"], []
    for t in range(given["x"].shape[1]):
        a = linear(given["x"][:, t], given["W"], given["b"]) + linear(s, given["U"])
        h = gate(hidden, **preactivations(hidden, a))["h"]
        made = gate(output, a_y=linear(h, given["Q"], given["c"]), s_prev=s)
        s = made["s"]
        ys.append(made["y"])
    return {"y": stack(ys, like=given["s0"]), "final_s": s}
