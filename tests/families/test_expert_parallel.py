"""Experts in several processes give what they give in one, whoever has how many tokens.

Imports gatelib.lab.ranks, gatelib.nn and torch.
Must not take a layer in one process for right: test_moe.py holds that against its definition.
"""

from __future__ import annotations

import copy
import functools
import os
import pickle

import pytest
import torch
from torch import distributed as dist
from torch.utils.checkpoint import checkpoint

from gatelib import nn
from gatelib.lab import ranks
from gatelib.nn.exchange import PHASES, Route
from gatelib.nn.expert_parallel import STACKS
from tests.families.parallel_layers import (
    APART,
    CASES,
    SEQUENCES,
    Case,
    D,
    E,
    H,
    T,
    answers,
    drawn_case,
    drawn_on_a_rank,
    each_alone,
    given,
    in_one,
    layer,
    results,
)

RANKS = (1, 2, 4)
run = functools.partial(ranks.run, timeout=100)
NEAR = 1e-12
SOAK = int(os.environ.get("GATES_SOAK", "12"))
"""How many layers are drawn: the same ones each time."""


def assert_equal(found, truth):
    for name, exact in truth.items():
        assert found[name].shape == exact.shape, name
        if exact.numel():
            error = (found[name] - exact).abs().max().item()
            assert error <= NEAR * max(1.0, exact.abs().max().item()), (name, error)


def joined(found):
    """What the ranks have together: their tokens side by side, and the rest, which is the same."""
    for key in set(found[0]) - {"y", "x"}:
        for other in found[1:]:
            assert torch.equal(other[key], found[0][key]), key
    return found[0] | {key: torch.cat([own[key] for own in found]) for key in ("y", "x")}


@pytest.mark.parametrize("count", RANKS)
@pytest.mark.parametrize("name", CASES)
def test_outputs_losses_and_every_gradient_are_those_of_one_process(name, count):
    assert_equal(joined([answer[name] for answer in answers(count)]), in_one(CASES[name]))


@pytest.mark.parametrize("count", (2, 4))
def test_any_layer_agrees_however_its_tokens_are_shared_out(count):
    seeds = range(SOAK)
    found = run(drawn_on_a_rank, seeds, ranks=count)
    for seed in seeds:
        assert_equal(joined([answer[seed] for answer in found]), in_one(drawn_case(seed)[0]))


@pytest.mark.parametrize("count", RANKS)
@pytest.mark.parametrize("name", APART)
def test_what_compares_tokens_sees_those_of_its_rank_alone(name, count):
    found = joined([answer[name] for answer in answers(count)])
    assert_equal(found, each_alone(APART[name], SEQUENCES[count]))


def test_a_quantile_bias_is_the_mean_of_what_the_ranks_with_tokens_found():
    case = Case({"balance": "quantile", "router": "sigmoid"})

    def rank():
        module = layer(case, dist.group.WORLD)
        module(given([2, 0, 1, 3], dist.get_rank())["x"])
        module.update_balance()
        return module.router.selection_bias

    found = run(rank, ranks=4)
    alone = [layer(case) for _ in range(3)]
    for module, rank_with_tokens in zip(alone, (0, 2, 3), strict=True):
        module(given([2, 0, 1, 3], rank_with_tokens)["x"])
        module.update_balance()
    mean = torch.stack([module.router.selection_bias for module in alone]).double().mean(0)
    for bias in found:
        torch.testing.assert_close(bias.double(), mean, rtol=0, atol=1e-6)


def test_a_checkpoint_that_computes_again_changes_no_gradient():
    case = Case({"balance": "bias", "router": "sigmoid", "shared": 1})

    def rank():
        module, again = layer(case, dist.group.WORLD), layer(case, dist.group.WORLD)
        x = given([4, 2], dist.get_rank())["x"]
        module(x).square().sum().backward()
        checkpoint(again, x, use_reentrant=False).square().sum().backward()
        same = map(torch.equal, module.buffers(), again.buffers())
        pairs = zip(module.parameters(), again.parameters(), strict=True)
        return all(same), max((p.grad - q.grad).abs().max().item() for p, q in pairs)

    assert all(same and error < NEAR for same, error in run(rank, ranks=2))


def test_a_gradient_that_is_a_number_expanded_is_sent_right():
    def rank():
        module = layer(Case(), dist.group.WORLD)
        own = given([1, 5], dist.get_rank())
        x = own["x"].requires_grad_()
        module(x).sum().backward()
        other = own["x"].detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
        module(other).backward(torch.ones_like(other))
        return (x.grad - other.grad).abs().max().item()

    assert run(rank, ranks=2) == [0.0, 0.0]


# ---- precision ----------------------------------------------------------------------------------


