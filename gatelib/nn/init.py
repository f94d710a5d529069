"""Initialisers of gates, by biases that open or close them, and of recurrent matrices.
Imports torch.
Must not import gatelib.reference, gatelib.lab or gatelib.data.

Packed weights stack one block of rows per gate. Every function takes the order of the
blocks, so the same initialiser serves an LSTM ("ifgo"), a GRU ("rzn") or your own cell.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["Matrix", "chrono_", "forget_bias_", "gate_rows", "recurrent_"]

Matrix = Literal["orthogonal", "identity"]
"""How a recurrent matrix may start; see `recurrent_`."""


def gate_rows(packed: Tensor, gate: str, order: Sequence[str] = "ifgo") -> Tensor:
    """The rows of one gate in a packed weight or bias, as a view.

    Args:
        packed: (len(order) * hidden_size, ...), the blocks of all gates stacked in `order`.
        gate: the name of the gate, one of `order`.
        order: the names of the gates in the order of their blocks.

    Returns:
        A view of shape (hidden_size, ...); writing to it writes to `packed`.

    Raises:
        TypeError: `packed` is no tensor.
        ValueError: `gate` isn't in `order`, or the rows don't divide into equal blocks.
    """
    if not isinstance(packed, Tensor):
        raise TypeError(f"packed: expected a tensor, got {type(packed).__name__}")
    names = tuple(order)
    if names.count(gate) != 1:
        raise ValueError(f"gate: expected exactly one {gate!r} in the order {names}")
    if packed.dim() == 0 or packed.size(0) % len(names):
        shape = tuple(packed.shape)
        raise ValueError(f"packed: expected rows for {len(names)} gates alike, got shape {shape}")
    size = packed.size(0) // len(names)
    start = names.index(gate) * size
    return packed[start : start + size]


def _set_gate(biases: Sequence[Tensor], gate: str, order: Sequence[str], value: Tensor) -> None:
    """Make the sum of all biases equal `value` in the rows of one gate: the first gets it all."""
    for index, bias in enumerate(biases):
        rows = gate_rows(bias, gate, order)
        rows.copy_(value.expand_as(rows) if index == 0 else torch.zeros_like(rows))


def _biases(biases: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The biases as a non-empty list."""
    found = [biases] if isinstance(biases, Tensor) else list(biases)
    if not found:
        raise ValueError("biases: expected at least one tensor, got none")
    for bias in found:
        if not isinstance(bias, Tensor):
            raise TypeError(f"biases: expected tensors, got {type(bias).__name__}")
    return found


@torch.no_grad()
def forget_bias_(
    biases: Tensor | Sequence[Tensor],
    value: float,
    order: Sequence[str] = "ifgo",
    gate: str = "f",
) -> None:
    """Set the bias of the forget gate once, in place.

    Torch adds two biases to each preactivation. Writing 1 into both makes the gate start at
    sigmoid(2), a known bug. Here the first bias gets `value` and the others 0, so that their
    sum is `value`.

    Args:
        biases: every bias that is added to the same preactivations, each (gates * hidden_size,).
        value: the total bias, in units of the preactivation. sigmoid(value) is the initial gate.
        order: the names of the gates in the order of their blocks.
        gate: the name of the forget gate.

    Raises:
        TypeError: `value` is no real number.
        ValueError: `value` isn't finite, or `gate` isn't in `order`.

    Source: Gers, Schmidhuber & Cummins 2000, "Learning to forget"; Jozefowicz et al. 2015.
    """
    check_forget_bias(value, "value")
    found = _biases(biases)
    _set_gate(found, gate, order, found[0].new_tensor(float(value)))


@torch.no_grad()
def chrono_(
    biases: Tensor | Sequence[Tensor],
    t_max: int,
    order: Sequence[str] = "ifgo",
    forget_gate: str = "f",
    input_gate: str | None = "i",
    generator: torch.Generator | None = None,
) -> None:
    """Chrono initialisation, in place: b_f = log U(1, t_max - 1) and b_i = -b_f.

    A unit with forget gate f remembers for about 1 / (1 - f) steps. This draw spreads the
    memories of the units uniformly between 2 and `t_max` steps.

    Args:
        biases: every bias that is added to the same preactivations, each (gates * hidden_size,).
        t_max: the longest dependency expected, in time steps.
        order: the names of the gates in the order of their blocks.
        forget_gate: the name of the forget gate.
        input_gate: the name of the input gate; None for a cell whose input gate is 1 - f.
        generator: the source of randomness; None for torch's global one.

    Raises:
        TypeError: `t_max` is no integer.
        ValueError: `t_max` < 2, or a gate isn't in `order`.

    Source: Tallec & Ollivier 2018, arXiv:1804.11188, equation 16.
    """
    check_chrono(t_max, "t_max")
    found = _biases(biases)
    forget = torch.empty_like(gate_rows(found[0], forget_gate, order))
    forget.uniform_(1.0, float(t_max - 1), generator=generator).log_()
    _set_gate(found, forget_gate, order, forget)
    if input_gate is not None:
        _set_gate(found, input_gate, order, -forget)


@torch.no_grad()
def recurrent_(
    weight: Tensor, kind: Matrix, scale: float = 1.0, generator: torch.Generator | None = None
) -> None:
    """Set a recurrent matrix, in place; each block of H rows where it stacks several.

    Args:
        weight: (blocks * H, H).
        kind: "orthogonal", drawn uniformly, in float32 for a narrower type; or "identity".
        scale: a factor on the matrix; every singular value starts at its size.
        generator: the source of randomness; None for torch's global one.

    Raises:
        TypeError: `scale` is no real number.
        ValueError: `kind` is unknown, `scale` isn't finite, or the blocks aren't square.

    Source: the identity, Le, Jaitly & Hinton 2015, arXiv:1504.00941; orthogonal matrices, Saxe,
    McClelland & Ganguli 2013, arXiv:1312.6120.
    """
    check_recurrent(kind, scale)
    if weight.dim() != 2 or weight.size(0) % weight.size(1):
        raise ValueError(f"weight: expected (blocks * H, H), got shape {tuple(weight.shape)}")
    wide = torch.promote_types(weight.dtype, torch.float32)
    for block in torch.split(weight, weight.size(1)):
        start = torch.empty_like(block, dtype=wide)
        if kind == "identity":
            torch.nn.init.eye_(start)
        else:
            torch.nn.init.orthogonal_(start, generator=generator)
        block.copy_(start * scale)


def check_recurrent(kind: object, scale: object) -> None:
    """Raise, naming the argument, unless `kind` is known or None and `scale` finite, or 1."""
    if kind is not None and kind not in get_args(Matrix):
        expected = " or ".join(map(repr, get_args(Matrix)))
        raise ValueError(f"initialization: expected None, {expected}, got {kind!r}")
    check_forget_bias(scale, "scale")
    if kind is None and scale != 1:
        raise ValueError(f"scale: expected 1.0 where initialization is None, got {scale}")


def check_forget_bias(value: object, name: str = "forget_bias") -> None:
    """Raise, naming the argument, unless `value` is a finite real number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a real number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")


def check_chrono(t_max: object, name: str = "chrono") -> None:
    """Raise, naming the argument, unless `t_max` is an integer of at least 2."""
    if isinstance(t_max, bool) or not isinstance(t_max, int):
        raise TypeError(f"{name}: expected an integer number of steps, got {type(t_max).__name__}")
    if t_max < 2:
        raise ValueError(f"{name}: expected at least 2 steps, got {t_max}")
