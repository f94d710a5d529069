"""What is the GRU's own: the reset gate before the product, and the sense of its update gate.

That `gatelib.nn.GRU` is `torch.nn.GRU` is tested in `test_drop_in.py`.
"""

import math

import pytest
import torch
from torch import nn

from gatelib.nn import GRU, GRUCell, init
from gatelib.nn.init import gate_rows
from tests.nn.drop_in import (
    SHAPES,
    B,
    D,
    H,
    T,
    assert_close,
    draw,
    error,
    everything,
    peer,
    sequences,
    step,
)

every_shape = pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES.keys())


def by_hand(x, h, weights):
    """Cho et al. 2014, one row, gate by gate; in the paper's sense z keeps the old state."""
    w, u, *biases = weights
    b, b_h = biases or (torch.zeros(len(w)).to(w), torch.zeros(len(w)).to(w))
    outputs = []
    for x_t in x:
        part = {g: (gate_rows(w, g, "rzn"), gate_rows(u, g, "rzn")) for g in "rzn"}
        bias = {g: gate_rows(b, g, "rzn") + gate_rows(b_h, g, "rzn") for g in "rzn"}
        r = torch.sigmoid(part["r"][0] @ x_t + part["r"][1] @ h + bias["r"])
        z = torch.sigmoid(part["z"][0] @ x_t + part["z"][1] @ h + bias["z"])
        n = torch.tanh(part["n"][0] @ x_t + part["n"][1] @ (r * h) + bias["n"])
        h = z * h + (1 - z) * n
        outputs.append(h)
    return torch.stack(outputs)


class Papers(nn.Module):
    """A stack written row by row over the weights of `ours`, time first."""

    def __init__(self, ours):
        super().__init__()
        self.ours = ours

    def named_parameters(self, *arguments, **options):
        return self.ours.named_parameters(*arguments, **options)

    def forward(self, x, hx=None):
        ours, ends = self.ours, []
        ways = 2 if ours.bidirectional else 1
        x = x.transpose(0, 1) if ours.batch_first else x
        h_0 = x.new_zeros(ours.num_layers * ways, x.size(1), H) if hx is None else hx
        for layer in range(ours.num_layers):
            found = []
            for row in range(layer * ways, (layer + 1) * ways):
                turned = x.flip(0) if row % ways else x
                pairs = zip(turned.unbind(1), h_0[row], strict=True)
                y = torch.stack([by_hand(*pair, ours.all_weights[row]) for pair in pairs], 1)
                ends.append(y[-1])
                found.append(y.flip(0) if row % ways else y)
            x = torch.cat(found, -1)
        return x.transpose(0, 1) if ours.batch_first else x, torch.stack(ends)


@every_shape
def test_reset_before_is_the_papers_recurrence_row_by_row(options):
    ours = GRU(D, H, **options, reset_after=False, dtype=torch.float64)
    x, hx = draw(ours, steps=4)
    assert_close(everything(ours, x, hx), everything(Papers(ours), x, hx), 1e-13)
    assert_close(everything(ours, x), everything(Papers(ours), x), 1e-13)


def test_before_and_after_differ_by_more_than_rounding():
    before, after = GRU(D, H, reset_after=False), GRU(D, H)
    before.load_state_dict(after.state_dict())
    x, hx = draw(after)
    assert (before(x, hx)[0] - after(x, hx)[0]).abs().max() > 1e-3


def test_before_and_after_agree_where_the_reset_gate_is_open():
    """With r = 1 both read h whole; float64's sigmoid(40) is 1 to the last bit."""
    before, after = GRU(D, H, reset_after=False).double(), GRU(D, H).double()
    with torch.no_grad():
        for name, value in after.named_parameters():
            gate_rows(value, "r", "rzn").fill_(40.0 if name.startswith("bias_ih") else 0.0)
    before.load_state_dict(after.state_dict())
    x, hx = draw(after)
    assert_close({"y": before(x, hx)[0]}, {"y": after(x, hx)[0]}, 1e-15)


def test_before_the_two_biases_of_n_only_add():
    ours, moved = (GRU(D, H, reset_after=False, dtype=torch.float64) for _ in range(2))
    x, hx = draw(ours)
    moved.load_state_dict(ours.state_dict())
    with torch.no_grad():
        b, b_h = moved.bias_ih_l0, moved.bias_hh_l0
        b += b_h
        b_h.zero_()
    assert error(moved(x, hx)[0], ours(x, hx)[0]) < 1e-15
    after = peer(ours)
    shifted = peer(moved)
    assert error(shifted(x, hx)[0], after(x, hx)[0]) > 1e-3


