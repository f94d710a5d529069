"""Gated convolutions: equations over what a kernel covers, NumPy by hand, torch agree."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from gatelib import derived, lab
from gatelib.equations.glu import KINDS, SWIGLU
from gatelib.nn import GatedConv1d, receptive_field
from gatelib.reference import gated_conv as reference
from gatelib.spec import Spec
from tests.families.witnesses import assert_agree, close

every_kind = pytest.mark.parametrize("kind", KINDS)


def problem(kind="glu", B=2, D=3, C=2, T=6, size=3, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    inputs = {"x": scale * rng.normal(size=(B, D, T))}
    return inputs | reference.initialize(rng, D, C, size, kind), {"y": rng.normal(size=(B, C, T))}


def by_hand(inputs, upstream, **options):
    weights = {name: inputs[name] for name in "Wb"}
    y, saved = reference.forward(inputs["x"], weights, **options)
    grads = reference.backward(upstream["y"], saved)
    return {"y": y} | {f"d_{name}": value for name, value in grads.items()}


def by_equations(inputs, upstream, variant="glu", **options):
    run = partial(derived.gated_conv.layer, KINDS[variant], **options)
    return derived.gradients(run, inputs, upstream)


def layer_of(inputs, variant="glu", **options):
    rows, D, size = inputs["W"].shape
    C = rows // len(KINDS[variant].inputs)
    return GatedConv1d(D, C, size, kind=variant, **options).double()


def by_torch(inputs, upstream, **options):
    layer = layer_of(inputs, **options)

    def run(given):
        return {"y": lab.called(layer, {"weight": given["W"], "bias": given["b"]}, given["x"])}

    return lab.gradients(run, inputs, upstream)


def sequences(*shape, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), **options)


# --- the witnesses agree ----------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from([*KINDS]),
    shape=st.tuples(*(st.integers(least, 3) for least in (0, 1, 1, 0))),
    size=st.integers(1, 5),
    dilation=st.integers(1, 3),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
@example("glu", (2, 3, 2, 6), 3, 2, True, 0)
@example("swiglu", (2, 3, 2, 6), 4, 1, False, 0)
def test_three_witnesses_agree_for_any_kernel_and_dilation(
    kind, shape, size, dilation, causal, seed
):
    case = problem(kind, *shape, size, seed)
    options = {"variant": kind, "dilation": dilation, "causal": causal}
    expected = by_equations(*case, **options)
    assert_agree(by_hand(*case, **options), expected)
    for impl in ("auto", "fused", "reference"):
        assert_agree(by_torch(*case, impl=impl, **options), expected)


@every_kind
def test_far_out_they_agree_and_stay_finite(kind):
    case = problem(kind, scale=50.0)
    expected = by_equations(*case, variant=kind)
    fused = by_torch(*case, variant=kind, impl="fused")
    for found in (by_hand(*case, variant=kind), by_torch(*case, variant=kind), fused):
        for name, value in expected.items():
            assert np.isfinite(value).all()
            close(found[name], value)


@pytest.mark.parametrize("kind", ["glu", "gtu", "swiglu", "gelu"])
@pytest.mark.parametrize("weight_norm", [False, True])
def test_first_and_second_derivatives_pass_gradcheck(kind, weight_norm):
    torch.manual_seed(0)
    layer = GatedConv1d(2, 1, 2, 2, kind=kind, weight_norm=weight_norm).double()
    names = [name for name, _ in layer.named_parameters()]
    leaves = [sequences(1, 2, 3, dtype=torch.float64), *(p.detach() for p in layer.parameters())]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 4), channels=st.integers(1, 3), seed=st.integers(0, 99))
def test_weight_norm_by_hand_and_by_torch_agree_in_lengths_and_directions(size, channels, seed):
    inputs, upstream = problem(size=size, C=channels, seed=seed)
    rng = np.random.default_rng(seed)
    v, g = rng.normal(size=inputs["W"].shape), rng.normal(size=(len(inputs["W"]), 1, 1))
    whole = by_hand(inputs | {"W": reference.normalized(g, v)}, upstream)
    hand = reference.normalized_backward(whole.pop("d_W"), g, v)
    expected = whole | {f"d_{name}": value for name, value in hand.items()}
    layer = layer_of(inputs, weight_norm=True)
    place = "parametrizations.weight.original"

    def run(given):
        own = {f"{place}0": given["g"], f"{place}1": given["v"], "bias": given["b"]}
        return {"y": lab.called(layer, own, given["x"])}

    given_ = {"x": inputs["x"], "b": inputs["b"], "g": g, "v": v}
    assert_agree(lab.gradients(run, given_, upstream), expected)


def test_the_direction_of_a_row_gets_no_gradient_along_itself():
    inputs, upstream = problem()
    v, g = inputs["W"], np.ones((4, 1, 1))
    d_W = by_hand(inputs | {"W": reference.normalized(g, v)}, upstream)["d_W"]
    d_v = reference.normalized_backward(d_W, g, v)["v"]
    assert np.abs((d_v * v).sum(axis=(1, 2))).max() < 1e-12


def test_weight_norm_changes_the_parameters_and_not_the_layer_that_starts():
    torch.manual_seed(0)
    plain = GatedConv1d(3, 4, 5)
    torch.manual_seed(0)
    normed = GatedConv1d(3, 4, 5, weight_norm=True)
    torch.testing.assert_close(normed.weight, plain.weight)
    x = sequences(2, 3, 9)
    torch.testing.assert_close(normed(x), plain(x))
    lengths = dict(normed.named_parameters())["parametrizations.weight.original0"]
    assert lengths.shape == (8, 1, 1)
    twin = copy.deepcopy(normed)
    twin.reset_parameters()
    twin.load_state_dict(normed.state_dict())
    assert torch.equal(twin(x), normed(x))


def test_torchs_weight_norm_is_loaded_and_gives_the_same():
    peer = parametrizations.weight_norm(nn.Conv1d(3, 8, 5))
    nn.init.uniform_(peer.parametrizations.weight.original0, 0.5, 2.0)
    layer, x = GatedConv1d(3, 4, 5, weight_norm=True), sequences(2, 3, 9)
    layer.load_state_dict(peer.state_dict())
    torch.testing.assert_close(layer(x), F.glu(peer(F.pad(x, (4, 0))), 1))


# --- what is known of them --------------------------------------------------------------------


@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_it_is_torchs_convolution_and_gate_along_the_channels(size, dilation):
    layer = GatedConv1d(3, 4, size, dilation).double()
    peer = nn.Conv1d(3, 8, size, dilation=dilation).double()
    peer.load_state_dict(layer.state_dict())
    x = sequences(2, 3, 7, dtype=torch.float64).requires_grad_()
    y = layer(x)
    expected = F.glu(peer(F.pad(x, (dilation * (size - 1), 0))), dim=1)
    assert torch.equal(y, expected)
    for ours, theirs in zip(*(torch.autograd.grad(v.sum(), x) for v in (y, expected)), strict=True):
        assert torch.equal(ours, theirs)


def test_the_gate_is_along_the_channels_and_not_along_time():
    """wav2letter#75: F.glu(dim=-1) on (B, 2C, T) halves time, and no shape complains."""
    layer, x = GatedConv1d(3, 4, 3), sequences(2, 3, 10)
    assert layer(x).shape == (2, 4, 10)
    packed = F.conv1d(F.pad(x, (2, 0)), layer.weight, layer.bias)
    assert F.glu(packed, dim=-1).shape == (2, 8, 5)


