"""Layers of experts for one process and for several, and what both give on the same tokens.

Imports torch, gatelib.equations, gatelib.lab.ranks and gatelib.nn.
Must not compare: the tests do.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from gatelib import nn
from gatelib.equations.routers import CONFIGURATIONS
from gatelib.lab import ranks
from gatelib.nn.expert_parallel import STACKS, average_gradients
from tests.nn.moe_layers import drawn, spread

D, E, H = 6, 8, 5
SEQUENCES = {1: [6], 2: [6, 0], 4: [2, 0, 1, 3]}
"""How many of the sequences each rank has: some have none."""
T = 3
LENGTHS = torch.tensor([3, 1, 2, 3, 1, 3])


@dataclass(frozen=True)
class Case:
    """A layer, and how it is called.

    options: of the layer. router: makes one, where no name does. tokens, padded, train: whether
    there are ids, shorter sequences, and training. calls: how often, each on what came before.
    second: whether the loss holds first derivatives.
    """

    options: dict[str, Any] = field(default_factory=dict)
    router: Any = None
    tokens: bool = False
    padded: bool = False
    train: bool = True
    collapsed: bool = False
    calls: int = 1
    second: bool = False


def grouped(**options: Any) -> nn.TopKRouter:
    own = {"score": "sigmoid", "groups": 4, "kept_groups": 2, "group_score": 2}
    return nn.TopKRouter(D, E, 3, **own | options)


CASES = {
    "softmax": Case({"k": 3, "balance": "switch", "z_weight": 0.1}),
    "sigmoid, groups and a bias": Case({"k": 3, "balance": "bias", "shared": 1}, lambda: grouped(
        selection_bias=True)),
    "one expert, importance": Case({"router": "switch", "k": 1, "balance": "importance"}),
    "noise, load": Case({"balance": "importance"}, lambda: nn.TopKRouter(D, E, 2, noise=True),
        train=False),
    "padding, per sequence": Case({"balance": "sequence", "shared": 1, "shared_gate": True,
        "z_weight": 0.1}, padded=True),
    "global counts": Case({"balance": "global", "k": 3}, calls=2),
    "weights on the input": Case({"router": "llama4", "k": 2}),
    "identity experts": Case({"identity_experts": 3, "k": 3, "balance": "switch"}),
    "a hash of tokens": Case({}, lambda: nn.HashRouter(E, 2), tokens=True),
    "all on two experts": Case({"balance": "switch"}, collapsed=True),
    "plain path": Case({"impl": "reference", "shared": 2}, padded=True),
    "twice in one pass": Case({"shared": 1, "balance": "switch"}, calls=2),
    "second derivatives": Case({"shared": 1, "impl": "fused"}, second=True),
}  # fmt: skip
APART = {
    "a capacity": Case({"capacity_factor": 0.6, "k": 3}, padded=True),
    "a capacity by probability": Case({"capacity_factor": 0.6, "priority": "probability"}),
    "experts choose": Case({}, lambda: nn.ExpertChoiceRouter(D, E)),
}
"""What looks at one rank's tokens alone."""


def layer(case: Case, group: Any = None, dtype: torch.dtype = torch.float64) -> nn.MoE:
    """The same weights, however many processes have them."""
    more = {} if case.router is None else {"router": case.router()}
    options: dict[str, Any] = {"k": 2, "hidden": H, "dtype": dtype} | case.options | more
    whole = spread(nn.MoE(D, E, **options), dtype)
    if case.collapsed:
        torch.nn.init.zeros_(whole.router.weight)
    whole.train(case.train)
    if group is None:
        return whole
    more = {} if case.router is None else {"router": case.router().to(dtype)}
    own = nn.MoE(D, E, **options | more, group=group).to(dtype).train(case.train)
    own.load_state_dict(whole.state_dict())
    return own


