"""The one-shot cell: all choices of `gatelib.lab.search.Parts` at once, each with a weight.

Imports gatelib.pieces, gatelib.spec and gatelib.lab.search.
Must not import torch.

Each part is the sum of its choices, weighted by `p_PART_CHOICE`. Where of each part one weight is 1
and the others are 0, the cell is that of those `Parts`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping

from gatelib import pieces
from gatelib.lab.search import CHOICES, Parts, chosen_from
from gatelib.spec import Spec

__all__ = ["ALL_AT_ONCE", "discretised", "one_shot", "tied"]

ALL_AT_ONCE = Spec.parse(
    "one_shot",
    "a_f a_i a_r a_g a_o u_g p_keep_all p_keep_gate p_keep_open"
    " p_write_all p_write_gate p_write_rest p_candidate_tanh p_candidate_relu p_candidate_identity"
    " p_reset_none p_reset_own p_reset_keep p_reset_write"
    " p_output_state p_output_tanh p_output_gate p_output_both c_prev -> h c",
    """
    f = sigmoid(a_f)
    e = sigmoid(a_f + 2)
    i = sigmoid(a_i)
    r = sigmoid(a_r)
    o = sigmoid(a_o)
    keep = p_keep_all + p_keep_gate*f + p_keep_open*e
    write = p_write_all + p_write_gate*i + p_write_rest*(1 - keep)
    reset = p_reset_none + p_reset_own*r + p_reset_keep*keep + p_reset_write*write
    a = a_g + reset*u_g
    g = p_candidate_tanh*tanh(a) + p_candidate_relu*relu(a) + p_candidate_identity*a
    c = keep*c_prev + write*g
    m = tanh(c)
    h = p_output_state*c + p_output_tanh*m + p_output_gate*o*c + p_output_both*o*m
    """,
)
"""Every choice of every part; to keep nothing, `none`, adds nothing and has no weight here."""


def one_shot(**allowed: Collection[str]) -> Spec:
    """One cell over all choices of each part, or over those that are allowed.

    Its weights `p_PART_CHOICE` are vectors of length H, which `nn.Recurrent` learns; whoever wants
    one number for all units ties them, or see `tied`. A part with one choice has no weight.

    Args:
        allowed: the choices of a part: candidate=("tanh", "relu").

    Raises: ValueError for a part or a choice that there isn't, or a part without a choice.
    """
    options = chosen_from(allowed)
    fixed: dict[str, float | str] = {}
    for part, choices in CHOICES.items():
        for choice in choices:
            if f"p_{part}_{choice}" in map(str, ALL_AT_ONCE.inputs):
                if choice not in options[part]:
                    fixed[f"p_{part}_{choice}"] = 0
                elif len(options[part]) == 1:
                    fixed[f"p_{part}_{choice}"] = 1
    return ALL_AT_ONCE.subs(**fixed)


def tied(spec: Spec) -> Spec:
    """A one-shot cell whose weights are a softmax of one number each, shared by all units.

    The number is the mean of a learned vector `b_PART_CHOICE`, which starts at 0: all its elements
    get the same gradient, so that under Adam it moves as a single number would.

    Args:
        spec: a cell of `one_shot`.

    Source: Liu et al. 2019, arXiv:1806.09055, eq. 2.
    """
    weights = [str(v) for v in spec.inputs if str(v).startswith("p_")]
    lines = list[str]()
    for part, choices in CHOICES.items():
        own = [c for c in choices if f"p_{part}_{c}" in weights]
        own += ["none"] if part == "keep" and own else []
        lines += [f"e_{part}_{c} = exp(mean(b_{part}_{c}))" for c in own]
        total = " + ".join(f"e_{part}_{c}" for c in own)
        lines += [
            f"p_{part}_{c} = e_{part}_{c}/({total})" for c in own if c != "none" or part != "keep"
        ]
    names = [line.split()[0].replace("e_", "b_", 1) for line in lines if line.startswith("e_")]
    lines += [f"{v} = {pieces.text(e)}" for v, e in spec.equations]
    rest = [str(v) for v in spec.inputs if str(v) not in weights]
    signature = f"{' '.join([*rest, *names])} -> {' '.join(map(str, spec.outputs))}"
    return Spec.parse(f"{spec.name}_tied", signature, "\n".join(lines))


def discretised(weights: Mapping[str, Mapping[str, float]]) -> Parts:
    """The cell whose choices have the largest product of weights, of those that make a cell.

    Args:
        weights: {part: {choice: a weight that isn't negative}}.

    Raises: ValueError for a part or a choice that there isn't.
    """
    options = chosen_from({part: tuple(own) for part, own in weights.items()})
    cells = map(Parts._make, itertools.product(*options.values()))

    def size(parts: Parts) -> float:
        own = (weights.get(part, {}).get(choice, 1.0) for part, choice in parts._asdict().items())
        return math.prod(own)

    return max((parts for parts in cells if not parts.problem), key=size)
