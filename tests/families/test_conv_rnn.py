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


def by_hand(variant, inputs, upstream, padding=None, dilation=(1, 1)):
    given = dict(inputs)
    x, h0, c0 = (given.pop(name, None) for name in ("x", "h0", "c0"))
    y, final, saved = reference.forward(x, given, h0, c0, variant, padding, dilation)
    d_final = {name: upstream[f"final_{name}"] for name in final}
    grads = reference.backward(upstream["y"], d_final, saved)
    found = {"y": y} | {f"final_{name}": value for name, value in final.items()}
    return found | {f"d_{name}": value for name, value in grads.items()}


def by_equations(variant, inputs, upstream, padding=None, dilation=(1, 1)):
    cell = equations.ALL[variant]
    run = partial(derived.conv_rnn.over_time, cell, padding=padding, dilation=dilation)
    return derived.gradients(run, inputs, upstream)


def layer_of(variant, inputs, padding=None, dilation=(1, 1)):
    C, kernel = inputs["U"].shape[1], inputs["U"].shape[2:]
    options = {"peephole": inputs["w_i"].shape[1:]} if variant == "peephole" else {}
    options |= {"padding": "same" if padding is None else padding, "dilation": dilation}
    return LAYERS[variant](inputs["x"].shape[2], C, kernel, **options).double()


def by_torch(variant, inputs, upstream, padding=None, dilation=(1, 1)):
    layer = layer_of(variant, inputs, padding, dilation)
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
    seed=st.integers(0, 99),
)
@example("peephole", (2, 3, 2, 2), (3, 3), (1, 1), None, 0)
@example("cho", (2, 3, 2, 2), (2, 3), (1, 2), (1, 0), 0)
def test_three_witnesses_agree_for_any_kernel_dilation_and_padding(
    variant, sizes, kernel, dilation, padding, seed
):
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    image = (reach[0] + 1, reach[1] + 2)
    case = problem(variant, *sizes, image, kernel, padding, dilation, seed)
    expected = by_equations(variant, *case, padding, dilation)
    assert_agree(by_hand(variant, *case, padding, dilation), expected)
    assert_agree(by_torch(variant, *case, padding, dilation), expected)


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


# --- how a torch user meets them --------------------------------------------------------------


KINDS = {
    "lstm": lambda: gates.ConvLSTM2d(2, 3, 3, num_layers=2),
    "peephole": lambda: gates.ConvLSTM2d(2, 3, 3, peephole=(5, 4)),
    "gru": lambda: gates.ConvGRU2d(2, 3, 3),
    "cho": lambda: gates.ConvGRU2d(2, 3, (2, 3), reset_after=False),
    "rnn": lambda: gates.ConvRNN2d(2, 3, 3, dilation=2),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_compile_makes_one_graph_and_export_the_same_layer(kind):
    layer, x = KINDS[kind](), films(2, 3, 2, 5, 4)
    expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected)
    torch._dynamo.reset()
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), expected)


@every_kind
def test_vmap_is_the_layer_for_each_and_forward_mode_runs(kind):
    layer, x = KINDS[kind]().double(), films(2, 2, 3, 2, 5, 4, dtype=torch.float64)
    found = torch.vmap(lambda x: layer(x)[0])(x)
    torch.testing.assert_close(found, torch.stack([layer(part)[0] for part in x]))
    _, tangent = torch.func.jvp(lambda x: layer(x)[0], (x[0],), (x[1],))
    _, pull = torch.func.vjp(lambda x: layer(x)[0], x[0])
    one = torch.ones_like(tangent)
    torch.testing.assert_close((pull(one)[0] * x[1]).sum(), tangent.sum())


@every_kind
def test_the_states_are_single_precision_under_autocast_and_in_low_precision(kind):
    layer, x = KINDS[kind](), films(2, 6, 2, 5, 4)
    exact, final = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, last = layer(x)
    low, low_last = layer.bfloat16()(x.bfloat16())
    parts = [
        v
        for found in (last, low_last, final)
        for v in (found if type(found) is tuple else (found,))
    ]
    assert y.dtype == low.dtype == torch.bfloat16 and {v.dtype for v in parts} == {torch.float32}
    for found in (y, low):
        assert (found.float() - exact).abs().max() < 0.03
    again, _ = layer(x.bfloat16(), low_last)
    assert again.dtype == torch.bfloat16


