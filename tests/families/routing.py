"""What the tests of routers, balance and moe share: cases, and plain functional torch.

The torch here is written with `scatter`, `gather` and `topk` on its own, as a third witness.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from gatelib import lab
from gatelib.equations.routers import CONFIGURATIONS, RouterConfig
from gatelib.nn import TopKRouter
from gatelib.reference import routers as reference

OPTIONS = tuple(field.name for field in dataclasses.fields(reference.Router))

SMALL = {
    name: dataclasses.replace(
        config,
        experts=4 * config.groups if config.groups > 1 else 6,
        k=min(config.k, 3),
        identity_experts=min(config.identity_experts, 2),
    )
    for name, config in CONFIGURATIONS.items()
}
"""The published routers with few experts; everything else as it is."""

EXTRA = {
    "groups_of_two": RouterConfig(
        "a test", 8, 2, score="sigmoid", groups=4, kept_groups=1, group_score=2
    ),
    "all_experts": RouterConfig("a test", 5, 5, renormalize=False),
    "one_expert": RouterConfig("a test", 1, 1),
}
ROUTERS = SMALL | EXTRA


def router_of(config):
    """The reference's options from a configuration."""
    return reference.Router(**{name: getattr(config, name) for name in OPTIONS})


def problem(config, N=7, D=4, seed=0, scale=1.0, padded=False):
    """Inputs, selection bias, noise and the mask of one case; padding holds zeros."""
    rng = np.random.default_rng(seed)
    weights = reference.initialize(rng, D, config.experts, config.bias, config.noise)
    x = scale * rng.normal(size=(N, D))
    bias = None
    if config.selection_bias:  # one that float32 holds, as the layers keep it
        bias = 0.2 * rng.normal(size=config.experts).astype("f4").astype("f8")
    noise = rng.normal(size=(N, config.experts)) if config.noise else None
    live = rng.random(N) < 0.7 if padded else None
    x = x if live is None else x * live[:, None]
    return {"x": x} | weights, {"selection_bias": bias, "noise": noise, "live": live}


def torch_top_k(scores, k):
    """The k best with ties to the lowest index."""
    return scores.detach().sort(dim=-1, descending=True, stable=True).indices[..., :k]


def torch_selected(scores, config):
    """(N, k) as DeepSeek's programs find it."""
    if config.groups > 1:
        grouped = scores.unflatten(-1, (config.groups, -1))
        rated = grouped.topk(config.group_score, dim=-1).values.sum(-1)
        keep = torch.zeros_like(rated).scatter(-1, torch_top_k(rated, config.kept_groups), 1.0)
        scores = grouped.masked_fill(keep[..., None] == 0, -torch.inf).flatten(-2)
    return torch_top_k(scores, config.k)


def torch_scores(logits, config):
    if config.score == "softmax":
        return logits.softmax(-1)
    if config.score == "sigmoid":
        return logits.sigmoid()
    return torch.nn.functional.softplus(logits).sqrt()


def torch_route(config, given, selection_bias=None, noise=None, live=None):
    """Weights, scores and logits (N, E), and the indices (N, k)."""
    x = given["x"] if live is None else given["x"] * torch.tensor(live)[:, None]
    logits = x @ given["W"].T
    logits = logits + given["b"] if "b" in given else logits
    made, noisy = {"logits": logits}, logits
    if noise is not None:
        spread = x @ given["W_noise"].T
        noisy = logits + torch.tensor(noise) * torch.nn.functional.softplus(spread)
        made |= {"noisy": noisy, "spread": spread}
    scores = torch_scores(noisy, config)
    rated = noisy if config.select == "before" else scores
    rated = rated if selection_bias is None else rated + torch.tensor(selection_bias)
    indices = torch_selected(rated.detach(), config)
    if config.select == "before":
        w = torch_scores(noisy.gather(-1, indices), config)
    else:
        w = scores.gather(-1, indices)
        w = w / w.sum(-1, keepdim=True) if config.renormalize else w
    w = w * config.scale
    w = w if live is None else w * torch.tensor(live)[:, None]
    dense = torch.zeros_like(logits).scatter(-1, indices, w)
    return made | {"scores": scores, "weights": dense}, indices


def gradients_by_hand(config, given, upstream, **options):
    """A router's outputs and gradients by the reference."""
    weights = {name: value for name, value in given.items() if name != "x"}
    made = reference.forward(given["x"], weights, router_of(config), **options)
    d_weights = reference.gathered(upstream["weights"], made.indices)
    rest = {f"d_{name}": d for name, d in upstream.items() if name != "weights"}
    found = reference.backward(made, d_weights, **rest)
    outputs = {name: getattr(made, name) for name in upstream if name != "weights"}
    outputs["weights"] = made.dense
    return outputs | {f"d_{name}": found[name] for name in given}


def gradients_by_torch(config, given, upstream, **options):
    """The same by autograd."""

    def run(leaves):
        return torch_route(config, leaves, **options)[0]

    return lab.gradients(run, given, upstream)


PARAMETERS = {"W": "weight", "b": "bias", "W_noise": "weight_noise"}


def layer_of(config, features, selection_bias=None):
    """The torch layer of a configuration."""
    names = (*OPTIONS, "experts", "bias", "selection_bias", "noise")
    options = {name: getattr(config, name) for name in names}
    layer = TopKRouter(features, dtype=torch.float64, **options)
    if selection_bias is not None:
        layer.selection_bias.copy_(torch.tensor(selection_bias))
    return layer


def drawn_noise(N, experts, seed):
    """What the layer will draw after `torch.manual_seed(seed)`."""
    torch.manual_seed(seed)
    return torch.randn(N, experts, dtype=torch.float64).numpy()


def dense(routing, experts):
    """The weights of the layer's routing as (N, E)."""
    whole = routing.weights.new_zeros(len(routing.weights), experts + 1)
    return whole.scatter(1, routing.indices, routing.weights)[:, :experts]


def gradients_by_layer(config, given, upstream, seed, selection_bias=None, noise=None, live=None):
    """A router's outputs and gradients by `nn.TopKRouter`."""
    layer = layer_of(config, given["x"].shape[1], selection_bias)

    def run(leaves):
        own = {PARAMETERS[name]: v for name, v in leaves.items() if name != "x"}
        torch.manual_seed(seed)
        routing = lab.called(layer, own, leaves["x"], None if live is None else torch.tensor(live))
        made = {"weights": dense(routing, config.experts), "scores": routing.scores}
        if noise is None:
            return made | {"logits": routing.logits}
        return made | {"logits": routing.clean, "noisy": routing.logits}

    return lab.gradients(run, given, upstream)


def allowed(rated, k, count, kept, best):
    """The selection in plain Python: whole groups first, then experts."""
    size = len(rated) // count
    groups = [list(range(g * size, (g + 1) * size)) for g in range(count)]
    groups.sort(key=lambda g: -sum(sorted(rated[g])[-best:]))
    inside = sorted(e for g in groups[:kept] for e in g)
    return set(sorted(inside, key=lambda e: -rated[e])[:k])
