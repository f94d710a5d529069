"""Each published router is its printed equation, by hand and in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gatelib.equations.routers import CONFIGURATIONS
from gatelib.nn import TopKRouter
from gatelib.reference import routers as reference
from tests.families.routing import PARAMETERS, allowed, drawn_noise, problem, router_of
from tests.families.witnesses import close


@pytest.mark.parametrize("name", sorted(CONFIGURATIONS))
def test_the_layer_of_a_published_router_has_its_size_and_gives_its_weights(name):
    config = CONFIGURATIONS[name]
    case, options = problem(config, N=5, D=6, seed=3, scale=2.0)
    options["noise"] = drawn_noise(5, config.experts, 3) if config.noise else None
    layer = TopKRouter.from_config(name, 6, dtype=torch.float64)
    with torch.no_grad():
        for key, place in PARAMETERS.items():
            if key in case:
                getattr(layer, place).copy_(torch.tensor(case[key]))
        if config.selection_bias:
            layer.selection_bias.copy_(torch.tensor(options["selection_bias"]))
    torch.manual_seed(3)
    routing = layer(torch.tensor(case["x"]))
    weights = {key: value for key, value in case.items() if key != "x"}
    expected = reference.forward(case["x"], weights, router_of(config), **options)
    np.testing.assert_array_equal(routing.indices, expected.indices)
    close(routing.weights.detach().numpy(), expected.weights, 1e-13)


PRINTED = {
    "shazeer2017": lambda a, m: np.exp(a) * m / (np.exp(a) * m).sum(),
    "gshard": lambda a, m: softmax(a) * m / (softmax(a) * m).sum(),
    "switch": lambda a, m: softmax(a) * m,
    "mixtral": lambda a, m: np.exp(a) * m / (np.exp(a) * m).sum(),
    "dbrx": lambda a, m: softmax(a) * m / np.linalg.norm(softmax(a) * m, 1),
    "qwen2_moe": lambda a, m: softmax(a) * m,
    "qwen3_moe": lambda a, m: softmax(a) * m / (softmax(a) * m).sum(),
    "olmoe": lambda a, m: softmax(a) * m,
    "deepseek_v2": lambda a, m: 16 * softmax(a) * m,
    "deepseek_v3": lambda a, m: 2.5 * sigmoid(a) * m / (sigmoid(a) * m).sum(),
    "moonlight": lambda a, m: 2.446 * sigmoid(a) * m / (sigmoid(a) * m).sum(),
    "kimi_k2": lambda a, m: 2.827 * sigmoid(a) * m / (sigmoid(a) * m).sum(),
    "kimi_linear": lambda a, m: 2.446 * sigmoid(a) * m / (sigmoid(a) * m).sum(),
    "minimax_m2": lambda a, m: sigmoid(a) * m / (sigmoid(a) * m).sum(),
    "deepseek_v4": lambda a, m: 1.5 * root(a) * m / (root(a) * m).sum(),
    "gpt_oss": lambda a, m: np.exp(a) * m / (np.exp(a) * m).sum(),
    "ernie": lambda a, m: softmax(a) * m / (softmax(a) * m).sum(),
    "longcat": lambda a, m: 6 * softmax(a) * m,
    "llama4": lambda a, m: sigmoid(a) * m,
}
"""Each model's weights in one line, written from its paper or program, for one token."""


def softmax(a):
    return np.exp(a) / np.exp(a).sum()


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def root(a):
    return np.sqrt(np.log(1 + np.exp(a)))


RATED = {
    "deepseek_v2": softmax,
    "deepseek_v3": sigmoid,
    "moonlight": sigmoid,
    "kimi_k2": sigmoid,
    "kimi_linear": sigmoid,
    "minimax_m2": sigmoid,
    "deepseek_v4": root,
    "ernie": softmax,
    "longcat": softmax,
}
"""What the selection looks at where it isn't the order of the logits."""


SIZES = {
    "shazeer2017": (256, 4),
    "gshard": (2048, 2),
    "switch": (128, 1),
    "mixtral": (8, 2),
    "dbrx": (16, 4),
    "qwen2_moe": (60, 4),
    "qwen3_moe": (128, 8),
    "olmoe": (64, 8),
    "deepseek_v2": (160, 6),
    "deepseek_v3": (256, 8),
    "moonlight": (64, 6),
    "kimi_k2": (384, 8),
    "kimi_linear": (256, 8),
    "minimax_m2": (256, 8),
    "deepseek_v4": (256, 6),
    "gpt_oss": (128, 4),
    "ernie": (64, 6),
    "longcat": (512 + 256, 12),
    "llama4": (16, 1),
}
"""How many experts there are, and how many a token uses."""

GROUPS = {"deepseek_v2": (8, 3, 1), "deepseek_v3": (8, 4, 2)}
"""Groups, how many are kept, and how many of its best experts rate a group."""


@pytest.mark.parametrize("name", sorted(CONFIGURATIONS))
def test_each_published_router_is_its_printed_equation(name):
    config = CONFIGURATIONS[name]
    case, options = problem(config, N=5, D=6, seed=3, scale=2.0)
    options["noise"] = None
    case.pop("W_noise", None)
    weights = {key: value for key, value in case.items() if key != "x"}
    made = reference.forward(case["x"], weights, router_of(config), **options)
    logits = case["x"] @ case["W"].T + case.get("b", 0)
    assert ("b" in case) == config.bias
    for a, indices, row in zip(logits, made.indices, made.dense, strict=True):
        rated = RATED.get(name, lambda logits: logits)(a)
        rated = rated if options["selection_bias"] is None else rated + options["selection_bias"]
        experts, k = SIZES[name]
        assert rated.shape == (experts,)
        assert set(indices) == allowed(rated, k, *GROUPS.get(name, (1, 1, 1)))
        mask = np.isin(np.arange(experts), indices)
        close(row, PRINTED[name](a, mask), 1e-13)


def test_every_configuration_has_a_printed_equation_and_a_source():
    assert PRINTED.keys() == SIZES.keys() == CONFIGURATIONS.keys()
    assert all(config.source for config in CONFIGURATIONS.values())