@every_kind
def test_expanded_and_strided_films_and_gradients_are_read_right(kind):
    layer = KINDS[kind]().double()
    base = films(4, 5, 2, 3, 2, dtype=torch.float64)
    found = []
    for x in (base.permute(4, 3, 2, 1, 0), base.permute(4, 3, 2, 1, 0).contiguous()):
        x = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y, _ = layer(x)
        y.sum().backward() if not found else y.backward(torch.ones_like(y))
        found.append((y, x.grad))
    torch.testing.assert_close(*found)


@every_kind
def test_fx_keeps_the_layer_whole(kind):
    held, x = Held(KINDS[kind]()), films(2, 3, 2, 5, 4)
    traced = torch.fx.symbolic_trace(held)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["core"]
    torch.testing.assert_close(traced(x), held(x))


class Held(torch.nn.Module):
    def __init__(self, core):
        super().__init__()
        self.core = core

    def forward(self, x):
        return 2 * self.core(x)[0]


@every_kind
def test_no_step_and_no_film_give_the_state_back(kind):
    layer = KINDS[kind]()
    y, last = layer(films(2, 0, 2, 5, 4))
    assert y.shape == (2, 0, 3, 5, 4)
    assert all(not v.any() for v in (last if type(last) is tuple else (last,)))
    y, _ = layer(films(0, 3, 2, 5, 4))
    assert y.shape == (0, 3, 3, 5, 4)


def test_a_forget_gate_starts_where_its_bias_says():
    layer = gates.init.forget_bias_(gates.ConvLSTM2d(1, 4, 3, 2), 2.0)
    for k in range(2):
        biases = gates.init.gate_rows(getattr(layer, f"bias_ih_l{k}"), "f")
        assert (biases == 2).all()
    others = [gates.init.gate_rows(layer.bias_ih_l0, gate) for gate in "igo"]
    assert not any((other == 2).any() for other in others)
    layer = gates.init.forget_bias_(gates.ConvGRU2d(1, 4, 3), 2.0)
    both = [gates.init.gate_rows(b, "z", "rzn") for b in (layer.bias_ih_l0, layer.bias_hh_l0)]
    assert (both[0] == 2).all() and (both[1] == 0).all()
    gates.init.chrono_(gates.ConvLSTM2d(1, 4, 3), 20)


def test_the_recurrent_matrices_of_a_convolution_are_not_its_kernels():
    with pytest.raises(ValueError, match=r"weight_hh: expected .*got shape \(16, 4, 3, 3\)"):
        gates.init.recurrent_(gates.ConvLSTM2d(1, 4, 3), "orthogonal")


BAD = [
    (lambda: gates.ConvLSTM2d(0, 3, 3), ValueError, "in_channels: expected at least 1, got 0"),
    (lambda: gates.ConvLSTM2d(1, 2.0, 3), TypeError, "hidden_channels: expected an integer"),
    (lambda: gates.ConvLSTM2d(1, 2, 0), ValueError, "kernel_size: expected at least 1, got 0"),
    (lambda: gates.ConvLSTM2d(1, 2, (3, 3, 3)), TypeError, "kernel_size: expected an integer or a"),
    (lambda: gates.ConvLSTM2d(1, 2, "3"), TypeError, "kernel_size: expected an integer or a pair"),
    (lambda: gates.ConvGRU2d(1, 2, 3, num_layers=0), ValueError, "num_layers: expected at least"),
    (lambda: gates.ConvGRU2d(1, 2, 3, bias=1), TypeError, "bias: expected True or False, got int"),
    (lambda: gates.ConvGRU2d(1, 2, 3, padding=-1), ValueError, "padding: expected at least 0"),
    (lambda: gates.ConvGRU2d(1, 2, 3, padding="full"), ValueError, "padding: expected one of"),
    (lambda: gates.ConvGRU2d(1, 2, 3, dilation=0), ValueError, "dilation: expected at least 1"),
    (lambda: gates.ConvGRU2d(1, 2, 3, reset_after=1), TypeError, "reset_after: expected True or"),
    (lambda: gates.ConvRNN2d(1, 2, 3, nonlinearity="elu"), ValueError, "nonlinearity: expected"),
    (lambda: gates.ConvRNN2d(1, 2, 3, dtype=torch.int64), TypeError, "dtype: expected a floating"),
    (lambda: gates.ConvLSTM2d(1, 2, 3, peephole=4), TypeError, r"peephole: expected a pair of int"),
    (lambda: gates.ConvLSTM2d(1, 2, 3, peephole=(0, 4)), ValueError, "peephole: expected at least"),
]


