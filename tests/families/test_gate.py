"""Tests of the generic gate: equations, reference and torch agree; sampled gates obey their laws.
Imports every floor of the family, NumPy, torch and Hypothesis.
Must not hold a second implementation: a witness is a floor, a derived law, or torch's own layer.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from gatelib.equations import gate as equations
from gatelib.nn.gate import KINDS, FeatureGate, Gate, interpolate
from gatelib.reference import gate as reference
from tests.families.witnesses import close

SAMPLED = tuple(kind for kind, row in KINDS.items() if row.sample)
OPENABLE = tuple(kind for kind, row in KINDS.items() if row.preimage)
DIFFERENTIABLE = tuple(kind for kind in KINDS if kind not in ("step", "bernoulli"))
COUNTED = tuple(kind for kind, row in KINDS.items() if row.p_open)
BOUNDED = tuple(kind for kind in KINDS if kind not in ("exp", "relu", "relu_squared", "linear"))
# the Spec whose derivative is the kind's gradient: for the hard kinds, that of the stand-in
BACKWARD = {"step": "linear", "bernoulli": "sigmoid"}
SAMPLES = 100_000


def draw(seed, batch=(5,), inputs=3, gates=4, scale=1.5):
    rng = np.random.default_rng(seed)
    arrays = {
        "x": rng.normal(size=(*batch, inputs)),
        "W": scale * rng.normal(size=(gates, inputs)),
        "b": rng.normal(size=gates),
        "value": rng.normal(size=(*batch, gates)),
        "noise": rng.uniform(0.02, 0.98, size=(*batch, gates)),
        "dy": rng.normal(size=(*batch, gates)),
    }
    return arrays


def noise_of(kind, d):
    return d["noise"] if kind in SAMPLED else None


def run_reference(kind, d, temperature):
    weights = {"W": d["W"], "b": d["b"]}
    y, saved = reference.forward(d["x"], weights, kind, d["value"], temperature, noise_of(kind, d))
    return {"y": y, "g": saved["g"], **reference.backward(d["dy"], saved)}


def run_torch(kind, d, temperature):
    gates, inputs = d["W"].shape
    gate = Gate(inputs, gates, kind, temperature, dtype=torch.float64)
    gate.load_state_dict({"weight": torch.tensor(d["W"]), "bias": torch.tensor(d["b"])})
    x = torch.tensor(d["x"], requires_grad=True)
    value = torch.tensor(d["value"], requires_grad=True)
    noise = noise_of(kind, d)
    g = gate(x, None if noise is None else torch.tensor(noise))
    y = g * value
    y.backward(torch.tensor(d["dy"]))
    tensors = {"y": y, "g": g, "x": x.grad, "value": value.grad}
    tensors |= {"W": gate.weight.grad, "b": gate.bias.grad}
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def run_equations(kind, d, temperature):
    """y, and the gradients of a, v (the value) and t, from the Spec and its symbolic backward."""
    forward = equations.ALL["tempered_gate" if kind == "sigmoid" else f"{kind}_gate"].spec
    a = d["x"] @ d["W"].T + d["b"]
    if "t" not in [symbol.name for symbol in forward.inputs]:
        a = a / temperature
    values = {"a": a, "v": d["value"], "t": temperature, "u": d["noise"], "g_y": d["dy"]}
    return forward.evaluate(values) | forward.vjp(keep="").evaluate(values)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("kind", KINDS)
def test_reference_and_torch_agree_on_the_output_and_every_gradient(kind, temperature):
    d = draw(seed=1)
    expected, actual = run_reference(kind, d, temperature), run_torch(kind, d, temperature)
    for name in actual:
        close(actual[name], expected[name])


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bernoulli"])
def test_equations_and_reference_agree_on_the_output(kind, temperature):
    d = draw(seed=2)
    expected = run_reference(kind, d, temperature)
    close(run_equations(kind, d, temperature)["y"], expected["y"])


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("kind", DIFFERENTIABLE)
def test_the_derived_backward_and_the_one_by_hand_agree(kind, temperature):
    d = draw(seed=3)
    expected, actual = run_reference(kind, d, temperature), run_equations(kind, d, temperature)
    close(actual["d_v"], expected["value"])
    if "d_t" in actual:
        close(actual["d_a"], expected["a"])
        close(np.sum(actual["d_t"]), expected["temperature"])
    else:
        close(actual["d_a"] / temperature, expected["a"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_temperature_gradient_by_hand_is_autograds(kind):
    d = draw(seed=4)
    t = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    a = torch.tensor(d["x"] @ d["W"].T + d["b"])
    row = KINDS[kind]
    g = row.sample(a, t, torch.tensor(d["noise"])) if row.sample else row.settle(a, t)
    (g * torch.tensor(d["value"])).backward(torch.tensor(d["dy"]))
    close(t.grad.numpy(), run_reference(kind, d, 0.7)["temperature"])


@pytest.mark.parametrize("hard, stand_in", BACKWARD.items())
def test_straight_through_has_a_hard_value_and_the_gradient_of_its_stand_in(hard, stand_in):
    d = draw(seed=5)
    result = run_torch(hard, d, 0.8)
    assert set(np.unique(result["g"])) == {0.0, 1.0}
    a = (d["x"] @ d["W"].T + d["b"]) / 0.8
    values = {"a": a, "v": d["value"], "g_y": d["dy"]}
    d_a = equations.ALL[f"{stand_in}_gate"].spec.vjp(keep="").evaluate(values)["d_a"] / 0.8
    close(result["W"], d_a.T @ d["x"])
    close(result["value"], d["dy"] * result["g"])


@pytest.mark.parametrize("name", equations.ALL)
def test_every_equation_bears_its_name_and_gates_what_it_is_given(name):
    spec = equations.ALL[name].spec
    assert spec.name == name
    assert [symbol.name for symbol in spec.outputs] == ["y"]
    over_features = name in ("softmax_gate", "gumbel_softmax_gate")
    assert spec.is_elementwise != over_features


def test_the_true_derivative_of_a_step_is_zero():
    values = {"a": np.array([-2.0, 3.0]), "v": np.ones(2), "g_y": np.ones(2)}
    assert not np.any(equations.STEP.vjp(keep="").evaluate(values)["d_a"])


def test_the_straight_through_gradient_of_a_sample_is_that_of_its_mean():
    """dE[y]/da for y linear in the gate: the estimator has no bias there, sample by sample."""
    gate = FeatureGate(3, "bernoulli", openness=0.2, dtype=torch.float64)
    slope = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    (gate(slope[None]) * slope).sum().backward()
    close(gate.bias.grad.numpy(), 0.2 * 0.8 * slope.numpy())


@pytest.mark.parametrize("a", [0.3, -2.0, 4.0])
def test_the_noise_free_hard_concrete_is_the_sample_at_the_median_noise(a):
    d = {"a": np.full(2, a), "v": np.ones(2), "u": np.full(2, 0.5), "t": 1.0}
    mean = equations.HARD_CONCRETE_MEAN.evaluate(d)["y"]
    close(mean, equations.HARD_CONCRETE.evaluate(d)["y"])
    settled = KINDS["hard_concrete"].settle(torch.tensor(d["a"]), 0.3)
    close(settled.numpy(), mean)


@pytest.mark.parametrize("kind", ["bernoulli", "concrete", "hard_concrete"])
def test_a_settled_gate_is_the_sample_at_the_median_noise_with_its_gradient(kind):
    d = draw(seed=14) | {"noise": np.full((5, 4), 0.5)}
    expected = run_reference(kind, d, 1.0)
    x, W, b = (torch.tensor(d[name]) for name in ("x", "W", "b"))
    gate = Gate(3, 4, kind, temperature=1.0, dtype=torch.float64).eval()
    gate.load_state_dict({"weight": W, "bias": b})
    g = gate(x)
    (g * torch.tensor(d["value"])).backward(torch.tensor(d["dy"]))
    close(g.detach().numpy(), expected["g"])
    close(gate.weight.grad.numpy(), expected["W"])


def test_interpolation_agrees_in_all_three_forms():
    rng = np.random.default_rng(6)
    a, b, dy = rng.normal(size=(3, 4, 5))
    g = rng.uniform(size=(4, 5))
    values = {"old": a, "new": b, "g": g, "g_y": dy}
    spec = equations.INTERPOLATION
    found = spec.evaluate(values) | spec.vjp(keep="").evaluate(values)
    tensors = [torch.tensor(array, requires_grad=True) for array in (a, b, g)]
    y = interpolate(*tensors)
    y.backward(torch.tensor(dy))
    close(found["y"], reference.interpolate(a, b, g))
    close(y.detach().numpy(), reference.interpolate(a, b, g))
    by_hand = reference.interpolate_backward(dy, a, b, g)
    for name, hand, tensor in zip(("old", "new", "g"), by_hand, tensors, strict=True):
        close(found[f"d_{name}"], hand)
        close(tensor.grad.numpy(), hand)


def test_interpolation_is_exact_at_both_ends():
    a, b = torch.tensor([3.0, -1e30]), torch.tensor([7.0, 5.0])
    assert torch.equal(interpolate(a, b, torch.zeros(2)), a)
    assert torch.equal(interpolate(a, b, torch.ones(2)), b)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    batch=st.lists(st.integers(0, 3), max_size=2).map(tuple),
    inputs=st.integers(1, 4),
    gates=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_any_shape_agrees(kind, batch, inputs, gates, seed):
    d = draw(seed, batch, inputs, gates)
    expected, actual = run_reference(kind, d, 1.0), run_torch(kind, d, 1.0)
    for name in actual:
        close(actual[name], expected[name])
        assert actual[name].shape == expected[name].shape


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(BOUNDED),
    a=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=5),
    u=st.floats(1e-30, 1 - 1e-12),
)
def test_bounded_gates_are_finite_and_in_range_at_ten_thousand(kind, a, u):
    d = draw(7, (1,), 1, len(a))
    d |= {"W": np.zeros((len(a), 1)), "b": np.array(a), "noise": np.full((1, len(a)), u)}
    with np.errstate(all="raise", under="ignore"):
        expected = run_reference(kind, d, 1.0)
    for name, found in run_torch(kind, d, 1.0).items():
        assert np.isfinite(found).all() and np.isfinite(expected[name]).all()
        close(found, expected[name])
    assert ((expected["g"] >= 0) & (expected["g"] <= 1)).all()


@pytest.mark.parametrize("kind", ["exp", "relu", "relu_squared", "linear"])
def test_unbounded_gates_are_finite_where_their_value_is(kind):
    d = draw(8, (1,), 1, 2) | {"W": np.zeros((2, 1)), "b": np.array([-1e4, 600.0])}
    expected, actual = run_reference(kind, d, 1.0), run_torch(kind, d, 1.0)
    for name, found in actual.items():
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, expected[name], rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", SAMPLED)
def test_drawn_noise_never_makes_a_gate_or_gradient_nan(kind, dtype):
    torch.manual_seed(0)
    gate = FeatureGate(64, kind, dtype=dtype)
    g = gate(torch.zeros(20_000, 64, dtype=dtype))
    g.sum().backward()
    assert torch.isfinite(g).all() and torch.isfinite(gate.bias.grad).all()


@pytest.mark.parametrize("kind", DIFFERENTIABLE)
def test_gradcheck_passes_twice(kind):
    d = draw(seed=9)
    gate = Gate(3, 4, kind, temperature=0.9, dtype=torch.float64)
    x = torch.tensor(d["x"], requires_grad=True)
    weight = torch.tensor(d["W"], requires_grad=True)
    bias = torch.tensor(d["b"], requires_grad=True)
    noise = torch.tensor(d["noise"]) if kind in SAMPLED else None

    def function(x, weight, bias):
        return torch.func.functional_call(gate, {"weight": weight, "bias": bias}, (x, noise))

    assert gradcheck(function, (x, weight, bias))
    assert gradgradcheck(function, (x, weight, bias))


@pytest.mark.parametrize("kind", SAMPLED)
def test_low_precision_gates_open_as_often_as_their_law(kind):
    """Noise drawn in bfloat16 would be 0 once in 256 draws: it is drawn in float32."""
    torch.manual_seed(2)
    gate = FeatureGate(4, kind, dtype=torch.bfloat16)
    with torch.no_grad():
        gate.bias.fill_(-7.0)
    g = gate(torch.zeros(SAMPLES, 4, dtype=torch.bfloat16))
    assert g.dtype == torch.bfloat16 and torch.isfinite(g).all()
    if kind == "gumbel_softmax":
        opened, p = torch.nn.functional.one_hot(g.argmax(dim=-1), 4), 0.25
    else:
        opened, p = g > 0.5, 1 / (1 + math.exp(7.0))
    assert within_five_sigma(opened, torch.full((4,), p))


@pytest.mark.parametrize("kind", ["step", "bernoulli"])
def test_hard_gates_have_the_second_gradient_of_their_stand_in(kind):
    gate = FeatureGate(3, kind, dtype=torch.float64)
    with torch.no_grad():
        gate.bias.copy_(torch.tensor([-1.0, 0.5, 2.0]))
    (first,) = torch.autograd.grad(
        gate(torch.ones(1, 3).double()).sum(), gate.bias, create_graph=True
    )
    assert first.requires_grad == (kind == "bernoulli")
    if kind == "bernoulli":
        (second,) = torch.autograd.grad(first.sum(), gate.bias)
        p = torch.sigmoid(gate.bias.detach())
        close(second.numpy(), (p * (1 - p) * (1 - 2 * p)).numpy())


def within_five_sigma(hits, p):
    """A share of SAMPLES draws is within five standard deviations of p, elementwise."""
    share = hits.double().mean(dim=0)
    return bool(((share - p).abs() <= 5 * (p * (1 - p) / SAMPLES).sqrt() + 1e-12).all())


def sampled(kind, bias, temperature):
    gate = FeatureGate(len(bias), kind, temperature, dtype=torch.float64)
    with torch.no_grad():
        gate.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    torch.manual_seed(11)
    return gate, gate(torch.zeros(SAMPLES, len(bias), dtype=torch.float64)).detach()


BIASES = [-3.0, -0.7, 0.0, 0.4, 2.5]


@pytest.mark.parametrize("temperature", [2 / 3, 0.3])
def test_hard_concrete_is_zero_and_one_as_often_as_derived(temperature):
    gate, g = sampled("hard_concrete", BIASES, temperature)
    open_, full = (
        torch.tensor(law(np.array(BIASES), temperature))
        for law in (reference.probability_open, reference.probability_full)
    )
    assert within_five_sigma(g == 0, 1 - open_)
    assert within_five_sigma(g == 1, full)
    spread = (open_ * (1 - open_)).sum().div(SAMPLES).sqrt().item()
    count = (g > 0).double().sum(dim=-1).mean().item()
    assert abs(count - gate.expected_l0().item()) < 5 * spread


def test_bernoulli_is_one_as_often_as_its_mean():
    gate, g = sampled("bernoulli", BIASES, 0.5)
    p = torch.tensor(reference.sigmoid(np.array(BIASES) / 0.5))
    assert within_five_sigma(g, p)
    close(gate.expected_l0().item(), p.sum().item())


@pytest.mark.parametrize("temperature", [2 / 3, 0.1, 3.0])
def test_concrete_is_past_one_half_with_probability_sigmoid_at_any_temperature(temperature):
    gate, g = sampled("concrete", BIASES, temperature)
    assert within_five_sigma(g > 0.5, gate.eval().values().detach())


@pytest.mark.parametrize("temperature", [2 / 3, 0.1, 3.0])
def test_gumbel_softmax_is_largest_with_probability_softmax_at_any_temperature(temperature):
    gate, g = sampled("gumbel_softmax", BIASES, temperature)
    largest = torch.nn.functional.one_hot(g.argmax(dim=-1), len(BIASES))
    assert within_five_sigma(largest, gate.eval().values().detach())
    close(g.sum(dim=-1).numpy(), np.ones(SAMPLES))


def test_expected_l0_and_its_gradient_are_the_references():
    gate = Gate(3, 4, "hard_concrete", dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    a = (x @ gate.weight.T + gate.bias).detach().numpy()
    expected, d_a = reference.expected_l0(a, 2 / 3)
    count = gate.expected_l0(x)
    count.sum().backward()
    close(count.detach().numpy(), expected)
    close(gate.bias.grad.numpy(), d_a.sum(axis=0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_gate_of_its_own_input_sends_it_both_gradients(kind):
    """y = gate(x) x: x is gated, and decides how."""
    d = draw(seed=13, inputs=4)
    gate = Gate(4, kind=kind, dtype=torch.float64)
    gate.load_state_dict({"weight": torch.tensor(d["W"]), "bias": torch.tensor(d["b"])})
    noise = noise_of(kind, d)
    x = torch.tensor(d["x"], requires_grad=True)
    y = gate(x, None if noise is None else torch.tensor(noise)) * x
    y.backward(torch.tensor(d["dy"]))
    weights = {"W": d["W"], "b": d["b"]}
    expected, saved = reference.forward(d["x"], weights, kind, None, gate.temperature, noise)
    close(y.detach().numpy(), expected)
    close(x.grad.numpy(), reference.backward(d["dy"], saved)["x"])


def test_softmax_gates_compete_and_sigmoid_gates_do_not():
    a = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    softmax, sigmoid = (
        torch.autograd.functional.jacobian(lambda a, k=k: KINDS[k].settle(a, 1.0), a)
        for k in ("softmax", "sigmoid")
    )
    off_diagonal = ~torch.eye(3, dtype=torch.bool)
    assert (softmax[off_diagonal] < 0).all() and not sigmoid[off_diagonal].any()
    close(softmax.sum(dim=0).numpy(), np.zeros(3))


@settings(max_examples=30, deadline=None)
@given(p=st.floats(1e-6, 1 - 1e-6))
def test_bias_for_openness_is_the_inverse_of_the_sigmoid(p):
    bias = reference.bias_for_openness(p)
    assert math.isclose(float(reference.sigmoid(np.array(bias))), p, rel_tol=1e-9)
    assert math.isclose(KINDS["sigmoid"].preimage(p, 1.0), bias, rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_feature_gate_is_a_gate_whose_weight_is_zero(kind):
    free = FeatureGate(4, kind, dtype=torch.float64)
    gate = Gate(4, 4, kind, dtype=torch.float64)
    d = draw(seed=12, inputs=4)
    with torch.no_grad():
        gate.weight.zero_()
        gate.bias.copy_(free.bias.copy_(torch.tensor(d["b"])))
    x = torch.tensor(d["x"])
    noise = torch.tensor(d["noise"]) if kind in SAMPLED else None
    assert torch.equal(free(x, noise), gate(x, noise))
    close(free.eval()(x)[0].detach().numpy(), free.values().detach().numpy())
    y, saved = reference.forward(
        d["x"], {"b": d["b"]}, kind, None, free.temperature, noise_of(kind, d)
    )
    (free(x, noise) * x).backward(torch.tensor(d["dy"]))
    close((free(x, noise) * x).detach().numpy(), y)
    close(free.bias.grad.numpy(), reference.backward(d["dy"], saved)["b"])


def test_the_reference_refuses_noise_and_openness_without_meaning():
    with pytest.raises(ValueError, match="noise: expected only, and always"):
        reference.forward(np.zeros((1, 3)), {"b": np.zeros(3)}, "concrete")
    with pytest.raises(ValueError, match="p: expected a number strictly between 0 and 1"):
        reference.bias_for_openness(0.0)


def test_an_unknown_kind_is_named_by_the_reference():
    with pytest.raises(ValueError, match=r"kind: expected one of .* got 'nope'"):
        reference.forward(np.ones((2, 3)), {"b": np.zeros(3)}, "nope")


def test_the_reference_knows_every_kind_of_the_modules():
    assert set(reference.CERTAIN + reference.NOISY) == set(KINDS)
