"""gMLP against its peers: g-mlp-pytorch's unit and blocks, and timm's, with their own weights.

Imports torch and gatelib.nn; the peers where they are installed:

    pip install g-mlp-pytorch==0.1.5 timm==1.0.31
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gatelib.nn import AMLPBlock, GMLPBlock, SpatialGatingUnit

BOUND = 1e-6
B, T, D, E = 3, 12, 10, 24
BLOCK = {
    "proj_in.0": "proj_in",
    "sgu": "unit",
    "proj_out": "proj_out",
    "attn.to_qkv": "qkv",
    "attn.to_out": "proj_attention",
}
"""The modules of g-mlp-pytorch's block, and where they are in ours."""


def lucidrains():
    return pytest.importorskip("g_mlp_pytorch", reason="pip install g-mlp-pytorch==0.1.5")


def timms(path, name):
    """A class from timm's source file: timm's packages load torchvision, which it doesn't need."""
    found = importlib.util.find_spec("timm")
    if found is None:
        pytest.skip("timm is not installed: pip install timm==1.0.31")
    source = Path(found.submodule_search_locations[0], path).read_text()
    nodes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    (node,) = (node for node in nodes if node.name == name)
    future = ast.parse("from __future__ import annotations").body
    space = {"torch": torch, "nn": nn, "F": F, "to_2tuple": lambda v: (v, v), "__name__": name}
    exec(compile(ast.Module([*future, node], []), path, "exec"), space)
    return space[name]


def taught(module):
    """Weights that have left their start, so that a gain of 1 or a shift of 0 hides nothing."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in module.parameters():
            if value.dim() == 1:
                value.add_(0.3 * torch.randn_like(value))
            else:
                value.copy_(torch.randn_like(value) / value.size(-1) ** 0.5)
    return module


def assert_equal_with_gradients(ours, theirs, names, width, steps=T):
    """The same output, gradient of the input and of each parameter, from an uneven upstream."""
    torch.manual_seed(1)
    x = torch.randn(B, steps, width)
    found, shape = [], None
    for module in (ours, theirs):
        module.zero_grad()
        own = x.clone().requires_grad_()
        y = module(own)
        shape = shape or y.shape
        y.backward(torch.linspace(-1, 1, shape.numel()).view(shape))
        found.append((y.detach(), own.grad))
    mine, peers = (dict(module.named_parameters()) for module in (ours, theirs))
    assert set(names.values()) == set(mine) and set(names) == set(peers)
    pairs = [*zip(*found, strict=True)]
    pairs += [(mine[name].grad.reshape(peers[k].shape), peers[k].grad) for k, name in names.items()]
    worst = max(float((a - b).abs().max() / max(1.0, b.abs().max())) for a, b in pairs)
    print(f"worst of {len(pairs)} outputs and gradients: {worst:.1e}")
    assert worst <= BOUND


def copied(ours, theirs, names):
    """Ours with the peer's weights."""
    state = theirs.state_dict()
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    ours.load_state_dict({ours_: state[k].reshape(shapes[ours_]) for k, ours_ in names.items()})
    return ours


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
def test_the_unit_is_that_of_g_mlp_pytorch_with_the_same_keys(heads, causal):
    theirs = taught(lucidrains().SpatialGatingUnit(E, T, causal, heads=heads))
    ours = SpatialGatingUnit(E, T, causal, heads=heads)
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    names = {name: name for name in theirs.state_dict()}
    for steps in (T, 7) if causal else (T,):  # theirs slices W in a causal unit alone
        assert_equal_with_gradients(ours, theirs, names, E, steps)


class Whole(nn.Module):
    """g-mlp-pytorch's block as its model calls it: a norm before, the input added after."""

    def __init__(self, block):
        super().__init__()
        self.norm, self.block = nn.LayerNorm(D), block

    def forward(self, x):
        return x + self.block(self.norm(x))


def block_names(state):
    names = {}
    for key in state:
        place, _, leaf = key.removeprefix("block.").rpartition(".")
        first, _, rest = place.partition(".")
        known = BLOCK.get(place) or ".".join(filter(None, (BLOCK.get(first, first), rest)))
        names[key] = f"{known}.{leaf}"
    return names


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attention", [None, 8])
def test_the_blocks_are_those_of_g_mlp_pytorch(attention, causal):
    options = {"dim": D, "dim_ff": E, "seq_len": T, "attn_dim": attention, "causal": causal}
    theirs = taught(Whole(lucidrains().g_mlp_pytorch.gMLPBlock(**options)))
    names = block_names(theirs.state_dict())
    made = GMLPBlock(D, E, T, causal)
    if attention:
        made = AMLPBlock(D, E, T, causal, attention=attention)
    assert_equal_with_gradients(copied(made, theirs, names), theirs, names, D)


UNIT = {"norm.weight": "norm.weight", "norm.bias": "norm.bias"}
UNIT |= {"proj.weight": "weight", "proj.bias": "bias"}


def test_the_unit_is_timms():
    theirs = taught(timms("models/mlp_mixer.py", "SpatialGatingUnit")(E, T))
    ours = copied(SpatialGatingUnit(E, T), theirs, UNIT)
    assert_equal_with_gradients(ours, theirs, UNIT, E)


def test_timms_gated_mlp_is_the_inside_of_a_block():
    unit = timms("models/mlp_mixer.py", "SpatialGatingUnit")
    mlp = timms("layers/mlp.py", "GatedMlp")
    theirs = taught(Whole(mlp(D, E, gate_layer=lambda size, **own: unit(size, T, **own))))
    names = {"norm.weight": "norm.weight", "norm.bias": "norm.bias"}
    for mine, peers in (("proj_in", "fc1"), ("proj_out", "fc2")):
        names |= {f"block.{peers}.{leaf}": f"{mine}.{leaf}" for leaf in ("weight", "bias")}
    names |= {f"block.gate.{peers}": f"unit.{mine}" for peers, mine in UNIT.items()}
    assert_equal_with_gradients(copied(GMLPBlock(D, E, T), theirs, names), theirs, names, D)


def test_a_unit_of_timms_alone_starts_as_any_linear_layer_and_ours_at_one():
    """timm starts W near 0 and b at 1 in `init_weights`, which the parent model calls."""
    torch.manual_seed(0)
    theirs, ours = timms("models/mlp_mixer.py", "SpatialGatingUnit")(E, T), SpatialGatingUnit(E, T)
    assert theirs.proj.bias.abs().max() <= T**-0.5 and theirs.proj.weight.std() > 0.1
    assert torch.equal(ours.bias, torch.ones(1, T)) and ours.weight.abs().max() <= 1e-3 / T
    theirs.init_weights()
    assert torch.equal(theirs.proj.bias, torch.ones(T))
