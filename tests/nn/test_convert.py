"""Converted weights compute the same: each layout is run by a small program of its own.

Imports gatelib.nn, gatelib.reference, NumPy, torch and Hypothesis.
Must not run a layout by another layout's program: the programs here are the witnesses.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib.equations import lstm as lstm_cells
from gatelib.equations import rnn as rnn_cells
from gatelib.nn import GRU, LSTM, RNN, Recurrent, convert
from gatelib.nn.layouts import LAYOUTS, LSTM_LAYOUTS, RNN_LAYOUTS
from gatelib.reference import gru as gru_reference
from gatelib.reference import lstm as lstm_reference
from gatelib.reference import rnn as rnn_reference

D, H = 3, 4
TABLES = {"gru": LAYOUTS, "lstm": LSTM_LAYOUTS, "rnn": RNN_LAYOUTS}
AFTER = sorted(k for k, v in LAYOUTS.items() if v.reset == "after")
BEFORE = sorted(k for k, v in LAYOUTS.items() if v.reset == "before")
GROUPS = [("gru", AFTER), ("gru", BEFORE)]
GROUPS += [("lstm", sorted(LSTM_LAYOUTS)), ("rnn", sorted(RNN_LAYOUTS))]
PAIRS = [(cell, a, b) for cell, group in GROUPS for a in group for b in group]
DEEP = ("torch", "torch_before", "recurrent", "keras", "keras_before", "onnx", "onnx_before")


def turn(cell, weights, source, target):
    return getattr(convert, cell)(weights, source, target)


# ---- one program for each published layout --------------------------------------------------


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def over_time(x, step, states, reverse=False):
    """Run a step over (B, T, D); outputs (B, T, H) stand where their input stood."""
    ys = [None] * x.shape[1]
    order = range(x.shape[1])
    for t in reversed(order) if reverse else order:
        states = step(x[:, t], states)
        ys[t] = states[0]
    return np.stack(ys, 1)


def keras_step(cell, after, weights):
    """keras.layers.GRU, LSTM and SimpleRNN, from their documentation."""
    kernel, recurrent = weights["kernel"], weights["recurrent_kernel"]
    bias = weights.get("bias", np.zeros(kernel.shape[1]))

    def gru(x, states):
        (h,) = states
        first, second = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
        x_z, x_r, x_h = np.split(x @ kernel + first, 3, axis=1)
        h_z, h_r, h_h = np.split(h @ recurrent + second, 3, axis=1)
        z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
        inner = r * h_h if after else (r * h) @ recurrent[:, 2 * h.shape[1] :]
        return (z * h + (1 - z) * np.tanh(x_h + inner),)

    def lstm(x, states):
        h, c = states
        i, f, new, o = np.split(x @ kernel + h @ recurrent + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(new)
        return sigmoid(o) * np.tanh(c), c

    def rnn(x, states):
        return (np.tanh(x @ kernel + bias + states[0] @ recurrent),)

    return {"gru": gru, "lstm": lstm, "rnn": rnn}[cell]


def onnx_step(cell, after, w, r, b):
    """ONNX's operators GRU, LSTM and RNN, from their equations; b is [Wb, Rb]."""
    b = np.zeros(2 * len(w)) if b is None else b
    count = {"gru": 3, "lstm": 4, "rnn": 1}[cell]
    w, r = np.split(w, count), np.split(r, count)
    wb, rb = np.split(b[: len(b) // 2], count), np.split(b[len(b) // 2 :], count)

    def gate(k, x, h):
        return x @ w[k].T + h @ r[k].T + wb[k] + rb[k]

    def gru(x, states):
        (h,) = states
        z, reset = sigmoid(gate(0, x, h)), sigmoid(gate(1, x, h))
        inner = reset * (h @ r[2].T + rb[2]) if after else (reset * h) @ r[2].T + rb[2]
        hidden = np.tanh(x @ w[2].T + inner + wb[2])
        return ((1 - z) * hidden + z * h,)

    def lstm(x, states):
        h, c = states
        i, o, f = (sigmoid(gate(k, x, h)) for k in range(3))
        c = f * c + i * np.tanh(gate(3, x, h))
        return o * np.tanh(c), c

    def rnn(x, states):
        return (np.tanh(gate(0, x, states[0])),)

    return {"gru": gru, "lstm": lstm, "rnn": rnn}[cell]


def starts(cell, batch, size):
    return tuple(np.zeros((batch, size)) for _ in range(2 if cell == "lstm" else 1))


def by_keras(cell, layout, layers, x):
    for own in layers if isinstance(layers, list) else [layers]:
        ways = []
        for begin in ("", "backward_"):
            weights = {
                k: own[begin + k]
                for k in ("kernel", "recurrent_kernel", "bias")
                if begin + k in own
            }
            if weights:
                size = len(weights["recurrent_kernel"])
                step = keras_step(cell, layout == "keras", weights)
                ways.append(over_time(x, step, starts(cell, len(x), size), begin != ""))
        x = np.concatenate(ways, 2)
    return x


def by_onnx(cell, layout, layers, x):
    for own in layers if isinstance(layers, list) else [layers]:
        ways = []
        for way in range(len(own["W"])):
            b = own["B"][way] if "B" in own else None
            step = onnx_step(cell, layout == "onnx", own["W"][way], own["R"][way], b)
            start = starts(cell, len(x), own["R"].shape[2])
            ways.append(over_time(x, step, start, way == 1))
        x = np.concatenate(ways, 2)
    return x


def by_torch(cell, layout, state, x):
    """torch's own layer, gatelib's where torch has none, or a Recurrent, with this checkpoint."""
    hidden = state["weight_hh_l0"].shape[1]
    options = {
        "num_layers": 1 + max(int(k.split("_l")[1][0]) for k in state),
        "bidirectional": any("reverse" in k for k in state),
        "bias": any("bias" in k for k in state),
        "batch_first": True,
        "dtype": torch.float64,
    }
    make = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM, "rnn": torch.nn.RNN}[cell]
    if layout == "torch_before":
        make = partial(GRU, reset_after=False)
    if layout == "recurrent":
        spec = {"lstm": lstm_cells.LSTM, "rnn": rnn_cells.ELMAN}[cell]
        make = partial(Recurrent, spec)
    layer = make(x.shape[2], hidden, **options)
    layer.load_state_dict({k: torch.as_tensor(v) for k, v in state.items()})
    return layer(torch.tensor(x))[0].detach().numpy()


def by_reference(cell, layout, weights, x):
    weights = {"b": np.zeros(len(weights["W"]))} | weights
    if cell == "lstm":
        return lstm_reference.forward(x, weights)[0]
    if cell == "rnn":
        return rnn_reference.forward(x, weights)[0]
    if layout in ("gru", "cho_v1"):
        weights = {"b_u": np.zeros_like(weights["b"])} | weights
    return gru_reference.forward(x, weights, variant="gru" if layout == "cho_v1" else layout)[0]


def outputs(cell, layout, weights, x):
    """What a layer with these weights computes, by the layout's own program."""
    if layout.startswith("keras"):
        return by_keras(cell, layout, weights, x)
    if layout.startswith("onnx"):
        return by_onnx(cell, layout, weights, x)
    if layout.startswith("torch") or layout == "recurrent":
        return by_torch(cell, layout, weights, x)
    return by_reference(cell, layout, weights, x)


# ---- laws -----------------------------------------------------------------------------------


def drawn(cell, layout, seed=0, layers=1, ways=1, bias=True, one_bias=False):
    """Random weights in a layout, drawn as torch's state_dict."""
    before = TABLES[cell][layout].reset == "before"
    make = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM, "rnn": torch.nn.RNN}[cell]
    torch.manual_seed(seed)
    layer = make(D, H, layers, bias=bias, bidirectional=ways == 2, dtype=torch.float64)
    state = {k: v + 0.3 * torch.randn_like(v) for k, v in layer.state_dict().items()}
    if one_bias:
        state |= {k: torch.zeros_like(v) for k, v in state.items() if k.startswith("bias_hh")}
    return turn(cell, state, "torch_before" if before else "torch", layout)


