"""Witnesses of a stack agree: equations, NumPy by hand, autograd; masks obey their laws.

Imports every floor of the family, NumPy, torch and Hypothesis.
Must not hold a second implementation: a witness is a floor, a derived law, or torch's own layer.
"""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch.autograd import gradcheck

from gatelib import derived, lab
from gatelib.equations import lstm as cells
from gatelib.equations import stacks as equations
from gatelib.nn import LSTM, Gate, Recurrent, Stack, VariationalDropout, pool
from gatelib.reference import lstm
from gatelib.reference import stacks as reference
from tests.families.witnesses import assert_agree, assert_read_in_pieces, for_any_shape

KEEP = 0.75
NAMES = {"weight_ih_l0": "W", "weight_hh_l0": "U", "bias_ih_l0": "b"}


def problem(ways, residual, masked, B=3, T=4, D=3, H=2, seed=0):
    """Weights, states, masks, input and upstream gradients of two layers of one or two ways."""
    rng = np.random.default_rng(seed)
    sizes = (D, ways * H)
    layers = [[lstm.initialize(rng, size, H) for _ in range(ways)] for size in sizes]
    state = [[{k: rng.normal(size=(B, H)) for k in "hc"} for _ in range(ways)] for _ in sizes]
    end = [[{k: rng.normal(size=(B, H)) for k in "hc"} for _ in range(ways)] for _ in sizes]
    noise = rng.uniform(size=(B, 1, ways * H)) if masked else None
    x, dy = rng.normal(size=(B, T, D)), rng.normal(size=(B, T, ways * H))
    return {"x": x, "layers": layers, "starts": state, "dy": dy, "ends": end} | {
        "noise": noise,
        "residual": residual,
    }


def case(p):
    """Inputs and upstream gradients by the names of all witnesses: `0.0.W`, `0.0.h0`, …"""
    inputs, upstream = {"x": p["x"]}, {"y": p["dy"]}
    for k, layer in enumerate(p["layers"]):
        for way, weights in enumerate(layer):
            place, start, end = f"{k}.{way}.", p["starts"][k][way], p["ends"][k][way]
            inputs |= {f"{place}{name}": value for name, value in weights.items()}
            inputs |= {f"{place}{name}0": value for name, value in start.items()}
            upstream |= {f"{place}final_{name}": value for name, value in end.items()}
    return inputs, upstream


def by_equations(p):
    masks = () if p["noise"] is None else [None, ((p["noise"] < KEEP) * 1.0, KEEP)]
    run = partial(derived.stacks.layers, cells.LSTM, masks=masks, residual=p["residual"])
    return derived.gradients(run, *case(p))


def by_hand(p, lengths=None):
    masks = None if p["noise"] is None else [None, reference.mask(p["noise"], 1 - KEEP)]
    starts, ends = (
        [[(way["h"], way["c"]) for way in layer] for layer in p[key]] for key in ("starts", "ends")
    )
    y, finals, saved = reference.forward(
        p["x"], [tuple(layer) for layer in p["layers"]], starts, lengths, masks, p["residual"]
    )
    grads = reference.backward(p["dy"], ends, saved)
    found = {"y": y} | {f"d_{name}": value for name, value in grads.items()}
    for k, layer in enumerate(finals):
        for way, (h, c) in enumerate(layer):
            found |= {f"{k}.{way}.final_h": h, f"{k}.{way}.final_c": c}
    return found


class Chosen(VariationalDropout):
    """Variational dropout whose noise was chosen beforehand."""

    noise: torch.Tensor | None = None

    def forward(self, x, noise=None):
        return super().forward(x, self.noise)


def module(kind, p):
    """The stack as a torch module: of nn.Recurrent, of gatelib's nn.LSTM or of torch's."""
    ways, H = len(p["layers"][0]), p["layers"][0][0]["U"].shape[1]
    layers = []
    for layer in p["layers"]:
        size = layer[0]["W"].shape[1]
        options = {"batch_first": True, "bidirectional": ways == 2, "dtype": torch.float64}
        if kind == "Recurrent":
            made = Recurrent(cells.LSTM, size, H, **options)
        else:
            made = {"LSTM": LSTM, "torch": torch.nn.LSTM}[kind](size, H, **options)
        own = dict(made.named_parameters())
        with torch.no_grad():
            for name, value in own.items():
                way = name.endswith("_reverse")
                key = NAMES.get(name.removesuffix("_reverse"))
                value.copy_(torch.tensor(layer[way][key]) if key else torch.zeros(()))
        layers.append(made)
    stack = Stack(layers, residual=p["residual"], dropout=1 - KEEP if p["noise"] is not None else 0)
    stack.dropout = Chosen(stack.dropout.p)
    stack.dropout.noise = None if p["noise"] is None else torch.tensor(p["noise"])
    return stack


