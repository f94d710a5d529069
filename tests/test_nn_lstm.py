"""`gatelib.nn.LSTM` and `LSTMCell` are `torch.nn`'s, to the last bit where torch's kernel runs."""

import copy
import io
import math
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from gatelib.nn import LSTM, LSTMCell
from gatelib.nn.init import chrono_, forget_bias_, gate_rows

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")

D, H, B, T = 5, 6, 3, 7
SHAPES = {
    "plain": {},
    "without bias": {"bias": False},
    "batch first": {"batch_first": True},
    "two layers": {"num_layers": 2},
    "three layers": {"num_layers": 3, "batch_first": True},
    "bidirectional": {"bidirectional": True},
    "three layers in two directions": {"num_layers": 3, "bidirectional": True},
    "without bias in two directions": {"bias": False, "bidirectional": True, "num_layers": 2},
    "projected": {"proj_size": 2},
    "projected without bias": {"proj_size": 3, "bias": False, "num_layers": 2},
    "projected in two directions": {"proj_size": 2, "bidirectional": True, "num_layers": 2},
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
every_shape = pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES.keys())
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64", "bfloat16"])
every_impl = pytest.mark.parametrize("impl", ["fused", "reference"])
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def peer(ours):
    """A torch.nn.LSTM with the arguments, weights, mode and place of `ours`."""
    names = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"]
    names += ["bidirectional", "proj_size"]
    theirs = nn.LSTM(**{name: getattr(ours, name) for name in names})
    theirs.to(ours.weight_ih_l0.device, ours.weight_ih_l0.dtype)
    theirs.load_state_dict(ours.state_dict())
    return theirs.train(ours.training)


def draw(ours, batch=B, steps=T, unbatched=False):
    """An input and initial states for `ours`."""
    shape = (batch, steps) if ours.batch_first else (steps, batch)
    count = ours.num_layers * (2 if ours.bidirectional else 1)
    like = ours.weight_ih_l0.detach()
    middle = () if unbatched else (batch,)
    x = like.new_empty((*((steps,) if unbatched else shape), ours.input_size)).normal_()
    h = like.new_empty((count, *middle, ours.proj_size or ours.hidden_size)).normal_()
    return x, (h, like.new_empty((count, *middle, ours.hidden_size)).normal_())


def sequences(lengths, dtype=torch.float32, sort=False):
    """A packed batch of random sequences."""
    rows = [torch.randn(length, D, dtype=dtype) for length in lengths]
    return pack_sequence(rows, enforce_sorted=sort)


def everything(module, x, hx=None):
    """Output, states and all gradients of a fixed random function of them, by name."""
    packed = x if isinstance(x, PackedSequence) else None
    leaf = (x if packed is None else x.data).detach().clone().requires_grad_()
    states = () if hx is None else tuple(s.detach().clone().requires_grad_() for s in hx)
    given = leaf if packed is None else PackedSequence(leaf, *packed[1:])
    y, (h, c) = module(given, states or None)
    found = {"y": y if packed is None else y.data, "h": h, "c": c}
    maker = torch.Generator().manual_seed(1)
    seeds = [torch.randn(v.shape, generator=maker).to(v) for v in found.values()]
    names, parameters = zip(*module.named_parameters(), strict=True)
    wanted = [leaf, *states, *parameters]
    grads = torch.autograd.grad(list(found.values()), wanted, seeds)
    state_names = ["h_0", "c_0"][: len(states)]
    found = {name: value.detach() for name, value in found.items()}
    found |= {f"d_{n}": g for n, g in zip(["x", *state_names, *names], grads, strict=True)}
    return found


