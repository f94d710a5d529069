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
from gatelib.reference import searched
from gatelib.spec import Spec

B, T, D, H = 2, 5, 3, 4
FLOATS, TOKENS = {"dtype": torch.float64}, torch.tensor([[1, 2, 3], [2, 0, 1]])


def floats(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def seq2seq_parts():
    encoder = layers.Encoder(7, D, layers.GRU(D, H, batch_first=True))
    decoder = layers.Decoder(7, D, layers.GRU(D, H, batch_first=True), layers.DotAttention(H, H))
    return encoder.double(), decoder.double()


def copying():
    """What a pointer-generator reads: scores, attention, words, context and state."""
    attention = floats(B, T, 3).softmax(-1)
    return floats(B, T, 6), attention, TOKENS, floats(B, T, H), floats(B, T, D)


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
    "HighwayNodes": lambda: (layers.HighwayNodes(D, H), (floats(B, T, D),)),
    "Mutated": lambda: (layers.Mutated(H, H), (floats(B, T, H),)),
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
    "AttentionPool": lambda: (layers.AttentionPool(D, H, 2), (floats(B, T, D),)),
    "SoftPool": lambda: (layers.SoftPool(D, learn=True), (floats(B, T, D),)),
    "ContextGate": lambda: (layers.ContextGate(D, H, 6), (floats(B, T, D), floats(B, T, H))),
    "DepthGatedLSTM": lambda: (layers.DepthGatedLSTM(D, H, 2), (floats(B, T, D),)),
    "PointerGenerator": lambda: (layers.PointerGenerator(H, D), copying()),
}
FUNCTIONS = {"convert", "init", "interpolate", "pool", "receptive_field"}
FUNCTIONS |= {"auxiliary_loss", "balance", "update_balance", "updated_after"}
FUNCTIONS |= {"copy_mixture", "expert_parallel", "extended_vocabulary", "hop_penalty"}


def test_each_name_of_the_library_is_recorded_or_said_to_have_no_gate():
    recorded = {name for name in MADE if name not in WITHOUT_GATES}
    missing = set(layers.__all__) - recorded - set(WITHOUT_GATES) - FUNCTIONS
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


