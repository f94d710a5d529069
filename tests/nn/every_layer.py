"""Every layer of the library with an input: what must run on any device as it runs on a CPU.

Imports torch, gatelib.nn and gatelib.equations.
Must not import Hypothesis or SciPy: a machine with a GPU may have neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import gatelib.nn as gates
from gatelib.equations.gru import MGU
from gatelib.equations.lstm import CIFG, LAYERNORM, LSTM, PEEPHOLE

SHAPE = (3, 5, 4)
FILM = (3, 4, 2, 3, 4)
LENGTHS = (5, 3, 1)
IMAGE = (3, 4, 5, 2)
SHAPES = {
    "sequence": [SHAPE],
    "step": [SHAPE[::2]],
    "pair": [SHAPE, SHAPE],
    "film": [FILM],
    "image": [IMAGE],
    "image and condition": [IMAGE, SHAPE[::2]],
}
"""What a layer is called with, by the kind of its case."""


@dataclass(frozen=True)
class Case:
    """A layer, what it is called with besides one input, and the kind of that input.

    kind: "sequence" (B, T, D), "step" (B, D), "pair" of two sequences, "film" (B, T, C, H, W),
    "tokens" of a sentence, "pointer" (logits, attention, tokens and three sequences),
    "image" (B, C, H, W), "image and condition" (B, D).
    """

    name: str
    make: Callable[[], nn.Module]
    kind: str = "sequence"
    options: dict[str, Any] = field(default_factory=dict)

    def module(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The layer on the CPU, the same weights each time."""
        torch.manual_seed(0)
        return self.make().to(dtype)

    def inputs(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        """What it is called with, on the CPU."""
        generator = torch.Generator().manual_seed(1)
        if self.kind == "tokens":
            source, target = (torch.randint(3, 7, (3, 5), generator=generator) for _ in range(2))
            return source, torch.tensor(LENGTHS), target
        if self.kind == "pointer":
            return self._pointed(generator, dtype)
        shapes = SHAPES[self.kind]
        drawn = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
        return tuple(x.to(dtype).requires_grad_() for x in drawn)

    def _pointed(self, generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Logits, attention, words of the source, and what a switch sees."""
        drawn = [torch.randn(SHAPE, generator=generator).to(dtype) for _ in range(4)]
        attention = torch.rand(3, 5, 5, generator=generator).to(dtype)
        words = torch.randint(0, 4, (3, 5), generator=generator)
        logits, *seen = (x.requires_grad_() for x in drawn)
        return logits, attention, words, *seen


def recurrent(spec: Any, **options: Any) -> Callable[[], nn.Module]:
    """A layer of any cell, with four inputs and six units."""
    return lambda: gates.Recurrent(spec, 4, 6, **options)


def translator() -> nn.Module:
    """Tokens to tokens, with attention."""
    encoder, decoder = (gates.Recurrent(LSTM, 4, 6) for _ in range(2))
    encoder = gates.Encoder(8, 4, encoder)
    decoder = gates.Decoder(8, 4, decoder, gates.DotAttention(6, 6))
    return gates.Seq2Seq(encoder, decoder, start=1, end=2)


LAYERS = {"LSTM": gates.LSTM, "GRU": gates.GRU, "RNN": gates.RNN}
CELLS = {"lstm": LSTM, "peephole": PEEPHOLE, "cifg": CIFG, "layernorm": LAYERNORM}
DEEP = {"num_layers": 2, "bidirectional": True}
GIVEN = {"lengths": torch.tensor(LENGTHS)}


def _drop_ins() -> list[Case]:
    cases = []
    for name, layer in LAYERS.items():
        for impl in ("auto", "reference"):
            options = {"batch_first": True, "impl": impl, **DEEP}
            cases.append(Case(f"{name} {impl}", lambda f=layer, o=options: f(4, 6, **o)))
        cell = getattr(gates, f"{name}Cell")
        cases.append(Case(f"{name}Cell", lambda f=cell: f(4, 6), "step"))
    return cases


def _recurrent() -> list[Case]:
    cases = []
    for name, spec in CELLS.items():
        for impl in ("fused", "reference"):
            cases.append(Case(f"{name} {impl}", recurrent(spec, impl=impl)))
    deep = recurrent(PEEPHOLE, impl="fused", **DEEP)
    cases.append(Case("two layers, both directions", deep))
    cases.append(Case("lengths on the CPU", deep, options=GIVEN))
    cases.append(Case("of two stages", recurrent(MGU)))
    return cases


CASES = [
    *_drop_ins(),
    *_recurrent(),
    Case("Highway fused", lambda: gates.Highway(4, 3, impl="fused")),
    Case("Highway reference", lambda: gates.Highway(4, 3, impl="reference")),
    Case("RecurrentHighway", lambda: gates.RecurrentHighway(4, 6, 2)),
    Case("GTrXLGate", lambda: gates.GTrXLGate(4), "pair"),
    Case("SpatialGatingUnit", lambda: gates.SpatialGatingUnit(4, 6, causal=True)),
    Case("GMLPBlock", lambda: gates.GMLPBlock(4, 12, 6, gate="additive", split=False)),
    Case("AMLPBlock", lambda: gates.AMLPBlock(4, 12, 6, causal=True, attention=3), options=GIVEN),
    Case("GatedAttention", lambda: gates.GatedAttention(4, 2)),
    Case(
        "GatedAttention of all parts",
        lambda: gates.GatedAttention(
            4, 2, gate="output", forget=True, sink="learned", qk_norm=True, position="rope"
        ),
        options=GIVEN,
    ),
    Case(
        "GatedAttention by sigmoids",
        lambda: gates.GatedAttention(4, 2, gate="score", activation="sigmoid", position="alibi"),
    ),
    Case("GatedAttentionUnit", lambda: gates.GatedAttentionUnit(4, 6, 4, position="rotary")),
    Case(
        "GatedAttentionUnit both ways",
        lambda: gates.GatedAttentionUnit(4, 6, 3, causal=False),
        options=GIVEN,
    ),
    Case("GTrXLBlock", lambda: gates.GTrXLBlock(4, 2, 6, position="rope"), options=GIVEN),
    Case("ConvLSTM2d", lambda: gates.ConvLSTM2d(2, 3, 3, peephole=(3, 4)), "film"),
    Case("ConvGRU2d", lambda: gates.ConvGRU2d(2, 3, (2, 3), 2), "film"),
    Case("ConvGRU2d of two stages", lambda: gates.ConvGRU2d(2, 3, 3, reset_after=False), "film"),
    Case("ConvRNN2d", lambda: gates.ConvRNN2d(2, 3, 3, padding_mode="circular"), "film"),
    Case("GatedConv1d", lambda: gates.GatedConv1d(5, 3, 3, 2)),
    Case("GatedConv1d fused", lambda: gates.GatedConv1d(5, 3, 3, kind="swiglu", impl="fused")),
    Case("GatedConv1d of a length", lambda: gates.GatedConv1d(5, 3, 3, weight_norm=True)),
    Case("Gate", lambda: gates.Gate(4, 6)),
    Case("FeatureGate", lambda: gates.FeatureGate(4)),
    Case("GLU", lambda: gates.GLU()),
    Case("GLU of a clamped kind", lambda: gates.GLU(-1, "deepseek_v4", "first")),
    Case("GatedMLP fused", lambda: gates.GatedMLP(4, 6, bias=True, impl="fused")),
    Case("GatedMLP reference", lambda: gates.GatedMLP(4, 6, kind="geglu_tanh", impl="reference")),
    Case("GatedMLP without a gate", lambda: gates.GatedMLP(4, 6, kind="relu_squared")),
    Case("MoE fused", lambda: gates.MoE(4, 3, 2, hidden=8, impl="fused"), options=GIVEN),
    Case("MoE reference", lambda: gates.MoE(4, 3, 2, hidden=8, shared=1, impl="reference")),
    Case(
        "MoE with a capacity",
        lambda: gates.MoE(4, 3, 1, hidden=8, capacity_factor=0.7, identity_experts=1),
    ),
    Case(
        "MoE of a bias", lambda: gates.MoE(4, 4, 2, hidden=8, router="sigmoid", balance="quantile")
    ),
    Case("TopKRouter", lambda: gates.TopKRouter(4, 6, 2, groups=3, kept_groups=2, bias=True)),
    Case("ExpertChoiceRouter", lambda: gates.ExpertChoiceRouter(4, 3)),
    Case("SoftMoE", lambda: gates.SoftMoE(4, 2, 3, 8), options=GIVEN),
    Case(
        "MixtureOfDepths",
        lambda: gates.MixtureOfDepths(gates.GatedMLP(4, 6), 4, 0.5),
        options=GIVEN,
    ),
    Case("Jordan", lambda: gates.Jordan(4, 6, 3)),
    Case("SkipRNN", lambda: gates.SkipRNN(4, 6, 2)),
    Case("Mutated", lambda: gates.Mutated(4, 4, "mut1")),
    Case("HighwayNodes", lambda: gates.HighwayNodes(4, 6)),
    Case("Residual", lambda: gates.Residual(nn.Linear(4, 4), "layerscale", features=4)),
    Case("Dense", lambda: gates.Dense(nn.Linear(4, 3))),
    Case("Deep", lambda: gates.Deep(4, 3)),
    Case("Stack", lambda: gates.Stack([gates.LSTM(4, 6, batch_first=True), recurrent(LSTM)()][:1])),
    Case("VariationalDropout", lambda: gates.VariationalDropout(0.0)),
    Case("ContextGate", lambda: gates.ContextGate(4, 4, 6), "pair"),
    Case(
        "PointerGenerator",
        lambda: gates.PointerGenerator(4, 4, 4),
        "pointer",
        GIVEN,
    ),
    Case("AttentionPool", lambda: gates.AttentionPool(4, 6, 2), options=GIVEN),
    Case("SoftPool", lambda: gates.SoftPool(4, learn=True), options=GIVEN),
    Case("DepthGatedLSTM", lambda: gates.DepthGatedLSTM(4, 6, 2, peephole=True), options=GIVEN),
    Case("DepthGatedLSTM static", lambda: gates.DepthGatedLSTM(4, 6, 3, kind="static")),
    Case("Seq2Seq", translator, "tokens"),
    Case("SqueezeExcitation", lambda: gates.SqueezeExcitation(4, 2, shift=True), "image"),
    Case(
        "SqueezeExcitation hard", lambda: gates.SqueezeExcitation(4, kind="hard_sigmoid"), "image"
    ),
    Case("ECA", lambda: gates.ECA(4, 3), "image"),
    Case("FiLM", lambda: gates.FiLM(4, 4), "image and condition"),
    Case(
        "GatedResidualBlock2d", lambda: gates.GatedResidualBlock2d(4, 3, 2, gates.ECA(3)), "image"
    ),
]
