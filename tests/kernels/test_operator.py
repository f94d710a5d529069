"""An operator declared once: every derivative, and every transform, is the plain path's."""

import itertools

import pytest
import torch
from torch import Tensor

from gatelib.kernels.operator import Operator

EXAMPLES, SIZE = 3, 2


def forward(
    scale: float, x: Tensor, weights: list[Tensor], mask: Tensor | None, save: bool
) -> list[Tensor]:
    """[sin(x w) masked, x summed, cosines]: (B, D), (B,), (B, D)."""
    a = x @ weights[0]
    y = torch.sin(a) * scale + weights[1]
    y = y if mask is None else y * mask
    return [y, x.square().sum(-1), *([torch.cos(a)] if save else [])]


def shapes(
    scale: float, x: Tensor, weights: list[Tensor], mask: Tensor | None, save: bool
) -> list[Tensor]:
    kept = [x.new_empty(x.shape)] if save else []
    return [x.new_empty(x.shape), x.new_empty(x.shape[:1]), *kept]


def backward(d_results, kept, needs, scale, x, weights, mask, save):
    d_y, d_sum = d_results
    d_x = d_w = d_b = None
    if d_y is not None:
        d_y = d_y if mask is None else d_y * mask
        d_a = d_y * kept[0] * scale
        d_x, d_w, d_b = d_a @ weights[0].T, x.T @ d_a, d_y.sum(0)
    if d_sum is not None:
        d_x = 2 * x * d_sum[:, None] + (0 if d_x is None else d_x)
    zeros = (torch.zeros_like(v) for v in (x, *weights))
    return [z if d is None else d for d, z in zip((d_x, d_w, d_b), zeros, strict=True)]


def plain(scale, x, weights, mask, save):
    return forward(scale, x, weights, mask, False)


OPERATOR = Operator(
    "tests_waves",
    forward=forward,
    shapes=shapes,
    results=lambda *arguments: 2,
    backward=backward,
    kept=lambda outputs, count: outputs[count:],
    plain=plain,
    rows={"x": 0, "mask": 0},
    row_axes=lambda *arguments: [0] * (3 if arguments[-1] else 2),
)


def fused(x, w, b, mask=None):
    """Both results as one tensor, by the operator."""
    y, total = OPERATOR(0.7, x, [w, b], mask, True)[:2]
    return y + total[..., None]


def readable(x, w, b, mask=None):
    y, total = plain(0.7, x, [w, b], mask, False)
    return y + total[..., None]


@pytest.fixture
def leaves():
    draw = torch.Generator().manual_seed(0)
    shapes = [(EXAMPLES, SIZE), (SIZE, SIZE), (SIZE,)]
    made = [torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes]
    return [v.requires_grad_() for v in made]


def same(got, expected):
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_chained_calls_count_each_path_once(leaves, calls, create_graph):
    def chain(run):
        x, w, b = leaves
        for _ in range(calls):
            x = run(x, w, b)
        return torch.autograd.grad(x.sum(), leaves, create_graph=create_graph)

    same(chain(fused), chain(readable))


def test_inputs_may_depend_on_each_other(leaves):
    x, w, _ = leaves

    def gradients(run):
        first = torch.autograd.grad(run(x, x.T @ x + w, w[0]).sum(), (x, w), create_graph=True)
        return (*first, *torch.autograd.grad(sum(g.square().sum() for g in first), (x, w)))

    same(gradients(fused), gradients(readable))