def sequences(seed=1):
    return np.random.default_rng(seed).normal(size=(2, 5, D))


def assert_same_weights(found, expected):
    if isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_same_weights(one, other)
        return
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(value))


def turned(cell, weights, source, target):
    """The weights in the other layout, in which they compute the same."""
    there = turn(cell, weights, source, target)
    expected = outputs(cell, source, weights, sequences())
    np.testing.assert_allclose(outputs(cell, target, there, sequences()), expected, atol=1e-13)
    return there


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("cell", "source", "target"), PAIRS)
def test_converted_weights_compute_the_same_and_return_to_the_bit(cell, source, target, bias):
    weights = drawn(cell, source, bias=bias, one_bias=True)
    there = turned(cell, weights, source, target)
    assert_same_weights(turn(cell, there, target, source), weights)


TWO = [(c, a, b) for c, a, b in PAIRS if all(TABLES[c][k].biases == 2 for k in (a, b))]


@pytest.mark.parametrize(("cell", "source", "target"), TWO)
def test_two_biases_stay_two(cell, source, target):
    weights = drawn(cell, source)
    there = turned(cell, weights, source, target)
    assert_same_weights(turn(cell, there, target, source), weights)


SINGLE = [
    ("gru", "torch_before", "chung"),
    ("gru", "onnx_before", "keras_before"),
    *(("lstm", "torch", one) for one in ("recurrent", "keras", "reference")),
    ("lstm", "onnx", "keras"),
    ("rnn", "torch", "recurrent"),
    ("rnn", "onnx", "keras"),
]