def by_torch(kind, p, lengths=None):
    stack, ways = module(kind, p), range(len(p["layers"][0]))
    lengths = None if lengths is None else torch.tensor(lengths)

    def run(given):
        weights, starts, found = {}, [], {}
        for k in range(len(stack.layers)):
            for way, (name, key) in itertools.product(ways, NAMES.items()):
                weights[f"layers.{k}.{name}" + "_reverse" * way] = given[f"{k}.{way}.{key}"]
            state = {n: torch.stack([given[f"{k}.{way}.{n}0"] for way in ways]) for n in "hc"}
            starts.append(state if kind == "Recurrent" else tuple(state.values()))
        found["y"], finals = lab.called(stack, weights, given["x"], starts, lengths)
        for (k, final), way in itertools.product(enumerate(finals), ways):
            values = final.values() if kind == "Recurrent" else final
            found |= {f"{k}.{way}.final_{n}": v[way] for n, v in zip("hc", values, strict=True)}
        return found

    return lab.gradients(run, *case(p))


CASES = [(w, r, m) for w in (1, 2) for r in (False, True) for m in (False, True)]


@pytest.mark.parametrize("case", CASES)
def test_the_backward_written_by_hand_is_the_one_derived(case):
    p = problem(*case)
    assert_agree(by_hand(p), by_equations(p))


@pytest.mark.parametrize("kind", ["Recurrent", "LSTM", "torch"])
@pytest.mark.parametrize("case", CASES)
def test_torch_agrees_with_the_backward_written_by_hand_on_padded_rows(case, kind):
    p, lengths = problem(*case, seed=1), np.array([4, 1, 3])
    assert_agree(by_torch(kind, p, lengths), by_hand(p, lengths))
    assert_agree(by_torch(kind, p), by_hand(p))


@for_any_shape(15, case=st.sampled_from(CASES))
def test_all_witnesses_agree_for_any_shape(case, shape, seed):
    p = problem(*case, *shape, seed=seed)
    assert_agree(by_hand(p), by_equations(p))
    assert_agree(by_torch("Recurrent", p), by_hand(p))


@pytest.mark.parametrize("ways", [1, 2])
def test_a_padded_row_is_the_row_alone_whatever_stands_in_the_padding(ways):
    p, lengths = problem(ways, True, False), np.array([4, 2, 3])
    p["x"][1, 2:] = 1e3
    together = by_hand(p, lengths)
    alone = dict(p, x=p["x"][1:2, :2], dy=p["dy"][1:2, :2])
    for key in ("starts", "ends"):
        alone[key] = [[{k: v[1:2] for k, v in way.items()} for way in layer] for layer in p[key]]
    expected = by_hand(alone)
    np.testing.assert_allclose(together["y"][1, :2], expected["y"][0], atol=1e-13)
    np.testing.assert_allclose(together["d_x"][1, :2], expected["d_x"][0], atol=1e-13)
    assert not together["y"][1, 2:].any() and not together["d_x"][1, 2:].any()
    np.testing.assert_allclose(together["1.0.final_c"][1:2], expected["1.0.final_c"], atol=1e-13)


def test_reversal_undoes_itself_and_leaves_the_padding_where_it_is():
    x = np.arange(10.0).reshape(2, 5, 1)
    turned = reference.reverse(x, np.array([5, 3]))
    assert turned[:, :, 0].tolist() == [[4, 3, 2, 1, 0], [7, 6, 5, 8, 9]]
    np.testing.assert_array_equal(reference.reverse(turned, np.array([5, 3])), x)
    np.testing.assert_array_equal(reference.reverse(x), x[:, ::-1])


def test_one_direction_sees_no_future_and_two_see_everything():
    for ways in (1, 2):
        stack = module("Recurrent", problem(ways, False, False, B=1, T=4))
        x = torch.randn(1, 4, 3, dtype=torch.float64)
        slopes = torch.autograd.functional.jacobian(
            lambda x, stack=stack: stack(x)[0].sum((0, 2)), x
        )
        size = slopes[:, 0].abs().sum(-1)  # row t: what y_t takes from each x_s
        if ways == 1:
            assert not size.triu(1).any() and (size.tril() > 0).sum() == 10
        else:
            assert (size > 0).all()


# --- masks ------------------------------------------------------------------------------------


def test_a_variational_mask_is_the_same_at_every_step_and_differs_between_rows():
    drop = VariationalDropout(0.5)
    torch.manual_seed(0)
    y = drop(torch.ones(64, 7, 32))
    assert torch.equal(y, y[:, :1].expand_as(y))
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(y[0], y[1]) and not torch.equal(y[:, :, 0], y[:, :, 1])


