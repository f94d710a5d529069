"""Layers leave torch's eager mode: fx, meta and fake tensors, quantization, ONNX.

Imports gatelib.nn, gatelib.equations and torch; onnx and onnxscript where they are installed.
Must not compare an exported layer with anything but the layer in eager mode.
"""

from __future__ import annotations

import inspect
import io
import warnings

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

import gatelib.nn as layers
from gatelib.equations import ALL
from gatelib.nn import convert

B, T, D = 2, 3, 4
LENGTHS, TOKENS = torch.tensor([3, 2]), torch.tensor([[1, 2, 3], [2, 0, 1]])


def sequences():
    return torch.randn(B, T, D)


def films():
    return torch.randn(B, T, 2, 5, D)


def images():
    return torch.randn(B, D, 5, 4)


MASK = torch.ones(B, 5, 4, dtype=torch.bool).tril()


class Pool(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, y, lengths):
        return layers.pool(y, lengths, self.kind)


def recurrent(name, **options):
    return layers.Recurrent(ALL[name].spec, D, D, **options)


def stack():
    parts = [layers.LSTM(D, D, batch_first=True), recurrent("cifg")]
    return layers.Stack(parts, residual=True, dropout=0.3)


def translator():
    encoder = layers.Encoder(7, D, recurrent("gru"))
    decoder = layers.Decoder(7, D, recurrent("gru"), layers.DotAttention(D, D))
    return layers.Seq2Seq(encoder, decoder, 5, 6)


def writing():
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(D, D))


CASES = {
    "Recurrent": lambda: (recurrent("lstm", num_layers=2, bidirectional=True), sequences()),
    "Recurrent, padded": lambda: (recurrent("lstm"), sequences(), None, LENGTHS),
    "Recurrent, layernorm": lambda: (recurrent("layernorm"), sequences()),
    "Highway": lambda: (layers.Highway(D, 3), sequences()),
    "LSTM": lambda: (layers.LSTM(D, D, 2, batch_first=True), sequences()),
    "GRU": lambda: (layers.GRU(D, D, batch_first=True), sequences()),
    "GRU, before": lambda: (layers.GRU(D, D, batch_first=True, reset_after=False), sequences()),
    "RNN": lambda: (layers.RNN(D, D, batch_first=True), sequences()),
    "LSTMCell": lambda: (layers.LSTMCell(D, D), torch.randn(B, D)),
    "GRUCell": lambda: (layers.GRUCell(D, D), torch.randn(B, D)),
    "RNNCell": lambda: (layers.RNNCell(D, D), torch.randn(B, D)),
    "Residual": lambda: (layers.Residual(writing(), "layerscale", features=D), sequences()),
    "Residual, gated": lambda: (layers.Residual(nn.Linear(D, D), layers.Gate(D)), sequences()),
    "Residual of LSTM": lambda: (
        layers.Residual(layers.LSTM(D, D, batch_first=True)),
        sequences(),
    ),
    "Dense": lambda: (layers.Dense(nn.Linear(D, 2)), sequences()),
    "Deep": lambda: (layers.Deep(D, 3, gate="rezero", drop=0.2), sequences()),
    "Stack": lambda: (stack(), sequences()),
    "Stack, padded": lambda: (layers.Stack([recurrent("cifg")]), sequences(), None, LENGTHS),
    "Jordan": lambda: (layers.Jordan(D, D, 3, decay=0.5), sequences()),
    "Jordan, padded": lambda: (layers.Jordan(D, D, 3), sequences(), None, LENGTHS),
    "SkipRNN": lambda: (layers.SkipRNN(D, D, 3), sequences()),
    "RecurrentHighway": lambda: (layers.RecurrentHighway(D, D, 2), sequences()),
    "GTrXLGate": lambda: (layers.GTrXLGate(D), sequences(), sequences()),
    "ConvLSTM2d": lambda: (layers.ConvLSTM2d(2, 3, 3, peephole=(5, D)), films()),
    "ConvGRU2d": lambda: (
        layers.ConvGRU2d(2, 3, (2, 3), reset_after=False),
        films(),
        None,
        LENGTHS,
    ),
    "ConvRNN2d": lambda: (layers.ConvRNN2d(2, 3, 3, padding_mode="circular"), films()),
    "GatedConv1d": lambda: (layers.GatedConv1d(T, 3, 2, 2, weight_norm=True), sequences()),
    "GLU": lambda: (layers.GLU(), sequences()),
    "GLU, gpt_oss": lambda: (layers.GLU(-1, "gpt_oss", "first"), 9 * sequences()),
    "GatedMLP": lambda: (layers.GatedMLP(D, bias=True), sequences()),
    "GatedMLP, geglu": lambda: (layers.GatedMLP(D, kind="geglu"), sequences()),
    "Gate": lambda: (layers.Gate(D, kind="hard_concrete"), sequences()),
    "FeatureGate": lambda: (layers.FeatureGate(D), sequences()),
    "DotAttention": lambda: (layers.DotAttention(D, D, "general"), sequences(), sequences()),
    "AdditiveAttention": lambda: (
        layers.AdditiveAttention(D, D, 3),
        sequences(),
        sequences(),
        LENGTHS,
    ),
    "FixedContext": lambda: (layers.FixedContext(D), sequences(), sequences(), LENGTHS),
    "SpatialGatingUnit": lambda: (layers.SpatialGatingUnit(D, T + 1, heads=2), sequences()),
    "GMLPBlock": lambda: (layers.GMLPBlock(D, 6, T, gate="linear"), sequences()),
    "AMLPBlock": lambda: (
        layers.AMLPBlock(D, 6, T, causal=True, attention=2),
        sequences(),
        LENGTHS,
    ),
    "Encoder": lambda: (layers.Encoder(7, D, layers.GRU(D, D, batch_first=True)), TOKENS),
    "Encoder, padded": lambda: (
        layers.Encoder(7, D, recurrent("gru")),
        TOKENS,
        LENGTHS,
    ),
    "Seq2Seq": lambda: (translator(), TOKENS, LENGTHS, TOKENS + 1),
    "VariationalDropout": lambda: (layers.VariationalDropout(0.5), sequences()),
    "StochasticDepth": lambda: (layers.StochasticDepth(0.5), sequences()),
    "SqueezeExcitation": lambda: (layers.SqueezeExcitation(D, 2, shift=True), images()),
    "SqueezeExcitation, padded": lambda: (layers.SqueezeExcitation(D), images(), MASK),
    "ECA": lambda: (layers.ECA(D, 3, "hard_sigmoid"), images()),
    "FiLM": lambda: (layers.FiLM(D, D), images(), torch.randn(B, D)),
    "GatedResidualBlock2d": lambda: (
        layers.GatedResidualBlock2d(D, 3, 2, layers.SqueezeExcitation(3)),
        images(),
    ),
    "GatedResidualBlock2d of FiLM": lambda: (
        layers.GatedResidualBlock2d(D, gate=layers.FiLM(2, D)),
        images(),
        torch.randn(B, 2),
    ),
} | {f"pool {k}": lambda k=k: (Pool(k), sequences(), LENGTHS) for k in ("max", "mean", "ends")}
THROUGH = ("Residual", "Dense", "Deep", "pool", "VariationalDropout", "StochasticDepth")


