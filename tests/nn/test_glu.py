"""nn.GLU is F.glu for its defaults; kinds, widths, precision, transforms and bad input of both."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from gatelib.equations import glu as equations
from gatelib.nn import GLU, GatedMLP
from gatelib.nn.glu import FEW, FEW_ALONE, gating
from gatelib.spec import Spec

KINDS = sorted(equations.KINDS)
GATED = sorted(equations.GATED)
SMOOTH = [kind for kind in KINDS if kind not in ("reglu", "relu")]
FLOATS = {"dtype": torch.float64}
IMPLS = ("reference", "fused", "auto")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def outside(*shape):
    """Numbers of which about a third is beyond the limits of the clamped kinds, none at them."""
    return 9 * torch.randn(*shape, **FLOATS)


# --- torch's GLU ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    axis=st.integers(0, 3),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    strided=st.booleans(),
    seed=st.integers(0, 99),
)
def test_by_default_it_is_torchs_glu_to_the_letter_output_and_gradient(
    shape, axis, dtype, strided, seed
):
    torch.manual_seed(seed)
    dim = axis % len(shape)
    shape[dim] *= 2
    drawn = torch.randn(*shape[::-1] if strided else shape)
    x = 4 * (drawn.permute(*range(len(shape))[::-1]) if strided else drawn).to(dtype)
    found = []
    for layer in (GLU(dim), torch.nn.GLU(dim), GLU(dim - len(shape))):
        leaf = x.detach().requires_grad_()
        y = layer(leaf)
        y.backward(torch.ones((), dtype=dtype).expand(y.shape))
        found.append((y, leaf.grad))
    for y, d in found[1:]:
        assert torch.equal(found[0][0], y) and torch.equal(found[0][1], d)


def test_the_formula_differs_from_torchs_operator_by_rounding_alone():
    x = outside(50, 40)
    for kind in (torch.float64, torch.float32):
        own, torchs = GLU(impl="reference")(x.to(kind)), F.glu(x.to(kind))
        assert (own - torchs).abs().max() <= 4 * torch.finfo(kind).eps * torchs.abs().max()


def test_of_channels_before_time_the_axis_is_one():
    x = torch.randn(2, 8, 10)  # (B, 2C, T)
    y = GLU(1)(x)
    value, gate = x[:, :4], x[:, 4:]
    assert y.shape == (2, 4, 10)
    torch.testing.assert_close(y, value * torch.sigmoid(gate))
    assert GLU()(x).shape == (2, 8, 5)  # the last axis halves time, and says nothing


@pytest.mark.parametrize("kind", GATED)
def test_first_and_second_say_which_half_is_the_gates(kind):
    first, second = outside(6, 4), outside(6, 4)
    packed = torch.cat([first, second], -1)
    spec = equations.KINDS[kind].compile("torch")
    torch.testing.assert_close(GLU(-1, kind, "first")(packed), spec(first, second))
    torch.testing.assert_close(GLU(-1, kind, "second")(packed), spec(second, first))
    if kind != "bilinear":
        assert not torch.allclose(spec(first, second), spec(second, first))


# --- the gated MLP ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_two_linear_maps_with_the_gate_between(kind):
    mlp = GatedMLP(5, 7, 3, kind, bias=True, **FLOATS)
    x = outside(2, 4, 5)
    packed = F.linear(x, mlp.weight_in, mlp.bias_in)
    parts = packed.chunk(2, -1) if kind in GATED else (packed,)
    hidden = equations.KINDS[kind].compile("torch")(*parts)
    torch.testing.assert_close(mlp(x), F.linear(hidden, mlp.weight_out, mlp.bias_out))
    values = mlp.values(x)
    torch.testing.assert_close(values["y"], hidden)
    assert all(value.shape == (2, 4, 7) for value in values.values())


@settings(max_examples=200, deadline=None)
@given(features=st.integers(1, 4096), out=st.none() | st.integers(1, 4096))
def test_left_to_itself_its_width_has_the_weights_of_a_plain_mlp(features, out):
    sizes = {}
    for kind in ("gelu", "swiglu"):
        mlp = GatedMLP(features, out_features=out, kind=kind, device="meta")
        sizes[kind] = sum(weight.numel() for weight in mlp.parameters())
        one = sizes[kind] // mlp.hidden  # weights of one unit
        assert mlp.hidden == (4 * features if kind == "gelu" else mlp.hidden)
    assert 0 <= sizes["gelu"] - sizes["swiglu"] < one


@pytest.mark.parametrize(
    ("features", "multiple_of", "hidden"),
    [
        (4096, 256, 11008),  # Llama 7B
        (5120, 256, 13824),  # Llama 13B
        (6656, 256, 17920),  # Llama 30B
        (8192, 256, 22016),  # Llama 65B
        (384, 8, 1024),  # DINOv2 with small width
        (1536, 8, 4096),  # DINOv2 giant
        (3, 1, 8),
    ],
)
def test_its_width_is_rounded_as_llama_and_dinov2_round_theirs(features, multiple_of, hidden):
    mlp = GatedMLP(features, multiple_of=multiple_of, device="meta")
    assert mlp.hidden == hidden
    plain = 4 * features
    assert hidden == -(-int(2 * plain / 3) // multiple_of) * multiple_of
    if multiple_of == 8:
        assert hidden == (int(plain * 2 / 3) + 7) // 8 * 8


def test_a_width_that_is_given_is_rounded_up_where_a_multiple_is_asked_for():
    assert GatedMLP(8, 20).hidden == 20
    assert GatedMLP(8, 20, multiple_of=16).hidden == 32


def test_it_starts_as_torchs_linear_layers_do():
    mlp = GatedMLP(64, 128, 256, bias=True)
    for weight, bias, inputs in (
        (mlp.weight_in, mlp.bias_in, 64),
        (mlp.weight_out, mlp.bias_out, 128),
    ):
        for parameter in (weight, bias):
            largest = parameter.detach().abs().max()
            assert 0.9 / inputs**0.5 < largest <= 1 / inputs**0.5


def test_arms_of_a_study_differ_in_one_word():
    for kind in KINDS:
        mlp = GatedMLP(12, kind=kind)
        assert mlp(torch.randn(3, 12)).shape == (3, 12)
        assert sum(p.numel() for p in mlp.parameters()) == 2 * 12 * 48


def test_it_survives_copies_a_state_dict_and_pickle():
    mlp, x = GatedMLP(5, 7, kind=equations.clamped(3.0), bias=True), torch.randn(4, 5)
    other = GatedMLP(5, 7, kind=equations.clamped(3.0), bias=True)
    other.load_state_dict(mlp.state_dict())
    for twin in (other, copy.deepcopy(mlp), pickle.loads(pickle.dumps(mlp))):
        assert torch.equal(twin(x), mlp(x))
    assert "clamped_glu" in repr(mlp) and "hidden=7" in repr(mlp)
    assert "kind='gpt_oss_glu'" in repr(GLU(kind="gpt_oss"))


def test_a_limit_that_was_dropped_changes_the_output_beyond_it():
    right, dropped = GLU(kind="gpt_oss"), GLU(kind=equations.clamped(1e9))
    x = torch.linspace(-6, 6, 20).repeat(2)
    assert torch.equal(right(x), dropped(x))
    assert not torch.allclose(right(2 * x), dropped(2 * x))


# --- derivatives ------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["reference", "fused"])
@pytest.mark.parametrize("kind", KINDS)
def test_first_and_second_derivatives_pass_gradcheck(kind, impl):
    mlp = GatedMLP(3, 4, 2, kind, bias=True, impl=impl, **FLOATS)
    names = [name for name, _ in mlp.named_parameters()]

    def run(x, *weights):
        own = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(mlp, own, (x,))

    given = [outside(2, 3), *(p.detach() for p in mlp.parameters())]
    given = [value.requires_grad_() for value in given]
    assert gradcheck(run, given) and gradgradcheck(run, given)


@pytest.mark.parametrize("kind", GATED)
def test_the_layer_alone_passes_gradcheck_twice(kind):
    x = outside(3, 6).requires_grad_()
    for gate in ("first", "second"):
        for impl in ("reference", "fused", "auto"):
            layer = GLU(1, kind, gate, impl=impl)
            assert gradcheck(layer, (x,)) and gradgradcheck(layer, (x,))


@pytest.mark.parametrize("few", [0, FEW], ids=["fused", "of few values"])
@pytest.mark.parametrize("kind", KINDS)
def test_transforms_of_torch_func_give_what_autograd_gives(kind, few, monkeypatch):
    monkeypatch.setattr("gatelib.nn.glu.FEW", few)
    mlp = GatedMLP(4, 5, kind=kind, **FLOATS)
    x = outside(3, 4)
    expected = mlp(x)
    torch.testing.assert_close(torch.vmap(mlp)(x), expected)
    value, tangent = torch.func.jvp(mlp, (x,), (torch.ones_like(x),))
    jacobian = torch.func.vmap(torch.func.jacrev(mlp))(x)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(tangent, jacobian.sum(-1))
    leaf = x.clone().requires_grad_()
    (d,) = torch.autograd.grad(mlp(leaf).sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda x: mlp(x).sum())(x), d)
    torch.testing.assert_close(jacobian.sum(-2), d)


@pytest.mark.parametrize("kind", KINDS)
def test_expanded_and_strided_gradients_and_inputs_are_read_right(kind):
    mlp = GatedMLP(4, 6, kind=kind, **FLOATS)
    base, one = outside(4, 5), torch.ones(()).double()
    found = []
    for x, dy, impl in (
        (base.t(), one, "fused"),
        (base.t(), one, "reference"),
        (base.t().contiguous(), None, "reference"),
    ):
        mlp.impl = impl
        leaf = x.detach().requires_grad_()
        y = mlp(leaf)
        y.backward(torch.ones_like(y) if dy is None else dy.expand(y.shape))
        found.append((y, leaf.grad))
    for one, other, same in zip(*found, strict=True):
        torch.testing.assert_close(one, same)
        torch.testing.assert_close(other, same)


def saved_values(layer, x):
    """Numbers that the graph holds on to, apart from weights and the input."""
    sizes = {}

    def keep(value):
        storage = value.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes() // value.element_size()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        assert layer(x).requires_grad
    own = {v.untyped_storage().data_ptr() for v in (x, *layer.parameters())}
    return sum(size for at, size in sizes.items() if at not in own)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fused_mlp_saves_the_preactivations_alone(kind):
    x = torch.randn(32, 16)
    saved = {i: saved_values(GatedMLP(16, 24, kind=kind, impl=i), x) for i in IMPLS}
    width = 2 if kind in GATED else 1
    assert saved["fused"] == 32 * 24 * width
    least = {"bilinear": 1.5, "gtu": 1.5, "relu": 1}  # autograd keeps less of these
    assert saved["reference"] >= least.get(kind, 2) * saved["fused"]


@pytest.mark.parametrize(("width", "taken"), [(2**7, "fused"), (2**7 - 1, "reference")])
def test_auto_is_fused_from_the_size_on_at_which_that_is_worth_its_calls(width, taken):
    x, mlp = torch.randn(FEW // 2**8, 4), GatedMLP(4, width)  # FEW preactivations, and fewer
    gate, packed = GLU(kind="swiglu", gate="first"), torch.randn(FEW_ALONE // 2**8, 2 * width)
    for layer, inputs in ((mlp, x), (gate, packed.requires_grad_())):
        saved = {}
        for layer.impl in IMPLS:
            saved[layer.impl] = saved_values(layer, inputs)
        assert saved["auto"] == saved[taken] and saved["fused"] != saved["reference"]


def test_a_compiled_layer_is_fused_at_any_size_and_not_compiled_again_for_another():
    mlp, counter = GatedMLP(4, 8), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mlp, fullgraph=True, dynamic=True, backend=counter)
    for rows in (3, 5, FEW // 8):
        x = torch.randn(rows, 4, requires_grad=True)
        torch.testing.assert_close(compiled(x), mlp(x))
    assert counter.frame_count == 1
    assert "gated_linear" in str(counter.graphs[0])


@pytest.mark.parametrize("kind", ["swiglu", "gpt_oss", "gelu"])
def test_the_fused_path_errs_no_more_than_the_plain_one_in_single_precision(kind):
    mlp, x, errors = GatedMLP(48, kind=kind), 3 * torch.randn(64, 48), []
    double, single = torch.float64, torch.float32
    for dtype, impl in ((double, "reference"), (single, "reference"), (single, "fused")):
        twin = copy.deepcopy(mlp).to(dtype)
        twin.impl, leaf = impl, x.detach().to(dtype).requires_grad_()
        y = twin(leaf)
        y.square().sum().backward()
        found = [y, leaf.grad, twin.weight_in.grad, twin.weight_out.grad]
        errors.append([value.detach().double() for value in found])
    for exact, plain, fused in zip(*errors, strict=True):
        floor = torch.finfo(torch.float32).eps * exact.abs().max()
        assert (fused - exact).abs().max() <= 2 * ((plain - exact).abs().max() + floor)


def test_a_fused_path_that_can_not_go_says_so():
    mlp, layer, x = GatedMLP(4, impl="fused"), GLU(1, "swiglu", impl="fused"), torch.randn(3, 4)
    for module in (mlp, layer):
        torch.testing.assert_close(torch.vmap(module)(x[:, None])[:, 0], module(x))
        for run in (
            lambda m=module: torch.func.grad(lambda x: m(x).sum())(x),
            lambda m=module: torch.func.jvp(m, (x,), (x,)),
        ):
            with pytest.raises(ValueError, match="impl: expected 'auto' or 'reference' in"):
                run()


# --- precision --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", GATED)
def test_low_precision_is_rounded_once(kind, dtype):
    x = (3 * torch.randn(64, 32)).to(dtype)
    for impl in IMPLS:
        layer = GLU(1, kind, "first", impl=impl)
        exact = layer(x.double())
        assert layer(x).dtype == dtype
        gap = (layer(x).double() - exact).abs()
        floor = 1e-6 * x.abs().max()  # F.gelu in float32 errs by 6e-7 where 1 + erf cancels
        assert (gap <= torch.finfo(dtype).eps * exact.abs() + floor).all()


@pytest.mark.parametrize("kind", GATED)
def test_gradients_are_finite_in_float16_though_a_power_between_is_not(kind):
    a, v = [250.0, -250.0, 41.0, -41.0], [60.0, 60.0, 1.0, 1.0]  # 41**3 is above 65504
    for impl in IMPLS:
        x = torch.tensor([a + v], dtype=torch.float16, requires_grad=True)
        GLU(1, kind, "first", impl=impl)(x).sum().backward()
        assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("impl", ["reference", "fused"])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_and_low_precision_weights_stay_near_the_true_output(kind, impl):
    mlp, x = GatedMLP(32, kind=kind, bias=True, impl=impl), torch.randn(16, 32)
    exact = mlp(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = mlp(x)
    assert low.dtype == torch.bfloat16
    low.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in mlp.parameters())
    scale = exact.abs().max()
    assert (low.float() - exact).abs().max() < 0.03 * scale
    assert (mlp.bfloat16()(x.bfloat16()).float() - exact).abs().max() < 0.03 * scale


# --- compiled and exported --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["swiglu", "gpt_oss", "relu_squared"])
def test_compile_without_graph_breaks_and_export_of_any_batch_compute_the_same(kind):
    mlp, x = GatedMLP(6, 9, kind=kind), 9 * torch.randn(5, 6)
    for mlp.impl in IMPLS:
        compiled = torch.compile(mlp, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), mlp(x))
        compiled(x).sum().backward()
        torch._dynamo.reset()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(mlp, (x,), dynamic_shapes={"input": {0: batch}})
    more = torch.cat([x, x.flip(0), x])
    torch.testing.assert_close(program.module()(more), mlp(more))
    torch._dynamo.reset()


@pytest.mark.parametrize(("kind", "gate"), [("glu", "second"), ("situ", "first")])
def test_the_layer_alone_compiles_and_exports(kind, gate):
    layer, x = GLU(1, kind, gate), torch.randn(2, 6, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), layer(x))
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))
    torch._dynamo.reset()


# --- bad input --------------------------------------------------------------------------------

OVER = Spec.parse("over", "a v -> y", "y = softmax(a)*v")
LONE = Spec.parse("lone", "x -> y", "y = tanh(x)")
X = torch.zeros(2, 5)
BAD = [
    (lambda: GLU()(X), ValueError, r"input: expected an even size along axis -1 .*got 5 in .*\(2"),
    (lambda: GLU(2)(X), ValueError, r"input: expected a shape with an axis 2 \(dim\), got \(2, 5"),
    (lambda: GLU()(torch.tensor(1.0)), ValueError, r"input: expected a shape with an axis -1"),
    (lambda: GLU()([1.0, 2.0]), TypeError, "input: expected a tensor, got list"),
    (lambda: GLU()(torch.ones(2, dtype=int)), TypeError, "input: expected a floating-point tensor"),
    (lambda: GLU(kind="swish"), ValueError, "kind: expected one of 'bilinear', .*'swiglu'; got"),
    (lambda: GLU(kind="relu"), ValueError, "kind: expected one of 'bilinear', .*got 'relu'"),
    (lambda: GLU(kind=equations.RELU_UNIT), ValueError, "kind: expected .* a v -> y, got relu_un"),
    (lambda: GLU(kind=OVER), ValueError, "kind: expected an elementwise Spec a v -> y, got over"),
    (lambda: GatedMLP(4, kind=LONE), ValueError, "a v -> y or a -> y, got lone"),
    (lambda: GatedMLP(4, kind=7), ValueError, "kind: expected one of .*'relu', .*; got 7"),
    (lambda: GLU("1"), TypeError, "dim: expected an integer, got str"),
    (lambda: GLU(gate="last"), ValueError, "gate: expected one of 'first', 'second'; got 'last'"),
    (lambda: GLU(impl="fast"), ValueError, "impl: expected 'auto', 'fused' or 'reference'"),
    (lambda: GatedMLP(0), ValueError, "features: expected at least 1, got 0"),
    (lambda: GatedMLP(4, 2.0), TypeError, "hidden: expected an integer, got float"),
    (lambda: GatedMLP(4, 0), ValueError, "hidden: expected at least 1, got 0"),
    (lambda: GatedMLP(4, multiple_of=0), ValueError, "multiple_of: expected at least 1, got 0"),
    (lambda: GatedMLP(4, bias=1), TypeError, "bias: expected True or False, got int"),
    (lambda: GatedMLP(4, dtype=torch.int64), TypeError, "dtype: expected a floating-point"),
    (lambda: GatedMLP(4)(X), ValueError, r"input: expected \(\.\.\., 4\), got shape \(2, 5\)"),
    (lambda: GatedMLP(5)(X.double()), TypeError, "input: expected torch.float32 as the weights"),
    (lambda: gating("glu", gated=True)(X).shape, TypeError, "missing 1 required"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
