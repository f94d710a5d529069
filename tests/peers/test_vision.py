"""Gates over channels against timm's, in outputs and every gradient, in float32.

Runs where timm is installed: pip install timm. Only its layers are imported, since the whole of it
asks for a torchvision that fits torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

import pytest
import torch

from gatelib.nn import ECA, SqueezeExcitation

BUDGET = 1e-6


def layers_of_timm(name):
    """A module of timm.layers, without what the packages around it import."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("a peer: pip install timm", allow_module_level=True)
    for package in ("timm", "timm.layers"):
        if package not in sys.modules:
            bare = importlib.util.module_from_spec(importlib.util.find_spec(package))
            sys.modules[package] = bare
    return importlib.import_module(f"timm.layers.{name}")


excite, eca = layers_of_timm("squeeze_excite"), layers_of_timm("eca")


def assert_same(ours, theirs, names):
    """The same output, and the same gradients of input and parameters; names: ours to theirs."""
    torch.manual_seed(1)
    base = torch.randn(4, ours.channels, 7, 6) + 0.3
    seed = torch.randn_like(base) / base.numel() ** 0.5
    found = []
    for layer in (ours, theirs):
        x = base.clone().requires_grad_()
        y = layer(x)
        y.backward(seed)
        own = dict(layer.named_parameters())
        grads = [own[n].grad.flatten() for n in (names if layer is ours else names.values())]
        found.append([y.detach(), x.grad, *grads])
    errors = [float((a - b).abs().max()) for a, b in zip(*found, strict=True)]
    print(f"largest difference {max(errors):.1e}")
    assert max(errors) <= BUDGET, errors


@torch.no_grad()
def take(ours, theirs, names):
    """Their parameters in the place of ours."""
    own, other = (dict(m.named_parameters()) for m in (ours, theirs))
    assert own.keys() == names.keys() and other.keys() == set(names.values())
    for mine, name in names.items():
        own[mine].copy_(other[name].reshape(own[mine].shape))


@pytest.mark.parametrize("channels", [8, 32, 192])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["sigmoid", "hard_sigmoid"])
def test_squeeze_and_excitation_is_timms(channels, bias, kind):
    torch.manual_seed(0)
    theirs = excite.SEModule(channels, bias=bias, gate_layer=kind)
    ours = SqueezeExcitation(channels, 16, multiple_of=8, kind=kind, bias=bias)
    names = {"weight_in": "fc1.weight", "weight_out": "fc2.weight"}
    if bias:
        names |= {"bias_in": "fc1.bias", "bias_out": "fc2.bias"}
    assert ours.hidden == theirs.fc1.out_channels
    take(ours, theirs, names)
    assert_same(ours, theirs, names)


@pytest.mark.parametrize("channels", [*range(8, 300, 12), 512, 960])
def test_hidden_units_are_rounded_as_timms(channels):
    for divisor in (1, 4, 8):
        theirs = excite.SqueezeExcite(channels, rd_divisor=divisor, rd_ratio=1 / 16)
        ours = SqueezeExcitation(channels, 16, multiple_of=divisor)
        assert ours.hidden == theirs.fc1.out_channels


@pytest.mark.parametrize("channels", [8, 16, 64, 256])
@pytest.mark.parametrize("kind", ["sigmoid", "hard_sigmoid"])
def test_efficient_channel_attention_is_timms(channels, kind):
    torch.manual_seed(0)
    theirs, ours = eca.EcaModule(channels, gate_layer=kind), ECA(channels, kind=kind)
    assert ours.kernel_size == theirs.conv.kernel_size[0]
    take(ours, theirs, {"weight": "conv.weight"})
    assert_same(ours, theirs, {"weight": "conv.weight"})


def test_a_layer_with_another_weight_would_be_seen():
    theirs, ours = eca.EcaModule(8), ECA(8)
    take(ours, theirs, {"weight": "conv.weight"})
    ours.weight.data[0] += 1e-3
    with pytest.raises(AssertionError):
        assert_same(ours, theirs, {"weight": "conv.weight"})
