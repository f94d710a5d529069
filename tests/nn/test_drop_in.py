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
    DTYPES,
    FAMILIES,
    SHAPES,
    B,
    D,
    H,
    T,
    assert_close,
    assert_no_further_than_torch,
    assert_same,
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
        found, theirs = (everything(m, packed, states) for m in (ours, peer(ours)))
        if impl == "fused":
            assert_same(found, theirs)
        else:
            assert_close(found, theirs, 1e-6)


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
    found, theirs = everything(ours, x, hx), everything(peer(ours), x, hx)
    if impl == "fused":
        assert_same(found, theirs)
    else:
        assert_close(found, theirs, 3e-6)


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


# --- compile, export, autocast ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [("without bias in two directions", torch.float32), ("batch first", torch.bfloat16)],
    ids=str,
)
@every_family
def test_compile_takes_the_whole_graph_and_keeps_every_value(compiler, family, shape, dtype):
    ours = make(family, **SHAPES[shape], dtype=dtype)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for steps in (T, T + 3, T + 6):
        x, hx = draw(ours, steps=steps)
        found = everything(compiled, x, hx)
        assert_close(found, everything(ours, x, hx), 8 * torch.finfo(dtype).eps)


@every_family
def test_compile_does_not_unroll_time(compiler, family):
    sizes = []

    def count(graph, example):
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    ours = make(family)
    for steps in (2, 50):
        torch._dynamo.reset()
        torch.compile(ours, fullgraph=True, backend=count)(torch.zeros(steps, B, D))
    assert sizes[0] == sizes[1] < 40


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's, at a break
@every_impl
@every_state
def test_compile_trains_with_dropout_and_packing(compiler, family, impl):
    projection = {"proj_size": 2} if family is FAMILIES["LSTM"] else {}
    ours = make(family, 2, dropout=1.0, bias=False, impl=impl, **projection)
    compiled = torch.compile(ours, backend="aot_eager")
    for x in (draw(ours, steps=2)[0], sequences([1, 2])):
        assert_close(everything(compiled, x), everything(ours, x), 1e-6)


@every_state
def test_the_compiled_reference_is_the_reference(compiler, family):
    ours = make(family, 2, bidirectional=True, impl="reference")
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x, hx = draw(ours, steps=2)
    assert_close(everything(compiled, x, hx), everything(ours, x, hx), 1e-6)


@every_family
def test_the_compiled_kernel_refuses_a_second_derivative(compiler, family):
    compiled = torch.compile(make(family), fullgraph=True, backend="eager")
    x = torch.randn(T, B, D, requires_grad=True)
    with pytest.raises(NotImplementedError, match="impl='reference'"):
        torch.autograd.grad(compiled(x)[0].sum(), x, create_graph=True)


@pytest.mark.parametrize("packed", [False, True])
@every_family
def test_the_operator_declares_what_it_does(family, packed):
    ours = make(family, bidirectional=True)
    x, hx = draw(ours)
    data = sequences([4, 2, 1], sort=True)
    first = (data.data, data.batch_sizes) if packed else (x, None)
    weights = [w.detach().requires_grad_() for layer in ours.all_weights for w in layer]
    arguments = (first[0].requires_grad_(), first[1], *listed(hx), weights, True, None)
    operator = getattr(torch.ops.gatelib, ours.mode.lower()).default
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("strict", [False, True])
@every_impl
@every_state
def test_export_keeps_parameters_and_needs_no_gatelib(family, impl, strict):
    ours = make(family, 2, bidirectional=True, impl=impl).eval()
    x, hx = draw(ours, steps=3)
    program = torch.export.export(ours, (x, hx), strict=strict)
    assert set(program.state_dict) == set(ours.state_dict())
    assert not [n for n in program.graph.nodes if "gatelib" in str(n.target)]
    found, _ = program.module()(x, hx)
    torch.testing.assert_close(found, ours(x, hx)[0], atol=1e-6, rtol=0)


