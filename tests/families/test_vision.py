"""The witnesses of gates over channels agree: equations, NumPy by hand, torch by autograd."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from gatelib import derived, lab
from gatelib.equations import stacks
from gatelib.equations import vision as equations
from gatelib.nn import ECA, FiLM, GatedResidualBlock2d, SqueezeExcitation
from gatelib.reference import vision as reference
from tests.families.witnesses import assert_agree

KINDS = ("sigmoid", "hard_sigmoid")
OPTIONS = list(product(KINDS, (True, False), (True, False), (True, False)))
"""kind, bias, shift, pooled."""
SHAPES = st.tuples(*(st.integers(least, 4) for least in (0, 1, 1, 1)))
NAMES = {"W_1": "weight_in", "b_1": "bias_in", "W_2": "weight_out", "b_2": "bias_out"}


def masks(rng, B, H, W):
    """Images of several sizes in the corner of a batch: 1 on the image, 0 on its padding."""
    high, wide = rng.integers(1, H + 1, B), rng.integers(1, W + 1, B)
    inside = (np.arange(H)[:, None] < high[:, None, None]) & (np.arange(W) < wide[:, None, None])
    return inside.astype(float)


def drawn(rng, B, C, H, W, scale=1.0):
    return scale * rng.normal(size=(B, C, H, W)), rng.normal(size=(B, C, H, W))


def by_hand(forward, backward, dy, *args):
    y, saved = forward(*args)
    return {"y": y} | {f"d_{name}": value for name, value in backward(dy, saved).items()}


def bound_of(expected):
    return 1e-11 * (1 + max(np.abs(v).max(initial=0.0) for v in expected.values()))


# --- squeeze-and-excitation -------------------------------------------------------------------


def excitations(x, dy, weights, options, mask=None):
    """The outputs and gradients of the three witnesses."""
    kind, bias, shift, pooled = options
    case = {"x": x} | weights, {"y": dy}
    spec = equations.channel_gate(kind, shift)
    run = partial(derived.vision.squeeze_excitation, spec, mask=mask, pooled=pooled)
    args = (x, weights, kind, pooled, shift, mask)
    hand = by_hand(reference.forward, reference.backward, dy, *args)
    hidden = len(weights["W_1"])
    layer = SqueezeExcitation(
        x.shape[1], hidden=hidden, kind=kind, bias=bias, shift=shift, pooled=pooled
    )
    live = None if mask is None else torch.tensor(mask > 0)

    def module(g):
        own = {NAMES[name]: g[name] for name in weights}
        return {"y": lab.called(layer, own, g["x"], live)}

    return derived.gradients(run, *case), hand, lab.gradients(module, *case)


@settings(max_examples=40, deadline=None)
@given(
    options=st.sampled_from(OPTIONS),
    shape=SHAPES,
    hidden=st.integers(1, 3),
    masked=st.booleans(),
    scale=st.sampled_from([0.0, 1.0, 50.0]),
    seed=st.integers(0, 99),
)
def test_three_witnesses_of_squeeze_and_excitation_agree(
    options, shape, hidden, masked, scale, seed
):
    rng = np.random.default_rng(seed)
    x, dy = drawn(rng, *shape, scale)
    weights = reference.initialize(rng, shape[1], hidden, options[1], options[2])
    mask = masks(rng, shape[0], *shape[2:]) if masked else None
    expected, *others = excitations(x, dy, weights, options, mask)
    for other in others:
        assert_agree(other, expected, bound_of(expected))


@pytest.mark.parametrize("options", OPTIONS)
def test_every_variant_agrees_to_ten_digits(options):
    rng = np.random.default_rng(7)
    x, dy = drawn(rng, 3, 5, 4, 3)
    weights = reference.initialize(rng, 5, 2, options[1], options[2])
    for mask in (None, masks(rng, 3, 4, 3)):
        expected, *others = excitations(x, dy, weights, options, mask)
        for other in others:
            assert_agree(other, expected, 1e-10)


@pytest.mark.parametrize("options", OPTIONS[::3])
def test_first_and_second_derivatives_pass_gradcheck(options):
    kind, bias, shift, pooled = options
    torch.manual_seed(1)
    layer = SqueezeExcitation(
        3, hidden=2, kind=kind, bias=bias, shift=shift, pooled=pooled, dtype=torch.float64
    )
    mask = torch.tensor([[[True, True], [True, False]], [[True, False], [False, False]]])
    names = list(dict(layer.named_parameters()))
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    values = [p.detach().requires_grad_() for p in layer.parameters()]

    def run(x, *values):
        own = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, own, (x, mask))

    assert gradcheck(run, (x, *values)) and gradgradcheck(run, (x, *values))


def test_expanded_and_strided_gradients_and_inputs_are_read_right():
    rng = np.random.default_rng(3)
    x, weights = rng.normal(size=(3, 2, 4, 5)), reference.initialize(rng, 5, 2)
    layer = SqueezeExcitation(5, hidden=2, dtype=torch.float64)
    layer.load_state_dict({NAMES[k]: torch.tensor(v) for k, v in weights.items()})
    base = torch.tensor(x).requires_grad_()
    layer(base.permute(0, 3, 2, 1)).sum().backward()
    turned = x.transpose(0, 3, 2, 1)
    _, saved = reference.forward(turned, weights)
    found = reference.backward(np.ones_like(turned), saved)
    np.testing.assert_allclose(base.grad, found["x"].transpose(0, 3, 2, 1), atol=1e-12)
    np.testing.assert_allclose(layer.weight_in.grad, found["W_1"], atol=1e-12)


# --- efficient channel attention --------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    shape=SHAPES,
    reach=st.integers(0, 2),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_three_witnesses_of_eca_agree(kind, shape, reach, masked, seed):
    rng = np.random.default_rng(seed)
    x, dy = drawn(rng, *shape)
    weights = {"w": rng.normal(size=2 * reach + 1)}
    mask = masks(rng, shape[0], *shape[2:]) if masked else None
    case = {"x": x} | weights, {"y": dy}
    run = partial(derived.vision.local_attention, equations.channel_gate(kind), mask=mask)
    expected = derived.gradients(run, *case)
    args = (x, weights, kind, mask)
    hand = by_hand(reference.forward_local, reference.backward_local, dy, *args)
    assert_agree(hand, expected, bound_of(expected))
    layer, live = ECA(shape[1], 2 * reach + 1, kind), None if mask is None else mask > 0
    live = None if live is None else torch.tensor(live)
    found = lab.gradients(
        lambda g: {"y": lab.called(layer, {"weight": g["w"]}, g["x"], live)}, *case
    )
    assert_agree(found, expected, bound_of(expected))


def test_eca_passes_gradcheck():
    torch.manual_seed(2)
    layer = ECA(5, 3, dtype=torch.float64)
    x = torch.randn(2, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    w = layer.weight.detach().requires_grad_()

    def run(x, w):
        return torch.func.functional_call(layer, {"weight": w}, (x,))

    assert gradcheck(run, (x, w)) and gradgradcheck(run, (x, w))


# --- FiLM -------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(equations.KINDS)),
    shape=SHAPES,
    features=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_three_witnesses_of_film_agree(kind, shape, features, seed):
    rng = np.random.default_rng(seed)
    x, dy = drawn(rng, *shape)
    rows = len(reference.BLOCKS[kind]) * shape[1]
    given_ = {"condition": rng.normal(size=(shape[0], features))}
    weights = {"W": rng.normal(size=(rows, features)), "b": rng.normal(size=rows)}
    case = {"x": x} | given_ | weights, {"y": dy}
    run = partial(derived.vision.film, equations.KINDS[kind])
    expected = derived.gradients(run, *case)
    args = (x, given_["condition"], weights, kind)
    hand = by_hand(reference.forward_film, reference.backward_film, dy, *args)
    assert_agree(hand, expected, bound_of(expected))
    layer = FiLM(features, shape[1], kind)

    def module(g):
        own = {"weight": g["W"], "bias": g["b"]}
        return {"y": lab.called(layer, own, g["x"], g["condition"])}

    assert_agree(lab.gradients(module, *case), expected, bound_of(expected))


@pytest.mark.parametrize("kind", sorted(equations.KINDS))
def test_film_passes_gradcheck(kind):
    torch.manual_seed(3)
    layer = FiLM(2, 3, kind, dtype=torch.float64)
    inputs = [torch.randn(2, 3, 2, 2), torch.randn(2, 2)]
    inputs = [v.double().requires_grad_() for v in inputs]
    inputs += [p.detach().requires_grad_() for p in layer.parameters()]

    def run(x, condition, weight, bias):
        own = {"weight": weight, "bias": bias}
        return torch.func.functional_call(layer, own, (x, condition))

    assert gradcheck(run, inputs) and gradgradcheck(run, inputs)


# --- a residual block -------------------------------------------------------------------------

BLOCKS = {"conv": "0.weight", "scale": "1.weight", "shift": "1.bias"}
PLACES = {"1": ("branch", 0), "2": ("branch", 3), "x": ("shortcut", 0)}


def parameter(name):
    """The name of a block's parameter in the reference, in torch."""
    kind, _, k = name.partition("_")
    if kind not in BLOCKS:
        return f"gate.{NAMES[name]}"
    place, first = PLACES[k]
    offset, _, last = BLOCKS[kind].partition(".")
    return f"{place}.{first + int(offset)}.{last}"