def given(sizes: list[int], rank: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """What one of several ranks has of all sequences."""
    shape = sum(sizes), T, D
    whole = {"x": drawn(*shape, dtype=dtype), "dy": drawn(*shape, seed=2, dtype=dtype)}
    whole |= {"lengths": LENGTHS, "tokens": torch.arange(sum(sizes) * T).reshape(-1, T) % 7}
    return {name: value.split(sizes)[rank].clone() for name, value in whole.items()}


def results(case: Case, module: nn.MoE, own: dict[str, Tensor], scale: float = 1.0) -> Any:
    """Outputs, the loss, and the gradients of the input: of this rank's loss times `scale`."""
    x = own["x"].requires_grad_()
    more = {"lengths": own["lengths"]} if case.padded else {}
    more |= {"tokens": own["tokens"]} if case.tokens else {}
    y = x
    extra = torch.zeros((), dtype=x.dtype)
    for _ in range(case.calls):
        y = module(y, **more)
        extra = extra + module.loss()
    told = (y * own["dy"]).sum()
    if case.second:
        (slope,) = torch.autograd.grad(told, x, create_graph=True)
        told = told + slope.square().sum()
    (scale * told + extra).backward()
    return {"y": y.detach(), "x": x.grad / scale, "loss": extra.detach()}


def after(module: nn.MoE) -> dict[str, Tensor]:
    """What the layer holds afterwards: whole gradients, the buffers, and the balance's metrics."""
    found = {f"metric {n}": v for n, v in module.metrics.items() if n in ("load", "max_violation")}
    for name, p in module.named_parameters():
        own = torch.zeros_like(p) if p.grad is None else p.grad
        shared_out = name in STACKS and module.parallel is not None
        found[name] = module.parallel.whole(own) if shared_out else own
    module.update_balance()
    return found | {name: value.clone() for name, value in module.named_buffers()}


def in_one(case: Case) -> dict[str, Tensor]:
    """What one process gives that has all tokens."""
    module = layer(case)
    return results(case, module, given([6], 0)) | after(module)


def each_alone(case: Case, sizes: list[int]) -> dict[str, Tensor]:
    """What one process gives that is called with each rank's tokens by themselves."""
    module = layer(case)
    parts = [results(case, module, given(sizes, rank)) for rank in range(len(sizes))]
    joined = {name: torch.cat([part[name] for part in parts]) for name in ("y", "x")}
    return joined | {n: v for n, v in after(module).items() if not n.startswith("metric")}


def drawn_case(seed: int) -> tuple[Case, dict[int, list[int]]]:
    """Any layer, and any shares of the sequences: most ranks have few, and some have none."""
    draw = random.Random(seed)
    names = ["softmax", "sigmoid", *(n for n, one in CONFIGURATIONS.items() if one.groups == 1)]
    options = {
        "k": draw.randint(1, 4),
        "router": draw.choice(names),
        "kind": draw.choice(["swiglu", "geglu_tanh", "relu_squared", "gpt_oss"]),
        "balance": draw.choice([None, "switch", "sequence", "global", "importance"]),
        "z_weight": draw.choice([0.0, 0.2]),
        "shared": draw.choice([0, 1]),
        "identity_experts": draw.choice([0, 0, 2]),
        "impl": draw.choice(["auto", "reference"]),
    }
    case = Case(options, padded=draw.random() < 0.4, calls=draw.choice([1, 1, 2]), train=False)
    shares = {count: [draw.randrange(count) for _ in range(6)] for count in (2, 4)}
    return case, {n: [own.count(rank) for rank in range(n)] for n, own in shares.items()}


def drawn_on_a_rank(seeds: range) -> list[Any]:
    """For each seed what this rank gives."""
    group, count = dist.group.WORLD, dist.get_world_size()
    found = []
    for seed in seeds:
        case, sizes = drawn_case(seed)
        module = layer(case, group)
        own = results(case, module, given(sizes[count], group.rank()), count)
        average_gradients(module)
        found.append(own | after(module))
    return found


def on_a_rank() -> dict[str, dict[str, Tensor]]:
    """What this rank gives, by the name of the case; its losses are R times those of its tokens,
    so that their mean over ranks is the loss of one process."""
    group, count = dist.group.WORLD, dist.get_world_size()
    found = {}
    for name, case in (CASES | APART).items():
        module = layer(case, group)
        own = results(case, module, given(SEQUENCES[count], group.rank()), count)
        average_gradients(module)
        found[name] = own | after(module)
    return found


@functools.cache
def answers(count: int) -> list[dict[str, dict[str, Tensor]]]:
    """Of each of so many ranks."""
    return ranks.run(on_a_rank, ranks=count, timeout=100)
