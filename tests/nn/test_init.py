"""How layers start: gates by their biases, memories by chrono, recurrent matrices."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gatelib.nn import (
    GRU,
    LSTM,
    RNN,
    GRUCell,
    Highway,
    LSTMCell,
    RecurrentHighway,
    RNNCell,
    init,
)
from gatelib.nn.init import gate_rows
from tests.nn.drop_in import D, H

ORDERS = {LSTM: "ifgo", LSTMCell: "ifgo", GRU: "rzn", GRUCell: "rzn"}
KEEPS = {LSTM: "f", LSTMCell: "f", GRU: "z", GRUCell: "z"}
every_gated = pytest.mark.parametrize("kind", ORDERS, ids=lambda kind: kind.__name__)


def make(kind):
    return kind(D, H) if issubclass(kind, nn.RNNCellBase) else kind(D, H, 2, bidirectional=True)


def biases_of(layer):
    """The pairs of biases of a layer or cell, by layer and direction."""
    if isinstance(layer, nn.RNNCellBase):
        return [(layer.bias_ih.detach(), layer.bias_hh.detach())]
    return [tuple(b.detach() for b in weights[2:4]) for weights in layer.all_weights]


# --- one gate -------------------------------------------------------------------------------


@every_gated
def test_a_gates_bias_is_set_once_and_the_rest_is_left_as_torch_drew_it(kind):
    order, keep = ORDERS[kind], KEEPS[kind]
    torch.manual_seed(5)
    theirs = make(getattr(nn, kind.__name__)).state_dict() if kind in (LSTM, GRU) else None
    torch.manual_seed(5)
    drawn = {name: value.clone() for name, value in make(kind).state_dict().items()}
    assert theirs is None or all(torch.equal(drawn[name], theirs[name]) for name in theirs)
    torch.manual_seed(5)
    layer = init.forget_bias_(make(kind), 1.5)
    for b_ih, b_hh in biases_of(layer):
        assert torch.equal(gate_rows(b_ih, keep, order), torch.full((H,), 1.5))
        assert torch.equal(gate_rows(b_hh, keep, order), torch.zeros(H))
    for name, value in layer.state_dict().items():
        for gate in order:
            same = torch.equal(gate_rows(value, gate, order), gate_rows(drawn[name], gate, order))
            assert same == ("weight" in name or gate != keep), (name, gate)


@settings(max_examples=30, deadline=None)
@given(gate=st.sampled_from("ifgo"), bias=st.floats(-5, 5, width=32))
def test_any_gate_opens_and_the_others_stay(gate, bias):
    layer = LSTM(D, H, 2)
    before = [sum(pair) for pair in biases_of(layer)]
    assert init.open_(layer, gate, bias) is layer
    for pair, old in zip(biases_of(layer), before, strict=True):
        for other in "ifgo":
            expected = torch.full((H,), bias) if other == gate else gate_rows(old, other)
            assert torch.equal(gate_rows(sum(pair), other), expected)


def test_a_forget_gate_opens_to_the_sigmoid_of_its_bias():
    layer = init.open_(init.forget_bias_(LSTM(D, H), 2.0), "i", -1e9)
    c_0 = torch.ones(1, 1, H)
    _, (_, c) = layer(torch.zeros(1, 1, D), (torch.zeros_like(c_0), c_0))
    torch.testing.assert_close(c, torch.full_like(c, 1 / (1 + math.exp(-2.0))))


@pytest.mark.parametrize("kind", [Highway, lambda *sizes: RecurrentHighway(D, *sizes)])
def test_the_gates_over_depth_open_too(kind):
    layer = init.open_(kind(H, 3), "t", -4.0)
    assert torch.equal(layer.bias[:, H : 2 * H], torch.full((3, H), -4.0))
    with pytest.raises(ValueError, match="gate: expected one of t, got 'c'"):
        init.open_(layer, "c", 1.0)


def test_a_carry_gate_of_its_own_opens_and_the_transform_stays():
    layer = Highway(H, 2, coupled=False)
    before = layer.bias.detach().clone()
    init.open_(layer, "c", 3.0)
    assert torch.equal(layer.bias[:, 2 * H :], torch.full((2, H), 3.0))
    assert torch.equal(layer.bias[:, : 2 * H], before[:, : 2 * H])


class Own(nn.Module):
    """A reader's layer with a single gate, packed by itself."""

    memory_gates = ("k", None)

    def __init__(self):
        super().__init__()
        self.b, self.more = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))

    def gate_biases(self, gate):
        assert gate == "k"
        return [(self.b, self.more)]


