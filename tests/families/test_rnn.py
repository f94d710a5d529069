"""The witnesses of plain recurrence agree: equations, NumPy by hand, torch by autograd."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib import derived, lab
from gatelib.equations import rnn as equations
from gatelib.nn import Jordan, Recurrent, SkipRNN
from gatelib.reference import rnn as reference
from tests.families.witnesses import (
    BAD_SEQUENCES,
    assert_agree,
    assert_read_in_pieces,
    for_any_shape,
    named,
)

SPECS = {name.removesuffix("_rnn"): known.spec for name, known in equations.ALL.items()}
NAMES = sorted(SPECS)
OUTPUTS = sorted(reference.OUTPUTS)


def problem(skip=0, B=3, T=5, D=4, H=6, seed=0, scale=1.0):
    """Random weights, input, initial state and upstream gradients."""
    rng = np.random.default_rng(seed)
    weights = reference.initialize(rng, D, H, skip=skip > 0)
    shape = (B, skip, H) if skip else (B, H)
    x, dy = scale * rng.normal(size=(B, T, D)), rng.normal(size=(B, T, H))
    return x, weights, rng.normal(size=shape), dy, rng.normal(size=shape)


def jordan_problem(B=3, T=5, D=4, H=6, size=2, seed=0):
    rng = np.random.default_rng(seed)
    weights = reference.initialize_jordan(rng, D, H, size)
    x, dy = rng.normal(size=(B, T, D)), rng.normal(size=(B, T, size))
    return x, weights, rng.normal(size=(B, size)), dy, rng.normal(size=(B, size))


def by_hand(name, x, weights, h0, dy, dh, lengths=None, skip=0, every=None):
    y, h, saved = reference.forward(x, weights, h0, lengths, name, skip)
    grads = reference.backward(dy, dh, saved, every)
    return {"y": y, "final_h": h} | {f"d_{k}": v for k, v in grads.items()}


def jordan_by_hand(x, weights, s0, dy, ds, output="identity", decay=0.0, every=None):
    y, s, saved = reference.forward_jordan(x, weights, s0, output, decay)
    grads = reference.backward_jordan(dy, ds, saved, every)
    return {"y": y, "final_s": s} | {f"d_{k}": v for k, v in grads.items()}


def in_chunks(layer, every, **names):
    """How a torch layer runs; with `every`, its state is detached between chunks."""
    run = lab.over_time(layer, **names)

    def chunked(given):
        state = next(name for name in given if name.endswith("0"))
        final, outputs = f"final_{state[:-1]}", []
        for part in given["x"].split(every or given["x"].shape[1], dim=1):
            found = run(given | {"x": part})
            outputs.append(found["y"])
            given = given | {state: found[final].detach()}
        return {"y": torch.cat(outputs, 1), final: found[final]}

    return chunked


def by_autograd(layer, *args, every=None, state="h", **names):
    return lab.gradients(in_chunks(layer, every, **names), *named(*args, state))


SKIP = {"W": "weight_ih", "U": "weight_hh", "V": "weight_skip", "b": "bias"}
JORDAN = {"W": "weight_ih", "U": "weight_sh", "b": "bias_h", "Q": "weight_ho", "c": "bias_o"}


# --- Elman and its relatives ------------------------------------------------------------------


@for_any_shape(25, name=st.sampled_from(NAMES), scale=st.sampled_from([0.0, 1.0, 30.0]))
def test_hand_and_derivation_agree_for_any_shape_and_size(name, shape, scale, seed):
    args = problem(0, *shape, seed=seed, scale=scale)
    found = derived.gradients(partial(derived.rnn.over_time, SPECS[name]), *named(*args))
    scale = 1 + max(np.abs(v).max() for v in found.values())
    assert_agree(by_hand(name, *args), found, 1e-11 * scale)


@pytest.mark.parametrize("every", [None, 1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_bptt_by_hand_is_autograd_with_the_state_detached_between_chunks(name, every):
    args = problem(seed=1)
    layer = Recurrent(SPECS[name], 4, 6, impl="reference")
    assert_agree(by_hand(name, *args, every=every), by_autograd(layer, *args, every=every))


@pytest.mark.parametrize("kind", ["tanh", "relu"])
def test_the_reference_is_torch_rnn(kind):
    args = problem(seed=2)
    peer = torch.nn.RNN(4, 6, nonlinearity=kind, batch_first=True)
    name = {"tanh": "elman", "relu": "relu"}[kind]
    assert_agree(by_hand(name, *args), by_autograd(peer, *args))


def test_a_clipped_relu_stops_at_its_ceiling_and_learns_nothing_there():
    x, weights, h0, *_ = problem(scale=1000.0)
    y, _, saved = reference.forward(x, weights, h0, variant="clipped_relu")
    assert y.max() == reference.CEILING == equations.CEILING
    slopes = reference.slope("clipped_relu", saved.active)
    assert not slopes[y == reference.CEILING].any() and not slopes[y == 0].any()
    assert slopes[(y > 0) & (y < reference.CEILING)].all()


def test_a_linear_net_multiplies_by_a_power_of_its_matrix():
    x, weights, h0, _, _ = problem(T=7)
    zero = np.zeros_like(x[:, :, :1])
    quiet = weights | {"W": weights["W"][:, :1], "b": 0 * weights["b"]}
    _, h, _ = reference.forward(zero, quiet, h0, variant="linear")
    np.testing.assert_allclose(h, h0 @ np.linalg.matrix_power(weights["U"], 7).T, atol=1e-13)


def test_a_leaky_unit_keeps_one_minus_its_rate():
    spec = equations.leaky("1/1000000000")
    assert str(spec.partial("h", "h_prev")) == "999999999/1000000000"


@pytest.mark.parametrize("rate", ["0", "1", "2", "-1/4"])
def test_a_leak_outside_its_range_is_named(rate):
    with pytest.raises(ValueError, match=f"rate: expected .*got {rate}"):
        equations.leaky(rate)


@pytest.mark.parametrize("decay", [-0.5, 1.0, float("nan")])
def test_a_decay_outside_its_range_is_named_by_each_witness(decay):
    x, weights, *_ = jordan_problem()
    with pytest.raises(ValueError, match="decay: expected"):
        equations.jordan_output(decay=decay)
    with pytest.raises(ValueError, match="decay: expected"):
        reference.forward_jordan(x, weights, decay=decay)
    with pytest.raises(ValueError, match="decay: expected"):
        Jordan(2, 3, 2, decay=decay)


@pytest.mark.parametrize("skip", [0, 3])
@pytest.mark.parametrize("every", [None, 2])
def test_a_padded_row_is_the_row_alone(skip, every):
    x, weights, h0, dy, dh = problem(skip, B=2, T=6, seed=3)
    options = {"skip": skip, "every": every}
    together = by_hand("leaky", x, weights, h0, dy, dh, np.array([6, 2]), **options)
    alone = by_hand("leaky", x[1:, :2], weights, h0[1:], dy[1:, :2], dh[1:], **options)
    np.testing.assert_allclose(together["y"][1, :2], alone["y"][0], atol=1e-14)
    assert not together["y"][1, 2:].any() and not together["d_x"][1, 2:].any()
    for key in ("final_h", "d_h0"):
        np.testing.assert_allclose(together[key][1:], alone[key], atol=1e-13)
    np.testing.assert_allclose(together["d_x"][1, :2], alone["d_x"][0], atol=1e-13)


@pytest.mark.parametrize("skip", [0, 2])
def test_no_step_returns_the_initial_state(skip):
    x, weights, h0, dy, dh = problem(skip)
    none = by_hand("elman", x[:, :0], weights, h0, dy[:, :0], dh, skip=skip)
    assert none["y"].shape == (3, 0, 6) and none["d_W"].shape == (6, 4)
    ended = by_hand("elman", x, weights, h0, dy, dh, np.array([0, 5, 5]), skip=skip)
    for found, rows in ((none, slice(None)), (ended, slice(1))):
        np.testing.assert_array_equal(found["final_h"][rows], h0[rows])
        np.testing.assert_array_equal(found["d_h0"][rows], dh[rows])


# --- truncation -------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(steps=st.integers(1, 6), more=st.integers(0, 3), skip=st.sampled_from([0, 2, 4]))
def test_truncation_at_the_length_or_beyond_is_full_bptt(steps, more, skip):
    args = problem(skip, T=steps)
    full = by_hand("elman", *args, skip=skip)
    assert_agree(by_hand("elman", *args, skip=skip, every=steps + more), full, 0.0)


def test_a_loss_reaches_back_to_the_start_of_its_chunk_and_no_further():
    x, weights, h0, dy, dh = problem(T=9)
    dy[:, :8], dh = 0, 0 * dh
    d_x = by_hand("elman", x, weights, h0, dy, dh, every=4)["d_x"]
    assert d_x[:, 8].any() and not d_x[:, :8].any()
    dy = np.roll(dy, -1, axis=1)
    d_x = by_hand("elman", x, weights, h0, dy, dh, every=4)["d_x"]
    assert d_x[:, 4:8].all() and not d_x[:, :4].any() and not d_x[:, 8:].any()


@pytest.mark.parametrize("every", [None, 2, 3])
def test_truncation_does_not_change_the_outputs(every):
    args = problem(seed=4)
    found, full = by_hand("elman", *args, every=every), by_hand("elman", *args)
    np.testing.assert_array_equal(found["y"], full["y"])
    assert every is None or np.abs(found["d_U"] - full["d_U"]).max() > 1e-3


# --- a skip over k steps ----------------------------------------------------------------------


@pytest.mark.parametrize("skip", [2, 3, 7])
@pytest.mark.parametrize("name", NAMES)
def test_a_skip_by_hand_is_the_one_derived(name, skip):
    args = problem(skip)
    found = derived.gradients(partial(derived.rnn.skip, SPECS[name]), *named(*args))
    assert_agree(by_hand(name, *args, skip=skip), found)


@pytest.mark.parametrize("skip", [2, 3, 7])
@pytest.mark.parametrize(("kind", "name"), [("tanh", "elman"), ("relu", "relu")])
def test_a_skip_by_hand_is_the_torch_module(kind, name, skip):
    args = problem(skip, seed=1)
    layer = SkipRNN(4, 6, skip, nonlinearity=kind)
    assert_agree(by_hand(name, *args, skip=skip), by_autograd(layer, *args, **SKIP))


def test_a_skip_truncated_by_hand_is_torch_with_the_states_detached():
    args = problem(2, T=8)
    found = by_hand("elman", *args, skip=2, every=3)
    assert_agree(found, by_autograd(SkipRNN(4, 6, 2), *args, every=3, **SKIP))


def test_a_skip_whose_matrix_is_zero_is_no_skip():
    x, weights, h0, dy, dh = problem(3)
    weights["V"][:] = 0
    skipped = by_hand("elman", x, weights, h0, dy, dh, skip=3)
    del weights["V"]
    last = dh[:, -1].copy()
    dy[:, 2:4] += dh[:, :2]
    plain = by_hand("elman", x, weights, h0[:, -1], dy, last)
    for key in ("d_U", "d_W", "d_x"):
        np.testing.assert_allclose(skipped[key], plain[key], atol=1e-13)


# --- Jordan -----------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    output=st.sampled_from(OUTPUTS),
    decay=st.sampled_from([0.0, 0.5]),
    shape=st.tuples(*(st.integers(1, 4) for _ in range(5))),
    seed=st.integers(0, 99),
)
def test_jordan_by_hand_is_the_one_derived(output, decay, shape, seed):
    args = jordan_problem(*shape, seed=seed)
    specs = equations.ELMAN, equations.jordan_output(output, decay)
    found = derived.gradients(partial(derived.rnn.jordan, *specs), *named(*args, "s"))
    assert_agree(jordan_by_hand(*args, output, decay), found)


@pytest.mark.parametrize("every", [None, 1, 2, 9])
@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("output", OUTPUTS)
def test_jordan_by_hand_is_the_torch_module(output, decay, every):
    args = jordan_problem(seed=1)
    layer = Jordan(4, 6, 2, output=output, decay=decay)
    expected = by_autograd(layer, *args, every=every, state="s", **JORDAN)
    assert_agree(jordan_by_hand(*args, output, decay, every), expected)


def test_a_jordan_net_with_linear_outputs_is_an_elman_net_of_low_rank():
    x, w, s0, _, _ = jordan_problem()
    y, _, saved = reference.forward_jordan(x, w, s0)
    low = {"W": w["W"], "U": w["U"] @ w["Q"], "b": w["b"] + w["U"] @ w["c"]}
    start = np.linalg.lstsq(w["Q"], (s0 - w["c"]).T, rcond=None)[0].T
    h, _, _ = reference.forward(x, low, start)
    assert np.linalg.matrix_rank(low["U"]) == 2
    np.testing.assert_allclose(h, saved.h, atol=1e-13)
    np.testing.assert_allclose(h @ w["Q"].T + w["c"], y, atol=1e-13)


def test_jordan_without_a_step_returns_its_state():
    x, weights, s0, dy, ds = jordan_problem()
    found = jordan_by_hand(x[:, :0], weights, s0, dy[:, :0], ds)
    np.testing.assert_array_equal(found["final_s"], s0)
    np.testing.assert_array_equal(found["d_s0"], ds)


# --- torch modules ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [Jordan(2, 3, 2, output="sigmoid", decay=0.5), SkipRNN(2, 3, 2)],
    ids=["jordan", "skip"],
)
def test_gradcheck_in_float64(layer):
    x = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    layer = layer.double()
    assert torch.autograd.gradcheck(lambda x: layer(x)[0], x)


@pytest.mark.parametrize("layer", [Jordan(2, 3, 2, decay=0.5), SkipRNN(2, 3, 3)])
def test_a_sequence_may_be_read_in_pieces(layer):
    assert_read_in_pieces(layer, torch.randn(2, 7, 2))


@pytest.mark.parametrize(
    "make", [lambda b: Jordan(2, 3, 2, batch_first=b), lambda b: SkipRNN(2, 3, 2, batch_first=b)]
)
def test_time_may_come_first(make):
    first, second = make(True), make(False)
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 5, 2)
    torch.testing.assert_close(first(x)[0], second(x.transpose(0, 1))[0].transpose(0, 1))


# --- initialisation and clipping --------------------------------------------------------------


def test_an_orthogonal_matrix_keeps_lengths_and_an_identity_keeps_all():
    rng = np.random.default_rng(0)
    u = reference.initialize(rng, 3, 8, "orthogonal")["U"]
    np.testing.assert_allclose(u @ u.T, np.eye(8), atol=1e-13)
    kept = reference.initialize(rng, 3, 8, "identity")
    np.testing.assert_array_equal(kept["U"], np.eye(8))
    assert not kept["b"].any()
    with pytest.raises(ValueError, match="recurrent: expected"):
        reference.initialize(rng, 3, 8, "chrono")


def test_an_orthogonal_draw_prefers_no_direction():
    rng = np.random.default_rng(0)
    drawn = [reference.initialize(rng, 1, 3, "orthogonal")["U"] for _ in range(2000)]
    assert np.abs(np.mean(drawn, axis=0)).max() < 0.06


@settings(max_examples=30, deadline=None)
@given(size=st.floats(1e-6, 1e6), limit=st.sampled_from([1e-3, 1.0, 50.0]), seed=st.integers(0, 9))
def test_clipping_is_torchs(size, limit, seed):
    rng = np.random.default_rng(seed)
    gradients = {"W": size * rng.normal(size=(3, 4)), "b": size * rng.normal(size=3)}
    for clip in ("norm", "value"):
        owners = [torch.nn.Parameter(torch.tensor(g)) for g in gradients.values()]
        for owner in owners:
            owner.grad = owner.detach().clone()
        if clip == "norm":
            norm = torch.nn.utils.clip_grad_norm_(owners, limit)
            found, own = reference.clip_by_norm(gradients, limit)
            assert own == pytest.approx(float(norm), rel=1e-12)
        else:
            torch.nn.utils.clip_grad_value_(owners, limit)
            found = reference.clip_by_value(gradients, limit)
        for value, owner in zip(found.values(), owners, strict=True):
            np.testing.assert_allclose(value, owner.grad.numpy(), rtol=1e-10, atol=0)


def test_clipping_by_norm_keeps_the_direction_and_by_value_does_not():
    gradients = {"W": np.array([30.0, 0.3])}
    scaled, norm = reference.clip_by_norm(gradients, 1.0)
    assert norm == pytest.approx(30.0015, rel=1e-6)
    np.testing.assert_allclose(scaled["W"][0] / scaled["W"][1], 100.0)
    np.testing.assert_array_equal(reference.clip_by_value(gradients, 1.0)["W"], [1.0, 0.3])


def test_clipping_leaves_a_small_gradient_as_it_is():
    gradients = {"W": np.array([0.3, -0.2])}
    np.testing.assert_array_equal(reference.clip_by_norm(gradients, 1.0)[0]["W"], gradients["W"])
    np.testing.assert_array_equal(reference.clip_by_value(gradients, 1.0)["W"], gradients["W"])


def test_a_gradient_that_is_not_finite_is_not_clipped_silently():
    with pytest.raises(ValueError, match="gradients: expected a finite norm, got nan"):
        reference.clip_by_norm({"W": np.array([np.nan])}, 1.0)
    for clip in (reference.clip_by_norm, reference.clip_by_value):
        with pytest.raises(ValueError, match="limit: expected a positive number, got 0"):
            clip({"W": np.ones(1)}, 0.0)


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        *BAD_SEQUENCES,
        ({"skip": 2}, ValueError, "weights: expected .*V"),
        ({"skip": 1}, ValueError, "skip: expected 0"),
        ({"skip": -1}, ValueError, "skip: expected 0"),
    ],
)
def test_bad_input_is_named(change, error, says):
    x, weights, *_ = problem()
    with pytest.raises(error, match=says):
        reference.forward(**{"x": x, "weights": weights} | change)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"x": np.zeros((3, 5))}, ValueError, "x: expected 3 dimensions"),
        ({"s0": np.zeros((3, 3))}, ValueError, r"s0: expected \(3, 2\)"),
        ({"output": "relu"}, ValueError, "output: expected one of"),
        ({"weights": {}}, ValueError, "weights: expected"),
    ],
)
def test_bad_input_to_jordan_is_named(change, error, says):
    x, weights, *_ = jordan_problem()
    with pytest.raises(error, match=says):
        reference.forward_jordan(**{"x": x, "weights": weights} | change)


def test_a_chunk_has_at_least_one_step():
    _, _, saved = reference.forward(*problem()[:2])
    with pytest.raises(ValueError, match="every: expected at least 1"):
        reference.backward(np.zeros((3, 5, 6)), None, saved, 0)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Jordan(0, 3, 2), ValueError, "input_size: expected at least 1"),
        (lambda: Jordan(2, 3, 2, output="relu"), ValueError, "output: expected one of"),
        (lambda: Jordan(2, 3, 2, decay=1.0), ValueError, r"decay: expected a number in \[0, 1\)"),
        (lambda: SkipRNN(2, 3, 1), ValueError, "skip: expected at least 2 steps, got 1"),
        (lambda: SkipRNN(2, 3, 2, nonlinearity="gelu"), ValueError, "nonlinearity: expected"),
        (lambda: SkipRNN(2, 3, 2)(torch.zeros(2, 2)), ValueError, "input: expected 3 dimensions"),
        (lambda: SkipRNN(2, 3, 2)(torch.zeros(2, 0, 2)), ValueError, "input: expected at least"),
        (
            lambda: SkipRNN(2, 3, 2)(torch.zeros(1, 4, 2), torch.zeros(1, 3)),
            ValueError,
            r"initial_state: expected shape \(1, 2, 3\)",
        ),
        (lambda: Jordan(2, 3, 2)(torch.zeros(1, 4, 2), 0), TypeError, "initial_state: expected a"),
        (
            lambda: Jordan(2, 3, 2)(torch.zeros(1, 4, 2), torch.zeros(1, 2).double()),
            TypeError,
            "initial_state: expected torch.float32",
        ),
    ],
)
def test_bad_arguments_to_a_module_are_named(make, error, says):
    with pytest.raises(error, match=says):
        make()
