"""Recurrent layers over films: equations with an unfolded product, NumPy by hand, torch agree."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gatelib import derived, equations, lab
from gatelib import nn as gates
from gatelib.reference import conv_rnn as reference
from tests.families.witnesses import assert_agree, close

LAYERS = {
    "lstm": gates.ConvLSTM2d,
    "peephole": gates.ConvLSTM2d,
    "gru": gates.ConvGRU2d,
    "cho": partial(gates.ConvGRU2d, reset_after=False),
    "elman": gates.ConvRNN2d,
    "relu_rnn": partial(gates.ConvRNN2d, nonlinearity="relu"),
}
NAMES = {"W": "weight_ih", "U": "weight_hh", "b": "bias_ih", "b_u": "bias_hh"}


def problem(
    variant, B=2, T=3, D=2, C=2, image=(4, 3), kernel=(3, 2), padding=None, dilation=(1, 1), seed=0
):
    """Inputs and upstream gradients by the names of all witnesses."""
    rng = np.random.default_rng(seed)
    pad = (
        [0, 0]
        if padding is None
        else [2 * p - d * (k - 1) for p, d, k in zip(padding, dilation, kernel, strict=True)]
    )
    size = tuple(n + p for n, p in zip(image, pad, strict=True))
    inputs = reference.initialize(rng, D, C, kernel, variant, size)
    inputs["x"] = rng.normal(size=(B, T, D, *image))
    upstream = {"y": rng.normal(size=(B, T, C, *size))}
    for name in reference.VARIANTS[variant].states:
        inputs[f"{name}0"] = rng.normal(size=(B, C, *size))
        upstream[f"final_{name}"] = rng.normal(size=(B, C, *size))
    return inputs, upstream


def by_hand(variant, inputs, upstream, padding=None, dilation=(1, 1), wrap=False):
    given = dict(inputs)
    x, h0, c0 = (given.pop(name, None) for name in ("x", "h0", "c0"))
    y, final, saved = reference.forward(x, given, h0, c0, variant, padding, dilation, wrap)
    d_final = {name: upstream[f"final_{name}"] for name in final}
    grads = reference.backward(upstream["y"], d_final, saved)
    found = {"y": y} | {f"final_{name}": value for name, value in final.items()}
    return found | {f"d_{name}": value for name, value in grads.items()}


def by_equations(variant, inputs, upstream, padding=None, dilation=(1, 1), wrap=False):
    options = {"padding": padding, "dilation": dilation, "wrap": wrap}
    run = partial(derived.conv_rnn.over_time, equations.ALL[variant], **options)
    return derived.gradients(run, inputs, upstream)


def layer_of(variant, inputs, padding=None, dilation=(1, 1), wrap=False):
    C, kernel = inputs["U"].shape[1], inputs["U"].shape[2:]
    options = {"peephole": inputs["w_i"].shape[1:]} if variant == "peephole" else {}
    options |= {"padding": "same" if padding is None else padding, "dilation": dilation}
    options |= {"padding_mode": "circular" if wrap else "zeros"}
    return LAYERS[variant](inputs["x"].shape[2], C, kernel, **options).double()


def by_torch(variant, inputs, upstream, *geometry):
    layer = layer_of(variant, inputs, *geometry)
    return lab.gradients(partial(called, layer), inputs, upstream)


def called(layer, given):
    states = [given[f"{name}0"][None] for name in layer.cell.states]
    weights = {k: v for k, v in given.items() if k not in ("x", "h0", "c0")}
    own = {f"{NAMES.get(name, name)}_l0": value for name, value in weights.items()}
    y, last = lab.called(layer, own, given["x"], tuple(states) if len(states) > 1 else states[0])
    finals = last if isinstance(last, tuple) else (last,)
    return {"y": y} | {f"final_{k}": v[0] for k, v in zip(layer.cell.states, finals, strict=True)}


def films(*shape, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), **options)


# --- the witnesses agree ----------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    variant=st.sampled_from([*LAYERS]),
    sizes=st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 2), st.integers(1, 2)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.none() | st.tuples(st.integers(0, 2), st.integers(0, 2)),
    wrap=st.booleans(),
    seed=st.integers(0, 99),
)
@example("peephole", (2, 3, 2, 2), (3, 3), (1, 1), None, False, 0)
@example("cho", (2, 3, 2, 2), (2, 3), (1, 2), (1, 0), False, 0)
@example("lstm", (2, 3, 2, 2), (2, 3), (2, 1), None, True, 0)
def test_three_witnesses_agree_for_any_kernel_dilation_padding_and_edge(
    variant, sizes, kernel, dilation, padding, wrap, seed
):
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    image = (reach[0] + 2, reach[1] + 2)
    case = problem(variant, *sizes, image, kernel, padding, dilation, seed)
    geometry = padding, dilation, wrap
    expected = by_equations(variant, *case, *geometry)
    assert_agree(by_hand(variant, *case, *geometry), expected)
    assert_agree(by_torch(variant, *case, *geometry), expected)


@pytest.mark.parametrize("variant", LAYERS)
def test_saturated_gates_and_large_inputs_agree_and_stay_finite(variant):
    inputs, upstream = problem(variant)
    inputs["x"] *= 50
    expected = by_hand(variant, inputs, upstream)
    for found in (by_equations(variant, inputs, upstream), by_torch(variant, inputs, upstream)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert np.isfinite(value).all()
            close(found[name], value)


@pytest.mark.parametrize("variant", LAYERS)
def test_first_and_second_derivatives_pass_gradcheck(variant):
    inputs, _ = problem(variant, 1, 2, 1, 1, (2, 2), (2, 2))
    layer = layer_of(variant, inputs)
    names = [*inputs]
    leaves = [torch.tensor(v, requires_grad=True) for v in inputs.values()]

    def run(*values):
        return tuple(called(layer, dict(zip(names, values, strict=True))).values())

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("variant", LAYERS)
def test_two_layers_are_one_on_the_other(variant):
    first, _ = problem(variant, D=3, C=2, kernel=(3, 3))
    second, _ = problem(variant, D=2, C=2, kernel=(3, 3), seed=1)
    states = reference.VARIANTS[variant].states
    y, finals = first["x"], []
    for own in (first, second):
        weights = {k: v for k, v in own.items() if k not in ("x", "h0", "c0")}
        y, final, _ = reference.forward(y, weights, own["h0"], own.get("c0"), variant)
        finals.append(final)
    options = {"peephole": (4, 3)} if variant == "peephole" else {}
    layer = LAYERS[variant](3, 2, 3, 2, **options).double()
    for k, own in enumerate((first, second)):
        for name, value in own.items():
            if name not in ("x", "h0", "c0"):
                getattr(layer, f"{NAMES.get(name, name)}_l{k}").data = torch.tensor(value)
    given = [torch.tensor(np.stack([own[f"{n}0"] for own in (first, second)])) for n in states]
    found, last = layer(torch.tensor(first["x"]), tuple(given) if len(given) > 1 else given[0])
    close(found.detach().numpy(), y)
    for name, value in zip(states, last if isinstance(last, tuple) else (last,), strict=True):
        close(value.detach().numpy(), np.stack([final[name] for final in finals]))


# --- what is known of them --------------------------------------------------------------------


def over_vectors(layer, peer, biases):
    """The peer's weights in a layer of kernel 1; its bias is the sum of both where one acts."""
    for name, value in peer.state_dict().items():
        if hasattr(layer, name):
            kernel = value[:, :, None, None] if value.dim() == 2 else value
            getattr(layer, name).data = kernel.clone()
    if biases == "summed":
        layer.bias_ih_l0.data = (peer.bias_ih_l0 + peer.bias_hh_l0).detach()
    return layer


