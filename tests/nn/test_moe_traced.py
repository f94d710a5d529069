"""Layers of experts in one graph: compiled, exported, traced by fx, mapped, on meta.

Imports gatelib.nn and torch.
Must not compare a graph with anything but the layer in eager mode.

Where a segment ends is data, and no graph has such a shape. So a graph holds the fused operator as
one node, and the plain path runs every expert on every token: E/k times the work, in fixed shapes.
"""

from __future__ import annotations

import pytest
import torch
from torch import fx
from torch import nn as torch_nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gatelib import nn

D, E, T = 8, 4, 6
LENGTHS = torch.tensor([6, 3])
LAYERS = {
    "fused": lambda: nn.MoE(D, E, 2, hidden=8, impl="fused", shared=1),
    "reference": lambda: nn.MoE(D, E, 2, hidden=8, impl="reference", identity_experts=1),
    "input scaled": lambda: nn.MoE(D, E, 1, hidden=8, router="llama4"),
    "capacity": lambda: nn.MoE(D, E, 2, hidden=8, capacity_factor=0.7, priority="probability"),
    "groups": lambda: nn.MoE(D, 16, 3, hidden=8, router="deepseek_v3"),
    "experts choose": lambda: nn.MoE(D, E, 2, hidden=8, router=nn.ExpertChoiceRouter(D, E)),
    "soft": lambda: nn.SoftMoE(D, E, 2, 8),
    "depths": lambda: nn.MixtureOfDepths(nn.GatedMLP(D, 8), D, 0.5),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def made(name):
    torch.manual_seed(0)
    return LAYERS[name](), torch.randn(2, T, D)


def run(layer, x):
    """The output, and the gradients of input and parameters."""
    x = x.clone().requires_grad_()
    y = layer(x, LENGTHS)
    weighted = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()
    parameters = list(layer.parameters())
    return [y, *torch.autograd.grad(weighted, [x, *parameters], materialize_grads=True)]


def assert_near(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@every_layer
def test_it_compiles_into_one_graph_with_its_backward_pass(name):
    torch._dynamo.reset()
    layer, x = made(name)
    expected = run(layer, x)
    assert_near(run(torch.compile(layer, fullgraph=True, backend="aot_eager"), x), expected)


@pytest.mark.parametrize("balance", ["switch", "bias", "quantile", "global"])
def test_a_compiled_layer_counts_and_has_its_loss(balance):
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer, x = nn.MoE(D, E, 2, hidden=8, balance=balance), torch.randn(2, T, D)
    layer(x)
    expected, state = layer.loss(), [b.clone() for b in layer.buffers()]
    layer.balancer.reset_parameters()
    torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(layer.loss(), expected)
    assert all(map(torch.equal, layer.buffers(), state))


@every_layer
def test_an_exported_layer_reads_the_lengths_that_it_is_given(name):
    layer, x = made(name)
    layer.eval()
    exported = torch.export.export(layer, (x, LENGTHS)).module()
    other, lengths = torch.randn(2, T, D), torch.tensor([2, 5])
    torch.testing.assert_close(exported(other, lengths), layer(other, lengths))


@every_layer
def test_it_has_shapes_on_meta_and_fake_tensors(name):
    layer, x = made(name)
    shape = layer(x, LENGTHS).shape
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake, _ = made(name)
        assert fake(mode.from_tensor(x), mode.from_tensor(LENGTHS)).shape == shape
    assert layer.to("meta")(x.to("meta"), LENGTHS.to("meta")).shape == shape


@every_layer
def test_mapped_over_a_batch_it_gives_what_each_gives_alone(name):
    layer, _ = made(name)
    x = torch.randn(3, 2, T, D)
    alone = torch.stack([layer(one) for one in x])
    torch.testing.assert_close(torch.vmap(layer)(x), alone, rtol=1e-5, atol=1e-6)


@every_layer
def test_fx_keeps_it_whole_as_one_node_of_a_model(name):
    layer, x = made(name)
    traced = fx.symbolic_trace(torch_nn.Sequential(torch_nn.Identity(), layer.eval()))
    assert torch.equal(traced(x), layer(x))
