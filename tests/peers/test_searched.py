"""The mutated units of public code against torchrecurrent's, in outputs and every gradient.

Runs where torchrecurrent is installed: pip install torchrecurrent.
"""

from __future__ import annotations

import pytest
import torch

from gatelib.nn import Mutated

peer = pytest.importorskip("torchrecurrent", reason="a peer: pip install torchrecurrent")
B, T, D, H = 2, 5, 3, 4


def pair(variant, name):
    """Their cell, and our layer with its weights; their two biases add up but in MUT1."""
    torch.manual_seed(0)
    theirs = getattr(peer, name)(D, H).double()
    ours = Mutated(D, H, variant, dtype=torch.float64)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter))
        ours.weight_x.copy_(theirs.weight_ih)
        ours.weight_hh.copy_(theirs.weight_hh)
        b = theirs.bias_ih.clone()
        if variant == "mut1_code":
            ours.bias_x.copy_(b[2 * H :])
            b[2 * H :] = 0
            b[H:] += theirs.bias_hh
        else:
            b += theirs.bias_hh
        ours.bias.copy_(b)
    return ours, theirs


@pytest.mark.parametrize(
    ("variant", "name"),
    [("mut1_code", "MUT1Cell"), ("mut2_code", "MUT2Cell"), ("mut3", "MUT3Cell")],
)
def test_public_code_has_these_outputs_and_gradients(variant, name):
    ours, theirs = pair(variant, name)
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    h0 = torch.randn(B, H, dtype=torch.float64, requires_grad=True)
    h, ys = h0, []
    for t in range(T):
        h = theirs(x[:, t], h)
        ys.append(h)
    found, expected = ours(x, h0)[0], torch.stack(ys, 1)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    upstream = torch.randn_like(expected)
    back = torch.autograd.grad(expected, [x, h0, theirs.weight_ih, theirs.weight_hh], upstream)
    own = torch.autograd.grad(found, [x, h0, ours.weight_x, ours.weight_hh], upstream)
    for mine, other in zip(own, back, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-11, rtol=0)