@pytest.mark.parametrize(
    ("layer", "peer", "biases"),
    [
        (gates.ConvLSTM2d(3, 4, 1), torch.nn.LSTM(3, 4, batch_first=True), "summed"),
        (gates.ConvGRU2d(3, 4, 1), torch.nn.GRU(3, 4, batch_first=True), "both"),
        (
            gates.ConvGRU2d(3, 4, 1, reset_after=False),
            gates.GRU(3, 4, batch_first=True, reset_after=False),
            "summed",
        ),
        (gates.ConvRNN2d(3, 4, 1), torch.nn.RNN(3, 4, batch_first=True), "summed"),
    ],
    ids=["lstm", "gru", "cho", "rnn"],
)
def test_on_images_of_one_pixel_they_are_the_layers_over_vectors(layer, peer, biases):
    peer = peer.double()
    layer = over_vectors(layer.double(), peer, biases)
    x = films(2, 5, 3, dtype=torch.float64)
    y, _ = layer(x[..., None, None])
    torch.testing.assert_close(y[..., 0, 0], peer(x)[0])


def test_a_shifted_film_is_a_shifted_output_away_from_the_border():
    layer = gates.ConvLSTM2d(1, 3, 3).double()
    x = torch.zeros(1, 3, 1, 12, 12, dtype=torch.float64)
    x[..., 4:7, 4:7] = films(3, 1, 3, 3, dtype=torch.float64)
    y, moved = layer(x)[0], layer(x.roll(1, -1))[0]
    torch.testing.assert_close(moved[..., 3:9, 4:9], y.roll(1, -1)[..., 3:9, 4:9])