def made(name):
    torch.manual_seed(0)
    layer, *arguments = CASES[name]()
    return layer.eval(), arguments


def holder(layer, count):
    """A module of a user's own around the layer, with as many named inputs: fx reads them."""
    names = [f"a{k}" for k in range(count)]

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, *given):
            return self.layer(*given)

    forward = f"lambda self, {', '.join(names)}: self.layer({', '.join(names)})"
    Holder.forward = eval(forward)
    return Holder()


def assert_same(found, expected):
    pairs = zip(tree_leaves(found), tree_leaves(expected), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


# ---- torch.fx -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_fx_traces_a_model_that_holds_the_layer(name):
    layer, arguments = made(name)
    absent = {f"a{k}": None for k, value in enumerate(arguments) if value is None}
    graph = fx.symbolic_trace(holder(layer, len(arguments)), concrete_args=absent or None)
    expected = layer(*arguments)
    assert_same(graph(*arguments), expected)
    assert graph.graph.python_code("self").src


@pytest.mark.parametrize("name", CASES)
def test_fx_traces_the_layer_alone_or_says_what_to_do(name):
    layer, arguments = made(name)
    parameters = list(inspect.signature(layer.forward).parameters.values())
    given = zip(parameters, arguments, strict=False)
    absent = {p.name: None for p, value in given if value is None}
    rest = parameters[len(arguments) :]
    absent |= {p.name: p.default for p in rest if p.default is not inspect.Parameter.empty}
    if name.startswith(THROUGH):
        graph = fx.symbolic_trace(layer, concrete_args=absent or None)
        assert_same(graph(*arguments), layer(*arguments))
    else:
        with pytest.raises(TypeError, match="whole, as one node of a model; trace a module that"):
            fx.symbolic_trace(layer, concrete_args=absent or None)


def test_a_traced_residual_layer_still_refuses_what_does_not_fit():
    graph = fx.symbolic_trace(layers.Residual(nn.Linear(3, 1)))
    with pytest.raises(ValueError, match=r"block: expected an output of shape \(2, 3\)"):
        graph(torch.ones(2, 3))


def test_a_traced_stochastic_branch_is_drawn_anew_at_each_call():
    graph = fx.symbolic_trace(layers.Residual(nn.Identity(), drop=0.5))
    torch.manual_seed(0)
    x = torch.ones(200, 1)
    one, other = graph(x), graph(x)
    assert set(one.unique().tolist()) == {1.0, 3.0} and not torch.equal(one, other)


# ---- tensors without values ---------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_shapes_and_types_come_out_of_meta_and_fake_tensors(name):
    layer, arguments = made(name)
    expected = [(t.shape, t.dtype) for t in tree_leaves(layer(*arguments))]
    away = [None if value is None else value.to("meta") for value in arguments]
    found = tree_leaves(made(name)[0].to("meta")(*away))
    assert [(t.shape, t.dtype) for t in found] == expected
    assert all(t.device.type == "meta" for t in found)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        layer, arguments = made(name)
        fake = [None if v is None else mode.from_tensor(v) for v in arguments]
        found = tree_leaves(layer(*fake))
    assert [(t.shape, t.dtype) for t in found] == expected


# ---- tools that go by torch's classes -----------------------------------------------------------


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.same, self.readout = layer, layer, nn.Linear(D, 2)

    def forward(self, x):
        found = self.layer(x)
        return self.readout(found[0] if isinstance(found, tuple) else found)


DROP_INS = {
    "LSTM": lambda: layers.LSTM(D, D, 2, batch_first=True, dropout=0.1),
    "LSTM, two ways": lambda: layers.LSTM(D, 2, bidirectional=True, bias=False),
    "LSTM, projected": lambda: layers.LSTM(D, 6, proj_size=D),
    "GRU": lambda: layers.GRU(D, D),
    "RNN": lambda: layers.RNN(D, D, nonlinearity="relu"),
    "LSTMCell": lambda: layers.LSTMCell(D, D),
    "GRUCell": lambda: layers.GRUCell(D, D),
    "RNNCell": lambda: layers.RNNCell(D, D, nonlinearity="relu"),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", DROP_INS)
def test_a_model_of_drop_ins_becomes_one_of_torchs_own_layers(name):
    model = Model(DROP_INS[name]()).eval()
    twin = convert.to_torch(model)
    assert type(twin.layer) is getattr(nn, name.split(",")[0]) and twin.same is twin.layer
    assert type(model.layer) is getattr(layers, name.split(",")[0])
    x = torch.randn(B, D) if "Cell" in name else sequences()
    torch.testing.assert_close(twin(x), model(x), atol=1e-6, rtol=0)
    assert list(twin.state_dict()) == list(model.state_dict()) and not twin.layer.training
    alone = convert.to_torch(model.layer)
    assert type(alone) is type(twin.layer)


def test_what_torch_does_not_have_is_not_made_into_torchs():
    with pytest.raises(ValueError, match="model: expected no GRU with reset_after=False"):
        convert.to_torch(Model(layers.GRU(D, D, reset_after=False)))
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got int"):
        convert.to_torch(3)


@pytest.mark.skipif(
    not torch.backends.quantized.supported_engines, reason="torch has no quantized kernels here"
)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "LSTMCell"])
def test_quantization_reaches_a_drop_in_through_its_twin(name):
    model = Model(DROP_INS[name]()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls this interface old
        small = torch.ao.quantization.quantize_dynamic(convert.to_torch(model))
        x = torch.randn(B, D) if "Cell" in name else sequences()
        assert "quantized" in type(small.layer).__module__
        torch.testing.assert_close(small(x), model(x), atol=0.05, rtol=0)


def test_quantization_of_the_matrices_inside_our_layers_works_as_it_is():
    model = layers.Deep(D, 3).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = torch.ao.quantization.quantize_dynamic(model)
        x = sequences()
        torch.testing.assert_close(small(x), model(x), atol=0.1, rtol=0)


# ---- ONNX ---------------------------------------------------------------------------------------


def onnx_modules():
    """ONNX's packages; without them these tests are skipped, and say what to install."""
    why = "ONNX export isn't tested here: pip install onnx==1.23.2 onnxscript==0.7.2"
    pytest.importorskip("onnxscript", reason=why)
    return pytest.importorskip("onnx.reference", reason=why)


def exported(layer, arguments, any_batch):
    """The graph that torch exports, as the reference implementation of ONNX runs it."""
    reference = onnx_modules()
    sizes = tuple(v if v is None else {0: torch.export.Dim.DYNAMIC} for v in arguments)
    options = {"dynamic_shapes": sizes} if any_batch else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(layer, tuple(arguments), dynamo=True, verbose=False, **options)
    memory = io.BytesIO()
    program.save(memory)
    custom = {node.domain for node in program.model_proto.graph.node} - {""}
    assert not custom, f"operators that ONNX doesn't know: {custom}"
    run = reference.ReferenceEvaluator(program.model_proto)

    def call(given):
        given = [value.numpy() for value in given if value is not None]
        return run.run(None, dict(zip(run.input_names, given, strict=True)))

    return call


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_an_exported_layer_computes_the_same_at_any_batch(name):
    layer, arguments = made(name)
    any_batch = name != "Seq2Seq"  # its two inputs are compared, which fixes their batch
    call = exported(layer, arguments, any_batch)
    more = [None if v is None else torch.cat([v, v.flip(0), v]) for v in arguments]
    for given in (arguments, more) if any_batch else (arguments,):
        expected = [value.numpy() for value in tree_leaves(layer(*given))]
        for one, other in zip(call(given), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's exporter warns of its own parts
@pytest.mark.parametrize(
    "layer", [recurrent("lstm", impl="fused"), layers.Highway(D, impl="fused")]
)
def test_an_export_of_the_fused_path_is_refused(layer):
    onnx_modules()
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"No ONNX function found for .*gatelib"):
        torch.onnx.export(layer.eval(), (sequences(),), dynamo=True, verbose=False)
