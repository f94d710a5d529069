"""Cells and layers that tests of Recurrent share, and all that a layer computes, by name.

Imports pytest, torch, gatelib.equations, gatelib.nn and gatelib.spec.
Must not import gatelib.kernels.
"""

from dataclasses import replace

import pytest
import torch

from gatelib.equations import gru
from gatelib.equations import lstm as equations
from gatelib.nn import Recurrent
from gatelib.spec import Spec

B, T, D, H = 3, 6, 4, 5
GRU = replace(gru.GRU, name="gru_cell")
MINIMAL = Spec.parse("minimal", "a_h -> h", "h = tanh(a_h)")
WIDE = Spec.parse(
    "wide",
    "a_z a_n w h_prev n_prev -> h n",
    """
    z = hardsigmoid(a_z)
    v = softplus(w)
    n = n_prev/3 - relu(a_n)**2/(v + 1) + silu(a_n)
    s = softmax(z*h_prev + exp(-v)*n)
    h = s + mean(a_z)*rstd(n + a_z) + sqrt(z*z + 1) - gelu(n)*maximum(z, n)/3 - tanh(h_prev)**3
    """,
)
CONSTANT = Spec.parse("constant", "a_z w -> h", "h = w/2 + mean(a_z)")
SMALL_FIRST = Spec.parse(
    "small_first",
    "a_z w v c_prev -> h c",
    """
    c = tanh(w + v + mean(w*v) + mean(c_prev) + a_z) + rstd(w + v)
    h = mean(w + silu(v) - c)*c
    """,
)
SPECS = [
    *(known.spec for known in equations.ALL.values()),
    GRU,
    MINIMAL,
    WIDE,
    CONSTANT,
    SMALL_FIRST,
    gru.MGU,
    gru.CHO,
]
every_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
every_impl = pytest.mark.parametrize("impl", ["fused", "reference"])


def layer(spec=equations.PEEPHOLE, *, dtype=torch.float64, **options):
    """A layer with parameters that are all different and nowhere zero or one."""
    made = Recurrent(spec, D, H, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter).mul_(0.3))
    return made


def twin(made, impl):
    """The same layer with another impl."""
    names = ("num_layers", "bias", "batch_first", "bidirectional", "dropout")
    options = {name: getattr(made, name) for name in names}
    other = Recurrent(
        made.cell,
        made.input_size,
        made.hidden_size,
        impl=impl,
        dtype=made.weight_ih_l0.dtype,
        **options,
    )
    other.load_state_dict(made.state_dict())
    return other


def some_state(made, batch=B, dtype=torch.float64):
    rows = made.num_layers * (2 if made.bidirectional else 1)
    return {
        name: torch.randn(rows, batch, made.hidden_size, dtype=dtype).mul_(0.5).requires_grad_()
        for name in made.cell.states
    }


def everything(made, x, state=None, lengths=None):
    """Output, final states and the gradients of everything, by name, for a fixed random loss."""
    x = x.detach().clone().requires_grad_()
    state = {k: v.detach().clone().requires_grad_() for k, v in (state or {}).items()}
    y, final = made(x, state or None, lengths)
    found = {"y": y, **{f"final {k}": v for k, v in final.items()}}
    draw = torch.Generator().manual_seed(1)
    seeds = [torch.randn(v.shape, generator=draw, dtype=torch.float64) for v in found.values()]
    loss = sum((v * s.to(v.dtype)).sum() for v, s in zip(found.values(), seeds, strict=True))
    leaves = {
        "x": x,
        **{f"initial {k}": v for k, v in state.items()},
        **dict(made.named_parameters()),
    }
    grads = torch.autograd.grad(loss, leaves.values(), allow_unused=True)
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        found[f"d {name}"] = torch.zeros_like(leaf) if grad is None else grad
    return {name: value.detach() for name, value in found.items()}


def assert_same(got, expected, tolerance=1e-10):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].shape == value.shape, name
        error = (got[name].double() - value.double()).abs().max().item() if value.numel() else 0.0
        scale = max(1.0, value.double().abs().max().item()) if value.numel() else 1.0
        assert error <= tolerance * scale, f"{name}: {error}"
