"""A layer of experts: every expert sees every token, and the weights decide what counts.

Imports NumPy, gatelib.equations.moe, gatelib.spec, and of gatelib.derived glu and tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.

Nothing is dispatched here: an expert that does not see a token has the weight 0.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from gatelib.derived.glu import mlp
from gatelib.derived.tape import Value, Values, gate, join, linear, swap
from gatelib.equations.moe import COMBINE, DROP, GATED_SHARED, SHARED
from gatelib.spec import Spec

__all__ = ["combine", "drop", "share", "soft"]

Array = NDArray[Any]

_TIMES = Spec.parse("times", "a b -> y", "y = a*b")


def combine(
    spec: Spec, given: Values, identity: int = 0, scales: str = "output"
) -> dict[str, Value]:
    """`x` (N, D), `weights` (N, E + identity), `W_in` (E, G·H, D), `W_out` (E, D, H) to `y`.

    spec: a gate of equations.glu. Where `scales` is input, an expert sees w x, and counts as it is
    if w isn't 0.
    """
    x, weights = given["x"], given["weights"]
    outs, counted = [], weights
    if scales == "input":
        counted = Value((weights.array != 0).astype(weights.array.dtype), weights.tape)
    for expert in range(given["W_in"].shape[0]):
        own = {name: given[name][expert] for name in ("W_in", "W_out")}
        seen = x if scales == "output" else gate(_TIMES, a=x, b=weights[:, expert, None])["y"]
        outs.append(mlp(spec, {"x": seen} | own)["y"][..., None])
    every = join([*outs, *(x[..., None] for _ in range(identity))])
    return {"y": gate(COMBINE, w=counted[:, None], v=every)["y"][..., 0]}


def drop(weights: Value, keep: Array, spec: Spec = DROP) -> Value:
    """The weights (N, E) where an expert had room: keep (N, E)."""
    return gate(spec, w=weights, keep=keep.astype(weights.array.dtype))["d"]


def share(spec: Spec, given: Values) -> dict[str, Value]:
    """`y`, `x` (N, D), `W_in`, `W_out`, perhaps `gate` (D,), to `o`: y with a shared expert."""
    f = mlp(spec, given)["y"]
    if "gate" not in given:
        return {"o": gate(SHARED, y=given["y"], f=f)["o"]}
    a = linear(given["x"], given["gate"][None])
    return {"o": gate(GATED_SHARED, y=given["y"], f=f, a=a)["o"]}


def soft(spec: Spec, given: Values) -> dict[str, Value]:
    """`x` (B, T, D), `dispatch` and `combine` (B, T, S), `W_in`, `W_out` to `y` (B, T, D)."""
    x, experts = given["x"], given["W_in"].shape[0]
    each = given["dispatch"].shape[2] // experts
    read = swap(given["dispatch"], 1, 2)[:, :, None]  # (B, S, 1, T)
    mixed = gate(COMBINE, w=read, v=swap(x, 1, 2)[:, None])["y"][..., 0]
    outs = []
    for expert in range(experts):
        own = {name: given[name][expert] for name in ("W_in", "W_out")}
        rows = mixed[:, expert * each : (expert + 1) * each]
        outs.append(mlp(spec, {"x": rows} | own)["y"])
    out = swap(join(outs, axis=1), 1, 2)[:, None]  # (B, 1, D, S)
    return {"y": gate(COMBINE, w=given["combine"][:, :, None], v=out)["y"][..., 0]}
