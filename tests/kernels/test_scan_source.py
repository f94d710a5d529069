"""The text of the kernels over time: what is read and stored, and the loop around a step.

Imports gatelib.
Must not import torch or Triton: the text needs neither.
"""

import re
import time

import pytest

from gatelib.equations.lstm import LAYERNORM
from gatelib.kernels import scan_source, triton_source
from gatelib.spec import SpecError
from tests.kernels.triton_cells import LSTM, PEEPHOLE, SLSTM, named, params_of, parse


def test_kernels_speak_the_names_of_the_equations():
    text = scan_source.time_scan(LSTM).text
    for line in ("i = tl.sigmoid(a_i)", "c = f * c_prev + i * g", "m = tanh(c)", "h = o * m"):
        assert f"    {line}\n" in text
    assert not re.search(r"\bx\d+\b", text)


@named([LSTM, PEEPHOLE, SLSTM])
def test_a_lane_is_64_bit_before_it_is_multiplied(spec):
    text = scan_source.time_scan(spec, params_of(spec)).text
    assert text.count("row_ = (tl.program_id(0) // blocks_).to(tl.int64)\n") == 2
    assert "at_ = row_ * steps_ * width_ + feature_\n" in text
    assert "at_ = ((row_ + 1) * steps_ - 1) * width_ + feature_\n" in text
    assert "whole_ *" not in text and text.count("whole_.to(tl.int64) *") == 2
    text = triton_source.elementwise(spec)
    assert text.count("tl.program_id(0)") == text.count("tl.program_id(0).to(tl.int64) *") == 1


def test_only_what_the_backward_pass_needs_is_saved():
    plan = scan_source.time_scan(LSTM)
    assert plan.stored == ("h", "c")
    assert plan.reverse_reads == ("a_i", "a_f", "a_g", "a_o", "c_prev", "c")
    kept = scan_source.time_scan(LSTM, keep="i f g o m")
    assert kept.stored == ("h", "c", "i", "f", "g", "o", "m")
    assert "a_i" not in kept.reverse_reads


def test_no_kernel_uses_atomics():
    assert "atomic" not in scan_source.time_scan(PEEPHOLE, params_of(PEEPHOLE)).text


def test_a_vjp_takes_less_than_fifty_milliseconds():
    for spec in (LSTM, PEEPHOLE, SLSTM):
        times = []
        for _ in range(5):
            start = time.process_time()
            spec.vjp("")
            times.append(time.process_time() - start)
        assert min(times) < 0.05, f"{spec.name}: {1e3 * min(times):.0f} ms"


def test_a_gate_across_features_is_refused():
    with pytest.raises(SpecError, match="layernorm: a Triton kernel needs an elementwise gate"):
        triton_source.elementwise(LAYERNORM)
    with pytest.raises(SpecError, match="looks across the features"):
        scan_source.time_scan(LAYERNORM)


def test_a_scan_needs_a_carry():
    swiglu = parse("swiglu", "a b -> y", "y = silu(a)*b")
    with pytest.raises(SpecError, match="swiglu: a scan needs a carry"):
        scan_source.time_scan(swiglu)


def test_unknown_parameters_and_kept_values_are_refused():
    with pytest.raises(SpecError, match="params: `nope` is not an input of lstm"):
        scan_source.time_scan(LSTM, ["nope"])
    with pytest.raises(SpecError, match="params: `c_prev` is not an input"):
        scan_source.time_scan(LSTM, ["c_prev"])
    with pytest.raises(SpecError, match="keep: `nope` is not a value"):
        scan_source.time_scan(LSTM, keep="nope")
