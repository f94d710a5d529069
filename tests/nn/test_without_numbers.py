"""Every layer where a tensor's numbers can't be read: on meta, fake, exported, under vmap."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import gatelib.nn as ours
from gatelib.equations.gru import CHO
from gatelib.equations.lstm import LAYERNORM, PEEPHOLE
from gatelib.nn import Recurrent, Stack

B, T, D = 3, 5, 4
LENGTHS, OTHERS = torch.tensor([5, 2, 3]), torch.tensor([1, 4, 5])


class Layer(nn.Module):
    """A layer, called with (B, T, D) and lengths in its own way."""

    def __init__(self, make, call):
        super().__init__()
        self.layer, self.call = make(), call

    def forward(self, x, lengths):
        return self.call(self.layer, x, lengths)


def padded(layer, x, lengths):
    return layer(x, lengths=lengths)


def film(layer, x, lengths):
    return layer(x[:, :, None, None, :], lengths=lengths)


def channels(layer, x, lengths):
    return layer(x.transpose(1, 2))


def whole(layer, x, lengths):
    return layer(x)


def step(layer, x, lengths):
    return layer(x[:, 0])


def attended(layer, x, lengths):
    return layer(x, x, lengths)


def pooled(kind):
    return nn.Identity, lambda _, x, lengths: ours.pool(x, lengths, kind)


def two_layers():
    return Stack([Recurrent(PEEPHOLE, D, D), Recurrent(CHO, D, D)], residual=True)


LAYERS = {
    "Recurrent": (partial(Recurrent, PEEPHOLE, D, 6), padded),
    "Recurrent of two stages": (partial(Recurrent, CHO, D, 6), padded),
    "Recurrent, plain loop": (partial(Recurrent, LAYERNORM, D, 6, impl="reference"), padded),
    "SkipRNN": (partial(ours.SkipRNN, D, 6, 2), whole),
    "Jordan": (partial(ours.Jordan, D, 6, 2), whole),
    "Stack": (two_layers, padded),
    **{kind: pooled(kind) for kind in ("max", "mean", "last", "ends")},
    "ConvLSTM2d": (partial(ours.ConvLSTM2d, 1, 3, 3, peephole=(1, D)), film),
    "ConvGRU2d": (partial(ours.ConvGRU2d, 1, 3, 3, 2), film),
    "ConvRNN2d": (partial(ours.ConvRNN2d, 1, 3, 2), film),
    "GatedConv1d": (partial(ours.GatedConv1d, D, 6, 3, 2, kind="swiglu"), channels),
    "Highway": (partial(ours.Highway, D, 2), whole),
    "GTrXLGate": (partial(ours.GTrXLGate, D), lambda layer, x, _: layer(x, x)),
    "RecurrentHighway": (partial(ours.RecurrentHighway, D, 6), whole),
    "Residual": (lambda: ours.Residual(nn.Linear(D, D)), whole),
    "Dense": (lambda: ours.Dense(nn.Linear(D, 2)), whole),
    "Deep": (partial(ours.Deep, D, 2), step),
    "Gate": (partial(ours.Gate, D), whole),
    "GLU": (ours.GLU, whole),
    "GLU situ": (partial(ours.GLU, -1, "situ"), whole),
    "GatedMLP": (partial(ours.GatedMLP, D, kind="gpt_oss", bias=True), whole),
    "SpatialGatingUnit": (partial(ours.SpatialGatingUnit, D, 7), padded),
    "GMLPBlock": (partial(ours.GMLPBlock, D, 6, T, gate="additive", split=False), padded),
    "AMLPBlock": (partial(ours.AMLPBlock, D, 6, T, True, attention=3), padded),
    "GatedAttention": (partial(ours.GatedAttention, D, 2, gate="value", sink="zero"), padded),
    "GatedAttention that forgets": (partial(ours.GatedAttention, D, 1, forget=True), padded),
    "GatedAttention, ALiBi": (
        partial(ours.GatedAttention, D, 2, gate="score", position="alibi"),
        padded,
    ),
    "GatedAttentionUnit": (partial(ours.GatedAttentionUnit, D, 6, 4), padded),
    "GTrXLBlock": (partial(ours.GTrXLBlock, D, 2, 6), padded),
    "AdditiveAttention": (partial(ours.AdditiveAttention, D, D, 3), attended),
    "DotAttention": (partial(ours.DotAttention, D, D), attended),
    "FixedContext": (partial(ours.FixedContext, D), attended),
}
TORCHS = {
    name: (partial(getattr(ours, name), D, 6, batch_first=True), whole)
    for name in ("GRU", "LSTM", "RNN")
}
TORCHS |= {
    name: (partial(getattr(ours, name), D, 6), step) for name in ("GRUCell", "LSTMCell", "RNNCell")
}
"""Torch's own kernels stand behind these, which have no rule for vmap."""
every_layer = pytest.mark.parametrize("name", [*LAYERS, *TORCHS])


def example(name):
    torch.manual_seed(0)
    return Layer(*(LAYERS | TORCHS)[name]).eval(), torch.randn(B, T, D)


def shapes(found):
    return [(part.shape, part.dtype) for part in torch.utils._pytree.tree_leaves(found)]


@every_layer
def test_on_meta_it_has_the_shapes_of_the_real_one(name):
    layer, x = example(name)
    expected = shapes(layer(x, LENGTHS))
    assert shapes(layer.to("meta")(x.to("meta"), LENGTHS.to("meta"))) == expected


@every_layer
def test_it_runs_on_fake_tensors(name):
    layer, x = example(name)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        found = layer(mode.from_tensor(x), mode.from_tensor(LENGTHS))
    assert shapes(found) == shapes(layer(x, LENGTHS))


@every_layer
def test_exported_it_reads_the_lengths_that_it_is_given(name):
    layer, x = example(name)
    exported = torch.export.export(layer, (x, LENGTHS)).module()
    torch.testing.assert_close(exported(x, OTHERS), layer(x, OTHERS))


@pytest.mark.parametrize("name", LAYERS)
def test_vmap_is_the_layer_for_each(name):
    layer, x = example(name)
    both = torch.stack([x, 2 * x])
    found = torch.vmap(lambda x: layer(x, LENGTHS))(both)
    first = torch.utils._pytree.tree_map(lambda part: part[1], found)
    torch.testing.assert_close(first, layer(both[1], LENGTHS))
