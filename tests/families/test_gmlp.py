"""gMLP: equations, NumPy and torch agree; padding and the future reach nobody."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from gatelib import derived, lab
from gatelib.equations import gmlp as equations
from gatelib.nn import GMLPBlock
from gatelib.reference import gmlp as reference
from gatelib.reference.gmlp import Kind
from tests.families.witnesses import assert_agree

UNIT = {"W": "weight", "b": "bias", "gamma": "norm.weight", "beta": "norm.bias"}
BLOCK = {name: f"unit.{place}" for name, place in UNIT.items()} | {
    "gamma_x": "norm.weight",
    "beta_x": "norm.bias",
    "U": "proj_in.weight",
    "b_U": "proj_in.bias",
    "V": "proj_out.weight",
    "b_V": "proj_out.bias",
    "Q": "qkv.weight",
    "O": "proj_attention.weight",
    "b_O": "proj_attention.bias",
}
"""Where the weights of the reference are in the modules."""

BOTH = [Kind(gate, split) for gate in ("multiplicative", "additive") for split in (True, False)]
KINDS = [*BOTH, Kind("linear", False), Kind("none", False)]
MIXING = KINDS[:-1]
TAUGHT = 0.3
"""How far gains and shifts lie from their start in a test, so that none is taken for 1 or 0."""


def name_of(kind):
    return f"{kind.gate}{'' if kind.split else ' whole'}{' causal' if kind.causal else ''}"


def problem(kind, shape=(3, 5, 4), hidden=12, length=7, heads=1, attention=None, seed=0):
    """x, weights that have left their start, the upstream gradient, and lengths."""
    rng = np.random.default_rng(seed)
    weights = reference.initialize(
        rng, shape[2], hidden, length, kind, heads, attention, paper=False
    )
    for name in weights.keys() & {"gamma", "gamma_x", "beta", "beta_x"}:
        weights[name] += TAUGHT * rng.normal(size=weights[name].shape)
    lengths = np.minimum(np.arange(shape[0]) + 2, max(shape[1], 1))
    return rng.normal(size=shape), weights, rng.normal(size=shape), lengths


def by_equations(kind, x, weights, dy, lengths=None):
    spec = equations.spec_of(kind.gate, "Q" in weights)
    options = {"halves": kind.split, "causal": kind.causal, "lengths": lengths}
    run = partial(derived.gmlp.block, spec, **options)
    return derived.gradients(run, {"x": x} | weights, {"y": dy})


def by_hand(kind, x, weights, dy, lengths=None):
    y, saved = reference.forward(x, weights, kind, lengths)
    return {"y": y} | {f"d_{k}": v for k, v in reference.backward(dy, saved).items()}


def module_of(kind, weights, dtype=torch.float64):
    """The block that has these weights' sizes."""
    heads, length = weights["W"].shape[:2] if "W" in weights else (1, 7)
    hidden, features = weights["U"].shape
    attention = len(weights["Q"]) // 3 if "Q" in weights else None
    options = {"gate": kind.gate, "split": kind.split, "heads": heads, "dtype": dtype}
    return GMLPBlock(features, hidden, length, kind.causal, attention=attention, **options)


def by_torch(kind, x, weights, dy, lengths=None):
    module = module_of(kind, weights)
    row = None if lengths is None else torch.tensor(lengths)

    def run(given):
        own = {BLOCK[name]: given[name] for name in weights}
        return {"y": lab.called(module, own, given["x"], row)}

    return lab.gradients(run, {"x": x} | weights, {"y": dy})


def three(kind, *case):
    """What the three witnesses found, each in every output and gradient."""
    expected = by_equations(kind, *case)
    assert_agree(by_hand(kind, *case), expected)
    assert_agree(by_torch(kind, *case), expected)
    return expected


@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_equations_hand_and_torch_agree(kind, causal):
    kind = Kind(kind.gate, kind.split, causal)
    *case, lengths = problem(kind)
    three(kind, *case)
    three(kind, *case, lengths)


@pytest.mark.parametrize("kind", MIXING, ids=name_of)
def test_they_agree_with_a_small_attention_and_with_heads(kind):
    for causal in (False, True):
        kind = Kind(kind.gate, kind.split, causal)
        *case, lengths = problem(kind, heads=3, attention=5)
        three(kind, *case)
        three(kind, *case, lengths)
