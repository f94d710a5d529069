"""ConvLSTM2d against Keras' ConvLSTM2D on torch, in outputs and every gradient.

Runs where Keras 3 is installed: pip install keras. Keras reads films with the channels last.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import pytest
import torch

from gatelib.nn import ConvLSTM2d
from gatelib.nn.convert import conv_lstm

keras = pytest.importorskip("keras", reason="a peer: pip install keras (with KERAS_BACKEND=torch)")
if keras.backend.backend() != "torch":
    pytest.skip("the peer needs KERAS_BACKEND=torch", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
NAMES = ("kernel", "recurrent_kernel", "bias")
BUDGET = 1e-6


def pair(size=3, padding="same", channels=4):
    """Keras' layer, and ours with its weights."""
    torch.manual_seed(0)
    theirs = keras.layers.ConvLSTM2D(
        channels, size, padding=padding, return_sequences=True, return_state=True
    )
    theirs.build((None, None, 8, 7, 2))
    theirs.set_weights([w + 0.1 * torch.randn(w.shape).numpy() for w in theirs.get_weights()])
    ours = ConvLSTM2d(2, channels, size, padding=padding)
    weights = dict(zip(NAMES, theirs.get_weights(), strict=True))
    ours.load_state_dict(conv_lstm(weights, "keras", "gatelib"))
    return ours, theirs


def last(x):
    return x.movedim(-3, -1)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [3, (2, 5), 1])
def test_outputs_states_and_gradients_are_keras(size, padding):
    ours, theirs = pair(size, padding)
    x = torch.randn(3, 6, 2, 8, 7)
    image = ours(x)[0].shape[-2:]
    given = [torch.randn(3, 4, *image) for _ in range(2)]
    mine = [v.clone().requires_grad_() for v in (x, *given)]
    other = [last(v).contiguous().requires_grad_() for v in (x, *given)]
    y, (h, c) = ours(mine[0], tuple(v[None] for v in mine[1:]))
    y_, h_, c_ = theirs(other[0], initial_state=other[1:])
    for found, expected in ((y, y_), (h[0], h_), (c[0], c_)):
        assert (last(found) - expected).abs().max() <= BUDGET

    seeds = [torch.randn_like(v) / v.numel() ** 0.5 for v in (y, h, c)]
    torch.autograd.backward([y, h, c], seeds)
    torch.autograd.backward([y_, h_, c_], [last(seeds[0]), last(seeds[1][0]), last(seeds[2][0])])
    for found, expected in zip(mine, other, strict=True):
        assert (last(found.grad) - expected.grad).abs().max() <= BUDGET
    theirs_ = dict(zip(NAMES, (v.value.grad.numpy() for v in theirs.weights), strict=True))
    expected = conv_lstm(theirs_, "keras", "gatelib")
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - expected[name]).abs().max() <= BUDGET, name


def test_keras_starts_its_forget_gate_at_one_as_init_does_here():
    from gatelib.nn.init import forget_bias_, gate_rows

    theirs = keras.layers.ConvLSTM2D(4, 3)
    theirs.build((None, None, 8, 7, 2))
    weights = conv_lstm(dict(zip(NAMES, theirs.get_weights(), strict=True)), "keras", "gatelib")
    ours = forget_bias_(ConvLSTM2d(2, 4, 3), 1.0)
    assert torch.equal(
        gate_rows(weights["bias_ih_l0"], "f"), gate_rows(ours.bias_ih_l0.detach(), "f")
    )
