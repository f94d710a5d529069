"""gMLP: a spatial gating unit, and the block around it, with or without a small attention.

Imports NumPy, gatelib.equations, gatelib.spec, and of gatelib.derived attention and tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.derived.attention import attend
from gatelib.derived.tape import Value, Values, gate, join, linear, split, swap
from gatelib.equations import attention, gmlp
from gatelib.spec import Spec

__all__ = ["block", "unit"]

Lengths = NDArray[Any] | None


def unit(
    spec: Spec, given: Values, halves: bool = True, causal: bool = False, lengths: Lengths = None
) -> dict[str, Value]:
    """A spatial gating unit with the gate `spec`.

    given: `z` (B, T, E); where the gate reads a mixture `W` (H, N, N), `b` (H, N), of which the
    first T positions are used, `gamma`, `beta` (F,); where it reads attention `c` (B, T, F). F is
    E/2 with `halves`, E without. lengths (B,): live positions. Returns `s` (B, T, F).
    """
    z = given["z"]
    u, v = split(z, 2) if halves else (z, z)
    live = _live(z, lengths)
    if all(str(name) != "m" for name in spec.inputs):
        return {"s": gate(gmlp.MASK, x=gate(spec, u=u)["s"], mask=live)["y"]}
    n = gate(gmlp.NORM, v=v, gamma=given["gamma"], beta=given["beta"])["n"]
    n = gate(gmlp.MASK, x=n, mask=live)["y"]
    steps, heads = z.shape[1], given["W"].shape[0]
    lower = np.tril(np.ones((steps, steps))) if causal else np.ones((steps, steps))
    parts = {"u": split(u, heads), "n": split(n, heads)}
    parts |= {"c": split(given["c"], heads)} if "c" in given else {}
    made = []
    for head in range(heads):
        weight = gate(gmlp.MASK, x=given["W"][head, :steps, :steps], mask=lower)["y"]
        own = {name: values[head] for name, values in parts.items()}
        own["m"] = swap(linear(swap(own["n"], 1, 2), weight), 1, 2)
        made.append(gate(spec, **own, b=given["b"][head, :steps][:, None])["s"])
    return {"s": gate(gmlp.MASK, x=join(made), mask=live)["y"]}


def block(
    spec: Spec, given: Values, halves: bool = True, causal: bool = False, lengths: Lengths = None
) -> dict[str, Value]:
    """A gMLP block: `x` (B, T, D) to `y` (B, T, D).

    given besides `unit`'s: `gamma_x`, `beta_x` (D,), `U` (E, D), `b_U`, `V` (D, F), `b_V`; where
    the gate reads attention `Q` (3·A, D), queries, keys and values, `O` (F, A) and `b_O`.
    """
    x = given["x"]
    n = gate(gmlp.NORM, v=x, gamma=given["gamma_x"], beta=given["beta_x"])["n"]
    z = gate(gmlp.HIDDEN, a=linear(n, given["U"], given["b_U"]))["z"]
    inside = {**given, "z": z}
    if "Q" in given:
        names = "queries", "keys", "values"
        parts = dict(zip(names, split(linear(n, given["Q"]), 3), strict=True))
        found = attend(attention.SCALED, attention.READ, parts, lengths, causal)["context"]
        inside["c"] = linear(found, given["O"], given["b_O"])
    s = unit(spec, inside, halves, causal, lengths)["s"]
    y = gate(gmlp.SHORTCUT, x=x, o=linear(s, given["V"], given["b_V"]))["y"]
    return {"y": gate(gmlp.MASK, x=y, mask=_live(x, lengths))["y"]}


def _live(x: Value, lengths: Lengths) -> NDArray[Any]:
    """(B, T, 1) of 1 where there is a position, of 0 for padding; (1, T, 1) where all are."""
    steps = np.arange(x.shape[1])
    given = np.array([x.shape[1]]) if lengths is None else lengths
    return np.asarray(steps < given[:, None], x.array.dtype)[..., None]
