"""Every gated layer of gatelib.nn is read by `record` and has a passport.

Imports gatelib, NumPy and torch.
Must not trust a layer's own `values`: gates are checked by putting them together to the output.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import gatelib.nn as layers
from gatelib.equations import ALL
from gatelib.equations import gru as gru_cells
from gatelib.equations import lstm as lstm_cells
from gatelib.lab import passport, record
from gatelib.lab.instruments import half_life, jacobian_spectrum
from gatelib.lab.readers import WITHOUT_GATES, reader_of
from gatelib.spec import Spec

B, T, D, H = 2, 5, 3, 4
FLOATS, TOKENS = {"dtype": torch.float64}, torch.tensor([[1, 2, 3], [2, 0, 1]])


def floats(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def seq2seq_parts():
    encoder = layers.Encoder(7, D, layers.GRU(D, H, batch_first=True))
    decoder = layers.Decoder(7, D, layers.GRU(D, H, batch_first=True), layers.DotAttention(H, H))
    return encoder.double(), decoder.double()


MADE = {
    "AdditiveAttention": lambda: (
        layers.AdditiveAttention(D, H, 2),
        (floats(B, T, D), floats(B, 6, H)),
    ),
    "MoE": lambda: (layers.MoE(D, 3, 2, hidden=H, shared=1), (floats(B, T, D),)),
    "SoftMoE": lambda: (layers.SoftMoE(D, 3, 2, H), (floats(B, T, D),)),
    "MixtureOfDepths": lambda: (layers.MixtureOfDepths(nn.Linear(D, D), D), (floats(B, T, D),)),
    "DotAttention": lambda: (layers.DotAttention(H, H), (floats(B, T, H), floats(B, 6, H))),
    "FixedContext": lambda: (layers.FixedContext(H), (floats(B, T, H), floats(B, 6, H))),
    "ConvGRU2d": lambda: (layers.ConvGRU2d(2, 3, 2), (floats(B, T, 2, 3, 3),)),
    "ConvLSTM2d": lambda: (layers.ConvLSTM2d(2, 3, 2, 2), (floats(B, T, 2, 3, 3),)),
    "ConvRNN2d": lambda: (layers.ConvRNN2d(2, 3, 2), (floats(B, T, 2, 3, 3),)),
    "FeatureGate": lambda: (layers.FeatureGate(D), (floats(B, D),)),
    "Gate": lambda: (layers.Gate(D), (floats(B, D),)),
    "GLU": lambda: (layers.GLU(), (floats(B, 2 * D),)),
    "GatedConv1d": lambda: (layers.GatedConv1d(T, 3, 2), (floats(B, T, D),)),
    "GatedMLP": lambda: (layers.GatedMLP(D, kind="gtu"), (floats(B, D),)),
    "GRU": lambda: (layers.GRU(D, H, batch_first=True), (floats(B, T, D),)),
    "GRUCell": lambda: (layers.GRUCell(D, H), (floats(B, D),)),
    "GTrXLGate": lambda: (layers.GTrXLGate(D), (floats(B, T, D), floats(B, T, D))),
    "AMLPBlock": lambda: (layers.AMLPBlock(D, 6, T, attention=2), (floats(B, T, D),)),
    "GMLPBlock": lambda: (layers.GMLPBlock(D, 6, T), (floats(B, T, D),)),
    "Highway": lambda: (layers.Highway(D, 2), (floats(B, D),)),
    "Jordan": lambda: (layers.Jordan(D, H, 2, decay=0.5), (floats(B, T, D),)),
    "LSTM": lambda: (layers.LSTM(D, H, batch_first=True), (floats(B, T, D),)),
    "LSTMCell": lambda: (layers.LSTMCell(D, H), (floats(B, D),)),
    "RNN": lambda: (layers.RNN(D, H, batch_first=True), (floats(B, T, D),)),
    "RNNCell": lambda: (layers.RNNCell(D, H), (floats(B, D),)),
    "Recurrent": lambda: (layers.Recurrent(lstm_cells.LSTM, D, H), (floats(B, T, D),)),
    "RecurrentHighway": lambda: (layers.RecurrentHighway(D, H, 2), (floats(B, T, D),)),
    "GatedAttention": lambda: (
        layers.GatedAttention(D + D, 2, gate="output", forget=True, sink="zero"),
        (floats(B, T, D + D),),
    ),
    "GatedAttentionUnit": lambda: (layers.GatedAttentionUnit(D, H, 4), (floats(B, T, D),)),
    "GTrXLBlock": lambda: (layers.GTrXLBlock(D + D, 2, H), (floats(B, T, D + D),)),
    "Residual": lambda: (layers.Residual(nn.Linear(D, D), "rezero"), (floats(B, D),)),
    "SkipRNN": lambda: (layers.SkipRNN(D, H, 2), (floats(B, T, D),)),
    "SpatialGatingUnit": lambda: (layers.SpatialGatingUnit(D + D, T), (floats(B, T, D + D),)),
    "Deep": lambda: (layers.Deep(D, 3, gate="layerscale"), (floats(B, D),)),
    "Stack": lambda: (layers.Stack([layers.LSTM(D, D, batch_first=True)] * 1), (floats(B, T, D),)),
    "SqueezeExcitation": lambda: (
        layers.SqueezeExcitation(D, 2, shift=True),
        (floats(B, D, 5, 4),),
    ),
    "ECA": lambda: (layers.ECA(D), (floats(B, D, 5, 4),)),
    "FiLM": lambda: (layers.FiLM(H, D), (floats(B, D, 5, 4), floats(B, H))),
    "GatedResidualBlock2d": lambda: (
        layers.GatedResidualBlock2d(D, gate=layers.SqueezeExcitation(D)),
        (floats(B, D, 5, 4),),
    ),
    "Encoder": lambda: (seq2seq_parts()[0], (TOKENS,)),
}
FUNCTIONS = {"convert", "init", "interpolate", "pool", "receptive_field"}
FUNCTIONS |= {"auxiliary_loss", "balance", "update_balance", "updated_after"}
FUNCTIONS |= {"copy_mixture", "extended_vocabulary", "hop_penalty"}
# They tell their gates by `gates`, `switch` or what they return; no reader knows them yet.
UNREAD = {"AttentionPool", "ContextGate", "DepthGatedLSTM", "PointerGenerator", "SoftPool"}


def test_each_name_of_the_library_is_recorded_or_said_to_have_no_gate():
    recorded = {name for name in MADE if name not in WITHOUT_GATES}
    missing = set(layers.__all__) - recorded - set(WITHOUT_GATES) - FUNCTIONS - UNREAD
    assert not missing, (
        f"{sorted(missing)}: neither read by gatelib/lab/readers.py and made here, nor named with "
        "a reason in its WITHOUT_GATES"
    )
    assert set(WITHOUT_GATES) <= set(layers.__all__)
    for name in recorded:
        assert reader_of(MADE[name]()[0].double()), name
    for name in WITHOUT_GATES:
        assert isinstance(getattr(layers, name), type), name


@pytest.mark.parametrize("name", MADE)
def test_each_layer_has_gates_and_a_passport(name):
    torch.manual_seed(0)
    layer, inputs = MADE[name]()
    layer.double()
    with record(layer) as seen:
        layer(*inputs)
    assert seen and all(seen.values())
    made = passport(layer, inputs if len(inputs) > 1 else inputs[0])
    assert made.forward.bytes > 0 and repr(made) and made.to_json()["version"] == 1
    assert set(made.saturated) == set(seen)


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-12, rtol=0)


def test_the_gates_of_channels_make_the_output():
    x, condition = floats(B, D, 5, 4), floats(B, H)
    made = [layers.SqueezeExcitation(D, 2, shift=True), layers.ECA(D)]
    made += [layers.FiLM(H, D, kind) for kind in ("film", "scale", "shift", "sigmoid_shift")]
    for layer in made:
        given = (x, condition) if isinstance(layer, layers.FiLM) else (x,)
        with record(layer.double()) as seen:
            y = layer(*given)
        found = {k: v[:, :, None, None] for k, v in seen[type(layer).__name__].items()}
        factor = found.get("gate", 1 + found.get("gamma", 0))
        assert_close(factor * x.numpy() + found.get("beta", 0), y)
    layer = layers.SqueezeExcitation(D, pooled=False).double()
    with record(layer) as seen:
        y = layer(x)
    assert_close(seen["SqueezeExcitation"]["gate"] * x.numpy(), y)


@pytest.mark.parametrize("impl", ["reference", "fused", "auto"])
@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("shape", [(B, D), (B, T, D)])
def test_a_highways_gates_make_its_output_in_every_impl(impl, coupled, shape):
    layer, x = layers.Highway(D, 3, coupled=coupled, impl=impl).double(), floats(*shape)
    with record(layer) as seen:
        y = layer(x)
    stream = x.numpy()
    for k in range(3):
        one = seen[f"Highway.l{k}"]
        stream = one["t"] * one["h"] + one["c"] * stream
        np.testing.assert_allclose(one["y"], stream, atol=1e-12)
        assert not coupled or np.allclose(one["c"], 1 - one["t"])
    assert_close(stream, y)


def test_a_gtrxl_gate_makes_its_output():
    layer, x, y = layers.GTrXLGate(D).double(), floats(B, T, D), floats(B, T, D)
    with record(nn.ModuleDict({"gate": layer})) as seen:
        found = layer(x, y)
    one = seen["gate"]
    assert_close((1 - one["z"]) * x.numpy() + one["z"] * one["h"], found)
    assert set(one) == {"r", "z", "h"} and one["r"].min() > 0


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("start", [True, False])
def test_a_recurrent_highways_gates_make_its_output(coupled, depth, start):
    layer = layers.RecurrentHighway(D, H, depth, coupled=coupled).double()
    x, first = floats(B, T, D), floats(B, H)
    with record(layer) as seen:
        y, _ = layer(x, first) if start else layer(x)
    begin = first.numpy() if start else np.zeros((B, H))
    stream = np.concatenate([begin[:, None], y.detach().numpy()[:, :-1]], 1)
    for k in range(depth):
        one = seen[f"RecurrentHighway.l{k}" if depth > 1 else "RecurrentHighway"]
        stream = one["t"] * one["n"] + one["c"] * stream
    assert_close(stream, y)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.6])
def test_jordans_units_make_its_output(batch_first, decay):
    layer = layers.Jordan(D, H, 2, decay=decay, batch_first=batch_first).double()
    x, first, lengths = floats(B, T, D), floats(B, 2), torch.tensor([T, 2])
    with record(layer) as seen:
        y, state = layer(x if batch_first else x.transpose(0, 1), first, lengths)
    y = y if batch_first else y.transpose(0, 1)
    one = seen["Jordan"]
    made = one["h"] @ layer.weight_ho.detach().numpy().T + layer.bias_o.detach().numpy()
    np.testing.assert_allclose(made[0], y[0].detach().numpy(), atol=1e-12)
    assert_close(one["s"][0, -1], state[0])
    assert_close(one["s"][1, 1], state[1])
    assert np.isnan(one["h"][1, 2:]).all() and not np.isnan(one["h"][1, :2]).any()


def test_a_skip_rnn_shows_its_state():
    layer, x = layers.SkipRNN(D, H, 2, batch_first=False).double(), floats(T, B, D)
    with record(layer) as seen:
        y, _ = layer(x)
    assert_close(seen["SkipRNN"]["h"], y.transpose(0, 1))


def test_the_gates_of_branches_are_told_once_however_often_they_are_used():
    net = layers.Deep(D, 3, gate="layerscale").double()
    with record(net) as seen:
        net(floats(B, D))
        net(floats(4, D))
    assert set(seen) == {f"layers.{k}" for k in range(3)}
    assert_close(seen["layers.0"]["alpha"], net.layers[0].alpha)


def test_a_residual_without_a_gate_has_none_and_its_own_gates_are_found():
    gate = layers.Gate(D).double()
    net = layers.Residual(nn.Linear(D, D, **FLOATS), gate)
    x = floats(B, D)
    with record(net) as seen:
        net(x)
    assert list(seen) == ["gate"]
    assert_close(seen["gate"]["gate"], gate(x))
    none = pytest.raises(TypeError, match="model: expected a module with gates inside")
    with none, record(layers.Residual(nn.Linear(D, D))):
        pass


@pytest.mark.parametrize("attend", ["after", "before"])
def test_a_translator_shows_its_layers_and_where_it_looks(attend):
    torch.manual_seed(0)
    encoder = layers.Encoder(7, D, layers.LSTM(D, H, batch_first=True))
    width = D if attend == "after" else D + H
    layer = layers.LSTM(width, H, batch_first=True)
    decoder = layers.Decoder(7, D, layer, layers.AdditiveAttention(H, H, 2), attend=attend)
    model = layers.Seq2Seq(encoder, decoder, 5, 6).double().eval()
    lengths = torch.tensor([3, 2])
    with record(model) as seen:
        model(TOKENS + 1, lengths, torch.tensor([[1, 2, 6], [3, 6, 0]]))
    assert set(seen) == {"encoder.layer", "decoder.layer", "decoder.attention"}
    weights = seen["decoder.attention"]["attention"]
    assert weights.shape == (B, 3, 3) and not weights[1, :, 2].any()
    np.testing.assert_allclose(weights.sum(-1), 1)
    assert seen["decoder.layer"]["f"].shape == (B, 3, H)
    assert np.isnan(seen["encoder.layer"]["f"][1, 2]).all()


# ---- what keeps the memory --------------------------------------------------------------------


def test_the_half_life_follows_the_equations_and_not_the_letters():
    """z writes and f is a candidate here; a passport that goes by letters tells a wrong memory."""
    renamed = Spec.parse(
        "renamed",
        "a_f a_z h_prev -> h",
        "f = tanh(a_f)\nz = sigmoid(a_z)\nh = (1 - z)*h_prev + z*f",
    )
    layer, x = layers.Recurrent(renamed, D, H).double(), floats(B, T, D)
    with record(layer) as seen:
        layer(x)
    expected = half_life(1 - seen["Recurrent"]["z"])
    assert passport(layer, x).half_life["Recurrent"] == float(f"{expected:.2g}")


@pytest.mark.parametrize("name", ["lstm", "cifg", "peephole", "gru", "light", "recurrent_highway"])
def test_every_cell_with_a_memory_has_a_half_life(name):
    layer = layers.Recurrent(ALL[name].spec, D, H).double()
    assert set(passport(layer, floats(B, T, D)).half_life) == {"Recurrent"}


@pytest.mark.parametrize("name", ["elman", "leaky_rnn", "no_forget"])
def test_a_cell_without_a_gate_on_its_memory_has_none(name):
    layer = layers.Recurrent(ALL[name].spec, D, H).double()
    assert not passport(layer, floats(B, T, D)).half_life


def test_a_factor_that_is_no_share_has_no_half_life():
    grows = Spec.parse("grows", "a_f c_prev -> h c", "f = exp(a_f)\nc = f*c_prev\nh = tanh(c)")
    layer = layers.Recurrent(grows, D, H).double()
    nn.init.constant_(layer.bias_ih_l0, 2.0)
    assert not passport(layer, floats(B, T, D)).half_life


@pytest.mark.parametrize("coupled", [True, False])
def test_a_recurrent_highway_of_one_layer_tells_what_its_carry_gate_keeps(coupled):
    layer, x = layers.RecurrentHighway(D, H, coupled=coupled).double(), floats(B, T, D)
    with record(layer) as seen:
        layer(x)
    told = passport(layer, x)
    expected = half_life(seen["RecurrentHighway"]["c"])
    assert told.half_life["RecurrentHighway"] == float(f"{expected:.2g}")
    assert "c" in told.saturated["RecurrentHighway"]  # a gate here, not a cell
    assert not passport(layers.RecurrentHighway(D, H, 2).double(), x).half_life


@pytest.mark.parametrize("reset_after", [True, False])
def test_a_drop_in_gru_keeps_by_z_in_both_orders(reset_after):
    layer = layers.GRU(D, H, batch_first=True, reset_after=reset_after).double()
    x = floats(B, T, D)
    with record(layer) as seen:
        layer(x)
    assert passport(layer, x).half_life["GRU"] == float(f"{half_life(seen['GRU']['z']):.2g}")


# ---- models of tokens, and states of every form -----------------------------------------------


class Reader(nn.Module):
    """A classifier of texts."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, D)
        self.layer = layers.LSTM(D, H, batch_first=True)
        self.readout = nn.Linear(H, 2)

    def forward(self, tokens):
        return self.readout(layers.pool(self.layer(self.embedding(tokens))[0]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_a_model_of_tokens_has_a_passport_and_shows_its_gates(dtype):
    tokens = torch.randint(9, (B, T)).to(dtype)
    made = passport(Reader(), tokens)
    assert made.input_shape == (B, T) and made.spectrum == {}
    assert set(made.half_life) == {"layer"} and set(made.saturated["layer"]) == set("ifgo")
    products = 2 * B * (T * 4 * H * (D + H) + H * 2)
    assert made.forward.flops == products
    with record(Reader()) as seen, torch.no_grad():
        Reader()(tokens)
    assert not seen  # another model was called


def test_a_spectrum_knows_states_of_every_form_and_place():
    torch.manual_seed(0)
    x = floats(B, T, D)
    for layer in (
        layers.SkipRNN(D, H, 2),
        layers.Jordan(D, H, 2),
        layers.RecurrentHighway(D, H),
        layers.Stack([layers.LSTM(D, H, batch_first=True), layers.Recurrent(gru_cells.GRU, H, 2)]),
    ):
        found = jacobian_spectrum(layer.double(), x)
        first = layer(x[:1])[1]
        leaves, form = torch.utils._pytree.tree_flatten(first)
        sizes = [leaf.numel() for leaf in leaves]

        def last(flat, layer=layer, leaves=leaves, form=form, sizes=sizes):
            parts = flat.split(sizes)
            parts = [p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)]
            end = layer(x[:1], torch.utils._pytree.tree_unflatten(parts, form))[1]
            return torch.cat([v.flatten() for v in torch.utils._pytree.tree_leaves(end)])

        jacobian = torch.autograd.functional.jacobian(last, torch.zeros(sum(sizes), **FLOATS))
        expected = torch.linalg.svdvals(jacobian)
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-14)


def test_the_spectrum_of_a_layer_of_two_inputs_is_that_of_its_stream():
    layer, x, y = layers.GTrXLGate(D).double(), floats(1, D), floats(1, D)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x, y)[0], x)[:, 0]
    expected = torch.linalg.svdvals(jacobian)
    np.testing.assert_allclose(jacobian_spectrum(layer, x, y), expected, rtol=1e-10)