def assert_same(ours, theirs):
    """Every value has the same bits."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name


def error(value, truth):
    """The largest absolute error, relative to the largest value where that is above 1."""
    if truth.numel() == 0:
        return 0.0
    value, truth = value.detach().double(), truth.detach()
    return float((value - truth).abs().max() / max(1.0, float(truth.abs().max())))


def assert_close(ours, truth, tolerance):
    assert ours.keys() == truth.keys()
    for name, value in ours.items():
        assert value.shape == truth[name].shape, name
        assert error(value, truth[name].double()) <= tolerance, name


# --- the same as torch ----------------------------------------------------------------------


@every_dtype
@every_shape
def test_outputs_states_and_all_gradients_are_torchs_to_the_bit(options, dtype):
    ours = LSTM(D, H, **options, dtype=dtype)
    x, hx = draw(ours)
    assert_same(everything(ours, x, hx), everything(peer(ours), x, hx))
    assert_same(everything(ours, x), everything(peer(ours), x))


@every_shape
def test_the_reference_in_float64_is_torch(options):
    ours = LSTM(D, H, **options, dtype=torch.float64, impl="reference")
    x, hx = draw(ours)
    assert_close(everything(ours, x, hx), everything(peer(ours), x, hx), 1e-13)
    assert_close(everything(ours, x), everything(peer(ours), x), 1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@every_shape
def test_the_reference_errs_no_more_than_twice_torch_against_float64(options, dtype):
    ours = LSTM(D, H, **options, dtype=dtype, impl="reference")
    x, hx = draw(ours)
    exact = peer(ours).double()
    truth = everything(exact, x.double(), tuple(state.double() for state in hx))
    found, theirs = everything(ours, x, hx), everything(peer(ours), x, hx)
    for name, value in found.items():
        budget = 2 * error(theirs[name], truth[name]) + 2 * torch.finfo(dtype).eps
        assert error(value, truth[name]) <= budget, name
    if dtype == torch.float32:
        assert_close(found, theirs, 1e-6)


def test_the_reference_keeps_the_cell_state_in_float32_under_bfloat16():
    """A tiny increment, added 400 times: bfloat16 would lose each of them."""
    ours = LSTM(1, 1, dtype=torch.bfloat16, impl="reference")
    with torch.no_grad():
        for weight in ours.parameters():
            weight.zero_()
        gate_rows(ours.bias_ih_l0, "f").fill_(20.0)
        gate_rows(ours.bias_ih_l0, "g").fill_(0.002)
    c_0 = torch.ones(1, 1, 1, dtype=torch.bfloat16)
    _, (_, c) = ours(torch.zeros(400, 1, 1, dtype=torch.bfloat16), (torch.zeros_like(c_0), c_0))
    assert abs(c.item() - 1.4) < 0.01


@every_impl
@pytest.mark.parametrize("sort", [True, False], ids=["sorted", "unsorted"])
@every_shape
def test_packed_sequences_are_torchs(options, sort, impl):
    ours = LSTM(D, H, **options, impl=impl)
    packed = sequences([7, 4, 4, 1] if sort else [4, 1, 7, 4], sort=sort)
    _, hx = draw(ours, batch=4)
    for states in (hx, None):
        found, theirs = (everything(m, packed, states) for m in (ours, peer(ours)))
        if impl == "fused":
            assert_same(found, theirs)
        else:
            assert_close(found, theirs, 1e-6)


@every_dtype
def test_packed_output_keeps_its_order_and_type(dtype):
    ours = LSTM(D, H, dtype=dtype, bidirectional=True)
    packed = sequences([2, 5, 3], dtype)
    (y, _), (y_torch, _) = ours(packed), peer(ours)(packed)
    assert isinstance(y, PackedSequence)
    assert torch.equal(y.sorted_indices, y_torch.sorted_indices)
    assert torch.equal(y.batch_sizes, y_torch.batch_sizes)
    assert y.data.dtype == dtype


def test_a_packed_sequence_ends_where_it_alone_would_end():
    ours = LSTM(D, H, bidirectional=True, impl="reference")
    rows = [torch.randn(length, D) for length in (2, 6)]
    _, (h, c) = ours(pack_sequence(rows, enforce_sorted=False))
    for index, row in enumerate(rows):
        _, (h_alone, c_alone) = ours(row)
        torch.testing.assert_close(h[:, index], h_alone, atol=1e-6, rtol=0)
        torch.testing.assert_close(c[:, index], c_alone, atol=1e-6, rtol=0)


@every_impl
@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, n) for n in (5, 6, 7, 9)]),
    layers=st.integers(1, 3),
    flags=st.tuples(*[st.booleans()] * 4),
    seed=st.integers(0, 2**16),
)
def test_any_shape_is_torchs(impl, sizes, layers, flags, seed):
    batch, steps, features, hidden = sizes
    bias, batch_first, bidirectional, unbatched = flags
    torch.manual_seed(seed)
    ours = LSTM(features, hidden, layers, bias, batch_first, 0.0, bidirectional, impl=impl)
    x, hx = draw(ours, batch, steps, unbatched)
    found, theirs = everything(ours, x, hx), everything(peer(ours), x, hx)
    if impl == "fused":
        assert_same(found, theirs)
    else:
        assert_close(found, theirs, 3e-6)


@every_impl
def test_no_time_step_raises_as_in_torch_and_says_so(impl):
    ours = LSTM(D, H, impl=impl)
    with pytest.raises(RuntimeError, match="sequence length"):
        peer(ours)(torch.zeros(0, B, D))
    with pytest.raises(ValueError, match=r"input: expected at least one time step, got \(0, 3, 5"):
        ours(torch.zeros(0, B, D))


@every_impl
def test_an_empty_batch_gives_empty_outputs_as_in_torch(impl):
    ours = LSTM(D, H, 2, bidirectional=True, impl=impl)
    y, (h, c) = ours(torch.zeros(T, 0, D))
    y_torch, (h_torch, c_torch) = peer(ours)(torch.zeros(T, 0, D))
    assert (y.shape, h.shape, c.shape) == (y_torch.shape, h_torch.shape, c_torch.shape)


# --- dropout --------------------------------------------------------------------------------


@every_impl
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_is_torchs_under_an_equal_seed(impl, batch_first):
    ours = LSTM(D, H, 3, dropout=0.4, batch_first=batch_first, impl=impl)
    x, hx = draw(ours)
    theirs = peer(ours)
    torch.manual_seed(3)
    found = everything(ours, x, hx)
    torch.manual_seed(3)
    assert_close(found, everything(theirs, x, hx), 0.0 if impl == "fused" else 1e-6)


@every_impl
def test_dropout_acts_in_training_only(impl):
    ours = LSTM(D, H, 2, dropout=0.5, impl=impl)
    x, _ = draw(ours)
    assert not torch.equal(ours(x)[0], ours(x)[0])
    ours.eval()
    assert torch.equal(ours(x)[0], ours(x)[0])


def test_dropout_in_one_layer_warns_as_in_torch():
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        LSTM(D, H, dropout=0.5)


# --- weights --------------------------------------------------------------------------------


@every_shape
def test_equal_seeds_draw_torchs_weights(options):
    torch.manual_seed(11)
    ours = LSTM(D, H, **options)
    torch.manual_seed(11)
    theirs = nn.LSTM(D, H, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same(ours.state_dict(), theirs.state_dict())


@every_shape
def test_weights_load_both_ways(options):
    torch.manual_seed(1)
    theirs = nn.LSTM(D, H, **options)
    ours = LSTM(D, H, **options)
    x, hx = draw(ours)
    assert not torch.equal(ours(x, hx)[0], theirs(x, hx)[0])
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(x, hx)[0], theirs(x, hx)[0])
    fresh = nn.LSTM(D, H, **options)
    fresh.load_state_dict(ours.state_dict())
    assert torch.equal(fresh(x, hx)[0], ours(x, hx)[0])


def test_half_a_state_dict_is_refused():
    ours = LSTM(D, H, 2)
    half = nn.LSTM(D, H, 1).state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_ih_l1"):
        ours.load_state_dict(half)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*weight_ih_l1"):
        LSTM(D, H, 1).load_state_dict(ours.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for weight_hh_l0"):
        LSTM(D, H + 1, 2).load_state_dict(ours.state_dict())


def test_weights_assigned_by_load_or_by_hand_are_the_ones_that_run():
    ours, other = LSTM(D, H), LSTM(D, H)
    x, hx = draw(ours)
    ours.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(ours(x, hx)[0], other(x, hx)[0])
    ours.weight_hh_l0 = nn.Parameter(torch.zeros(4 * H, H))
    assert torch.equal(ours(x, hx)[0], peer(ours)(x, hx)[0])


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_is_equal_and_its_own(how):
    ours = LSTM(D, H, 2, bidirectional=True, forget_bias=1.0, impl="reference")
    if how == "torch.save":
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    else:
        twin = copy.deepcopy(ours) if how == "deepcopy" else pickle.loads(pickle.dumps(ours))
    x, hx = draw(ours)
    before = ours(x, hx)[0]
    assert (twin.impl, twin.forget_bias) == ("reference", 1.0)
    assert torch.equal(before, twin(x, hx)[0])
    with torch.no_grad():
        twin.weight_hh_l1.zero_()
    assert torch.equal(before, ours(x, hx)[0])
    assert not torch.equal(before, twin(x, hx)[0])


@every_impl
def test_functional_call_and_parametrizations_reach_the_kernel(impl):
    ours = LSTM(D, H, impl=impl)
    x, hx = draw(ours)
    doubled = {name: 2 * value.detach() for name, value in ours.named_parameters()}
    called = torch.func.functional_call(ours, doubled, (x, hx))[0]
    nn.utils.parametrizations.weight_norm(ours, "weight_hh_l0")
    normed = ours(x, hx)[0]
    (gradient,) = torch.autograd.grad(normed.sum(), ours.parametrizations.weight_hh_l0.original0)
    assert gradient.abs().sum() > 0
    plain = LSTM(D, H, impl=impl)
    plain.load_state_dict(doubled)
    assert torch.equal(called, plain(x, hx)[0])


def test_moving_to_another_dtype_moves_all():
    ours = LSTM(D, H, 2).double()
    x, hx = draw(ours)
    assert x.dtype == torch.float64
    assert_same(everything(ours, x, hx), everything(peer(ours), x, hx))


def test_the_repr_shows_what_is_not_default():
    assert repr(LSTM(D, H)) == repr(nn.LSTM(D, H))
    assert repr(LSTM(D, H, forget_bias=1.0)) == "LSTM(5, 6, forget_bias=1.0)"
    assert repr(LSTMCell(D, H, chrono=9, impl="fused")) == "LSTMCell(5, 6, chrono=9, impl='fused')"


# --- initialisation -------------------------------------------------------------------------


def layers_of(module):
    return [weights[2:4] for weights in module.all_weights]


def test_forget_bias_is_set_once():
    ours = LSTM(D, H, 2, bidirectional=True, forget_bias=1.5)
    for b_ih, b_hh in layers_of(ours):
        assert torch.equal(gate_rows(b_ih, "f"), torch.full((H,), 1.5))
        assert torch.equal(gate_rows(b_hh, "f"), torch.zeros(H))


def test_forget_bias_leaves_every_other_number_as_torch_drew_it():
    torch.manual_seed(5)
    ours = LSTM(D, H, 2, forget_bias=1.0)
    torch.manual_seed(5)
    theirs = nn.LSTM(D, H, 2)
    for name, value in ours.state_dict().items():
        for gate in "igo" if "bias" in name else "ifgo":
            assert torch.equal(gate_rows(value, gate), gate_rows(theirs.state_dict()[name], gate))


def test_forget_bias_opens_the_gate_to_its_sigmoid():
    ours = LSTM(D, H, forget_bias=2.0)
    c_0 = torch.ones(1, 1, H)
    with torch.no_grad():
        for bias in (ours.bias_ih_l0, ours.bias_hh_l0):
            gate_rows(bias, "i").fill_(-1e9)
    _, (_, c) = ours(torch.zeros(1, 1, D), (torch.zeros_like(c_0), c_0))
    torch.testing.assert_close(c, torch.full_like(c, 1 / (1 + math.exp(-2.0))))


@pytest.mark.parametrize("t_max", [3, 200])
def test_chrono_spreads_memories_up_to_t_max(t_max):
    ours = LSTM(D, 500, 2, bidirectional=True, chrono=t_max)
    for b_ih, b_hh in layers_of(ours):
        forget = gate_rows(b_ih, "f") + gate_rows(b_hh, "f")
        memory = 1 / (1 - torch.sigmoid(forget.double()))
        assert memory.min() > 1.99
        assert memory.max() < t_max + 0.01
        assert abs(memory.mean() - (2 + t_max) / 2) < 0.1 * t_max
        assert torch.equal(gate_rows(b_ih, "i") + gate_rows(b_hh, "i"), -forget)


def test_reset_parameters_keeps_the_options():
    ours, cell = LSTM(D, H, forget_bias=1.0), LSTMCell(D, H, chrono=30)
    for module in (ours, cell):
        before = module.weight_ih_l0 if module is ours else module.weight_ih
        before = before.detach().clone()
        module.reset_parameters()
        after = module.weight_ih_l0 if module is ours else module.weight_ih
        assert not torch.equal(before, after)
    assert torch.equal(gate_rows(ours.bias_ih_l0, "f"), torch.ones(H))
    assert torch.equal(gate_rows(cell.bias_ih, "i"), -gate_rows(cell.bias_ih, "f"))
    assert torch.equal(gate_rows(cell.bias_hh, "f"), torch.zeros(H))


@given(
    order=st.permutations(["i", "f", "g", "o"]),
    hidden=st.integers(1, 5),
    copies=st.integers(1, 3),
    value=st.floats(-5, 5, width=32),
)
def test_initialisers_act_on_any_gate_order(order, hidden, copies, value):
    biases = [torch.full((4 * hidden,), 9.0) for _ in range(copies)]
    forget_bias_(biases, value, order)
    total = sum(biases)
    for gate in order:
        expected = value if gate == "f" else 9.0 * copies
        assert torch.equal(gate_rows(total, gate, order), torch.full((hidden,), expected))
    chrono_(biases, 20, order)
    total = sum(biases)
    assert torch.equal(gate_rows(total, "i", order), -gate_rows(total, "f", order))
    assert (gate_rows(total, "f", order) >= 0).all()
    for gate in "go":
        assert torch.equal(gate_rows(total, gate, order), torch.full((hidden,), 9.0 * copies))


def test_chrono_serves_a_cell_without_an_input_gate_and_takes_a_generator():
    first, second = torch.zeros(3 * H), torch.zeros(3 * H)
    for bias in (first, second):
        maker = torch.Generator().manual_seed(4)
        chrono_(bias, 50, order=("f", "g", "o"), input_gate=None, generator=maker)
    assert torch.equal(first, second)
    assert (first[:H] > 0).all()
    assert (first[H:] == 0).all()


BAD_INIT = {
    "unknown gate": (lambda: gate_rows(torch.zeros(8), "z"), ValueError, "gate: .*'z'"),
    "repeated gate": (lambda: gate_rows(torch.zeros(8), "f", "ffio"), ValueError, "gate: "),
    "uneven rows": (lambda: gate_rows(torch.zeros(9), "f"), ValueError, r"packed: .*4.*\(9,\)"),
    "scalar": (lambda: gate_rows(torch.zeros(()), "f"), ValueError, "packed: "),
    "no tensor": (lambda: gate_rows([0.0] * 8, "f"), TypeError, "packed: .*list"),
    "no bias": (lambda: forget_bias_([], 1.0), ValueError, "biases: .*none"),
    "no number": (lambda: forget_bias_(torch.zeros(8), "1"), TypeError, "^value: .*str"),
    "no input gate": (lambda: chrono_(torch.zeros(6), 9, "fgo"), ValueError, "gate: .*'i'"),
    "short memory": (lambda: chrono_(torch.zeros(8), 1), ValueError, "^t_max: .*1"),
    "not a tensor": (lambda: forget_bias_(["b"], 1.0), TypeError, "biases: expected tensors"),
}


@pytest.mark.parametrize("case", BAD_INIT.values(), ids=BAD_INIT.keys())
def test_bad_initialisations_say_what_is_wrong(case):
    call, kind, message = case
    with pytest.raises(kind, match=message):
        call()


# --- derivatives beyond the first -----------------------------------------------------------


@every_impl
@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True, "num_layers": 2}, {"proj_size": 1}], ids=str
)
def test_first_and_second_derivatives_pass_gradcheck(options, impl):
    ours = LSTM(2, 2, **options, dtype=torch.float64, impl=impl)
    x, hx = draw(ours, batch=2, steps=2)
    names = [name for name, _ in ours.named_parameters()]

    def run(x, h, c, *weights):
        named = dict(zip(names, weights, strict=True))
        y, states = torch.func.functional_call(ours, named, (x, (h, c)))
        return y, *states

    inputs = [t.detach().requires_grad_() for t in (x, *hx, *ours.parameters())]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def second(module, x):
    x = x.detach().requires_grad_()
    wanted = [x, *module.parameters()]
    first = torch.autograd.grad(module(x)[0].pow(2).sum(), wanted, create_graph=True)
    return torch.autograd.grad(sum(g.pow(2).sum() for g in first), wanted)


@every_impl
def test_double_backward_in_float32_is_right(impl):
    ours = LSTM(D, H, 2, bidirectional=True, impl=impl)
    exact = peer(ours).double()
    x, _ = draw(ours)
    for value, truth in zip(second(ours, x), second(exact, x.double()), strict=True):
        assert error(value, truth) < 1e-6


def test_auto_differentiates_forwards_where_the_kernel_cannot():
    ours = LSTM(D, H, 2)
    x, _ = draw(ours)
    tangent = torch.randn_like(x)
    _, found = torch.func.jvp(lambda x: ours(x)[0], (x,), (tangent,))
    exact = peer(ours).double()
    step = 1e-6
    ahead, behind = (exact(x.double() + s * tangent.double())[0] for s in (step, -step))
    assert error(found, ((ahead - behind) / (2 * step)).detach()) < 1e-6
    ours.impl = "fused"
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(lambda x: ours(x)[0], (x,), (tangent,))


def test_the_reference_runs_under_vmap():
    ours = LSTM(D, H, 2, bidirectional=True, impl="reference")
    xs = torch.randn(4, T, B, D)
    found = torch.vmap(lambda x: ours(x)[0])(xs)
    torch.testing.assert_close(found, torch.stack([ours(x)[0] for x in xs]))


# --- compile, export, autocast ---------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("shape", ["plain", "three layers in two directions", "batch first"])
def test_compile_takes_the_whole_graph_and_keeps_every_value(compiler, shape, dtype):
    ours = LSTM(D, H, **SHAPES[shape], dtype=dtype)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for steps in (T, T + 3, T + 6):
        x, hx = draw(ours, steps=steps)
        found = {n.replace("_orig_mod.", ""): v for n, v in everything(compiled, x, hx).items()}
        assert_close(found, everything(ours, x, hx), 8 * torch.finfo(dtype).eps)


def test_compile_does_not_unroll_time(compiler):
    sizes = []

    def count(graph, example):
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    ours = LSTM(D, H)
    for steps in (2, 50):
        torch._dynamo.reset()
        torch.compile(ours, fullgraph=True, backend=count)(torch.zeros(steps, B, D))
    assert sizes[0] == sizes[1] < 40


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's, at a break
@every_impl
def test_compile_trains_with_projection_dropout_and_packing(compiler, impl):
    ours = LSTM(D, H, 2, dropout=1.0, proj_size=2, bias=False, impl=impl)
    compiled = torch.compile(ours, backend="aot_eager")
    for x in (draw(ours)[0], sequences([3, 5, 2])):
        found = {n.replace("_orig_mod.", ""): v for n, v in everything(compiled, x).items()}
        assert_close(found, everything(ours, x), 1e-6)


def test_the_compiled_reference_is_the_reference(compiler):
    ours = LSTM(D, H, 2, bidirectional=True, impl="reference")
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x, hx = draw(ours, steps=3)
    found = {n.replace("_orig_mod.", ""): v for n, v in everything(compiled, x, hx).items()}
    assert_close(found, everything(ours, x, hx), 1e-6)


def test_the_compiled_kernel_refuses_a_second_derivative(compiler):
    compiled = torch.compile(LSTM(D, H), fullgraph=True, backend="eager")
    x = torch.randn(T, B, D, requires_grad=True)
    with pytest.raises(NotImplementedError, match="impl='reference'"):
        torch.autograd.grad(compiled(x)[0].sum(), x, create_graph=True)


@pytest.mark.parametrize("packed", [False, True])
def test_the_operator_declares_what_it_does(packed):
    ours = LSTM(D, H, bidirectional=True)
    x, hx = draw(ours)
    data = sequences([4, 2, 1], sort=True)
    first = (data.data, data.batch_sizes) if packed else (x, None)
    weights = [w.detach().requires_grad_() for layer in ours.all_weights for w in layer]
    arguments = (first[0].requires_grad_(), first[1], *hx, weights, True)
    torch.library.opcheck(torch.ops.gatelib.lstm.default, arguments)


@pytest.mark.parametrize("strict", [False, True])
@every_impl
def test_export_keeps_parameters_and_needs_no_gatelib(impl, strict):
    ours = LSTM(D, H, 2, bidirectional=True, impl=impl).eval()
    x, hx = draw(ours)
    program = torch.export.export(ours, (x, hx), strict=strict)
    assert set(program.state_dict) == set(ours.state_dict())
    assert not [n for n in program.graph.nodes if "gatelib" in str(n.target)]
    found, _ = program.module()(x, hx)
    torch.testing.assert_close(found, ours(x, hx)[0], atol=1e-6, rtol=0)


def test_export_takes_a_batch_of_any_size():
    ours = LSTM(D, H, batch_first=True).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(ours, (torch.randn(B, T, D),), dynamic_shapes=({0: batch},))
    x = torch.randn(B + 4, T, D)
    assert torch.equal(program.module()(x)[0], ours(x)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ["plain", "three layers in two directions"])
def test_autocast_is_torchs(shape, dtype):
    ours = LSTM(D, H, **SHAPES[shape], dtype=dtype)
    x, hx = draw(ours)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(everything(ours, x, hx), everything(peer(ours), x, hx))


def test_autocast_takes_an_input_already_cast():
    ours = LSTM(D, H)
    x = torch.randn(T, B, D, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x)[0], peer(ours)(x)[0])


@every_impl
def test_autocast_compiled_is_autocast_eager(compiler, impl):
    ours = LSTM(D, H, impl=impl)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x, hx = draw(ours)
    with torch.autocast("cpu", torch.bfloat16):
        found = {n.replace("_orig_mod.", ""): v for n, v in everything(compiled, x, hx).items()}
        expected = everything(ours, x, hx)
    assert found["y"].dtype == expected["y"].dtype == torch.bfloat16
    assert_close(found, expected, 2e-2)


def test_the_reference_under_autocast_is_near_torch():
    ours = LSTM(D, H, 2, impl="reference")
    x, hx = draw(ours)
    with torch.autocast("cpu", torch.bfloat16):
        found, theirs = everything(ours, x, hx), everything(peer(ours), x, hx)
    assert found["y"].dtype == torch.bfloat16
    assert_close(found, theirs, 3e-2)


# --- errors ---------------------------------------------------------------------------------

BAD_OPTIONS = {
    "no features": ((0, H), {}, ValueError, "input_size: expected at least 1, got 0"),
    "half a feature": ((2.5, H), {}, TypeError, "input_size: expected an integer, got float"),
    "true features": ((D, True), {}, TypeError, "hidden_size: expected an integer, got bool"),
    "no layers": ((D, H, 0), {}, ValueError, "num_layers: expected at least 1, got 0"),
    "bias as a number": ((D, H, 1, 1), {}, TypeError, "bias: expected True or False, got int"),
    "batch_first as text": ((D, H), {"batch_first": "no"}, TypeError, "batch_first: .*str"),
    "bidirectional as None": ((D, H), {"bidirectional": None}, TypeError, "bidirectional: "),
    "dropout above 1": ((D, H, 2), {"dropout": 1.5}, ValueError, r"dropout: .*\[0, 1\], got 1.5"),
    "dropout as a flag": ((D, H, 2), {"dropout": True}, TypeError, "dropout: .*bool"),
    "projection too wide": ((D, H), {"proj_size": H}, ValueError, "proj_size: .*= 5, got 6"),
    "negative projection": ((D, H), {"proj_size": -1}, ValueError, "proj_size: .*got -1"),
    "projection as text": ((D, H), {"proj_size": "2"}, TypeError, "proj_size: .*str"),
    "integers": ((D, H), {"dtype": torch.int64}, TypeError, "dtype: .*torch.int64"),
    "unknown impl": ((D, H), {"impl": "fast"}, ValueError, "impl: .*'reference'.*'fast'"),
    "infinite bias": ((D, H), {"forget_bias": math.inf}, ValueError, "forget_bias: .*inf"),
    "bias as text": ((D, H), {"forget_bias": "one"}, TypeError, "forget_bias: .*str"),
    "fractional T_max": ((D, H), {"chrono": 10.5}, TypeError, "chrono: .*float"),
    "T_max of 1": ((D, H), {"chrono": 1}, ValueError, "chrono: .*at least 2 steps, got 1"),
    "two initialisations": ((D, H), {"chrono": 9, "forget_bias": 1.0}, ValueError, "got both"),
    "no bias to set": ((D, H), {"bias": False, "chrono": 9}, ValueError, "bias: expected True"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_bad_options_say_what_is_wrong(case):
    arguments, options, kind, message = case
    with pytest.raises(kind, match=message):
        LSTM(*arguments, **options)


def test_the_new_options_are_keyword_only():
    with pytest.raises(TypeError):
        LSTM(D, H, 1, True, False, 0.0, False, 0, None, None, 1.0)


def states(*shapes, dtype=torch.float32, device="cpu"):
    return tuple(torch.zeros(shape, dtype=dtype, device=device) for shape in shapes)


X = torch.zeros(T, B, D)
S = (1, B, H)
BAD_INPUT = {
    "an array": (X.numpy(), None, TypeError, "input: expected a tensor, got ndarray"),
    "rank 4": (X[None], None, ValueError, r"input: expected 2 or 3 dimensions, got 4 \(1, 7"),
    "rank 1": (X[0, 0], None, ValueError, "input: expected 2 or 3 dimensions, got 1"),
    "features": (X[..., :4], None, ValueError, r"input: expected 5 features.*got 4 .*\(7, 3, 4"),
    "dtype": (X.double(), None, TypeError, "input: expected torch.float32.*got torch.float64"),
    "device": (X.to("meta"), None, ValueError, "input: expected device cpu.*got meta"),
    "one state": (X, torch.zeros(S), TypeError, r"hx: expected a pair \(h_0, c_0\), got Tensor"),
    "three states": (X, states(S, S, S), TypeError, "hx: expected a pair.*got 3 items"),
    "no tensor": (X, (torch.zeros(S), None), TypeError, r"hx\[1\]: .*NoneType"),
    "h size": (X, states((1, B, 4), S), ValueError, r"hx\[0\]: .*\(1, 3, 6\), got \(1, 3, 4\)"),
    "c batch": (X, states(S, (1, 2, H)), ValueError, r"hx\[1\]: .*\(1, 3, 6\), got \(1, 2, 6\)"),
    "state rank": (X[:, 0], states(S, S), ValueError, r"hx\[0\]: .*\(1, 6\), got \(1, 3, 6\)"),
    "state dtype": (X, states(S, S, dtype=torch.float64), TypeError, r"hx\[0\]: .*torch.float64"),
    "state device": (X, states(S, S, device="meta"), ValueError, r"hx\[0\]: .*device cpu"),
}


@every_impl
@pytest.mark.parametrize("case", BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_says_what_is_wrong(case, impl):
    x, hx, kind, message = case
    with pytest.raises(kind, match=message):
        LSTM(D, H, impl=impl)(x, hx)


@pytest.mark.parametrize("sizes", [[3, 3], [1, 2, 3], [4, 3], [6, 0]], ids=str)
def test_lengths_that_contradict_the_packed_data_are_refused(sizes):
    broken = PackedSequence(torch.zeros(6 if sizes != [3, 3] else 7, D), torch.tensor(sizes))
    with pytest.raises(ValueError, match=r"input.batch_sizes: .*rows of input.data"):
        LSTM(D, H)(broken)


def test_packed_input_is_checked_like_any_other():
    ours, packed = LSTM(D, H), sequences([3, 2])
    with pytest.raises(ValueError, match=r"input.data: expected 5 features .*got 4"):
        ours(PackedSequence(packed.data[:, :4], *packed[1:]))
    with pytest.raises(TypeError, match=r"input.data: expected torch.float32"):
        ours(packed.double())
    with pytest.raises(ValueError, match=r"hx\[0\]: expected shape \(1, 2, 6\), got \(1, 3, 6\)"):
        ours(packed, states(S, S))


# --- the cell -------------------------------------------------------------------------------


def cell_peer(ours):
    theirs = nn.LSTMCell(ours.input_size, ours.hidden_size, ours.bias, dtype=ours.weight_ih.dtype)
    theirs.load_state_dict(ours.state_dict())
    return theirs


def step(cell, x, hx):
    """Both states and all gradients of one step."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, *hx)]
    h, c = cell(leaves[0], tuple(leaves[1:]))
    names, parameters = zip(*cell.named_parameters(), strict=True)
    grads = torch.autograd.grad((h * 2 + c.sin()).sum(), [*leaves, *parameters])
    found = zip(["d_x", "d_h", "d_c", *(f"d_{n}" for n in names)], grads, strict=True)
    return {"h": h, "c": c} | dict(found)