def test_a_layer_that_says_where_its_biases_are_is_served():
    layer = init.open_(Own(), "k", 3.0)
    assert torch.equal(layer.b, torch.full((4,), 3.0)) and torch.equal(layer.more, torch.zeros(4))
    maker = torch.Generator().manual_seed(4)
    init.chrono_(layer, 50, maker)
    maker.manual_seed(4)
    assert torch.equal(layer.b, torch.empty(4).uniform_(1, 49, generator=maker).log())
    assert torch.equal(layer.more, torch.zeros(4))


def test_low_precision_and_gradients_are_left_as_they_were():
    layer = init.forget_bias_(LSTM(D, H, dtype=torch.bfloat16), 1.1)
    assert layer.bias_ih_l0.requires_grad and layer.bias_ih_l0.is_leaf
    found = gate_rows(layer.bias_ih_l0, "f")
    assert torch.equal(found, torch.full((H,), 1.1, dtype=torch.bfloat16))


# --- chrono ---------------------------------------------------------------------------------


@pytest.mark.parametrize("t_max", [3, 200])
def test_chrono_spreads_memories_up_to_t_max(t_max):
    layer = init.chrono_(LSTM(D, 500, 2, bidirectional=True), t_max)
    for b_ih, b_hh in biases_of(layer):
        forget = gate_rows(b_ih, "f") + gate_rows(b_hh, "f")
        memory = 1 / (1 - torch.sigmoid(forget.double()))
        assert memory.min() > 1.99
        assert memory.max() < t_max + 0.01
        assert abs(memory.mean() - (2 + t_max) / 2) < 0.1 * t_max
        assert torch.equal(gate_rows(b_ih, "i") + gate_rows(b_hh, "i"), -forget)


@pytest.mark.parametrize("t_max", [3, 200])
def test_chrono_gives_a_gru_the_memory_that_is_measured(t_max):
    """Without input n is 0 and h decays by z: 1 / (1 - z) is the memory, as measured here."""
    layer = init.chrono_(GRU(1, 500, dtype=torch.float64), t_max)
    with torch.no_grad():
        for name, value in layer.named_parameters():
            (value if "weight" in name else gate_rows(value, "n", "rzn")).zero_()
    h_0 = torch.ones(1, 1, 500, dtype=torch.float64)
    y, _ = layer(torch.zeros(1, 1, 1, dtype=torch.float64), h_0)
    memory = 1 / (1 - y)
    assert memory.min() > 1.99
    assert memory.max() < t_max + 0.01
    assert abs(memory.mean() - (2 + t_max) / 2) < 0.1 * t_max


@every_gated
def test_chrono_draws_what_the_constructors_flag_drew_under_the_same_seed(kind):
    """That was torch's own numbers, then log U(1, T - 1) for each layer and direction."""
    order, keep = ORDERS[kind], KEEPS[kind]
    torch.manual_seed(7)
    layer = init.chrono_(make(kind), 20)
    following = torch.rand(3)
    torch.manual_seed(7)
    for b_ih, b_hh in biases_of(make(kind)):
        gate_rows(b_hh, keep, order).zero_()
        gate_rows(b_ih, keep, order).uniform_(1.0, 19.0).log_()
        if kind in (LSTM, LSTMCell):
            gate_rows(b_ih, "i").copy_(-gate_rows(b_ih, "f"))
            gate_rows(b_hh, "i").zero_()
        expected = (b_ih, b_hh)
    assert torch.equal(torch.rand(3), following)
    assert all(map(torch.equal, biases_of(layer)[-1], expected))


