"""Layers of experts and routers equal those of published models, outputs and all gradients.

Imports gatelib.nn and torch; transformers where it is installed.
Must not import a private name of a peer.

    pip install --no-deps transformers
    pip install huggingface-hub tokenizers safetensors regex
"""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn as torch_nn

from gatelib import nn

BOUND = 2e-6
"""In float32, relative to the largest number."""
D, H, E, K = 8, 12, 8, 3


def model(name):
    """The module of a model's code."""
    why = "transformers is not installed, or a package that it needs: see the top of this file"
    pytest.importorskip("transformers", reason=why, exc_type=ImportError)
    return importlib.import_module(f"transformers.models.{name}.modeling_{name}")


def configured(name, prefix, **sizes):
    """Its configuration with our sizes, whatever each is called there."""
    kind = importlib.import_module(f"transformers.models.{name}.configuration_{name}")
    config = getattr(kind, f"{prefix}Config")()
    given = {"hidden_size": D, "intermediate_size": H, "moe_intermediate_size": H}
    given |= dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), E)
    given |= {"num_experts_per_tok": K, "moe_k": K, "hidden_act": "silu"} | sizes
    for key, value in given.items():
        setattr(config, key, value)
    return config


def spread(module):
    """Weights far from their start."""
    torch.manual_seed(0)
    for value in [*module.parameters(), *module.buffers()]:
        torch_nn.init.normal_(value, std=0.4)
    return module.float()


def assert_close(found, expected):
    found, expected = found.detach(), expected.detach()
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= BOUND * max(1.0, float(expected.abs().max()))


NAMES = {
    "gate.weight": "router.weight",
    "gate.e_score_correction_bias": "router.selection_bias",
    "experts.gate_up_proj": "weight_in",
    "experts.down_proj": "weight_out",
    "shared_expert_gate.weight": "shared_gate.weight",
}
SHARED = {
    f"{shared}.{theirs}": ours
    for shared in ("shared_expert", "shared_experts")
    for theirs, ours in (("down_proj.weight", "shared.weight_out"),)
}


def converted(values):
    """Their weights, or the gradients of these, under our names: the gate's rows first."""
    found = {(NAMES | SHARED)[k]: v for k, v in values.items() if k in NAMES | SHARED}
    gates = [v for k, v in values.items() if k.endswith("gate_proj.weight")]
    ups = [v for k, v in values.items() if k.endswith("up_proj.weight")]
    if gates:
        found["shared.weight_in"] = torch.cat([gates[0], ups[0]])
    return found


GROUPED = {"n_group": 4, "topk_group": 2, "n_shared_experts": 2}
BLOCKS = {
    "mixtral": ("Mixtral", "SparseMoeBlock", {}, {}),
    "qwen2_moe": ("Qwen2Moe", "SparseMoeBlock", {"shared_expert_intermediate_size": H}, {}),
    "qwen3_moe": ("Qwen3Moe", "SparseMoeBlock", {"norm_topk_prob": True}, {}),
    "olmoe": ("Olmoe", "SparseMoeBlock", {"norm_topk_prob": False}, {}),
    "deepseek_v2": (
        "DeepseekV2",
        "Moe",
        GROUPED | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0},
        {"groups": 4, "kept_groups": 2, "scale": 16.0},
    ),
    "deepseek_v3": (
        "DeepseekV3",
        "MoE",
        GROUPED | {"routed_scaling_factor": 2.5, "norm_topk_prob": True},
        {"groups": 4, "kept_groups": 2, "group_score": 2},
    ),
}


@pytest.mark.parametrize("impl", ["reference", "fused"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_published_layer(name, impl):
    prefix, kind, sizes, changes = BLOCKS[name]
    theirs = spread(getattr(model(name), prefix + kind)(configured(name, prefix, **sizes)))
    router = nn.TopKRouter.from_config(name, D, experts=E, k=K, **changes)
    shared = {} if name != "deepseek_v3" else {"shared": 2}
    ours = nn.MoE.from_config(name, D, experts=E, k=K, hidden=H, router=router, impl=impl, **shared)
    ours.load_state_dict(converted(theirs.state_dict()))
    x, dy, sides = torch.randn(2, 9, D), torch.randn(2, 9, D), []
    for module in (theirs, ours):
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        y.backward(dy)
        sides.append((y, leaf.grad, {k: p.grad for k, p in module.named_parameters()}))
    (y, d_x, d_theirs), (found, d_found, d_ours) = sides
    assert_close(found, y)
    assert_close(d_found, d_x)
    turned = converted(d_theirs)
    assert set(turned) == set(d_ours)
    for key, d in d_ours.items():
        assert_close(d, turned[key])


ROUTERS = {
    "gpt_oss": ("GptOss", "TopKRouter", {}, {}, {}),
    "ernie4_5_moe": (
        "Ernie4_5_Moe",
        "TopKRouter",
        {},
        {"moe_statics.e_score_correction_bias": "selection_bias"},
        {},
    ),
    "longcat_flash": (
        "LongcatFlash",
        "TopkRouter",
        {"zero_expert_num": 2, "moe_topk": K, "routed_scaling_factor": 6.0},
        {"classifier.weight": "weight", "e_score_correction_bias": "selection_bias"},
        {"experts": E + 2},
    ),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_a_published_router(name):
    prefix, kind, sizes, names, changes = ROUTERS[name]
    theirs = spread(getattr(model(name), prefix + kind)(configured(name, prefix, **sizes)))
    short = name.split("4")[0].split("_flash")[0]
    options = {"experts": E, "k": K} | changes
    ours = nn.TopKRouter.from_config(short, D, **options)
    state = {
        names.get(k, k): v.reshape(-1) if v.numel() == options["experts"] else v
        for k, v in theirs.state_dict().items()
    }
    ours.load_state_dict(state)
    x = torch.randn(20, D)
    logits, weights, indices = theirs(x)
    routing = ours(x)
    order = indices.argsort(-1)
    assert torch.equal(indices.sort(-1).values, routing.indices.sort(-1).values)
    mine = routing.weights.gather(-1, routing.indices.argsort(-1))
    assert_close(mine, weights.gather(-1, order))
    assert_close(routing.logits, logits)