def test_a_variational_mask_keeps_the_mean():
    torch.manual_seed(0)
    y = VariationalDropout(0.3)(torch.ones(400, 2, 100))
    assert abs(float(y.mean()) - 1) < 4 * (0.3 / 0.7 / 40_000) ** 0.5


def test_time_first_masks_are_shared_over_time_too():
    torch.manual_seed(0)
    y = VariationalDropout(0.5, batch_first=False)(torch.ones(7, 64, 3))
    assert torch.equal(y, y[:1].expand_as(y)) and not torch.equal(y[:, 0], y[:, 1])


def test_dropout_rests_after_eval_and_at_0_and_drops_all_at_1():
    x = torch.randn(2, 3, 4)
    assert torch.equal(VariationalDropout(0.5).eval()(x), x)
    assert torch.equal(VariationalDropout(0.0)(x), x)
    assert not VariationalDropout(1.0)(x).any()


def test_the_mask_is_the_gate_of_the_equation_and_of_the_reference():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(3, 5, 4)), rng.uniform(size=(3, 1, 4))
    expected = equations.DROPOUT.evaluate({"m": noise < 0.75, "keep": 0.75, "v": x})["y"]
    np.testing.assert_allclose(reference.mask(noise, 0.25) * x, expected, atol=1e-15)
    found = VariationalDropout(0.25)(torch.tensor(x), torch.tensor(noise))
    np.testing.assert_allclose(found, expected, atol=1e-15)
    assert not reference.mask(noise, 1.0).any()


def test_dropout_of_low_precision_stays_in_it():
    assert (
        VariationalDropout(0.5)(torch.ones(2, 3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    )


def test_a_stack_draws_a_mask_for_each_layer_but_the_first_and_spares_the_shortcut():
    torch.manual_seed(0)
    layers = [Recurrent(cells.LSTM, 4, 4) for _ in range(2)]
    stack, x = Stack(layers, residual=True, dropout=1.0), torch.randn(2, 3, 4)
    below = layers[0](x)[0]
    silent = layers[1](torch.zeros_like(below))[0]
    torch.testing.assert_close(stack(x)[0], below + silent)
    stack.eval()
    torch.testing.assert_close(stack(x)[0], below + layers[1](below)[0])


def test_zoneout_keeps_old_values_where_dropout_would_lose_them():
    rng = np.random.default_rng(0)
    new, old, kept = rng.normal(size=(2, 5)), rng.normal(size=(2, 5)), rng.integers(0, 2, (2, 5))
    expected = equations.ZONEOUT.evaluate({"m": kept, "h_prev": old, "v": new})["h"]
    np.testing.assert_allclose(reference.zoneout(new, old, kept), expected, atol=1e-15)
    np.testing.assert_array_equal(reference.zoneout(new, old, np.ones_like(kept)), old)


# --- pooling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", reference.POOLS)
@pytest.mark.parametrize("lengths", [None, [4, 1, 3]])
def test_three_witnesses_of_pooling_agree(kind, lengths):
    rng = np.random.default_rng(0)
    y, d = rng.normal(size=(3, 4, 6)), rng.normal(size=(3, 6))
    given_lengths = None if lengths is None else np.array(lengths)
    found, gate = reference.pool(y, given_lengths, kind)
    over_time = np.swapaxes
    values = {"g": over_time(gate, 1, 2), "v": over_time(y, 1, 2)}
    derived = equations.POOL.evaluate(values)["y"][..., 0]
    seeds = values | {"g_y": np.concatenate([d[:, :, None], np.zeros((3, 6, 3))], axis=2)}
    back = equations.POOL.vjp().evaluate(seeds)["d_v"]
    inputs = torch.tensor(y, requires_grad=True)
    pooled = pool(inputs, None if lengths is None else torch.tensor(lengths), kind)
    (pooled * torch.tensor(d)).sum().backward()
    for other in (derived, pooled.detach().numpy()):
        np.testing.assert_allclose(other, found, atol=1e-12)
    for other in (over_time(back, 1, 2), inputs.grad.numpy()):
        np.testing.assert_allclose(other, reference.pool_backward(d, gate), atol=1e-12)


@pytest.mark.parametrize("kind", reference.POOLS)
def test_padding_never_reaches_what_is_pooled(kind):
    y, lengths = torch.randn(3, 5, 4), torch.tensor([5, 2, 3])
    spoiled = y.masked_fill(torch.arange(5)[:, None] >= lengths[:, None, None], torch.nan)
    assert torch.equal(pool(spoiled, lengths, kind), pool(y, lengths, kind))
    alone = pool(y[1:2, :2], None, kind)
    torch.testing.assert_close(pool(y, lengths, kind)[1:2], alone)
    gate = reference.pool(y.numpy(), lengths.numpy(), kind)[1]
    np.testing.assert_allclose(gate.sum(1), 1, atol=1e-6)


def test_ends_pools_what_each_direction_has_read_in_full():
    layer = Recurrent(cells.LSTM, 3, 2, bidirectional=True)
    x, lengths = torch.randn(3, 5, 3), torch.tensor([5, 2, 4])
    y, final = layer(x, None, lengths)
    torch.testing.assert_close(pool(y, lengths, "ends"), torch.cat([*final["h"]], dim=1))


def test_pooling_passes_gradcheck():
    y, lengths = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True), torch.tensor([4, 2])
    for kind in reference.POOLS:
        assert gradcheck(lambda y, kind=kind: pool(y, lengths, kind), y)


def test_a_stack_passes_gradcheck():
    stack = module("Recurrent", problem(2, True, True, B=2, T=3, D=2, H=1))
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: stack(x, None, torch.tensor([3, 2]))[0], x)