def test_an_update_gate_at_one_keeps_the_state_and_at_zero_writes_it():
    for reset_after in (True, False):
        ours = init.open_(GRU(D, H, reset_after=reset_after), "z", 1e4)
        x, hx = draw(ours)
        torch.testing.assert_close(ours(x, hx)[0], hx.expand(T, B, H))
        shut = init.open_(GRU(D, H, reset_after=reset_after), "z", -1e4)
        weights = dict(shut.named_parameters())
        assert torch.equal(gate_rows(weights["bias_ih_l0"], "z", "rzn"), torch.full((H,), -1e4))
        with torch.no_grad():
            for name in ("weight_hh_l0", "bias_hh_l0"):
                weights[name].zero_()
        y, _ = shut(x, hx)
        n = x @ gate_rows(shut.weight_ih_l0, "n", "rzn").T + gate_rows(shut.bias_ih_l0, "n", "rzn")
        torch.testing.assert_close(y, torch.tanh(n))


@pytest.mark.parametrize("reset_after", [True, False])
def test_the_state_is_float32_inside_the_loop_under_bfloat16(reset_after):
    """A step of 0.002 towards 1, 400 times: bfloat16 would stop when the step is rounded off."""
    options = {"reset_after": reset_after, "dtype": torch.bfloat16, "impl": "reference"}
    ours = GRU(1, 1, **options)
    with torch.no_grad():
        for weight in ours.parameters():
            weight.zero_()
        gate_rows(ours.bias_ih_l0, "z", "rzn").fill_(math.log(499))
        gate_rows(ours.bias_ih_l0, "n", "rzn").fill_(20.0)
    _, h = ours(torch.zeros(400, 1, 1, dtype=torch.bfloat16))
    z = torch.sigmoid(torch.tensor(math.log(499)).bfloat16().double())
    assert abs(h.item() - (1 - z.item() ** 400)) < 0.01


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}], ids=str)
def test_reset_before_packs_as_it_runs_alone(options):
    ours = GRU(D, H, **options, reset_after=False)
    packed = sequences([2, 6, 1])
    y, h = ours(packed)
    rows, lengths = nn.utils.rnn.pad_packed_sequence(packed)
    outputs, _ = nn.utils.rnn.pad_packed_sequence(y)
    for row, length in enumerate(lengths):
        alone, end = ours(rows[:length, row])
        torch.testing.assert_close(outputs[:length, row], alone, atol=1e-6, rtol=0)
        torch.testing.assert_close(h[:, row], end, atol=1e-6, rtol=0)


def test_reset_before_has_derivatives_of_two_orders():
    ours = GRU(2, 2, reset_after=False, dtype=torch.float64)
    x, hx = draw(ours, batch=2, steps=3)
    names, weights = zip(*ours.named_parameters(), strict=True)

    def run(x, h, *weights):
        return torch.func.functional_call(ours, dict(zip(names, weights, strict=True)), (x, h))

    inputs = [t.detach().requires_grad_() for t in (x, hx, *weights)]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_reset_before_compiles_exports_and_runs_under_autocast(compiler):
    ours = GRU(D, H, reset_after=False)
    x, hx = draw(ours, steps=3)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert_close(everything(compiled, x, hx), everything(ours, x, hx), 1e-6)
    program = torch.export.export(ours, (x, hx))
    torch.testing.assert_close(program.module()(x, hx), ours(x, hx))
    with torch.autocast("cpu", torch.bfloat16):
        found, after = everything(ours, x, hx), everything(peer(ours), x, hx)
    assert [v.dtype for v in found.values()] == [v.dtype for v in after.values()]
    assert_close(found, everything(ours, x, hx), 3e-2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (B,)], ids=str)
def test_the_cell_with_reset_before_is_the_layers_step(batch, bias):
    cell = GRUCell(D, H, bias, reset_after=False, dtype=torch.float64)
    layer = GRU(D, H, bias=bias, reset_after=False, dtype=torch.float64)
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    x, h = (torch.randn(*batch, size, dtype=torch.float64) for size in (D, H))
    y, _ = layer(x[None], h[None])
    assert_close({"h": cell(x, h)}, {"h": y[0]}, 1e-15)
    assert step(cell, x, h)["d_x"].abs().sum() > 0


# --- options --------------------------------------------------------------------------------


def test_the_repr_shows_what_is_not_default():
    assert repr(GRU(D, H, reset_after=False)) == "GRU(5, 6, reset_after=False)"
    assert repr(GRUCell(D, H, impl="fused")) == "GRUCell(5, 6, impl='fused')"


BAD_OPTIONS = {
    "no kernel": ({"reset_after": False, "impl": "fused"}, ValueError, "impl: .*reset_after=False"),
    "reset_after as text": ({"reset_after": "no"}, TypeError, "reset_after: .*str"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
@pytest.mark.parametrize("kind", [GRU, GRUCell])
def test_bad_options_say_what_is_wrong(kind, case):
    options, error, message = case
    with pytest.raises(error, match=message):
        kind(D, H, **options)


def test_a_kernel_asked_for_later_is_refused_when_it_should_run():
    ours = GRU(D, H, reset_after=False)
    ours.impl = "fused"
    with pytest.raises(ValueError, match=r"impl: .*reset_after=False"):
        ours(torch.zeros(T, B, D))


def test_the_new_options_are_keyword_only():
    with pytest.raises(TypeError):
        GRU(D, H, 1, True, False, 0.0, False, None, None, False)
