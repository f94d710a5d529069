"""Modules of the user inside ours: in-place blocks, wrappers, tuples, padded and packed rows.

Imports gatelib.nn and torch.
Must not rely on what autograd notices: each law is checked where nobody counts versions, too.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from gatelib.equations import lstm as cells
from gatelib.nn import (
    LSTM,
    Dense,
    Gate,
    Jordan,
    Recurrent,
    RecurrentHighway,
    Residual,
    SkipRNN,
    Stack,
)

WIDTH = 3


class Doubles(nn.Module):
    """A block of a user's own that writes into what it is given."""

    def forward(self, x):
        return x.mul_(2)


class WritesThroughData(nn.Module):
    """The same behind autograd's back."""

    def forward(self, x):
        x.data.add_(1)
        return 3 * x


class KeepsAView(nn.Module):
    def forward(self, x):
        x[..., 0] = 0
        return x.flip(-1)


def hooked():
    def zero(module, args):
        args[0].zero_()

    block = nn.Linear(WIDTH, WIDTH)
    block.register_forward_pre_hook(zero)
    return block


def patched():
    block = nn.Identity()
    block.forward = lambda x: x.neg_()
    return block


WRITERS = {
    "ReLU": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH)),
    "Hardtanh": lambda: nn.Hardtanh(inplace=True),
    "SiLU deep inside": lambda: nn.Sequential(nn.Identity(), nn.Sequential(nn.SiLU(inplace=True))),
    "mul_": Doubles,
    "data": WritesThroughData,
    "view": KeepsAView,
    "hook": hooked,
    "patched": patched,
    "inside a Residual": lambda: Residual(Doubles()),
    "weight norm": lambda: nn.Sequential(
        nn.LeakyReLU(inplace=True), nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
    ),
}
AROUND = {
    "Residual": (lambda block: Residual(block), lambda x, f: x + f),
    "rezero": (lambda block: Residual(block, "rezero", initial=0.5), lambda x, f: x + 0.5 * f),
    "Dense": (lambda block: Dense(block), lambda x, f: torch.cat([x, f], -1)),
}


def compiled(layer, x):
    """In one graph; what was compiled before is forgotten, or torch would go on in eager mode."""
    torch._dynamo.reset()
    return torch.compile(layer, backend="aot_eager", fullgraph=True)(x)


