"""Gate and value change places without a number lost: each layout is run by a program of its own.

Imports gatelib.nn, torch and Hypothesis.
Must not run a layout by another layout's program: the programs here are the witnesses.
"""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gatelib.nn import GatedMLP, convert
from gatelib.nn.convert import GLU_LAYOUTS, gated_mlp, glu_layout

ORDERS = ("gate_first", "gate_second", "interleaved")
BLOCKS = (1, 2, 32)
D, H, O = 3, 64, 5


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def halves(packed, order, block):
    """Gate and value as the published programs take them apart, along the last axis."""
    if order == "gate_first":
        return packed[..., : packed.shape[-1] // 2], packed[..., packed.shape[-1] // 2 :]
    if order == "gate_second":
        return packed[..., packed.shape[-1] // 2 :], packed[..., : packed.shape[-1] // 2]
    if block == 1:
        return packed[..., ::2], packed[..., 1::2]
    pairs = packed.unflatten(-1, (-1, 2, block))
    return pairs[..., 0, :].flatten(-2), pairs[..., 1, :].flatten(-2)


CASES = [(order, block) for order in ORDERS for block in BLOCKS if block == 1 or "inter" in order]


@settings(max_examples=80, deadline=None)
@given(
    source=st.sampled_from(ORDERS),
    target=st.sampled_from(ORDERS),
    block=st.integers(1, 4),
    blocks=st.integers(1, 4),
    rest=st.lists(st.integers(0, 3), max_size=2),
    axis=st.integers(0, 2),
)
def test_any_map_is_a_permutation_and_the_way_back_undoes_it(
    source, target, block, blocks, rest, axis
):
    shape = [*rest]
    dim = axis % (len(rest) + 1)
    shape.insert(dim, 2 * block * blocks)
    rows = torch.arange(shape[dim]).view(-1, *[1] * (len(shape) - 1 - dim)).expand(shape)
    there = glu_layout(rows, source, target, block, dim)
    assert there.shape == rows.shape
    assert torch.equal(there.sort(dim).values, rows)
    assert torch.equal(glu_layout(there, target, source, block, dim), rows)
    assert torch.equal(glu_layout(rows, source, target, block, dim - len(shape)), there)


@pytest.mark.parametrize(("order", "block"), CASES)
def test_distinct_halves_arrive_where_the_program_of_the_layout_reads_them(order, block):
    gate, value = torch.arange(1, H + 1), -torch.arange(1, H + 1)
    found = glu_layout(torch.cat([gate, value]), "gate_first", order, block)
    for part, expected in zip(halves(found, order, block), (gate, value), strict=True):
        assert torch.equal(part, expected)
    assert torch.equal(glu_layout(found, order, "gate_second", block), torch.cat([value, gate]))


def test_blocks_of_one_become_blocks_of_thirty_two():
    gate, value = torch.arange(1, H + 1), -torch.arange(1, H + 1)
    by_one = torch.stack([gate, value], 1).flatten()
    found = glu_layout(by_one, "gpt_oss", "megatron_interleaved")
    assert torch.equal(found[:32], gate[:32]) and torch.equal(found[32:64], value[:32])
    assert torch.equal(glu_layout(found, "megatron_interleaved", "gpt_oss"), by_one)


def test_the_wrong_order_runs_and_computes_something_else():
    mlp, x = GatedMLP(D, H), torch.randn(4, D)
    wrong = {**mlp.state_dict(), "weight_in": mlp.weight_in.detach().roll(H, 0)}
    other = GatedMLP(D, H)
    other.load_state_dict(wrong)
    assert not torch.allclose(other(x), mlp(x), atol=1e-2)
    fixed = glu_layout(other.weight_in.detach(), "gate_second", "gate_first")
    other.load_state_dict({**wrong, "weight_in": fixed})
    assert torch.equal(other(x), mlp(x))


# ---- whole MLPs, each by the program of its library -----------------------------------------


def split(w, x, gate, value, out):
    a, v = (F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias")) for name in (gate, value))
    return F.linear(F.silu(a) * v, w[f"{out}.weight"], w.get(f"{out}.bias"))


def packed(w, x, name, out, order, block=1, joint="."):
    given = F.linear(x, w[f"{name}{joint}weight"], w.get(f"{name}{joint}bias"))
    a, v = halves(given, order, block)
    return F.linear(F.silu(a) * v, w[f"{out}{joint}weight"], w.get(f"{out}{joint}bias"))


def ours(w, x):
    mlp = GatedMLP(D, H, O, bias="bias_in" in w)
    mlp.load_state_dict(w)
    return mlp(x)


PROGRAMS = {
    "gatelib": ours,
    "llama": lambda w, x: split(w, x, "w1", "w3", "w2"),
    "hf_llama": lambda w, x: split(w, x, "gate_proj", "up_proj", "down_proj"),
    "hf_phi3": lambda w, x: packed(w, x, "gate_up_proj", "down_proj", "gate_first"),
    "t5": lambda w, x: split(w, x, "wi_0", "wi_1", "wo"),
    "modernbert": lambda w, x: packed(w, x, "Wi", "Wo", "gate_first"),
    "dinov2": lambda w, x: packed(w, x, "w12", "w3", "gate_first"),
    "timm_glu_mlp": lambda w, x: packed(w, x, "fc1", "fc2", "gate_second"),
    "timm_swiglu_packed": lambda w, x: packed(w, x, "fc1", "fc2", "gate_first"),
    "timm_swiglu": lambda w, x: split(w, x, "fc1_g", "fc1_x", "fc2"),
    "x_transformers": lambda w, x: packed(w, x, "ff.0.proj", "ff.2", "gate_second"),
    "megatron": lambda w, x: packed(w, x, "linear_fc1", "linear_fc2", "gate_first"),
    "megatron_interleaved": lambda w, x: packed(
        w, x, "linear_fc1", "linear_fc2", "interleaved", 32
    ),
    "gpt_oss": lambda w, x: packed(w, x, "mlp1", "mlp2", "interleaved", 1, "_"),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("source", "target"), list(permutations(GLU_LAYOUTS, 2)))
def test_a_converted_mlp_computes_the_same_and_goes_back_to_the_letter(source, target, bias):
    start = GatedMLP(D, H, O, bias=bias).state_dict()
    weights, x = gated_mlp(start, "gatelib", source), torch.randn(4, D)
    found = gated_mlp(weights, source, target)
    torch.testing.assert_close(PROGRAMS[target](found, x), PROGRAMS[source](weights, x))
    back = gated_mlp(found, target, source)
    assert list(back) == list(weights)
    assert all(torch.equal(back[name], value) for name, value in weights.items())


def test_experts_on_a_leading_axis_go_together():
    experts = [GatedMLP(D, H, O, bias=True).state_dict() for _ in range(3)]
    stacked = {name: torch.stack([w[name] for w in experts]) for name in experts[0]}
    found = gated_mlp(stacked, "gatelib", "gpt_oss")
    for k, own in enumerate(experts):
        one = gated_mlp(own, "gatelib", "gpt_oss")
        assert all(torch.equal(found[name][k], value) for name, value in one.items())


def test_a_transposed_weight_is_turned_along_its_last_axis():
    weight = torch.randn(3, D, 2 * H)  # (experts, features, rows), as transformers has gpt-oss
    found = glu_layout(weight, "gpt_oss", "gate_first", dim=-1)
    assert torch.equal(found[..., :H], weight[..., ::2])
    assert torch.equal(found[..., H:], weight[..., 1::2])


def test_what_is_converted_shares_no_memory():
    start = GatedMLP(D, H, O).state_dict()
    found = gated_mlp(start, "gatelib", "hf_phi3")
    own = {value.data_ptr() for value in start.values()}
    assert not own & {value.data_ptr() for value in found.values()}
    packed = start["weight_in"]
    assert glu_layout(packed, "gate_first", "gate_first").data_ptr() != packed.data_ptr()


def test_each_layout_has_a_program_here():
    assert set(PROGRAMS) == set(GLU_LAYOUTS)
    assert convert.glu_layout is glu_layout


# ---- bad input ------------------------------------------------------------------------------

ROWS = torch.zeros(12, 3)
LLAMA = {"w1.weight": ROWS, "w3.weight": ROWS, "w2.weight": torch.zeros(4, 12)}
BAD = [
    (lambda: glu_layout(ROWS[:5], "gate_first", "gate_second"), ValueError, "axis 0, got 5 in"),
    (lambda: glu_layout(ROWS[:0], "gate_first", "gate_second"), ValueError, "axis 0, got 0 in"),
    (
        lambda: glu_layout(ROWS, "gate_first", "interleaved", block=4),
        ValueError,
        "target: 'interleaved' has blocks of 4 rows, and half of 12 along axis 0 is 6, which",
    ),
    (
        lambda: glu_layout(ROWS, "megatron_interleaved", "gate_first"),
        ValueError,
        "source: 'megatron_interleaved' has blocks of 32 rows, and half of 12",
    ),
    (lambda: glu_layout(ROWS, "first", "gate_first"), ValueError, "source: expected one of"),
    (lambda: glu_layout(ROWS, "gate_first", "last"), ValueError, "target: expected one of"),
    (
        lambda: glu_layout(ROWS, "llama", "gate_first"),
        ValueError,
        "source: .* packs gate and value, and 'llama' has w1 and w3: torch.cat",
    ),
    (
        lambda: glu_layout(ROWS, "gate_first", "gate_second", dim=2),
        ValueError,
        r"dim: expected an axis of the weight's shape \(12, 3\), got 2",
    ),
    (lambda: glu_layout([1], "gate_first", "gate_second"), TypeError, "weight: expected a tensor"),
    (
        lambda: glu_layout(ROWS, "gate_first", "interleaved", block=0),
        ValueError,
        "block: expected at least 1",
    ),
    (lambda: gated_mlp(LLAMA, "mistral", "llama"), ValueError, "source: expected one of"),
    (lambda: gated_mlp([], "llama", "t5"), TypeError, "weights: expected a mapping of names, got"),
    (
        lambda: gated_mlp({"w1.weight": ROWS}, "llama", "t5"),
        ValueError,
        r"weights: expected \['w1.weight', 'w3.weight', 'w2.weight'\] in the layout 'llama'",
    ),
    (
        lambda: gated_mlp({**LLAMA, "w1.bias": ROWS[:, 0]}, "llama", "t5"),
        ValueError,
        "weights: expected .*'w3.bias'",
    ),
    (
        lambda: gated_mlp({**LLAMA, "w3.weight": ROWS[:6]}, "llama", "t5"),
        ValueError,
        r"weights\['w3.weight'\]: expected shape \(12, 3\), got \(6, 3\)",
    ),
    (
        lambda: gated_mlp({**LLAMA, "w2.weight": ROWS}, "llama", "t5"),
        ValueError,
        r"weights\['w2.weight'\]: expected \(\.\.\., 12\), one column for each gate, got \(12, 3\)",
    ),
    (
        lambda: gated_mlp({**LLAMA, "w1.weight": ROWS[:, 0]}, "llama", "t5"),
        ValueError,
        r"weights\['w1.weight'\]: expected 2 axes at least, got \(12,\)",
    ),
    (
        lambda: gated_mlp(LLAMA, "llama", "megatron_interleaved"),
        ValueError,
        "target: 'megatron_interleaved' has blocks of 32 rows, and half of 24",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
