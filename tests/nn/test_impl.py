"""One rule says where "auto" takes the reference, and why "fused" can't be had."""

import pytest
import torch
from torch import fx, nn
from torch.autograd import forward_ad

from gatelib.nn.impl import check_impl, takes_reference, traced, transforms

X = torch.randn(3, 2)


def asked_inside(transform, impl="auto", **options):
    """What the rule says inside a transform of torch.func."""
    answers = []

    def run(x):
        answers.append(takes_reference(impl, [x, None], **options))
        return x.square().sum()

    transform(run)
    return answers[0]


def grad(run):
    torch.func.grad(run)(X)


def vmap(run):
    torch.vmap(run)(X)


def jvp(run):
    torch.func.jvp(run, (X,), (X,))


def per_sample(run):
    torch.vmap(torch.func.grad(run))(X)


def hessian(run):
    torch.func.hessian(run)(X)


def functionalize(run):
    torch.func.functionalize(run)(X)


def dual(run):
    with forward_ad.dual_level():
        run(forward_ad.make_dual(X, X))


def plainly(run):
    run(X)


@pytest.mark.parametrize("transform", [plainly, vmap, functionalize])
def test_an_operator_goes_through_vmap(transform):
    assert not asked_inside(transform)
    assert not asked_inside(transform, "fused")
    assert asked_inside(transform, "reference")


@pytest.mark.parametrize("transform", [grad, jvp, per_sample, hessian, dual])
def test_auto_takes_the_reference_where_an_operator_cannot_go(transform):
    assert asked_inside(transform)
    assert asked_inside(transform, "reference")
    with pytest.raises(ValueError, match=r"impl: expected 'auto' or 'reference' in.*, got 'fused'"):
        asked_inside(transform, "fused")


def test_a_path_that_torch_differentiates_goes_further_but_never_forward():
    goes = ("vmap", "grad")
    assert not asked_inside(per_sample, goes=goes)
    assert asked_inside(hessian, goes=goes)
    assert asked_inside(dual, goes=goes)
    assert asked_inside(vmap, goes=())


def test_an_onnx_export_takes_the_reference_unless_the_path_has_a_form_there(monkeypatch):
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert takes_reference("auto", [X])
    assert not takes_reference("auto", [X], goes=("onnx",))
    with pytest.raises(ValueError, match=r"impl: .* in an ONNX export"):
        takes_reference("fused", [X])


def test_transforms_are_named_from_outside_in():
    seen = []
    torch.vmap(torch.func.grad(lambda x: seen.append(transforms()) or x.sum()))(X)
    assert seen == [["vmap", "grad"]]
    assert transforms() == []


@pytest.mark.parametrize("impl", ["fast", None, 1])
def test_an_unknown_impl_is_named(impl):
    with pytest.raises(ValueError, match="impl: expected 'auto', 'fused' or 'reference', got"):
        check_impl(impl)


class Whole(nn.Module):
    """A layer that torch.fx can't trace through."""

    def forward(self, x, scale=1.0):
        node = traced(self, x, scale)
        return node if node is not None else x * scale * float(x.sum())


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Whole(), nn.Linear(2, 2)])

    def forward(self, x):
        return self.layers[1](self.layers[0](x, 2.0))


def test_fx_keeps_the_layer_as_one_node():
    model = Model()
    graph = fx.symbolic_trace(model)
    torch.testing.assert_close(graph(X), model(X))
    assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == [
        "layers.0",
        "layers.1",
    ]


def test_fx_of_the_layer_alone_says_what_to_do():
    with pytest.raises(TypeError, match=r"input: .*keeps a Whole whole.*trace a module that holds"):
        fx.symbolic_trace(Whole())