def test_gate_and_value_have_kernels_of_their_own():
    """athena#353: both from one output is x * sigmoid(x), a SiLU that no kernel can undo."""
    layer, x = GatedConv1d(3, 4, 3).double(), sequences(2, 3, 10, dtype=torch.float64)
    with torch.no_grad():
        layer.weight[:4] *= 2
        layer.bias[:4] *= 2
    seen = layer.values(x)
    torch.testing.assert_close(layer(x), seen["g"] * seen["v"])
    with torch.no_grad():
        layer.weight[:4] /= 2
        layer.bias[:4] /= 2
    torch.testing.assert_close(2 * layer(x), seen["y"])  # linear in the value


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 5),
    dilation=st.integers(1, 3),
    steps=st.integers(1, 12),
    data=st.data(),
)
def test_a_prefix_gives_the_prefix_of_the_output_and_the_future_changes_nothing(
    size, dilation, steps, data
):
    layer = GatedConv1d(2, 3, size, dilation).double()
    x = sequences(2, 2, steps, dtype=torch.float64)
    end = data.draw(st.integers(0, steps))
    y, changed = layer(x), x.clone()
    torch.testing.assert_close(layer(x[..., :end]), y[..., :end])
    changed[..., end:] = torch.nan
    torch.testing.assert_close(layer(changed)[..., :end], y[..., :end])


