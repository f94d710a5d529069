"""The witnesses of the GRU family agree: equations, NumPy by hand, torch by autograd."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib import derived, lab
from gatelib.equations import gru as equations
from gatelib.lab.staged import Staged
from gatelib.nn import GRU, Recurrent, convert
from gatelib.reference import gru as reference
from gatelib.spec import Spec, symbol
from tests.families.witnesses import assert_agree, named

NAMES = sorted(equations.ALL)
TORCH = {"W": "weight_ih_l0", "U": "weight_hh_l0", "b": "bias_ih_l0", "b_u": "bias_hh_l0"}


def problem(name, B=3, T=5, D=4, H=6, seed=0):
    """Random weights, input, initial state and upstream gradients for one variant."""
    rng = np.random.default_rng(seed)
    weights = reference.initialize(rng, D, H, name)
    weights = {k: v + 0.3 * rng.normal(size=v.shape) for k, v in weights.items()}
    x, dy = rng.normal(size=(B, T, D)), rng.normal(size=(B, T, H))
    return x, weights, rng.normal(size=(B, H)), dy, rng.normal(size=(B, H))


def by_equations(name, *args):
    run = partial(derived.rnn.over_time, equations.ALL[name])
    return derived.gradients(run, *named(*args))


def by_hand(name, x, weights, h0, dy, dh, lengths=None):
    y, h, saved = reference.forward(x, weights, h0, lengths, variant=name)
    grads = reference.backward(dy, dh, saved)
    return {"y": y, "final_h": h} | {f"d_{k}": v for k, v in grads.items()}


def by_torch(layer, *args):
    """Any torch layer with these weights, differentiated by autograd."""
    return lab.gradients(lab.over_time(layer), *named(*args))


# --- the witnesses --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_backward_written_by_hand_is_the_one_derived(name):
    args = problem(name)
    assert_agree(by_hand(name, *args), by_equations(name, *args))


@pytest.mark.parametrize("name", NAMES)
def test_the_backward_written_by_hand_is_the_one_of_autograd(name):
    args = problem(name, seed=1)
    assert_agree(by_hand(name, *args), by_torch(Staged(equations.ALL[name].stages, 4, 6), *args))


@pytest.mark.parametrize("name", [n for n in NAMES if len(equations.ALL[n].stages) == 1])
def test_a_cell_of_one_stage_is_a_layer_with_the_same_gradients(name):
    args = problem(name, seed=2)
    layer = Recurrent(equations.ALL[name].spec, 4, 6)
    assert_agree(by_torch(layer, *args), by_hand(name, *args))


def test_the_reference_is_torch_gru():
    args = problem("gru", seed=3)
    peer = torch.nn.GRU(4, 6, batch_first=True)
    assert_agree(by_hand("gru", *args), by_torch(peer, *args))


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    shape=st.tuples(st.integers(1, 4), st.integers(0, 4), st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 99),
)
def test_hand_and_derivation_agree_for_any_shape(name, shape, seed):
    args = problem(name, *shape, seed=seed)
    assert_agree(by_hand(name, *args), by_equations(name, *args))


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_passes(name):
    x, weights, h0, *_ = problem(name, B=2, T=3, D=2, H=3)
    layer = Staged(equations.ALL[name].stages, 2, 3).double()
    parameters = [TORCH.get(k, f"{k}_l0") for k in weights]

    def run(x, h0, *values):
        given = dict(zip(parameters, values, strict=True))
        y, last = torch.func.functional_call(layer, given, (x, {"h": h0}))
        return y, last["h"]

    values = [torch.tensor(v, requires_grad=True) for v in (x, h0[None], *weights.values())]
    assert torch.autograd.gradcheck(run, values)


def test_a_padded_row_is_the_row_alone():
    for name in NAMES:
        x, weights, h0, dy, dh = problem(name, B=2, T=6, seed=3)
        together = by_hand(name, x, weights, h0, dy, dh, np.array([6, 2]))
        alone = by_hand(name, x[1:, :2], weights, h0[1:], dy[1:, :2], dh[1:])
        first = by_hand(name, x[:1], weights, h0[:1], dy[:1], dh[:1])
        np.testing.assert_allclose(together["y"][1, :2], alone["y"][0], atol=1e-14)
        assert not together["y"][1, 2:].any() and not together["d_x"][1, 2:].any()
        for key in ("final_h", "d_h0"):
            np.testing.assert_allclose(together[key][1:], alone[key], atol=1e-13)
        for key in (f"d_{k}" for k in weights):
            np.testing.assert_allclose(together[key], first[key] + alone[key], atol=1e-12)


def test_an_empty_sequence_returns_the_initial_state():
    x, weights, h0, _, dh = problem("gru", T=0)
    found = by_hand("gru", x, weights, h0, np.zeros((3, 0, 6)), dh)
    assert found["y"].shape == (3, 0, 6) and not found["d_U"].any()
    np.testing.assert_array_equal(found["final_h"], h0)
    np.testing.assert_array_equal(found["d_h0"], dh)


@pytest.mark.parametrize("name", NAMES)
def test_saturated_gates_stay_finite(name):
    x, weights, h0, dy, dh = problem(name)
    found = by_hand(name, 1e4 * x, weights, h0, dy, dh)
    assert all(np.isfinite(v).all() for v in found.values())
    assert name == "light" or np.abs(found["y"]).max() <= np.abs(h0).max() + 1


# --- what the equations say -----------------------------------------------------------------


def whole(name):
    return equations.ALL[name].joined()


def test_cho_and_chung_are_one_cell_with_the_sign_of_a_z_turned():
    assert whole("chung").subs(a_z="-a_z").same_as(whole("cho"))
    assert not whole("chung").same_as(whole("cho"))


def test_every_convention_without_a_reset_gate_is_the_same_cell():
    h = whole("no_reset").compose()["h"]
    assert whole("cho").subs(r=1).compose()["h"] == h
    merged = equations.GRU.subs(r=1, u_n=0)  # a_n then holds the whole preactivation
    assert merged.same_as(equations.NO_RESET)


def test_a_reset_gate_at_zero_drops_the_product_and_its_bias():
    closed = equations.GRU.subs(r=0)
    assert "u_n" not in map(str, closed.inputs)
    assert closed.same_as(equations.NO_RESET)


def test_an_mgu_is_a_chung_gru_with_both_gates_tied():
    tied = whole("chung").subs(a_r="a_z").compose()
    mgu = {k: v.xreplace({symbol("a_f"): symbol("a_z")}) for k, v in whole("mgu").compose().items()}
    assert tied.keys() == mgu.keys()
    assert all((tied[k] - mgu[k]).simplify() == 0 for k in tied)


def test_two_biases_are_both_added_to_a_plain_cell():
    plain = Spec.parse("plain", "a_h -> h", "h = tanh(a_h)")
    rng = np.random.default_rng(0)
    weights = {"W": rng.normal(size=(3, 2)), "U": rng.normal(size=(3, 3))}
    weights |= {k: rng.normal(size=3) for k in ("b", "b_u")}
    x, *others = (rng.normal(size=s) for s in ((2, 4, 2), (2, 3), (2, 4, 3), (2, 3)))
    found = derived.gradients(partial(derived.rnn.over_time, plain), *named(x, weights, *others))
    assert_agree(found, by_torch(torch.nn.RNN(2, 3, batch_first=True), x, weights, *others))


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"x": np.zeros((3, 5))}, ValueError, "x: expected 3 dimensions"),
        ({"x": np.zeros((3, 5, 4), int)}, TypeError, "x: expected a floating dtype"),
        ({"x": np.zeros((3, 5, 4), "f4")}, TypeError, r"weights\['\w'\]: expected float32 as x"),
        ({"x": np.zeros((3, 5, 9))}, ValueError, r"weights\['W'\]"),
        ({"h0": np.zeros((3, 5))}, ValueError, r"h0: expected \(3, 6\)"),
        ({"lengths": np.array([1, 2, 6])}, ValueError, "lengths: expected 0 … 5"),
        ({"variant": "lstm"}, ValueError, "variant: expected one of"),
        ({"variant": "cho"}, ValueError, "weights: expected"),
        ({"weights": {}}, ValueError, "weights: expected"),
    ],
)
def test_bad_input_is_named(change, error, says):
    x, weights, *_ = problem("gru")
    with pytest.raises(error, match=says):
        reference.forward(**({"x": x, "weights": weights} | change))


def test_a_staged_layer_names_what_its_cell_lacks():
    with pytest.raises(ValueError, match="cell: expected a stage with the output `h`"):
        Staged((equations.RESET,), 2, 3)
    carried = Spec.parse("carried", "a_c c_prev -> h c", "c = c_prev + a_c\nh = tanh(c)")
    with pytest.raises(ValueError, match="cell: expected no carry but `h_prev`"):
        Staged((carried,), 2, 3)


# --- converters -----------------------------------------------------------------------------

AFTER = sorted(k for k, v in convert.LAYOUTS.items() if v.reset == "after")
BEFORE = sorted(k for k, v in convert.LAYOUTS.items() if v.reset == "before")
PAIRS = [(a, b) for group in (AFTER, BEFORE) for a in group for b in group]


def drawn(layout, D=3, H=4, seed=0, second_bias=True):
    """Random weights in a layout, as NumPy arrays."""
    rng = np.random.default_rng(seed)
    before = convert.LAYOUTS[layout].reset == "before"
    weights = reference.initialize(rng, D, H, "cho" if before else "gru")
    if not before and not second_bias:
        weights["b_u"][2 * H :] = 0
    found = convert.gru(weights, "cho" if before else "gru", layout)
    return {k: np.asarray(v) for k, v in found.items()}


def keras_gru(weights, x, after):
    """Keras's GRU, written from its documentation: blocks z, r, h; matrices transposed."""
    kernel, recurrent, bias = (weights[k] for k in ("kernel", "recurrent_kernel", "bias"))
    size = len(recurrent)
    first, second = bias if after else (bias, np.zeros(3 * size))
    h, ys = np.zeros((len(x), size)), []
    for t in range(x.shape[1]):
        x_z, x_r, x_h = np.split(x[:, t] @ kernel + first, 3, axis=1)
        h_z, h_r, h_h = np.split(h @ recurrent + second, 3, axis=1)
        z, r = 1 / (1 + np.exp(-x_z - h_z)), 1 / (1 + np.exp(-x_r - h_r))
        inner = r * h_h if after else (r * h) @ recurrent[:, 2 * size :]
        h = z * h + (1 - z) * np.tanh(x_h + inner)
        ys.append(h)
    return np.stack(ys, 1)


