"""A passport's numbers are those that one counts by hand, and the same on every machine."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gatelib.lab.instruments import (
    gradient_by_distance,
    half_life,
    jacobian_spectrum,
    saturation,
)
from gatelib.lab.passport import MIME, passport
from gatelib.nn import GRU, LSTM, RNN, FeatureGate

BATCH, STEPS, WIDTH, HIDDEN = 3, 5, 4, 6


def lstm(**options):
    torch.manual_seed(0)
    return nn.LSTM(WIDTH, HIDDEN, batch_first=True, **options)


def example():
    return torch.randn(BATCH, STEPS, WIDTH, generator=torch.Generator().manual_seed(1))


def test_an_lstm_costs_what_its_products_cost():
    found = passport(lstm(), example())
    gates = 4 * HIDDEN
    assert found.parameters == gates * (WIDTH + HIDDEN + 2)
    assert found.parameter_bytes == 4 * found.parameters
    product = 2 * BATCH * STEPS * gates
    assert found.forward.flops == product * (WIDTH + HIDDEN)
    unused = 2 * BATCH * gates * HIDDEN  # nobody asks for the gradient of the first state
    assert found.backward.flops == 2 * found.forward.flops - unused


@pytest.mark.parametrize(("kind", "share"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_at_equal_width_a_cell_costs_as_many_rnns_as_it_has_products(kind, share):
    found = passport(kind(WIDTH, HIDDEN, batch_first=True), example())
    plain = passport(nn.RNN(WIDTH, HIDDEN, batch_first=True), example())
    assert found.parameters == share * plain.parameters
    assert found.forward.flops == share * plain.forward.flops


@pytest.mark.parametrize("steps", [5, 49])
def test_attention_costs_two_products_of_positions_with_positions(steps):
    class Attention(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x)

    x = torch.randn(2, 3, steps, 8, requires_grad=True)
    found = passport(Attention(), x, spectrum=False)
    product = 2 * 2 * 3 * steps * steps * 8
    assert found.forward.flops == 2 * product
    assert found.backward.flops in (4 * product, 5 * product)  # fused: the scores once more


def test_an_operator_that_hides_products_is_refused_and_not_counted_as_free():
    class Solved(nn.Module):
        def forward(self, x):
            return torch.linalg.solve(x, x)

    x = torch.eye(8).requires_grad_()
    with pytest.raises(ValueError, match="layer: expected operators that can be counted, got aten"):
        passport(Solved(), x, spectrum=False)


@pytest.mark.parametrize(("ours", "theirs"), [(LSTM, nn.LSTM), (GRU, nn.GRU), (RNN, nn.RNN)])
def test_a_drop_in_has_the_passport_of_torchs_layer(ours, theirs):
    made = [kind(WIDTH, HIDDEN, batch_first=True) for kind in (ours, theirs)]
    made[0].load_state_dict(made[1].state_dict())
    found, expected = (asdict(passport(layer, example())) for layer in made)
    assert found == expected


def test_where_the_reset_gate_acts_changes_no_parameter_and_no_product():
    before, after = (GRU(WIDTH, HIDDEN, batch_first=True, reset_after=r) for r in (False, True))
    found, expected = passport(before, example()), passport(after, example())
    assert (found.parameters, found.forward.flops) == (expected.parameters, expected.forward.flops)
    assert found.half_life.keys() == {"GRU"} and found.saturated["GRU"].keys() == set("rzn")


def test_bytes_and_saved_activations_of_a_linear_layer_and_a_sigmoid():
    layer = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Sigmoid())
    found = passport(layer, torch.ones(BATCH, WIDTH))
    x, w, b, y = BATCH * WIDTH, WIDTH * HIDDEN, HIDDEN, BATCH * HIDDEN
    assert found.forward.bytes == 4 * ((x + w + b + y) + (y + y))
    assert found.forward.flops == 2 * BATCH * w
    assert found.saved_bytes == 4 * y  # the sigmoid's output; input and weights are there anyway


def test_a_storage_that_is_saved_twice_counts_once():
    class Twice(nn.Module):
        def forward(self, x):
            a = x.exp()
            return a.view(-1) * a.view(-1)[:]

    assert passport(Twice(), torch.ones(2, 3), spectrum=False).saved_bytes == 4 * 6


def test_views_move_nothing():
    class View(nn.Module):
        def forward(self, x):
            return x.T

    assert passport(View(), torch.ones(2, 3), spectrum=False).forward.bytes == 0


def test_zeros_of_the_shape_of_a_tensor_do_not_read_it():
    class Zeros(nn.Module):
        def forward(self, x):
            return x + x.new_zeros(3)

    zeros, total = 3, (6 + 3) + 6  # written once; then read beside x, and the sum written
    assert passport(Zeros(), torch.ones(2, 3), spectrum=False).forward.bytes == 4 * (zeros + total)


def test_operators_of_our_own_are_counted_inside():
    @torch.library.custom_op("lab_test::product", mutates_args=())
    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b

    def backward(ctx, slope):
        return slope @ ctx.saved_tensors[0].T, None

    keep = lambda ctx, inputs, output: ctx.save_for_backward(inputs[1])  # noqa: E731
    product.register_autograd(backward, setup_context=keep)

    class Own(nn.Module):
        def forward(self, x):
            return product(x, x.new_ones(4, 6))

    found = passport(Own(), torch.ones(3, 4), spectrum=False)
    assert found.forward.flops == found.backward.flops == 2 * 3 * 4 * 6


def test_the_passport_knows_the_memory_of_a_known_forget_gate():
    layer = lstm()
    nn.init.zeros_(layer.weight_ih_l0), nn.init.zeros_(layer.weight_hh_l0)
    nn.init.zeros_(layer.bias_hh_l0), nn.init.constant_(layer.bias_ih_l0, 4.0)
    found = passport(layer, example(), name="open")
    forget = 1 / (1 + math.exp(-4))
    assert found.half_life == {"LSTM": pytest.approx(math.log(2) / -math.log(forget), rel=0.05)}
    assert found.saturated == {"LSTM": {"i": 1.0, "f": 1.0, "g": 1.0, "o": 1.0}}
    assert repr(found).splitlines()[0] == "open"


def test_the_site_gets_json_without_infinities():
    layer = lstm().double()
    nn.init.constant_(layer.bias_ih_l0, 1e3)
    bundle = passport(layer, example().double())._repr_mimebundle_()
    data = json.loads(json.dumps(bundle[MIME], allow_nan=False))
    assert data["measured"]["half_life"] == {"LSTM": "infinite"}
    assert data["exact"]["parameters"] == 288 and "<td>288</td>" in bundle["text/html"]


def test_the_layer_is_left_as_it_was():
    layer = lstm()
    before = torch.backends.mkldnn.enabled
    passport(layer, example())
    assert torch.backends.mkldnn.enabled == before and not layer._forward_hooks
    assert all(p.grad is None and p.dtype == torch.float32 for p in layer.parameters())


def test_rounding_of_the_parameters_does_not_change_the_page():
    one, other = lstm(), lstm()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1 + 1e-7)
    assert repr(passport(one, example())) == repr(passport(other, example()))


def test_bad_layers_and_examples_are_named():
    with pytest.raises(TypeError, match=r"layer: expected a torch\.nn\.Module, got int"):
        passport(3, example())
    for bad, found in (([1.0], "float"), ("text", "str"), ([], "list"), ((), "tuple")):
        with pytest.raises(TypeError, match=f"example: expected a tensor of floats .*got {found}"):
            passport(lstm(), bad)
    with pytest.raises(TypeError, match="example: expected a tensor of floats"):
        passport(lstm(), torch.ones(1, 2, WIDTH, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"layer: expected .* on cpu, got \['cpu', 'meta'\]"):
        passport(lstm().to("meta"), example())
    with pytest.raises(ValueError, match=r"keep: expected a gate of .*'f'.* got 'q'"):
        passport(lstm(), example(), keep="q")


@given(st.floats(0.01, 0.999))
def test_after_a_half_life_half_is_left(forget):
    assert forget ** half_life([forget, forget]) == pytest.approx(0.5)


def test_half_life_averages_what_decays():
    assert half_life([0.5, 0.125]) == pytest.approx(0.5)  # two steps leave 1/16, four halvings
    assert half_life([0.5, np.nan]) == pytest.approx(1.0)
    assert half_life(torch.ones(3)) == math.inf and half_life([0.0, 1.0]) == 0


def test_saturation_is_the_share_at_the_ends():
    assert saturation([0.01, 0.5, 0.99, 0.96]) == 0.75
    assert saturation([-0.99, 0.01, 0.5, np.nan]) == pytest.approx(1 / 3)
    assert saturation([0.01, 0.5], signed=True) == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: half_life([1.5]), "keep: expected values from 0 to 1, got 1.5"),
        (lambda: half_life([-0.5]), "keep: expected values from 0 to 1"),
        (lambda: half_life([np.nan]), "keep: expected at least one value"),
        (lambda: saturation([0.5], 0.5), "margin: expected a number between 0 and 0.5"),
        (lambda: gradient_by_distance(lstm(), torch.ones(2, 3)), "x: expected .B, T, D., got"),
        (lambda: gradient_by_distance(lstm(), torch.ones(2, 0, 4)), "x: expected at least one"),
        (lambda: gradient_by_distance(lstm(), example(), probes=0), "probes: expected at least 1"),
        (lambda: jacobian_spectrum(nn.Identity(), torch.ones(1, 3000)), "at most 2048 rows"),
        (lambda: jacobian_spectrum(nn.Identity(), torch.ones(0, 3)), "x: expected examples in"),
        (lambda: jacobian_spectrum(lstm(), torch.ones(2, 4)), "x: expected a batch of examples"),
    ],
)
def test_instruments_name_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: half_life("open"), "keep: expected numbers, got 'open'"),
        (lambda: saturation({}), "gate: expected numbers, got {}"),
        (lambda: saturation([0.5], "0.1"), "margin: expected a number, got str"),
        (lambda: gradient_by_distance(lstm(), torch.ones(1, 2, 4).long()), "x: expected floats"),
        (lambda: saturation([0.5], signed="yes"), "signed: expected True, False or None, got str"),
        (lambda: gradient_by_distance(3, example()), "layer: expected a torch.nn.Module, got int"),
        (lambda: gradient_by_distance(lstm(), "text"), "x: expected a tensor, got str"),
        (lambda: gradient_by_distance(lstm(), example(), seed=0.5), "seed: expected an integer"),
        (lambda: passport(lstm(), example(), keep=["f"]), "keep: expected a string or None"),
        (lambda: passport(lstm(), example(), name=3), "name: expected a string or None, got int"),
        (lambda: passport(lstm(), example(), spectrum=1), "spectrum: expected True or False"),
        (lambda: gradient_by_distance(lstm(), example(), 3), "loss: expected a function, got int"),
        (lambda: jacobian_spectrum(nn.Embedding(3, 2), torch.tensor([1])), "x: expected floats"),
    ],
)
def test_instruments_name_what_has_the_wrong_type(call, words):
    with pytest.raises(TypeError, match=words):
        call()


class Decay(nn.Module):
    """h_t = keep · h_{t-1} + x_t: a memory whose every gradient is known."""

    def __init__(self, keep):
        super().__init__()
        self.keep = keep

    def forward(self, x, state=None):
        h = torch.zeros_like(x[:, 0]) if state is None else state
        output = []
        for t in range(x.shape[1]):
            h = self.keep * h + x[:, t]
            output.append(h)
        return torch.stack(output, 1), h


def test_gradient_by_distance_is_the_power_of_what_is_kept():
    norms = gradient_by_distance(Decay(0.5), torch.zeros(4, 7, 3))
    np.testing.assert_allclose(norms, math.sqrt(3) * 0.5 ** np.arange(7))


def test_gradient_by_distance_follows_a_given_loss():
    norms = gradient_by_distance(Decay(0.5), torch.zeros(4, 3, 1), lambda r: r[0][:, 0].mean())
    np.testing.assert_allclose(norms, [0, 0, 1])


def test_the_spectrum_of_a_decay_is_its_power():
    values = jacobian_spectrum(Decay(torch.tensor([0.5, 2.0, 1.0])), torch.zeros(2, 4, 3))
    np.testing.assert_allclose(values, [16, 1, 1 / 16])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("batch_first", [True, False])
def test_the_spectrum_is_that_of_autograds_jacobian(kind, batch_first):
    torch.manual_seed(0)
    layer = kind(2, 3, 2, batch_first=batch_first).double()
    x = torch.randn(1, 4, 2, dtype=torch.float64)
    x = x if batch_first else x.transpose(0, 1)
    parts = 2 if kind is nn.LSTM else 1

    def final(state):
        halves = state.reshape(parts, 2, 1, 3)
        ends = layer(x, tuple(halves) if parts == 2 else halves[0])[1]
        return torch.stack(list(ends)).flatten() if parts == 2 else ends.flatten()

    start = torch.zeros(parts * 6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(final, start)
    expected = torch.linalg.svdvals(jacobian)
    np.testing.assert_allclose(jacobian_spectrum(layer, x), expected, rtol=1e-8, atol=1e-14)


def test_the_spectrum_of_a_linear_layer_is_that_of_its_weight():
    layer = nn.Linear(4, 3).double()
    expected = torch.linalg.svdvals(layer.weight.detach())
    np.testing.assert_allclose(jacobian_spectrum(layer, torch.ones(2, 4).double()), expected)


def test_a_gate_that_does_not_look_at_its_input_has_a_passport_too():
    made = passport(FeatureGate(4), torch.randn(3, 4))
    assert made.parameters == 4 and set(made.spectrum.values()) == {0.0}


def test_a_recurrent_layer_from_a_spec_has_a_passport_like_torchs():
    recurrent = pytest.importorskip("gatelib.nn.recurrent")
    from gatelib.equations.lstm import LSTM

    theirs = lstm(bias=False)
    ours = recurrent.Recurrent(LSTM, WIDTH, HIDDEN, bias=False)
    ours.load_state_dict(theirs.state_dict())
    mine, other = (passport(layer, example()) for layer in (ours, theirs))
    assert mine.forward.flops == other.forward.flops and mine.parameters == other.parameters
    assert mine.half_life == {"Recurrent": other.half_life["LSTM"]}
    assert mine.spectrum == other.spectrum and mine.saved_bytes > 0
