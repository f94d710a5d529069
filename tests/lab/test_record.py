"""What record() says about hidden gates is what a loop over single steps computes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from gatelib.equations.lstm import PEEPHOLE
from gatelib.lab.record import record
from gatelib.nn import GRU, RNN, GRUCell, Recurrent, RNNCell


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def weights(layer, suffix=""):
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    found = [getattr(layer, name + suffix, None) for name in names]
    rows = len(found[0])
    return [np.zeros(rows) if w is None else w.detach().double().numpy() for w in found]


def lstm_by_hand(layer, x, suffix="", h=None, c=None, project=None):
    """x (T, D) of one sequence; a loop over steps in NumPy. Returns {gate: (T, H)}."""
    w, u, b, d = weights(layer, suffix)
    size = len(w) // 4
    h = np.zeros(u.shape[1]) if h is None else h
    c = np.zeros(size) if c is None else c
    seen = {name: [] for name in "ifgoch"}
    for row in x:
        a = w @ row + u @ h + b + d
        i, f, g, o = (a[k * size : (k + 1) * size] for k in range(4))
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        c = f * c + i * g
        h = o * np.tanh(c) if project is None else project @ (o * np.tanh(c))
        for name, value in zip("ifgoch", (i, f, g, o, c, h), strict=True):
            seen[name].append(value)
    return {name: np.stack(values) for name, values in seen.items()}


def gru_by_hand(layer, x, suffix="", h=None):
    w, u, b, d = weights(layer, suffix)
    size = len(w) // 3
    h = np.zeros(size) if h is None else h
    seen = {name: [] for name in "rznh"}
    for row in x:
        from_x, from_h = w @ row + b, u @ h + d
        r = sigmoid(from_x[:size] + from_h[:size])
        z = sigmoid(from_x[size : 2 * size] + from_h[size : 2 * size])
        past = r * from_h[2 * size :]
        if not getattr(layer, "reset_after", True):
            past = u[2 * size :] @ (r * h) + d[2 * size :]
        n = np.tanh(from_x[2 * size :] + past)
        h = (1 - z) * n + z * h
        for name, value in zip("rznh", (r, z, n, h), strict=True):
            seen[name].append(value)
    return {name: np.stack(values) for name, values in seen.items()}


BY_HAND = {nn.LSTM: lstm_by_hand, nn.GRU: gru_by_hand}


def assert_same(found, expected, tolerance=1e-10):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=tolerance, rtol=0, err_msg=name)


def stacked(rows):
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@settings(deadline=None, max_examples=25)
@given(
    size=st.tuples(*[st.integers(1, 5)] * 4),
    bias=st.booleans(),
    batch_first=st.booleans(),
    start=st.booleans(),
)
def test_gates_are_those_of_a_loop_over_steps(kind, size, bias, batch_first, start):
    batch, time, width, hidden = size
    layer = kind(width, hidden, bias=bias, batch_first=batch_first).double()
    x = torch.randn(batch, time, width, dtype=torch.float64)
    given = [torch.randn(1, batch, hidden, dtype=torch.float64) for _ in range(2)]
    states = () if not start else ((tuple(given) if kind is nn.LSTM else given[0]),)
    with record(layer) as seen:
        layer(x if batch_first else x.transpose(0, 1), *states)
    parts = [
        [s[0, row].numpy() for s in given[: 2 if kind is nn.LSTM else 1]] if start else []
        for row in range(batch)
    ]
    rows = [BY_HAND[kind](layer, x[b].numpy(), "_l0", *parts[b]) for b in range(batch)]
    assert_same(seen[kind.__name__], stacked(rows))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_layers_and_directions_are_told_apart(kind):
    torch.manual_seed(0)
    layer = kind(3, 4, 2, batch_first=True, bidirectional=True).double()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    with record(nn.ModuleDict({"core": layer})["core"]) as seen:
        layer(x)
    name = kind.__name__
    assert sorted(seen) == [f"{name}.{s}" for s in ("l0", "l0_reverse", "l1", "l1_reverse")]
    for b in range(2):
        inputs = x[b].numpy()
        for level in range(2):
            ahead = BY_HAND[kind](layer, inputs, f"_l{level}")
            back = BY_HAND[kind](layer, inputs[::-1], f"_l{level}_reverse")
            back = {gate: value[::-1] for gate, value in back.items()}
            for way, expected in (("", ahead), ("_reverse", back)):
                found = seen[f"{name}.l{level}{way}"]
                assert_same({gate: v[b] for gate, v in found.items()}, expected)
            inputs = np.concatenate([ahead["h"], back["h"]], 1)


def test_every_layer_gets_its_own_row_of_the_initial_state():
    layer = nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True).double()
    x, h, c = (torch.randn(s, dtype=torch.float64) for s in ((1, 5, 3), (4, 1, 4), (4, 1, 4)))
    with record(layer) as seen:
        layer(x, (h, c))
    ahead = lstm_by_hand(layer, x[0].numpy(), "_l0", h[0, 0].numpy(), c[0, 0].numpy())
    back = lstm_by_hand(layer, x[0].numpy()[::-1], "_l0_reverse", h[1, 0].numpy(), c[1, 0].numpy())
    both = np.concatenate([ahead["h"], back["h"][::-1]], 1)
    top = lstm_by_hand(layer, both, "_l1", h[2, 0].numpy(), c[2, 0].numpy())
    assert_same({gate: v[0] for gate, v in seen["LSTM.l1"].items()}, top)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_packed_sequences_are_read_and_padding_is_nan(kind, ordered):
    torch.manual_seed(1)
    lengths = [5, 3, 1] if ordered else [1, 5, 3]
    layer = kind(2, 3, 2, batch_first=True, bidirectional=True).double()
    x = torch.randn(3, 5, 2, dtype=torch.float64)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=ordered)
    with record(layer) as seen:
        layer(packed)
    for b, length in enumerate(lengths):
        inputs = x[b, :length].numpy()
        ahead = BY_HAND[kind](layer, inputs, "_l0")
        back = BY_HAND[kind](layer, inputs[::-1], "_l0_reverse")
        both = np.concatenate([ahead["h"], back["h"][::-1]], 1)
        top = BY_HAND[kind](layer, both[::-1], "_l1_reverse")
        for path, expected in (("l0", ahead), ("l0_reverse", back), ("l1_reverse", top)):
            for gate, value in expected.items():
                found = seen[f"{kind.__name__}.{path}"][gate][b]
                wanted = value[::-1] if "reverse" in path else value
                np.testing.assert_allclose(found[:length], wanted, atol=1e-10)
                assert np.isnan(found[length:]).all()


def test_a_packed_reverse_layer_starts_from_its_state_at_its_own_end():
    torch.manual_seed(3)
    layer = nn.LSTM(2, 3, batch_first=True, bidirectional=True).double()
    x, h, c = (torch.randn(s, dtype=torch.float64) for s in ((2, 5, 2), (2, 2, 3), (2, 2, 3)))
    with record(layer) as seen:
        layer(pack_padded_sequence(x, [5, 2], batch_first=True), (h, c))
    for b, length in enumerate([5, 2]):
        inputs = x[b, :length].numpy()[::-1]
        back = lstm_by_hand(layer, inputs, "_l0_reverse", h[1, b].numpy(), c[1, b].numpy())
        found = {gate: v[b, :length][::-1] for gate, v in seen["LSTM.l0_reverse"].items()}
        assert_same(found, back)


def test_three_layers_start_from_their_own_states():
    torch.manual_seed(4)
    layer = nn.GRU(2, 3, 3, batch_first=True).double()
    x, h = torch.randn(1, 4, 2, dtype=torch.float64), torch.randn(3, 1, 3, dtype=torch.float64)
    with record(layer) as seen:
        layer(x, h)
    inputs = x[0].numpy()
    for level in range(3):
        expected = gru_by_hand(layer, inputs, f"_l{level}", h[level, 0].numpy())
        assert_same({gate: v[0] for gate, v in seen[f"GRU.l{level}"].items()}, expected)
        inputs = expected["h"]


def test_projections_are_read():
    layer = nn.LSTM(3, 6, 2, proj_size=2, batch_first=True).double()
    x = torch.randn(1, 4, 3, dtype=torch.float64)
    with record(layer) as seen:
        layer(x)
    low = lstm_by_hand(layer, x[0].numpy(), "_l0", project=layer.weight_hr_l0.detach().numpy())
    top = lstm_by_hand(layer, low["h"], "_l1", project=layer.weight_hr_l1.detach().numpy())
    assert_same({gate: v[0] for gate, v in seen["LSTM.l1"].items()}, top)


def test_a_single_sequence_has_a_batch_of_one():
    layer = nn.GRU(3, 4).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    with record(layer) as seen:
        layer(x)
    assert_same({g: v[0] for g, v in seen["GRU"].items()}, gru_by_hand(layer, x.numpy(), "_l0"))


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_cells_called_in_a_loop_are_joined_in_time(kind):
    cell = kind(3, 4).double()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    state = None
    with record(cell) as seen:
        for t in range(5):
            state = cell(x[:, t], state)
    by_hand = lstm_by_hand if kind is nn.LSTMCell else gru_by_hand
    assert_same(seen[kind.__name__], stacked([by_hand(cell, x[b].numpy()) for b in range(2)]))


def test_plain_rnns_have_states_only():
    layer = nn.RNN(3, 4, 2, nonlinearity="relu", batch_first=True)
    with record(layer) as seen:
        y, _ = layer(torch.randn(2, 5, 3))
    np.testing.assert_array_equal(seen["RNN.l1"]["h"], y.detach().numpy())
    assert list(seen["RNN.l0"]) == ["h"] and seen["RNN.l0"]["h"].min() == 0


def test_our_lstm_and_its_cell_are_read_like_torchs():
    gates = pytest.importorskip("gatelib.nn")
    torch.manual_seed(2)
    theirs = nn.LSTM(3, 4, 2, batch_first=True)
    ours = gates.LSTM(3, 4, 2, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 6, 3)
    with record(theirs) as expected:
        theirs(x)
    with record(ours) as found:
        ours(x)
    assert_same(found["LSTM.l1"], expected["LSTM.l1"], 1e-6)
    cell = gates.LSTMCell(3, 4)
    with record(cell) as found:
        cell(x[:, 0])
    expected = stacked([lstm_by_hand(cell, x[b, :1].double().numpy()) for b in range(2)])
    assert_same(found["LSTMCell"], expected, 1e-6)


def recurrent(spec, *args, **options):
    module = pytest.importorskip("gatelib.nn.recurrent")
    return module.Recurrent(spec, *args, **options).double()


@pytest.mark.parametrize("lengths", [None, [6, 2, 1]])
def test_a_recurrent_lstm_is_read_like_torchs(lengths):
    from gatelib.equations.lstm import LSTM

    ours = recurrent(LSTM, 3, 4, 2, bidirectional=True)
    theirs = nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True).double()
    for name, parameter in theirs.named_parameters():
        mine = getattr(ours, name, None)
        parameter.data = torch.zeros_like(parameter) if mine is None else mine.data
    x = torch.randn(3, 6, 3, dtype=torch.float64)
    with record(theirs) as expected:
        theirs(x if lengths is None else pack_padded_sequence(x, lengths, batch_first=True))
    with record(ours) as found:
        ours(x, lengths=None if lengths is None else torch.tensor(lengths))
    for path, gates in expected.items():
        same = {gate: found[path.replace("LSTM", "Recurrent")][gate] for gate in gates}
        assert_same(same, gates)


@pytest.mark.parametrize("name", ["peephole", "cifg", "layernorm", "no_output", "article"])
def test_every_cell_of_the_book_is_read_and_ends_in_its_own_output(name):
    from gatelib.equations.lstm import ALL

    spec = ALL[name].spec
    layer = recurrent(spec, 3, 4)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    with record(layer) as seen:
        y, final = layer(x)
    assert set(seen["Recurrent"]) == {str(v) for v, _ in spec.equations}
    np.testing.assert_allclose(seen["Recurrent"]["h"], y.detach().numpy(), atol=1e-12)
    for state, value in final.items():
        np.testing.assert_allclose(
            seen["Recurrent"][state][:, -1], value[0].detach().numpy(), atol=1e-12
        )


def test_a_reset_gate_after_the_product_is_read():
    from gatelib.spec import Spec

    spec = Spec.parse(
        "gru",
        "a_r a_z a_n u_n h_prev -> h",
        "r = sigmoid(a_r)\nz = sigmoid(a_z)\nn = tanh(a_n + r*u_n)\nh = (1 - z)*n + z*h_prev",
    )
    layer = recurrent(spec, 3, 4)
    x, start = torch.randn(2, 5, 3).double(), torch.randn(1, 2, 4).double()
    with record(layer) as seen:
        layer(x, {"h": start})
    theirs = nn.GRU(3, 4, batch_first=True).double()
    theirs.load_state_dict(layer.state_dict())
    rows = [gru_by_hand(theirs, x[b].numpy(), "_l0", start[0, b].numpy()) for b in range(2)]
    assert_same(seen["Recurrent"], stacked(rows))


def test_modules_that_are_gates_are_recorded_where_they_stand():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.GLU())
    with record(model) as seen:
        model(torch.ones(2, 3))
    a = model[0](torch.ones(2, 3)).sigmoid()
    np.testing.assert_allclose(seen["1"]["gate"], a.detach().numpy())
    np.testing.assert_allclose(seen["2"]["gate"], a[:, 2:].sigmoid().detach().numpy())


def test_our_gates_are_recorded():
    Gate = pytest.importorskip("gatelib.nn.gate").Gate
    gate = Gate(3, 4)
    with record(nn.Sequential(gate)) as seen:
        result = gate(torch.ones(2, 3))
    np.testing.assert_array_equal(seen["0"]["gate"], result.detach().numpy())


@pytest.mark.parametrize("reset_after", [True, False])
def test_our_gru_is_read_in_the_order_of_its_reset(reset_after):
    torch.manual_seed(0)
    layer = GRU(2, 3, 2, batch_first=True, bidirectional=True, reset_after=reset_after).double()
    x = torch.randn(2, 6, 2, dtype=torch.float64)
    packed = pack_padded_sequence(x, torch.tensor([6, 4]), batch_first=True)
    with record(layer) as seen:
        layer(packed)
    assert sorted(seen) == [f"GRU.{s}" for s in ("l0", "l0_reverse", "l1", "l1_reverse")]
    for b, length in enumerate((6, 4)):
        inputs = x[b, :length].numpy()
        for level in range(2):
            ahead = gru_by_hand(layer, inputs, f"_l{level}")
            back = gru_by_hand(layer, inputs[::-1], f"_l{level}_reverse")
            back = {name: value[::-1] for name, value in back.items()}
            for suffix, expected in (("", ahead), ("_reverse", back)):
                found = seen[f"GRU.l{level}{suffix}"]
                assert_same({g: v[b, :length] for g, v in found.items()}, expected)
            inputs = np.concatenate([ahead["h"], back["h"]], 1)


@pytest.mark.parametrize("reset_after", [True, False])
def test_our_gru_cell_is_read_step_by_step(reset_after):
    cell = GRUCell(3, 4, reset_after=reset_after).double()
    x, h = torch.randn(5, 2, 3, dtype=torch.float64), None
    with record(cell) as seen:
        for row in x:
            h = cell(row, h)
    for b in range(2):
        expected = gru_by_hand(cell, x[:, b].numpy())
        assert_same({g: v[b] for g, v in seen["GRUCell"].items()}, expected)


def test_our_rnn_and_its_cell_show_their_states():
    layer = RNN(3, 4, 2, "relu", batch_first=True)
    with record(layer) as seen:
        y, _ = layer(torch.randn(2, 5, 3))
    np.testing.assert_array_equal(seen["RNN.l1"]["h"], y.detach().numpy())
    assert list(seen["RNN.l0"]) == ["h"] and seen["RNN.l0"]["h"].min() == 0
    cell = RNNCell(3, 4)
    with record(cell) as seen:
        h = cell(torch.randn(2, 3))
    np.testing.assert_array_equal(seen["RNNCell"]["h"][:, 0], h.detach().numpy())


def test_keywords_are_read_too():
    layer = nn.GRU(2, 3, batch_first=True)
    x, h = torch.randn(1, 4, 2), torch.randn(1, 1, 3)
    with record(layer) as expected:
        layer(x, h)
    with record(layer) as found:
        layer(hx=h, input=x)
    assert_same(found["GRU"], expected["GRU"], 0)


def test_the_model_computes_the_same_and_is_left_as_it_was():
    model = nn.LSTM(3, 4)
    x = torch.randn(5, 2, 3, requires_grad=True)
    before = model(x)[0]
    with record(model):
        after = model(x)[0]
    assert torch.equal(before, after) and after.requires_grad
    assert not model._forward_hooks


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recording_draws_no_random_number(kind):
    model = kind(3, 4, 3)
    before = torch.random.get_rng_state()
    with record(model):
        model(torch.randn(2, 1, 3, generator=torch.Generator()))
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_parametrized_layer_is_read_with_the_weights_it_uses():
    model = nn.LSTM(3, 4, 2, batch_first=True)
    x = torch.randn(2, 5, 3)
    with record(model) as plain:
        model(x)
    for name in ("weight_hh_l0", "weight_hh_l1"):
        nn.utils.parametrizations.weight_norm(model, name)
    with record(model) as normed:
        model(x)
    for path, gates in normed.items():
        assert_same(gates, plain[path.replace("ParametrizedLSTM", "LSTM")], 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_recurrent_layer_in_low_precision_is_read(dtype):
    model = Recurrent(PEEPHOLE, 3, 4, dtype=dtype)
    with record(model) as gates, torch.no_grad():
        output, _ = model(torch.randn(2, 5, 3).to(dtype))
    np.testing.assert_allclose(gates["Recurrent"]["h"], output.float().numpy(), atol=5e-3)


def test_hooks_go_even_if_the_model_fails():
    model = nn.LSTM(3, 4)
    with pytest.raises(RuntimeError), record(model):
        model(torch.zeros(5, 2, 9))
    assert not model._forward_hooks


def test_dropout_between_layers_must_be_off():
    model = nn.LSTM(3, 4, 2, dropout=0.5)
    with pytest.raises(ValueError, match="model: expected eval mode"), record(model):
        model(torch.zeros(5, 2, 3))
    with record(model.eval()) as seen:
        model(torch.zeros(5, 2, 3))
    assert sorted(seen) == ["LSTM.l0", "LSTM.l1"]


def test_calls_that_do_not_follow_each_other_are_refused():
    model = nn.LSTM(3, 4, batch_first=True)
    with pytest.raises(ValueError, match="LSTM: expected one forward pass"), record(model):
        model(torch.zeros(2, 5, 3)), model(torch.zeros(3, 5, 3))


def test_a_model_without_gates_is_refused():
    with pytest.raises(TypeError, match="model: expected a module with gates"), record(nn.ReLU()):
        pass
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"), record(3):
        pass