@pytest.mark.parametrize("variant", ["mut1", "mut1_code", "mut2", "mut2_code", "mut3"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_the_gates_of_a_mutated_unit_make_its_states(variant, batch_first):
    """The candidate is what the states leave: within ±1, and its own gate's."""
    layer = layers.Mutated(H, H, variant, batch_first=batch_first).double()
    x, first = floats(B, T, H), floats(B, H)
    with record(layer) as seen:
        layer(x if batch_first else x.transpose(0, 1), first)
    one = seen["Mutated"]
    past = np.concatenate([first[:, None].numpy(), one["h"][:, :-1]], 1)
    candidate = (one["h"] - (1 - one["z"]) * past) / one["z"]
    weights = {name: p.detach().numpy() for name, p in layer.named_parameters()}
    U = weights["weight_hh"][-H:]
    product = x.numpy() @ weights["weight_x"][-H:].T
    inside = {"mut1": x.numpy(), "mut1_code": product + weights.get("bias_x", 0)}.get(variant)
    of_x = product if inside is None else np.tanh(inside)
    a = (one["r"] * past) @ U.T + of_x + weights["bias"][-H:]
    np.testing.assert_allclose(candidate, np.tanh(a), atol=1e-12)


def test_the_gates_of_nodes_make_their_output():
    layer, x, first = layers.HighwayNodes(D, H).double(), floats(B, T, D), floats(B, H)
    with record(layer) as seen:
        y, _ = layer(x, first)
    made = [seen[f"HighwayNodes.n{place}"]["h"] for place in layer.nodes.read]
    assert_close(np.mean(made, 0), y)
    weights = {"W": layer.weight_ih, "U": layer.weight_hh}
    weights = {name: value.detach().numpy() for name, value in weights.items()}
    *_, saved = searched.forward_nodes(x.numpy(), weights, *layer.nodes, first.numpy())
    for place in range(len(layer.nodes.steps) + 1):
        for k, name in ((0, "c"), (2, "h")):
            by_hand = torch.tensor(np.stack([step[place][k] for step in saved.steps], 1))
            assert_close(seen[f"HighwayNodes.n{place}"][name], by_hand)


@pytest.mark.parametrize("name", ["Mutated", "HighwayNodes", "RecurrentHighway"])
def test_past_the_length_of_a_row_there_are_no_gates(name):
    layer, (x,) = MADE[name]()
    with record(layer.double()) as seen:
        layer(x, None, torch.tensor([T, 2]))
    for gates in seen.values():
        for value in gates.values():
            assert np.isfinite(value[0]).all() and np.isfinite(value[1, :2]).all()
            assert np.isnan(value[1, 2:]).all()


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


@pytest.mark.parametrize("hops", [1, 3])
def test_a_pools_gate_makes_its_output_from_the_steps_that_are_there(hops):
    y, lengths = floats(B, T, D), torch.tensor([T, 2])
    for layer in (layers.AttentionPool(D, H, hops), layers.SoftPool(D, 2.0)):
        with record(layer.double()) as seen:
            pooled, _ = layer(y, lengths)
        g = seen[type(layer).__name__]["g"]
        assert np.isnan(g[1, 2:]).all() and not np.isnan(g[1, :2]).any()
        parts = "btk,btd->bkd" if isinstance(layer, layers.AttentionPool) else "btd,btd->bd"
        made = np.einsum(parts, np.nan_to_num(g), y.numpy())
        assert_close(made.reshape(B, -1), pooled)


@pytest.mark.parametrize("kind", ["both", "source", "target"])
def test_a_context_gate_makes_its_output(kind):
    layer, (target, source) = layers.ContextGate(D, H, 6, kind).double(), MADE["ContextGate"]()[1]
    with record(layer) as seen:
        y = layer(target, source)
    z = seen["ContextGate"]["z"]
    own, read = (v.detach().numpy() for v in (layer.target_proj(target), layer.source_proj(source)))
    shares = {"both": (1 - z, z), "source": (1, z), "target": (z, 1)}[kind]
    assert_close(np.tanh(shares[0] * own + shares[1] * read), y)


def test_a_context_without_a_gate_has_none():
    layer = layers.ContextGate(D, H, 6, "none")
    with pytest.raises(TypeError, match="model: expected a module with gates"), record(layer):
        pass


def test_a_pointers_switch_shares_out_writing_and_copying_even_step_by_step():
    layer = layers.PointerGenerator(H, D).double()
    scores, attention, words, context, state = copying()
    with record(layer) as seen:
        found = [
            layer(scores[:, t], attention[:, t], words, context[:, t], state[:, t])[0]
            for t in np.arange(T)[:, None]
        ]
    p = seen["PointerGenerator"]["p"]
    assert p.shape == (B, T, 1)
    copied = np.zeros((B, T, 6))
    for place, word in enumerate(words.T):
        copied[np.arange(B), :, word] += attention[:, :, place].numpy()
    written = scores.softmax(-1).numpy()
    assert_close(np.log(p * written + (1 - p) * copied), torch.cat(found, 1))


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


@pytest.mark.parametrize("name", ["AttentionPool", "SoftPool"])
def test_the_spectrum_of_a_pool_is_that_of_what_it_pools(name):
    """What it returns beside it is no state, and its second argument is `lengths`."""
    layer, x = MADE[name]()[0].double(), floats(1, T, D)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x)[0], x)
    expected = torch.linalg.svdvals(jacobian.reshape(layer(x)[0].numel(), -1))
    np.testing.assert_allclose(jacobian_spectrum(layer, x), expected, rtol=1e-10)


def test_the_spectrum_of_a_layer_of_two_inputs_is_that_of_its_stream():
    layer, x, y = layers.GTrXLGate(D).double(), floats(1, D), floats(1, D)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x, y)[0], x)[:, 0]
    expected = torch.linalg.svdvals(jacobian)
    np.testing.assert_allclose(jacobian_spectrum(layer, x, y), expected, rtol=1e-10)