def test_chrono_draws_the_numbers_that_were_recorded_before_it_was_a_function():
    torch.manual_seed(7)
    layer = init.chrono_(LSTM(3, 2, 2, bidirectional=True), 20)
    recorded = torch.tensor([2.0221, 1.9466])
    assert torch.allclose(gate_rows(layer.bias_ih_l0, "f"), recorded, atol=5e-5)
    torch.manual_seed(7)
    layer = init.chrono_(GRU(3, 2, 2, bidirectional=True), 20)
    recorded = torch.tensor([1.4098, 2.7242])
    assert torch.allclose(gate_rows(layer.bias_ih_l1_reverse, "z", "rzn"), recorded, atol=5e-5)


def test_reset_parameters_draws_anew_without_what_was_asked():
    for layer in (init.forget_bias_(LSTM(D, H), 1.0), init.chrono_(LSTM(D, H), 30)):
        torch.manual_seed(3)
        layer.reset_parameters()
        torch.manual_seed(3)
        theirs = nn.LSTM(D, H).state_dict()
        assert all(torch.equal(v, theirs[name]) for name, v in layer.state_dict().items())


# --- recurrent matrices ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RNN, RNNCell])
def test_an_identity_matrix_holds_a_positive_state_in_a_relu_network(kind):
    layer = init.recurrent_(kind(D, H, bias=False, nonlinearity="relu"), "identity")
    h = torch.rand(1, H)
    x = torch.zeros(1, D)
    end = layer(x[None].expand(50, 1, D), h[None])[1][0] if kind is RNN else layer(x, h)
    assert torch.equal(end, h)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_layers_recurrent_matrix_is_orthogonal_times_scale(dtype):
    layer = init.recurrent_(RNN(D, H, 2, bidirectional=True, dtype=dtype), "orthogonal", 0.5)
    seen = [weights[1] for weights in layer.all_weights]
    assert len(seen) == 4
    for weight in seen:
        product = weight.double() @ weight.double().T
        error = (product - 0.25 * torch.eye(H)).abs().max()
        assert error < 8 * torch.finfo(dtype).eps
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("kind", ["orthogonal", "identity"])
def test_only_the_recurrent_matrix_differs_from_what_torch_drew(kind):
    torch.manual_seed(5)
    ours = init.recurrent_(RNN(D, H, 2), kind).state_dict()
    torch.manual_seed(5)
    theirs = nn.RNN(D, H, 2).state_dict()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]) == ("weight_hh" not in name), name


def test_orthogonal_draws_what_the_constructors_option_drew_under_the_same_seed():
    torch.manual_seed(7)
    layer = init.recurrent_(RNN(D, H, 2), "orthogonal", 0.5)
    torch.manual_seed(7)
    nn.RNN(D, H, 2)
    for weight in (layer.weight_hh_l0, layer.weight_hh_l1):
        assert torch.equal(weight, nn.init.orthogonal_(torch.empty(H, H)) * 0.5)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from([LSTM, GRU, RNN, nn.LSTM]),
    size=st.integers(1, 6),
    scale=st.floats(-3, 3, width=32),
)
def test_each_block_of_stacked_matrices_starts_alike(kind, size, scale):
    layer = init.recurrent_(kind(D, size), "identity", scale)
    blocks = layer.weight_hh_l0.size(0) // size
    assert torch.equal(layer.weight_hh_l0, (torch.eye(size) * scale).repeat(blocks, 1))
    drawn = []
    for _ in range(2):
        init.recurrent_(layer, "orthogonal", scale, torch.Generator().manual_seed(3))
        drawn.append(layer.weight_hh_l0.detach().clone())
    assert torch.equal(*drawn)
    singular = torch.linalg.svdvals(drawn[0].view(blocks, size, size))
    torch.testing.assert_close(singular, torch.full_like(singular, abs(scale)))