def test_first_and_second_derivatives_are_those_of_differences(leaves):
    assert torch.autograd.gradcheck(fused, leaves, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(fused, leaves)


def test_a_third_derivative_is_that_of_the_plain_path(leaves):
    def thrice(run):
        value = run(*leaves).sum()
        for _ in range(3):
            grads = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
            value = sum(g.square().sum() for g in grads if g is not None)
        return value

    same(thrice(fused), thrice(readable))


def test_only_what_needs_a_gradient_gets_one(leaves):
    x, w, b = leaves
    (d_w,) = torch.autograd.grad(fused(x.detach(), w, b.detach()).sum(), w)
    same(d_w, torch.autograd.grad(readable(x, w, b).sum(), w)[0])


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_may_arrive_in_batches(leaves, create_graph):
    def gradients(run):
        seeds = torch.eye(EXAMPLES * SIZE, dtype=torch.float64).view(-1, EXAMPLES, SIZE)
        options = {"is_grads_batched": True, "create_graph": create_graph}
        return torch.autograd.grad(run(*leaves), leaves, seeds, **options)

    same(gradients(fused), gradients(readable))


@pytest.mark.parametrize("vectorize", [False, True])
def test_jacobians_are_those_of_the_plain_path(leaves, vectorize):
    jacobian = torch.autograd.functional.jacobian
    given = tuple(leaves)
    same(jacobian(fused, given, vectorize=vectorize), jacobian(readable, given))


@pytest.mark.parametrize(
    "dims", [d for d in itertools.product((0, None, -1), repeat=3) if any(v is not None for v in d)]
)
def test_vmap_maps_whatever_it_is_asked_to(leaves, dims):
    many = [
        v if d is None else torch.stack([v, v * 2, v - 1], d).detach().requires_grad_()
        for v, d in zip(leaves, dims, strict=True)
    ]

    def results(run):
        y = torch.vmap(run, dims)(*many)
        return (y, *torch.autograd.grad(y.sin().sum(), many))

    same(results(fused), results(readable))


def test_vmap_over_examples_alone_is_one_call(leaves, monkeypatch):
    x, w, b = (v.detach() for v in leaves)
    calls = []
    monkeypatch.setattr(torch, "sin", lambda a, sin=torch.sin: calls.append(a.shape) or sin(a))
    torch.vmap(fused, (0, None, None))(x.expand(5, -1, -1), w, b)
    assert calls == [(5 * EXAMPLES, SIZE)]


@pytest.mark.parametrize("dims", [(0, None, None), (None, 0, None)])
def test_vmap_over_nothing_gives_nothing(leaves, dims):
    given = [
        v.detach() if d is None else v.detach().expand(2, *v.shape)[:0]
        for v, d in zip(leaves, dims, strict=True)
    ]
    assert torch.vmap(fused, dims)(*given).shape == (0, EXAMPLES, SIZE)


def test_the_operator_keeps_its_promises_to_torch(leaves):
    x, w, b = leaves
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    for mask in (None, torch.ones(EXAMPLES, 1, dtype=torch.float64)):
        arguments = (0.7, x, [w, b], mask, True)
        operator = torch.ops.gatelib.tests_waves.default
        torch.library.opcheck(operator, arguments, test_utils=tests)
    kept = [torch.cos(x @ w).detach()]
    d_results = [torch.ones_like(x), None]
    given = (d_results, kept, [True, False, True], 0.7, x, [w, b], None, True)
    backward = torch.ops.gatelib.tests_waves_backward.default
    torch.library.opcheck(backward, given, test_utils=("test_schema", "test_faketensor"))


def test_meta_tensors_run_forward_and_backward(leaves):
    on_meta = [v.detach().to("meta").requires_grad_() for v in leaves]
    y = fused(*on_meta)
    y.sum().backward()
    assert y.shape == (EXAMPLES, SIZE)
    assert all(v.grad.is_meta and v.grad.shape == v.shape for v in on_meta)


def test_compile_takes_forward_and_backward_whole(leaves):
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    got, expected = compiled(*leaves), readable(*leaves)
    same(got, expected)
    same(torch.autograd.grad(got.sum(), leaves), torch.autograd.grad(expected.sum(), leaves))
    torch._dynamo.reset()


def test_without_a_plain_path_a_second_derivative_is_refused(leaves):
    rough = Operator("tests_rough", forward, shapes, lambda *a: 2, backward, lambda o, n: o[n:])
    x, w, b = leaves
    y = rough(0.7, x, [w, b], None, True)[0]
    with pytest.raises(NotImplementedError, match=r"create_graph: .*no second derivative"):
        torch.autograd.grad(y.sum(), leaves, create_graph=True)
