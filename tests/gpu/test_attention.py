"""Gated attention on a GPU: to the bit before a later token, in parts, and near float64.

Imports torch and two modules of tests.nn alone, so that a machine without Hypothesis collects it.
"""

import copy

import pytest
import torch

from tests.nn.attention_forms import FORMS, LAYERS, NOT_BY_SDPA, attention
from tests.nn.running import assert_near, forward_and_backward

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
every_layer = pytest.mark.parametrize("name", LAYERS)
low = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """cuBLAS may not round float32 products to TF32 here."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def tokens(steps=70, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, steps, 16, generator=generator).to("cuda", dtype)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_later_token_changes_no_bit_before_it(name, dtype):
    layer, x = attention(name, dtype).cuda(), tokens(dtype=dtype)
    before = layer(x)[0]
    for t in (1, 33, 69):
        other = x.clone()
        other[:, t] = 9.0
        assert torch.equal(layer(other)[0][:, :t], before[:, :t])


@every_layer
def test_in_parts_it_is_what_it_is_at_once(name):
    layer, x = attention(name).cuda(), tokens()
    whole, state, parts = layer(x)[0], None, []
    for part in x.split([1, 40, 1, 28], 1):
        y, state = layer(part, state)
        parts.append(y)
    assert (torch.cat(parts, 1) - whole).abs().max() <= 3e-6 * max(1, float(whole.detach().max()))


@every_layer
@low
def test_low_precision_stays_near_float64(name, dtype):
    layer = attention(name, dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(0.5)
    x = tokens(dtype=dtype).cpu()
    truth = copy.deepcopy(layer).double()(x.double())[0].detach()
    budget = {torch.bfloat16: 0.02, torch.float16: 0.0025}[dtype] * float(truth.abs().max())
    found = layer.cuda()(x.cuda())[0].detach().cpu()
    assert (found.double() - truth).abs().max() <= budget


@pytest.mark.parametrize("name", [name for name in FORMS if name not in NOT_BY_SDPA])
def test_sdpa_and_what_is_written_out_agree(name):
    results = []
    for impl in ("reference", "fused"):
        layer, x = attention(name, impl=impl).cuda(), tokens().requires_grad_()
        results.append(forward_and_backward(layer, [x], {}))
    assert_near(*results, torch.float32)
