"""A Recurrent under torch's machinery: compiled, exported, with autocast, copied, refused."""

import copy
import pickle

import pytest
import torch

from gatelib.cell import cell
from gatelib.equations import lstm as equations
from gatelib.kernels.steps import steps as lowered
from gatelib.kernels.steps import steps_of_text
from gatelib.nn import Recurrent, init
from gatelib.spec import Spec
from tests.nn.recurrent_cells import (
    GRU,
    B,
    D,
    H,
    T,
    assert_same,
    every_impl,
    every_spec,
    everything,
    layer,
    some_state,
)


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
