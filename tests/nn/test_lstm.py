"""What is the LSTM's own: its cell state and its projections.

That `gatelib.nn.LSTM` is `torch.nn.LSTM` is tested in `test_drop_in.py`.
"""

import subprocess
import sys

import pytest
import torch

from gatelib.nn import LSTM, LSTMCell
from gatelib.nn.init import gate_rows
from tests.nn.drop_in import B, D, H, T, draw, every_impl

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")


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
    assert repr(LSTM(D, H, 2)) == "LSTM(5, 6, num_layers=2)"
    assert repr(LSTMCell(D, H, impl="fused")) == "LSTMCell(5, 6, impl='fused')"


# --- derivatives beyond the first -----------------------------------------------------------


def test_forward_derivatives_are_refused_where_the_kernel_was_asked_for():
    ours = LSTM(D, H, 2, impl="fused")
    x, _ = draw(ours)
    with pytest.raises(ValueError, match=r"impl: .*torch\.func's jvp, got 'fused'"):
        torch.func.jvp(lambda x: ours(x)[0], (x,), (torch.randn_like(x),))


# --- errors ---------------------------------------------------------------------------------

BAD_OPTIONS = {
    "projection too wide": ({"proj_size": H}, ValueError, "proj_size: .*= 5, got 6"),
    "negative projection": ({"proj_size": -1}, ValueError, "proj_size: .*got -1"),
    "projection as text": ({"proj_size": "2"}, TypeError, "proj_size: .*str"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_bad_options_say_what_is_wrong(case):
    options, kind, message = case
    with pytest.raises(kind, match=message):
        LSTM(D, H, **options)


def test_the_new_options_are_keyword_only():
    with pytest.raises(TypeError):
        LSTM(D, H, 1, True, False, 0.0, False, 0, None, None, "fused")


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
