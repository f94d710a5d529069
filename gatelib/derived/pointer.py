"""The pointer-generator: a softmax over the vocabulary, attention summed by word, and the switch.

Imports NumPy, gatelib.spec, gatelib.equations of gate and stacks, and gatelib.derived.tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.derived.tape import Value, Values, gate, join, linear
from gatelib.equations.gate import SOFTMAX
from gatelib.equations.stacks import POOL
from gatelib.spec import Spec

__all__ = ["mixture"]

LOG = Spec.parse("log_of", "v -> y", "y = log(v)")
"""A logarithm."""


def mixture(
    spec: Spec,
    given: Values,
    source: NDArray[Any],
    extra: int = 0,
    lengths: NDArray[Any] | None = None,
) -> dict[str, Value]:
    """Log-probabilities `y` (B, T, V + extra) and switches `p` (B, T), by probabilities.

    given: `logits` (B, T, V), `attention` (B, T, S), `features` (B, T, F), `w` (F,) and `b` ().
    source: the word (B, S) at each place. A word that neither knows has −∞, with no gradient.
    """
    logits, attention = given["logits"], given["attention"]
    words = logits.shape[-1] + extra
    live = np.arange(source.shape[1]) < (source.shape[1] if lengths is None else lengths[:, None])
    of_word = (source[:, None] == np.arange(words)[:, None]) * live[:, None]  # (B, words, S)
    u = gate(SOFTMAX, a=logits, v=1.0)["y"]
    empty = Value(np.zeros((*logits.shape[:2], extra)), u.tape)
    copied = gate(POOL, g=attention[:, :, None], v=1.0 * of_word[:, None])["y"][..., 0]
    a = linear(given["features"], given["w"][None], given["b"][None])
    made = gate(spec.exposed, a=a, u=join([u, empty]), v=copied)
    possible = np.zeros(made["y"].shape, bool)
    possible[..., : logits.shape[-1]] = True
    possible |= (of_word.sum(axis=-1) > 0)[:, None]
    filled = made["y"] + Value(1.0 * ~possible, u.tape)
    y = gate(LOG, v=filled)["y"] + Value(np.where(possible, 0.0, -np.inf), u.tape)
    return {"y": y, "p": made["p"][..., 0]}
