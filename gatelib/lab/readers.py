"""How the gates of each layer are read: torch's, and every gated layer of gatelib.nn.

Imports torch, gatelib.spec, gatelib.nn and gatelib.lab.readers_recurrent.
Must not import gatelib.reference: an instrument is no witness.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gatelib.lab.readers_recurrent import RECURRENT, Gates, Reader, Role, inside
from gatelib.nn.attention import AdditiveAttention, DotAttention
from gatelib.nn.context_gate import ContextGate
from gatelib.nn.depth import Residual
from gatelib.nn.gate import FeatureGate, Gate
from gatelib.nn.gated_attention import GatedAttention
from gatelib.nn.gau import GatedAttentionUnit
from gatelib.nn.glu import GLU, GatedMLP
from gatelib.nn.gmlp import SpatialGatingUnit
from gatelib.nn.highway import GTrXLGate, Highway
from gatelib.nn.mixture_of_depths import MixtureOfDepths
from gatelib.nn.moe import MoE
from gatelib.nn.pointer import PointerGenerator
from gatelib.nn.pooling import AttentionPool, SoftPool
from gatelib.nn.seq2seq import FixedContext
from gatelib.nn.soft_moe import SoftMoE
from gatelib.nn.vision import ECA, FiLM, SqueezeExcitation
from gatelib.spec import symbol

__all__ = ["WITHOUT_GATES", "Reader", "Role", "reader_of"]

WITHOUT_GATES = {
    "AMLPBlock": "its unit is recorded where it stands",
    "Balancer": "hears a routing, and multiplies nothing",
    "Decoder": "its layer and its attention are recorded where they stand",
    "Deep": "its layers are recorded where they stand",
    "Dense": "appends, and multiplies nothing",
    "Encoder": "its layer and its gate are recorded where they stand",
    "ExpertChoiceRouter": "what it returns is all there is; MoE is recorded with it",
    "GatedConv1d": "its gate is recorded where it stands",
    "GMLPBlock": "its unit is recorded where it stands",
    "GatedResidualBlock2d": "its gate is recorded where it stands",
    "GTrXLBlock": "its attention and its gates are recorded where they stand",
    "HashRouter": "what it returns is all there is; MoE is recorded with it",
    "Seq2Seq": "encoder and decoder are recorded where they stand",
    "Stack": "its layers are recorded where they stand",
    "StochasticDepth": "its gates are drawn inside its forward",
    "TopKRouter": "what it returns is all there is; MoE is recorded with it",
    "VariationalDropout": "its gates are drawn inside its forward",
}
"""The modules of gatelib.nn that `record` doesn't read, and why."""


def reader_of(module: nn.Module) -> Reader | None:
    """How to read the gates of a module; None if it has none that we know."""
    if isinstance(module, Residual) and module.alpha is None:
        return None
    if isinstance(module, ContextGate) and module.gate is None:
        return None
    return next((reader for kinds, reader in _READERS if isinstance(module, kinds)), None)


