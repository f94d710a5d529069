"""What a program does around experts in several processes: averages gradients, clips, saves.

Imports gatelib.lab.ranks, gatelib.nn and torch.
Must not train longer than a few steps.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import distributed as dist
from torch import nn as torch_nn
from torch.distributed import checkpoint as saving
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from gatelib import nn
from gatelib.lab import ranks
from gatelib.nn.expert_parallel import (
    STACKS,
    average_gradients,
    data_parallel,
    divide_experts,
    expert_parameters,
    gradient_norm,
)
from gatelib.nn.expert_state import Saved
from tests.nn.moe_layers import drawn

D, E, H, N = 6, 8, 5, 12
X, TARGET = drawn(N, D), drawn(N, D, seed=2)
run = functools.partial(ranks.run, timeout=100)


class Model(torch_nn.Module):
    """A linear map, then experts, and a map that no loss sees."""

    def __init__(self, group=None, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch_nn.Linear(D, D)
        balance = {"balance": "bias", "balance_rate": 0.1, "z_weight": 0.1}
        self.experts = nn.MoE(D, E, 2, hidden=H, router="sigmoid", shared=1, **balance, group=group)
        self.idle = torch_nn.Linear(2, 2)
        self.double()

    def forward(self, x):
        return self.experts(self.first(x))


def loss_of(model, x, target):
    experts = (model.module if hasattr(model, "module") else model).experts
    return (model(x) - target).square().mean() + experts.loss()


def own(values):
    return values.chunk(dist.get_world_size())[dist.get_rank()]


def gradients(model):
    """By name, experts whole."""
    found = {}
    for name, p in model.named_parameters():
        if p.grad is not None:
            shared_out = any(p is q for q in expert_parameters(model))
            found[name] = model.experts.parallel.whole(p.grad) if shared_out else p.grad
    return found


@functools.cache
def in_one():
    model = Model()
    loss_of(model, X, TARGET).backward()
    return gradients(model)


def assert_equal(found, truth=None, scale=1.0):
    truth = in_one() if truth is None else truth
    assert set(found) == set(truth)
    for name, exact in truth.items():
        assert (found[name] - scale * exact).abs().max() <= 1e-12, name


def test_averaged_gradients_are_those_of_the_mean_of_all_losses():
    def rank():
        model = Model(dist.group.WORLD)
        loss_of(model, own(X), own(TARGET)).backward()
        average_gradients(model)
        return gradients(model)

    for found in run(rank, ranks=4):
        assert_equal(found)
        assert "idle.weight" not in found


def test_experts_that_are_not_divided_are_as_many_times_too_large_as_there_are_ranks():
    def rank():
        model = Model(dist.group.WORLD)
        loss_of(model, own(X), own(TARGET)).backward()
        return model.experts.parallel.whole(model.experts.weight_in.grad)

    for found in run(rank, ranks=4):
        assert_equal({"w": found}, {"w": in_one()["experts.weight_in"]}, scale=4)


def test_a_parameter_that_one_rank_alone_has_used_counts_for_all():
    def rank():
        model = Model(dist.group.WORLD)
        loss = loss_of(model, own(X), own(TARGET))
        if dist.get_rank():
            loss = loss + model.idle(torch.ones(2, dtype=torch.float64)).sum()
        loss.backward()
        average_gradients(model)
        return model.idle.bias.grad.tolist()

    assert run(rank, ranks=2) == [[0.5, 0.5]] * 2


def test_experts_may_stand_in_several_groups_whose_gradients_are_summed():
    def rank():
        here = dist.get_rank()
        groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        replicas = [dist.new_group([0, 2]), dist.new_group([1, 3])]
        model = Model(groups[here // 2])
        (model(own(X)) - own(TARGET)).square().mean().backward()
        with pytest.raises(ValueError, match="replicas: expected a group of 2 ranks with the same"):
            average_gradients(model)
        average_gradients(model, replicas=replicas[here % 2])
        return gradients(model)

    model = Model()
    (model(X) - TARGET).square().mean().backward()
    for found in run(rank, ranks=4):
        assert_equal(found, gradients(model))


def test_torchs_data_parallel_leaves_the_experts_alone_and_gives_the_same():
    def rank():
        torch.manual_seed(dist.get_rank())
        model = Model(dist.group.WORLD)
        parallel = data_parallel(model, dist.new_group(), find_unused_parameters=True)
        for _ in range(2):
            model.zero_grad()
            model.experts.balancer.reset_parameters()
            loss_of(parallel, own(X), own(TARGET)).backward()
        return {name: g for name, g in gradients(model).items() if not name.startswith("idle")}

    for found in run(rank, ranks=2):
        assert_equal(found)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")  # y is a view: advice
def test_torchs_sharding_of_all_other_weights_gives_the_same():
    def rank():
        model = Model(dist.group.WORLD)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(model, mesh=mesh, ignored_params=divide_experts(model))
        loss_of(model, own(X), own(TARGET)).backward()
        found = gradients(model)
        return {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in found.items()}

    for found in run(rank, ranks=2):
        assert_equal(found)


def test_a_group_of_another_size_is_refused_around_the_model():
    def rank():
        alone = [dist.new_group([r]) for r in range(2)]
        model = Model(alone[dist.get_rank()])
        with pytest.raises(ValueError, match="group: expected as many ranks as the layers' groups"):
            data_parallel(model)

    run(rank, ranks=2)


def test_the_norm_for_clipping_is_that_of_one_process():
    def rank():
        model = Model(dist.group.WORLD)
        loss_of(model, own(X), own(TARGET)).backward()
        average_gradients(model)
        norm = gradient_norm(model)
        torch_nn.utils.clip_grads_with_norm_(model.parameters(), 0.01, norm)
        return norm, gradient_norm(model)

    truth = torch_nn.utils.get_total_norm(list(in_one().values()))
    for norm, clipped in run(rank, ranks=4):
        assert abs(norm - truth) < 1e-12 and abs(clipped - 0.01) < 1e-6


# ---- saving ------------------------------------------------------------------------------------


def trained(model, optimizer, steps):
    """So many steps on all tokens."""
    for _ in range(steps):
        optimizer.zero_grad()
        several = model.experts.parallel is not None
        loss_of(model, *map(own, (X, TARGET)) if several else (X, TARGET)).backward()
        if several:
            average_gradients(model)
        optimizer.step()


def started(group=None, seed=0):
    model = Model(group, seed)
    model.idle.requires_grad_(False)
    return model, nn.updated_after(torch.optim.AdamW(model.parameters(), lr=0.05), model)


def goes_on(source, target, steps):
    """Load, unless there is nothing yet; train; save. Of one process without a group."""
    group = dist.group.WORLD if dist.get_world_size() > 1 else None
    model, optimizer = started(group, seed=0 if source is None else 7)
    if source is not None:
        saving.load({"all": Saved(model, optimizer)}, checkpoint_id=source)
    trained(model, optimizer, steps)
    saving.save({"all": Saved(model, optimizer)}, checkpoint_id=target)
    state = Saved(model, optimizer).state_dict()
    moments = {n: v["exp_avg"] for n, v in state["optimizer"]["state"].items() if "exp_avg" in v}
    found = state["model"] | {f"moment of {n}": v for n, v in moments.items()}
    return {n: v.full_tensor() if isinstance(v, DTensor) else v for n, v in found.items()}


def test_four_ranks_go_on_where_two_stopped_and_one_process_after_them(tmp_path):
    model, optimizer = started()
    source, told = None, []
    for number, count in enumerate((4, 2, 1, 4)):
        target = str(tmp_path / str(number))
        found = run(goes_on, source, target, 1, ranks=count)
        trained(model, optimizer, 1)
        source = target
        told.append(found[-1])
        for name, value in model.state_dict().items():
            assert (found[-1][name] - value).abs().max() <= 1e-12, (count, name)
    state = optimizer.state_dict()["state"]
    names = [name for name, _ in model.named_parameters()]
    moments = {names[i]: value["exp_avg"] for i, value in state.items()}
    for name in (f"experts.{stack}" for stack in STACKS):
        assert told[-1][f"moment of {name}"].shape == moments[name].shape
        assert (told[-1][f"moment of {name}"] - moments[name]).abs().max() <= 1e-12


def test_a_state_of_one_process_is_loaded_by_its_parts_and_given_back_whole():
    whole = Model(seed=3)

    def rank():
        model = Model(dist.group.WORLD)
        model.load_state_dict(whole.state_dict())
        state = model.state_dict()
        other = Model(dist.group.WORLD)
        other.load_state_dict(state)
        same = all(map(torch.equal, other.parameters(), model.parameters()))
        return same, {n: v.full_tensor() if isinstance(v, DTensor) else v for n, v in state.items()}

    for same, state in run(rank, ranks=2):
        assert same and list(state) == list(whole.state_dict())
        assert all(map(torch.equal, state.values(), whole.state_dict().values()))