@every_family
def test_export_takes_a_batch_of_any_size(family):
    ours = make(family, batch_first=True).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(ours, (torch.randn(B, T, D),), dynamic_shapes=({0: batch},))
    x = torch.randn(B + 4, T, D)
    assert torch.equal(program.module()(x)[0], ours(x)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ["plain", "three layers in two directions"])
@every_family
def test_autocast_is_torchs(family, shape, dtype):
    ours = make(family, **SHAPES[shape], dtype=dtype)
    x, hx = draw(ours)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(everything(ours, x, hx), everything(peer(ours), x, hx))


@every_family
def test_autocast_takes_an_input_already_cast(family):
    ours = make(family)
    x = torch.randn(T, B, D, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x)[0], peer(ours)(x)[0])


@every_impl
@every_state
def test_autocast_compiled_is_autocast_eager(compiler, family, impl):
    ours = make(family, impl=impl)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x, hx = draw(ours, steps=3)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = everything(compiled, x, hx), everything(ours, x, hx)
    for name, value in found.items():
        assert value.dtype == expected[name].dtype, name
    assert_close(found, expected, 2e-2)


@every_family
def test_the_reference_under_autocast_is_near_torch(family):
    ours = make(family, 2, impl="reference")
    x, hx = draw(ours)
    with torch.autocast("cpu", torch.bfloat16):
        found, theirs = everything(ours, x, hx), everything(peer(ours), x, hx)
    for name, value in found.items():
        assert value.dtype == theirs[name].dtype, name
    assert_close(found, theirs, 3e-2)


# --- errors ---------------------------------------------------------------------------------