def _read_highway(module: Highway, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """Transform, gates and stream of each layer, from the layer's own weights."""
    values = module.values(arguments[0])
    return {
        f".l{layer}" if module.layers > 1 else "": {
            name: values[name][layer] for name in ("h", "t", "c", "y")
        }
        for layer in range(module.layers)
    }


def _read_gtrxl(module: GTrXLGate, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """r, z and the candidate h, from the weights, the stream x and the sublayer's output y."""
    return {"": dict(zip("rzh", module.gates(*arguments), strict=True))}


def _read_spatial(module: SpatialGatingUnit, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """The gate of each position and feature; the mixture itself where nothing is multiplied."""
    values = module.values(*arguments)
    return {"": {"g": inside(values.get("g", values["s"]), arguments[1])}}


def _read_attention(module: Any, arguments: list[Any], result: Any) -> dict[str, Gates]:
    return {"": {"attention": result[1]}}


def _read_heads(module: GatedAttention, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """The weights (B, H, T, S); by position, heads side by side, gate, forget gate and sink."""
    values = module.values(*arguments)
    found = {"attention": values["w"]}
    for name in ("g", "forget", "sink"):
        if name in values:
            by_position = values[name].transpose(1, 2).flatten(2)
            found[name] = inside(by_position, arguments[2])
    return {"": found}


def _read_unit(module: GatedAttentionUnit, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """The weights (B, T, S), and the gate u of features."""
    values = module.values(*arguments)
    return {"": {"attention": values["w"], "u": inside(values["u"], arguments[2])}}


def _heads_role(module: GatedAttention) -> Role:
    """A forget gate keeps what was read before; the sigmoid's weights have their ends too."""
    return Role((), symbol("forget") if module.forget else None)


def _read_pool(
    module: AttentionPool | SoftPool, arguments: list[Any], result: Any
) -> dict[str, Gates]:
    """How far each step is let through: (B, T, hops) by each hop, or (B, T, D) by each feature."""
    g = result[1].transpose(1, 2) if isinstance(module, AttentionPool) else result[1]
    return {"": {"g": inside(g, arguments[1])}}


def _read_context(module: ContextGate, arguments: list[Any], result: Any) -> dict[str, Gates]:
    return {"": {"z": torch.as_tensor(module.gates(*arguments))}}


def _read_switch(module: PointerGenerator, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """The probability to write, (B, T, 1)."""
    return {"": {"p": result[1][..., None]}}


def _read_alpha(module: Residual, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """The learned gate on a residual branch: one number, or one a feature."""
    return {"": {"alpha": torch.as_tensor(module.alpha)}}


def _read_channels(module: Any, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """The gates (B, C) of an image's channels, (B, C, H, W) where each pixel has its own."""
    values: Gates = module.gates(*arguments)
    return {"": {k: v.flatten(1) if v.shape[2:] == (1, 1) else v for k, v in values.items()}}


def _read_routing(module: MoE, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """Weights and scores (…, E) by expert; a weight is 0 where the token doesn't go."""
    routing, shape = module.routing, (*arguments[0].shape[:-1], -1)
    return {"": {"w": routing.dense().reshape(shape), "s": routing.scores.reshape(shape)}}


# ---- modules that are a gate ------------------------------------------------------------------


def _read_output(module: Any, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """A module that returns its gate."""
    return {"": {"gate": result}}


def _read_values(module: GLU | GatedMLP, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """Each value of the layer's Spec: `g` is the gate, `y` what is gated."""
    inputs = {str(v) for v in module.gating.spec.inputs}
    values = module.values(arguments[0])
    return {"": {name: value for name, value in values.items() if name not in inputs}}


def _values_role(module: GLU | GatedMLP) -> Role:
    """What no sigmoid and no tanh bounds has no ends."""
    bounded = "sigmoid", "tanh", "hardsigmoid"
    equations = module.gating.spec.equations
    return Role(tuple(str(v) for v, e in equations if e.func.__name__ not in bounded))


def _read_glu(module: nn.GLU, arguments: list[Any], result: Any) -> dict[str, Gates]:
    return {"": {"gate": arguments[0].chunk(2, module.dim)[1].sigmoid()}}


_READERS: list[tuple[tuple[type, ...], Reader]] = [
    *RECURRENT,
    ((Highway,), Reader(_read_highway, lambda module: Role(("y",)))),
    ((GTrXLGate,), Reader(_read_gtrxl)),
    ((SpatialGatingUnit,), Reader(_read_spatial, lambda module: Role(("g",)))),
    ((AdditiveAttention, DotAttention, FixedContext), Reader(_read_attention)),
    ((GatedAttention,), Reader(_read_heads, _heads_role)),
    ((GatedAttentionUnit,), Reader(_read_unit, lambda module: Role(("attention", "u")))),
    ((AttentionPool, SoftPool), Reader(_read_pool)),
    ((ContextGate,), Reader(_read_context)),
    ((PointerGenerator,), Reader(_read_switch)),
    ((Residual,), Reader(_read_alpha, lambda module: Role(("alpha",)))),
    ((SqueezeExcitation, ECA, FiLM), Reader(_read_channels, lambda _: Role(("gamma", "beta")))),
    ((MoE,), Reader(_read_routing)),
    (
        (SoftMoE, MixtureOfDepths),
        Reader(lambda module, given, _: {"": module.values(*given)}, lambda _: Role(("r",))),
    ),
    ((nn.GLU,), Reader(_read_glu)),
    ((GLU, GatedMLP), Reader(_read_values, _values_role)),
    ((Gate, FeatureGate, nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Tanh), Reader(_read_output)),
]
"""Kinds of modules and how they are read; the first that fits."""