def outputs(layout, weights, x):
    """What a GRU with these weights computes, by the layout's own program."""
    if layout.startswith("keras"):
        return keras_gru(weights, x, after=layout == "keras")
    if layout.startswith("torch"):
        H, D = weights["weight_hh_l0"].shape[1], x.shape[2]
        make = torch.nn.GRU if layout == "torch" else partial(GRU, reset_after=False)
        peer = make(D, H, batch_first=True, dtype=torch.float64)
        peer.load_state_dict({k: torch.as_tensor(v) for k, v in weights.items()})
        return peer(torch.tensor(x))[0].detach().numpy()
    if layout == "cho_v1":
        weights = weights | {"b_u": np.zeros_like(weights["b"])}
    variant = "gru" if layout == "cho_v1" else layout
    return reference.forward(x, weights, variant=variant)[0]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_converted_weights_compute_the_same_both_ways(source, target):
    weights = drawn(source, second_bias="cho_v1" not in (source, target))
    x = np.random.default_rng(1).normal(size=(2, 5, 3))
    there = convert.gru(weights, source, target)
    back = convert.gru(there, target, source)
    expected = outputs(source, weights, x)
    np.testing.assert_allclose(outputs(target, there, x), expected, atol=1e-13)
    np.testing.assert_allclose(outputs(source, back, x), expected, atol=1e-13)