def test_a_layer_that_is_not_causal_sees_the_future():
    layer, x = GatedConv1d(2, 3, 3, causal=False), sequences(1, 2, 8)
    changed = x.clone()
    changed[..., 5] += 1
    moved = (layer(changed) != layer(x)).any(1).any(0).nonzero().flatten()
    assert moved.tolist() == [4, 5, 6]


def seen_by(layers, steps=None):
    """From which inputs a gradient comes to the last output, as (first, last) steps back."""
    steps = steps or 2 + receptive_field(layers)
    x = sequences(1, 1, steps, dtype=torch.float64).requires_grad_()
    y = x
    for layer in layers:
        y = layer(y)
    y[..., -1].sum().backward()
    places = (steps - 1 - x.grad[0, 0].nonzero().flatten()).tolist()
    return min(places), max(places)


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), max_size=4),
    seed=st.integers(0, 99),
)
@example([(2, 2**k) for k in range(4)], 0)
@example([(3, 1)] * 4, 0)
def test_the_field_that_gradients_come_from_is_the_formulas(pairs, seed):
    torch.manual_seed(seed)
    sizes = [1, *(2 for _ in pairs)]
    layers = [
        GatedConv1d(channels, 2, size, dilation).double()
        for channels, (size, dilation) in zip(sizes, pairs, strict=False)
    ]
    first, last = seen_by(layers)
    assert first == 0
    field = receptive_field(pairs)
    assert 1 + last == field == reference.receptive_field(pairs) == receptive_field(layers)
    assert field == 1 + sum((size - 1) * dilation for size, dilation in pairs)


def test_the_field_of_layers_has_its_closed_forms():
    assert receptive_field([]) == 1
    for depth in range(1, 6):
        assert receptive_field([(4, 1)] * depth) == 1 + 3 * depth
        doubled = [(2, 2**k) for k in range(depth)]
        assert receptive_field(doubled) == 2**depth
    net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), GatedConv1d(2, 2, 3, 4))
    assert receptive_field(net) == receptive_field([net]) == 11


