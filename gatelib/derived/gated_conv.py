"""Gated convolutions along one axis: what a kernel covers, a linear map of it, and a gate.

Imports gatelib.spec, and of gatelib.derived conv_rnn and tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.
"""

from __future__ import annotations

from gatelib.derived.conv_rnn import flattened, unfolded
from gatelib.derived.tape import Value, Values, gate, linear, split, swap
from gatelib.spec import Spec

__all__ = ["layer"]


def layer(spec: Spec, given: Values, dilation: int = 1, causal: bool = True) -> dict[str, Value]:
    """One layer: `x` (B, D, T), `W` (G·C, D, k) and `b` (G·C,) to `y` (B, C, T).

    The blocks of rows are in the reverse order of the Spec's inputs: the value, then its gate.
    """
    size = given["W"].shape[2]
    reach = dilation * (size - 1)
    zeros = (reach, 0) if causal else (reach // 2, reach - reach // 2)
    line = unfolded(given["x"][:, :, None], (1, size), ((0, 0), zeros), (1, dilation))
    packed = linear(line[:, 0], flattened(given["W"]), given["b"])
    names = [str(v) for v in reversed(spec.inputs)]
    parts = dict(zip(names, split(packed, len(names)), strict=True))
    return {"y": swap(gate(spec, **parts)["y"], 1, 2)}
