"""Experts over segments: every derivative is the formula's, and nothing unwritten is read.

Imports Hypothesis, torch, gatelib.kernels, gatelib.spec and tests.kernels.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from gatelib.kernels import segment_grouped
from gatelib.kernels.segments import experts_mlp, experts_mlp_reference, segments
from tests.kernels.glu_leaves import draw, eager, gradients, same
from tests.kernels.glu_specs import ALL, SWIGLU, named
from tests.kernels.segment_leaves import (
    INDICES,
    ROUTINGS,
    leaves_of,
    on_every_device,
    poisoned,
    run,
)
from tests.kernels.test_glu import held

FORMS = (experts_mlp, experts_mlp_reference)
either = pytest.mark.parametrize("form", FORMS)
routed = pytest.mark.parametrize("indices", ROUTINGS.values(), ids=ROUTINGS)
grouped = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="torch 2.10 has it")


def by_hand(spec, x, indices, weights, weight_in, weight_out):
    """Pair by pair, with nothing shared."""
    rows = []
    for token, own in enumerate(indices.tolist()):
        y = x.new_zeros(weight_out.shape[1])
        for slot, expert in enumerate(own):
            if 0 <= expert < len(weight_in):
                a = eager(spec, weight_in[expert] @ x[token])
                y = y + weights[token, slot] * (weight_out[expert] @ a)
        rows.append(y)
    return torch.stack(rows) if rows else x.new_zeros(0, weight_out.shape[1])


# --- values and derivatives -------------------------------------------------------------------


def test_pairs_are_sorted_by_expert_and_then_by_token():
    where = segments(INDICES, 5)
    assert where.order.tolist() == [1, 5, 6, 0, 3, 8, 7, 2, 4, 9]
    assert where.token.tolist() == [0, 2, 3, 0, 1, 4, 3, 1, 2, 4]
    assert where.counts.tolist() == [3, 0, 3, 1, 0] and where.offsets.tolist() == [3, 3, 6, 7, 7]
    assert where.order[where.place].tolist() == list(range(10))
    assert int(where.live) == 7


@routed
@either
def test_values_are_those_of_the_pairs_one_by_one(form, indices):
    leaves = leaves_of(SWIGLU, indices)
    same(run(form, SWIGLU, indices)(*leaves), run(by_hand, SWIGLU, indices)(*leaves))


@named(ALL)
def test_value_and_gradients_of_every_gate_are_those_of_the_formula(spec):
    leaves = leaves_of(spec)
    got, expected = (run(form, spec)(*leaves) for form in FORMS)
    same(got, expected)
    same(gradients(got, leaves), gradients(expected, leaves))


@routed
def test_gradients_are_those_of_the_formula_whoever_gets_the_tokens(indices):
    leaves = leaves_of(SWIGLU, indices)
    found = [gradients(run(form, SWIGLU, indices)(*leaves), leaves) for form in FORMS]
    same(*found)


@routed
def test_first_and_second_derivatives_are_those_of_differences(indices):
    leaves = leaves_of(SWIGLU, indices, features=2, size=2, outputs=1, scale=1.0)
    if len(indices):
        assert torch.autograd.gradcheck(run(experts_mlp, SWIGLU, indices), leaves)
        assert torch.autograd.gradgradcheck(run(experts_mlp, SWIGLU, indices), leaves)


@given(data=st.data(), tokens=st.integers(0, 9), slots=st.integers(0, 4), experts=st.integers(1, 6))
def test_any_routing_gives_the_formula(data, tokens, slots, experts):
    index = st.integers(-1, experts)
    row = st.lists(index, min_size=slots, max_size=slots)
    rows = data.draw(st.lists(row, min_size=tokens, max_size=tokens))
    indices = torch.tensor(rows, dtype=torch.int64).view(tokens, slots)
    leaves = leaves_of(SWIGLU, indices, experts=experts)
    got, expected = (run(form, SWIGLU, indices)(*leaves) for form in FORMS)
    same(got, expected)
    same(*(torch.autograd.grad(y.sum(), leaves) for y in (got, expected)))


def test_leading_axes_are_tokens():
    leaves = leaves_of(SWIGLU, INDICES[:4])
    x, weights, *stacks = leaves
    deep = INDICES[:4].view(2, 2, 2)
    y = experts_mlp(SWIGLU, x.view(2, 2, 3), deep, weights.view(2, 2, 2), *stacks)
    same(y.flatten(0, 1), run(experts_mlp, SWIGLU, INDICES[:4])(*leaves))
    one = experts_mlp(SWIGLU, x[0], INDICES[0], weights[0], *stacks)
    same(one, y[0, 0])


def test_turned_strided_and_expanded_leaves_give_the_formula():
    """Every leaf is a view of odd strides, and the gradient that arrives is expanded."""
    x, weights = draw(3, 10), draw(1, 2, seed=1)
    stacks = draw(3, 5, 8, seed=2), draw(5, 4, 4, seed=3)
    found = []
    for form in FORMS:
        views = x.t()[::2], weights.expand(5, 2), stacks[0].permute(1, 2, 0), stacks[1][:, ::2]
        y = run(form, SWIGLU)(*views)
        found.append([y, *torch.autograd.grad(y.sum(), (x, weights, *stacks))])
    same(*found)


# --- what is saved, and what is left alone ----------------------------------------------------


@pytest.mark.parametrize("experts", [5, 64])
def test_what_is_saved_does_not_grow_with_the_experts(experts):
    """Of 10 pairs, 8 preactivations and a whole number each; beside them the arguments."""
    leaves = leaves_of(SWIGLU, experts=experts)
    own = (*leaves, INDICES)
    assert held(lambda: run(experts_mlp, SWIGLU)(*leaves), own) == 10 * 8 + 10


def test_nothing_is_saved_where_no_gradient_is_wanted():
    leaves = [v.detach() for v in leaves_of(SWIGLU)]
    assert run(experts_mlp, SWIGLU)(*leaves).grad_fn is None


@routed
def test_what_nobody_wrote_is_never_read(indices, monkeypatch):
    leaves = leaves_of(SWIGLU, indices)
    y = run(experts_mlp, SWIGLU, indices)(*leaves)
    expected = [y, *torch.autograd.grad(y.sum(), leaves)]
    for number in (torch.nan, 2e38):
        with monkeypatch.context() as patch:
            poisoned(patch, number)
            y = run(experts_mlp, SWIGLU, indices)(*leaves)
            found = [y, *torch.autograd.grad(y.sum(), leaves)]
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_arguments_are_not_written_and_a_second_run_gives_the_same_bits(dtype):
    indices = torch.randint(-1, 6, (200, 3), generator=torch.Generator().manual_seed(0))
    leaves = leaves_of(SWIGLU, indices, dtype=dtype)
    before = [v.detach().clone() for v in (*leaves, indices)]
    runs = []
    for _ in range(2):
        y = run(experts_mlp, SWIGLU, indices)(*leaves)
        runs.append([y, *gradients(y, leaves, retain_graph=True), *gradients(y, leaves)])
    assert all(map(torch.equal, *runs)) and all(map(torch.equal, before, (*leaves, indices)))


@either
def test_a_pair_without_an_expert_says_nothing_about_its_weight(form):
    x, weights, *stacks = leaves_of(SWIGLU)
    spoiled = weights.detach().masked_fill((INDICES < 0) | (INDICES > 4), torch.nan)
    spoiled.requires_grad_()
    y = run(form, SWIGLU)(x, spoiled, *stacks)
    (slope,) = gradients(y, [spoiled])
    same(y, run(form, SWIGLU)(x, weights, *stacks))
    assert not slope[(INDICES < 0) | (INDICES > 4)].any()


def test_a_weight_of_0_has_the_gradient_of_the_formula():
    """<W_e^T dy, a_e> does not come from a product with the weight."""
    x, weights, *stacks = leaves_of(SWIGLU)
    zero = torch.zeros_like(weights, requires_grad=True)
    found = [gradients(run(form, SWIGLU)(x, zero, *stacks), [zero])[0] for form in FORMS]
    same(*found)
    assert found[0].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [2, 3, 4, 5, 9, 17, 40])
@pytest.mark.parametrize("save", [True, False])
@either
def test_a_later_token_changes_no_bit_of_those_before(form, tokens, dtype, save):
    """Though it changes how many rows its expert's product has. Sizes are multiples of 8."""
    generator = torch.Generator().manual_seed(tokens)
    indices = torch.randint(-1, 6, (tokens, 2), generator=generator)
    x, *others = leaves_of(SWIGLU, indices, 8, 16, outputs=8, dtype=dtype)
    before = run(form, SWIGLU, indices)(x, *others)
    for expert in range(-1, 6):
        moved, changed = indices.clone(), x.detach().clone()
        moved[-1], changed[-1] = expert, 3 - changed[-1]
        after = run(form, SWIGLU, moved)(changed.requires_grad_(save), *others)
        assert torch.equal(before[:-1], after[:-1])


