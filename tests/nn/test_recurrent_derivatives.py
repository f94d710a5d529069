"""First and second derivatives of a fused Recurrent are right in whatever graph it stands."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from gatelib.equations import gru, lstm
from gatelib.nn import Recurrent

B, T, H = 2, 3, 3
CELLS = {
    "peephole": lstm.PEEPHOLE,
    "layernorm": lstm.LAYERNORM,
    "gru": gru.GRU,
    "mgu": gru.MGU,
    "cho": gru.CHO,
}
every_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def layer(cell, impl="auto", size=H):
    """A layer whose output can be its own input, every parameter different from 0 and 1."""
    torch.manual_seed(1)
    made = Recurrent(cell, size, H, impl=impl, dtype=torch.float64)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def same(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def both(cell, run):
    """What `run` makes of the fused layer and of the reference."""
    found = []
    for impl in ("fused", "reference"):
        made = layer(cell, impl)
        found.append(run(made, dict(made.named_parameters())))
    return found


def gradients(value, leaves, create_graph):
    """First gradients; with `create_graph` those of a sum of squares of them too."""
    leaves = list(leaves)
    options = {"create_graph": create_graph, "allow_unused": True}
    first = [g for g in torch.autograd.grad(value, leaves, **options) if g is not None]
    if not create_graph:
        return first
    total = sum(g.square().sum() for g in first)
    return [*first, *(torch.autograd.grad(total, leaves, allow_unused=True))]


def chained(made, x):
    """The layer upon its own output."""
    return made(made(x)[0])[0].square().sum()


def carried(made, x):
    """One sequence read in two pieces, the state handed on."""
    first, state = made(x[:, :2])
    second, last = made(x[:, 2:], state)
    return first.sum() + second.square().sum() + sum(v.sin().sum() for v in last.values())


def begun_by_the_input(made, x):
    """An initial state that is computed from the input."""
    state = {name: x.mean(1)[None].tanh() * (1 + n) for n, name in enumerate(made.cell.states)}
    return made(x, state)[0].square().sum()


def often(made, x):
    """Several calls of the same layer in one graph, beside each other."""
    return (made(x)[0] * made(x.flip(1))[0]).sum() + made(x.sin())[0].square().sum()


def circled(made, x):
    """An input that depends on the weights."""
    seen = x + made.weight_hh_l0[:H].sum() * made.weight_ih_l0[0].sum()
    return made(seen)[0].square().sum()


GRAPHS = [chained, carried, begun_by_the_input, often, circled]


@every_cell
@pytest.mark.parametrize("create_graph", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("graph", GRAPHS, ids=lambda g: g.__name__)
def test_each_path_counts_once(cell, graph, create_graph):
    x = leaf(B, T, H)
    got, expected = both(cell, lambda m, p: gradients(graph(m, x), [x, *p.values()], create_graph))
    same(got, expected)


@every_cell
@pytest.mark.parametrize("create_graph", [False, True], ids=["once", "twice"])
def test_first_gradients_are_the_same_with_a_graph_of_them(cell, create_graph):
    made, x = layer(cell, "fused"), leaf(B, T, H)
    leaves = [x, *made.parameters()]
    plain = torch.autograd.grad(chained(made, x), leaves)
    same(gradients(chained(made, x), leaves, create_graph)[: len(leaves)], list(plain))


@pytest.mark.parametrize("create_graph", [False, True], ids=["once", "twice"])
def test_tied_weights_count_both_times(create_graph):
    tied = leaf(4 * H, H)

    def run(made, named):
        named |= {"weight_ih_l0": tied, "weight_hh_l0": tied}
        y, _ = functional_call(made, named, (x,))
        return gradients(y.square().sum(), [tied, x], create_graph)

    x = leaf(B, T, H)
    same(*both(lstm.PEEPHOLE, run))


@every_cell
@pytest.mark.parametrize("kind", ["expanded", "strided"])
def test_upstream_gradients_may_be_strided_under_create_graph(cell, kind):
    x = leaf(B, T, H)
    upstream = {
        "expanded": torch.randn(1, 1, H, dtype=torch.float64).expand(B, T, H),
        "strided": torch.randn(H, T, B, dtype=torch.float64).transpose(0, 2),
    }[kind].requires_grad_()

    def run(made, named):
        leaves = [x, *named.values()]
        first = torch.autograd.grad(made(x)[0], leaves, upstream, create_graph=True)
        total = sum(g.square().sum() for g in first)
        return [*first, *torch.autograd.grad(total, [*leaves, upstream])]

    same(*both(cell, run))


@every_cell
def test_second_derivatives_are_those_of_differences(cell):
    made = layer(cell, "fused")
    names = list(dict(made.named_parameters()))

    def run(x, *values):
        y, last = functional_call(made, dict(zip(names, values, strict=True)), (x,))
        return (y, *last.values())

    inputs = (leaf(2, 2, H), *made.parameters())
    assert torch.autograd.gradcheck(run, inputs, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, inputs)


class Counting(TorchDispatchMode):
    """Counts what runs."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


