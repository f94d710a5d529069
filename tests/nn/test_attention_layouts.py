"""Layouts of gated attention: each map is a permutation, proven by what each program reads."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from gatelib.nn import GatedAttention, GTrXLGate
from gatelib.nn.attention_layouts import GTRXL_LAYOUTS, attention_gates, gtrxl_gate, sink_column

ORDERS = ("per_group", "per_head", "tail")


def read(y, order, heads, groups, size, gate):
    """Queries (..., H, d) and gates (..., H, d or 1), as a program with this order takes them."""
    rest = y.shape[:-1]
    if order == "tail":
        q, g = y.split([heads * size, heads * gate], -1)
    elif order == "per_head":
        q, g = y.view(*rest, heads, -1).split([size, gate], -1)
    else:
        shared = heads // groups
        q, g = y.view(*rest, groups, -1).split([shared * size, shared * gate], -1)
    return q.reshape(*rest, heads, size), g.reshape(*rest, heads, gate)


SIZES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))


@given(
    SIZES,
    st.sampled_from(["element", "head"]),
    st.sampled_from([*itertools.permutations(ORDERS, 2)]),
)
def test_each_program_reads_the_same_queries_and_gates(sizes, per, orders):
    groups, shared, size = sizes
    heads, gate, (source, target) = groups * shared, size if per == "element" else 1, orders
    weight = torch.arange(heads * (size + gate) * 5.0).view(-1, 5)
    moved = attention_gates(weight, source, target, heads, groups, per)
    assert sorted(moved[:, 0].tolist()) == weight[:, 0].tolist()
    x = torch.eye(5)
    for mine, theirs in zip(
        read(F.linear(x, weight), source, heads, groups, size, gate),
        read(F.linear(x, moved), target, heads, groups, size, gate),
        strict=True,
    ):
        assert torch.equal(mine, theirs)
    assert torch.equal(attention_gates(moved, target, source, heads, groups, per), weight)
    along = attention_gates(weight.t(), source, target, heads, groups, per, dim=-1)
    assert torch.equal(along, moved.t())


def test_two_orders_are_one_with_one_head_a_group_and_others_differ():
    weight = torch.arange(32.0)
    assert torch.equal(attention_gates(weight, "per_group", "per_head", 4, 4), weight)
    assert torch.equal(attention_gates(weight, "per_group", "tail", 4, 1), weight)
    assert not torch.equal(attention_gates(weight, "per_group", "per_head", 4, 2), weight)


@pytest.mark.parametrize("per", ["element", "head"])
def test_the_tail_is_what_the_layer_holds(per):
    torch.manual_seed(0)
    layer = GatedAttention(16, 4, num_kv_heads=2, gate="output", per=per)
    packed = torch.cat([layer.in_proj_weight[:16], layer.gate_weight])
    theirs = attention_gates(packed, "tail", "per_group", 4, 2, per)
    x = torch.randn(2, 3, 16)
    q, g = read(F.linear(x, theirs), "per_group", 4, 2, 4, 4 if per == "element" else 1)
    seen = layer.values(x)
    torch.testing.assert_close(q.transpose(1, 2), seen["q"])
    torch.testing.assert_close(torch.sigmoid(g).transpose(1, 2), seen["g"])


def test_a_sink_first_or_last_is_the_same_softmax():
    scores = torch.randn(2, 3, 5)
    first = sink_column(scores, "last", "first")
    assert torch.equal(first[..., 0], scores[..., -1]) and torch.equal(
        first[..., 1:], scores[..., :-1]
    )
    assert torch.equal(sink_column(first, "first", "last"), scores)
    dropped = torch.softmax(first, -1)[..., 1:]
    torch.testing.assert_close(dropped, torch.softmax(scores, -1)[..., :-1])
    kept = sink_column(scores, "last", "last")
    assert torch.equal(kept, scores) and kept.data_ptr() != scores.data_ptr()


def rllib(x, y, w):
    """The gate as RLlib computes it: rows times matrices, (stream, submodule)."""
    r = torch.sigmoid(y @ w["_w_r"] + x @ w["_u_r"])
    z = torch.sigmoid(y @ w["_w_z"] + x @ w["_u_z"] - w["_bias_z"])
    return (1 - z) * x + z * torch.tanh(y @ w["_w_h"] + (x * r) @ w["_u_h"])


def test_rllibs_gate_is_ours_with_its_matrices_transposed():
    torch.manual_seed(0)
    gate = GTrXLGate(5).double()
    theirs = gtrxl_gate(gate.state_dict(), "gatelib", "rllib")
    x, y = torch.randn(2, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(rllib(x, y, theirs), gate(x, y), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["rllib", "episodic_ppo", "gatelib"])
def test_a_gate_there_and_back_is_the_same_to_the_bit(name):
    own = GTrXLGate(5).state_dict()
    there = gtrxl_gate(own, "gatelib", name)
    assert list(there) == GTRXL_LAYOUTS[name].names
    back = gtrxl_gate(there, name, "gatelib")
    assert list(back) == ["weight_y", "weight_x", "bias"]
    assert all(torch.equal(back[key], own[key]) for key in own)


def test_a_reset_after_the_product_has_no_map():
    with pytest.raises(ValueError, match="target: 'gatelib' resets the stream before the product"):
        gtrxl_gate(GTrXLGate(5).state_dict(), "gatelib", "x_transformers")
    cell = torch.nn.GRUCell(5, 5).state_dict()
    with pytest.raises(ValueError, match="target: 'x_transformers' resets the stream after the"):
        gtrxl_gate({f"gru.{key}": value for key, value in cell.items()}, "x_transformers", "rllib")


WRONG = {
    "source: expected one of 'per_group', 'per_head', 'tail'; got 'head'": {"source": "head"},
    "groups: expected a divisor of heads = 4, got 3": {"groups": 3},
    "weight: expected rows of 4 heads of d queries and d gates each along axis 0, got 31": {
        "weight": torch.zeros(31, 2)
    },
    "dim: expected an axis of the weight's shape": {"dim": 2},
}


@pytest.mark.parametrize("says", WRONG)
def test_what_it_refuses_it_names(says):
    usual = {"weight": torch.zeros(32, 2), "source": "tail", "target": "tail"}
    with pytest.raises(ValueError, match=says):
        attention_gates(**({"heads": 4, "groups": 2} | usual | WRONG[says]))


def test_names_and_shapes_that_are_not_a_layouts_own_are_refused():
    own = GTrXLGate(5).state_dict()
    with pytest.raises(ValueError, match=r"weights: expected \['_w_r'"):
        gtrxl_gate(own, "rllib", "gatelib")
    with pytest.raises(
        ValueError, match=r"weights\['weight_x'\]: expected \(15, 5\), got \(15, 4\)"
    ):
        gtrxl_gate(own | {"weight_x": torch.zeros(15, 4)}, "gatelib", "rllib")
    with pytest.raises(ValueError, match="values: expected a sink along axis 3"):
        sink_column(torch.zeros(2, 3), "first", "last", 3)