@every_dtype
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (1,), (B,), (0,)], ids=str)
def test_the_cell_is_torchs_to_the_bit(batch, bias, dtype):
    ours = LSTMCell(D, H, bias, dtype=dtype)
    x, h, c = (torch.randn(*batch, size, dtype=dtype) for size in (D, H, H))
    assert_same(step(ours, x, (h, c)), step(cell_peer(ours), x, (h, c)))
    assert torch.equal(ours(x)[0], cell_peer(ours)(x)[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (B,)], ids=str)
def test_the_reference_cell_is_torchs(batch, bias):
    ours = LSTMCell(D, H, bias, dtype=torch.float64, impl="reference")
    x, h, c = (torch.randn(*batch, size, dtype=torch.float64) for size in (D, H, H))
    assert_close(step(ours, x, (h, c)), step(cell_peer(ours), x, (h, c)), 1e-14)


@every_impl
def test_the_cell_in_a_loop_is_the_layer(impl):
    layer, cell = LSTM(D, H, impl=impl), LSTMCell(D, H, impl=impl)
    cell.load_state_dict({n.removesuffix("_l0"): v for n, v in layer.state_dict().items()})
    x, (h, c) = draw(layer)
    y, (h_end, c_end) = layer(x, (h, c))
    h, c = h[0], c[0]
    for t in range(T):
        h, c = cell(x[t], (h, c))
        torch.testing.assert_close(h, y[t], atol=1e-6, rtol=0)
    torch.testing.assert_close((h, c), (h_end[0], c_end[0]), atol=1e-6, rtol=0)


