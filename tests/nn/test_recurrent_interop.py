"""A Recurrent on meta and fake tensors, exported, traced by torch.fx, quantised beside others."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gatelib.equations import gru, lstm
from gatelib.nn import Recurrent

B, T, D, H = 2, 5, 3, 4
CELLS = {"peephole": lstm.PEEPHOLE, "layernorm": lstm.LAYERNORM, "gru": gru.GRU, "mgu": gru.MGU}
every_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
every_impl = pytest.mark.parametrize("impl", ["auto", "fused", "reference"])


class Model(nn.Module):
    """A layer among others."""

    def __init__(self, cell, **options):
        super().__init__()
        self.layer, self.head = Recurrent(cell, D, H, **options), nn.Linear(H, 2)

    def forward(self, x):
        output, state = self.layer(x)
        return self.head(output[:, -1]) + self.head(state["h"][0])


@pytest.fixture
def compiler():
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch._dynamo.reset()


@every_cell
@every_impl
def test_meta_tensors_run_forward_and_backward(cell, impl):
    made = Recurrent(cell, D, H, impl=impl, device="meta", num_layers=2, bidirectional=True)
    x = torch.empty(B, T, D, device="meta", requires_grad=True)
    y, state = made(x)
    y.sum().backward()
    assert y.is_meta and y.shape == (B, T, 2 * H) and state["h"].shape == (4, B, H)
    assert x.grad.is_meta and x.grad.shape == x.shape
    assert all(p.grad.is_meta and p.grad.shape == p.shape for p in made.parameters())


@every_cell
@every_impl
def test_fake_tensors_run_forward_and_backward(cell, impl):
    with FakeTensorMode():
        made = Recurrent(cell, D, H, impl=impl)
        x = torch.empty(B, T, D, requires_grad=True)
        y, _ = made(x, lengths=torch.tensor([3, 5]))
        first = torch.autograd.grad(y.sum(), [x, *made.parameters()], create_graph=True)
        torch.autograd.grad(first[0].square().sum(), x)
    assert [g.shape for g in first] == [x.shape, *(p.shape for p in made.parameters())]


def targets(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@every_cell
def test_export_holds_the_layer_as_one_operator(compiler, cell):
    model, x = Model(cell), torch.randn(B, T, D)
    sizes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("time", min=2)},)
    program = torch.export.export(model, (x,), dynamic_shapes=sizes)
    assert str(torch.ops.gatelib.recurrent.default) in targets(program)
    other = torch.randn(B + 2, T + 3, D)
    torch.testing.assert_close(program.module()(other), model(other))


@every_cell
def test_an_onnx_export_sees_the_plain_loop(monkeypatch, compiler, cell):
    """What torch's exporter does first, without the packages that write the file."""
    model, x = Model(cell).eval(), torch.randn(B, T, D)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    program = torch.export.export(model, (x,), strict=False)
    assert not any("gatelib" in target for target in targets(program))
    assert all(target.startswith("aten.") for target in targets(program) if "." in target)
    torch.testing.assert_close(program.module()(x), model(x))


def test_an_onnx_export_of_a_fused_layer_says_what_to_ask_for(monkeypatch):
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with pytest.raises(ValueError, match=r"impl: expected 'auto' or 'reference' in an ONNX export"):
        Model(lstm.PEEPHOLE, impl="fused")(torch.randn(B, T, D))


def test_onnx_runs_what_the_exporter_writes(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, x = Model(lstm.PEEPHOLE).eval(), torch.randn(B, T, D)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x), atol=1e-5, rtol=1e-5)


@every_cell
@every_impl
def test_fx_traces_a_model_and_keeps_the_layer(cell, impl):
    model, x = Model(cell, impl=impl), torch.randn(B, T, D)
    graph = fx.symbolic_trace(model)
    assert next(n.target for n in graph.graph.nodes if n.op == "call_module") == "layer"
    torch.testing.assert_close(graph(x), model(x))


def test_fx_of_the_layer_alone_says_what_to_do():
    with pytest.raises(TypeError, match=r"input: .*keeps a Recurrent whole.*a module that holds"):
        fx.symbolic_trace(Recurrent(lstm.PEEPHOLE, D, H))


def test_quantising_a_model_leaves_the_layer_in_floats_and_right():
    from torch.ao import quantization

    model, x = Model(lstm.PEEPHOLE), torch.randn(B, T, D)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        smaller = quantization.quantize_dynamic(model, {nn.Linear})
    assert isinstance(smaller.layer, Recurrent)
    torch.testing.assert_close(smaller.layer(x)[0], model.layer(x)[0])
    torch.testing.assert_close(smaller(x), model(x), atol=0.05, rtol=0.05)


def test_quantising_the_layer_itself_is_refused():
    from torch.ao import quantization

    with (
        warnings.catch_warnings(),
        pytest.raises(TypeError, match=r"qconfig: .*a Recurrent has no"),
    ):
        warnings.simplefilter("ignore")
        quantization.quantize_dynamic(Model(lstm.PEEPHOLE), {Recurrent})


@every_cell
@pytest.mark.parametrize("bidirectional", [False, True])
def test_values_are_those_of_the_equations_at_every_step(cell, bidirectional):
    torch.manual_seed(0)
    made = Recurrent(cell, D, H, num_layers=2, bidirectional=bidirectional, dtype=torch.float64)
    x, lengths = torch.randn(B, T, D, dtype=torch.float64), torch.tensor([3, 5])
    y, last = made(x, lengths=lengths)
    found = made.values(x, lengths=lengths)
    paths = [".l0", ".l0_reverse", ".l1", ".l1_reverse"] if bidirectional else [".l0", ".l1"]
    assert list(found) == paths
    names = [str(v) for stage in made.cell.stages for v, _ in stage.equations]
    for row, path in enumerate(paths):
        values = found[path]
        assert list(values) == names and all(v.shape == (B, T, H) for v in values.values())
        assert all(v[0, 3:].isnan().all() and v[0, :3].isfinite().all() for v in values.values())
        end = 0 if path.endswith("reverse") else 2
        torch.testing.assert_close(values["h"][0, end], last["h"][row, 0])
    top = torch.cat([found[path]["h"] for path in paths[len(paths) // 2 :]], -1)
    torch.testing.assert_close(top[0, :3], y[0, :3])
    torch.testing.assert_close(top[1], y[1])


def test_values_of_one_layer_have_no_path():
    made = Recurrent(lstm.PEEPHOLE, D, H, batch_first=False)
    state = {k: torch.randn(1, B, H) for k in made.cell.states}
    found = made.values(torch.randn(T, B, D), state)
    assert list(found) == [""] and found[""]["c"].shape == (B, T, H)


def test_values_are_refused_where_dropout_is_drawn_anew():
    made = Recurrent(lstm.PEEPHOLE, D, H, num_layers=2, dropout=0.5)
    with pytest.raises(ValueError, match="training: expected eval mode"):
        made.values(torch.randn(B, T, D))
    assert made.eval().values(torch.randn(B, T, D))
