"""Gated depth between LSTM layers: equations, NumPy by hand and torch agree, over every kind."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from gatelib import derived, lab
from gatelib.equations import gated_stack as equations
from gatelib.equations import lstm as cells
from gatelib.nn import DepthGatedLSTM, Stack, init
from gatelib.reference import gated_stack as reference
from gatelib.spec import symbol
from tests.families.witnesses import assert_agree, assert_read_in_pieces, for_any_shape

NAMES = {"W": "weight_ih", "U": "weight_hh", "b": "bias_ih"}
CASES = [(kind, peephole) for kind in reference.KINDS for peephole in (False, True)]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
LENGTHS = np.array([4, 0, 2])


def problem(kind, peephole, B=3, T=4, D=3, H=2, layers=3, seed=0):
    """Inputs and upstream gradients by the names of all witnesses: `0.W`, `0.h0`, …"""
    rng = np.random.default_rng(seed)
    inputs, upstream = {"x": rng.normal(size=(B, T, D))}, {"y": rng.normal(size=(B, T, H))}
    for k, weights in enumerate(reference.initialize(rng, D, H, layers, kind, peephole)):
        inputs |= {f"{k}.{name}": 2 * value for name, value in weights.items()}
        inputs |= {f"{k}.{name}0": rng.normal(size=(B, H)) for name in "hc"}
        upstream |= {f"{k}.final_{name}": rng.normal(size=(B, H)) for name in "hc"}
    return inputs, upstream


def parts(values, what):
    """For each layer the values under its number that `what` picks, by their own names."""
    found, k = [], 0
    while any(name.startswith(f"{k}.") for name in values):
        own = {n.split(".")[1]: v for n, v in values.items() if n.startswith(f"{k}.")}
        found.append({n: v for n, v in own.items() if what(n)})
        k += 1
    return found


def by_equations(kind, peephole, inputs, upstream):
    lowest = cells.PEEPHOLE if peephole else cells.LSTM
    upper = equations.KINDS.get((kind, peephole), lowest)
    return derived.gradients(partial(derived.gated_stack.layers, lowest, upper), inputs, upstream)


def by_hand(kind, peephole, inputs, upstream, lengths=None):
    states = ("h0", "c0")
    layers = parts(inputs, lambda name: name not in states)
    starts = [tuple(own[n] for n in states) for own in parts(inputs, lambda n: n in states)]
    y, finals, saved = reference.forward(inputs["x"], layers, starts, lengths, kind != "none")
    ends = [(own["final_h"], own["final_c"]) for own in parts(upstream, bool)]
    found = {f"d_{n}": v for n, v in reference.backward(upstream["y"], ends, saved).items()}
    for k, (h, c) in enumerate(finals):
        found |= {f"{k}.final_h": h, f"{k}.final_c": c}
    return found | {"y": y}


def layer_of(kind, peephole, inputs, dtype=torch.float64):
    count, hidden = len(parts(inputs, bool)), inputs["0.U"].shape[1]
    sizes = inputs["x"].shape[2], hidden, count
    return DepthGatedLSTM(*sizes, kind=kind, peephole=peephole, dtype=dtype)


def by_torch(kind, peephole, inputs, upstream, lengths=None):
    layer = layer_of(kind, peephole, inputs)
    ends = None if lengths is None else torch.tensor(lengths)

    def run(given):
        own = parts(given, lambda name: name not in ("h0", "c0"))
        weights = {f"{NAMES.get(n, n)}_l{k}": v for k, w in enumerate(own) for n, v in w.items()}
        starts = parts(given, lambda name: name in ("h0", "c0"))
        state = {n: torch.stack([start[f"{n}0"] for start in starts]) for n in "hc"}
        y, final = lab.called(layer, weights, given["x"], state, ends)
        names = [(k, n) for k in range(len(own)) for n in "hc"]
        return {"y": y} | {f"{k}.final_{n}": final[n][k] for k, n in names}

    return lab.gradients(run, inputs, upstream)


@for_any_shape(20, steps=0, case=st.sampled_from(CASES), layers=st.integers(1, 3))
def test_hand_and_derivation_agree_for_any_shape(case, layers, shape, seed):
    args = problem(*case, *shape, layers=layers, seed=seed)
    assert_agree(by_hand(*case, *args), by_equations(*case, *args), 1e-11)


@every_case
def test_the_layer_has_the_gradients_by_hand_on_padded_rows_too(case):
    args = problem(*case, seed=1)
    for lengths in (None, LENGTHS):
        assert_agree(by_torch(*case, *args, lengths), by_hand(*case, *args, lengths), 1e-12)


def test_a_padded_row_is_the_row_alone_whatever_stands_in_the_padding():
    inputs, upstream = problem("gate", True, seed=2)
    inputs["x"][2, 2:] = 1e3
    together = by_hand("gate", True, inputs, upstream, LENGTHS)

    def third(values):
        own = {n: v[2:] for n, v in values.items() if n[-2:] in ("h0", "c0", "_h", "_c")}
        return values | own | {n: values[n][2:, :2] for n in "xy" if n in values}

    alone = by_hand("gate", True, third(inputs), third(upstream))
    for name in ("y", "d_x"):
        np.testing.assert_allclose(together[name][2:, :2], alone[name], atol=1e-14)
        assert not together[name][2, 2:].any() and not together[name][1].any()
    np.testing.assert_allclose(together["2.final_c"][2:], alone["2.final_c"], atol=1e-14)


# ---- what the gate does ----------------------------------------------------------------------


def test_memory_goes_up_by_d_and_along_time_by_f():
    spec = equations.DEPTH_OPEN
    assert spec.partial("c", "c_below") == 1
    assert equations.DEPTH_STATIC.partial("c", "c_below") == symbol("d")
    c = equations.DEPTH_GATE.compose()["c"]
    assert c.has(symbol("c_below")) and c.has(symbol("w_l"))


def test_a_shut_gate_leaves_an_lstm_and_an_open_one_a_shortcut():
    c = equations.DEPTH_GATE.exposed
    for at, other in ((sp.S.Zero, cells.LSTM), (sp.S.One, equations.DEPTH_OPEN)):
        lines = dict(c.replace("cut", d=str(at)).exposed.compose())
        for name, expression in other.exposed.compose().items():
            assert sp.simplify(lines[name] - expression) == 0


def test_without_a_gate_it_is_torchs_lstm_whose_checkpoint_it_reads():
    torch.manual_seed(0)
    theirs = torch.nn.LSTM(3, 4, 3, batch_first=True)
    x, start = torch.randn(2, 5, 3), [torch.randn(3, 2, 4) for _ in range(2)]
    ours = DepthGatedLSTM(3, 4, 3, kind="none")
    ours.load_state_dict(theirs.state_dict())
    y, final = ours(x, dict(zip("hc", start, strict=True)))
    expected, (h, c) = theirs(x, tuple(start))
    torch.testing.assert_close((y, final["h"], final["c"]), (expected, h, c))
    shut = DepthGatedLSTM(3, 4, 3, kind="static")
    shut.load_state_dict(theirs.state_dict(), strict=False)
    torch.testing.assert_close(init.open_(shut, "d", -100.0)(x, None)[0], theirs(x)[0])


def test_a_static_gate_far_open_is_the_shortcut():
    torch.manual_seed(0)
    static, shortcut = DepthGatedLSTM(3, 4, 3, kind="static"), DepthGatedLSTM(3, 4, 3, kind="open")
    shortcut.load_state_dict(static.state_dict(), strict=False)
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(init.open_(static, "d", 100.0)(x)[0], shortcut(x)[0])


def test_gates_start_where_their_biases_say():
    layer = init.open_(init.forget_bias_(DepthGatedLSTM(3, 4, 3), 2.0), "d", -3.0)
    for k in range(3):
        assert (layer.get_parameter(f"bias_ih_l{k}")[4:8] == 2).all()
    assert (layer.bias_ih_l1[16:] == -3).all() and layer.bias_ih_l0.shape == (16,)
    assert len(layer.gate_biases("d")) == 2
    for kind in ("open", "none"):
        with pytest.raises(ValueError, match="gate: expected one of i, f, g, o, got 'd'"):
            init.open_(DepthGatedLSTM(3, 4, kind=kind), "d", 0.0)
    with pytest.raises(ValueError, match="bias: expected a layer with biases"):
        init.open_(DepthGatedLSTM(3, 4, bias=False), "d", 0.0)


def test_every_value_can_be_looked_at():
    layer, x = DepthGatedLSTM(3, 4, 2, peephole=True), torch.randn(2, 5, 3)
    first, second = layer.values(x, lengths=torch.tensor([5, 2]))
    assert set(first) == set("ifgohc") and set(second) == set("ifgohcd")
    expected = second["f"] * torch.cat([torch.zeros(2, 1, 4), second["c"][:, :-1]], 1)
    expected = expected + second["i"] * second["g"] + second["d"] * first["c"]
    torch.testing.assert_close(second["c"], expected, equal_nan=True)
    assert second["d"][1, 2:].isnan().all()


def test_a_sequence_may_be_read_in_pieces():
    assert_read_in_pieces(DepthGatedLSTM(3, 4, 2), torch.randn(2, 6, 3))


def test_dropout_rests_after_eval_and_spares_the_memories():
    torch.manual_seed(0)
    layer, x = DepthGatedLSTM(3, 4, 2, dropout=1.0), torch.randn(2, 5, 3)
    values = layer.values(x)
    assert values[1]["d"].std() > 0  # the memory below is seen still
    torch.testing.assert_close(layer.eval()(x)[0], layer(x)[0])


def test_it_stands_in_a_stack():
    stack = Stack([DepthGatedLSTM(3, 4), DepthGatedLSTM(4, 4)], residual=True)
    y, _ = stack(torch.randn(2, 5, 3), None, torch.tensor([5, 2]))
    assert y.shape == (2, 5, 4) and not y[1, 2:].any()


# ---- as torch's own --------------------------------------------------------------------------


@every_case
def test_first_and_second_derivatives_are_right(case):
    inputs, _ = problem(*case, B=2, T=2, D=2, H=1, layers=2)
    layer, x = layer_of(*case, inputs), torch.tensor(inputs["x"], requires_grad=True)

    def run(x):
        return layer(x, None, torch.tensor([2, 1]))[0]

    assert gradcheck(run, x) and gradgradcheck(run, x)


@pytest.mark.parametrize("kind", reference.KINDS)
def test_compiled_exported_and_mapped_it_is_the_same(kind):
    layer = DepthGatedLSTM(3, 4, kind=kind, peephole=True)
    x, lengths = torch.randn(3, 2, 3), torch.tensor([2, 0, 1])
    expected = layer(x, None, lengths)
    if kind == "gate":
        whole = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(whole(x, None, lengths), expected)
    exported = torch.export.export(layer, (x, None, lengths)).module()
    others = torch.tensor([1, 2, 2])
    torch.testing.assert_close(exported(x, None, others), layer(x, None, others))
    found = torch.vmap(lambda x: layer(x, None, lengths)[0])(torch.stack([x, 2 * x]))
    torch.testing.assert_close(found[1], layer(2 * x, None, lengths)[0])


def test_in_low_precision_states_are_of_float32():
    layer, x = DepthGatedLSTM(3, 4, peephole=True), torch.randn(2, 5, 3)
    expected = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y, final = layer(x)
    assert y.dtype == torch.bfloat16 and final["c"].dtype == torch.float32
    torch.testing.assert_close(y.float(), expected, atol=0.02, rtol=0.02)
    low = layer.bfloat16()
    y, final = low(x.bfloat16())
    assert y.dtype == torch.bfloat16 and final["c"].dtype == torch.float32
    low(x.bfloat16(), final)


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        (lambda: DepthGatedLSTM(3, 0), ValueError, "hidden_size: expected at least 1"),
        (lambda: DepthGatedLSTM(3, 4, kind="shut"), ValueError, "kind: expected one of"),
        (lambda: DepthGatedLSTM(3, 4, peephole=1), TypeError, "peephole: expected True or"),
        (lambda: DepthGatedLSTM(3, 4, dropout=2.0), ValueError, "dropout: expected a probability"),
        (lambda: DepthGatedLSTM(3, 4)(torch.ones(2, 5, 4)), ValueError, "input: expected 3 feat"),
        (
            lambda: DepthGatedLSTM(3, 4)(torch.ones(2, 5, 3), {"h": torch.ones(2, 2, 4)}),
            ValueError,
            r"initial_state: expected 'h' and 'c', got \['h'\]",
        ),
        (
            lambda: DepthGatedLSTM(3, 4)(torch.ones(2, 5, 3), torch.ones(2, 2, 4)),
            TypeError,
            "initial_state: expected a mapping",
        ),
        (
            lambda: DepthGatedLSTM(3, 4)(
                torch.ones(2, 5, 3), dict.fromkeys("hc", torch.ones(2, 4))
            ),
            ValueError,
            r"initial_state\['h'\]: expected shape \(2, 2, 4\)",
        ),
        (
            lambda: DepthGatedLSTM(3, 4)(torch.ones(2, 5, 3), None, torch.tensor([6, 1])),
            ValueError,
            "lengths: expected 0 to T = 5",
        ),
        (
            lambda: reference.initialize(np.random.default_rng(0), 3, 4, 2, "shut"),
            ValueError,
            "kind: expected one of",
        ),
    ],
)
def test_bad_input_is_named(act, error, says):
    with pytest.raises(error, match=says):
        act()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"x": np.zeros((3, 4))}, ValueError, "x: expected 3 dimensions"),
        ({"lengths": np.array([5, 1, 1])}, ValueError, "lengths: expected 0 … 4"),
        ({"layers": [{}]}, ValueError, "weights: expected"),
        ({"carried": False}, ValueError, "layers: expected no depth gate without a memory below"),
        (
            {"starts": [(np.zeros((3, 3)), np.zeros((3, 2)))] * 3},
            ValueError,
            r"h0: expected \(3, 2\)",
        ),
    ],
)
def test_the_reference_names_bad_input(change, error, says):
    inputs, _ = problem("gate", False)
    layers = parts(inputs, lambda name: name not in ("h0", "c0"))
    with pytest.raises(error, match=says):
        reference.forward(**{"x": inputs["x"], "layers": layers} | change)
