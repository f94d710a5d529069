"""Gradients of one fused Recurrent: each result's, each leaf's, whatever the strides."""

import pytest
import torch

from gatelib.equations import lstm as equations
from gatelib.nn import Recurrent
from tests.nn.recurrent_cells import (
    GRU,
    MINIMAL,
    B,
    D,
    H,
    T,
    every_impl,
    everything,
    layer,
    some_state,
    twin,
)


def as_function(made):
    names = [name for name, _ in made.named_parameters()]

    def run(x, *tensors):
        state = dict(zip(made.cell.states, tensors, strict=False))
        parameters = dict(zip(names, tensors[len(state) :], strict=True))
        y, final = torch.func.functional_call(made, parameters, (x, state))
        return (y, *final.values())

    return run


@pytest.mark.parametrize(
    "spec", [equations.PEEPHOLE, equations.LAYERNORM, GRU, MINIMAL], ids=lambda s: s.name
)
def test_first_and_second_derivatives_are_right(spec):
    made = Recurrent(spec, 2, 3, impl="fused", dtype=torch.float64)
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    inputs = (x, *some_state(made, 2).values(), *made.parameters())
    assert torch.autograd.gradcheck(as_function(made), inputs)
    assert torch.autograd.gradgradcheck(as_function(made), inputs)


def test_second_derivatives_skip_what_needs_no_gradient():
    made = layer(impl="fused")
    made.weight_ih_l0.requires_grad_(False)
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    (d_x,) = torch.autograd.grad(made(x)[0].square().sum(), x, create_graph=True)
    d_x.square().sum().backward()
    assert made.weight_ih_l0.grad is None
    assert made.weight_hh_l0.grad.abs().max() > 0


def test_a_second_backward_gives_the_same_gradients():
    made = layer(impl="fused")
    y, _ = made(torch.randn(B, T, D, dtype=torch.float64))
    once = torch.autograd.grad(y.sum(), made.parameters(), retain_graph=True)
    twice = torch.autograd.grad(y.sum(), made.parameters())
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


@pytest.mark.parametrize("only", ["output", "h", "c"])
def test_each_result_alone_has_its_gradient(only):
    made = layer()
    x, state = torch.randn(B, T, D, dtype=torch.float64), some_state(made)

    def gradients(impl):
        run = twin(made, impl)
        y, final = run(x, state)
        chosen = y if only == "output" else final[only]
        return torch.autograd.grad(chosen.sum(), [*state.values(), *run.parameters()])

    torch.testing.assert_close(gradients("fused"), gradients("reference"), atol=1e-12, rtol=0)


def test_upstream_gradients_may_be_strided_or_expanded():
    made = layer(impl="fused")
    x = torch.randn(B, T, D, dtype=torch.float64)
    parameters = list(made.parameters())
    expanded = torch.randn(1, 1, H, dtype=torch.float64).expand(B, T, H)
    strided = torch.randn(H, T, B, dtype=torch.float64).transpose(0, 2)
    for upstream in (expanded, strided):
        got = torch.autograd.grad(made(x)[0], parameters, upstream)
        expected = torch.autograd.grad(made(x)[0], parameters, upstream.contiguous())
        torch.testing.assert_close(got, expected, atol=1e-13, rtol=0)


def test_the_input_may_be_strided_and_is_left_alone():
    made = layer(impl="fused")
    x = torch.randn(D, B, T, dtype=torch.float64).permute(1, 2, 0)
    before = x.clone()
    torch.testing.assert_close(made(x)[0], made(before.contiguous())[0])
    made(x)[0].sum().backward()
    assert torch.equal(x, before)


@every_impl
@pytest.mark.parametrize("size", [50.0, 500.0])
def test_saturated_gates_stay_finite(impl, size):
    for spec in (equations.PEEPHOLE, equations.LAYERNORM, GRU):
        made = layer(spec, impl=impl, dtype=torch.float32)
        with torch.no_grad():
            made.bias_ih_l0.copy_(torch.randn_like(made.bias_ih_l0).sign() * size)
        found = everything(made, torch.randn(B, T, D))
        assert all(value.isfinite().all() for value in found.values())


def test_forward_mode_takes_the_plain_loop():
    made = layer(impl="auto")
    x, tangent = torch.randn(2, B, T, D, dtype=torch.float64)
    _, got = torch.func.jvp(lambda v: made(v)[0], (x,), (tangent,))
    step = 1e-6
    with torch.no_grad():
        near = (made(x + step * tangent)[0] - made(x - step * tangent)[0]) / (2 * step)
    torch.testing.assert_close(got, near, atol=1e-8, rtol=1e-6)


def test_the_transforms_of_torch_func_take_the_plain_loop():
    made = layer(GRU, impl="auto")
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    parameters = dict(made.named_parameters())

    def loss(named, rows):
        return torch.func.functional_call(made, named, (rows,))[0].square().sum()

    found = torch.func.grad(loss)(parameters, x)
    wanted = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    torch.testing.assert_close(tuple(found.values()), wanted)
    each = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x[:, None])
    torch.testing.assert_close(tuple(g.sum(0) for g in each.values()), wanted)
    with pytest.raises(ValueError, match="impl: expected 'auto' or 'reference' inside"):
        torch.func.grad(lambda v: twin(made, "fused")(v)[0].sum())(x)