CASES = [(s, i, h) for s, i, h in product((1, 2, 3), (3, 4), (None, 2))]
"""stride, channels of the input (4 come out), hidden units of the gate."""


def block_problem(stride, inside, hidden, shape=(3, 5, 4), seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(shape[0], inside, *shape[1:]))
    weights = reference.initialize_block(rng, inside, 4, hidden, stride != 1 or inside != 4)
    y, _ = reference.forward_block(x, weights, stride)
    return x, weights, rng.normal(size=y.shape)


@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 1, 3), (4, 2, 2)])
@pytest.mark.parametrize("case", CASES)
def test_three_witnesses_of_a_residual_block_agree(case, shape):
    stride, inside, hidden = case
    x, weights, dy = block_problem(*case, shape)
    given_ = {"x": x} | weights, {"y": dy}
    spec = equations.BLOCK if hidden is None else equations.GATED_BLOCK
    run = partial(derived.vision.block, spec, stride=stride)
    expected = derived.gradients(run, *given_)
    args = (x, weights, stride)
    hand = by_hand(reference.forward_block, reference.backward_block, dy, *args)
    assert_agree(hand, expected, bound_of(expected))
    gate = None if hidden is None else SqueezeExcitation(4, hidden=hidden)
    layer = GatedResidualBlock2d(inside, 4, stride, gate).double()

    def module(g):
        return {"y": lab.called(layer, {parameter(k): g[k] for k in weights}, g["x"])}

    assert_agree(lab.gradients(module, *given_), expected, bound_of(expected))


