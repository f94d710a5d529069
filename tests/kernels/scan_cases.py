"""Cases for the kernels over time; `test_scan.py` runs this file in a process of its own.

Imports torch, gatelib.kernels and tests.kernels.
Must not be run where Triton has neither its interpreter nor a GPU.
"""

import dataclasses
import math
import random

import pytest
import torch

from gatelib.kernels import scan as kernel
from gatelib.kernels.scan import scan
from tests.kernels import agreement
from tests.kernels.agreement import (
    CELLS,
    DEVICE,
    HIDDEN,
    assert_close,
    assert_scan_agrees,
    both_dtypes,
    cell_inputs,
    draw,
    gradients,
    in_dtype,
    step_by_step,
    steps_at_once,
    upstream,
    with_kernels,
)
from tests.kernels.triton_cells import LSTM, MINGRU, PEEPHOLE, SLSTM, named, params_of

spoiled_buffers = agreement.spoiled_buffers
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")


@both_dtypes
@named(CELLS)
def test_scan_agrees_with_autograd(spec, dtype):
    assert_scan_agrees(spec, cell_inputs(spec, (3, 7, 31), dtype), dtype)


@both_dtypes
@pytest.mark.parametrize("keep", ["f", "i f g o m", "c m"])
def test_scan_agrees_whatever_is_kept(keep, dtype):
    def kernels(spec, inputs):
        return with_kernels(spec, inputs, keep)

    assert_scan_agrees(LSTM, cell_inputs(LSTM, (2, 5, 9), dtype), dtype, kernels)


@pytest.mark.parametrize("seed", range(12))
def test_scan_agrees_at_every_shape(seed):
    choose = random.Random(seed)
    spec = choose.choice([MINGRU, PEEPHOLE, HIDDEN])
    shape = choose.randint(1, 3), choose.randint(1, 40), choose.randint(1, 67)
    dtype = choose.choice([torch.float32, torch.float64])
    assert_scan_agrees(spec, cell_inputs(spec, shape, dtype), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [1, 3, 4, 5, 7, 8, 11], ids="T={}".format)
@named([MINGRU, PEEPHOLE, HIDDEN])
def test_scan_agrees_before_at_and_after_a_block_of_steps(spec, steps, dtype, monkeypatch):
    """Blocks of 4: a rest alone, one block, one and a rest, two, two and a rest."""
    steps_at_once(monkeypatch, 4)
    assert_scan_agrees(spec, cell_inputs(spec, (1, steps, 33), dtype), dtype)


