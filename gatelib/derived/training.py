"""Optimisers over their steps: Specs with carries and no matrix product, such as momentum.

Imports NumPy and gatelib.spec.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.

Nothing is differentiated here: a step of an optimiser is a forward pass, whose state is the weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.spec import Spec

__all__ = ["unfold"]

Array = NDArray[Any]


def unfold(
    spec: Spec,
    inputs: Mapping[str, Any],
    start: Mapping[str, Any],
    constants: Mapping[str, Any],
) -> dict[str, Array]:
    """Every output of every step, each (T, ...).

    inputs: T values by name, one a step. start: carries before the first step, by their name
    without `_prev`; 0 where not given, and a name that this variant doesn't carry is left aside.
    constants: values that stay. Raises ValueError where no carry is given or an input is missing.
    """
    carried = {str(now): str(before) for before, now in spec.carries.items()}
    if not set(carried) & set(start):
        raise ValueError(f"start: expected names of {sorted(carried)}, got {sorted(start)}")
    state = {before: start.get(now, 0.0) for now, before in carried.items()}
    path: list[dict[str, Any]] = []
    steps = len(next(iter(inputs.values())))
    for t in range(steps):
        now = {name: values[t] for name, values in inputs.items()}
        path.append(spec.evaluate(dict(constants) | state | now))
        state = {before: path[-1][name] for name, before in carried.items()}
    return {name: np.array([step[name] for step in path]) for name in path[0]}