def test_under_autocast_rows_travel_as_narrow_as_they_are_used():
    case = Case({"shared": 1})

    def rank():
        module = layer(case, dist.group.WORLD, torch.float32)
        own = given([2, 4], dist.get_rank(), torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            y = module(own["x"])
        return y, module.parallel.traffic["dispatch"].sum().item()

    found = run(rank, ranks=2)
    whole, x = layer(case, None, torch.float32), given([6], 0, torch.float32)["x"]
    truth = whole(x)
    y = torch.cat([own for own, _ in found])
    assert y.dtype == torch.bfloat16
    assert (y.float() - truth).abs().max() <= 0.05 * truth.abs().max()
    assert sum(sent for _, sent in found) <= 6 * T * 2 * D * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision_errs_as_in_one_process(dtype):
    case = Case({"k": 3})

    def rank():
        module = layer(case, dist.group.WORLD, dtype)
        return module(given([0, 6], dist.get_rank(), dtype)["x"]).detach()

    one = layer(case, None, dtype)(given([6], 0, dtype)["x"])
    y = torch.cat(run(rank, ranks=2))
    budget = 4 * torch.finfo(dtype).eps * one.abs().max()
    assert y.dtype == dtype and (y - one).abs().max() <= budget


# ---- what is sent -------------------------------------------------------------------------------


def test_a_token_is_sent_once_to_each_rank_that_has_any_of_its_experts():
    case = Case({"k": 3})

    def rank():
        module = layer(case, dist.group.WORLD)
        own = given(SEQUENCES[4], dist.get_rank())
        results(case, module, own)
        indices = module.routing.indices // (E // 4)
        rows = [int((indices == r).any(1).sum()) for r in range(4)]
        return rows, {name: value.tolist() for name, value in module.parallel.traffic.items()}

    found = run(rank, ranks=4)
    row, slots = D * 8, 3 * (8 + 8)
    for r, (rows, traffic) in enumerate(found):
        back = [other[r] for other, _ in found]
        assert list(traffic) == list(PHASES)
        assert traffic["dispatch"] == traffic["combine_backward"] == [n * row for n in rows]
        assert traffic["combine"] == traffic["dispatch_backward"] == [n * row for n in back]
        told = zip(traffic["overhead"], rows, back, strict=True)
        numbers = {total - there * slots - here * 3 * 8 for total, there, here in told}
        assert len(numbers) == 1 and numbers.pop() > 8 * (4 + E)
    assert found[1][0] == [0, 0, 0, 0]


@pytest.mark.parametrize("kept", [1, 2])
def test_a_router_of_as_many_groups_as_ranks_bounds_where_a_token_goes(kept):
    def rank():
        groups = {"groups": 4, "kept_groups": kept}
        module = layer(Case({}, lambda: nn.TopKRouter(D, E, 2, **groups)), dist.group.WORLD)
        x = given(SEQUENCES[4], dist.get_rank())["x"]
        module(x)
        return int(module.parallel.traffic["dispatch"].sum()) // (D * 8), kept * x[..., 0].numel()

    found = run(rank, ranks=4)
    assert all(rows <= most for rows, most in found) and sum(rows for rows, _ in found) >= 6 * T


def test_shared_experts_run_while_the_rows_are_on_their_way_in_both_passes(monkeypatch):
    events = []

    def told(name, method):
        def call(self, *arguments):
            events.append(f"{name} {self.phase}")
            return method(self, *arguments)

        return call

    for name in ("start", "finish"):
        monkeypatch.setattr(Route, name, told(name, getattr(Route, name)))

    def rank():
        module = layer(Case({"shared": 1}), dist.group.WORLD)
        module.shared.register_forward_hook(lambda *_: events.append("shared"))
        module.shared.weight_in.register_hook(lambda _: events.append("shared backward"))
        module(given([3, 3], dist.get_rank())["x"].requires_grad_()).sum().backward()
        return list(dict.fromkeys(events))

    order = "start dispatch, shared, finish dispatch, start combine, finish combine"
    back = "start combine_backward, finish combine_backward, start dispatch_backward"
    expected = [*order.split(", "), *back.split(", "), "shared backward"]
    assert run(rank, ranks=2) == [[*expected, "finish dispatch_backward"]] * 2


# ---- around the layer ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_seed_gives_the_weights_that_it_gives_in_one_process(dtype):
    options = {"hidden": H, "shared": 1, "dtype": dtype}

    def rank():
        torch.manual_seed(4)
        module = nn.MoE(D, E, 2, **options, group=dist.group.WORLD)
        state = {n: p.detach() for n, p in module.named_parameters()}
        whole = {n: module.parallel.whole(p) if n in STACKS else p for n, p in state.items()}
        return whole, torch.rand(3)

    torch.manual_seed(4)
    expected = nn.MoE(D, E, 2, **options)
    after = torch.rand(3)
    for state, drawn_next in run(rank, ranks=4):
        assert torch.equal(drawn_next, after)
        for name, value in expected.named_parameters():
            assert torch.equal(state[name], value), name


def test_a_copy_has_the_same_group_and_counts_its_own_bytes():
    def rank():
        module = layer(Case(), dist.group.WORLD)
        x = given([3, 3], dist.get_rank())["x"]
        y, other = module(x), copy.deepcopy(module)
        same = torch.equal(other(x), y)
        sent = [m.parallel.traffic["dispatch"].sum().item() for m in (module, other)]
        with pytest.raises(TypeError, match="group: expected None in a layer that is pickled"):
            pickle.dumps(module)
        return same, other.balancer.total.__self__ is other.parallel, sent[1] == sent[0]

    assert run(rank, ranks=2) == [(True, True, True)] * 2


def test_what_holds_no_collective_is_refused():
    def rank():
        module, x = layer(Case(), dist.group.WORLD), torch.zeros(2, T, D, dtype=torch.float64)
        with pytest.raises(ValueError, match="group: expected None inside vmap, got a process gr"):
            torch.vmap(module)(x)
        return "ranks=1" not in repr(module)

    assert run(rank, ranks=1) == [True]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"experts": 9}, ValueError, "experts: expected a multiple of the 2 ranks of the group"),
        ({"group": 0}, TypeError, "group: expected a torch.distributed.ProcessGroup that this"),
    ],
)
def test_a_wrong_argument_is_named(options, error, says):
    def rank():
        with pytest.raises(error, match=says):
            nn.MoE(**{"features": D, "experts": E, "group": dist.group.WORLD} | options)

    run(rank, ranks=2)