@every_impl
def test_the_cell_has_derivatives_of_two_orders_and_compiles(compiler, impl):
    cell = LSTMCell(2, 3, dtype=torch.float64, impl=impl)
    inputs = [torch.randn(2, n, dtype=torch.float64, requires_grad=True) for n in (2, 3, 3)]
    assert torch.autograd.gradcheck(lambda x, h, c: cell(x, (h, c)), inputs)
    assert torch.autograd.gradgradcheck(lambda x, h, c: cell(x, (h, c)), inputs)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    found = {n.replace("_orig_mod.", ""): v for n, v in step(compiled, *pair(inputs)).items()}
    assert_close(found, step(cell, *pair(inputs)), 1e-14)
    program = torch.export.export(cell, pair(inputs))
    torch.testing.assert_close(program.module()(*pair(inputs)), cell(*pair(inputs)))


def pair(inputs):
    x, h, c = (tensor.detach() for tensor in inputs)
    return x, (h, c)


def test_the_cell_sets_its_forget_bias_once():
    cell = LSTMCell(D, H, forget_bias=1.0)
    assert torch.equal(gate_rows(cell.bias_ih, "f"), torch.ones(H))
    assert torch.equal(gate_rows(cell.bias_hh, "f"), torch.zeros(H))


def test_the_cell_draws_torchs_weights_and_copies():
    torch.manual_seed(2)
    ours = LSTMCell(D, H)
    torch.manual_seed(2)
    assert_same(ours.state_dict(), nn.LSTMCell(D, H).state_dict())
    x = torch.randn(B, D)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(twin(x)[0], ours(x)[0])


