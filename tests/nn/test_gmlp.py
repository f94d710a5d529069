"""gMLP's layers as torch modules: how they start, what they refuse, and where they run."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gatelib.equations import gmlp as equations
from gatelib.nn import AMLPBlock, GMLPBlock, SpatialGatingUnit
from gatelib.nn.gmlp import LONG, NEAR_ZERO

LAYERS = {
    "unit": lambda **own: SpatialGatingUnit(8, 7, init="plain", **own),
    "additive unit": lambda **own: SpatialGatingUnit(8, 7, gate="additive", split=False, **own),
    "block": lambda **own: GMLPBlock(8, 12, 7, True, "plain", heads=2, **own),
    "long block": lambda **own: GMLPBlock(8, 12, LONG, True, "plain", heads=2, **own),
    "hybrid block": lambda **own: AMLPBlock(8, 12, 7, True, attention=3, **own),
    "linear block": lambda **own: GMLPBlock(8, 12, 7, gate="linear", **own),
    "block without mixing": lambda **own: GMLPBlock(8, 12, 7, gate="none", **own),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def made(name, **own):
    torch.manual_seed(0)
    return LAYERS[name](**own)


# ---- how they start --------------------------------------------------------------------------


@pytest.mark.parametrize(("gate", "b"), [("multiplicative", 1.0), ("additive", 0.0)])
def test_a_unit_starts_itself_wherever_it_is_used(gate, b):
    """Public units leave it to the model that holds them, and alone are drawn as Linear is."""
    parents = nn.Sequential(SpatialGatingUnit(8, 5, gate=gate)), GMLPBlock(8, 8, 5, gate=gate)
    for unit in (SpatialGatingUnit(8, 5, gate=gate), parents[0][0], parents[1].unit):
        assert torch.equal(unit.bias, torch.full((1, 5), b))
        assert 0 < unit.weight.abs().max() <= NEAR_ZERO / 5


def test_plain_is_what_torchs_linear_draws():
    torch.manual_seed(0)
    weight = SpatialGatingUnit(8, 400, init="plain").weight.detach()
    assert 0.97 < float(weight.abs().max()) * 20 <= 1
    assert abs(float(weight.std()) * 20 * 3**0.5 - 1) < 0.02


def test_a_linear_gate_has_no_start_that_hands_its_input_on():
    assert SpatialGatingUnit(8, 5, gate="linear").init == "plain"
    with pytest.raises(ValueError, match="init: expected 'plain', for no start makes 'linear'"):
        SpatialGatingUnit(8, 5, init="paper", gate="linear")


@every_layer
def test_parameters_are_drawn_anew_after_a_move_from_meta(name):
    layer, twin = made(name), made(name, device="meta").to_empty(device="cpu")
    torch.manual_seed(0)
    twin.reset_parameters()
    torch.manual_seed(0)
    layer.reset_parameters()
    for (key, one), other in zip(layer.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other), key


def test_a_causal_w_stays_lower_triangular_whatever_trains_it():
    torch.manual_seed(0)
    unit, z = SpatialGatingUnit(8, 5, causal=True, init="plain"), torch.randn(3, 5, 8)
    assert not unit.weight.triu(1).any()
    optimiser = torch.optim.AdamW(unit.parameters(), lr=0.1)
    before = unit.weight.detach().clone()
    for _ in range(3):
        optimiser.zero_grad()
        unit(z).square().sum().backward()
        optimiser.step()
    assert not unit.weight.triu(1).any() and (unit.weight != before).sum() == 15


def test_weights_above_the_diagonal_of_a_loaded_w_do_nothing():
    unit, z = SpatialGatingUnit(8, 5, causal=True, init="plain"), torch.randn(3, 5, 8)
    loaded = copy.deepcopy(unit)
    with torch.no_grad():
        loaded.weight += torch.ones(5, 5).triu(1)
    assert torch.equal(loaded(z), unit(z))


@every_layer
def test_every_parameter_learns(name):
    layer, x = made(name), torch.randn(3, 7, 8)
    layer(x).square().sum().backward()
    assert all(value.grad.abs().max() > 0 for value in layer.parameters())


# ---- the axes --------------------------------------------------------------------------------

SIZE = 4
"""Batch, positions and features alike: the sizes at which no shape tells a wrong axis."""


def reach(mix):
    """|d m[b, s, f] / d n[c, t, h]|, for a mixture of (4, 4, 4)."""
    n = torch.randn(SIZE, SIZE, SIZE, dtype=torch.float64)
    return torch.autograd.functional.jacobian(mix, n)


def expected_reach(weight):
    eye = torch.eye(SIZE, dtype=torch.float64)
    return torch.einsum("bc,fh,st->bsfcth", eye, eye, weight)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("causal", [False, True])
def test_a_long_unit_mixes_as_a_short_one_and_w_has_a_gradient_of_its_own_size(heads, causal):
    torch.manual_seed(0)
    long = SpatialGatingUnit(12, LONG, causal, "plain", heads=heads, dtype=torch.float64)
    short = SpatialGatingUnit(12, 9, causal, "plain", heads=heads, dtype=torch.float64)
    short.weight.data, short.bias.data = long.weight.data[:, :9, :9], long.bias.data[:, :9]
    found = []
    for unit in (short, long):
        z = torch.linspace(-2, 2, 3 * 9 * 12, dtype=torch.float64).view(3, 9, 12).requires_grad_()
        s = unit(z)
        s.square().sum().backward()
        found.append((s, z.grad, unit.weight.grad[:, :9, :9], unit.bias.grad[:, :9]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    held = largest_saved(long, torch.randn(40, LONG, 12, dtype=torch.float64))
    assert held == heads * LONG**2 > 40 * LONG * 12 / heads


def largest_saved(layer, x):
    """Numbers of the largest tensor that the graph holds, an expanded one in full."""
    sizes = [0]
    hooks = (lambda v: sizes.append(v.numel()) or v), (lambda v: v)
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        layer(x)
    return max(sizes)


def test_the_mixture_is_over_positions_where_all_sizes_are_alike():
    unit = SpatialGatingUnit(2 * SIZE, SIZE, init="plain", dtype=torch.float64)
    found = reach(unit.mixture)
    torch.testing.assert_close(found, expected_reach(unit.weight[0].detach()))


WRONG_AXES = {
    "features": lambda n, w: F.linear(n, w),
    "batch": lambda n, w: F.linear(n.transpose(0, 2), w).transpose(0, 2),
    "the transpose of W": lambda n, w: (n.transpose(1, 2) @ w).transpose(1, 2),
}


@pytest.mark.parametrize("axis", WRONG_AXES)
def test_a_wrong_axis_has_the_right_shape_there_and_is_seen(axis):
    weight = torch.randn(SIZE, SIZE, dtype=torch.float64)
    found = reach(lambda n: WRONG_AXES[axis](n, weight))
    assert found.shape == expected_reach(weight).shape
    assert (found - expected_reach(weight)).abs().max() > 0.1


def sizes_taken_too_early(x, weight, bias):
    """The logic of a public program: x comes as (T, B, F), and n is read before the transpose."""
    n = x.shape[1]
    weight, x = weight[:n, :n].tril(), x.transpose(0, 1)
    return F.linear(x.transpose(1, 2), weight, bias).transpose(0, 2).transpose(1, 2)


def test_a_size_read_before_the_transpose_hides_while_the_batch_is_as_long_as_the_sequence():
    """n is the batch there: right for B ≥ T = N, an error for a smaller batch. Ours reads T."""
    unit = SpatialGatingUnit(6, 5, causal=True, init="plain")
    weight, bias = unit.weight[0], unit.bias[0]
    for batch in (5, 8):
        n = torch.randn(batch, 5, 3)
        truth = unit.mixture(n) + bias[:, None]
        theirs = sizes_taken_too_early(n.transpose(0, 1), weight, bias).transpose(0, 1)
        torch.testing.assert_close(theirs, truth)
    for batch in (1, 4):
        n = torch.randn(batch, 5, 3)
        assert unit.mixture(n).shape == n.shape
        with pytest.raises(RuntimeError):
            sizes_taken_too_early(n.transpose(0, 1), weight, bias)


@every_layer
def test_a_row_is_the_same_in_any_batch(name):
    layer, x = made(name).double(), torch.randn(7, 7, 8, dtype=torch.float64)
    y = layer(x)
    for batch in (1, 4):
        torch.testing.assert_close(layer(x[:batch]), y[:batch])


# ---- looking inside --------------------------------------------------------------------------


@pytest.mark.parametrize("gate", equations.GATES)
def test_values_are_those_of_the_forward_pass(gate):
    torch.manual_seed(0)
    unit, z = SpatialGatingUnit(8, 7, init="plain", gate=gate), torch.randn(2, 5, 8)
    lengths = torch.tensor([5, 3])
    values, s = unit.values(z, lengths), unit(z, lengths)
    assert torch.equal(values["s"], s)
    assert all(value.shape == s.shape and not value[1, 3:].any() for value in values.values())
    if gate == "multiplicative":
        torch.testing.assert_close(values["u"] * values["g"], s)
    if gate != "none":
        g = values["m"] + unit.bias[0, :5, None]
        torch.testing.assert_close(values["g"][0], g[0])


# ---- precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_small_mixture_is_not_lost_beside_one_under_low_precision(dtype):
    """1 + m rounds m to 2^-9 in bfloat16; the gate is float32, and the product rounds once."""
    torch.manual_seed(0)
    unit = SpatialGatingUnit(16, 7).to(dtype)
    with torch.no_grad():
        unit.weight *= 30
    z = torch.randn(64, 7, 16, dtype=dtype)
    exact = copy.deepcopy(unit).double()(z.double())
    u, v = z.chunk(2, -1)
    plain = u * (unit.mixture(unit.norm(v)) + unit.bias[0, :, None])
    ours, theirs = ((y.double() - exact).pow(2).mean().sqrt() for y in (unit(z), plain))
    assert unit(z).dtype == dtype and ours < 0.75 * theirs
    rounded = (exact.to(dtype).double() - exact).pow(2).mean().sqrt()
    assert ours < 1.1 * rounded


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_and_autocast_keep_a_budget(name, dtype):
    layer, x = made(name, dtype=dtype), torch.randn(3, 7, 8, dtype=dtype)
    exact = copy.deepcopy(layer).double()
    truth = exact(x.double()).detach()
    budget = 8 * torch.finfo(dtype).eps * float(truth.abs().max())
    assert layer(x).dtype == dtype and (layer(x) - truth).abs().max() < budget
    layer(x).sum().backward()
    assert all(value.grad.isfinite().all() for value in layer.parameters())
    with torch.autocast("cpu", dtype):
        y = layer.float()(x.float())
        assert (y - truth).abs().max() < budget
        y.sum().backward()


# ---- where they run --------------------------------------------------------------------------


@every_layer
def test_they_compile_as_one_graph_and_export_for_any_batch_and_length(name):
    layer, x, lengths = made(name), torch.randn(3, 5, 8), torch.tensor([5, 2, 1])
    expected = layer(x, lengths)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, lengths), expected)
    sizes = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("steps", min=2, max=7)}
    exported = torch.export.export(layer, (x, lengths), dynamic_shapes=(sizes, {0: sizes[0]}))
    module = exported.module()
    torch.testing.assert_close(module(x, lengths), expected)
    for steps in (6, 7):
        other, rows = torch.randn(5, steps, 8), torch.tensor([1, 2, 3, 4, 6])
        torch.testing.assert_close(module(other, rows), layer(other, rows))
    torch._dynamo.reset()


@every_layer
def test_transforms_of_torch_func_go_through(name):
    layer, x = made(name).double(), torch.randn(4, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(lambda row: layer(row[None])[0])(x), layer(x))
    direction = torch.randn_like(x)
    _, tangent = torch.func.jvp(layer, (x,), (direction,))
    near = (layer(x + 1e-6 * direction) - layer(x - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(tangent, near, rtol=1e-6, atol=1e-6)
    gradient = torch.func.grad(lambda x: layer(x).square().sum())(x)
    leaf = x.clone().requires_grad_()
    layer(leaf).square().sum().backward()
    torch.testing.assert_close(gradient, leaf.grad)


@every_layer
def test_strided_inputs_and_expanded_gradients_are_read_right(name):
    layer, base = made(name).double(), torch.randn(5, 3, 16, dtype=torch.float64)
    strided = base.transpose(0, 1)[..., ::2].requires_grad_()
    packed = strided.detach().contiguous().requires_grad_()
    found = []
    for x, weight in ((strided, torch.ones(())), (packed, None)):
        layer.zero_grad()
        y = layer(x)
        y.backward(torch.ones_like(y) if weight is None else weight.double().expand_as(y))
        found.append([torch.autograd.grad(layer(x).sum(), x)[0], y.detach()])
        found[-1] += [value.grad for value in layer.parameters()]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@every_layer
def test_an_empty_batch_or_sequence_goes_through(name):
    layer = made(name)
    for shape in ((0, 5, 8), (2, 0, 8)):
        x = torch.randn(shape, requires_grad=True)
        y = layer(x)
        y.sum().backward()
        assert y.shape[:2] == shape[:2] and x.grad.shape == shape


@every_layer
def test_a_layer_can_be_copied_pickled_and_loaded(name):
    layer, x = made(name), torch.randn(2, 7, 8)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    torch.manual_seed(9)
    other = LAYERS[name]()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


# ---- bad input -------------------------------------------------------------------------------

UNIT = SpatialGatingUnit(4, 3)
BLOCK = GMLPBlock(4, 6, 3)
BAD = [
    (lambda: SpatialGatingUnit(0, 3), ValueError, "features: expected at least 1, got 0"),
    (lambda: SpatialGatingUnit(5, 3), ValueError, "features: expected an even number to split"),
    (lambda: SpatialGatingUnit(4, 3.0), TypeError, "length: expected an integer, got float"),
    (lambda: SpatialGatingUnit(4, 3, 1), TypeError, "causal: expected True or False, got int"),
    (lambda: SpatialGatingUnit(4, 3, init="zero"), ValueError, "init: expected one of 'paper'"),
    (lambda: SpatialGatingUnit(4, 3, gate="max"), ValueError, "gate: expected one of 'additive'"),
    (
        lambda: SpatialGatingUnit(4, 3, gate="linear", split=True),
        ValueError,
        "split: expected False, for a gate 'linear' reads one input",
    ),
    (lambda: SpatialGatingUnit(4, 3, split=1), TypeError, "split: expected True or False, got int"),
    (lambda: SpatialGatingUnit(8, 3, heads=3), ValueError, "heads: expected a divisor of 4, got 3"),
    (lambda: SpatialGatingUnit(4, 3, dtype=torch.int64), TypeError, "dtype: expected a floating"),
    (lambda: GMLPBlock(4, 7, 3), ValueError, "hidden: expected an even number to split, got 7"),
    (lambda: GMLPBlock(4, 8, 3, attention=0), ValueError, "attention: expected at least 1, got 0"),
    (lambda: AMLPBlock(4, 8, 3, attention=None), TypeError, "attention: expected an integer"),
    (lambda: AMLPBlock(4, 8, 3, gate="none"), ValueError, "gate: expected one of 'additive', 'l"),
    (
        lambda: UNIT(torch.zeros(2, 4, 4)),
        ValueError,
        r"input: expected at most 3 positions \(length\), for W has a row for each, got 4",
    ),
    (lambda: BLOCK(torch.zeros(2, 4, 4)), ValueError, "input: expected at most 3 positions"),
    (lambda: UNIT(torch.zeros(2, 3, 6)), ValueError, r"input: expected \(..., 4\), got shape"),
    (lambda: BLOCK(torch.zeros(3, 4)), ValueError, r"input: expected \(B, T, 4\), got shape"),
    (lambda: UNIT(np.zeros((2, 3, 4))), TypeError, "input: expected a tensor, got ndarray"),
    (lambda: BLOCK(torch.zeros(2, 3, 4).double()), TypeError, "input: expected torch.float32"),
    (
        lambda: BLOCK(torch.zeros(2, 3, 4), torch.tensor([0, 3])),
        ValueError,
        "lengths: expected 1 to T = 3, got 0 to 3",
    ),
    (lambda: BLOCK(torch.zeros(2, 3, 4), [3, 1]), TypeError, "lengths: expected a tensor"),
    (
        lambda: UNIT(torch.zeros(2, 3, 4), None, torch.zeros(2, 3, 2)),
        ValueError,
        "context: expected None without attention=True, got Tensor",
    ),
    (
        lambda: SpatialGatingUnit(4, 3, attention=True)(torch.zeros(2, 3, 4)),
        ValueError,
        "context: expected a tensor, got NoneType",
    ),
    (
        lambda: SpatialGatingUnit(4, 3, attention=True)(
            torch.zeros(2, 3, 4), None, torch.zeros(1, 3, 2)
        ),
        ValueError,
        r"context: expected \(2, 3, 2\), got \(1, 3, 2\)",
    ),
    (
        lambda: SpatialGatingUnit(4, 3, gate="none").mixture(torch.zeros(2, 3, 4)),
        ValueError,
        "gate: expected one that mixes positions, got 'none'",
    ),
    (lambda: equations.spec_of("max"), ValueError, "gate: expected one of multiplicative, add"),
    (lambda: equations.spec_of("none", True), ValueError, "gate: expected one of multiplicative"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
