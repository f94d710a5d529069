"""Gated attention as a layer: torch's where no option is set, causal always, the same in parts."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from gatelib.nn import GatedAttention
from tests.nn.attention_forms import FORMS, LAYERS, NOT_BY_SDPA, attention

every_form = pytest.mark.parametrize("name", FORMS)
every_layer = pytest.mark.parametrize("name", LAYERS)
every_path = pytest.mark.parametrize("impl", ["auto", "reference"])
B, T, D = 3, 12, 16


def tokens(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(*(shape or (B, T, D)), generator=generator, dtype=torch.float64).to(dtype)


# ---- torch's layer ---------------------------------------------------------------------------


def theirs_and_ours(bias=True, dtype=torch.float64):
    theirs = nn.MultiheadAttention(D, 4, bias=bias, batch_first=True, dtype=dtype)
    for vector in (theirs.in_proj_bias, theirs.out_proj.bias):
        if vector is not None:
            nn.init.normal_(vector)
    ours = GatedAttention(D, 4, bias=bias, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def causal(layer, x):
    mask = nn.Transformer.generate_square_subsequent_mask(x.size(1), dtype=x.dtype)
    return layer(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)[0]


@every_path
@pytest.mark.parametrize("bias", [True, False])
def test_without_options_it_is_torchs_causal_layer(bias, impl):
    theirs, ours = theirs_and_ours(bias)
    ours.impl = impl
    x = tokens(dtype=torch.float64).requires_grad_()
    upstream = torch.randn_like(x)
    found, expected = ours(x)[0], causal(theirs, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    own = dict(theirs.named_parameters())
    wanted = [x, *(own[name] for name, _ in ours.named_parameters())]
    slopes = torch.autograd.grad(found, [x, *ours.parameters()], upstream)
    for slope, exact in zip(slopes, torch.autograd.grad(expected, wanted, upstream), strict=True):
        torch.testing.assert_close(slope, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_under_a_seed_it_draws_what_torch_draws(bias):
    torch.manual_seed(5)
    theirs = nn.MultiheadAttention(D, 4, bias=bias)
    torch.manual_seed(5)
    ours = GatedAttention(D, 4, bias=bias, gate="output", forget=True)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


# ---- causal, to the bit ----------------------------------------------------------------------


@every_layer
@every_path
def test_a_later_token_changes_no_bit_before_it(name, impl):
    layer, x = attention(name, impl=impl), tokens()
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            before = layer(x)[0]
            for t in (1, 5, T - 1):
                other = x.clone()
                other[:, t] = 100 * tokens(B, D)
                after = layer(other)[0]
                assert torch.equal(after[:, :t], before[:, :t])
                assert not torch.equal(after[:, t], before[:, t])


# ---- in parts --------------------------------------------------------------------------------


@every_layer
def test_step_by_step_it_is_what_it_is_at_once(name):
    layer, x = attention(name), tokens()
    whole, state, steps = layer(x)[0], None, []
    for t in range(T):
        step, state = layer(x[:, t : t + 1], state)
        steps.append(step)
    largest = max(1.0, float(whole.detach().abs().max()))
    assert (torch.cat(steps, 1) - whole).abs().max() <= 1e-6 * largest


@every_layer
@every_path
def test_padded_parts_are_each_row_alone(name, impl):
    layer, x = attention(name, torch.float64, impl=impl), tokens(dtype=torch.float64)
    parts, state, outputs = torch.split(x, [5, 5, 2], 1), None, []
    lengths = torch.tensor([[4, 0, 3], [5, 2, 0], [2, 2, 2]])
    for part, own in zip(parts, lengths, strict=True):
        inside = torch.arange(part.size(1)) < own[:, None]
        part = part.masked_fill(~inside[..., None], float("nan"))
        output, state = layer(part, state, lengths=own)
        assert not output[~inside].any()
        outputs.append(output)
    for row in range(B):
        pieces = [(p[row, : n[row]]) for p, n in zip(parts, lengths, strict=True)]
        found = torch.cat([y[row, : n[row]] for y, n in zip(outputs, lengths, strict=True)])
        expected = layer(torch.cat(pieces)[None])[0][0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@every_layer
@pytest.mark.parametrize(("batch", "steps"), [(0, 4), (2, 1), (2, 0)])
def test_nothing_and_one_position_are_sizes_too(name, batch, steps):
    layer, x = attention(name), torch.zeros(batch, steps, D, requires_grad=True)
    y, state = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == (batch, steps, D)
    assert layer(torch.zeros(batch, 1, D), state)[0].shape == (batch, 1, D)


# ---- both paths ------------------------------------------------------------------------------


@every_form
def test_sdpa_is_what_is_written_out_or_says_why_it_cant(name):
    plain, x = attention(name, torch.float64, impl="reference"), tokens(dtype=torch.float64)
    fused = copy.deepcopy(plain)
    fused.impl = "fused"
    if name in NOT_BY_SDPA:
        with pytest.raises(ValueError, match="impl: expected 'auto' or 'reference', got 'fused'"):
            fused(x)
        return
    results = []
    for layer in (plain, fused):
        given = x.clone().requires_grad_()
        y = layer(given)[0]
        upstream = torch.linspace(-1, 1, D, dtype=x.dtype).expand_as(y)
        results.append([y, *torch.autograd.grad(y, [given, *layer.parameters()], upstream)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@every_layer
def test_every_parameter_learns(name):
    layer = attention(name)
    layer(tokens())[0].square().sum().backward()
    silent = [key for key, value in layer.named_parameters() if not value.grad.abs().max() > 0]
    assert not silent


@every_layer
def test_a_copy_is_the_same_layer(name):
    layer, x = attention(name), tokens()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x)[0], layer(x)[0]) and repr(twin) == repr(layer)
