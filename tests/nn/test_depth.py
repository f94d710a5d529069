"""Residual, Dense, StochasticDepth and Deep as torch modules: compiled, mapped, and wrongly used.

Imports gatelib.nn, pytest and torch.
"""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from gatelib.nn import Deep, Dense, Residual, StochasticDepth


@pytest.mark.slow
def test_residual_compiles_exports_and_deepcopies():
    net = Deep(4, 3, gate="layerscale", drop=0.2).eval()
    x = torch.randn(2, 4)
    expected = net(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(net, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), expected)
        exported = torch.export.export(net, (x,))
    torch.testing.assert_close(exported.module()(x), expected)
    torch.testing.assert_close(copy.deepcopy(net)(x), expected)
    with torch.inference_mode():
        torch.testing.assert_close(net(torch.ones(1, 4)), net(torch.ones(1, 4)))


def test_many_nets_run_as_one_under_vmap():
    nets = [Deep(4, 3, gate="rezero") for _ in range(3)]
    for net in nets:
        nn.init.constant_(net.layers[0].alpha, 0.5)
    values, buffers = torch.func.stack_module_state(nets)
    x = torch.randn(2, 4)

    def call(parameters, buffers):
        return torch.func.functional_call(nets[0], (parameters, buffers), (x,))

    found = torch.vmap(call)(values, buffers)
    torch.testing.assert_close(found, torch.stack([net(x) for net in nets]))


LINEAR = nn.Linear(3, 3)
BAD = [
    (lambda: Residual(lambda x: x), TypeError, "block"),
    (lambda: Residual(LINEAR, shortcut=3), TypeError, "shortcut"),
    (lambda: Residual(LINEAR, activation="relu"), TypeError, "activation"),
    (lambda: Residual(LINEAR, "skip"), ValueError, "gate"),
    (lambda: Residual(LINEAR, "layerscale"), TypeError, "features"),
    (lambda: Residual(LINEAR, "layerscale", features=0), ValueError, "features"),
    (lambda: Residual(LINEAR, "rezero", features=3), ValueError, "features"),
    (lambda: Residual(LINEAR, initial=0.1), ValueError, "initial"),
    (lambda: Residual(LINEAR, "rezero", initial=math.inf), ValueError, "initial"),
    (lambda: Residual(LINEAR, drop=1.5), ValueError, "drop"),
    (lambda: Residual(LINEAR, "rezero", dtype=torch.int64), TypeError, "dtype"),
    (lambda: Residual(nn.Linear(3, 1))(torch.ones(2, 3)), ValueError, "block"),
    (lambda: Residual(nn.Linear(3, 5))(torch.ones(2, 3)), ValueError, r"\(2, 3\).*\(2, 5\)"),
    (lambda: Dense("relu"), TypeError, "block"),
    (lambda: Dense(LINEAR, dim="last"), TypeError, "dim: expected an integer, got str"),
    (lambda: Dense(LINEAR, dim=2)(torch.ones(2, 3)), ValueError, r"dim: .* of \(2, 3\), got 2"),
    (lambda: Dense(nn.Flatten(0))(torch.ones(2, 3)), ValueError, r"block: .* got \(6,\)"),
    (lambda: Residual(LINEAR, dim=None), TypeError, "dim: expected an integer, got NoneType"),
    (
        lambda: Residual(LINEAR, "layerscale", features=3, dim=4)(torch.ones(2, 3)),
        ValueError,
        r"dim: expected a dimension of \(2, 3\), got 4",
    ),
    (
        lambda: Residual(nn.Linear(3, 1), "layerscale", features=3, shortcut=nn.Linear(3, 1))(
            torch.ones(2, 3)
        ),
        ValueError,
        "features: expected 1",
    ),
    (
        lambda: Residual(nn.Linear(3, 1), nn.Linear(3, 5), shortcut=nn.Linear(3, 1))(
            torch.ones(2, 3)
        ),
        ValueError,
        r"gate: expected an output of shape \(2, 1\)",
    ),
    (lambda: Residual(LINEAR, dtype=torch.ones(2)), TypeError, "dtype: .* got Tensor"),
    (lambda: StochasticDepth()(3), TypeError, "x: expected a tensor, got int"),
    (lambda: StochasticDepth()(torch.ones(2), [0.5, 0.5]), TypeError, "noise: expected a tensor"),
    (
        lambda: StochasticDepth()(torch.ones(2), torch.ones(2, device="meta")),
        ValueError,
        "noise: expected device cpu, got meta",
    ),
    (lambda: Deep(3, 2)(torch.ones(2, 4)), ValueError, r"x: expected \(\.\.\., 3\)"),
    (lambda: Deep(3, 2)(torch.ones(2, 3).double()), TypeError, "x: expected torch.float32"),
    (lambda: Deep(3, 2)([1.0]), TypeError, "x: expected a tensor, got list"),
    (lambda: Deep(3, 2).states(torch.ones(2, 4)), ValueError, "x: expected"),
    (lambda: Deep(3, 2, ["plain"]), ValueError, "connection: expected one of .* got list"),
    (lambda: Deep(3, 2, gain=-1.0), ValueError, "gain: expected at least 0"),
    (lambda: StochasticDepth(-0.1), ValueError, "p"),
    (lambda: StochasticDepth(True), TypeError, "p"),
    (lambda: StochasticDepth(0.5)(torch.ones(2, 3), torch.ones(3)), ValueError, "noise"),
    (lambda: StochasticDepth(0.5)(torch.tensor(1.0)), ValueError, "x"),
    (lambda: Deep(0, 3), ValueError, "size"),
    (lambda: Deep(3, 2.0), TypeError, "depth"),
    (lambda: Deep(3, 2, "skip"), ValueError, "connection"),
    (lambda: Deep(3, 2, activation="gelu"), ValueError, "activation"),
    (lambda: Deep(3, 2, initialization="he"), ValueError, "initialization"),
    (lambda: Deep(3, 2, growth=4), ValueError, "growth"),
    (lambda: Deep(3, 2, "dense", growth=0), ValueError, "growth"),
    (lambda: Deep(3, 2, "plain", gate="rezero"), ValueError, "gate"),
    (lambda: Deep(3, 2, gate="skip"), ValueError, "gate"),
    (lambda: Deep(3, 2, "plain", drop=0.1), ValueError, "drop"),
    (lambda: Deep(3, 2, drop=(0.1,)), ValueError, "drop"),
    (lambda: Deep(3, 2, drop=(0.1, 2.0)), ValueError, "drop"),
    (lambda: Deep(3, 2, "dense", tied=True), ValueError, "tied"),
    (lambda: Deep(3, 2, tied=1), TypeError, "tied"),
    (lambda: Deep(3, 2, gain=math.nan), ValueError, "gain"),
    (lambda: Deep(3, 2, dtype=torch.int64), TypeError, "dtype"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input_is_named(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()