@pytest.mark.parametrize(("cell", "two", "one"), SINGLE)
def test_two_biases_of_which_the_sum_acts_become_one_and_return_as_their_sum_and_0(cell, two, one):
    weights = drawn(cell, two)
    there = turned(cell, weights, two, one)
    plain = "torch_before" if cell == "gru" else "torch"
    before, after = turn(cell, weights, two, plain), turn(cell, there, one, plain)
    total = before["bias_ih_l0"] + before["bias_hh_l0"]
    assert torch.equal(after["bias_ih_l0"], total) and not after["bias_hh_l0"].any()


@settings(max_examples=80, deadline=None)
@given(
    pair=st.sampled_from([p for p in PAIRS if p[1] in DEEP and p[2] in DEEP]),
    layers=st.integers(1, 3),
    ways=st.integers(1, 2),
    bias=st.booleans(),
    seed=st.integers(0, 999),
)
def test_any_number_of_layers_and_directions_has_a_map(pair, layers, ways, bias, seed):
    cell, source, target = pair
    weights = drawn(cell, source, seed, layers, ways, bias, one_bias=True)
    there = turn(cell, weights, source, target)
    x = sequences(seed)
    expected = outputs(cell, source, weights, x)
    np.testing.assert_allclose(outputs(cell, target, there, x), expected, atol=1e-12)
    assert_same_weights(turn(cell, there, target, source), weights)


def test_blocks_stand_where_each_library_puts_them():
    """Numbers that name their gate: i 1, f 2, g 3, o 4; the order of each library by hand."""
    state = {k: torch.zeros(v.shape) for k, v in torch.nn.LSTM(1, 1).state_dict().items()}
    state["weight_ih_l0"][:, 0] = torch.tensor([1.0, 2, 3, 4])
    state["bias_hh_l0"][:] = torch.tensor([10.0, 20, 30, 40])
    keras, onnx = (convert.lstm(state, "torch", k) for k in ("keras", "onnx"))
    assert keras["kernel"].tolist() == [[1, 2, 3, 4]] and keras["bias"].tolist() == [10, 20, 30, 40]
    assert onnx["W"].tolist() == [[[1], [4], [2], [3]]]
    assert onnx["B"].tolist() == [[0, 0, 0, 0, 10, 40, 20, 30]]


