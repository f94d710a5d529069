"""Fused gates over features: every transform of torch, and what is refused.

Imports torch, gatelib.kernels, gatelib.spec and tests.kernels.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gatelib.kernels.gated import gated_of
from gatelib.kernels.glu import GATED, GATED_LINEAR, gated, gated_linear
from gatelib.spec import Spec
from tests.kernels.glu_leaves import draw, eager, eager_linear, gradients, leaves_of, same
from tests.kernels.glu_specs import FAMILY, SWIGLU, named

# --- torch's transforms -----------------------------------------------------------------------


@pytest.mark.parametrize("dims", [(0, None, None), (1, None, 0), (None, 0, None), (0, 0, 0)])
def test_vmap_maps_whatever_it_is_asked_to(dims):
    leaves = [
        v if d is None else torch.stack([v, 2 * v, v - 1], d).detach().requires_grad_()
        for v, d in zip(leaves_of(SWIGLU), dims, strict=True)
    ]
    results = []
    for run in (gated_linear, eager_linear):
        y = torch.vmap(lambda *v, run=run: run(SWIGLU, *v), dims)(*leaves)
        results.append([y, *torch.autograd.grad(y.sin().sum(), leaves)])
    same(*results)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("mapped", [0, 1, 2])
def test_vmap_maps_the_gate_alone(dim, mapped):
    packed = draw(4, 4, 4)
    got = torch.vmap(lambda v: gated(SWIGLU, v, dim=dim), mapped)(packed)
    same(got, torch.vmap(lambda v: eager(SWIGLU, v, dim), mapped)(packed))
    values = [draw(4, 4, 4, seed=k) for k in range(2)]
    got = torch.vmap(lambda *v: gated(SWIGLU, *v), (mapped, None))(values[0], values[1][0])
    plain = SWIGLU.compile("torch")
    same(got, torch.vmap(plain, (mapped, None))(values[0], values[1][0]))


@pytest.mark.parametrize("vectorize", [False, True])
def test_jacobians_are_those_of_the_equations(vectorize):
    leaves = tuple(leaves_of(SWIGLU, rows=2, size=2, outputs=2))
    jacobian = torch.autograd.functional.jacobian
    got, expected = (
        jacobian(lambda *v, run=run: run(SWIGLU, *v), leaves, vectorize=vectorize)
        for run in (gated_linear, eager_linear)
    )
    same(got, expected)


@named(FAMILY)
def test_the_operators_keep_their_promises_to_torch(spec):
    known, (packed, weight, bias) = gated_of(spec), leaves_of(spec)
    tests = (
        "test_schema",
        "test_faketensor",
        "test_autograd_registration",
        "test_aot_dispatch_static",
    )
    for operator, arguments in (
        (torch.ops.gatelib.gated, (known.text, [packed], -1, True)),
        (torch.ops.gatelib.gated_linear, (known.text, packed, weight, bias, False)),
        (torch.ops.gatelib.gated_linear, (known.text, packed, weight, None, True)),
    ):
        torch.library.opcheck(operator.default, arguments, test_utils=tests)


def test_meta_tensors_run_forward_and_backward():
    leaves = [v.detach().to("meta").requires_grad_() for v in leaves_of(SWIGLU)]
    y = gated_linear(SWIGLU, *leaves)
    y.sum().backward()
    assert y.shape == (5, 3) and all(v.grad.is_meta and v.grad.shape == v.shape for v in leaves)


def test_compile_takes_both_operators_whole():
    torch._dynamo.reset()
    known, leaves = gated_of(SWIGLU), leaves_of(SWIGLU)

    def block(packed, weight, bias):
        return gated_linear(known, packed, weight, bias) + gated(known, packed).sum()

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    got, expected = compiled(*leaves), block(*leaves)
    same(got, expected)
    same(gradients(got, leaves), gradients(expected, leaves))
    torch._dynamo.reset()


def test_a_graph_is_the_same_by_the_dispatcher_and_by_the_shorter_way():
    """A mode of torch that only looks makes the operators go by the dispatcher."""
    seen = []

    class Looks(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, given=(), options=None):
            seen.append(str(function))
            return function(*given, **(options or {}))

    leaves = leaves_of(SWIGLU)
    short = gradients(gated_linear(SWIGLU, *leaves), leaves)
    with Looks():
        y = gated_linear(SWIGLU, *leaves)
        long = gradients(y, leaves)
    assert all(map(torch.equal, short, long))
    names = {name.split(".")[1] for name in seen}
    assert {"gated_linear", "gated_linear_backward"} <= names


# --- what is refused --------------------------------------------------------------------------

X34, W24 = torch.zeros(3, 4), torch.zeros(2, 2)
BAD = {
    "no Spec": (lambda: gated("swiglu", X34), TypeError, "spec: expected a Spec, got str"),
    "three inputs": (
        lambda: gated(Spec.parse("odd", "a b c -> y", "y = a*b*c"), X34),
        ValueError,
        "spec: expected one or two inputs and one output, got odd: 3 and 1",
    ),
    "across features": (
        lambda: gated(Spec.parse("odd", "a v -> y", "y = mean(a)*v"), X34),
        ValueError,
        "spec: expected an elementwise gate, got odd",
    ),
    "gate": (lambda: gated(SWIGLU, X34, gate="left"), ValueError, "gate: .*'first' or 'second'"),
    "no tensor": (lambda: gated(SWIGLU, [1.0]), TypeError, r"values\[0\]: expected a tensor"),
    "whole numbers": (lambda: gated(SWIGLU, X34.long()), TypeError, r"values\[0\]: .*int64"),
    "odd size": (lambda: gated(SWIGLU, X34, dim=0), ValueError, "even size along dim 0"),
    "no such axis": (lambda: gated(SWIGLU, X34, dim=2), ValueError, r"dim: .*\(3, 4\), got 2"),
    "other shape": (
        lambda: gated(SWIGLU, X34, X34[:2]),
        ValueError,
        r"values\[1\]: expected shape",
    ),
    "other dtype": (lambda: gated(SWIGLU, X34, X34.double()), TypeError, r"values\[1\]: expected"),
    "too many": (
        lambda: gated(SWIGLU, X34, X34, X34),
        TypeError,
        "one tensor for each of a, v, got 3",
    ),
    "weight": (lambda: gated_linear(SWIGLU, X34, X34[0]), ValueError, r"weight: expected \(O, H\)"),
    "packed": (lambda: gated_linear(SWIGLU, X34, X34), ValueError, r"packed: expected \(..., 8\)"),
    "bias": (
        lambda: gated_linear(SWIGLU, X34, W24, X34[0]),
        ValueError,
        r"bias: expected shape \(2,\)",
    ),
    "weight's dtype": (
        lambda: gated_linear(SWIGLU, X34, W24.half()),
        TypeError,
        "weight: expected",
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_what_can_not_be_is_refused_by_name(case):
    call, kind, message = case
    with pytest.raises(kind, match=message):
        call()


def test_the_plain_path_and_the_operators_have_their_names():
    assert (GATED.name, GATED_LINEAR.name) == ("gated", "gated_linear")