MODES = {
    "eager": lambda layer, x: layer(x),
    "eager on an inner value": lambda layer, x: layer(1 * x.requires_grad_()),
    "no_grad": torch.no_grad()(lambda layer, x: layer(x)),
    "inference_mode": torch.inference_mode()(lambda layer, x: layer(x)),
    "made in inference_mode": torch.inference_mode()(lambda layer, x: layer(x.clone())),
    "compiled": compiled,
    "exported": lambda layer, x: torch.export.export(layer, (x,)).module()(x),
    "vmap": lambda layer, x: torch.vmap(layer)(x),
    "functional_call": lambda layer, x: torch.func.functional_call(
        layer, dict(layer.named_parameters()), (x,)
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_block_that_writes_into_its_input_changes_neither_the_shortcut_nor_the_caller(
    writer, around, mode
):
    if writer == "data" and mode in ("vmap", "exported"):
        pytest.skip(f"torch allows no `.data` when {mode}")
    torch.manual_seed(0)
    block = WRITERS[writer]()
    wrap, law = AROUND[around]
    x = torch.randn(2, WIDTH)
    kept = x.clone()
    expected = law(kept, block(kept.clone()))
    found = MODES[mode](wrap(block), x)
    torch.testing.assert_close(found, expected)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("mode", ["eager", "inference_mode", "compiled"])
def test_a_gate_and_a_shortcut_that_write_change_nothing_else_either(mode):
    x, block = torch.randn(2, WIDTH), nn.Linear(WIDTH, WIDTH)
    layer = Residual(block, Doubles(), shortcut=nn.ReLU(inplace=True))
    expected = torch.relu(x) + 2 * x * block(x)
    torch.testing.assert_close(MODES[mode](layer, x.clone()), expected)


@pytest.mark.parametrize("writer", WRITERS)
def test_gradients_through_a_writing_block_are_those_of_a_block_on_a_copy(writer):
    torch.manual_seed(0)
    block = WRITERS[writer]()
    x = torch.randn(2, WIDTH, requires_grad=True)
    (found,) = torch.autograd.grad(Residual(block)(1 * x).square().sum(), x)
    (expected,) = torch.autograd.grad((x + block(x.clone())).square().sum(), x)
    torch.testing.assert_close(found, expected)


def test_a_block_of_torchs_own_modules_gets_no_copy():
    block = nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    seen = []
    block[0].register_forward_hook(lambda module, args, result: seen.append(args[0]))
    x = torch.randn(2, WIDTH)
    Residual(block)(x)
    assert seen[0] is not x  # a hook might write
    block[0]._forward_hooks.clear()
    watch = nn.Module.__call__

    def spy(module, *args):
        seen.append(args[0])
        return watch(module, *args)

    block[0].__class__ = nn.ReLU
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Sequential, "__call__", spy)
        Residual(block)(x)
    assert seen[-1] is x


class AddsOne(nn.Module):
    """A recurrent layer of a user's own that writes into its input."""

    input_size = hidden_size = WIDTH
    batch_first, bidirectional = True, False

    def forward(self, x, state=None):
        return x.add_(1), state


@pytest.mark.parametrize("mode", ["eager", "inference_mode", "compiled"])
def test_a_stack_whose_layer_writes_into_its_input_keeps_the_shortcut(mode):
    x = torch.randn(2, 4, WIDTH)
    kept = x.clone()
    y, _ = MODES[mode](Stack([AddsOne(), AddsOne()], residual=True), x)
    torch.testing.assert_close(y, (kept + 1) + (kept + 2))


# --- what a stack may hold --------------------------------------------------------------------

LENGTHS = torch.tensor([5, 2, 3])


def layers_of_every_kind():
    return {
        "Jordan": Jordan(WIDTH, 4, 2, decay=0.5),
        "SkipRNN": SkipRNN(WIDTH, 4, 3),
        "RecurrentHighway": RecurrentHighway(WIDTH, 4, 2),
        "Recurrent": Recurrent(cells.LSTM, WIDTH, 4, bidirectional=True),
        "LSTM": LSTM(WIDTH, 4, batch_first=True),
        "projected": nn.LSTM(WIDTH, 4, batch_first=True, proj_size=2),
        "Stack": Stack([nn.GRU(WIDTH, 4, batch_first=True)]),
        "compiled Recurrent": torch.compile(Recurrent(cells.LSTM, WIDTH, 4), backend="eager"),
        "compiled LSTM": torch.compile(LSTM(WIDTH, 4, batch_first=True), backend="eager"),
        "compiled Jordan": torch.compile(Jordan(WIDTH, 4, 2), backend="eager"),
        "compiled Stack": torch.compile(Stack([Recurrent(cells.LSTM, WIDTH, 4)]), backend="eager"),
    }


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("kind", layers_of_every_kind())
def test_a_stack_of_any_recurrent_layer_reads_padded_rows_as_rows_alone(kind):
    stack = Stack([layers_of_every_kind()[kind]])
    x = torch.randn(3, 5, WIDTH)
    spoiled = x.masked_fill(torch.arange(5)[:, None] >= LENGTHS[:, None, None], torch.nan)
    y, final = stack(spoiled, None, LENGTHS)
    assert y.shape == (3, 5, stack.output_size)
    for row, length in enumerate(LENGTHS.tolist()):
        alone, last = stack(x[row : row + 1, :length])
        torch.testing.assert_close(y[row, :length], alone[0])
        assert not y[row, length:].any()
        for a, b in zip(tensors(final), tensors(last), strict=True):
            batch = 0 if kind.endswith(("Jordan", "SkipRNN", "RecurrentHighway")) else 1
            torch.testing.assert_close(a.narrow(batch, row, 1), b)


def tensors(state):
    if isinstance(state, torch.Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state
    return [t for part in parts for t in tensors(part)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Jordan(2, 3, 2, decay=0.9),
        lambda: SkipRNN(2, 3, 3),
        lambda: RecurrentHighway(2, 3, 2),
    ],
)
def test_gradients_of_padded_rows_are_those_of_rows_alone(make):
    layer, x = make().double(), torch.randn(3, 5, 2, dtype=torch.float64)
    y, final = layer(x, None, LENGTHS)
    (y.square().sum() + final.sum()).backward()
    found = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    for row, length in enumerate(LENGTHS.tolist()):
        y, final = layer(x[row : row + 1, :length])
        (y.square().sum() + final.sum()).backward()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(p.grad, found[name])


# --- tuples and packed batches ----------------------------------------------------------------


def packed_of(width=WIDTH):
    x = torch.randn(3, 5, width)
    return x, pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)


