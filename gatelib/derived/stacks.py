"""Recurrent layers on top of each other: two directions, masks between them, shortcuts.

Imports NumPy, gatelib.cell, gatelib.equations.stacks, gatelib.spec, and of gatelib.derived rnn and
tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from gatelib.cell import Cell
from gatelib.derived.rnn import over_time
from gatelib.derived.tape import Value, Values, gate, join, under
from gatelib.equations.stacks import DROPOUT, RESIDUAL
from gatelib.spec import Spec

__all__ = ["layers"]

Mask = tuple[NDArray[Any], float]


def layers(
    cell: Spec | Sequence[Spec] | Cell,
    given: Values,
    masks: Sequence[Mask | None] = (),
    residual: bool = False,
) -> dict[str, Value]:
    """A stack of layers of one cell, each of one or two directions.

    given: `x` (B, T, D), and `K.WAY.NAME` for layer K and direction WAY, with the weights and
    initial states of gatelib.derived.rnn.over_time. masks[K]: zeros and ones on the input of layer
    K, and the probability of a one. residual: a shortcut around each layer but the first. Returns
    `y` (B, T, F) and the final states as `K.WAY.final_h`, ….
    """
    x, finals, k = given["x"], dict[str, Value](), 0
    while f"{k}.0.W" in given:
        read = x
        if masks and (mask := masks[k]):
            read = gate(DROPOUT, m=mask[0], keep=mask[1], v=x)["y"]
        outputs: list[Value] = []
        while f"{k}.{len(outputs)}.W" in given:
            made = _way(cell, read, f"{k}.{len(outputs)}.", given)
            outputs.append(made.pop("y"))
            finals |= made
        y = join(outputs)
        x = gate(RESIDUAL, x=x, f=y)["y"] if residual and k else y
        k += 1
    return finals | {"y": x}


def _way(
    cell: Spec | Sequence[Spec] | Cell, x: Value, place: str, given: Values
) -> dict[str, Value]:
    """One direction of one layer: the second reads the steps from the last to the first."""
    order = slice(None, None, -1 if place.endswith(".1.") else 1)
    made = over_time(cell, under(place, given) | {"x": x[:, order]})
    return {"y": made.pop("y")[:, order]} | {f"{place}{name}": v for name, v in made.items()}
