"""Gated layers equal their peers after conversion of weights, outputs and all gradients.

Imports gatelib.nn and torch; timm and x-transformers where they are installed.
Must not import a private name of a peer.

    pip install --no-deps timm x-transformers
    pip install einops einx loguru torch-einops-utils huggingface-hub safetensors

timm wants torchvision, which needs a build of its own beside each torch; of timm.layers' MLPs it
is not needed, so that an empty module stands for it where it is absent.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gatelib.equations.glu import softcapped
from gatelib.nn import GLU, GatedMLP
from gatelib.nn.convert import GLU_LAYOUTS, gated_mlp

BOUND = 1e-6
"""In float32, relative to the largest number."""
D, H, O = 12, 32, 8


def timm_mlp():
    """timm.layers.mlp alone: the package's own __init__ imports torchvision."""
    found = importlib.util.find_spec("timm")
    if found is None:
        pytest.skip("timm is not installed: pip install --no-deps timm")
    for name in ("timm", "timm.layers"):
        if name not in sys.modules:
            where = [f"{found.submodule_search_locations[0]}{'/layers' if '.' in name else ''}"]
            bare = types.ModuleType(name)
            bare.__path__ = where
            bare.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
            sys.modules[name] = bare
    return importlib.import_module("timm.layers.mlp")


def x_transformers():
    why = "x-transformers is not installed, or a package that it needs: see the top of this file"
    return pytest.importorskip("x_transformers.x_transformers", reason=why)


def assert_close(found, expected):
    found, expected = found.detach(), expected.detach()
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= BOUND * max(1.0, float(expected.abs().max()))


def assert_equals(peer, layout, kind, scale=1.0):
    """Outputs and gradients of the peer, and of ours with its weights converted."""
    torch.manual_seed(1)
    ours = GatedMLP(D, H, O, kind, bias=True)
    ours.load_state_dict(gated_mlp(peer.state_dict(), layout, "gatelib"))
    x, dy = scale * torch.randn(5, 7, D), torch.randn(5, 7, O)
    sides = []
    for module in (peer, ours):
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        y.backward(dy)
        sides.append((y, leaf.grad, {k: p.grad for k, p in module.named_parameters()}))
    (y, d_x, d_theirs), (found, d_found, d_ours) = sides
    assert_close(found, y)
    assert_close(d_found, d_x)
    turned = gated_mlp(d_theirs, layout, "gatelib")  # a permutation of gradients as of weights
    for name, d in d_ours.items():
        assert_close(d, turned[name])


def spread(module):
    """Weights far from their start, so that no half of a gate is near 0 or 1."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


# ---- torch ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "dim"), [((4, 10), -1), ((2, 8, 5), 1), ((6, 3, 2, 2), 0)])
def test_torchs_glu(shape, dim):
    x, sides = 3 * torch.randn(shape), []
    for run in (lambda x: F.glu(x, dim), GLU(dim), GLU(dim, impl="reference")):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        y.square().sum().backward()
        sides.append((y, leaf.grad))
    for found in sides[1:]:
        for one, expected in zip(found, sides[0], strict=True):
            assert_close(one, expected)


# ---- timm -------------------------------------------------------------------------------------

KINDS = {
    "glu": nn.Sigmoid,
    "swiglu": nn.SiLU,
    "geglu": nn.GELU,
    "reglu": nn.ReLU,
    "bilinear": nn.Identity,
    "geglu_tanh": lambda: nn.GELU("tanh"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gate_last", [True, False])
def test_timms_glu_mlp(kind, gate_last):
    peer = timm_mlp().GluMlp(D, 2 * H, O, act_layer=KINDS[kind], gate_last=gate_last)
    layout = "timm_glu_mlp" if gate_last else "timm_swiglu_packed"
    assert_equals(spread(peer), layout, kind)


def test_timms_packed_swiglu():
    assert_equals(spread(timm_mlp().SwiGLUPacked(D, 2 * H, O)), "timm_swiglu_packed", "swiglu")


def test_timms_swiglu_and_the_width_it_aligns():
    peer = timm_mlp().SwiGLU(D, H - 3, O, align_to=8)
    assert_equals(spread(peer), "timm_swiglu", "swiglu")
    assert GatedMLP(D, H - 3, O, multiple_of=8).hidden == peer.fc1_g.out_features == H


def test_the_wrong_layout_of_timm_is_seen():
    peer = spread(timm_mlp().GluMlp(D, 2 * H, O, act_layer=nn.SiLU))
    with pytest.raises(AssertionError):
        assert_equals(peer, "timm_swiglu_packed", "swiglu")


# ---- x-transformers ---------------------------------------------------------------------------

ACTIVATIONS = {"swiglu": nn.SiLU, "geglu": nn.GELU, "glu": nn.Sigmoid, "reglu": nn.ReLU}


def feed_forward(**options):
    peer = x_transformers().FeedForward(D, O, mult=H / D, glu=True, **options)
    assert list(peer.state_dict()) == GLU_LAYOUTS["x_transformers"].keys(True)
    return spread(peer)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_x_transformers_glu(kind):
    peer = feed_forward(custom_activation=ACTIVATIONS[kind]())
    assert_equals(peer, "x_transformers", kind)


def test_x_transformers_soft_clamped_glu_is_situ_beyond_its_caps_too():
    assert_equals(feed_forward(swish=True, glu_softclamp=True), "x_transformers", "situ", 20.0)
    options = {"glu_gate_softclamp_value": 2.0, "glu_up_softclamp_value": 3.0}
    peer = feed_forward(swish=True, glu_softclamp=True, **options)
    assert_equals(peer, "x_transformers", softcapped(2.0, 3.0), 20.0)
