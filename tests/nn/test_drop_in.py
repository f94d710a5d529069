"""`gatelib.nn`'s LSTM, GRU and RNN are `torch.nn`'s, to the last bit where torch's kernel runs."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from tests.nn.drop_in import (
    DEVICES,
    FAMILIES,
    B,
    D,
    H,
    T,
    assert_close,
    assert_no_further_than_torch,
    assert_same,
    assert_torchs,
    draw,
    error,
    every_dtype,
    every_family,
    every_impl,
    every_shape,
    every_state,
    everything,
    listed,
    make,
    pair_or_one,
    peer,
    second,
    sequences,
    step,
)

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")


# --- the same as torch ----------------------------------------------------------------------


@every_dtype
@every_shape
def test_outputs_states_and_all_gradients_are_torchs_to_the_bit(family, options, dtype):
    ours = make(family, **options, dtype=dtype)
    x, hx = draw(ours)
    assert_same(everything(ours, x, hx), everything(peer(ours), x, hx))
    assert_same(everything(ours, x), everything(peer(ours), x))


@every_shape
def test_the_reference_in_float64_is_torch(family, options):
    ours = make(family, **options, dtype=torch.float64, impl="reference")
    x, hx = draw(ours)
    assert_close(everything(ours, x, hx), everything(peer(ours), x, hx), 1e-13)
    assert_close(everything(ours, x), everything(peer(ours), x), 1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@every_shape
def test_the_reference_errs_no_more_than_twice_torch_against_float64(family, options, dtype):
    ours = make(family, **options, dtype=dtype, impl="reference")
    x, hx = draw(ours)
    assert_no_further_than_torch(ours, x, hx)
    if dtype == torch.float32:
        assert_close(everything(ours, x, hx), everything(peer(ours), x, hx), 1e-6)


@every_impl
@pytest.mark.parametrize("sort", [True, False], ids=["sorted", "unsorted"])
@every_shape
def test_packed_sequences_are_torchs(family, options, sort, impl):
    ours = make(family, **options, impl=impl)
    packed = sequences([7, 4, 4, 1] if sort else [4, 1, 7, 4], sort=sort)
    _, hx = draw(ours, batch=4)
    for states in (hx, None):
        assert_torchs(ours, packed, states, 1e-6)


@every_dtype
@every_family
def test_packed_output_keeps_its_order_and_type(family, dtype):
    ours = make(family, dtype=dtype, bidirectional=True)
    packed = sequences([2, 5, 3], dtype)
    (y, _), (y_torch, _) = ours(packed), peer(ours)(packed)
    assert isinstance(y, PackedSequence)
    assert torch.equal(y.sorted_indices, y_torch.sorted_indices)
    assert torch.equal(y.batch_sizes, y_torch.batch_sizes)
    assert y.data.dtype == dtype


@every_family
def test_a_packed_sequence_ends_where_it_alone_would_end(family):
    ours = make(family, bidirectional=True, impl="reference")
    rows = [torch.randn(length, D) for length in (2, 6)]
    _, together = ours(pack_sequence(rows, enforce_sorted=False))
    for index, row in enumerate(rows):
        for state, alone in zip(listed(together), listed(ours(row)[1]), strict=True):
            torch.testing.assert_close(state[:, index], alone, atol=1e-6, rtol=0)


@every_impl
@every_family
@settings(max_examples=12, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, n) for n in (5, 6, 7, 9)]),
    layers=st.integers(1, 3),
    flags=st.tuples(*[st.booleans()] * 4),
    seed=st.integers(0, 2**16),
)
def test_any_shape_is_torchs(family, impl, sizes, layers, flags, seed):
    batch, steps, features, hidden = sizes
    bias, batch_first, both, unbatched = flags
    torch.manual_seed(seed)
    options = {"bias": bias, "batch_first": batch_first, "bidirectional": both, "impl": impl}
    ours = family.layer(features, hidden, layers, **options, **family.options)
    x, hx = draw(ours, batch, steps, unbatched)
    assert_torchs(ours, x, hx, 3e-6)


@every_impl
@every_family
def test_no_time_step_raises_as_in_torch_and_says_so(family, impl):
    ours = make(family, impl=impl)
    with pytest.raises(RuntimeError, match="sequence length"):
        peer(ours)(torch.zeros(0, B, D))
    with pytest.raises(ValueError, match=r"input: expected at least one time step, got \(0, 3, 5"):
        ours(torch.zeros(0, B, D))


@every_impl
@every_family
def test_an_empty_batch_gives_empty_outputs_as_in_torch(family, impl):
    ours = make(family, 2, bidirectional=True, impl=impl)
    y, states = ours(torch.zeros(T, 0, D))
    y_torch, states_torch = peer(ours)(torch.zeros(T, 0, D))
    assert y.shape == y_torch.shape
    assert [s.shape for s in listed(states)] == [s.shape for s in listed(states_torch)]


# --- dropout --------------------------------------------------------------------------------


@every_impl
@pytest.mark.parametrize("batch_first", [False, True])
@every_family
def test_dropout_is_torchs_under_an_equal_seed(family, impl, batch_first):
    ours = make(family, 3, dropout=0.4, batch_first=batch_first, impl=impl)
    x, hx = draw(ours)
    theirs = peer(ours)
    torch.manual_seed(3)
    found = everything(ours, x, hx)
    torch.manual_seed(3)
    assert_close(found, everything(theirs, x, hx), 0.0 if impl == "fused" else 1e-6)


@every_impl
@every_family
def test_dropout_acts_in_training_only(family, impl):
    ours = make(family, 2, dropout=0.5, impl=impl)
    x, _ = draw(ours)
    assert not torch.equal(ours(x)[0], ours(x)[0])
    ours.eval()
    assert torch.equal(ours(x)[0], ours(x)[0])


@every_family
def test_dropout_in_one_layer_warns_as_in_torch(family):
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        make(family, dropout=0.5)


# --- weights --------------------------------------------------------------------------------


@every_shape
def test_equal_seeds_draw_torchs_weights(family, options):
    torch.manual_seed(11)
    ours = make(family, **options)
    torch.manual_seed(11)
    theirs = getattr(nn, family.layer.__name__)(D, H, **family.options, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same(ours.state_dict(), theirs.state_dict())


@every_shape
def test_weights_load_both_ways(family, options):
    torch.manual_seed(1)
    theirs = getattr(nn, family.layer.__name__)(D, H, **family.options, **options)
    ours = make(family, **options)
    x, hx = draw(ours)
    assert not torch.equal(ours(x, hx)[0], theirs(x, hx)[0])
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(x, hx)[0], theirs(x, hx)[0])
    assert torch.equal(peer(ours)(x, hx)[0], ours(x, hx)[0])


@every_family
def test_half_a_state_dict_is_refused(family):
    ours = make(family, 2)
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_ih_l1"):
        ours.load_state_dict(peer(make(family)).state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*weight_ih_l1"):
        make(family).load_state_dict(ours.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for weight_hh_l0"):
        family.layer(D, H + 1, 2, **family.options).load_state_dict(ours.state_dict())


@every_family
def test_weights_assigned_by_load_or_by_hand_are_the_ones_that_run(family):
    ours, other = make(family), make(family)
    x, hx = draw(ours)
    ours.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(ours(x, hx)[0], other(x, hx)[0])
    ours.weight_hh_l0 = nn.Parameter(torch.zeros_like(ours.weight_hh_l0))
    assert torch.equal(ours(x, hx)[0], peer(ours)(x, hx)[0])


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
@every_family
def test_a_copy_is_equal_and_its_own(family, how):
    ours = make(family, 2, bidirectional=True, impl="reference")
    if how == "torch.save":
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    else:
        twin = copy.deepcopy(ours) if how == "deepcopy" else pickle.loads(pickle.dumps(ours))
    x, hx = draw(ours)
    before = ours(x, hx)[0]
    assert twin.impl == "reference"
    assert torch.equal(before, twin(x, hx)[0])
    with torch.no_grad():
        twin.weight_hh_l1.zero_()
    assert torch.equal(before, ours(x, hx)[0])
    assert not torch.equal(before, twin(x, hx)[0])


@every_impl
@every_family
def test_functional_call_and_parametrizations_reach_the_kernel(family, impl):
    ours = make(family, impl=impl)
    x, hx = draw(ours)
    doubled = {name: 2 * value.detach() for name, value in ours.named_parameters()}
    called = torch.func.functional_call(ours, doubled, (x, hx))[0]
    nn.utils.parametrizations.weight_norm(ours, "weight_hh_l0")
    normed = ours(x, hx)[0]
    (gradient,) = torch.autograd.grad(normed.sum(), ours.parametrizations.weight_hh_l0.original0)
    assert gradient.abs().sum() > 0
    plain = make(family, impl=impl)
    plain.load_state_dict(doubled)
    assert torch.equal(called, plain(x, hx)[0])


@every_family
def test_moving_to_another_dtype_moves_all(family):
    ours = make(family, 2).double()
    x, hx = draw(ours)
    assert x.dtype == torch.float64
    assert_same(everything(ours, x, hx), everything(peer(ours), x, hx))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_the_repr_is_torchs_where_all_is_default(name):
    family = FAMILIES[name]
    assert repr(make(family, 2)) == repr(peer(make(family, 2)))
    assert repr(family.cell(D, H)) == repr(peer(family.cell(D, H)))


# --- derivatives beyond the first -----------------------------------------------------------


@every_impl
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}], ids=str)
@every_family
def test_first_and_second_derivatives_pass_gradcheck(family, options, impl):
    options = family.options | options
    ours = family.layer(2, 2, **options, dtype=torch.float64, impl=impl)
    x, hx = draw(ours, batch=2, steps=2)
    names = [name for name, _ in ours.named_parameters()]

    def run(x, *rest):
        states, weights = rest[: len(listed(hx))], rest[len(listed(hx)) :]
        named = dict(zip(names, weights, strict=True))
        y, final = torch.func.functional_call(ours, named, (x, pair_or_one(ours, states)))
        return y, *listed(final)

    inputs = [t.detach().requires_grad_() for t in (x, *listed(hx), *ours.parameters())]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@every_impl
@every_family
def test_double_backward_in_float32_is_right(family, impl):
    ours = make(family, 2, bidirectional=True, impl=impl)
    exact = peer(ours).double()
    x, _ = draw(ours)
    for value, truth in zip(second(ours, x), second(exact, x.double()), strict=True):
        assert error(value, truth) < 2e-6


@every_family
def test_auto_differentiates_forwards(family):
    ours = make(family, 2)
    x, _ = draw(ours)
    tangent = torch.randn_like(x)
    _, found = torch.func.jvp(lambda x: ours(x)[0], (x,), (tangent,))
    exact = peer(ours).double()
    step = 1e-6
    ahead, behind = (exact(x.double() + s * tangent.double())[0] for s in (step, -step))
    assert error(found, ((ahead - behind) / (2 * step)).detach()) < 1e-6


@every_family
def test_the_reference_runs_under_vmap(family):
    ours = make(family, 2, bidirectional=True, impl="reference")
    xs = torch.randn(4, T, B, D)
    found = torch.vmap(lambda x: ours(x)[0])(xs)
    torch.testing.assert_close(found, torch.stack([ours(x)[0] for x in xs]))


# --- the cell -------------------------------------------------------------------------------


def draw_step(cell, batch):
    like = cell.weight_ih.detach()
    sizes = (cell.input_size, cell.hidden_size, cell.hidden_size)
    x, *states = (like.new_empty((*batch, size)).normal_() for size in sizes)
    return x, pair_or_one(cell, states)


@every_dtype
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (1,), (B,), (0,)], ids=str)
@every_family
def test_the_cell_is_torchs_to_the_bit(family, batch, bias, dtype):
    ours = family.cell(D, H, bias, **family.options, dtype=dtype)
    x, hx = draw_step(ours, batch)
    assert_same(step(ours, x, hx), step(peer(ours), x, hx))
    for value, theirs in zip(listed(ours(x)), listed(peer(ours)(x)), strict=True):
        assert torch.equal(value, theirs)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (B,)], ids=str)
@every_family
def test_the_reference_cell_is_torchs(family, batch, bias):
    ours = family.cell(D, H, bias, **family.options, dtype=torch.float64, impl="reference")
    x, hx = draw_step(ours, batch)
    assert_close(step(ours, x, hx), step(peer(ours), x, hx), 1e-14)


@every_impl
@every_family
def test_the_cell_in_a_loop_is_the_layer(family, impl):
    layer, cell = make(family, impl=impl), family.cell(D, H, **family.options, impl=impl)
    cell.load_state_dict({n.removesuffix("_l0"): v for n, v in layer.state_dict().items()})
    x, hx = draw(layer)
    y, end = layer(x, hx)
    states = pair_or_one(cell, [state[0] for state in listed(hx)])
    for t in range(T):
        states = cell(x[t], states)
        torch.testing.assert_close(listed(states)[0], y[t], atol=1e-6, rtol=0)
    last = [state[0] for state in listed(end)]
    torch.testing.assert_close(listed(states), last, atol=1e-6, rtol=0)


@every_impl
@every_family
def test_the_cell_has_derivatives_of_two_orders_and_compiles(compiler, family, impl):
    cell = family.cell(2, 3, **family.options, dtype=torch.float64, impl=impl)
    x, hx = draw_step(cell, (2,))
    inputs = [t.requires_grad_() for t in (x, *listed(hx))]

    def run(x, *states):
        return cell(x, pair_or_one(cell, states))

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    assert_close(step(compiled, x, hx), step(cell, x, hx), 1e-14)
    program = torch.export.export(cell, (x, hx))
    torch.testing.assert_close(program.module()(x, hx), cell(x, hx))


@every_family
def test_the_cell_draws_torchs_weights_and_copies(family):
    torch.manual_seed(2)
    ours = family.cell(D, H, **family.options)
    torch.manual_seed(2)
    theirs = getattr(nn, family.cell.__name__)(D, H, **family.options)
    assert_same(ours.state_dict(), theirs.state_dict())
    x = torch.randn(B, D)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(listed(twin(x))[0], listed(ours(x))[0])


# --- devices --------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@every_impl
@every_shape
def test_every_device_gives_torchs_values(family, options, impl, device):
    ours = make(family, **options, device=device, impl=impl)
    x, hx = draw(ours)
    assert_close(everything(ours, x, hx), everything(peer(ours), x, hx), 1e-6)


@pytest.mark.parametrize("device", DEVICES)
@every_state
def test_every_device_compiles_and_has_second_derivatives_by_the_reference(
    compiler, family, device
):
    ours = make(family, 2, device=device)
    x, hx = draw(ours)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert_close(everything(compiled, x, hx), everything(ours, x, hx), 1e-6)
    ours.impl = "reference"
    exact = peer(ours).cpu().double()
    for value, truth in zip(second(ours, x), second(exact, x.cpu().double()), strict=True):
        assert error(value.cpu(), truth) < 1e-5
