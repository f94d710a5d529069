"""Gated attention's derivatives, and where it runs: compiled, exported, under autocast and vmap."""

from __future__ import annotations

import copy

import pytest
import torch

from gatelib.nn import GatedAttention, init
from tests.nn.attention_forms import LAYERS, attention
from tests.nn.running import assert_near, floats, forward_and_backward

every_layer = pytest.mark.parametrize("name", LAYERS)
SOME = ["plain", "output gate per head, all else", "score gate per element", "unit", "block"]
some_layers = pytest.mark.parametrize("name", SOME)


def tokens(batch=2, steps=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, steps, 16, generator=generator, dtype=torch.float64).to(dtype)


def of_all(layer):
    """The layer as a function of its input, a cache and all parameters."""
    names = [name for name, _ in layer.named_parameters()]
    _, state = layer(tokens(steps=2))
    cache = {key: value.detach() for key, value in state.items()}

    def call(x, *values):
        cached, parameters = values[: len(cache)], values[len(cache) :]
        before = dict(zip(cache, cached, strict=True))
        given = dict(zip(names, parameters, strict=True))
        return floats(torch.func.functional_call(layer, given, (x, before)))

    def outputs(*values):
        return tuple(call(*values))

    own = [p.detach() for p in layer.parameters()]
    given = [value.clone().requires_grad_() for value in (tokens(), *cache.values(), *own)]
    return outputs, given


@every_layer
def test_gradients_are_those_of_finite_differences(name):
    """With respect to the input, the cache and every parameter; fast mode draws one direction."""
    call, given = of_all(attention(name, torch.float64))
    assert torch.autograd.gradcheck(call, given, fast_mode=True)


@some_layers
def test_second_derivatives_of_what_is_written_out_are_too(name):
    call, given = of_all(attention(name, torch.float64, impl="reference"))
    assert torch.autograd.gradgradcheck(call, given, fast_mode=True, atol=1e-4)


@every_layer
def test_a_gradient_that_is_expanded_or_strided_is_the_same(name):
    layer, x = attention(name, torch.float64), tokens().requires_grad_()
    y = layer(x)[0]
    row = torch.linspace(-1, 1, y.size(1), dtype=y.dtype)
    expanded = row[:, None].expand_as(y)
    strided = row.repeat_interleave(2)[::2][:, None].expand_as(y)
    wanted = [x, *layer.parameters()]
    expected = torch.autograd.grad(y, wanted, expanded.contiguous(), retain_graph=True)
    for upstream in (expanded, strided):
        found = torch.autograd.grad(y, wanted, upstream, retain_graph=True)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# ---- elsewhere than in eager mode -------------------------------------------------------------


@pytest.mark.parametrize("name", ["output gate per head, all else", "unit"])
def test_it_compiles_into_one_graph(name):
    torch._dynamo.reset()
    layer, x = attention(name), tokens(dtype=torch.float32).requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_near(
        forward_and_backward(compiled, [x], {}), forward_and_backward(layer, [x], {}), torch.float32
    )
    state = {key: value.detach() for key, value in layer(x)[1].items()}
    assert_near(floats(compiled(x, state)), floats(layer(x, state)), torch.float32)


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_stays_near_float64(name, dtype):
    """The module in that type, and under autocast, against float64 on the same rounded numbers."""
    low = attention(name, dtype)
    with torch.no_grad():
        for parameter in low.parameters():
            parameter.mul_(0.5)
    exact = copy.deepcopy(low).double()
    x = tokens(3, 24, dtype)
    truth = exact(x.double())[0].detach()
    budget = {torch.bfloat16: 0.02, torch.float16: 0.0025}[dtype] * float(truth.abs().max())
    assert (low(x)[0].detach().double() - truth).abs().max() <= budget
    with torch.autocast("cpu", dtype):
        found = copy.deepcopy(low).float()(x.float())[0]
    assert (found.detach().double() - truth).abs().max() <= budget


def test_a_long_past_of_log_gates_is_summed_in_float32():
    """Sums of 2,000 log-gates in bfloat16 would be off by units; a near key's would be lost."""
    layer = GatedAttention(16, 4, forget=True, forget_bias=2.0).to(torch.bfloat16)
    with torch.no_grad():
        layer.forget_weight.mul_(0.1)
    x = tokens(1, 2000, torch.bfloat16)
    with torch.no_grad():
        found, state = layer(x)
        truth, _ = copy.deepcopy(layer).double()(x.double())
    assert state["log_gates"].dtype == torch.float32
    assert (found.double() - truth).abs().max() <= 0.02 * truth.abs().max()


# ---- how they start --------------------------------------------------------------------------


def test_gates_start_where_they_are_told():
    layer = GatedAttention(16, 4, gate="output", per="head", forget=True, forget_bias=1.5)
    assert torch.equal(layer.forget_bias, torch.full((4,), 1.5))
    init.open_(layer, "output", -2.0)
    assert torch.equal(layer.gate_bias, torch.full((4,), -2.0))
    memories = 1 / (1 - torch.sigmoid(init.chrono_(layer, 50).forget_bias.detach()))
    assert memories.min() >= 1.9 and memories.max() <= 50.1
    with pytest.raises(ValueError, match="gate: expected one of output, forget, got 'value'"):
        init.open_(layer, "value", 1.0)


# ---- what it refuses --------------------------------------------------------------------------

WRONG = {
    "num_heads: expected a divisor of embed_dim = 16, got 3": {"num_heads": 3},
    "num_kv_heads: expected a divisor of num_heads = 4, got 3": {"num_kv_heads": 3},
    "gate: expected one of .*; got 'outputs'": {"gate": "outputs"},
    "per: expected one of .*; got 'row'": {"per": "row"},
    "sink: expected one of 'learned', 'zero'; got 'first'": {"sink": "first"},
    "sink: expected None, for a sink is a term": {"sink": "zero", "activation": "sigmoid"},
    "forget_bias: expected 0 without forget=True, got 1": {"forget_bias": 1.0},
    "position: 'rope' turns pairs of features, got 1": {"num_heads": 16, "position": "rope"},
    "impl: expected 'auto', 'fused' or": {"impl": "flash"},
}


@pytest.mark.parametrize("says", WRONG)
def test_what_it_refuses_it_names(says):
    with pytest.raises(ValueError, match=says):
        GatedAttention(16, **({"num_heads": 4} | WRONG[says]))


def test_a_cache_of_another_layer_is_refused():
    layer, x = GatedAttention(16, 4, forget=True), torch.zeros(2, 3, 16)
    for other, says in (
        (GatedAttention(16, 4)(x)[1], r"expected \['keys', 'log_gates', 'values'\]"),
        (GatedAttention(16, 2, forget=True)(x)[1], r"\['keys'\]: expected \(2, 4, 3, 4\), got \(2"),
        (layer(x[:1])[1], r"\['keys'\]: expected \(2, 4, 3, 4\), got \(1, 4, 3, 4\)"),
    ):
        with pytest.raises(ValueError, match=says):
            layer(x, other)
    with pytest.raises(TypeError, match="initial_state: expected a dict, got Tensor"):
        layer(x, x)
    with pytest.raises(ValueError, match=r"input: expected \(B, T, 16\), got"):
        layer(x[0])