@pytest.mark.parametrize("ahead", [1, 2, 8, 16, 32])
def test_blocks_of_any_length_give_the_same_bits(ahead, monkeypatch):
    inputs = cell_inputs(PEEPHOLE, (2, 37, 7), torch.float32)
    results = []
    for count in (4, ahead):
        with monkeypatch.context() as patch:
            steps_at_once(patch, count)
            outputs, final = with_kernels(PEEPHOLE, inputs)
            results.append([*outputs, *final, *gradients([*outputs, *final], inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@both_dtypes
@pytest.mark.parametrize("width", [1, 31, 32, 33, 64, 129], ids="D={}".format)
def test_scan_agrees_at_widths_that_fill_no_block(width, dtype):
    assert_scan_agrees(LSTM, cell_inputs(LSTM, (2, 5, width), dtype), dtype)


@both_dtypes
@named([LSTM, PEEPHOLE, MINGRU, SLSTM])
@pytest.mark.parametrize("size", [50.0, -50.0])
def test_scan_stands_gates_at_fifty(spec, dtype, size):
    inputs = cell_inputs(spec, (2, 5, 7), dtype)
    for name in inputs:
        if name.startswith("a_"):
            # Not exactly 50: at a tie of two arguments a maximum has no derivative to agree on.
            offset = inputs[name].detach()
            inputs[name] = (torch.where(offset > 0.8, -size, size) + offset).to(dtype)
    assert_scan_agrees(spec, inputs, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@named([LSTM, PEEPHOLE, MINGRU, HIDDEN])
def test_low_precision_stays_within_the_error_budget(spec, dtype):
    assert_scan_agrees(spec, cell_inputs(spec, (2, 9, 33), dtype), dtype)


def test_state_stays_in_float32_under_low_precision():
    inputs = in_dtype(cell_inputs(MINGRU, (2, 4, 5), torch.float32), torch.bfloat16)
    h, final = scan(MINGRU)(inputs["a_z"], inputs["n"])
    assert (h.dtype, final.dtype) == (torch.bfloat16, torch.float32)


def test_missing_initial_state_is_zero():
    inputs = cell_inputs(LSTM, (2, 4, 5), torch.float64)
    streams = [x for n, x in inputs.items() if n != "c_prev"]
    zero = torch.zeros_like(inputs["c_prev"])
    left_out, given_zero = scan(LSTM)(*streams), scan(LSTM)(*streams, initial_state=zero)
    assert torch.equal(left_out[1], given_zero[1])
    assert torch.equal(left_out[0][0], given_zero[0][0])


def test_no_steps_hand_the_state_and_its_gradient_through():
    inputs = cell_inputs(PEEPHOLE, (2, 0, 5), torch.float64)
    outputs, (final,) = with_kernels(PEEPHOLE, inputs)
    found = dict(zip(inputs, gradients([final], inputs), strict=True))
    assert outputs[0].shape == (2, 0, 5)
    assert torch.equal(final, inputs["c_prev"])
    assert torch.equal(found["c_prev"], upstream([final])[0])
    assert not found["w_i"].any()


def test_an_empty_batch_is_fine():
    inputs = cell_inputs(PEEPHOLE, (0, 3, 5), torch.float64)
    outputs, final = with_kernels(PEEPHOLE, inputs)
    found = dict(zip(inputs, gradients([*outputs, *final], inputs), strict=True))
    assert outputs[0].shape == (0, 3, 5)
    assert found["w_i"].shape == (5,)


@pytest.mark.parametrize("used", range(3), ids=["h alone", "c alone", "final state alone"])
def test_a_loss_may_ignore_outputs(used):
    results = []
    for run in (with_kernels, step_by_step):
        inputs = cell_inputs(LSTM, (2, 5, 7), torch.float64)
        outputs, final = run(LSTM, inputs)
        results.append(gradients([[*outputs, *final][used]], inputs))
    assert_close(results[0], results[1], results[1], torch.float64)


def test_upstream_gradients_may_be_expanded_or_strided():
    results = []
    for run in (with_kernels, step_by_step):
        inputs = cell_inputs(LSTM, (2, 5, 7), torch.float64)
        (h, c), (final,) = run(LSTM, inputs)
        one = torch.ones((), dtype=h.dtype, device=DEVICE)
        strided = draw("s", (7, 5, 2), torch.float64).permute(2, 1, 0)
        every_second = draw("e", (2, 14), torch.float64)[:, ::2]
        seeds = [one.expand(2, 5, 7), strided, every_second]
        results.append(gradients([h, c, final], inputs, seeds))
    assert_close(results[0], results[1], results[1], torch.float64)


def test_a_second_backward_gives_the_same_bits():
    inputs = cell_inputs(PEEPHOLE, (3, 6, 33), torch.float32)
    before = {n: x.detach().clone() for n, x in inputs.items()}
    outputs, final = with_kernels(PEEPHOLE, inputs)
    values = [*outputs, *final]
    seeds = upstream(values)
    first = torch.autograd.grad(values, list(inputs.values()), seeds, retain_graph=True)
    second = torch.autograd.grad(values, list(inputs.values()), seeds)
    again = gradients([v for p in with_kernels(PEEPHOLE, inputs) for v in p], inputs)
    for a, b, c in zip(first, second, again, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert all(torch.equal(before[n], x) for n, x in inputs.items())


@named([MINGRU, PEEPHOLE, HIDDEN])
def test_second_derivatives_of_a_scan_agree(spec):
    """Two scans in a row, the second on what the first gave: no path is counted twice."""
    results = []
    for run in (with_kernels, step_by_step):
        inputs = cell_inputs(spec, (2, 3, 5), torch.float64)
        outputs, final = run(spec, inputs)
        state = dict(zip(map(str, spec.carries), final, strict=True))
        more, _ = run(spec, inputs | state)
        total = (more[0] * outputs[0]).sum() + sum((f * f).sum() for f in final)
        wanted = list(inputs.values())
        first = torch.autograd.grad(total, wanted, create_graph=True)
        results.append([*first, *gradients(first, inputs)])
    assert_close(results[0], results[1], results[1], torch.float64)


def test_a_scan_can_be_mapped_over_inputs_and_over_gradients():
    inputs = cell_inputs(MINGRU, (2, 5, 7), torch.float64)
    a_z, n, h_prev = (inputs[name] for name in ("a_z", "n", "h_prev"))

    def last(a_z, n, h_prev):
        return scan(MINGRU)(a_z, n, initial_state=h_prev)[1]

    many = torch.stack([a_z, 2 * a_z, -a_z]).detach()
    mapped = torch.vmap(last, (0, None, None))(many, n.detach(), h_prev.detach())
    alone = torch.stack([last(x, n, h_prev) for x in many])
    assert torch.equal(mapped, alone)
    inner = torch.vmap(last, (2, None, None))(many.movedim(0, 2), n.detach(), h_prev.detach())
    assert torch.equal(inner, alone), "no row of it is contiguous"
    every = torch.autograd.functional.jacobian(last, (a_z, n, h_prev), vectorize=True)
    each = torch.autograd.functional.jacobian(last, (a_z, n, h_prev))
    assert_close(every, each, each, torch.float64)


def test_a_scan_is_one_node_of_a_compiled_graph():
    cell, inputs = (
        scan(PEEPHOLE, params_of(PEEPHOLE)),
        cell_inputs(PEEPHOLE, (2, 5, 7), torch.float64),
    )

    def run(inputs):
        (h, c), final = cell(*(inputs[n] for n in cell.names), initial_state=inputs["c_prev"])
        return 2 * h + c, final

    results = []
    for call in (torch.compile(run, fullgraph=True, backend="aot_eager"), run):
        y, final = call(inputs)
        results.append([y, final, *gradients([y, final], inputs)])
    assert_close(results[0], results[1], results[1], torch.float64)


def test_rows_do_not_leak_into_each_other():
    inputs = {n: x.detach() for n, x in cell_inputs(LSTM, (3, 5, 7), torch.float64).items()}
    (h, _), _ = with_kernels(LSTM, inputs)
    spoiled = {n: x.clone() for n, x in inputs.items()}
    for x in spoiled.values():
        x[1] = math.nan
    (other, _), _ = with_kernels(LSTM, spoiled)
    assert torch.equal(h[[0, 2]], other[[0, 2]])
    assert other[1].isnan().all()


def test_two_halves_make_the_whole():
    inputs = {n: x.detach() for n, x in cell_inputs(LSTM, (2, 8, 5), torch.float64).items()}
    (h, c), (final,) = with_kernels(LSTM, inputs)
    streams = {n: x for n, x in inputs.items() if n != "c_prev"}
    early = {n: x[:, :3].contiguous() for n, x in streams.items()}
    late = {n: x[:, 3:].contiguous() for n, x in streams.items()}
    (h1, _), (middle,) = with_kernels(LSTM, early | {"c_prev": inputs["c_prev"]})
    (h2, _), (end,) = with_kernels(LSTM, late | {"c_prev": middle})
    assert torch.equal(torch.cat([h1, h2], 1), h)
    assert torch.equal(end, final) and torch.equal(c[:, -1], final)


def test_autocast_changes_nothing():
    inputs = cell_inputs(MINGRU, (2, 4, 5), torch.float32)
    (plain,), _ = with_kernels(MINGRU, inputs)
    with torch.autocast(DEVICE, torch.bfloat16):
        (cast,), _ = with_kernels(MINGRU, inputs)
    assert torch.equal(plain, cast)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("c = f * c_prev + i * g", "c = f * c_prev - i * g"),
        ("h = o * m", "h = -o * m"),
        ("d_c_prev = d_c * f", "d_c_prev = -d_c * f"),
        ("d_a_i = d_i", "d_a_i = -d_i"),
        ("* (1 - g * g)", "* (1 + g * g)"),
        (".to(DTYPE_) + d_c_prev", ".to(DTYPE_) - d_c_prev"),
        ("d_c_prev = d_c_prev.to(", "d_c_prev = -d_c_prev.to("),
        ("d_w_o_sum_ += d_w_o", "d_w_o_sum_ = d_w_o"),
        ("tl.where(inside, last, start)", "tl.where(inside, last, 0 * start)"),
        ("later_ + AHEAD_ < steps_", "later_ + AHEAD_ < steps_ - 2"),
        ("next_ = at_ + AHEAD_ * stride_", "next_ = at_ + stride_"),
        ("later_ = t_ + AHEAD_", "later_ = t_ + 2 * AHEAD_"),
        ("h_ptr_ + at_ + k_ * stride_", "h_ptr_ + at_"),
        ("        c_prev_now_ = c_prev_next_\n", ""),
    ],
)
def test_a_wrong_sign_or_index_in_a_kernel_is_noticed(right, wrong, monkeypatch):
    plan = scan(PEEPHOLE, params_of(PEEPHOLE)).plan
    assert right in plan.text
    broken = dataclasses.replace(plan, text=plan.text.replace(right, wrong))
    monkeypatch.setattr(kernel, "_plan", lambda *key: broken)
    steps_at_once(monkeypatch, 2)
    inputs = cell_inputs(PEEPHOLE, (2, 5, 5), torch.float64)
    with pytest.raises(AssertionError, match=r"error .* above|not finite"):
        assert_scan_agrees(PEEPHOLE, inputs, torch.float64)


def streams(width=5, dtype=torch.float32):
    return [torch.zeros(2, 3, width, dtype=dtype, device=DEVICE) for _ in range(2)]


def test_wrong_input_is_refused_by_name():
    a_z, n = streams()
    cell = scan(MINGRU)
    with pytest.raises(TypeError, match=r"mingru: expected 2 tensors \(a_z, n\), got 1"):
        cell(a_z)
    with pytest.raises(TypeError, match="n: expected a tensor, got list"):
        cell(a_z, [1.0])
    with pytest.raises(ValueError, match=r"a_z: expected \(B, T, D\), got shape \(2, 3\)"):
        cell(a_z[..., 0].contiguous(), n)
    with pytest.raises(ValueError, match=r"n: expected shape \(2, 3, 5\)"):
        cell(a_z, n[:, :2].contiguous())
    with pytest.raises(TypeError, match=r"n: expected torch.float32 to go with a_z"):
        cell(a_z, n.double())
    with pytest.raises(TypeError, match=r"a_z: expected a floating dtype, got torch.int64"):
        cell(a_z.long(), n)
    with pytest.raises(ValueError, match="n: expected a contiguous tensor"):
        cell(a_z, torch.zeros(2, 5, 3, device=DEVICE).mT)
    with pytest.raises(ValueError, match=r"initial_state h_prev: expected shape \(2, 5\)"):
        cell(a_z, n, initial_state=torch.zeros(2, 4, device=DEVICE))
    with pytest.raises(ValueError, match=r"initial_state: expected 1 tensor"):
        cell(a_z, n, initial_state=(a_z, n))
    with pytest.raises(ValueError, match=r"expected a CUDA tensor|expected device"):
        cell(a_z, n.to("meta"))
