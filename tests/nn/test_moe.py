"""A layer of experts is the weighted sum it says, whoever has no token, and leaks no future.

Imports gatelib.nn and torch.
Must not import gatelib.reference: tests/families holds the layer against it.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn as torch_nn
from torch.nn import functional as F

from gatelib import nn
from gatelib.lab.fleet import train_together
from gatelib.lab.training import train
from gatelib.nn.balance import expert_counts
from gatelib.nn.experts import experts_dense, experts_loop
from gatelib.nn.glu import gating

D, E, H = 8, 4, 12
IMPLS = ["reference", "fused", "auto"]
KINDS = ["swiglu", "gpt_oss", "relu_squared"]


def spread(module, dtype=torch.float64):
    """Weights far from their start, on which the choice of experts is not a toss."""
    torch.manual_seed(5)
    module = module.to(dtype)
    for parameter in module.parameters():
        torch_nn.init.normal_(parameter, std=0.5)
    return module


def made(dtype=torch.float64, **options):
    return spread(nn.MoE(D, **{"experts": E, "k": 2, "hidden": H} | options), dtype)


def drawn(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_hand(layer, x, indices, weights):
    """The definition: one token, one slot at a time, each expert a `GatedMLP`."""
    rows = []
    for token, own, shares in zip(x, indices.tolist(), weights, strict=True):
        total = torch.zeros_like(token)
        for i, w in zip(own, shares, strict=True):
            if i < layer.experts:
                parts = (layer.weight_in[i] @ token).chunk(layer.gating.parts)
                total = total + w * (layer.weight_out[i] @ layer.gating(*parts))
            elif i < layer.every:
                total = total + w * token
        rows.append(total)
    return torch.stack(rows)


def gradients(y, layer, x, dy):
    wanted = [x, *layer.parameters()]
    return torch.autograd.grad((y * dy).sum(), wanted, retain_graph=True, materialize_grads=True)


OPTIONS = {
    "swiglu": {},
    "gpt_oss": {"kind": "gpt_oss", "router": "gpt_oss"},
    "without a gate": {"kind": "relu_squared", "k": 1, "router": "switch"},
    "all experts": {"k": E},
    "identity experts": {"identity_experts": 3, "k": 3},
    "sigmoid": {"router": "deepseek_v4", "k": 3},
}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", OPTIONS)
def test_it_is_the_weighted_sum_of_its_experts_with_every_gradient(name, impl):
    layer = made(impl=impl, **OPTIONS[name])
    x = drawn(13, D).requires_grad_()
    y, routing = layer(x, return_routing=True)
    truth = by_hand(layer, x, routing.indices, routing.weights)
    assert (y - truth).abs().max() <= 1e-10 * max(1.0, truth.abs().max().item())
    dy = drawn(13, D, seed=2)
    for mine, theirs in zip(
        gradients(y, layer, x, dy), gradients(truth, layer, x, dy), strict=True
    ):
        assert (mine - theirs).abs().max() <= 1e-10 * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize("impl", ["reference", "fused"])
def test_first_and_second_derivatives(impl):
    layer = spread(nn.MoE(3, 3, 2, hidden=2, impl=impl))
    x = drawn(3, 3).requires_grad_()
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)


@pytest.mark.parametrize("impl", IMPLS)
def test_an_upstream_gradient_that_is_a_number_expanded_is_read_right(impl):
    layer, x = made(impl=impl), drawn(2, 5, D).requires_grad_()
    layer(x).sum().backward()
    found = [p.grad.clone() for p in layer.parameters()] + [x.grad.clone()]
    layer.zero_grad()
    x.grad = None
    layer(x).backward(torch.ones(2, 5, D, dtype=torch.float64))
    for mine, theirs in zip(found, [*(p.grad for p in layer.parameters()), x.grad], strict=True):
        assert (mine - theirs).abs().max() < 1e-12


def test_weights_on_the_input_are_not_weights_on_the_output():
    layer = made(router="llama4", k=1)
    x = drawn(9, D)
    y, routing = layer(x, return_routing=True)
    scaled, ones = x * routing.weights, torch.ones_like(routing.weights)
    assert layer.scales == "input"
    assert torch.allclose(y, by_hand(layer, scaled, routing.indices, ones))
    assert not torch.allclose(y, by_hand(layer, x, routing.indices, routing.weights))


def test_shared_experts_see_every_token_behind_their_own_gate():
    layer = made(shared=2, shared_gate=True)
    assert layer.shared.hidden == 2 * H
    x = drawn(5, D)
    y, routing = layer(x, return_routing=True)
    gate = torch.sigmoid(x @ layer.shared_gate.weight.t())
    expected = by_hand(layer, x, routing.indices, routing.weights) + gate * layer.shared(x)
    assert torch.allclose(y, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_one_expert_is_a_gated_mlp(kind):
    layer, mlp = made(experts=1, k=1, kind=kind), nn.GatedMLP(D, H, kind=kind).double()
    with torch.no_grad():
        mlp.weight_in.copy_(layer.weight_in[0])
        mlp.weight_out.copy_(layer.weight_out[0])
    x = drawn(3, 4, D)
    assert torch.allclose(layer(x), mlp(x), rtol=1e-14, atol=1e-14)


def test_k_experts_have_the_weights_of_a_plain_mlp_where_no_width_is_given():
    for kind, k in (("swiglu", 2), ("relu", 4)):
        layer = nn.MoE(96, 8, k, kind=kind)
        active = k * (layer.weight_in[0].numel() + layer.weight_out[0].numel())
        assert active == 8 * 96 * 96 and layer.hidden % 8 == 0


@given(st.integers(0, 20), st.integers(1, 5), st.data())
@settings(deadline=None, max_examples=30)
def test_both_plain_forms_agree_wherever_an_index_points(tokens, experts, data):
    k = data.draw(st.integers(1, 3))
    known = gating(data.draw(st.sampled_from(KINDS)))
    x = drawn(tokens, D)
    indices = torch.randint(-1, experts + 2, (tokens, k))
    first, last = drawn(experts, known.parts * H, D), drawn(experts, D, H)
    one, two = (run(known, x, indices, first, last) for run in (experts_loop, experts_dense))
    assert one.shape == two.shape == (tokens, k, D)
    assert torch.allclose(one, two, rtol=1e-12, atol=1e-12)


# ---- who has no token ---------------------------------------------------------------------------


@pytest.mark.parametrize("impl", IMPLS)
def test_an_expert_without_a_token_has_a_gradient_of_0(impl):
    layer = made(impl=impl)
    with torch.no_grad():
        layer.router.weight.zero_()  # all logits are equal: experts 0 and 1 have every token
    layer(drawn(3, 4, D)).sum().backward()
    for grad in (layer.weight_in.grad, layer.weight_out.grad):
        assert (grad[:2].flatten(1).abs().amax(1) > 0).all() and (grad[2:] == 0).all()
    found = layer.metrics
    assert found["load"].tolist() == [0.5, 0.5, 0, 0]
    assert found["dead_experts"] == 2 and found["max_violation"] == 1.0
    assert found["router_entropy"].item() == pytest.approx(1.3862943611198906)


@pytest.mark.parametrize("impl", IMPLS)
def test_one_token_no_token_and_nothing_but_padding(impl):
    layer = made(impl=impl, shared=1, identity_experts=1, capacity_factor=1.0, balance="sequence")
    assert layer(drawn(1, 1, D)).shape == (1, 1, D)
    for x, live in ((drawn(0, 3, D), None), (drawn(2, 3, D), torch.zeros(2, 3, dtype=torch.bool))):
        layer.zero_grad()
        y = layer(x, live=live)
        assert (y == 0).all() and y.shape == x.shape
        (y.sum() + nn.auxiliary_loss(layer)).backward()
        assert layer.metrics["loss"] == 0 and layer.metrics["dropped"] == 0
        for p in layer.parameters():
            assert p.grad is None or (p.grad == 0).all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("factor", [None, 1.0])
def test_padding_gives_0_and_changes_nothing_even_if_it_is_nan(impl, factor):
    more = {"shared": 1, "shared_gate": True, "capacity_factor": factor}
    layer = made(impl=impl, balance="sequence", z_weight=0.1, **more)
    x, lengths = drawn(3, 5, D), torch.tensor([5, 2, 3])
    live = torch.arange(5) < lengths[:, None]
    x[~live] = torch.nan
    x.requires_grad_()
    y = layer(x, lengths)
    assert (y[~live] == 0).all()
    loss = y.sum() + layer.loss()
    loss.backward()
    assert torch.isfinite(x.grad).all() and (x.grad[~live] == 0).all()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())
    filled = x.detach().nan_to_num(7.0)
    assert torch.equal(layer(filled, live=live), y)
    assert layer.metrics["load"].sum() == pytest.approx(1)
    if layer.capacity_factor is None:
        for row, length in enumerate(lengths):
            assert torch.allclose(layer(x[row : row + 1, :length]), y[row, :length])


# ---- capacity -----------------------------------------------------------------------------------


class Fixed(torch_nn.Module):
    """A router that says what it was given."""

    causal = True

    def __init__(self, indices, weights):
        super().__init__()
        self.indices, self.weights = torch.tensor(indices), torch.tensor(weights)

    def forward(self, x, live=None):
        scores = torch.full((len(x), E), 1 / E)
        return nn.routers.Routing(self.indices, self.weights, scores, scores, live)


def kept_by(indices, weights, shape, **options):
    layer = nn.MoE(D, E, len(indices[0]), hidden=H, router=Fixed(indices, weights), **options)
    _, routing = layer(torch.randn(*shape, D), return_routing=True)
    return layer._kept(routing, shape).tolist(), layer


def test_an_expert_takes_its_capacity_first_choices_before_second_ones():
    indices, weights = [[0, 1], [0, 1], [1, 0], [0, 1]], [[0.6, 0.4]] * 4
    kept, layer = kept_by(indices, weights, (4,), capacity_factor=1.0)  # 2 slots an expert
    assert kept == [[True, True], [True, False], [True, False], [False, False]]
    assert layer.metrics["dropped"].item() == 0.5


def test_the_earlier_position_of_any_sequence_comes_first():
    indices, weights = [[0]] * 6, [[1.0]] * 6
    kept, _ = kept_by(indices, weights, (2, 3), capacity_factor=2.0)  # 3 slots an expert
    assert kept == [[True], [True], [False], [True], [False], [False]]


def test_the_likelier_token_comes_first_and_of_equals_the_earlier():
    indices, weights = [[0]] * 4, [[0.3], [0.9], [0.5], [0.9]]
    options = {"capacity_factor": 1.0, "priority": "probability"}  # 1 slot an expert
    kept, layer = kept_by(indices, weights, (4,), **options)
    assert kept == [[False], [True], [False], [False]] and not layer.causal


def test_what_was_dropped_gives_0_and_no_gradient_and_isnt_made_up_for():
    for impl in IMPLS:
        layer = made(impl=impl, capacity_factor=0.5)
        x = drawn(12, D).requires_grad_()
        y, routing = layer(x, return_routing=True)
        kept = layer._kept(routing, (12,))
        assert 0 < kept.sum() < kept.numel()
        truth = by_hand(layer, x, routing.indices, routing.weights * kept)
        assert torch.allclose(y, truth)
        counts = expert_counts(routing.indices.masked_fill(~kept, E), E)
        assert counts.max() == 3  # ceil(0.5 * 2 * 12 / 4)


def test_a_capacity_for_all_drops_nothing():
    full, free = made(capacity_factor=float(E)), made()
    x = drawn(3, 7, D)
    assert torch.equal(full(x), free(x)) and full.metrics["dropped"] == 0


def test_identity_experts_are_never_full():
    layer = made(identity_experts=2, k=3, capacity_factor=1e-9)
    x = drawn(11, D)
    y, routing = layer(x, return_routing=True)
    kept = layer._kept(routing, (11,))
    assert (kept | (routing.indices < E)).all()
    assert torch.allclose(y, by_hand(layer, x, routing.indices, routing.weights * kept))


# ---- causality ----------------------------------------------------------------------------------

T = 11
CAUSAL = {
    "softmax": {},
    "sigmoid with groups": {"router": "deepseek_v3", "experts": 16, "k": 4, "shared": 1},
    "identity": {"identity_experts": 2},
    "bias": {"balance": "bias"},
    "one choice by position": {"k": 1, "capacity_factor": 0.7},
}


FUSED_BITS = ["reference"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("impl", FUSED_BITS)
@pytest.mark.parametrize("name", CAUSAL)
def test_a_later_token_changes_no_bit_of_an_earlier_output(name, impl, dtype):
    layer = made(dtype, impl=impl, **CAUSAL[name])
    assert layer.causal
    x = drawn(2, T, D, dtype=dtype)
    y = layer(x)
    for t in range(T):
        changed = x.clone()
        changed[:, t:] = drawn(2, T - t, D, dtype=dtype, seed=t + 9)
        assert torch.equal(layer(changed)[:, :t], y[:, :t]), t


def test_a_hash_is_causal_too():
    layer = made(torch.float32, router=nn.HashRouter(E, 2))
    x, ids = drawn(1, T, D, dtype=torch.float32), torch.arange(T)[None]
    other = torch.where(ids < 6, ids, ids + 100)
    assert torch.equal(layer(x, tokens=ids)[:, :6], layer(x, tokens=other)[:, :6])
    assert not torch.equal(layer(x, tokens=ids)[:, 6:], layer(x, tokens=other)[:, 6:])


LEAKY = {
    "experts choose": lambda: nn.MoE(D, E, 2, hidden=H, router=nn.ExpertChoiceRouter(D, E)),
    "soft": lambda: nn.SoftMoE(D, E, 2, H),
    "depths": lambda: nn.MixtureOfDepths(nn.GatedMLP(D, H), D, 0.5),
    "second choices": lambda: nn.MoE(D, E, 2, hidden=H, capacity_factor=0.5),
    "by probability": lambda: nn.MoE(
        D, E, 1, hidden=H, capacity_factor=0.5, priority="probability", router="switch"
    ),
}


@pytest.mark.parametrize("name", LEAKY)
def test_what_says_that_it_isnt_causal_leaks_the_last_token(name):
    layer = spread(LEAKY[name]())
    assert not layer.causal
    x = drawn(1, T, D)
    changed = [layer(torch.cat([x[:, :-1], 3 * drawn(1, 1, D, seed=s)], 1)) for s in range(9)]
    assert any(not torch.equal(y[:, :-1], changed[0][:, :-1]) for y in changed[1:])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_second_run_gives_the_same_bits(impl):
    layer, x = made(torch.float32, impl=impl), drawn(50, D, dtype=torch.float32).requires_grad_()
    runs = [gradients(layer(x), layer, x, torch.ones(50, D)) for _ in range(2)]
    assert all(map(torch.equal, *runs))


# ---- precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_errs_within_its_budget(impl, dtype):
    low = made(dtype, impl=impl, shared=1, identity_experts=1)
    exact = copy.deepcopy(low).double()
    x = drawn(40, D).to(dtype)
    y, routing = low(x, return_routing=True)
    assert y.dtype == dtype and routing.weights.dtype == torch.float32
    truth, known = exact(x.double(), return_routing=True)
    same = (routing.indices == known.indices).all(-1)
    assert same.double().mean() > 0.9
    eps = torch.finfo(dtype).eps
    assert (y.double() - truth)[same].abs().max() <= 8 * eps * truth.abs().max()


@pytest.mark.parametrize("impl", IMPLS)
def test_autocast_narrows_the_experts_and_not_the_router(impl):
    layer, x = made(torch.float32, impl=impl), drawn(20, D, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, routing = layer(x, return_routing=True)
    truth, known = layer(x, return_routing=True)
    assert y.dtype == torch.bfloat16 and torch.equal(routing.weights, known.weights)
    assert (y.float() - truth).abs().max() <= 0.05 * truth.abs().max()


# ---- around the layer ---------------------------------------------------------------------------


def test_a_layer_is_saved_copied_and_pickled_also_after_a_forward_pass():
    layer = made(torch.float32, balance="bias", shared=1, shared_gate=True)
    x = drawn(2, 5, D, dtype=torch.float32)
    layer(x)
    other = nn.MoE(D, E, 2, hidden=H, balance="bias", shared=1, shared_gate=True)
    other.load_state_dict(layer.state_dict())
    layer.eval()
    for one in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(one.eval()(x), layer(x))
    assert layer.routing.logits.requires_grad
    with pytest.raises(ValueError, match="routing: expected a forward pass before it is asked"):
        _ = copy.deepcopy(layer).routing


class Net(torch_nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.moe = nn.MoE(D, E, 2, hidden=H, **options)
        self.out = torch_nn.Linear(D, 3)

    def forward(self, x):
        return self.out(x + self.moe(x))


def trained(balance, **options):
    torch.manual_seed(0)
    net = Net(balance=balance, **options)
    x = drawn(300, D, dtype=torch.float32)
    y = (x[:, :3].argmax(-1) + (x[:, 3] > 0)) % 3
    history = train(
        net,
        (x, y),
        steps=120,
        lr=1e-2,
        loss=lambda logits, y: F.cross_entropy(logits, y) + nn.auxiliary_loss(net),
        optimizer=lambda p, lr: nn.updated_after(torch.optim.Adam(p, lr=lr), net),
    )
    net.eval()(x)
    return history, net.moe.metrics["max_violation"].item()


@pytest.mark.parametrize("balance", [None, "switch", "importance", "bias", "quantile", "global"])
def test_it_trains_under_the_lab_and_balances(balance):
    more = {"balance_rate": 3e-3} if balance == "bias" else {}
    history, violation = trained(balance, **more)
    assert history.losses[-20:].mean() < 0.6 * history.losses[:5].mean()
    if balance in ("bias", "quantile"):
        assert violation < 0.35


def test_many_are_trained_together_as_each_alone():
    x = drawn(64, D, dtype=torch.float32)
    y = (x[:, 0] > 0).long()
    nets = [copy.deepcopy(spread(Net(balance="switch"), torch.float32)) for _ in range(2)]

    def loss(logits, y):
        return F.cross_entropy(logits, y) + nn.auxiliary_loss(nets[0])

    alone = copy.deepcopy(nets[1])
    together = train_together(nets, (x, y), steps=5, rates=[1e-3, 1e-2], loss=loss)
    single = train(
        alone,
        (x, y),
        steps=5,
        lr=1e-2,
        loss=lambda z, y: F.cross_entropy(z, y) + nn.auxiliary_loss(alone),
    )
    assert abs(together[1] - single.losses).max() < 1e-4


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"k": 5}, ValueError, "k: expected at most the 4 experts to choose from, got 5"),
        ({"shared": -1}, ValueError, "shared: expected at least 0, got -1"),
        ({"identity_experts": 1.0}, TypeError, "identity_experts: expected an integer, got float"),
        ({"shared_gate": True}, ValueError, "shared_gate: expected False without a shared expert"),
        ({"capacity_factor": 0}, ValueError, "capacity_factor: expected more than 0, or None"),
        ({"capacity_factor": "1"}, TypeError, "capacity_factor: expected a real number, got str"),
        ({"priority": "luck"}, ValueError, "priority: expected one of 'position', 'probability'"),
        ({"balance": "even"}, ValueError, "balance: expected one of 'bias', 'global'"),
        ({"balance_rate": "1"}, TypeError, "rate: expected a real number, got str"),
        ({"scales": "both"}, ValueError, "scales: expected one of 'input', 'output'"),
        ({"impl": "fast"}, ValueError, "impl: expected 'auto', 'fused' or 'reference'"),
        ({"kind": "tanh"}, ValueError, "kind: expected one of"),
        ({"hidden": 0}, ValueError, "hidden: expected at least 1, got 0"),
        ({"router": "gpt5"}, ValueError, "router: expected one of 'dbrx'"),
        (
            {"router": nn.TopKRouter(D, 5, 2)},
            ValueError,
            r"router: expected one of 4 experts \(experts \+ identity_experts\), got 5",
        ),
        (
            {"router": nn.TopKRouter(D, 4, 2), "balance": "bias"},
            ValueError,
            "router: expected a selection bias for balance='bias', got none",
        ),
        ({"router": torch_nn.ReLU}, TypeError, "router: expected a name or a torch.nn.Module"),
    ],
)
def test_a_wrong_argument_is_named(options, error, says):
    with pytest.raises(error, match=says):
        nn.MoE(**{"features": D, "experts": E, "k": 2} | options)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"input": torch.randn(3, D + 1)}, r"input: expected \(..., 8\), got shape \(3, 9\)"),
        ({"input": torch.randn(3, D).double()}, "input: expected torch.float32 as the weights"),
        ({"lengths": torch.tensor([3, 9])}, "lengths: expected 0 to T = 4, got 3 to 9"),
        (
            {"input": torch.randn(4, D), "lengths": torch.tensor([1])},
            r"input: expected \(B, T,",
        ),
        ({"live": torch.ones(2, 4)}, r"live: expected torch.bool \(2, 4\), got torch.float32"),
        (
            {"live": torch.ones(2, 4).bool(), "lengths": torch.tensor([1, 2])},
            "live: expected None beside lengths, got a tensor",
        ),
        (
            {"tokens": torch.zeros(2, 4).long()},
            "tokens: expected None with a TopKRouter, which",
        ),
    ],
)
def test_a_wrong_input_is_named(given, says):
    layer = nn.MoE(D, E, 2, hidden=H)
    with pytest.raises((TypeError, ValueError), match=says):
        layer(**{"input": torch.randn(2, 4, D)} | given)