def test_a_shortcut_goes_round_a_recurrent_layer_that_reads_a_packed_batch():
    lstm, (x, packed) = LSTM(WIDTH, WIDTH, batch_first=True), packed_of()
    y, state = Residual(lstm)(packed)
    expected, last = lstm(packed)
    assert isinstance(y, PackedSequence)
    torch.testing.assert_close(y.data, packed.data + expected.data)
    torch.testing.assert_close(state, last)
    padded, lengths = pad_packed_sequence(y, batch_first=True)
    torch.testing.assert_close(padded[1, :2], x[1, :2] + lstm(x[1:2, :2])[0][0])
    assert lengths.tolist() == LENGTHS.tolist()


def test_a_packed_batch_takes_gates_layerscale_and_another_shortcut():
    _, packed = packed_of()
    lstm, gate, way = nn.LSTM(WIDTH, 4), Gate(WIDTH, 4), nn.Linear(WIDTH, 4)
    y, _ = Residual(lstm, gate, shortcut=way, activation=nn.Tanh())(packed)
    f = lstm(packed)[0].data
    torch.testing.assert_close(y.data, torch.tanh(way(packed.data) + gate(packed.data) * f))
    scaled = Residual(nn.LSTM(WIDTH, WIDTH), "layerscale", features=WIDTH)
    assert scaled(packed)[0].data.shape == packed.data.shape


def test_dropping_the_branch_of_a_packed_batch_drops_whole_rows():
    lstm, (_, packed) = nn.LSTM(WIDTH, WIDTH), packed_of()
    layer = Residual(lstm, drop=0.5)
    y = layer(packed)[0]
    branch = y._replace(data=y.data - packed.data)
    branch = pad_packed_sequence(branch, batch_first=True)[0]
    full = pad_packed_sequence(lstm(packed)[0], batch_first=True)[0]
    for row, length in enumerate(LENGTHS.tolist()):
        share = branch[row, 0, 0] / full[row, 0, 0]
        assert float(share.detach().round()) in (0.0, 2.0)
        torch.testing.assert_close(branch[row, :length], share.round() * full[row, :length])


def test_a_dense_block_may_return_a_tuple_and_read_a_packed_batch():
    lstm, (x, packed) = LSTM(WIDTH, 4, batch_first=True), packed_of()
    y, state = Dense(lstm)(x)
    torch.testing.assert_close(y, torch.cat([x, lstm(x)[0]], -1))
    torch.testing.assert_close(state, lstm(x)[1])
    z, _ = Dense(lstm)(packed)
    torch.testing.assert_close(z.data, torch.cat([packed.data, lstm(packed)[0].data], -1))


def empty_packed():
    return PackedSequence(torch.zeros(0, WIDTH), torch.zeros(0, dtype=torch.int64))


class Lists(nn.Module):
    def forward(self, x):
        return [x, x]


BAD = [
    (lambda: Residual(Lists())(torch.ones(2, 3)), TypeError, "block: expected .* got list"),
    (lambda: Dense(Lists())(torch.ones(2, 3)), TypeError, "block: expected .* got list"),
    (lambda: Residual(nn.Identity())([1.0]), TypeError, "x: expected a tensor .* got list"),
    (lambda: Dense(nn.Identity())(None), TypeError, "x: expected a tensor .* got NoneType"),
    (lambda: Residual(LSTM(3, 3))(empty_packed()), ValueError, "x: expected at least one step"),
    (lambda: Dense(LSTM(3, 3))(empty_packed()), ValueError, "x: expected at least one step"),
    (lambda: Stack([LSTM(3, 3, batch_first=True)])(empty_packed()), TypeError, "input: .*lengths"),
    (
        lambda: Residual(nn.LSTM(3, 3), "layerscale", features=3, dim=1)(packed_of()[1]),
        ValueError,
        "dim: expected -1 for a packed",
    ),
    (lambda: Stack([nn.Linear(3, 3)]), ValueError, r"layers\[0\]: expected a recurrent"),
    (lambda: Stack([nn.LSTMCell(3, 3)]), ValueError, r"layers\[0\]: expected a recurrent"),
    (
        lambda: Stack([LSTM(3, 3, batch_first=True), 7]),
        TypeError,
        r"layers\[1\]: expected a module",
    ),
    (lambda: Stack(3), TypeError, "layers: expected"),
    (lambda: Stack([torch.compile(LSTM(3, 3))]), ValueError, "batch_first=True"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_modules_and_batches_are_named(case):
    act, error, words = BAD[case]
    with pytest.raises(error, match=words):
        act()
