"""A layer of experts is the weighted sum that it says it is, whoever has no token.

Imports gatelib.kernels, gatelib.nn and torch.
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

from gatelib import nn
from gatelib.kernels.segment_plain import all_rows, own_rows
from gatelib.kernels.segments import segments
from gatelib.nn.glu import gating
from tests.nn.moe_layers import IMPLS, KINDS, D, E, H, by_hand, drawn, gradients, made, spread

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
    known = gating(data.draw(st.sampled_from(KINDS))).known
    x = drawn(tokens, D)
    indices = torch.randint(-1, experts + 2, (tokens, k))
    first, last = drawn(experts, len(known.inputs) * H, D), drawn(experts, 3, H)
    one = own_rows(known, x, segments(indices, experts), first, last)
    two = all_rows(known, x, indices, first, last)
    assert one.shape == two.shape == (tokens, k, 3)
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