def test_widths_may_differ_between_the_layers_of_a_list_but_not_of_a_state_dict():
    layers = [drawn("lstm", "keras"), drawn("lstm", "keras", 1)]
    layers[1] = {"kernel": np.ones((H, 8)), "recurrent_kernel": np.ones((2, 8)), "bias": np.ones(8)}
    found = convert.lstm(layers, "keras", "onnx")
    assert [one["R"].shape for one in found] == [(1, 16, 4), (1, 8, 2)]
    with pytest.raises(ValueError, match=r"weights\[1\]: expected the directions, hidden size 4"):
        convert.lstm(layers, "keras", "torch")


def test_torch_gets_tensors_and_the_others_arrays_that_share_no_memory():
    weights = drawn("gru", "gru")
    tensors = convert.gru(weights, "gru", "torch")
    assert all(isinstance(v, torch.Tensor) for v in tensors.values())
    again = convert.gru(tensors, "torch", "gru")
    assert all(isinstance(v, np.ndarray) for v in again.values())
    for value in again.values():
        value += 1
    np.testing.assert_array_equal(tensors["bias_hh_l0"], weights["b_u"])
    half = {k: v.astype("f4") for k, v in weights.items()}
    assert convert.gru(half, "gru", "keras")["bias"].dtype == np.float32


@pytest.mark.parametrize("layout", ["keras", "onnx", "reference", "recurrent"])
def test_nothing_is_written_into_what_was_given(layout):
    weights = drawn("lstm", "torch")
    kept = {k: v.clone() for k, v in weights.items()}
    found = convert.lstm(weights, "torch", layout)
    for value in found.values():
        value += 1
    assert_same_weights(weights, kept)


@pytest.mark.parametrize(("source", "target"), [(a, b) for a in AFTER for b in BEFORE])
def test_before_and_after_have_no_map_and_the_reason_is_said(source, target):
    for one, other in ((source, target), (target, source)):
        with pytest.raises(ValueError, match="scales the columns of U and r\\*\\(U h\\) its rows"):
            convert.gru(drawn("gru", one, one_bias=True), one, other)


def test_a_bias_behind_the_reset_gate_is_not_lost():
    with pytest.raises(ValueError, match="'cho_v1' has one bias"):
        convert.gru(drawn("gru", "torch"), "torch", "cho_v1")


# ---- a checkpoint of torch in a Recurrent -----------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("kind", [torch.nn.LSTM, LSTM])
def test_a_torch_lstm_checkpoint_loads_into_a_recurrent_lstm(kind, assign, strict):
    peer = kind(D, H, 2, bidirectional=True, batch_first=True)
    layer = Recurrent(lstm_cells.LSTM, D, H, 2, bidirectional=True)
    state = peer.state_dict()
    kept = {k: v.clone() for k, v in state.items()}
    found = layer.load_state_dict(state, strict=strict, assign=assign)
    x = torch.randn(2, 5, D)
    torch.testing.assert_close(layer(x)[0], peer(x)[0])
    assert found.missing_keys == [] and found.unexpected_keys == []
    assert_same_weights(state, kept)
    model = torch.nn.ModuleDict({"inside": layer})
    model.load_state_dict({f"inside.{k}": v for k, v in state.items()}, strict=strict)
    torch.testing.assert_close(layer(x)[0], peer(x)[0])


def test_a_torch_rnn_checkpoint_loads_into_a_recurrent_rnn():
    peer, layer = RNN(D, H, batch_first=True), Recurrent(rnn_cells.ELMAN, D, H)
    layer.load_state_dict(peer.state_dict(), strict=False)
    x = torch.randn(2, 5, D)
    torch.testing.assert_close(layer(x)[0], peer(x)[0])


