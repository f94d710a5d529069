"""Gates over channels keep to their image: padding, pooling, rounding, low precision, bad input."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib.nn import ECA, FiLM, GatedResidualBlock2d, SqueezeExcitation

KINDS = ("sigmoid", "hard_sigmoid")
OPTIONS = list(product(KINDS, (True, False), (True, False), (True, False)))
"""kind, bias, shift, pooled."""


def test_the_gate_is_the_same_at_every_pixel_unless_nothing_is_pooled():
    """What xiaolai-sqlai/mobilenetv3#12 computed: the pooling was defined and never called."""
    x = torch.rand(2, 8, 5, 6) + 0.5
    for pooled in (True, False):
        gate = SqueezeExcitation(8, 4, pooled=pooled)(x) / x
        spread = float((gate.amax((2, 3)) - gate.amin((2, 3))).max().detach())
        assert spread < 1e-6 if pooled else spread > 1e-3


@settings(max_examples=25, deadline=None)
@given(options=st.sampled_from(OPTIONS), more=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_an_image_in_a_padded_batch_is_the_image_alone(options, more):
    kind, bias, shift, pooled = options
    layer = SqueezeExcitation(
        4, 2, kind=kind, bias=bias, shift=shift, pooled=pooled, dtype=torch.float64
    )
    image = torch.randn(1, 4, 3, 2, dtype=torch.float64)
    size = 3 + more[0], 2 + more[1]
    padded = torch.full((1, 4, *size), torch.nan, dtype=torch.float64)
    padded[..., :3, :2] = image
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[:, :3, :2] = True
    y = layer(padded, mask)
    torch.testing.assert_close(y[..., :3, :2], layer(image))
    assert not y[~mask[:, None].expand_as(y)].any()


def test_padding_that_no_mask_tells_of_flows_into_the_gate():
    """NVIDIA-NeMo/Speech#3216: the mean ran over the padding of a longer batch-mate."""
    layer, image = SqueezeExcitation(4, 2), torch.randn(1, 4, 3, 3) + 1
    padded = torch.nn.functional.pad(image, (0, 3, 0, 3))
    off = (layer(padded)[..., :3, :3] - layer(image)).abs().max()
    assert float(off.detach()) > 1e-3


def test_gradients_in_padding_are_zero_whatever_stands_there():
    layer = SqueezeExcitation(2, 1, dtype=torch.float64)
    x = torch.randn(1, 2, 2, 2, dtype=torch.float64)
    x[..., 1] = 1e300
    x.requires_grad_()
    layer(x, torch.tensor([[[True, False], [True, False]]])).sum().backward()
    assert not x.grad[..., 1].any() and x.grad[..., 0].all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("gate", [-50.0, 50.0])
@pytest.mark.parametrize("kind", KINDS)
def test_gates_far_out_are_open_or_shut_and_everything_stays_finite(gate, kind):
    layer = SqueezeExcitation(3, 1, kind=kind, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight_out)
    torch.nn.init.constant_(layer.bias_out, gate)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    expected = x if gate > 0 else torch.zeros_like(x)
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(x.grad, torch.full_like(x, float(gate > 0)), atol=1e-12, rtol=0)


def test_a_gate_starts_near_one_half():
    torch.manual_seed(0)
    gate = SqueezeExcitation(64)(torch.ones(1, 64, 2, 2))
    assert abs(float(gate.detach().mean()) - 0.5) < 0.05


@pytest.mark.parametrize("masked", [True, False])
def test_a_mean_of_low_precision_is_taken_in_single_and_rounded_once(masked):
    torch.manual_seed(0)
    layer, x = ECA(16, 1).bfloat16(), torch.randn(8, 16, 40, 40).bfloat16() + 3
    torch.nn.init.ones_(layer.weight)  # the gate is the sigmoid of the channel's own mean
    mask = torch.ones(8, 40, 40, dtype=torch.bool) if masked else None
    gate = layer.gates(x, mask)["gate"][..., 0, 0]
    assert torch.equal(gate, torch.sigmoid(x.double().mean((2, 3)).bfloat16()))


def test_rounding_is_as_asked():
    widths = {c: SqueezeExcitation(c, 16, multiple_of=8).hidden for c in (16, 32, 192, 200, 256)}
    assert widths == {16: 8, 32: 8, 192: 16, 200: 16, 256: 16}
    assert SqueezeExcitation(40, 16).hidden == 3 and SqueezeExcitation(4, 16).hidden == 1
    assert SqueezeExcitation(32, 16).hidden == 2 and SqueezeExcitation(9, hidden=7).hidden == 7


def test_eca_sees_as_many_neighbours_as_its_authors_program():
    sizes = {c: ECA(c).kernel_size for c in (1, 2, 4, 8, 16, 64, 128, 256, 512, 2048)}
    assert list(sizes.values()) == [1, 1, 1, 3, 3, 3, 5, 5, 5, 7]


def test_a_condition_of_nothing_changes_nothing_but_where_the_one_is_left_out():
    x, condition = torch.randn(2, 3, 4, 4), torch.zeros(2, 5)
    for kind, share in {"film": 1, "scale": 1, "shift": 1, "affine": 0, "sigmoid": 0.5}.items():
        layer = FiLM(5, 3, kind)
        torch.nn.init.zeros_(layer.bias)
        torch.testing.assert_close(layer(x, condition), share * x)


def test_a_shut_gate_makes_the_block_its_shortcut():
    layer = GatedResidualBlock2d(3, gate=SqueezeExcitation(3))
    torch.nn.init.zeros_(layer.gate.weight_out)
    torch.nn.init.constant_(layer.gate.bias_out, -50.0)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(layer(x), x.relu())


def test_the_gate_may_read_a_condition():
    layer = GatedResidualBlock2d(3, gate=FiLM(2, 3))
    x = torch.randn(2, 3, 4, 4)
    assert not torch.equal(layer(x, torch.zeros(2, 2)), layer(x, torch.ones(2, 2)))


def se(**options):
    return SqueezeExcitation(4, **options)


IMAGE = torch.zeros(2, 4, 3, 3)
MASK = torch.ones(2, 3, 3, dtype=torch.bool)
BAD = [
    (lambda: SqueezeExcitation(0), ValueError, "channels: expected at least 1, got 0"),
    (lambda: se(reduction=0), ValueError, "reduction: expected a finite number above 0, got 0"),
    (lambda: se(reduction="4"), TypeError, "reduction: expected a number, got str"),
    (lambda: se(hidden=0), ValueError, "hidden: expected at least 1, got 0"),
    (lambda: se(multiple_of=1.5), TypeError, "multiple_of: expected an integer, got float"),
    (lambda: se(kind="softmax"), ValueError, "kind: expected one of 'hard_sigmoid', 'sigmoid'"),
    (lambda: se(pooled=1), TypeError, "pooled: expected True or False, got int"),
    (lambda: se(dtype=torch.int64), TypeError, "dtype: expected a floating-point"),
    (lambda: se()(IMAGE[0]), ValueError, r"input: expected \(B, 4, H, W\), got shape \(4, 3, 3\)"),
    (lambda: se()(IMAGE[:, :3]), ValueError, r"input: expected \(B, 4, H, W\)"),
    (lambda: se()(IMAGE[..., :0]), ValueError, "input: expected at least one pixel"),
    (lambda: se()(IMAGE.double()), TypeError, "input: expected torch.float32 as the weights"),
    (lambda: se()(IMAGE.numpy()), TypeError, "input: expected a tensor, got ndarray"),
    (lambda: se()(IMAGE, MASK.float()), TypeError, "mask: expected torch.bool, got torch.float32"),
    (lambda: se()(IMAGE, MASK[:1]), ValueError, r"mask: expected \(B, H, W\) = \(2, 3, 3\)"),
    (lambda: se()(IMAGE, MASK & False), ValueError, "mask: expected at least one pixel of each"),
    (lambda: ECA(4, 2), ValueError, "kernel_size: expected an odd number, got 2"),
    (lambda: ECA(4, kind="exp"), ValueError, "kind: expected one of"),
    (lambda: ECA(4)(IMAGE[:, :2]), ValueError, r"input: expected \(B, 4, H, W\)"),
    (lambda: FiLM(3, 4, "gate"), ValueError, "kind: expected one of 'affine', 'film'"),
    (lambda: FiLM(0, 4), ValueError, "condition_features: expected at least 1"),
    (
        lambda: FiLM(3, 4)(IMAGE, torch.zeros(1, 3)),
        ValueError,
        r"condition: expected \(2, 3\), got shape \(1, 3\)",
    ),
    (
        lambda: FiLM(3, 4)(IMAGE, torch.zeros(2, 3).double()),
        TypeError,
        "condition: expected torch.float32",
    ),
    (lambda: GatedResidualBlock2d(4, gate="se"), TypeError, "gate: expected a module or None"),
    (lambda: GatedResidualBlock2d(4)(IMAGE, IMAGE), ValueError, "condition: expected None where"),
    (lambda: GatedResidualBlock2d(3)(IMAGE), ValueError, r"input: expected \(B, 3, H, W\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