@pytest.mark.parametrize(
    ("source", "target"), [p for p in PAIRS if not {"cho_v1", "torch_before"} & set(p)]
)
def test_a_map_there_and_back_gives_the_same_weights(source, target):
    weights = drawn(source)
    back = convert.gru(convert.gru(weights, source, target), target, source)
    for name, value in weights.items():
        np.testing.assert_array_equal(np.asarray(back[name]), value)


@pytest.mark.parametrize(("two", "one"), [("torch", "cho_v1"), ("torch_before", "chung")])
def test_two_biases_of_which_the_sum_acts_return_as_their_sum(two, one):
    weights = drawn(two, second_bias=False)
    weights["bias_hh_l0"][:8] = weights["bias_ih_l0"][8:0:-1]
    back = convert.gru(convert.gru(weights, two, one), one, two)
    total = weights["bias_ih_l0"] + weights["bias_hh_l0"]
    np.testing.assert_array_equal(back["bias_ih_l0"].numpy(), total)
    assert not back["bias_hh_l0"].any()


@pytest.mark.parametrize(
    ("source", "target"), [(a, b) for a in AFTER for b in BEFORE] + [("cho", "torch")]
)
def test_before_and_after_have_no_map_and_the_reason_is_said(source, target):
    with pytest.raises(ValueError, match="scales the columns of U and r\\*\\(U h\\) its rows"):
        convert.gru(drawn(source, second_bias=False), source, target)


def test_a_bias_behind_the_reset_gate_is_not_lost():
    with pytest.raises(ValueError, match="'cho_v1' has one bias"):
        convert.gru(drawn("torch"), "torch", "cho_v1")


def test_torch_gets_tensors_and_the_others_arrays_that_share_no_memory():
    weights = drawn("gru")
    tensors = convert.gru(weights, "gru", "torch")
    assert all(isinstance(v, torch.Tensor) for v in tensors.values())
    again = convert.gru(tensors, "torch", "gru")
    assert all(isinstance(v, np.ndarray) for v in again.values())
    for value in again.values():
        value += 1
    np.testing.assert_array_equal(tensors["bias_hh_l0"], weights["b_u"])
    half = {k: v.astype("f4") for k, v in weights.items()}
    assert convert.gru(half, "gru", "keras")["bias"].dtype == np.float32


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"source": "jax"}, ValueError, "source: expected one of"),
        ({"target": "jax"}, ValueError, "target: expected one of"),
        ({"source": "keras"}, ValueError, "weights: expected .'kernel'"),
        ({"W": np.zeros((9, 3))}, ValueError, r"weights\['W'\]: expected shape \(12, 3\)"),
        ({"U": np.zeros(3)}, ValueError, r"weights\['W'\]: expected shape"),
        ({"b": np.zeros(12, "f4")}, TypeError, r"weights\['b'\]: expected one floating dtype"),
        ({"b": [0.0] * 12}, TypeError, r"weights\['b'\]: expected a tensor or an array, got list"),
    ],
)
def test_bad_weights_are_named(change, error, says):
    weights = drawn("gru") | {k: v for k, v in change.items() if k not in ("source", "target")}
    names = {"source": "gru", "target": "torch"} | {
        k: v for k, v in change.items() if k in ("source", "target")
    }
    with pytest.raises(error, match=says):
        convert.gru(weights, **names)
