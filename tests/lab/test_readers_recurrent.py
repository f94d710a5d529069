"""The gates of gatelib's own recurrent layers, read by `record`, make what the layers return.

Imports gatelib, NumPy and torch.
Must not trust a layer's own `values`: gates are checked by putting them together to the output.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gatelib.nn as layers
from gatelib.lab import passport, record
from gatelib.lab.instruments import half_life

B, T, D, H = 2, 5, 3, 4


def floats(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("start", [True, False])
def test_a_recurrent_highways_gates_make_its_output(coupled, depth, start):
    layer = layers.RecurrentHighway(D, H, depth, coupled=coupled).double()
    x, first = floats(B, T, D), floats(B, H)
    with record(layer) as seen:
        y, _ = layer(x, first) if start else layer(x)
    begin = first.numpy() if start else np.zeros((B, H))
    stream = np.concatenate([begin[:, None], y.detach().numpy()[:, :-1]], 1)
    for k in range(depth):
        one = seen[f"RecurrentHighway.l{k}" if depth > 1 else "RecurrentHighway"]
        stream = one["t"] * one["n"] + one["c"] * stream
    assert_close(stream, y)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.6])
def test_jordans_units_make_its_output(batch_first, decay):
    layer = layers.Jordan(D, H, 2, decay=decay, batch_first=batch_first).double()
    x, first, lengths = floats(B, T, D), floats(B, 2), torch.tensor([T, 2])
    with record(layer) as seen:
        y, state = layer(x if batch_first else x.transpose(0, 1), first, lengths)
    y = y if batch_first else y.transpose(0, 1)
    one = seen["Jordan"]
    made = one["h"] @ layer.weight_ho.detach().numpy().T + layer.bias_o.detach().numpy()
    np.testing.assert_allclose(made[0], y[0].detach().numpy(), atol=1e-12)
    assert_close(one["s"][0, -1], state[0])
    assert_close(one["s"][1, 1], state[1])
    assert np.isnan(one["h"][1, 2:]).all() and not np.isnan(one["h"][1, :2]).any()


def test_a_skip_rnn_shows_its_state():
    layer, x = layers.SkipRNN(D, H, 2, batch_first=False).double(), floats(T, B, D)
    with record(layer) as seen:
        y, _ = layer(x)
    assert_close(seen["SkipRNN"]["h"], y.transpose(0, 1))


@pytest.mark.parametrize("kind", ["gate", "static", "open", "none"])
@pytest.mark.parametrize("peephole", [True, False])
def test_a_depth_gated_stacks_gates_make_its_memories(kind, peephole):
    layer = layers.DepthGatedLSTM(D, H, 2, kind=kind, peephole=peephole).double()
    first = {name: floats(2, B, H) for name in "hc"}
    with record(layer) as seen:
        y, last = layer(floats(B, T, D), first, torch.tensor([T, 2]))
    assert list(seen) == ["DepthGatedLSTM.l0", "DepthGatedLSTM.l1"]
    below, stream = np.zeros((B, T, H)), None
    for k, one in enumerate(seen.values()):
        old = np.concatenate([first["c"][k].numpy()[:, None], one["c"][:, :-1]], 1)
        assert ("d" in one) == (k == 1 and kind != "none")
        made = one["f"] * old + one["i"] * one["g"] + one.get("d", 0.0) * below
        np.testing.assert_allclose(made, one["c"], atol=1e-12)
        assert_close(one["c"][[0, 1], [T - 1, 1]], last["c"][k])
        below, stream = one["c"], one["o"] * np.tanh(one["c"])
    assert_close(np.nan_to_num(stream), y)


def test_a_depth_gated_stack_keeps_by_f_in_each_layer_and_wants_no_dropout():
    layer, x = layers.DepthGatedLSTM(D, H, 2, dropout=0.5).double().eval(), floats(B, T, D)
    with record(layer) as seen:
        layer(x)
    kept = {path: float(f"{half_life(one['f']):.2g}") for path, one in seen.items()}
    assert passport(layer, x).half_life == kept and len(kept) == 2
    layer.train()
    with pytest.raises(ValueError, match="model: expected eval mode"), record(layer):
        layer(x)


@pytest.mark.parametrize("coupled", [True, False])
def test_a_recurrent_highway_of_one_layer_tells_what_its_carry_gate_keeps(coupled):
    layer, x = layers.RecurrentHighway(D, H, coupled=coupled).double(), floats(B, T, D)
    with record(layer) as seen:
        layer(x)
    told = passport(layer, x)
    expected = half_life(seen["RecurrentHighway"]["c"])
    assert told.half_life["RecurrentHighway"] == float(f"{expected:.2g}")
    assert "c" in told.saturated["RecurrentHighway"]  # a gate here, not a cell
    assert not passport(layers.RecurrentHighway(D, H, 2).double(), x).half_life


@pytest.mark.parametrize("reset_after", [True, False])
def test_a_drop_in_gru_keeps_by_z_in_both_orders(reset_after):
    layer = layers.GRU(D, H, batch_first=True, reset_after=reset_after).double()
    x = floats(B, T, D)
    with record(layer) as seen:
        layer(x)
    assert passport(layer, x).half_life["GRU"] == float(f"{half_life(seen['GRU']['z']):.2g}")