@pytest.mark.parametrize(
    ("layers", "error", "says"),
    [
        ([3], TypeError, r"layers: expected a module or a pair \(kernel size, dilation\) for each"),
        ([(3, 1, 1)], TypeError, "layers: expected a module or a pair"),
        ([(0, 1)], ValueError, "kernel_size: expected at least 1, got 0"),
        ([(2, 0.5)], TypeError, "dilation: expected an integer, got float"),
        ([nn.Conv1d(1, 1, 3, stride=2)], ValueError, "layers: expected Conv1d of stride 1"),
        ([nn.MaxPool1d(2)], ValueError, "layers: expected Conv1d of stride 1 or GatedConv1d"),
        ([nn.Conv2d(1, 1, 3)], ValueError, "layers: expected Conv1d of stride 1"),
    ],
)
def test_layers_whose_field_is_not_known_are_refused(layers, error, says):
    with pytest.raises(error, match=says):
        receptive_field(layers)


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(1, 4),
    dilation=st.integers(1, 3),
    pieces=st.lists(st.integers(0, 4), min_size=1, max_size=5),
)
@example(3, 2, [1] * 8)
def test_a_sequence_in_pieces_is_the_sequence(size, dilation, pieces):
    layer = GatedConv1d(2, 3, size, dilation).double()
    x = sequences(2, 2, sum(pieces), dtype=torch.float64)
    state, found = None, []
    for part in x.split(pieces, -1):
        y, state = layer.stream(part, state)
        assert state.shape == (2, 2, dilation * (size - 1))
        found.append(y)
    torch.testing.assert_close(torch.cat(found, -1), layer(x))


# --- how a torch user meets it ----------------------------------------------------------------


def own_spec():
    return Spec.parse("own", "a v -> y", "y = v*tanh(a)")


@pytest.mark.parametrize("steps", [0, 1, 2])
@every_kind
def test_a_sequence_may_be_shorter_than_the_kernel_or_empty(kind, steps):
    layer = GatedConv1d(2, 3, 5, 2, kind=kind)
    nn.init.ones_(layer.bias)
    nn.init.uniform_(layer.weight, -0.1, 0.1)  # no ReLU is off
    x = sequences(2, 2, steps).requires_grad_()
    y = layer(x)
    assert y.shape == (2, 3, steps)
    y.sum().backward()
    assert x.grad.shape == x.shape and layer.weight.grad.shape == layer.weight.shape
    assert steps == 0 or layer.weight.grad[..., -1].any()


def test_a_spec_of_ones_own_is_a_kind():
    layer, x = GatedConv1d(2, 3, 2, kind=own_spec()), sequences(1, 2, 4)
    seen = layer.values(x)
    torch.testing.assert_close(layer(x), seen["v"] * torch.tanh(seen["a"]))
    assert GatedConv1d(2, 3, 2, kind=SWIGLU).weight.shape == (6, 2, 2)
    assert GatedConv1d(2, 3, 2, kind="gelu").weight.shape == (3, 2, 2)


@pytest.mark.parametrize("kind", ["glu", "swiglu", "gelu"])
@pytest.mark.parametrize("weight_norm", [False, True])
def test_compile_makes_one_graph_and_export_the_same_layer(kind, weight_norm):
    layer, x = GatedConv1d(2, 3, 3, 2, kind=kind, weight_norm=weight_norm), sequences(2, 2, 7)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))
    torch._dynamo.reset()
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


@pytest.mark.parametrize("kind", ["glu", "gpt_oss", "relu"])
def test_vmap_is_the_layer_for_each_and_forward_mode_runs(kind):
    layer, x = GatedConv1d(2, 3, 3, kind=kind).double(), sequences(4, 2, 2, 7, dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(layer)(x), torch.stack([layer(part) for part in x]))
    _, tangent = torch.func.jvp(layer, (x[0],), (x[1],))
    _, pull = torch.func.vjp(layer, x[0])
    torch.testing.assert_close((pull(torch.ones_like(tangent))[0] * x[1]).sum(), tangent.sum())


@pytest.mark.parametrize("kind", ["glu", "swiglu", "deepseek_v4"])
def test_low_precision_errs_no_more_than_rounding(kind):
    layer, x = GatedConv1d(8, 4, 3, kind=kind), sequences(2, 8, 20)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        auto = layer(x)
    low = layer.bfloat16()(x.bfloat16())
    assert auto.dtype == low.dtype == torch.bfloat16
    for found in (auto, low):
        assert (found.float() - exact).abs().max() < 0.03 * (1 + exact.abs().max())