def test_a_chain_under_create_graph_costs_in_proportion_to_its_length():
    made, counts = layer(lstm.PEEPHOLE, "fused"), {}
    for calls in (4, 8, 16):
        x = y = leaf(B, 2, H)
        for _ in range(calls):
            y, _ = made(y)
        with Counting() as count:
            first = torch.autograd.grad(y.sum(), [x, *made.parameters()], create_graph=True)
            torch.autograd.grad(sum(g.square().sum() for g in first), x)
        counts[calls] = count.calls
    assert counts[8] < 2.3 * counts[4] and counts[16] < 2.3 * counts[8], counts


# ---- batches of gradients, and the transforms of torch.func ----------------------------------


@every_cell
@pytest.mark.parametrize("vectorize", [False, True])
def test_jacobians_of_the_default_are_those_of_the_reference(cell, vectorize):
    x = leaf(2, 2, H)

    def jacobian(impl):
        made = layer(cell, impl)
        run = torch.autograd.functional.jacobian
        return run(lambda v: made(v)[0], x, vectorize=vectorize)

    same(jacobian("auto"), jacobian("reference"))
    same(jacobian("fused"), jacobian("reference"))


@every_cell
@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_may_arrive_in_batches(cell, create_graph):
    x, seeds = leaf(B, T, H), torch.randn(5, B, T, H, dtype=torch.float64)

    def run(made, named):
        options = {"is_grads_batched": True, "create_graph": create_graph}
        return torch.autograd.grad(made(x)[0], [x, *named.values()], seeds, **options)

    same(*both(cell, run))


def value_of(made):
    """The layer as a function of its parameters and input."""

    def run(named, x):
        y, last = functional_call(made, named, (x,))
        return y.square().mean() + sum(v.sin().mean() for v in last.values())

    return run


TRANSFORMS = {
    "grad": lambda f, p, x: torch.func.grad(f, (0, 1))(p, x),
    "grad of grad": lambda f, p, x: torch.func.grad(
        lambda v: torch.func.grad(f, 1)(p, v).square().sum()
    )(x),
    "vjp": lambda f, p, x: torch.func.vjp(f, p, x)[1](torch.ones((), dtype=torch.float64)),
    "jvp": lambda f, p, x: torch.func.jvp(f, (p, x), (p, x)),
    "jacrev": lambda f, p, x: torch.func.jacrev(f, 1)(p, x),
    "jacfwd": lambda f, p, x: torch.func.jacfwd(f, 1)(p, x),
    "hessian": lambda f, p, x: torch.func.hessian(f, 1)(p, x),
    "vmap": lambda f, p, x: torch.vmap(f, (None, 0))(p, x[:, None]),
    "per-sample gradients": lambda f, p, x: torch.vmap(torch.func.grad(f), (None, 0))(
        p, x[:, None]
    ),
    "gradient over vmap": lambda f, p, x: torch.func.grad(
        lambda v: torch.vmap(f, (None, 0))(p, v[:, None]).sum()
    )(x),
    "forward over reverse": lambda f, p, x: torch.func.jvp(torch.func.grad(f, 1), (p, x), (p, x)),
}


