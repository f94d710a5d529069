"""A cell's names never meet those that the layer or the generated code makes for itself."""

from __future__ import annotations

import pytest
import torch

from gatelib.nn import Recurrent
from gatelib.spec import Spec
from tests.nn.witness import derivatives, poisoned

B, T, D, H = 2, 3, 2, 3

COLLIDING = {
    "an adjoint": ("a_f d_f_prev -> h d_f", "f = sigmoid(a_f)\nd_f = d_f_prev + f\nh = d_f*f"),
    "a seed": ("a_c g_c_prev c_prev -> h g_c c", "c = c_prev + a_c\ng_c = g_c_prev*c\nh = g_c*c"),
    "a saved input": ("a_f a_g -> h", "a_f_saved = a_f*a_g\nh = tanh(a_f_saved)*a_f"),
    "a saved value": (
        "a_f c_prev -> h c",
        "f_saved = tanh(a_f)\nc = f_saved*c_prev\nh = c*f_saved",
    ),
    "a norm": (
        "a_f a_g -> h",
        "normalized_v_0 = a_f*a_g\nv = a_g*normalize(a_f) + normalized_v_0\nh = tanh(v)",
    ),
    "its deviation": ("a_f rstd_v_0 -> h", "v = rstd_v_0*normalize(a_f)\nh = v*rstd_v_0 + a_f"),
    "scratch": ("a_f tmp_0 tmp n_0 -> h", "out = a_f*tmp_0 + tmp\nh = tanh(out*2 + n_0)/3"),
    "buffers": ("a_f zeros ones value -> h", "h = zeros*normalize(a_f) + ones*value"),
    "doubled": ("a_f d_d dd_d g_h -> h", "d = a_f*d_d\ng = d + dd_d\nh = tanh(g)*g_h + d"),
    "the module's": (
        "a_f training forward spec cell weight bias -> h",
        "h = tanh(a_f + training*forward) + spec*cell - weight*bias",
    ),
    "a carry of a preactivation": (
        "a_g a_f_prev -> h a_f",
        "a_f = a_f_prev/2 + a_g\nh = tanh(a_f)",
    ),
}
"""Cells one of whose names a generator used to take."""


def parsed(title):
    signature, text = COLLIDING[title]
    return Spec.parse("colliding", signature, text)


@pytest.mark.parametrize("title", COLLIDING)
@pytest.mark.parametrize("order", [1, 2])
def test_a_name_that_a_generator_likes_is_free(title, order):
    found = {}
    for impl in ("fused", "reference"):
        torch.manual_seed(0)
        made = Recurrent(parsed(title), D, H, dtype=torch.float64, impl=impl)
        x = torch.randn(B, T, D, dtype=torch.float64).requires_grad_()
        state = {
            k: torch.rand(1, B, H, dtype=torch.float64).requires_grad_() for k in made.cell.states
        }
        with poisoned():
            found[impl] = derivatives(made, x, state, order)
    torch.testing.assert_close(found["fused"], found["reference"], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
def test_a_learned_vector_cannot_take_the_place_of_a_weight(name):
    spec = Spec.parse("taken", f"a_f {name} -> h", f"h = tanh(a_f + {name})")
    with pytest.raises(ValueError, match=f"spec: expected another name for the .* `{name}`"):
        Recurrent(spec, D, H)


def test_a_learned_vector_is_a_parameter_beside_what_the_layer_has():
    made = Recurrent(parsed("the module's"), D, H, num_layers=2)
    assert made.training is True and callable(made.forward)
    assert {"training_l0", "forward_l1", "weight_l0"} <= set(dict(made.named_parameters()))
    made.eval()
    assert not made.training and made.training_l0.shape == (H,)


def test_every_buffer_that_a_kernel_makes_is_written():
    """A kernel that forgets one gives nan: the other tests would see it."""
    with poisoned():
        assert torch.empty(3).isnan().all() and torch.zeros(3).new_empty(2).isnan().all()
