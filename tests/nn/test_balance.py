"""What balances experts: losses at balance and at worst, updates of the bias, and what is counted.

Imports gatelib.nn and torch.
Must not import gatelib.reference: tests/families holds losses against it.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from gatelib import nn
from gatelib.nn.balance import (
    dead_experts,
    expert_counts,
    importance_loss,
    load_loss,
    max_violation,
    quantile_bias,
    router_entropy,
    switch_loss,
    update_bias,
    z_loss,
)

D, E = 6, 4
EVEN = torch.tensor([[0, 1], [2, 3], [1, 2], [3, 0]])
UNIFORM = torch.full((4, E), 1 / E)


# ---- counts -------------------------------------------------------------------------------------


def test_counts_are_whole_and_skip_what_names_no_expert():
    found = expert_counts(torch.tensor([[0, 2], [2, 3], [4, -1]]), 4)
    assert found.tolist() == [1, 0, 2, 1] and found.dtype == torch.int64
    assert expert_counts(torch.zeros(0, 2, dtype=torch.int64), 3).tolist() == [0, 0, 0]


def test_counts_beyond_the_digits_of_low_precision_stay_exact():
    counts = expert_counts(torch.zeros(41_235, 1, dtype=torch.int64), 2)
    assert counts[0] == 41_235 != counts.bfloat16()[0].item()


def test_metrics_at_balance_and_at_worst():
    even, one = torch.tensor([5, 5, 5, 5]), torch.tensor([20, 0, 0, 0])
    assert [max_violation(c).item() for c in (even, one, one * 0)] == [0.0, 3.0, 0.0]
    assert [dead_experts(c).item() for c in (even, one)] == [0, 3]
    assert router_entropy(UNIFORM.double()).item() == pytest.approx(1.3862943611198906)
    assert router_entropy(torch.eye(4)).item() == 0.0
    assert router_entropy(torch.eye(4) * 0).item() == 0.0  # no score at all
    mixed = torch.cat([UNIFORM, torch.eye(4)])
    live = torch.arange(8) >= 4
    assert router_entropy(mixed, live).item() == 0.0


# ---- losses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["batch", "sequence"])
def test_the_switch_loss_is_1_at_balance_and_e_over_k_at_worst(per):
    even = switch_loss(UNIFORM[None], EVEN[None], per=per)
    one = torch.zeros(1, 4, E).index_fill(-1, torch.tensor(0), 1.0)
    assert even.item() == 1.0
    for k in (1, 2):
        chosen = torch.arange(k).expand(1, 4, k)
        assert switch_loss(one, chosen, per=per).item() == E / k


def test_two_sequences_each_on_its_own_expert_are_balanced_together_and_not_apart():
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[:, None].expand(2, 3, 2)
    indices = torch.tensor([0, 1])[:, None, None].expand(2, 3, 1)
    assert switch_loss(scores, indices).item() == 1.0
    assert switch_loss(scores, indices, per="sequence").item() == 2.0
    counts = expert_counts(indices, 2)
    both = switch_loss(scores[:1], indices[:1], per="global", counts=counts)
    assert both.item() == 1.0 and switch_loss(scores[:1], indices[:1]).item() == 2.0


def test_scores_that_dont_sum_to_1_are_normalised_token_by_token():
    scores = torch.rand(5, E, dtype=torch.float64)
    indices = torch.randint(0, E, (5, 2))
    shares = scores / scores.sum(-1, keepdim=True)
    assert switch_loss(scores, indices) == switch_loss(shares, indices)
    assert router_entropy(3 * scores).item() == pytest.approx(router_entropy(shares).item())


def losses(scores, logits, indices, weights, live=None):
    """All losses of (B, T, ...) by name."""
    spread = torch.full_like(logits, 0.7)
    noisy = logits + 0.3 * torch.sin(17 * logits)
    return {
        "batch": switch_loss(scores, indices, live),
        "sequence": switch_loss(scores, indices, live, per="sequence"),
        "z": z_loss(logits, live),
        "importance": importance_loss(indices, weights, E),
        "load": load_loss(logits, noisy, spread, 2, live),
        "entropy": router_entropy(scores, live),
    }


def drawn(*shape):
    torch.manual_seed(4)
    logits = torch.randn(*shape, E, dtype=torch.float64)
    weights, indices = torch.softmax(logits, -1).topk(2, -1)
    return torch.softmax(logits, -1), logits, indices, weights


def test_no_loss_counts_padding():
    scores, logits, indices, weights = drawn(1, 5)
    alone = losses(scores, logits, indices, weights)
    live = torch.tensor([[True, False, True, True, False, True, True]])
    padded = []
    for value, fill in ((scores, 0.9), (logits, 1e3), (indices, E), (weights, 0.0)):
        wide = torch.full((1, 7, value.size(-1)), fill, dtype=value.dtype)
        wide[live] = value[0]
        padded.append(wide)
    for name, value in losses(*padded, live).items():
        assert value.item() == pytest.approx(alone[name].item(), rel=1e-12), name
    nowhere = torch.zeros_like(live)
    padded[2].fill_(E), padded[3].zero_()
    assert all(value == 0 for value in losses(*padded, nowhere).values())


def test_sequences_of_padding_alone_count_in_no_mean():
    scores, _, indices, _ = drawn(3, 5)
    live = torch.tensor([True, False, True])[:, None].expand(3, 5)
    kept = switch_loss(scores[::2], indices[::2], per="sequence")
    assert switch_loss(scores, indices, live, per="sequence").item() == pytest.approx(kept.item())


@pytest.mark.parametrize("name", ["batch", "sequence", "z", "importance", "load", "entropy"])
def test_first_and_second_derivatives_of_the_losses(name):
    _, logits, indices, _ = drawn(2, 3)

    def run(z):
        p = torch.softmax(z, -1)
        return losses(p, z, indices, p.gather(-1, indices))[name]

    assert torch.autograd.gradcheck(run, logits.requires_grad_())
    assert torch.autograd.gradgradcheck(run, logits)


def test_one_expert_that_takes_all_is_the_worst_importance():
    indices = torch.zeros(9, 1, dtype=torch.int64)
    assert importance_loss(indices, torch.ones(9, 1), E).item() == E - 1
    assert importance_loss(EVEN, torch.ones(4, 2), E).item() == 0.0


# ---- the bias -----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=9))
def test_the_bias_moves_by_the_sign_of_what_is_missing_and_centred_keeps_its_sum(counts):
    bias, c = torch.zeros(len(counts), dtype=torch.float64), torch.tensor(counts)
    mean = sum(counts) / len(counts)
    signs = [(mean > n) - (mean < n) for n in counts]
    plain = update_bias(bias, c, 0.25, centred=False)
    assert plain.tolist() == [0.25 * s for s in signs]
    assert abs(update_bias(bias, c, 0.25).sum().item()) < 1e-12
    assert torch.allclose(update_bias(bias, c, 0.25), plain - plain.mean())


def test_without_centring_the_biases_drift_up_together():
    counts = torch.tensor([90, 4, 3, 3])
    drifted = centred = torch.zeros(4)
    for _ in range(100):
        drifted, centred = (
            update_bias(drifted, counts, 1e-3, centred=False),
            update_bias(centred, counts, 1e-3),
        )
    assert drifted.mean().item() == pytest.approx(0.05, rel=1e-4)
    assert abs(centred.mean().item()) < 1e-7
    assert torch.allclose(drifted - drifted.mean(), centred, atol=1e-6)


@given(st.integers(2, 8), st.integers(1, 40), st.data())
@settings(deadline=None)
def test_the_quantile_bias_gives_each_expert_its_share(experts, share, data):
    k = data.draw(st.integers(1, experts - 1))
    scores = torch.randn(share * experts, experts, dtype=torch.float64)
    scores += torch.linspace(0, 3, experts)  # all would go to the last
    bias = quantile_bias(scores, k, steps=300)
    counts = expert_counts((scores + bias).topk(k).indices, experts)
    assert counts.sum() == len(scores) * k
    raw = expert_counts(scores.topk(k).indices, experts)
    assert max_violation(counts) <= max(0.35, 2 / (share * k)) or max_violation(
        counts
    ) < 0.5 * max_violation(raw)


def test_the_quantile_bias_leaves_padding_out_and_stays_without_a_token():
    scores = torch.randn(12, E)
    live = torch.arange(12) < 8
    garbage = scores.masked_fill(~live[:, None], 1e9)
    assert torch.equal(quantile_bias(garbage, 2, live=live), quantile_bias(scores[:8], 2))
    start = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert torch.equal(quantile_bias(scores, 2, start, torch.zeros(12, dtype=torch.bool)), start)
    assert torch.equal(quantile_bias(scores[:0], 2, start), start)


# ---- the balancer -------------------------------------------------------------------------------


def layer(balance, **options):
    torch.manual_seed(0)
    return nn.MoE(D, E, 2, hidden=8, balance=balance, **options)


def counted(module):
    return module.balancer.counts.sum().item()


def test_tokens_are_counted_in_training_and_not_in_eval():
    module, x = layer("bias"), torch.randn(2, 5, D)
    module(x), module(x)
    assert counted(module) == 40
    module.eval()(x)
    assert counted(module) == 40
    module.update_balance()
    assert counted(module) == 0


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("balance", ["bias", "quantile"])
def test_a_checkpoint_that_computes_again_counts_once(balance, reentrant):
    module, plain = layer(balance), layer(balance)
    x = torch.randn(2, 5, D, requires_grad=True)
    checkpoint(module, x, use_reentrant=reentrant).sum().backward()
    plain(x).sum().backward()
    for mine, theirs in zip(module.buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    module.update_balance(), plain.update_balance()
    assert torch.equal(module.router.selection_bias, plain.router.selection_bias)


def test_micro_batches_count_as_their_whole_and_the_bias_moves_once():
    whole, parts = layer("bias", balance_rate=0.1), layer("bias", balance_rate=0.1)
    x = torch.randn(4, 5, D)
    whole(x)
    for part in x.split(1):
        parts(part)
        assert (parts.router.selection_bias == 0).all()
    for module in (whole, parts):
        nn.update_balance(module)
    assert torch.equal(whole.router.selection_bias, parts.router.selection_bias)
    assert (whole.router.selection_bias != 0).any()


def test_an_optimizer_moves_the_bias_after_each_of_its_steps():
    module = layer("bias", balance_rate=0.1)
    optimizer = nn.updated_after(torch.optim.SGD(module.parameters(), lr=0.0), module)
    for step in range(1, 4):
        module(torch.randn(1, 50, D)).sum().backward()
        optimizer.step()
        assert counted(module) == 0
        assert module.router.selection_bias.abs().max() <= 0.15 * step + 1e-6
    assert (module.router.selection_bias != 0).any()


@pytest.mark.parametrize(("balance", "steps"), [("bias", 120), ("quantile", 5)])
def test_either_bias_balances_a_router_that_prefers_one_expert(balance, steps):
    module = layer(balance, balance_rate=0.004)
    x = torch.randn(1, 400, D) + 1
    with torch.no_grad():
        module.router.weight[0] = 0.4
    module(x)
    before = module.metrics["max_violation"].item()
    for _ in range(steps):
        module(x), module.update_balance()
    module(x)
    assert before > 0.5 and module.metrics["max_violation"].item() < 0.12


def test_whats_counted_stays_exact_when_the_model_is_cast():
    module = layer("quantile").bfloat16()
    assert module.balancer.quantile_sum.dtype == torch.float64
    assert layer("bias").bfloat16().balancer.counts.dtype == torch.int64
    assert layer("bias").half().router.selection_bias.dtype == torch.float32


def test_a_state_that_was_saved_between_two_updates_goes_on_where_it_was():
    for balance in ("bias", "quantile", "global"):
        module, other = layer(balance), nn.MoE(D, E, 2, hidden=8, balance=balance)
        x = torch.randn(2, 5, D)
        module(x)
        other.load_state_dict(copy.deepcopy(module.state_dict()))
        for one in (module, other):
            one(x), one.update_balance()
        assert all(map(torch.equal, module.state_dict().values(), other.state_dict().values()))


def test_the_global_loss_takes_its_shares_from_all_tokens_since_the_last_update():
    module = layer("global", balance_weight=1.0)
    first, second = torch.randn(1, 5, D), torch.randn(1, 7, D)
    module(first)
    one = module.routing
    module(second)
    two, counts = module.routing, module.balancer.counts.clone()
    both = torch.cat([one.indices, two.indices])
    assert torch.equal(counts, expert_counts(both, E))
    expected = switch_loss(two.scores, two.indices, per="global", counts=counts)
    assert torch.equal(module.loss(), expected)


@pytest.mark.parametrize("balance", ["importance", "switch", "sequence", "global"])
def test_a_loss_reaches_the_router_and_not_the_experts(balance):
    module = layer(balance, z_weight=0.1)
    module(torch.randn(2, 9, D))
    nn.auxiliary_loss(module).backward()
    assert module.router.weight.grad.abs().max() > 0 and module.weight_in.grad is None


def test_losses_of_several_layers_add_up_each_from_its_own_tokens():
    """Pooling tokens of two layers first would call two opposite collapses balanced."""
    layers = [nn.MoE(2, 2, 1, hidden=8, balance="switch", balance_weight=1.0) for _ in range(2)]
    for one, sign in zip(layers, (1, -1), strict=True):
        with torch.no_grad():
            one.router.weight.copy_(sign * torch.tensor([[50.0, 0], [-50.0, 0]]))
    x = torch.ones(1, 6, 2)
    for one in layers:
        one(x)
    assert nn.auxiliary_loss(torch.nn.ModuleList(layers)).item() == pytest.approx(4.0)


def test_a_loss_without_a_graph_is_refused_where_it_would_teach_nothing():
    module = layer("switch")
    with pytest.raises(ValueError, match="routing: expected a forward pass before it is asked for"):
        module.loss()
    x = torch.randn(1, 5, D, requires_grad=True)
    checkpoint(module, x, use_reentrant=True)
    with pytest.raises(ValueError, match="routing: expected a forward pass with a graph"):
        module.loss()
    assert module.metrics["loss"] > 0  # to look at
    with pytest.raises(ValueError, match="model: expected a layer of experts inside, got Linear"):
        nn.auxiliary_loss(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: expert_counts(torch.zeros(3), 2), TypeError, "indices: expected torch.int64"),
        (
            lambda: update_bias(torch.zeros(2), torch.zeros(2), 0.1),
            TypeError,
            "counts: expected wh",
        ),
        (
            lambda: update_bias(torch.zeros(2), torch.zeros(3, dtype=torch.int64), 0.1),
            ValueError,
            r"counts: expected \(E\) as the bias, got \(3,\) for a bias \(2,\)",
        ),
        (lambda: quantile_bias(UNIFORM, 4), ValueError, "k: expected fewer than the 4 experts"),
        (
            lambda: load_loss(UNIFORM, UNIFORM, UNIFORM, 4),
            ValueError,
            "k: expected fewer than the 4 experts, got 4",
        ),
        (
            lambda: switch_loss(UNIFORM, EVEN, per="token"),
            ValueError,
            "per: expected one of 'batch'",
        ),
        (lambda: switch_loss(UNIFORM, EVEN, per="global"), ValueError, "counts: expected a tensor"),
        (lambda: switch_loss(UNIFORM, EVEN, per="sequence"), ValueError, r"scores: .*\(B, T, E\)"),
        (lambda: switch_loss(UNIFORM, EVEN[:3]), ValueError, "indices: expected the tokens of the"),
        (lambda: z_loss(UNIFORM, torch.ones(4)), ValueError, "live: expected torch.bool"),
        (lambda: z_loss([1.0]), TypeError, "logits: expected a tensor, got list"),
        (
            lambda: nn.Balancer(4, 2, "even"),
            ValueError,
            "balance: expected one of 'bias', 'global'",
        ),
        (lambda: nn.Balancer(4, 2, weight="1"), TypeError, "weight: expected a real number"),
    ],
)
def test_a_wrong_argument_is_named(call, error, says):
    with pytest.raises(error, match=says):
        call()
