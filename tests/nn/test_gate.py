"""The generic gate as a torch module: how it starts, compiles, exports, and names bad input."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from gatelib.nn.gate import KINDS, FeatureGate, Gate

SAMPLED = tuple(kind for kind, row in KINDS.items() if row.sample)
OPENABLE = tuple(kind for kind, row in KINDS.items() if row.preimage)
close = partial(np.testing.assert_allclose, rtol=0, atol=1e-10)


@pytest.mark.parametrize("openness", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("kind", OPENABLE)
def test_openness_is_the_gate_at_input_zero(kind, openness):
    gate = Gate(4, 3, kind, temperature=0.7, openness=openness, dtype=torch.float64).eval()
    if kind == "bernoulli":
        close(gate.expected_l0(torch.zeros(4).double()).item(), 3 * openness)
    else:
        close(gate(torch.zeros(2, 4).double()).detach().numpy(), np.full((2, 3), openness))


@pytest.mark.parametrize("kind", KINDS)
def test_free_gates_start_half_open_or_as_open_as_asked(kind):
    starts = {"softmax": 0.25, "gumbel_softmax": 0.25, "step": 0.0, "bernoulli": 0.0}
    start = FeatureGate(4, kind, dtype=torch.float64).values().detach().numpy()
    close(start, np.full(4, starts.get(kind, 0.5)))
    if kind in OPENABLE and kind != "bernoulli":
        asked = FeatureGate(4, kind, openness=0.8, dtype=torch.float64).values()
        close(asked.detach().numpy(), np.full(4, 0.8))


def test_without_openness_a_gate_starts_as_torchs_linear():
    torch.manual_seed(5)
    gate = Gate(6, 4)
    torch.manual_seed(5)
    linear = torch.nn.Linear(6, 4)
    for ours, theirs in zip(gate.parameters(), linear.parameters(), strict=True):
        bound = theirs.detach().abs().max().item()
        assert ours.shape == theirs.shape and 0 < ours.detach().abs().max().item() <= 1 / 6**0.5
        assert bound <= 1 / 6**0.5
    x = torch.randn(3, 6)
    gate.load_state_dict(linear.state_dict())
    assert torch.equal(gate(x), torch.sigmoid(linear(x)))


@pytest.mark.parametrize("kind", SAMPLED)
def test_sampled_gates_sample_while_training_and_settle_after(kind):
    gate = Gate(3, 4, kind, openness=None)
    x = torch.randn(50, 3)
    assert not torch.equal(gate(x), gate(x))
    gate.eval()
    assert torch.equal(gate(x), gate(x))
    noise = torch.rand(50, 4)
    assert torch.equal(gate(x, noise), gate.train()(x, noise))


@pytest.mark.parametrize("kind", KINDS)
def test_compile_without_graph_breaks_gives_the_same_gate(kind):
    torch._dynamo.reset()
    gate = Gate(3, 4, kind)
    x = torch.randn(5, 3)
    compiled = torch.compile(gate, fullgraph=True, backend="eager")
    compiled(x).sum().backward()
    gate.eval()
    assert torch.equal(compiled(x), gate(x))


@pytest.mark.parametrize("kind", ["sigmoid", "softmax", "step", "hard_concrete"])
def test_export_takes_any_batch(kind):
    gate = Gate(3, 4, kind).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(gate, (torch.randn(5, 3),), dynamic_shapes={"x": {0: batch}})
    x = torch.randn(9, 3)
    assert torch.equal(program.module()(x), gate(x))


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_gives_the_gate_within_low_precision(kind):
    gate = Gate(8, 4, kind)
    x = torch.randn(16, 8)
    noise = torch.rand(16, 4).clamp(0.1, 0.9) if kind in SAMPLED else None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = gate(x, noise)
    low.float().sum().backward()
    assert torch.isfinite(gate.weight.grad).all()
    exact = gate(x, noise)
    wrong = (low.float() - exact).abs() > 0.05 * (1 + exact.abs())
    assert wrong.float().mean() < (0.1 if kind in ("step", "bernoulli") else 1e-9)


def test_a_gate_survives_a_state_dict_and_prints_its_kind():
    gate = Gate(3, 2, "hard_sigmoid", openness=0.3)
    other = Gate(3, 2, "hard_sigmoid")
    other.load_state_dict(gate.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(gate(x), other(x)) and "hard_sigmoid" in repr(gate)
    assert "softmax" in repr(FeatureGate(3, "softmax"))


def test_a_gate_without_bias_is_one_half_at_zero():
    gate = Gate(3, bias=False)
    assert gate.bias is None and torch.equal(gate(torch.zeros(1, 3)), torch.full((1, 3), 0.5))


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"input_size": 0}, ValueError, "input_size: expected at least 1, got 0"),
        ({"input_size": 2.0}, TypeError, "input_size: expected an integer, got float"),
        ({"dtype": torch.int64}, TypeError, "dtype: expected a floating-point torch.dtype, got"),
        ({"bias": "no"}, TypeError, "bias: expected True or False, got str"),
        ({"kind": ["sigmoid"]}, ValueError, "kind: expected one of"),
        ({"hidden_size": -1}, ValueError, "hidden_size: expected at least 1"),
        ({"kind": "soft"}, ValueError, "kind: expected one of 'bernoulli'"),
        ({"temperature": 0.0}, ValueError, "temperature: expected a positive"),
        ({"temperature": math.nan}, ValueError, "temperature: expected a positive"),
        ({"temperature": "hot"}, TypeError, "temperature: expected a number, got str"),
        ({"openness": 1.0}, ValueError, "openness: expected a number strictly between 0.0 and 1.0"),
        ({"openness": "wide"}, TypeError, "openness: expected a number, got str"),
        ({"openness": math.nan}, ValueError, "openness: expected a number strictly between"),
        ({"openness": -1.0, "kind": "exp"}, ValueError, "openness: expected .* for kind 'exp'"),
        ({"openness": 0.5, "kind": "softmax"}, ValueError, "openness: expected None for kind"),
        ({"openness": 0.5, "bias": False}, ValueError, "openness: expected None where bias"),
    ],
)
def test_a_wrong_argument_is_named(arguments, error, words):
    with pytest.raises(error, match=words):
        Gate(**({"input_size": 3} | arguments))


@pytest.mark.parametrize(
    "x, noise, error, words",
    [
        ([[1.0]], None, TypeError, "x: expected a Tensor, got list"),
        (torch.zeros(2, 4), None, ValueError, r"x: expected shape \(\.\.\., 3\), got \(2, 4\)"),
        (torch.tensor(1.0), None, ValueError, r"x: expected shape \(\.\.\., 3\), got \(\)"),
        (torch.zeros(2, 3).double(), None, TypeError, "x: expected dtype torch.float32"),
        (torch.zeros(2, 3).long(), None, TypeError, "x: expected dtype torch.float32"),
        (torch.zeros(2, 3, device="meta"), None, ValueError, "x: expected device cpu, got meta"),
        (torch.zeros(2, 3), [0.5], TypeError, "noise: expected a tensor, got list"),
        (torch.zeros(2, 3), torch.rand(3), ValueError, r"noise: expected shape \(2, 3\)"),
    ],
)
@pytest.mark.parametrize("layer", [Gate, FeatureGate])
def test_wrong_input_is_named(layer, x, noise, error, words):
    with pytest.raises(error, match=words):
        layer(3, kind="concrete")(x, noise)


def test_noise_and_counts_are_refused_where_they_have_no_meaning():
    gate = Gate(3)
    with pytest.raises(ValueError, match="noise: expected None for kind 'sigmoid'"):
        gate(torch.zeros(1, 3), torch.rand(1, 3))
    with pytest.raises(ValueError, match="expected_l0: expected kind bernoulli, hard_concrete"):
        gate.expected_l0(torch.zeros(1, 3))
