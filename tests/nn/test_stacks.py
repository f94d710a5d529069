"""Stack, VariationalDropout and pool name what is wrong with what they are given.

Imports gatelib.nn, pytest and torch.
"""

from __future__ import annotations

import pytest
import torch

from gatelib.nn import LSTM, Stack, VariationalDropout, pool


@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        (lambda: Stack([]), ValueError, "layers: expected at least one"),
        (
            lambda: Stack([LSTM(3, 4)]),
            ValueError,
            r"layers\[0\]: expected .* with batch_first=True",
        ),
        (lambda: Stack([torch.nn.Linear(3, 3)]), ValueError, r"layers\[0\]: expected a recurrent"),
        (lambda: Stack(stack_of(3, 4, 5, 5)), ValueError, r"layers\[1\]: expected input_size 4"),
        (
            lambda: Stack(stack_of(3, 4, 4, 5), residual=True),
            ValueError,
            r"layers\[1\]: expected 4 output features as residual adds its input, got 5",
        ),
        (lambda: Stack(stack_of(3, 4), dropout=1.5), ValueError, "dropout: expected a prob"),
        (lambda: Stack(stack_of(3, 4), residual=1), TypeError, "residual: expected True"),
        (lambda: VariationalDropout(-0.1), ValueError, "p: expected a prob"),
        (lambda: VariationalDropout()(torch.ones(3, 4)), ValueError, "x: expected 3 dimensions"),
        (lambda: run(noise=torch.ones(2, 5, 3)), ValueError, r"noise: expected shape \(2, 1, 3\)"),
        (lambda: run_stack(x=torch.ones(5, 3)), ValueError, "input: expected 3 dimensions"),
        (lambda: run_stack(x=[[1.0]]), TypeError, "input: expected a tensor, got list"),
        (lambda: run_stack(lengths=[5, 2]), TypeError, "lengths: expected a tensor"),
        (
            lambda: run_stack(lengths=torch.tensor([5, 0])),
            ValueError,
            "lengths: expected 1 to T = 5",
        ),
        (
            lambda: run_stack(lengths=torch.tensor([5, 6])),
            ValueError,
            "lengths: expected 1 to T = 5",
        ),
        (
            lambda: run_stack(lengths=torch.tensor([5])),
            ValueError,
            r"lengths: expected shape \(2,\)",
        ),
        (
            lambda: run_stack(initial_state=3),
            TypeError,
            "initial_state: expected a list .* got int",
        ),
        (lambda: Stack(torch.tensor(1.0)), TypeError, "layers: expected recurrent .* got Tensor"),
        (lambda: pool(torch.ones(2, 5, 3).long()), TypeError, "y: expected a floating-point"),
        (lambda: pool(torch.ones(2, 5, 3), kind=["max"]), ValueError, "kind: .* got list"),
        (
            lambda: run(noise=torch.ones(2, 1, 3, device="meta")),
            ValueError,
            "noise: expected device cpu, got meta",
        ),
        (lambda: run(noise=0.5), TypeError, "noise: expected a tensor, got float"),
        (lambda: run_stack(initial_state=[]), ValueError, "initial_state: expected 1 states"),
        (lambda: pool(torch.ones(2, 5, 3), kind="sum"), ValueError, "kind: expected one of"),
        (lambda: pool(torch.ones(2, 0, 3)), ValueError, "y: expected at least one time step"),
        (
            lambda: pool(torch.ones(2, 5, 3), torch.tensor([0, 5])),
            ValueError,
            "lengths: expected 1",
        ),
        (lambda: pool(torch.ones(2, 5)), ValueError, "y: expected 3 dimensions"),
        (lambda: pool(torch.ones(2, 5, 3), kind="ends"), ValueError, "y: expected two halves"),
    ],
)
def test_bad_input_is_named(act, error, says):
    with pytest.raises(error, match=says):
        act()


def stack_of(*sizes):
    return [LSTM(a, b, batch_first=True) for a, b in zip(sizes[::2], sizes[1::2], strict=True)]


def run(noise):
    return VariationalDropout()(torch.ones(2, 5, 3), noise)


def run_stack(x=None, **options):
    return Stack(stack_of(3, 4))(torch.ones(2, 5, 3) if x is None else x, **options)
