"""Any cell as a layer: the fused path, the plain loop and torch's own layers agree."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gatelib.equations import gru
from gatelib.equations import lstm as equations
from gatelib.nn import Recurrent
from tests.nn.recurrent_cells import (
    GRU,
    MINIMAL,
    B,
    D,
    H,
    T,
    assert_same,
    every_impl,
    every_spec,
    everything,
    layer,
    some_state,
    twin,
)

# ---- the witnesses agree ----------------------------------------------------------------------


@every_spec
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_fused_equals_the_plain_loop_for_every_cell(spec, steps):
    made = layer(spec)
    x, state = torch.randn(B, steps, D, dtype=torch.float64), some_state(made)
    expected = everything(twin(made, "reference"), x, state)
    assert_same(everything(twin(made, "fused"), x, state), expected)


@every_impl
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 3}, {"num_layers": 2, "bidirectional": True}]
)
def test_the_lstm_spec_is_torch_lstm(impl, options):
    peer = nn.LSTM(D, H, batch_first=True, dtype=torch.float64, **options)
    made = Recurrent(equations.LSTM, D, H, impl=impl, dtype=torch.float64, **options)
    for name, parameter in made.named_parameters():
        other = getattr(peer, name).detach()
        if "bias" in name:
            other = other + getattr(peer, name.replace("ih", "hh")).detach()
        parameter.data.copy_(other)
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    h, c = some_state(made).values()
    y, state = made(x, {"h": h, "c": c})
    expected, (h_n, c_n) = peer(x, (h, c))
    torch.testing.assert_close(
        [y, state["h"], state["c"]], [expected, h_n, c_n], atol=1e-12, rtol=0
    )
    ours, theirs = dict(made.named_parameters()), dict(peer.named_parameters())
    seeds = [torch.randn_like(v) for v in (expected, h_n, c_n)]
    leaves = [x, h, c]
    got = torch.autograd.grad((y, state["h"], state["c"]), [*leaves, *ours.values()], seeds)
    wanted = [*leaves, *(theirs[name] for name in ours)]
    torch.testing.assert_close(
        got, torch.autograd.grad((expected, h_n, c_n), wanted, seeds), atol=1e-12, rtol=0
    )


@every_impl
def test_a_gru_spec_loads_torch_gru_weights(impl):
    peer = nn.GRU(D, H, 2, batch_first=True, bidirectional=True, dtype=torch.float64)
    made = Recurrent(GRU, D, H, 2, bidirectional=True, impl=impl, dtype=torch.float64)
    made.load_state_dict(peer.state_dict())
    x = torch.randn(B, T, D, dtype=torch.float64)
    y, state = made(x)
    torch.testing.assert_close((y, state["h"]), peer(x), atol=1e-12, rtol=0)
    y.sum().backward()
    peer(x)[0].sum().backward()
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(parameter.grad, getattr(peer, name).grad, atol=1e-12, rtol=0)


@settings(deadline=None, max_examples=25)
@given(
    spec=st.sampled_from([equations.PEEPHOLE, equations.LAYERNORM, GRU, gru.MGU]),
    batch=st.integers(1, 4),
    steps=st.integers(0, 9),
    bidirectional=st.booleans(),
    num_layers=st.integers(1, 2),
    bias=st.booleans(),
    batch_first=st.booleans(),
    data=st.data(),
)
def test_fused_equals_the_plain_loop_for_every_shape(
    spec, batch, steps, bidirectional, num_layers, bias, batch_first, data
):
    options = {"bidirectional": bidirectional, "num_layers": num_layers, "bias": bias}
    made = layer(spec, batch_first=batch_first, **options)
    x = torch.randn((batch, steps, D) if batch_first else (steps, batch, D), dtype=torch.float64)
    lengths = None
    if data.draw(st.booleans()):
        lengths = torch.tensor(
            data.draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
        )
    state = some_state(made, batch)
    expected = everything(twin(made, "reference"), x, state, lengths)
    assert_same(everything(twin(made, "fused"), x, state, lengths), expected)


def test_long_sequences_cross_the_blocks_of_steps(monkeypatch):
    from gatelib.kernels import products

    monkeypatch.setattr(products, "BLOCK_BYTES", 3 * B * 4 * H * 8)
    for spec in (equations.PEEPHOLE, GRU, gru.CHO):
        made = layer(spec)
        for steps in (2, 3, 4, 8):
            x = torch.randn(B, steps, D, dtype=torch.float64)
            assert_same(everything(twin(made, "fused"), x), everything(twin(made, "reference"), x))


@pytest.mark.parametrize("spec", [equations.PEEPHOLE, equations.CIFG, equations.LAYERNORM, gru.MGU])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_stays_within_the_error_budget(spec, dtype):
    exact = layer(spec)
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.copy_(parameter.to(dtype))
    x = torch.randn(B, 20, D).to(dtype)
    truth = everything(twin(exact, "reference"), x.double())
    plain = everything(twin(exact, "reference").to(dtype), x)
    fast = everything(twin(exact, "fused").to(dtype), x)
    for name, true in truth.items():
        budget = 2 * (
            (plain[name].double() - true).abs().max() + torch.finfo(dtype).eps * true.abs().max()
        )
        assert fast[name].isfinite().all()
        assert (fast[name].double() - true).abs().max() <= budget, name


@pytest.mark.parametrize(
    "spec", [equations.PEEPHOLE, GRU, MINIMAL, gru.CHO], ids=lambda spec: spec.name
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_weight_changes_nothing_but_the_rounding(monkeypatch, spec, bias):
    from gatelib.kernels import products

    exact = layer(spec, bias=bias, dtype=torch.float32).double()
    x, state = torch.randn(3, 5, D), some_state(exact, 3, torch.float32)
    found = {"exact": everything(twin(exact, "reference"), x.double(), some_double(state))}
    small = {"PACK_ELEMENTS": 1, "PACK_BATCH": 1, "PACK_STEPS": 1}
    for name, limits in {"plain": {}, "packed": small}.items():
        for limit, value in limits.items():
            monkeypatch.setattr(products, limit, value)
        weight = exact.weight_hh_l0.detach().float()
        assert (products.Map(weight, 3, 5).packed is not None) == (name == "packed")
        found[name] = everything(twin(exact, "fused").float(), x, state)
    for name, true in found["exact"].items():
        error = (found["plain"][name] - true).abs().max()
        budget = 4 * (error + torch.finfo(torch.float32).eps * true.abs().max())
        assert (found["packed"][name] - true).abs().max() <= budget, name


def some_double(state):
    return {name: value.detach().double() for name, value in state.items()}


def test_only_large_float32_weights_on_a_cpu_with_onednn_are_packed(monkeypatch):
    from gatelib.kernels import products

    weight = torch.zeros(1024, 256)
    assert products.Map(weight, 64, 256).packed is not None
    assert products.Map(weight.double(), 64, 256).packed is None
    assert products.Map(weight.to("meta"), 64, 256).packed is None
    assert products.Map(weight[:512], 64, 256).packed is None
    assert products.Map(weight, 1, 256).packed is None
    assert products.Map(weight, 64, 2).packed is None
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert products.Map(weight, 64, 256).packed is None


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_gradient_of_a_strided_input_lands_in_its_place(batch_first):
    made = layer(batch_first=batch_first)
    x = torch.randn(D, B, T, dtype=torch.float64).permute(1, 2, 0)
    x = x if batch_first else x.transpose(0, 1)
    grads = [
        torch.autograd.grad(twin(made, "fused")(v)[0].square().sum(), v)[0]
        for v in (x.clone().requires_grad_(), x.contiguous().requires_grad_())
    ]
    leaf = x.contiguous().requires_grad_()
    (true,) = torch.autograd.grad(twin(made, "reference")(leaf)[0].square().sum(), leaf)
    assert all(torch.allclose(d, true, atol=1e-12, rtol=0) for d in grads)


# ---- sequences --------------------------------------------------------------------------------


@every_impl
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_changes_nothing(impl, bidirectional):
    made = layer(equations.LAYERNORM, impl=impl, bidirectional=bidirectional, num_layers=2)
    x, lengths = torch.randn(B, T, D, dtype=torch.float64), torch.tensor([2, 0, T])
    padded = x.clone()
    padded[0, 2:], padded[1] = float("nan"), float("inf")
    y, final = made(padded, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, last = made(x[row : row + 1, :length])
        torch.testing.assert_close(y[row, :length], alone[0], atol=1e-12, rtol=0)
        assert (y[row, length:] == 0).all()
        for name, value in last.items():
            torch.testing.assert_close(final[name][:, row], value[:, 0], atol=1e-12, rtol=0)
    grads = torch.autograd.grad(y.sum(), made.parameters())
    assert all(grad.isfinite().all() for grad in grads)


@every_impl
def test_a_sequence_may_be_read_in_pieces(impl):
    made = layer(impl=impl, num_layers=2, dtype=torch.bfloat16)
    x = torch.randn(B, T, D).bfloat16()
    whole, last = made(x)
    first, state = made(x[:, :2])
    second, end = made(x[:, 2:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, atol=0.005, rtol=0)
    torch.testing.assert_close(end, last, atol=1e-6, rtol=0)


@every_impl
def test_an_empty_sequence_returns_the_initial_state(impl):
    made = layer(impl=impl)
    state = some_state(made)
    y, final = made(torch.randn(B, 0, D, dtype=torch.float64), state)
    assert y.shape == (B, 0, H)
    assert all(torch.equal(final[name], state[name]) for name in final)
    final["c"].sum().backward()
    assert (state["c"].grad == 1).all()


@every_impl
def test_rows_of_the_batch_do_not_leak(impl):
    made = layer(equations.LAYERNORM, impl=impl)
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    (d_x,) = torch.autograd.grad(made(x)[0][1].sum(), x)
    assert (d_x[[0, 2]] == 0).all() and (d_x[1] != 0).any()
    torch.testing.assert_close(made(x[1:2])[0][0], made(x)[0][1], atol=1e-12, rtol=0)


def test_the_reverse_direction_reads_from_the_end():
    made = layer(bidirectional=True)
    forward_only = Recurrent(equations.PEEPHOLE, D, H, dtype=torch.float64)
    forward_only.load_state_dict(
        {k.removesuffix("_reverse"): v for k, v in made.state_dict().items() if "reverse" in k}
    )
    x = torch.randn(B, T, D, dtype=torch.float64)
    torch.testing.assert_close(made(x)[0][..., H:], forward_only(x.flip(1))[0].flip(1))


def test_dropout_acts_between_layers_and_in_training_only():
    made = layer(num_layers=2, dropout=0.9)
    x = torch.randn(B, T, D, dtype=torch.float64)
    assert not torch.equal(made(x)[0], made(x)[0])
    made.eval()
    assert torch.equal(made(x)[0], made(x)[0])
    single = layer(dropout=0.9)
    assert torch.equal(single(x)[0], single(x)[0])


def test_without_gradients_nothing_is_saved_and_nothing_changes():
    made = layer(impl="fused")
    x = torch.randn(B, T, D, dtype=torch.float64)
    y, final = made(x)
    with torch.no_grad():
        again, last = made(x)
    assert torch.equal(y, again) and not again.requires_grad
    assert all(torch.equal(final[name], last[name]) for name in final)
