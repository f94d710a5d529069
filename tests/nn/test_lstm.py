"""What is the LSTM's own: its cell state, its projections, its forget bias.

That `gatelib.nn.LSTM` is `torch.nn.LSTM` is tested in `test_drop_in.py`.
"""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gatelib.nn import LSTM, LSTMCell
from gatelib.nn.init import chrono_, forget_bias_, gate_rows
from tests.nn.drop_in import B, D, H, T, draw, error, every_impl, peer

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


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


def test_the_repr_shows_what_is_not_default():
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


# --- errors ---------------------------------------------------------------------------------

BAD_OPTIONS = {
    "projection too wide": ({"proj_size": H}, ValueError, "proj_size: .*= 5, got 6"),
    "negative projection": ({"proj_size": -1}, ValueError, "proj_size: .*got -1"),
    "projection as text": ({"proj_size": "2"}, TypeError, "proj_size: .*str"),
    "infinite bias": ({"forget_bias": math.inf}, ValueError, "forget_bias: .*inf"),
    "bias as text": ({"forget_bias": "one"}, TypeError, "forget_bias: .*str"),
    "fractional T_max": ({"chrono": 10.5}, TypeError, "chrono: .*float"),
    "T_max of 1": ({"chrono": 1}, ValueError, "chrono: .*at least 2 steps, got 1"),
    "two initialisations": ({"chrono": 9, "forget_bias": 1.0}, ValueError, "got both"),
    "no bias to set": ({"bias": False, "chrono": 9}, ValueError, "bias: expected True"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_bad_options_say_what_is_wrong(case):
    options, kind, message = case
    with pytest.raises(kind, match=message):
        LSTM(D, H, **options)


def test_the_new_options_are_keyword_only():
    with pytest.raises(TypeError):
        LSTM(D, H, 1, True, False, 0.0, False, 0, None, None, 1.0)


def states(*shapes, dtype=torch.float32, device="cpu"):
    return tuple(torch.zeros(shape, dtype=dtype, device=device) for shape in shapes)


X = torch.zeros(T, B, D)
S = (1, B, H)
BAD_STATES = {
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
@pytest.mark.parametrize("case", BAD_STATES.values(), ids=BAD_STATES.keys())
def test_bad_states_say_what_is_wrong(case, impl):
    x, hx, kind, message = case
    with pytest.raises(kind, match=message):
        LSTM(D, H, impl=impl)(x, hx)


# --- the cell -------------------------------------------------------------------------------


def test_the_cell_sets_its_forget_bias_once():
    cell = LSTMCell(D, H, forget_bias=1.0)
    assert torch.equal(gate_rows(cell.bias_ih, "f"), torch.ones(H))
    assert torch.equal(gate_rows(cell.bias_hh, "f"), torch.zeros(H))


BAD_CELL_STATES = {
    "state": (X[0], states((B, 4), (B, H)), ValueError, r"hx\[0\]: .*\(3, 6\), got \(3, 4\)"),
    "state rank": (X[0, 0], states((B, H), (B, H)), ValueError, r"hx\[0\]: .*\(6,\)"),
    "pair": (X[0], torch.zeros(B, H), TypeError, "hx: expected a pair"),
}


@pytest.mark.parametrize("case", BAD_CELL_STATES.values(), ids=BAD_CELL_STATES.keys())
def test_bad_cell_states_say_what_is_wrong(case):
    x, hx, kind, message = case
    with pytest.raises(kind, match=message):
        LSTMCell(D, H)(x, hx)


def test_bad_cell_options_are_refused():
    with pytest.raises(ValueError, match="chrono: expected at least 2 steps, got 0"):
        LSTMCell(D, H, chrono=0)


# --- devices and imports --------------------------------------------------------------------


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
