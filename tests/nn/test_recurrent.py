"""Any cell Spec as a layer: the fused path, the plain loop and torch's own layers agree."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gatelib.cell import cell
from gatelib.equations import lstm as equations
from gatelib.kernels.steps import steps as lowered
from gatelib.kernels.steps import steps_of_text
from gatelib.nn import Recurrent, init
from gatelib.spec import Spec

B, T, D, H = 3, 6, 4, 5
GRU = Spec.parse(
    "gru_cell",
    "a_r a_z a_n u_n h_prev -> h",
    """
    r = sigmoid(a_r)
    z = sigmoid(a_z)
    n = tanh(a_n + r*u_n)
    h = (1 - z)*n + z*h_prev
    """,
)
MINIMAL = Spec.parse("minimal", "a_h -> h", "h = tanh(a_h)")
WIDE = Spec.parse(
    "wide",
    "a_z a_n w h_prev n_prev -> h n",
    """
    z = hardsigmoid(a_z)
    v = softplus(w)
    n = n_prev/3 - relu(a_n)**2/(v + 1) + silu(a_n)
    s = softmax(z*h_prev + exp(-v)*n)
    h = s + mean(a_z)*rstd(n + a_z) + sqrt(z*z + 1) - gelu(n)*maximum(z, n)/3 - tanh(h_prev)**3
    """,
)
CONSTANT = Spec.parse("constant", "a_z w -> h", "h = w/2 + mean(a_z)")
SMALL_FIRST = Spec.parse(
    "small_first",
    "a_z w v c_prev -> h c",
    """
    c = tanh(w + v + mean(w*v) + mean(c_prev) + a_z) + rstd(w + v)
    h = mean(w + silu(v) - c)*c
    """,
)
SPECS = [
    *(known.spec for known in equations.ALL.values()),
    GRU,
    MINIMAL,
    WIDE,
    CONSTANT,
    SMALL_FIRST,
]
every_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
every_impl = pytest.mark.parametrize("impl", ["fused", "reference"])


def layer(spec=equations.PEEPHOLE, *, dtype=torch.float64, **options):
    """A layer with parameters that are all different and nowhere zero or one."""
    made = Recurrent(spec, D, H, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter).mul_(0.3))
    return made


def twin(made, impl):
    """The same layer with another impl."""
    names = ("num_layers", "bias", "batch_first", "bidirectional", "dropout")
    options = {name: getattr(made, name) for name in names}
    other = Recurrent(
        made.spec,
        made.input_size,
        made.hidden_size,
        impl=impl,
        dtype=made.weight_ih_l0.dtype,
        **options,
    )
    other.load_state_dict(made.state_dict())
    return other


def some_state(made, batch=B, dtype=torch.float64):
    rows = made.num_layers * (2 if made.bidirectional else 1)
    return {
        name: torch.randn(rows, batch, made.hidden_size, dtype=dtype).mul_(0.5).requires_grad_()
        for name in made.cell.states
    }


def everything(made, x, state=None, lengths=None):
    """Output, final states and the gradients of everything, by name, for a fixed random loss."""
    x = x.detach().clone().requires_grad_()
    state = {k: v.detach().clone().requires_grad_() for k, v in (state or {}).items()}
    y, final = made(x, state or None, lengths)
    found = {"y": y, **{f"final {k}": v for k, v in final.items()}}
    draw = torch.Generator().manual_seed(1)
    seeds = [torch.randn(v.shape, generator=draw, dtype=torch.float64) for v in found.values()]
    loss = sum((v * s.to(v.dtype)).sum() for v, s in zip(found.values(), seeds, strict=True))
    leaves = {
        "x": x,
        **{f"initial {k}": v for k, v in state.items()},
        **dict(made.named_parameters()),
    }
    grads = torch.autograd.grad(loss, leaves.values(), allow_unused=True)
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        found[f"d {name}"] = torch.zeros_like(leaf) if grad is None else grad
    return {name: value.detach() for name, value in found.items()}


def assert_same(got, expected, tolerance=1e-10):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].shape == value.shape, name
        error = (got[name].double() - value.double()).abs().max().item() if value.numel() else 0.0
        scale = max(1.0, value.double().abs().max().item()) if value.numel() else 1.0
        assert error <= tolerance * scale, f"{name}: {error}"


# ---- the witnesses agree ----------------------------------------------------------------------


@every_spec
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_fused_equals_the_plain_loop_for_every_cell(spec, steps):
    made = layer(spec)
    x, state = torch.randn(B, steps, D, dtype=torch.float64), some_state(made)
    expected = everything(twin(made, "reference"), x, state)
    assert_same(everything(twin(made, "fused"), x, state), expected)


@every_impl
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 3}, {"num_layers": 2, "bidirectional": True}]
)
def test_the_lstm_spec_is_torch_lstm(impl, options):
    peer = nn.LSTM(D, H, batch_first=True, dtype=torch.float64, **options)
    made = Recurrent(equations.LSTM, D, H, impl=impl, dtype=torch.float64, **options)
    for name, parameter in made.named_parameters():
        other = getattr(peer, name).detach()
        if "bias" in name:
            other = other + getattr(peer, name.replace("ih", "hh")).detach()
        parameter.data.copy_(other)
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    h, c = some_state(made).values()
    y, state = made(x, {"h": h, "c": c})
    expected, (h_n, c_n) = peer(x, (h, c))
    torch.testing.assert_close(
        [y, state["h"], state["c"]], [expected, h_n, c_n], atol=1e-12, rtol=0
    )
    ours, theirs = dict(made.named_parameters()), dict(peer.named_parameters())
    seeds = [torch.randn_like(v) for v in (expected, h_n, c_n)]
    leaves = [x, h, c]
    got = torch.autograd.grad((y, state["h"], state["c"]), [*leaves, *ours.values()], seeds)
    wanted = [*leaves, *(theirs[name] for name in ours)]
    torch.testing.assert_close(
        got, torch.autograd.grad((expected, h_n, c_n), wanted, seeds), atol=1e-12, rtol=0
    )


@every_impl
def test_a_gru_spec_loads_torch_gru_weights(impl):
    peer = nn.GRU(D, H, 2, batch_first=True, bidirectional=True, dtype=torch.float64)
    made = Recurrent(GRU, D, H, 2, bidirectional=True, impl=impl, dtype=torch.float64)
    made.load_state_dict(peer.state_dict())
    x = torch.randn(B, T, D, dtype=torch.float64)
    y, state = made(x)
    torch.testing.assert_close((y, state["h"]), peer(x), atol=1e-12, rtol=0)
    y.sum().backward()
    peer(x)[0].sum().backward()
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(parameter.grad, getattr(peer, name).grad, atol=1e-12, rtol=0)


@settings(deadline=None, max_examples=25)
@given(
    spec=st.sampled_from([equations.PEEPHOLE, equations.LAYERNORM, GRU]),
    batch=st.integers(1, 4),
    steps=st.integers(0, 9),
    bidirectional=st.booleans(),
    num_layers=st.integers(1, 2),
    bias=st.booleans(),
    batch_first=st.booleans(),
    data=st.data(),
)
def test_fused_equals_the_plain_loop_for_every_shape(
    spec, batch, steps, bidirectional, num_layers, bias, batch_first, data
):
    options = {"bidirectional": bidirectional, "num_layers": num_layers, "bias": bias}
    made = layer(spec, batch_first=batch_first, **options)
    x = torch.randn((batch, steps, D) if batch_first else (steps, batch, D), dtype=torch.float64)
    lengths = None
    if data.draw(st.booleans()):
        lengths = torch.tensor(
            data.draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
        )
    state = some_state(made, batch)
    expected = everything(twin(made, "reference"), x, state, lengths)
    assert_same(everything(twin(made, "fused"), x, state, lengths), expected)


def test_long_sequences_cross_the_blocks_of_steps(monkeypatch):
    from gatelib.kernels import products

    monkeypatch.setattr(products, "BLOCK_BYTES", 3 * B * 4 * H * 8)
    for spec in (equations.PEEPHOLE, GRU):
        made = layer(spec)
        for steps in (2, 3, 4, 8):
            x = torch.randn(B, steps, D, dtype=torch.float64)
            assert_same(everything(twin(made, "fused"), x), everything(twin(made, "reference"), x))


@pytest.mark.parametrize("spec", [equations.PEEPHOLE, equations.CIFG, equations.LAYERNORM])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_stays_within_the_error_budget(spec, dtype):
    exact = layer(spec)
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.copy_(parameter.to(dtype))
    x = torch.randn(B, 20, D).to(dtype)
    truth = everything(twin(exact, "reference"), x.double())
    plain = everything(twin(exact, "reference").to(dtype), x)
    fast = everything(twin(exact, "fused").to(dtype), x)
    for name, true in truth.items():
        budget = 2 * (
            (plain[name].double() - true).abs().max() + torch.finfo(dtype).eps * true.abs().max()
        )
        assert fast[name].isfinite().all()
        assert (fast[name].double() - true).abs().max() <= budget, name


@pytest.mark.parametrize("spec", [equations.PEEPHOLE, GRU, MINIMAL], ids=lambda spec: spec.name)
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_weight_changes_nothing_but_the_rounding(monkeypatch, spec, bias):
    from gatelib.kernels import products

    exact = layer(spec, bias=bias, dtype=torch.float32).double()
    x, state = torch.randn(3, 5, D), some_state(exact, 3, torch.float32)
    found = {"exact": everything(twin(exact, "reference"), x.double(), some_double(state))}
    small = {"PACK_ELEMENTS": 1, "PACK_BATCH": 1, "PACK_STEPS": 1}
    for name, limits in {"plain": {}, "packed": small}.items():
        for limit, value in limits.items():
            monkeypatch.setattr(products, limit, value)
        weight = exact.weight_hh_l0.detach().float()
        assert (products.Map(weight, 3, 5).packed is not None) == (name == "packed")
        found[name] = everything(twin(exact, "fused").float(), x, state)
    for name, true in found["exact"].items():
        error = (found["plain"][name] - true).abs().max()
        budget = 4 * (error + torch.finfo(torch.float32).eps * true.abs().max())
        assert (found["packed"][name] - true).abs().max() <= budget, name


def some_double(state):
    return {name: value.detach().double() for name, value in state.items()}


def test_only_large_float32_weights_on_a_cpu_with_onednn_are_packed(monkeypatch):
    from gatelib.kernels import products

    weight = torch.zeros(1024, 256)
    assert products.Map(weight, 64, 256).packed is not None
    assert products.Map(weight.double(), 64, 256).packed is None
    assert products.Map(weight.to("meta"), 64, 256).packed is None
    assert products.Map(weight[:512], 64, 256).packed is None
    assert products.Map(weight, 1, 256).packed is None
    assert products.Map(weight, 64, 2).packed is None
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert products.Map(weight, 64, 256).packed is None


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_gradient_of_a_strided_input_lands_in_its_place(batch_first):
    made = layer(batch_first=batch_first)
    x = torch.randn(D, B, T, dtype=torch.float64).permute(1, 2, 0)
    x = x if batch_first else x.transpose(0, 1)
    grads = [
        torch.autograd.grad(twin(made, "fused")(v)[0].square().sum(), v)[0]
        for v in (x.clone().requires_grad_(), x.contiguous().requires_grad_())
    ]
    leaf = x.contiguous().requires_grad_()
    (true,) = torch.autograd.grad(twin(made, "reference")(leaf)[0].square().sum(), leaf)
    assert all(torch.allclose(d, true, atol=1e-12, rtol=0) for d in grads)


# ---- derivatives ------------------------------------------------------------------------------


def as_function(made):
    names = [name for name, _ in made.named_parameters()]

    def run(x, *tensors):
        state = dict(zip(made.cell.states, tensors, strict=False))
        parameters = dict(zip(names, tensors[len(state) :], strict=True))
        y, final = torch.func.functional_call(made, parameters, (x, state))
        return (y, *final.values())

    return run


@pytest.mark.parametrize(
    "spec", [equations.PEEPHOLE, equations.LAYERNORM, GRU, MINIMAL], ids=lambda s: s.name
)
def test_first_and_second_derivatives_are_right(spec):
    made = Recurrent(spec, 2, 3, impl="fused", dtype=torch.float64)
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    inputs = (x, *some_state(made, 2).values(), *made.parameters())
    assert torch.autograd.gradcheck(as_function(made), inputs)
    assert torch.autograd.gradgradcheck(as_function(made), inputs)


def test_second_derivatives_skip_what_needs_no_gradient():
    made = layer(impl="fused")
    made.weight_ih_l0.requires_grad_(False)
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    (d_x,) = torch.autograd.grad(made(x)[0].square().sum(), x, create_graph=True)
    d_x.square().sum().backward()
    assert made.weight_ih_l0.grad is None
    assert made.weight_hh_l0.grad.abs().max() > 0


def test_a_second_backward_gives_the_same_gradients():
    made = layer(impl="fused")
    y, _ = made(torch.randn(B, T, D, dtype=torch.float64))
    once = torch.autograd.grad(y.sum(), made.parameters(), retain_graph=True)
    twice = torch.autograd.grad(y.sum(), made.parameters())
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


@pytest.mark.parametrize("only", ["output", "h", "c"])
def test_each_result_alone_has_its_gradient(only):
    made = layer()
    x, state = torch.randn(B, T, D, dtype=torch.float64), some_state(made)

    def gradients(impl):
        run = twin(made, impl)
        y, final = run(x, state)
        chosen = y if only == "output" else final[only]
        return torch.autograd.grad(chosen.sum(), [*state.values(), *run.parameters()])

    torch.testing.assert_close(gradients("fused"), gradients("reference"), atol=1e-12, rtol=0)


def test_upstream_gradients_may_be_strided_or_expanded():
    made = layer(impl="fused")
    x = torch.randn(B, T, D, dtype=torch.float64)
    parameters = list(made.parameters())
    expanded = torch.randn(1, 1, H, dtype=torch.float64).expand(B, T, H)
    strided = torch.randn(H, T, B, dtype=torch.float64).transpose(0, 2)
    for upstream in (expanded, strided):
        got = torch.autograd.grad(made(x)[0], parameters, upstream)
        expected = torch.autograd.grad(made(x)[0], parameters, upstream.contiguous())
        torch.testing.assert_close(got, expected, atol=1e-13, rtol=0)


def test_the_input_may_be_strided_and_is_left_alone():
    made = layer(impl="fused")
    x = torch.randn(D, B, T, dtype=torch.float64).permute(1, 2, 0)
    before = x.clone()
    torch.testing.assert_close(made(x)[0], made(before.contiguous())[0])
    made(x)[0].sum().backward()
    assert torch.equal(x, before)


@every_impl
@pytest.mark.parametrize("size", [50.0, 500.0])
def test_saturated_gates_stay_finite(impl, size):
    for spec in (equations.PEEPHOLE, equations.LAYERNORM, GRU):
        made = layer(spec, impl=impl, dtype=torch.float32)
        with torch.no_grad():
            made.bias_ih_l0.copy_(torch.randn_like(made.bias_ih_l0).sign() * size)
        found = everything(made, torch.randn(B, T, D))
        assert all(value.isfinite().all() for value in found.values())


def test_forward_mode_takes_the_plain_loop():
    made = layer(impl="auto")
    x, tangent = torch.randn(2, B, T, D, dtype=torch.float64)
    _, got = torch.func.jvp(lambda v: made(v)[0], (x,), (tangent,))
    step = 1e-6
    with torch.no_grad():
        near = (made(x + step * tangent)[0] - made(x - step * tangent)[0]) / (2 * step)
    torch.testing.assert_close(got, near, atol=1e-8, rtol=1e-6)


def test_the_transforms_of_torch_func_take_the_plain_loop():
    made = layer(GRU, impl="auto")
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    parameters = dict(made.named_parameters())

    def loss(named, rows):
        return torch.func.functional_call(made, named, (rows,))[0].square().sum()

    found = torch.func.grad(loss)(parameters, x)
    wanted = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    torch.testing.assert_close(tuple(found.values()), wanted)
    each = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x[:, None])
    torch.testing.assert_close(tuple(g.sum(0) for g in each.values()), wanted)
    with pytest.raises(ValueError, match="impl: expected 'auto' or 'reference' inside"):
        torch.func.grad(lambda v: twin(made, "fused")(v)[0].sum())(x)


# ---- sequences --------------------------------------------------------------------------------


@every_impl
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_changes_nothing(impl, bidirectional):
    made = layer(equations.LAYERNORM, impl=impl, bidirectional=bidirectional, num_layers=2)
    x, lengths = torch.randn(B, T, D, dtype=torch.float64), torch.tensor([2, 0, T])
    padded = x.clone()
    padded[0, 2:], padded[1] = float("nan"), float("inf")
    y, final = made(padded, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, last = made(x[row : row + 1, :length])
        torch.testing.assert_close(y[row, :length], alone[0], atol=1e-12, rtol=0)
        assert (y[row, length:] == 0).all()
        for name, value in last.items():
            torch.testing.assert_close(final[name][:, row], value[:, 0], atol=1e-12, rtol=0)
    grads = torch.autograd.grad(y.sum(), made.parameters())
    assert all(grad.isfinite().all() for grad in grads)


@every_impl
def test_a_sequence_may_be_read_in_pieces(impl):
    made = layer(impl=impl, num_layers=2, dtype=torch.bfloat16)
    x = torch.randn(B, T, D).bfloat16()
    whole, last = made(x)
    first, state = made(x[:, :2])
    second, end = made(x[:, 2:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, atol=0.005, rtol=0)
    torch.testing.assert_close(end, last, atol=1e-6, rtol=0)


@every_impl
def test_an_empty_sequence_returns_the_initial_state(impl):
    made = layer(impl=impl)
    state = some_state(made)
    y, final = made(torch.randn(B, 0, D, dtype=torch.float64), state)
    assert y.shape == (B, 0, H)
    assert all(torch.equal(final[name], state[name]) for name in final)
    final["c"].sum().backward()
    assert (state["c"].grad == 1).all()


@every_impl
def test_rows_of_the_batch_do_not_leak(impl):
    made = layer(equations.LAYERNORM, impl=impl)
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    (d_x,) = torch.autograd.grad(made(x)[0][1].sum(), x)
    assert (d_x[[0, 2]] == 0).all() and (d_x[1] != 0).any()
    torch.testing.assert_close(made(x[1:2])[0][0], made(x)[0][1], atol=1e-12, rtol=0)


def test_the_reverse_direction_reads_from_the_end():
    made = layer(bidirectional=True)
    forward_only = Recurrent(equations.PEEPHOLE, D, H, dtype=torch.float64)
    forward_only.load_state_dict(
        {k.removesuffix("_reverse"): v for k, v in made.state_dict().items() if "reverse" in k}
    )
    x = torch.randn(B, T, D, dtype=torch.float64)
    torch.testing.assert_close(made(x)[0][..., H:], forward_only(x.flip(1))[0].flip(1))


def test_dropout_acts_between_layers_and_in_training_only():
    made = layer(num_layers=2, dropout=0.9)
    x = torch.randn(B, T, D, dtype=torch.float64)
    assert not torch.equal(made(x)[0], made(x)[0])
    made.eval()
    assert torch.equal(made(x)[0], made(x)[0])
    single = layer(dropout=0.9)
    assert torch.equal(single(x)[0], single(x)[0])


def test_without_gradients_nothing_is_saved_and_nothing_changes():
    made = layer(impl="fused")
    x = torch.randn(B, T, D, dtype=torch.float64)
    y, final = made(x)
    with torch.no_grad():
        again, last = made(x)
    assert torch.equal(y, again) and not again.requires_grad
    assert all(torch.equal(final[name], last[name]) for name in final)


# ---- torch's machinery ------------------------------------------------------------------------


@every_impl
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_takes_the_layer_whole(compiler, backend, impl):
    name = f"unseen_by_{backend}_{impl}"  # no other test has filled its caches
    made = layer(equations.PEEPHOLE.replace(name), num_layers=2, bidirectional=True, impl=impl)
    x, lengths = torch.randn(B, T, D, dtype=torch.float64), torch.tensor([1, 4, T])
    compiled = torch.compile(made, fullgraph=True, backend=backend)
    for arguments in ((x,), (x, some_state(made)), (x, None, lengths)):
        got = everything(compiled, *arguments)
        expected = everything(made, *arguments)
        assert_same({k.replace("_orig_mod.", ""): v for k, v in got.items()}, expected, 1e-13)


def test_export_keeps_batch_and_time_free(compiler):
    made = layer(equations.LAYERNORM)
    sizes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("time", min=2)},)
    program = torch.export.export(
        made, (torch.randn(B, T, D, dtype=torch.float64),), dynamic_shapes=sizes
    )
    x = torch.randn(2, 11, D, dtype=torch.float64)
    y, state = program.module()(x)
    expected, last = made(x)
    torch.testing.assert_close((y, state["c"]), (expected, last["c"]))


@every_impl
def test_autocast_keeps_states_in_float32(impl):
    made = layer(impl=impl, dtype=torch.float32)
    x = torch.randn(B, T, D)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = made(x)
    assert y.dtype == torch.bfloat16 and state["c"].dtype == torch.float32
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in made.parameters())
    torch.testing.assert_close(y.float(), made(x)[0], atol=0.03, rtol=0)


def test_the_operator_keeps_its_promises():
    known = lowered(cell(equations.PEEPHOLE))
    made = layer()
    x = torch.randn(T, B, D, dtype=torch.float64, requires_grad=True)
    weights = (made.weight_ih_l0, made.weight_hh_l0, made.bias_ih_l0, None)
    vectors = [made.w_i_l0, made.w_f_l0, made.w_o_l0]
    states = [torch.randn(B, H, dtype=torch.float64, requires_grad=True) for _ in known.cell.states]
    arguments = (known.text, x, *weights, vectors, states, None, True)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.gatelib.recurrent.default, arguments, test_utils=tests)


@every_spec
def test_the_operator_can_read_its_cell_from_text(spec):
    known = lowered(cell(spec))
    again = steps_of_text(known.text)
    for one, other in zip(again.stages, known.stages, strict=True):
        assert one.step.source == other.step.source
        assert one.step_back.source == other.step_back.source


# ---- parameters -------------------------------------------------------------------------------


def test_a_copied_or_pickled_layer_has_the_same_spec():
    made = layer(equations.LAYERNORM, dtype=torch.float32)
    made(torch.randn(B, T, D))  # what the cell caches is not copied
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other.spec == made.spec
        assert other.cell == made.cell
        assert other.steps.stages[0].step_back.source == made.steps.stages[0].step_back.source


def test_parameters_have_the_names_and_shapes_of_torch_and_of_the_spec():
    made = Recurrent(equations.LAYERNORM, D, H, num_layers=2, bidirectional=True)
    shapes = {name: tuple(p.shape) for name, p in made.named_parameters()}
    assert shapes["weight_ih_l0"] == (4 * H, D)
    assert shapes["weight_ih_l1_reverse"] == (4 * H, 2 * H)
    assert shapes["weight_hh_l1"] == (4 * H, H)
    assert shapes["s_c_l0_reverse"] == (H,)
    assert not any("bias_hh" in name for name in shapes)
    assert (made.s_f_l0 == 1).all() and (made.b_f_l0 == 0).all()
    assert not any("bias" in n for n, _ in Recurrent(GRU, D, H, bias=False).named_parameters())


def test_a_gate_says_where_its_biases_are():
    made = Recurrent(equations.PEEPHOLE, D, H, num_layers=2, bidirectional=True)
    found = made.gate_biases("f")
    names = ["l0", "l0_reverse", "l1", "l1_reverse"]
    for biases, name in zip(found, names, strict=True):
        (bias,) = biases
        packed = getattr(made, f"bias_ih_{name}")
        assert bias.data_ptr() == packed[H : 2 * H].data_ptr() and bias.shape == (H,)
    both = Recurrent(GRU, D, H).gate_biases("z")
    assert [len(biases) for biases in both] == [2]


def test_the_bias_of_a_normalised_gate_is_its_shift():
    made = Recurrent(equations.LAYERNORM, D, H, bias=False)
    assert made.gate_biases("f")[0][0] is made.b_f_l0


def test_an_unknown_gate_is_named():
    with pytest.raises(ValueError, match=r"gate: expected one of i, f, g, o, got 'z'"):
        Recurrent(equations.LSTM, D, H).gate_biases("z")
    with pytest.raises(ValueError, match="bias: expected True, as lstm has no shift `b_f`"):
        Recurrent(equations.LSTM, D, H, bias=False).gate_biases("f")


def test_forget_bias_is_set_once():
    made = init.forget_bias_(Recurrent(equations.PEEPHOLE, D, H, num_layers=2), 2.0)
    assert (made.bias_ih_l1[H : 2 * H] == 2).all()
    assert (made.bias_ih_l1[:H] != 2).all()
    normalised = init.forget_bias_(Recurrent(equations.LAYERNORM, D, H), 2.0)
    assert (normalised.b_f_l0 == 2).all() and (normalised.b_i_l0 == 0).all()


def test_chrono_spreads_the_memories():
    made = init.chrono_(Recurrent(equations.CIFG, D, 200), 50)
    bias = made.bias_ih_l0[:200]
    assert bias.min() >= 0 and bias.max() <= torch.tensor(49.0).log()
    normalised = init.chrono_(Recurrent(equations.LAYERNORM, D, H), 50)
    assert torch.equal(normalised.b_i_l0, -normalised.b_f_l0)
    assert (normalised.b_f_l0 > 0).any()


def test_the_layer_says_what_it_is():
    text = repr(Recurrent(equations.CIFG, D, H, num_layers=2, bidirectional=True))
    assert text == f"Recurrent(cifg, {D}, {H}, num_layers=2, bidirectional=True)"


# ---- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signature", "text", "message"),
    [
        ("a_z -> y", "y = tanh(a_z)", "no output `h`"),
        ("a_z c_prev -> h", "c = a_z + c_prev\nh = tanh(c)", "no output `c`"),
        ("w h_prev -> h", "h = w*h_prev", "no preactivation"),
        ("a_z u_n -> h", "h = a_z + u_n", "`u_n` but no `a_n`"),
    ],
)
def test_a_spec_that_is_no_cell_is_refused(signature, text, message):
    with pytest.raises(ValueError, match=f"spec: .*{message}"):
        Recurrent(Spec.parse("bad", signature, text), D, H)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"input_size": 0}, ValueError, "input_size"),
        ({"hidden_size": 2.0}, TypeError, "hidden_size"),
        ({"num_layers": 0}, ValueError, "num_layers"),
        ({"bias": 1}, TypeError, "bias"),
        ({"dropout": 1.5}, ValueError, "dropout"),
        ({"impl": "fast"}, ValueError, "impl"),
        ({"spec": "lstm"}, TypeError, "spec"),
        ({"dtype": torch.int64}, TypeError, "dtype"),
        ({"dtype": "float32"}, TypeError, "dtype"),
    ],
)
def test_wrong_options_are_named(options, error, message):
    given = {"spec": equations.LSTM, "input_size": D, "hidden_size": H, **options}
    with pytest.raises(error, match=f"{message}: expected"):
        Recurrent(**given)


X = torch.zeros(B, T, D)
STATE = {"h": torch.zeros(1, B, H), "c": torch.zeros(1, B, H)}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input": X[0]}, ValueError, "input"),
        ({"input": X[..., 1:]}, ValueError, "input"),
        ({"input": X.double()}, TypeError, "input"),
        ({"input": X.to("meta")}, ValueError, "input"),
        ({"input": X.tolist()}, TypeError, "input"),
        ({"lengths": [1, 2, 3]}, TypeError, "lengths"),
        ({"lengths": torch.tensor([1.0, 2.0, 3.0])}, TypeError, "lengths"),
        ({"lengths": torch.tensor([1, 2])}, ValueError, "lengths"),
        ({"lengths": torch.tensor([1, 2, T + 1])}, ValueError, "lengths"),
        ({"lengths": torch.tensor([1, 2, -1])}, ValueError, "lengths"),
        ({"initial_state": (STATE["h"], STATE["c"])}, TypeError, "initial_state"),
        ({"initial_state": {"h": STATE["h"]}}, ValueError, "initial_state"),
        ({"initial_state": {**STATE, "c": STATE["c"][0]}}, ValueError, "initial_state"),
        ({"initial_state": {**STATE, "c": STATE["c"].double()}}, TypeError, "initial_state"),
        ({"initial_state": {**STATE, "c": None}}, TypeError, "initial_state"),
        ({"initial_state": {**STATE, "c": STATE["c"].to("meta")}}, ValueError, "initial_state"),
    ],
)
def test_wrong_input_is_named(arguments, error, message):
    made = Recurrent(equations.LSTM, D, H)
    with pytest.raises(error, match=rf"{message}.*: expected"):
        made(**{"input": X, **arguments})