def test_strided_inputs_and_expanded_gradients_are_read_right():
    layer, base = GatedConv1d(2, 3, 3).double(), sequences(7, 2, 4, dtype=torch.float64)
    found = []
    for x in (base.permute(2, 1, 0), base.permute(2, 1, 0).contiguous()):
        x = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = layer(x)
        y.sum().backward() if not found else y.backward(torch.ones_like(y))
        found.append((y, x.grad))
    torch.testing.assert_close(*found)


BAD = [
    (lambda: GatedConv1d(0, 3, 3), ValueError, "in_channels: expected at least 1, got 0"),
    (lambda: GatedConv1d(1, 2.0, 3), TypeError, "out_channels: expected an integer, got float"),
    (lambda: GatedConv1d(1, 2, (3,)), TypeError, "kernel_size: expected an integer, got tuple"),
    (lambda: GatedConv1d(1, 2, 3, 0), ValueError, "dilation: expected at least 1, got 0"),
    (lambda: GatedConv1d(1, 2, 3, causal=1), TypeError, "causal: expected True or False, got int"),
    (lambda: GatedConv1d(1, 2, 3, kind="gru"), ValueError, "kind: expected one of"),
    (lambda: GatedConv1d(1, 2, 3, weight_norm=None), TypeError, "weight_norm: expected True or Fa"),
    (lambda: GatedConv1d(1, 2, 3, impl="fast"), ValueError, "impl: expected 'auto', 'fused' or"),
    (lambda: GatedConv1d(1, 2, 3, dtype=torch.int8), TypeError, "dtype: expected a floating-point"),
    (
        lambda: GatedConv1d(1, 2, 3)(torch.zeros(2, 4)),
        ValueError,
        r"input: expected \(B, 1, T\), got shape \(2, 4\)",
    ),
    (
        lambda: GatedConv1d(1, 2, 3)(torch.zeros(2, 4, 1)),
        ValueError,
        r"input: expected \(B, 1, T\), got shape \(2, 4, 1\)",
    ),
    (
        lambda: GatedConv1d(1, 2, 3)(torch.zeros(2, 1, 4).double()),
        TypeError,
        "input: expected torch.float32 as the weights, got torch.float64",
    ),
    (lambda: GatedConv1d(1, 2, 3)([1.0]), TypeError, "input: expected a tensor, got list"),
    (
        lambda: GatedConv1d(1, 2, 3).stream(torch.zeros(2, 1, 1), torch.zeros(2, 1, 3)),
        ValueError,
        r"state: expected shape \(2, 1, 2\), got \(2, 1, 3\)",
    ),
    (
        lambda: GatedConv1d(1, 2, 3, causal=False).stream(torch.zeros(2, 1, 1)),
        ValueError,
        "causal: expected True, as half",
    ),
]


@pytest.mark.parametrize(("call", "error", "says"), BAD)
def test_what_does_not_fit_is_named(call, error, says):
    with pytest.raises(error, match=says):
        call()


BAD_REFERENCES = [
    ({"x": np.zeros((2, 3))}, ValueError, "x: expected 3 dimensions"),
    ({"x": np.zeros((2, 3, 6), int)}, TypeError, "x: expected a floating dtype"),
    ({"x": np.zeros((2, 4, 6))}, ValueError, r"weights\['W'\]: expected \(4, 4, 3\)"),
    ({"variant": "none"}, ValueError, "variant: expected one of"),
    ({"weights": {}}, ValueError, "weights: expected"),
    (
        {"weights": {"W": np.zeros((3, 3, 3)), "b": np.zeros(3)}},
        ValueError,
        "rows for a value and a gate alike, got 3",
    ),
]


@pytest.mark.parametrize(("change", "error", "says"), BAD_REFERENCES)
def test_the_reference_names_what_does_not_fit(change, error, says):
    inputs, _ = problem()
    case = {"x": inputs.pop("x"), "weights": inputs}
    with pytest.raises(error, match=says):
        reference.forward(**(case | change))