BAD_OPTIONS = {
    "no features": ((0, H), {}, ValueError, "input_size: expected at least 1, got 0"),
    "half a feature": ((2.5, H), {}, TypeError, "input_size: expected an integer, got float"),
    "true features": ((D, True), {}, TypeError, "hidden_size: expected an integer, got bool"),
    "no layers": ((D, H, 0), {}, ValueError, "num_layers: expected at least 1, got 0"),
    "bias as a number": ((D, H), {"bias": 1}, TypeError, "bias: expected True or False, got int"),
    "batch_first as text": ((D, H), {"batch_first": "no"}, TypeError, "batch_first: .*str"),
    "bidirectional as None": ((D, H), {"bidirectional": None}, TypeError, "bidirectional: "),
    "dropout above 1": ((D, H, 2), {"dropout": 1.5}, ValueError, r"dropout: .*\[0, 1\], got 1.5"),
    "dropout as a flag": ((D, H, 2), {"dropout": True}, TypeError, "dropout: .*bool"),
    "integers": ((D, H), {"dtype": torch.int64}, TypeError, "dtype: .*torch.int64"),
    "unknown impl": ((D, H), {"impl": "fast"}, ValueError, "impl: .*'reference'.*'fast'"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
@every_family
def test_bad_options_say_what_is_wrong(family, case):
    arguments, options, kind, message = case
    with pytest.raises(kind, match=message):
        family.layer(*arguments, **options, **family.options)


X = torch.zeros(T, B, D)
BAD_INPUT = {
    "an array": (X.numpy(), TypeError, "input: expected a tensor, got ndarray"),
    "rank 4": (X[None], ValueError, r"input: expected 2 or 3 dimensions, got 4 \(1, 7"),
    "rank 1": (X[0, 0], ValueError, "input: expected 2 or 3 dimensions, got 1"),
    "features": (X[..., :4], ValueError, r"input: expected 5 features.*got 4 .*\(7, 3, 4"),
    "dtype": (X.double(), TypeError, "input: expected torch.float32.*got torch.float64"),
    "device": (X.to("meta"), ValueError, "input: expected device cpu.*got meta"),
}


@every_impl
@pytest.mark.parametrize("case", BAD_INPUT.values(), ids=BAD_INPUT.keys())
@every_family
def test_bad_input_says_what_is_wrong(family, case, impl):
    x, kind, message = case
    with pytest.raises(kind, match=message):
        make(family, impl=impl)(x)


def zeros(*shape, **options):
    return torch.zeros(shape, **options)


BAD_STATE = {
    "a pair": (X, (zeros(1, B, H), zeros(1, B, H)), TypeError, "hx: expected a tensor, got tuple"),
    "size": (X, zeros(1, B, 4), ValueError, r"hx: expected shape \(1, 3, 6\), got \(1, 3, 4\)"),
    "rank": (X[:, 0], zeros(1, B, H), ValueError, r"hx: expected shape \(1, 6\), got \(1, 3, 6"),
    "dtype": (X, zeros(1, B, H, dtype=torch.float64), TypeError, "hx: .*torch.float64"),
    "device": (X, zeros(1, B, H, device="meta"), ValueError, "hx: expected device cpu"),
}


@pytest.mark.parametrize("case", BAD_STATE.values(), ids=BAD_STATE.keys())
@pytest.mark.parametrize("name", ["GRU", "RNN"])
def test_a_bad_single_state_says_what_is_wrong(name, case):
    x, hx, kind, message = case
    with pytest.raises(kind, match=message):
        make(FAMILIES[name])(x, hx)


@pytest.mark.parametrize("sizes", [[3, 3], [1, 2, 3], [4, 3], [6, 0]], ids=str)
@every_family
def test_lengths_that_contradict_the_packed_data_are_refused(family, sizes):
    broken = PackedSequence(torch.zeros(6 if sizes != [3, 3] else 7, D), torch.tensor(sizes))
    with pytest.raises(ValueError, match=r"input.batch_sizes: .*rows of input.data"):
        make(family)(broken)


@every_family
def test_packed_input_is_checked_like_any_other(family):
    ours, packed = make(family), sequences([3, 2])
    with pytest.raises(ValueError, match=r"input.data: expected 5 features .*got 4"):
        ours(PackedSequence(packed.data[:, :4], *packed[1:]))
    with pytest.raises(TypeError, match=r"input.data: expected torch.float32"):
        ours(packed.double())
    with pytest.raises(ValueError, match=r"hx.*: expected shape \(1, 2, 6\), got \(1, 3, 6\)"):
        ours(packed, pair_or_one(ours, [zeros(1, 3, H), zeros(1, 3, H)]))


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


BAD_CELL_INPUT = {
    "rank": (X, ValueError, "input: expected 1 or 2 dimensions, got 3"),
    "features": (X[0, :, :4], ValueError, "input: expected 5 features"),
    "dtype": (X[0].double(), TypeError, "input: expected torch.float32"),
}


@pytest.mark.parametrize("case", BAD_CELL_INPUT.values(), ids=BAD_CELL_INPUT.keys())
@every_family
def test_bad_cell_input_says_what_is_wrong(family, case):
    x, kind, message = case
    with pytest.raises(kind, match=message):
        family.cell(D, H, **family.options)(x)


@pytest.mark.parametrize("name", ["GRU", "RNN"])
def test_a_bad_single_state_of_a_cell_says_what_is_wrong(name):
    cell = FAMILIES[name].cell(D, H)
    with pytest.raises(ValueError, match=r"hx: expected shape \(3, 6\), got \(3, 4\)"):
        cell(X[0], zeros(B, 4))
    with pytest.raises(TypeError, match="hx: expected a tensor, got tuple"):
        cell(X[0], (zeros(B, H),))


@pytest.mark.parametrize(
    ("options", "kind"), [({"impl": "gpu"}, ValueError), ({"bias": 1}, TypeError)], ids=str
)
@every_family
def test_bad_cell_options_are_refused(family, options, kind):
    with pytest.raises(kind, match=next(iter(options))):
        family.cell(D, H, **options)


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
