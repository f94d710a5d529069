"""Experts over segments: every transform of torch, and what is refused.

Imports torch, gatelib.kernels and tests.kernels.
"""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from gatelib.kernels.gated import gated_of
from gatelib.kernels.segments import EXPERTS, experts_mlp, experts_mlp_reference, segments
from tests.kernels.glu_leaves import gradients, same
from tests.kernels.glu_specs import SWIGLU
from tests.kernels.segment_leaves import INDICES, leaves_of, run

FORMS = (experts_mlp, experts_mlp_reference)

# --- torch's transforms -----------------------------------------------------------------------


@pytest.mark.parametrize("dims", [(0, None, None, None), (1, 0, None, None), (None, None, 0, 2)])
def test_vmap_maps_whatever_it_is_asked_to(dims):
    leaves = [
        v if d is None else torch.stack([v, 2 * v, v - 1], d).detach().requires_grad_()
        for v, d in zip(leaves_of(SWIGLU), dims, strict=True)
    ]
    results = []
    for form in FORMS:
        y = torch.vmap(run(form, SWIGLU), dims)(*leaves)
        results.append([y, *torch.autograd.grad(y.sin().sum(), leaves)])
    same(*results)


def test_vmap_maps_the_routing():
    x, weights, *stacks = leaves_of(SWIGLU)
    routings = torch.stack([INDICES, INDICES.flip(0), INDICES.clamp(0, 1)])
    for form in FORMS:
        y = torch.vmap(lambda i, form=form: form(SWIGLU, x, i, weights, *stacks))(routings)
        same(y, torch.stack([form(SWIGLU, x, i, weights, *stacks) for i in routings]))


@pytest.mark.parametrize("vectorize", [False, True])
def test_jacobians_are_those_of_the_formula(vectorize):
    leaves = leaves_of(SWIGLU, features=2, size=2)
    jacobian = torch.autograd.functional.jacobian
    same(*(jacobian(run(form, SWIGLU), leaves, vectorize=vectorize) for form in FORMS))


def test_the_plain_form_goes_where_no_index_can_be_looked_at():
    """Inside of torch.func's grad, where no custom operator goes, all experts see all tokens."""
    leaves = leaves_of(SWIGLU)
    plain = run(experts_mlp_reference, SWIGLU)
    wanted = (0, 1, 2, 3)
    found = torch.func.grad(lambda *v: plain(*v).sin().sum(), wanted)(*leaves)
    same(found, torch.autograd.grad(run(experts_mlp, SWIGLU)(*leaves).sin().sum(), leaves))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
def test_a_trace_of_the_plain_form_takes_other_tokens_and_other_experts():
    x, weights, *stacks = (v.detach() for v in leaves_of(SWIGLU))
    known = gated_of(SWIGLU)

    def plain(x, indices, weights):
        return experts_mlp_reference(known, x, indices, weights, *stacks)

    other = x[:3] + 1, INDICES.flip(0)[:3], weights[:3]
    for traced in (
        torch.jit.trace(plain, (x, INDICES, weights)),
        make_fx(plain, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x, INDICES, weights),
        torch.func.functionalize(plain),
    ):
        same(traced(*other), plain(*other))


@pytest.mark.parametrize("save", [True, False])
def test_the_operator_keeps_its_promises_to_torch(save):
    known, (x, weights, *stacks) = gated_of(SWIGLU), leaves_of(SWIGLU)
    if not save:
        x, weights, *stacks = (v.detach() for v in (x, weights, *stacks))
    torch.library.opcheck(
        torch.ops.gatelib.experts_mlp.default,
        (known.text, x, INDICES, weights, *stacks, save),
        test_utils=(
            "test_schema",
            "test_faketensor",
            "test_autograd_registration",
            "test_aot_dispatch_static",
        ),
    )