# --- word gates -------------------------------------------------------------------------------


def test_three_witnesses_of_the_word_gate_agree():
    rng = np.random.default_rng(0)
    e, w, b, dy = (
        rng.normal(size=(3, 5, 4)),
        rng.normal(size=4),
        np.array(0.3),
        rng.normal(size=(3, 5, 4)),
    )
    y, gate = reference.word_gate(e, w, b)
    by_hand_ = reference.word_gate_backward(dy, e, w, gate)
    a = (w * e).sum(-1, keepdims=True) + b
    known = {"w": w, "b": b, "e": e, "g": gate[..., None], "a": a, "g_y": dy}
    spec = equations.WORD_GATE
    np.testing.assert_allclose(spec.evaluate(known)["y"], y, atol=1e-12)
    derived = spec.vjp().evaluate(known)
    np.testing.assert_allclose(derived["d_e"], by_hand_["e"], atol=1e-12)
    np.testing.assert_allclose(derived["d_w"].sum((0, 1)), by_hand_["w"], atol=1e-12)
    layer = Gate(4, 1, dtype=torch.float64)
    layer.load_state_dict({"weight": torch.tensor(w[None]), "bias": torch.tensor(b[None])})
    inputs = torch.tensor(e, requires_grad=True)
    found = layer(inputs) * inputs
    (found * torch.tensor(dy)).sum().backward()
    np.testing.assert_allclose(found.detach(), y, atol=1e-12)
    np.testing.assert_allclose(inputs.grad, by_hand_["e"], atol=1e-12)
    np.testing.assert_allclose(layer.weight.grad[0], by_hand_["w"], atol=1e-12)
    np.testing.assert_allclose(layer.bias.grad[0], by_hand_["b"], atol=1e-12)


# --- what a stack is made of ------------------------------------------------------------------


def test_a_stack_of_two_layers_is_the_layer_with_two_layers():
    peer = torch.nn.GRU(3, 4, num_layers=2, batch_first=True, bidirectional=True)
    layers = [torch.nn.GRU(size, 4, batch_first=True, bidirectional=True) for size in (3, 8)]
    for k, layer in enumerate(layers):
        own = {n: peer.state_dict()[n.replace("_l0", f"_l{k}")] for n in layer.state_dict()}
        layer.load_state_dict(own)
    x = torch.randn(2, 5, 3)
    y, final = Stack(layers)(x)
    expected, last = peer(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.cat(final), last)


def test_a_sequence_may_be_read_in_pieces():
    stack = Stack([Recurrent(cells.LSTM, 3, 4), LSTM(4, 4, batch_first=True)], residual=True)
    assert_read_in_pieces(stack, torch.randn(2, 6, 3), at=4)


def test_a_stack_may_hold_a_stack():
    inner = Stack([LSTM(3, 4, batch_first=True)])
    outer = Stack([inner, Recurrent(cells.LSTM, 4, 4, bidirectional=True)])
    assert (outer.input_size, outer.output_size) == (3, 8)
    y, _ = outer(torch.randn(2, 5, 3), lengths=torch.tensor([5, 2]))
    assert y.shape == (2, 5, 8) and not y[1, 2:].any()


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: reference.pool(np.ones((2, 5, 3)), kind="sum"), "kind: expected"),
        (lambda: reference.pool(np.ones((2, 5, 3)), np.array([0, 5])), "lengths: expected 1"),
        (lambda: reference.pool(np.ones((2, 5, 3)), kind="ends"), "y: expected two"),
        (lambda: reference.mask(np.ones((1, 1, 1)), 1.5), "p: expected a probability"),
    ],
)
def test_the_reference_names_what_is_wrong(act, says):
    with pytest.raises(ValueError, match=says):
        act()