@pytest.mark.parametrize("variant", LAYERS)
def test_on_a_torus_a_shifted_film_is_a_shifted_output_everywhere(variant):
    options = {"peephole": (6, 5)} if variant == "peephole" else {}
    layer = LAYERS[variant](1, 2, (3, 2), padding_mode="circular", **options).double()
    for gate in "ifo" if options else "":
        layer.get_parameter(f"w_{gate}_l0").data[:] = 0.3  # one number, or pixels differ
    x = films(2, 3, 1, 6, 5, dtype=torch.float64)
    shift = {"shifts": (2, -1), "dims": (-2, -1)}
    torch.testing.assert_close(layer(x.roll(**shift))[0], layer(x)[0].roll(**shift))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_what_a_pixel_sees_grows_by_one_kernel_a_step(steps):
    layer = gates.ConvRNN2d(1, 2, 3).double()
    x = films(1, steps, 1, 15, 15, dtype=torch.float64).requires_grad_()
    layer(x)[0][0, -1, :, 7, 7].sum().backward()
    seen = (x.grad[0, :, 0] != 0).any(0).any(0).nonzero().flatten()
    assert seen.tolist() == [*range(7 - steps, 8 + steps)]


@pytest.mark.parametrize("variant", LAYERS)
def test_a_film_read_in_pieces_is_the_film(variant):
    inputs, _ = problem(variant, T=5)
    layer, x = layer_of(variant, inputs), torch.tensor(inputs["x"])
    whole, last = layer(x)
    first, state = layer(x[:, :2])
    second, end = layer(x[:, 2:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, last)


@pytest.mark.parametrize("variant", LAYERS)
def test_padded_films_are_the_films_alone(variant):
    inputs, _ = problem(variant, B=3, T=4)
    layer, x = layer_of(variant, inputs), torch.tensor(inputs["x"])
    lengths = torch.tensor([4, 0, 2])
    x[1], x[2, 2:] = torch.nan, torch.inf
    y, last = layer(x, lengths=lengths)
    for b, length in enumerate(lengths.tolist()):
        alone, final = layer(x[b : b + 1, :length])
        torch.testing.assert_close(y[b, :length], alone[0])
        assert not y[b, length:].any()
        pairs = zip(*((v if isinstance(v, tuple) else (v,)) for v in (last, final)), strict=True)
        for whole, own in pairs:
            torch.testing.assert_close(whole[:, b], own[:, 0])
    seen = layer.values(x, lengths=lengths)[""]
    assert all(v[2, 2:].isnan().all() and v[2, :2].isfinite().all() for v in seen.values())


def test_values_are_those_of_the_forward_pass():
    layer = gates.ConvLSTM2d(1, 2, 3, num_layers=2, peephole=(4, 4))
    x = films(2, 3, 1, 4, 4)
    seen, (y, (_, c)) = layer.values(x), layer(x)
    assert [*seen] == [".l0", ".l1"] and {*seen[".l0"]} == {*"ifgocmh"}
    torch.testing.assert_close(seen[".l1"]["h"], y)
    for k in range(2):
        torch.testing.assert_close(seen[f".l{k}"]["c"][:, -1], c[k])
        assert all(value.shape == (2, 3, 2, 4, 4) for value in seen[f".l{k}"].values())


# --- what breaks in public code ---------------------------------------------------------------


def test_peepholes_are_parameters_that_no_forward_pass_sets_and_training_moves():
    """automan000/Convolutional_LSTM_PyTorch: zero tensors, made anew at every call."""
    layer = gates.ConvLSTM2d(1, 2, 3, peephole=(4, 4))
    peepholes = {n: p for n, p in layer.named_parameters() if n.startswith("w_")}
    assert {n: tuple(p.shape) for n, p in peepholes.items()} == {
        f"w_{gate}_l0": (2, 4, 4) for gate in "ifo"
    }
    before = {name: p.detach().clone() for name, p in peepholes.items()}
    assert all(p.any() for p in before.values())
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for _ in range(2):
        layer(films(2, 3, 1, 4, 4))[0].square().sum().backward()
        assert all(torch.equal(p, before[name]) for name, p in peepholes.items())
        assert all(p.grad.abs().min() > 0 for p in peepholes.values())
    optimizer.step()
    assert not any(torch.equal(p, before[name]) for name, p in peepholes.items())


@pytest.mark.parametrize("variant", LAYERS)
def test_each_step_reads_its_own_frame(variant):
    """automan000/Convolutional_LSTM_PyTorch#15: the same frame at each step."""
    inputs, _ = problem(variant, B=1, T=4)
    layer, x = layer_of(variant, inputs), torch.tensor(inputs["x"])
    y, _ = layer(x)
    for t in range(4):
        changed = x.clone()
        changed[:, t] += 1
        other, _ = layer(changed)
        assert torch.equal(other[:, :t], y[:, :t])
        assert all(not torch.equal(other[:, s], y[:, s]) for s in range(t, 4))


def test_the_output_gate_sees_the_new_cell_state():
    """KimUyen/ConvLSTM-Pytorch#1: o saw the cell state one step before."""
    layer = gates.ConvLSTM2d(1, 1, 3, peephole=(3, 3)).double()
    x = films(1, 1, 1, 3, 3, dtype=torch.float64)
    seen = layer.values(x)[""]
    with torch.no_grad():
        layer.w_o_l0.add_(1)
    found = layer.values(x)[""]
    moved = torch.logit(found["o"]) - torch.logit(seen["o"])
    torch.testing.assert_close(moved, seen["c"])  # and c before the first step is 0


# --- what the reference refuses ----------------------------------------------------------------


BAD_REFERENCES = [
    ({"x": np.zeros((2, 3, 2, 4))}, ValueError, "x: expected 5 dimensions"),
    ({"x": np.zeros((2, 3, 2, 4, 3), int)}, TypeError, "x: expected a floating dtype"),
    ({"x": np.zeros((2, 3, 9, 4, 3))}, ValueError, r"weights\['W'\]: expected \(8, 9, 3, 2\)"),
    ({"h0": np.zeros((2, 2, 4, 4))}, ValueError, r"h0: expected \(2, 2, 4, 3\)"),
    ({"variant": "none"}, ValueError, "variant: expected one of"),
    ({"weights": {}}, ValueError, "weights: expected"),
    ({"padding": (0, 1)}, ValueError, r"weights\['w_i'\]: expected \(2, 2, 4\)"),
]


@pytest.mark.parametrize(("change", "error", "says"), BAD_REFERENCES)
def test_the_reference_names_what_does_not_fit(change, error, says):
    inputs, _ = problem("peephole")
    given = {"x": inputs.pop("x"), "h0": inputs.pop("h0"), "c0": inputs.pop("c0")}
    case = given | {"weights": inputs, "variant": "peephole"}
    with pytest.raises(error, match=says):
        reference.forward(**(case | change))