# --- low precision ----------------------------------------------------------------------------


def errors(forms, leaves, indices, dtype):
    """The largest error of each result in relation to the largest value, by form."""
    truth = [v.detach().to(dtype).double().requires_grad_() for v in leaves]
    y = run(experts_mlp_reference, SWIGLU, indices)(*truth)
    upstream = draw(*y.shape, seed=3).detach().to(dtype)
    exact = [y.detach(), *torch.autograd.grad(y, truth, upstream.double())]
    for form in forms:
        own = [v.detach().to(dtype).requires_grad_() for v in leaves]
        y = run(form, SWIGLU, indices)(*own)
        found = [y.detach(), *torch.autograd.grad(y, own, upstream)]
        assert all(v.dtype == dtype for v in found)
        pairs = zip(found, exact, strict=True)
        yield [float((v.double() - t).abs().max() / t.abs().max()) for v, t in pairs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_errors_of_low_precision_are_a_few_roundings(dtype):
    """Measured from float64: 4 roundings of the largest value, and no worse than under autograd."""
    indices = torch.randint(0, 5, (60, 3), generator=torch.Generator().manual_seed(0))
    leaves = leaves_of(SWIGLU, indices, 16, 24, outputs=16, scale=0.5)
    own, usual = errors(FORMS, leaves, indices, dtype)
    for mine, theirs in zip(own, usual, strict=True):
        assert mine <= 4 * torch.finfo(dtype).eps and mine <= 2 * theirs + torch.finfo(dtype).eps


def test_weights_of_float32_stay_so_beside_low_precision():
    leaves = leaves_of(SWIGLU, dtype=torch.bfloat16)
    weights = draw(*INDICES.shape, seed=1, dtype=torch.float32)
    y = run(experts_mlp, SWIGLU)(leaves[0], weights, *leaves[2:])
    (slope,) = gradients(y, [weights])
    assert y.dtype == torch.bfloat16 and slope.dtype == torch.float32


def test_autocast_rounds_x_and_the_stacks_alone():
    leaves = leaves_of(SWIGLU, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, expected = (run(form, SWIGLU)(*leaves) for form in FORMS)
    assert got.dtype == expected.dtype == torch.bfloat16
    for mine, theirs in zip(gradients(got, leaves), gradients(expected, leaves), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.05 * float(theirs.abs().max()))


@either
def test_autocast_leaves_float64_alone(form):
    leaves = leaves_of(SWIGLU)
    y = run(form, SWIGLU)(*leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(form, SWIGLU)(*leaves)
    assert torch.equal(found, y)


@either
def test_autocast_takes_weights_of_another_low_precision(form):
    leaves = leaves_of(SWIGLU, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = run(form, SWIGLU)(*leaves)
    assert y.dtype == torch.bfloat16
    assert all(slope.dtype == torch.float16 for slope in gradients(y, leaves))


# --- all segments at once ---------------------------------------------------------------------


@grouped
@routed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("number", [torch.nan, 2e38])
def test_grouped_products_agree_and_read_nothing_unwritten(indices, dtype, number, monkeypatch):
    """`F.grouped_mm` leaves rows behind the last segment alone; NaN stands there here."""
    leaves = leaves_of(SWIGLU, indices, 8, 16, outputs=24, dtype=dtype, scale=0.5)
    y = run(experts_mlp, SWIGLU, indices)(*leaves)
    expected = [y.detach(), *torch.autograd.grad(y.sum(), leaves)]
    on_every_device(monkeypatch)
    poisoned(monkeypatch, number)
    taken = segment_grouped.goes(leaves[0], segments(indices, 5), leaves[2:])
    y = run(experts_mlp, SWIGLU, indices)(*leaves)
    found = [y.detach(), *torch.autograd.grad(y.sum(), leaves)]
    assert taken == (indices.numel() > 0)
    for got, known in zip(found, expected, strict=True):
        scale = float(known.abs().max()) if known.numel() else 0.0
        torch.testing.assert_close(got, known, rtol=0, atol=4 * torch.finfo(dtype).eps * scale)


@grouped
@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        (torch.float64, (8, 16, 24)),
        (torch.float32, (3, 16, 24)),
        (torch.float32, (8, 6, 24)),
        (torch.bfloat16, (4, 16, 24)),
    ],
    ids=str,
)
def test_what_grouped_products_can_not_take_goes_by_the_loop(dtype, sizes, monkeypatch):
    on_every_device(monkeypatch)
    features, size, outputs = sizes
    leaves = leaves_of(SWIGLU, INDICES, features, size, outputs=outputs, dtype=dtype)
    assert not segment_grouped.goes(leaves[0], segments(INDICES, 5), leaves[2:])
    assert run(experts_mlp, SWIGLU)(*leaves).isfinite().all()


@grouped
def test_a_stack_of_odd_strides_goes_by_the_loop(monkeypatch):
    on_every_device(monkeypatch)
    where = segments(INDICES, 5)
    x, _, weight_in, weight_out = leaves_of(SWIGLU, INDICES, 8, 16, outputs=24, dtype=torch.float32)
    assert segment_grouped.goes(x, where, (weight_in, weight_out))
    turned = weight_out.detach().mT.contiguous().mT
    assert not segment_grouped.goes(x, where, (weight_in, turned))
    shifted = torch.empty(weight_out.numel() + 1)[1:].view_as(weight_out)
    assert not segment_grouped.goes(x, where, (weight_in, shifted))


def test_without_grouped_products_the_loop_is_taken(monkeypatch):
    """torch 2.8 and 2.9."""
    on_every_device(monkeypatch)
    monkeypatch.delattr(F, "grouped_mm", raising=False)
    leaves = leaves_of(SWIGLU, INDICES, 8, 16, outputs=24, dtype=torch.float32)
    assert run(experts_mlp, SWIGLU)(*leaves).isfinite().all()