@every_cell
@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_default_goes_through_torch_func(cell, name):
    x = torch.randn(B, 2, H, dtype=torch.float64)

    def run(made, named):
        made.impl = "auto" if made.impl == "fused" else made.impl
        detached = {name: p.detach() for name, p in named.items()}
        return TRANSFORMS[name](value_of(made), detached, x)

    same(*both(cell, run))


@pytest.mark.parametrize("name", ["grad", "hessian", "jvp", "per-sample gradients"])
def test_fused_alone_is_refused_where_the_operator_cannot_go(name):
    made = layer(lstm.PEEPHOLE, "fused")
    named = {k: p.detach() for k, p in made.named_parameters()}
    with pytest.raises(ValueError, match=r"impl: expected 'auto' or 'reference' inside torch.func"):
        TRANSFORMS[name](value_of(made), named, torch.randn(B, 2, H, dtype=torch.float64))


@every_cell
@pytest.mark.parametrize("dims", [(None, 0), (0, None), (0, 0)], ids=["data", "weights", "both"])
def test_vmap_of_the_operator_has_the_gradients_of_a_loop(cell, dims):
    many, x = 4, leaf(*((4, B, T, H) if dims[1] == 0 else (B, T, H)))
    lengths = torch.tensor([2, 3])

    def run(made, named):
        own = {k: p.expand(many, *p.shape) if dims[0] == 0 else p for k, p in named.items()}

        def one(p, v):
            y, last = functional_call(made, p, (v, None, lengths))
            return y, last["h"]

        y, h = torch.vmap(one, dims)(own, x)
        grads = torch.autograd.grad((y.sin() * 2).sum() + h.sum(), [x, *named.values()])
        return [y, h, *grads]

    same(*both(cell, run))


def test_vmap_over_examples_runs_the_operator_once(monkeypatch):
    from gatelib.kernels import recurrent

    shapes, run = [], recurrent.run_forward

    def seen(steps, inputs, save):
        shapes.append(tuple(inputs.x.shape))
        return run(steps, inputs, save)

    monkeypatch.setattr(recurrent, "run_forward", seen)
    made, x = layer(lstm.PEEPHOLE, "auto"), torch.randn(7, B, T, H, dtype=torch.float64)
    torch.vmap(lambda v: made(v)[0])(x)
    assert shapes == [(T, 7 * B, H)]


# ---- what people do with second derivatives --------------------------------------------------


@every_cell
def test_an_inner_step_of_maml_is_right(cell):
    x, target = torch.randn(2, B, T, H, dtype=torch.float64)

    def run(made, named):
        names, adapted = list(named), dict(named)
        for _ in range(2):
            loss = (functional_call(made, adapted, (x,))[0] - target).square().mean()
            steps = torch.autograd.grad(loss, list(adapted.values()), create_graph=True)
            adapted = {n: adapted[n] - 0.5 * g for n, g in zip(names, steps, strict=True)}
        outer = functional_call(made, adapted, (target,))[0].square().mean()
        return torch.autograd.grad(outer, list(named.values()))

    same(*both(cell, run))


@every_cell
def test_a_gradient_penalty_is_right(cell):
    x = leaf(B, T, H)

    def run(made, named):
        y, _ = made(x)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean() + y.square().mean()
        return torch.autograd.grad(penalty, list(named.values()))

    same(*both(cell, run))


def test_truncated_backpropagation_stops_at_a_detached_state():
    x = leaf(B, T, H)

    def run(made, named):
        first, state = made(x[:, :2])
        second, _ = made(x[:, 2:], {k: v.detach() for k, v in state.items()})
        return gradients(first.sum() + second.square().sum(), [x, *named.values()], True)

    same(*both(lstm.PEEPHOLE, run))
