"""Sums of low precision are kept in float32: as near to float64 as their last digit allows.

Imports gatelib.equations, gatelib.nn, torch and Hypothesis.
Must not loosen a bound: a result may be off by rounding itself once, no more.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib.equations import lstm as cells
from gatelib.nn import (
    AdditiveAttention,
    DotAttention,
    FeatureGate,
    Gate,
    Highway,
    HighwayNodes,
    Jordan,
    Mutated,
    Recurrent,
    RecurrentHighway,
    SkipRNN,
    VariationalDropout,
    pool,
)

LOW = (torch.float16, torch.bfloat16)


def nearly(found, exact, dtype):
    """One rounding of the exact value, and float32's rounding of what was added up."""
    assert found.dtype == dtype
    scale = exact.abs().clamp_min(torch.finfo(dtype).tiny)
    error = ((found.double() - exact) / scale).abs().max()
    assert float(error) <= torch.finfo(dtype).eps * 0.51 + 1e-6


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("value", [100.0, 0.01, 60_000.0])
@pytest.mark.parametrize("steps", [1, 7, 1000, 70_000])
@pytest.mark.parametrize("padded", [False, True])
def test_a_mean_over_time_is_the_one_of_float64(dtype, value, steps, padded):
    generator = torch.Generator().manual_seed(0)
    y = (value * torch.rand(2, steps, 3, generator=generator)).to(dtype)
    lengths = torch.tensor([steps, max(1, steps // 2)]) if padded else None
    nearly(pool(y, lengths, "mean"), pool(y.double(), lengths, "mean"), dtype)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("kind", ["max", "last", "ends"])
def test_pools_that_choose_a_value_keep_it_as_it_is(dtype, kind):
    y, lengths = (-60_000 * torch.rand(3, 9, 4)).to(dtype), torch.tensor([9, 1, 4])
    found = pool(y, lengths, kind)
    assert found.dtype == dtype and torch.equal(found.double(), pool(y.double(), lengths, kind))


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(LOW),
    steps=st.integers(1, 3000),
    power=st.integers(-12, 15),
    seed=st.integers(0, 2**16),
)
def test_the_mean_and_its_gradient_are_right_for_any_length_and_size(dtype, steps, power, seed):
    generator = torch.Generator().manual_seed(seed)
    y = (2.0**power * torch.rand(1, steps, 2, generator=generator)).to(dtype).requires_grad_()
    mean = pool(y, None, "mean")
    nearly(mean.detach(), y.detach().double().mean(1), dtype)
    (slope,) = torch.autograd.grad(mean.sum(), y)
    assert float((slope.double() * steps - 1).abs().max()) < 0.01


def test_a_mean_of_single_and_double_precision_is_still_the_plain_one():
    for dtype in (torch.float32, torch.float64):
        y, lengths = torch.randn(3, 5, 4, dtype=dtype), torch.tensor([5, 2, 3])
        inside = torch.arange(5)[:, None] < lengths[:, None, None]
        expected = y.masked_fill(~inside, 0).sum(1) / lengths[:, None].to(dtype)
        assert torch.equal(pool(y, lengths, "mean"), expected)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("kind", ["bernoulli", "hard_concrete"])
def test_the_expected_number_of_open_gates_is_counted_in_float32(dtype, kind):
    for gate, inputs in (
        (FeatureGate(100_000, kind, openness=0.9), ()),
        (Gate(2, 100_000, kind, openness=0.9), (torch.ones(3, 2),)),
    ):
        low = gate.to(dtype)
        found = low.expected_l0(*(x.to(dtype) for x in inputs))
        exact = low.double().expected_l0(*(x.double() for x in inputs))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", LOW)
def test_a_softmax_gate_over_many_features_sums_to_1(dtype):
    gate = FeatureGate(3000, "softmax").to(dtype)
    assert float(gate.values().detach().double().sum()) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("dtype", LOW)
def test_a_slow_state_of_jordans_net_is_kept_in_float32(dtype):
    layer = Jordan(2, 3, 2, output="sigmoid", decay=0.999).to(dtype)
    x = torch.zeros(1, 2000, 2, dtype=dtype)
    y, state = layer(x)
    _, exact = layer.double()(x.double())
    assert y.dtype == dtype and state.dtype == torch.float32
    torch.testing.assert_close(state.double(), exact, rtol=0.02, atol=0)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize(
    "make",
    [
        lambda: Jordan(2, 3, 2, decay=0.9),
        lambda: SkipRNN(2, 3, 4),
        lambda: RecurrentHighway(2, 3, 2),
        lambda: Mutated(2, 2, "mut3"),
        lambda: HighwayNodes(2, 3),
    ],
)
def test_low_precision_sequences_may_be_read_in_pieces(dtype, make):
    layer, x = make().to(dtype), torch.randn(2, 7, 2).to(dtype)
    whole, end = layer(x)
    first, middle = layer(x[:, :3])
    second, last = layer(x[:, 3:], middle)
    assert whole.dtype == dtype and end.dtype == middle.dtype == torch.float32
    near = {"rtol": 0, "atol": 2 * torch.finfo(dtype).eps}  # a product of other shape rounds anew
    torch.testing.assert_close(torch.cat([first, second], 1), whole, **near)
    torch.testing.assert_close(last, end, **near)


@pytest.mark.parametrize("dtype", LOW)
def test_a_variational_mask_keeps_its_scale_in_low_precision(dtype):
    x = torch.ones(1, 3, 4, dtype=dtype)
    found = VariationalDropout(0.3)(x, torch.zeros(1, 1, 4))
    nearly(found, torch.full_like(x, 1 / 0.7, dtype=torch.float64), dtype)


# ---- attention --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("size", [1.0, 30.0, 200.0])
@pytest.mark.parametrize("length", [3, 500])
@pytest.mark.parametrize("score", ["dot", "scaled", "general", "additive"])
def test_attention_of_low_precision_is_the_one_of_float64(dtype, size, length, score):
    """Scores of 64 features pass float16's end at entries of 32; no weight may become nan."""
    torch.manual_seed(0)
    K = 64
    layer = AdditiveAttention(K, K, K) if score == "additive" else DotAttention(K, K, score)
    layer = layer.to(dtype)
    keys, queries = ((size * torch.randn(2, n, K)).to(dtype) for n in (length, 4))
    values, lengths = torch.randn(2, length, 5).to(dtype), torch.tensor([length, 2])
    context, weights = layer(queries, keys, lengths, values)
    exact = layer.double()(queries.double(), keys.double(), lengths, values.double())
    assert context.dtype == weights.dtype == dtype
    if score in ("dot", "scaled"):  # no product of the layer's own is rounded before the scores
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(weights.double(), exact[1], rtol=eps, atol=eps**2 + 1e-4)
        torch.testing.assert_close(context.double(), exact[0], rtol=eps, atol=4 * eps)
    assert context.isfinite().all() and not weights[1, :, 2:].any()
    torch.testing.assert_close(
        weights.double().sum(-1), torch.ones(2, 4).double(), atol=0.02, rtol=0
    )


# ---- states and streams -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("impl", ["reference", "fused"])
@pytest.mark.parametrize("name", ["lstm", "layernorm"])
def test_a_recurrent_layer_keeps_long_states_in_float32(dtype, impl, name):
    torch.manual_seed(0)
    layer = Recurrent(cells.ALL[name].spec, 3, 16, impl=impl).to(dtype)
    x = (30 * torch.randn(2, 300, 3)).to(dtype)
    y, state = layer(x)
    exact, _ = layer.double()(x.double())
    assert state["c"].dtype == torch.float32 and y.isfinite().all()
    assert float((y.double() - exact).abs().max().detach()) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("impl", ["reference", "fused"])
def test_a_deep_highway_keeps_its_stream_in_float32(dtype, impl):
    torch.manual_seed(0)
    layer = Highway(8, 60, impl=impl).to(dtype)
    x = torch.randn(4, 8).to(dtype)
    found, exact = layer(x), layer.double()(x.double())
    assert float((found.double() - exact).abs().max().detach()) < 16 * torch.finfo(dtype).eps