def test_a_block_passes_gradcheck():
    torch.manual_seed(4)
    layer = GatedResidualBlock2d(2, 3, 2, SqueezeExcitation(3)).double()
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(layer, x) and gradgradcheck(layer, x)


# --- algebra ----------------------------------------------------------------------------------


def test_pooling_is_a_gate_of_one_share_for_each_pixel():
    """Squeezing is stacks.POOL whose gate is 1/n: the mean that a sequence is pooled by."""
    v = np.random.default_rng(0).normal(size=(2, 3, 6))
    pooled = stacks.POOL.evaluate({"g": np.full_like(v, 1 / 6), "v": v})["y"]
    found = equations.SQUEEZE.evaluate({"v": v})["z"]
    np.testing.assert_allclose(found, pooled, atol=1e-15)
    ones = equations.MASKED_SQUEEZE.evaluate({"m": np.ones_like(v), "v": v})["z"]
    np.testing.assert_allclose(ones, pooled, atol=1e-15)


def test_scale_and_shift_is_the_gate_and_a_shift_and_film_is_the_same_with_another_scale():
    a, b, v = sp.symbols("a b v", real=True)
    gated = equations.CHANNEL_GATE.compose()["y"]
    both = equations.SCALE_SHIFT.compose()["y"]
    assert sp.simplify(both - gated - b) == 0
    s = both.coeff(v)
    film = equations.FILM.compose()["y"].subs(sp.Symbol("gamma", real=True), s - 1)
    assert sp.simplify(film.subs(sp.Symbol("beta", real=True), b) - both) == 0
    assert a in both.free_symbols


def test_an_open_gate_makes_the_gated_block_a_residual_block():
    assert equations.GATED_BLOCK.limit(a=sp.oo).same_as(equations.BLOCK)


# --- bad input --------------------------------------------------------------------------------


BAD = [
    (lambda: equations.channel_gate("exp"), ValueError, "kind: expected one of"),
    (lambda: reference.forward(np.zeros((2, 3)), {}), ValueError, "x: expected 4 dimensions"),
    (lambda: reference.forward(np.zeros((2, 3, 1, 1)), {}), ValueError, "weights: expected"),
    (
        lambda: reference.forward_local(np.zeros((1, 1, 1, 1)), {"w": np.ones(2)}),
        ValueError,
        r"weights\['w'\]: expected an odd number",
    ),
    (
        lambda: reference.forward_film(np.zeros((1, 1, 1, 1)), np.zeros((2, 1)), {}),
        ValueError,
        r"condition: expected \(1, E\)",
    ),
    (
        lambda: reference.forward_local(
            np.zeros((1, 1, 1, 1)), {"w": np.ones(1)}, mask=np.zeros((1, 1, 1))
        ),
        ValueError,
        "mask: expected at least one pixel",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