def test_a_recurrent_highways_matrices_are_set_layer_by_layer():
    layer = init.recurrent_(RecurrentHighway(D, H, 2, coupled=False), "identity")
    assert torch.equal(layer.weight_hh, torch.eye(H).repeat(2, 3, 1))


# --- errors ---------------------------------------------------------------------------------

BAD = {
    "unknown gate": (lambda: gate_rows(torch.zeros(8), "z"), ValueError, "gate: .*'z'"),
    "repeated gate": (lambda: gate_rows(torch.zeros(8), "f", "ffio"), ValueError, "gate: "),
    "uneven rows": (lambda: gate_rows(torch.zeros(9), "f"), ValueError, r"packed: .*4.*\(9,\)"),
    "scalar": (lambda: gate_rows(torch.zeros(()), "f"), ValueError, "packed: "),
    "no tensor": (lambda: gate_rows([0.0] * 8, "f"), TypeError, "packed: .*list"),
    "no such gate": (
        lambda: init.open_(LSTM(D, H), "z", 1.0),
        ValueError,
        "gate: expected one of i, f, g, o, got 'z' for LSTM",
    ),
    "two letters": (lambda: init.open_(LSTM(D, H), "if", 1.0), ValueError, "gate: .*'if'"),
    "no gates": (
        lambda: init.chrono_(RNN(D, H), 9),
        ValueError,
        "gate: expected a layer with gates, got 'f' for RNN",
    ),
    "no gated layer": (
        lambda: init.forget_bias_(nn.Linear(D, H), 1.0),
        TypeError,
        "layer: expected a layer that has gate_biases.*got Linear",
    ),
    "no layer": (lambda: init.open_([1.0], "f", 1.0), TypeError, "layer: .*got list"),
    "no bias": (lambda: init.chrono_(GRU(D, H, bias=False), 9), ValueError, "bias: expected True"),
    "text": (lambda: init.forget_bias_(LSTM(D, H), "1"), TypeError, "^value: .*str"),
    "bool": (lambda: init.open_(LSTM(D, H), "f", True), TypeError, "^bias: .*bool"),
    "infinite": (lambda: init.open_(LSTM(D, H), "f", math.inf), ValueError, "^bias: .*inf"),
    "short memory": (lambda: init.chrono_(LSTM(D, H), 1), ValueError, "^t_max: .*2 steps, got 1"),
    "half a step": (lambda: init.chrono_(LSTM(D, H), 10.5), TypeError, "^t_max: .*float"),
    "kind": (
        lambda: init.recurrent_(RNN(D, H), "eye"),
        ValueError,
        "kind: expected 'orthogonal' or 'identity', got 'eye'",
    ),
    "infinite scale": (
        lambda: init.recurrent_(RNN(D, H), "identity", math.inf),
        ValueError,
        "scale: .*inf",
    ),
    "scale as text": (lambda: init.recurrent_(RNN(D, H), "identity", "1"), TypeError, "scale: "),
    "no matrix": (lambda: init.recurrent_(nn.Linear(3, 3), "identity"), ValueError, "layer: "),
    "no module": (lambda: init.recurrent_(torch.eye(3), "identity"), TypeError, "layer: .*Tensor"),
    "uneven blocks": (
        lambda: init.recurrent_(LSTM(D, 7, proj_size=3), "identity"),
        ValueError,
        r"weight_hh: expected \(blocks \* H, H\), got shape \(28, 3\)",
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
def test_bad_initialisations_say_what_is_wrong(case):
    call, kind, message = case
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("kind", [LSTM, LSTMCell, GRU, GRUCell, RNN, RNNCell])
@pytest.mark.parametrize("flag", ["forget_bias", "chrono", "update_bias", "initialization"])
def test_constructors_have_no_flags_for_how_a_layer_starts(kind, flag):
    with pytest.raises(TypeError, match=flag):
        kind(D, H, **{flag: None})
