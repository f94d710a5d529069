"""What is the plain RNN's own: its nonlinearity and how its recurrent matrix starts.

That `gatelib.nn.RNN` is `torch.nn.RNN` is tested in `test_drop_in.py`.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gatelib.nn import RNN, RNNCell
from gatelib.nn.init import recurrent_
from tests.nn.drop_in import D, H


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", [RNN, RNNCell])
def test_an_identity_matrix_holds_a_positive_state_in_a_relu_network(kind):
    ours = kind(D, H, bias=False, nonlinearity="relu", initialization="identity")
    h = torch.rand(1, H)
    x = torch.zeros(1, D)
    end = ours(x[None].expand(50, 1, D), h[None])[1][0] if kind is RNN else ours(x, h)
    assert torch.equal(end, h)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_layers_recurrent_matrix_is_orthogonal_times_scale(dtype):
    ours = RNN(D, H, 2, bidirectional=True, initialization="orthogonal", scale=0.5, dtype=dtype)
    seen = [weights[1] for weights in ours.all_weights]
    assert len(seen) == 4
    for weight in seen:
        product = weight.double() @ weight.double().T
        error = (product - 0.25 * torch.eye(H)).abs().max()
        assert error < 8 * torch.finfo(dtype).eps
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("initialization", ["orthogonal", "identity"])
def test_only_the_recurrent_matrix_differs_from_what_torch_drew(initialization):
    torch.manual_seed(5)
    ours = RNN(D, H, 2, initialization=initialization).state_dict()
    torch.manual_seed(5)
    theirs = nn.RNN(D, H, 2).state_dict()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]) == ("weight_hh" not in name), name


@settings(max_examples=30, deadline=None)
@given(blocks=st.integers(1, 4), size=st.integers(1, 6), scale=st.floats(-3, 3, width=32))
def test_each_block_of_stacked_matrices_starts_alike(blocks, size, scale):
    weight = torch.full((blocks * size, size), 9.0)
    recurrent_(weight, "identity", scale)
    assert torch.equal(weight, (torch.eye(size) * scale).repeat(blocks, 1))
    first, second = torch.empty(2, blocks * size, size)
    for matrix in (first, second):
        recurrent_(matrix, "orthogonal", scale, torch.Generator().manual_seed(3))
    assert torch.equal(first, second)
    singular = torch.linalg.svdvals(first.view(blocks, size, size))
    torch.testing.assert_close(singular, torch.full_like(singular, abs(scale)))


def test_reset_parameters_draws_anew_and_keeps_the_options():
    ours = RNN(D, H, initialization="orthogonal")
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    ours.reset_parameters()
    for name, value in ours.state_dict().items():
        assert not torch.equal(value, before[name]), name
    weight = ours.weight_hh_l0.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(H))


def test_the_nonlinearity_is_torchs_fourth_argument():
    ours, cell = RNN(D, H, 2, "relu"), RNNCell(D, H, True, "relu")
    assert ours.mode == nn.RNN(D, H, 2, "relu").mode
    assert (ours(torch.randn(7, 3, D))[0] >= 0).all()
    assert (cell(torch.randn(3, D)) >= 0).all()


def test_the_repr_shows_what_is_not_default():
    ours = RNN(D, H, nonlinearity="relu", initialization="identity", scale=0.5)
    options = "initialization='identity', scale=0.5, nonlinearity='relu'"
    assert repr(ours) == f"RNN(5, 6, {options})"
    assert repr(RNNCell(D, H, nonlinearity="relu")) == repr(nn.RNNCell(D, H, nonlinearity="relu"))


BAD_OPTIONS = {
    "nonlinearity": ({"nonlinearity": "gelu"}, ValueError, "nonlinearity: .*'relu', got 'gelu'"),
    "initialization": ({"initialization": "eye"}, ValueError, "initialization: .*got 'eye'"),
    "scale alone": ({"scale": 2.0}, ValueError, "scale: expected 1.0 where initialization is None"),
    "infinite": (
        {"initialization": "identity", "scale": math.inf},
        ValueError,
        "scale: expected a finite number, got inf",
    ),
    "text": ({"initialization": "identity", "scale": "1"}, TypeError, "scale: .*str"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
@pytest.mark.parametrize("kind", [RNN, RNNCell])
def test_bad_options_say_what_is_wrong(kind, case):
    options, error, message = case
    with pytest.raises(error, match=message):
        kind(D, H, **options)


def test_blocks_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match=r"weight: expected \(blocks \* H, H\), got shape \(7, 3"):
        recurrent_(torch.zeros(7, 3), "identity")


def test_the_new_options_are_keyword_only():
    with pytest.raises(TypeError):
        RNN(D, H, 1, "tanh", True, False, 0.0, False, None, None, "identity")