BAD_CELL_INPUT = {
    "rank": (X, None, ValueError, "input: expected 1 or 2 dimensions, got 3"),
    "features": (X[0, :, :4], None, ValueError, "input: expected 5 features"),
    "dtype": (X[0].double(), None, TypeError, "input: expected torch.float32"),
    "state": (X[0], states((B, 4), (B, H)), ValueError, r"hx\[0\]: .*\(3, 6\), got \(3, 4\)"),
    "state rank": (X[0, 0], states((B, H), (B, H)), ValueError, r"hx\[0\]: .*\(6,\)"),
    "pair": (X[0], torch.zeros(B, H), TypeError, "hx: expected a pair"),
}


@pytest.mark.parametrize("case", BAD_CELL_INPUT.values(), ids=BAD_CELL_INPUT.keys())
def test_bad_cell_input_says_what_is_wrong(case):
    x, hx, kind, message = case
    with pytest.raises(kind, match=message):
        LSTMCell(D, H)(x, hx)


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"impl": "gpu"}, ValueError), ({"bias": 1}, TypeError), ({"chrono": 0}, ValueError)],
    ids=str,
)
def test_bad_cell_options_are_refused(options, kind):
    with pytest.raises(kind, match=next(iter(options))):
        LSTMCell(D, H, **options)