@pytest.mark.parametrize(("make", "error", "says"), BAD)
def test_arguments_that_do_not_fit_are_named(make, error, says):
    with pytest.raises(error, match=says):
        make()


def state(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype)


WRONG = [
    ([[1.0]], {}, TypeError, "input: expected a tensor, got list"),
    (
        state(2, 3, 1, 4),
        {},
        ValueError,
        r"input: expected \(B, T, 1, H, W\), got shape \(2, 3, 1, 4\)",
    ),
    (state(2, 3, 2, 4, 4), {}, ValueError, r"input: expected \(B, T, 1, H, W\)"),
    (state(2, 3, 1, 4, 4, dtype=torch.float64), {}, TypeError, "input: expected torch.float32"),
    (state(2, 3, 1, 5, 4), {}, ValueError, "states of 4 x 4, as `peephole` says, got 5 x 4"),
    (None, {"initial_state": state(1, 2, 3, 4, 4)}, TypeError, "expected a pair"),
    (None, {"initial_state": (state(1, 2, 3, 4, 4),)}, TypeError, r"a pair \(h, c\), got 1 items"),
    (
        None,
        {"initial_state": (state(1, 2, 3, 4, 4), state(2, 3, 4, 4))},
        ValueError,
        r"initial_state\[1\]: expected shape \(1, 2, 3, 4, 4\), got \(2, 3, 4, 4\)",
    ),
    (None, {"lengths": torch.tensor([1, 4])}, ValueError, "lengths: expected 0 to T = 3"),
    (None, {"lengths": torch.tensor([1.0, 2.0])}, TypeError, "lengths: expected torch.int64"),
]


@pytest.mark.parametrize(("film", "options", "error", "says"), WRONG)
def test_films_and_states_that_do_not_fit_are_named(film, options, error, says):
    layer = gates.ConvLSTM2d(1, 3, 3, peephole=(4, 4))
    with pytest.raises(error, match=says):
        layer(state(2, 3, 1, 4, 4) if film is None else film, **options)


def test_an_image_smaller_than_the_kernel_is_refused():
    layer = gates.ConvRNN2d(1, 2, (5, 3), padding=(1, 0), dilation=2)
    with pytest.raises(ValueError, match=r"input: expected images of at least 9 x 5 with its pad"):
        layer(torch.zeros(1, 2, 1, 6, 6))


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


def test_the_line_of_a_layer_says_its_arguments():
    assert repr(gates.ConvLSTM2d(1, 2, 3)) == "ConvLSTM2d(1, 2, kernel_size=(3, 3))"
    layer = gates.ConvLSTM2d(1, 2, (3, 1), 2, False, padding=0, peephole=(4, 4))
    assert repr(layer) == (
        "ConvLSTM2d(1, 2, kernel_size=(3, 1), num_layers=2, bias=False, padding=(0, 0), "
        "peephole=(4, 4))"
    )
    assert "reset_after=False" in repr(gates.ConvGRU2d(1, 2, 3, reset_after=False))
    assert "nonlinearity='relu'" in repr(gates.ConvRNN2d(1, 2, 3, nonlinearity="relu"))