@pytest.mark.parametrize(
    ("layer", "state", "says"),
    [
        (
            Recurrent(lstm_cells.CIFG, D, H),
            torch.nn.GRU(D, H).state_dict(),
            "bias_hh_l0: expected one bias, `bias_ih_l0`, for a cell with the gates f, g, o",
        ),
        (
            Recurrent(lstm_cells.LSTM, D, H, bias=False),
            torch.nn.LSTM(D, H).state_dict(),
            "bias_hh_l0: expected no bias, since the layer was made with bias=False",
        ),
        (
            Recurrent(lstm_cells.LSTM, D, H),
            {k: v for k, v in torch.nn.LSTM(D, H).state_dict().items() if k != "bias_ih_l0"},
            "bias_hh_l0: expected `bias_ih_l0` beside it",
        ),
    ],
)
def test_a_second_bias_that_cannot_be_added_is_refused_with_the_reason(layer, state, says):
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=says):
            layer.load_state_dict(state, strict=strict)


# ---- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"source": "jax"}, ValueError, "source: expected one of"),
        ({"target": "jax"}, ValueError, "target: expected one of"),
        ({"target": ["torch"]}, ValueError, "target: expected one of"),
        ({"source": "keras"}, ValueError, "weights: expected .'kernel'"),
        ({"W": np.zeros((9, 3))}, ValueError, r"weights\['W'\]: expected shape \(12, 3\)"),
        ({"U": np.zeros(3)}, ValueError, r"weights\['U'\]: expected a matrix, got shape \(3,\)"),
        ({"b": np.zeros(12, "f4")}, TypeError, r"weights\['b'\]: expected one floating dtype"),
        ({"b": [0.0] * 12}, TypeError, r"weights\['b'\]: expected a tensor or an array, got list"),
        ({"b_extra": np.zeros(12)}, ValueError, "weights: expected .* got .*b_extra"),
    ],
)
def test_bad_weights_are_named(change, error, says):
    options = {k: change[k] for k in ("source", "target") if k in change}
    weights = drawn("gru", "gru") | {k: v for k, v in change.items() if k not in options}
    with pytest.raises(error, match=says):
        convert.gru(weights, **({"source": "gru", "target": "torch"} | options))


PROJECTED = torch.nn.LSTM(D, H, proj_size=2).state_dict()
ONNX = drawn("lstm", "onnx")


@pytest.mark.parametrize(
    ("weights", "source", "error", "says"),
    [
        (PROJECTED, "torch", ValueError, "weights: expected .* got .*weight_hr_l0"),
        (ONNX | {"P": np.zeros((1, 12))}, "onnx", ValueError, "weights: expected .* got .*'P'"),
        (
            ONNX | {"B": np.zeros((1, 31))},
            "onnx",
            ValueError,
            r"\['B'\]: expected shape \(16,\) for",
        ),
        (ONNX | {"B": np.zeros((2, 32))}, "onnx", ValueError, "1 or 2 directions on the first"),
        (ONNX | {"W": np.zeros((1, 16))}, "onnx", ValueError, r"\['W'\]: expected a matrix"),
        ({k: v[0] for k, v in ONNX.items()}, "onnx", ValueError, "directions on the first axis"),
        ([], "keras", TypeError, "weights: expected a mapping, or a list"),
        (3, "keras", TypeError, "weights: expected a mapping, or a list with one .* got int"),
        ([3], "keras", TypeError, r"weights\[0\]: expected a mapping of names, got int"),
        ([drawn("lstm", "keras")], "torch", TypeError, "weights: expected a mapping of names"),
        ({"weight_ih_l7": torch.ones(4, 3)}, "torch", ValueError, "weights: expected"),
        ({}, "torch", ValueError, "weights: expected"),
        (
            {k: v.bfloat16() for k, v in drawn("lstm", "torch").items()},
            "torch",
            TypeError,
            "weights: expected a dtype that NumPy has, got torch.bfloat16",
        ),
    ],
)
def test_bad_weights_of_an_lstm_are_named(weights, source, error, says):
    with pytest.raises(error, match=says):
        convert.lstm(weights, source, "keras" if source == "torch" else "onnx")