# --- devices and imports --------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@every_impl
@every_shape
def test_every_device_gives_torchs_values(options, impl, device):
    ours = LSTM(D, H, **options, device=device, impl=impl)
    x, hx = draw(ours)
    assert_close(everything(ours, x, hx), everything(peer(ours), x, hx), 1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_every_device_compiles_and_has_second_derivatives_by_the_reference(compiler, device):
    ours = LSTM(D, H, 2, device=device)
    x, hx = draw(ours)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    found = {n.replace("_orig_mod.", ""): v for n, v in everything(compiled, x, hx).items()}
    assert_close(found, everything(ours, x, hx), 1e-6)
    ours.impl = "reference"
    exact = peer(ours).cpu().double()
    for value, truth in zip(second(ours, x), second(exact, x.cpu().double()), strict=True):
        assert error(value.cpu(), truth) < 1e-5


def test_importing_nn_loads_no_torch_and_lists_its_names():
    code = (
        "import sys, gatelib.nn as nn; assert 'torch' not in sys.modules; "
        "assert {'LSTM', 'LSTMCell', 'Recurrent', 'Gate'} <= set(dir(nn)); "
        "sys.modules['torch'] = None\n"
        "try: nn.LSTM\n"
        "except ModuleNotFoundError as error: assert 'gatelib[torch]' in str(error), error\n"
        "else: raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error():
    import gatelib.nn

    with pytest.raises(AttributeError, match="GRUish"):
        gatelib.nn.GRUish  # noqa: B018
