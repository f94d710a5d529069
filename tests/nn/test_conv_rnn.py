"""Recurrent layers over films as a torch user meets them: compile, export, vmap, types, errors."""

from __future__ import annotations

import pytest
import torch

from gatelib import nn as gates
from gatelib.nn import conv_recurrent


def films(*shape, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), **options)


KINDS = {
    "lstm": lambda: gates.ConvLSTM2d(2, 3, 3, num_layers=2),
    "peephole": lambda: gates.ConvLSTM2d(2, 3, 3, peephole=(5, 4)),
    "gru": lambda: gates.ConvGRU2d(2, 3, 3),
    "cho": lambda: gates.ConvGRU2d(2, 3, (2, 3), reset_after=False),
    "rnn": lambda: gates.ConvRNN2d(2, 3, 3, dilation=2),
    "torus": lambda: gates.ConvLSTM2d(2, 3, 3, padding_mode="circular"),
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
def test_an_exported_layer_takes_any_batch(kind):
    layer, batch = KINDS[kind](), torch.export.Dim("batch", min=2)
    example, shapes = (films(2, 3, 2, 5, 4),), ({0: batch},)
    exported = torch.export.export(layer, example, dynamic_shapes=shapes).module()
    x = films(7, 3, 2, 5, 4)
    torch.testing.assert_close(exported(x), layer(x))


@every_kind
@pytest.mark.parametrize("numbers", [0, 700, 2000])
def test_how_many_steps_the_input_is_convolved_at_once_changes_nothing(kind, numbers, monkeypatch):
    layer, x = KINDS[kind]().double(), films(2, 5, 2, 5, 4, dtype=torch.float64)
    found = []
    for limit in (numbers, 10**9):
        monkeypatch.setattr(conv_recurrent, "IN_CACHE", limit)
        leaf = x.clone().requires_grad_()
        y, _ = layer(leaf)
        found.append((y, torch.autograd.grad(y.square().sum(), [leaf, *layer.parameters()])))
    torch.testing.assert_close(*found)


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
    (lambda: gates.ConvGRU2d(1, 2, 3, padding_mode="reflect"), ValueError, "padding_mode: expect"),
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


def test_a_torus_smaller_than_what_the_kernel_reaches_is_refused():
    layer = gates.ConvRNN2d(1, 2, (3, 5), dilation=2, padding_mode="circular")
    with pytest.raises(ValueError, match="input: expected images of at least 2 x 4, which the k"):
        layer(torch.zeros(1, 2, 1, 5, 3))


def test_the_line_of_a_layer_says_its_arguments():
    assert repr(gates.ConvLSTM2d(1, 2, 3)) == "ConvLSTM2d(1, 2, kernel_size=(3, 3))"
    layer = gates.ConvLSTM2d(1, 2, (3, 1), 2, False, padding=0, peephole=(4, 4))
    assert repr(layer) == (
        "ConvLSTM2d(1, 2, kernel_size=(3, 1), num_layers=2, bias=False, padding=(0, 0), "
        "peephole=(4, 4))"
    )
    assert "reset_after=False" in repr(gates.ConvGRU2d(1, 2, 3, reset_after=False))
    assert "nonlinearity='relu'" in repr(gates.ConvRNN2d(1, 2, 3, nonlinearity="relu"))
