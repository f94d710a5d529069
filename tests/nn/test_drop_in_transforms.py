"""The drop-ins under torch.func's transforms, and in a model that torch.fx traces."""

import copy

import pytest
import torch
from torch import fx, nn

import gatelib.nn as ours
from tests.nn.drop_in import D, H, T, error, peer

LAYERS, CELLS = ("LSTM", "GRU", "RNN"), ("LSTMCell", "GRUCell", "RNNCell")
every_kind = pytest.mark.parametrize("kind", LAYERS + CELLS)


def made(kind, **options):
    return getattr(ours, kind)(D, H, dtype=torch.float64, **options)


def output(layer):
    """The layer's output, as a function of one sequence or of one step's input."""

    def run(x):
        found = layer(x)
        return found[0] if isinstance(found, tuple) else found

    return run


def an_input(kind):
    shape = (D,) if kind in CELLS else (T, D)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


TRANSFORMS = {
    "grad": lambda f: torch.func.grad(lambda x: f(x).square().sum()),
    "vjp": lambda f: lambda x: torch.func.vjp(f, x)[1](torch.ones_like(f(x)))[0],
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "jacrev": torch.func.jacrev,
    "jacfwd": torch.func.jacfwd,
    "hessian": lambda f: torch.func.hessian(lambda x: f(x).square().sum()),
    "vmap": lambda f: lambda x: torch.vmap(f)(torch.stack([x, 2 * x])),
    "gradients of each": lambda f: (
        lambda x: torch.vmap(torch.func.grad(lambda x: f(x).square().sum()))(
            torch.stack([x, 2 * x])
        )
    ),
    "vectorised": lambda f: lambda x: torch.autograd.functional.jacobian(f, x, vectorize=True),
}


@every_kind
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_auto_works_under_every_transform(kind, transform):
    layer = made(kind)
    plain = copy.deepcopy(layer)
    plain.impl = "reference"
    x = an_input(kind)
    found, expected = (transform(output(layer))(x) for layer in (layer, plain))
    assert error(found, expected) < 1e-12


@every_kind
def test_the_hessian_is_that_of_differences(kind):
    """Of torch's own layer, whose gradient is differentiated by small steps."""
    layer, x = made(kind), an_input(kind)
    theirs = output(peer(layer))
    found = torch.func.hessian(lambda x: output(layer)(x).sin().sum())(x)
    step, rows = 1e-6, []
    for at in range(x.numel()):
        ends = []
        for sign in (1, -1):
            moved = x.clone().requires_grad_()
            moved.data.view(-1)[at] += sign * step
            ends.append(torch.autograd.grad(theirs(moved).sin().sum(), moved)[0])
        rows.append((ends[0] - ends[1]).flatten() / (2 * step))
    assert error(found.reshape(x.numel(), -1), torch.stack(rows)) < 1e-8


@every_kind
@pytest.mark.parametrize("transform", ["vmap", "jvp", "hessian"])
def test_fused_says_where_torchs_kernel_can_not_go(kind, transform):
    with pytest.raises(ValueError, match="impl: expected 'auto' or 'reference'"):
        TRANSFORMS[transform](output(made(kind, impl="fused")))(an_input(kind))


@every_kind
def test_reverse_mode_under_torch_func_is_torchs_own(kind):
    """The kernel goes there, so that auto is as fast, and equal to the bit."""
    layer = made(kind)
    theirs = peer(layer)
    gradient = torch.func.grad(lambda x: output(layer)(x).sum())
    expected = torch.func.grad(lambda x: output(theirs)(x).sum())
    assert torch.equal(gradient(an_input(kind)), expected(an_input(kind)))


# --- torch.fx ---------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.way = layer, nn.Linear(D, D)

    def forward(self, x):
        found = self.layer(self.way(x))
        return found[0] if isinstance(self.layer, nn.RNNBase | nn.LSTM | ours.LSTMCell) else found


FX = {kind: lambda kind=kind: made(kind) for kind in LAYERS + CELLS}
FX["Highway"] = lambda: ours.Highway(D, 2, dtype=torch.float64)


@pytest.mark.parametrize("make", FX.values(), ids=FX)
def test_fx_traces_a_model_and_keeps_the_layer_whole(make):
    model = Model(make()).double()
    traced = fx.symbolic_trace(model)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert calls == ["way", "layer"]
    x = torch.randn(T, D, dtype=torch.float64)
    assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize("make", FX.values(), ids=FX)
def test_fx_on_the_layer_itself_says_what_to_trace(make):
    with pytest.raises(TypeError, match=r"input: .*trace a module that holds it"):
        fx.symbolic_trace(make())