@pytest.mark.parametrize("form", FORMS)
def test_meta_tensors_run_forward_and_backward(form):
    leaves = [v.detach().to("meta").requires_grad_() for v in leaves_of(SWIGLU)]
    y = run(form, SWIGLU, INDICES.to("meta"))(*leaves)
    y.sum().backward()
    assert y.shape == (5, 2) and all(v.grad.is_meta and v.grad.shape == v.shape for v in leaves)


@pytest.mark.parametrize("form", FORMS)
def test_compile_takes_it_whole(form):
    torch._dynamo.reset()
    known, leaves = gated_of(SWIGLU), leaves_of(SWIGLU)

    def layer(indices, *leaves):
        return 2 * form(known, leaves[0], indices, *leaves[1:])

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for indices in (INDICES, INDICES.flip(1)):
        got, expected = compiled(indices, *leaves), layer(indices, *leaves)
        same(got, expected)
        same(gradients(got, leaves), gradients(expected, leaves))
    torch._dynamo.reset()


def test_export_keeps_it_as_one_node():
    known, leaves = gated_of(SWIGLU), [v.detach() for v in leaves_of(SWIGLU)]

    class Layer(torch.nn.Module):
        def forward(self, x, indices, weights, weight_in, weight_out):
            return experts_mlp(known, x, indices, weights, weight_in, weight_out)

    arguments = (leaves[0], INDICES, *leaves[1:])
    program = torch.export.export(Layer(), arguments)
    same(program.module()(*arguments), run(experts_mlp, SWIGLU)(*leaves))
    assert any("experts_mlp" in str(node.target) for node in program.graph.nodes)


# --- what is refused --------------------------------------------------------------------------

X, I, W = torch.zeros(5, 3), torch.zeros(5, 2, dtype=torch.int64), torch.zeros(5, 2)
IN, OUT = torch.zeros(4, 8, 3), torch.zeros(4, 2, 4)
BAD = {
    "no Spec": (("swiglu", X, I, W, IN, OUT), TypeError, "spec: expected a Spec, got str"),
    "no tensor": ((SWIGLU, [1.0], I, W, IN, OUT), TypeError, "x: expected a tensor, got list"),
    "no axis": ((SWIGLU, X[0, 0], I, W, IN, OUT), ValueError, r"x: expected \(..., D\)"),
    "indices": ((SWIGLU, X, W, W, IN, OUT), TypeError, "indices: expected int64 or int32"),
    "no indices": ((SWIGLU, X, 0, W, IN, OUT), TypeError, "indices: expected a tensor"),
    "tokens": ((SWIGLU, X, I[:4], W, IN, OUT), ValueError, r"indices: expected \(5, 'k'\)"),
    "weights": ((SWIGLU, X, I, W[:4], IN, OUT), ValueError, "weights: expected shape"),
    "weights' dtype": ((SWIGLU, X, I, W.half(), IN, OUT), TypeError, "weights: expected"),
    "whole weights": ((SWIGLU, X, I, I, IN, OUT), TypeError, "weights: expected a floating"),
    "weight_in": ((SWIGLU, X, I, W, IN[:3], OUT), ValueError, r"weight_in: .* \(4, 8, 3\)"),
    "one gate": ((SWIGLU, X, I, W, IN[:, :4], OUT), ValueError, "weight_in: expected"),
    "weight_out": ((SWIGLU, X, I, W, IN, OUT[0]), ValueError, r"weight_out: .*\(E, O, H\)"),
    "no experts": ((SWIGLU, X, I, W, IN[:0], OUT[:0]), ValueError, "weight_out: expected"),
    "x's dtype": ((SWIGLU, X.double(), I, W.double(), IN, OUT), TypeError, "weight_in: expected"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_what_can_not_be_is_refused_by_name(case, form):
    arguments, kind, message = case
    with pytest.raises(kind, match=message):
        form(*arguments)


def test_pairs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"indices: expected \(N, k\), got \(5,\)"):
        segments(I[:, 0], 4)


def test_the_operator_has_its_name():
    assert EXPERTS.name == "experts_mlp"
