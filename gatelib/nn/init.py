"""Initialisers: gates opened or shut by their biases, memories spread, recurrent matrices set.
Imports gatelib.nn.check and torch.
Must not import gatelib.reference, gatelib.lab or gatelib.data.

Each is a function that is called on a layer after the layer's own draw, changes its parameters in
place, and returns it: `layer = init.chrono_(LSTM(8, 64), 50)`. The layer's `reset_parameters`
draws anew, without them.

A layer with gates says where their biases are. Its `gate_biases(gate)` lists, for each layer and
direction in the order in which the parameters are drawn, the views of all biases that add up to
the preactivation of that gate; it raises ValueError for a gate that it doesn't have. Its
`memory_gates` are the gate that multiplies the old memory and the one that multiplies the new,
None where that is 1 minus the first.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar, get_args

import torch
from torch import Tensor, nn

from gatelib.nn.check import check_number, check_steps

__all__ = ["Gated", "Matrix", "chrono_", "forget_bias_", "gate_rows", "open_", "recurrent_"]

Matrix = Literal["orthogonal", "identity"]
"""How a recurrent matrix may start; see `recurrent_`."""

Layer = TypeVar("Layer", bound=nn.Module)


class Gated(Protocol):
    """A layer that says where the biases of its gates are."""

    def gate_biases(self, gate: str) -> list[tuple[Tensor, ...]]:
        """Views of the biases that add up to the gate's preactivation, by layer and direction."""


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


def open_(layer: Layer, gate: str, bias: float) -> Layer:
    """Set the initial bias of one gate in every layer and direction, in place.

    Torch adds two biases to each preactivation. Writing 1 into both makes a gate start at
    sigmoid(2), a known bug. Here the first bias gets the value and the others 0, so that their sum
    is the value.

    Args:
        layer: an LSTM, a GRU, their cells, a Recurrent, a Highway: any with `gate_biases`.
        gate: the name of the gate.
        bias: the total bias, in units of the preactivation. sigmoid(bias) is where the gate
            starts: above 0 it is open, below 0 it is shut.

    Returns:
        The layer.

    Raises:
        TypeError: `bias` is no real number, or the layer has no `gate_biases`.
        ValueError: `bias` isn't finite, or the layer has no such gate or no bias for it.
    """
    check_number(bias, "bias")
    for biases in _gate_biases(layer, gate):
        _set_sum(biases, biases[0].new_tensor(float(bias)))
    return layer


def forget_bias_(layer: Layer, value: float) -> Layer:
    """Set the initial bias of the gate that keeps the old memory, in place.

    That is f of an LSTM and of a `Recurrent`, z of a GRU: above 0 the layer starts by keeping.

    Args:
        layer, value: as `layer` and `bias` of `open_`.

    Returns:
        The layer.

    Raises:
        TypeError, ValueError: as `open_`.

    Source: Gers, Schmidhuber & Cummins 2000, "Learning to forget"; Jozefowicz et al. 2015.
    """
    check_number(value, "value")
    return open_(layer, _memory_gates(layer)[0], value)


def chrono_(layer: Layer, t_max: int, generator: torch.Generator | None = None) -> Layer:
    """Chrono initialisation, in place: b_f = log U(1, t_max - 1) and b_i = -b_f.

    A unit whose gate f keeps its memory remembers for about 1 / (1 - f) steps. This draw spreads
    the memories of the units uniformly between 2 and `t_max` steps. A GRU has z in the place of f,
    and no b_i: what z doesn't keep is written.

    Args:
        layer: as for `open_`.
        t_max: the longest dependency expected, in time steps.
        generator: the source of randomness; None for torch's global one.

    Returns:
        The layer.

    Raises:
        TypeError: `t_max` is no integer, or the layer has no `gate_biases`.
        ValueError: `t_max` < 2, or the layer has no gate that keeps or no bias for it.

    Source: Tallec & Ollivier 2018, arXiv:1804.11188, equation 16.
    """
    check_steps(t_max, "t_max")
    keep, write = _memory_gates(layer)
    kept = _gate_biases(layer, keep)
    written = [()] * len(kept) if write is None else _gate_biases(layer, write)
    for keeping, writing in zip(kept, written, strict=True):
        drawn = torch.empty_like(keeping[0])
        drawn.uniform_(1.0, float(t_max - 1), generator=generator).log_()
        _set_sum(keeping, drawn)
        _set_sum(writing, -drawn)
    return layer


@torch.no_grad()
def recurrent_(
    layer: Layer, kind: Matrix, scale: float = 1.0, generator: torch.Generator | None = None
) -> Layer:
    """Set the recurrent matrices of a layer, in place, each block of H rows by itself.

    Other parameters stay as they are: Le et al. also set the biases to 0.

    Args:
        layer: any with parameters `weight_hh…`, each (blocks * H, H): the drop-ins and their
            cells, torch's own, a Recurrent, a RecurrentHighway.
        kind: "orthogonal", drawn uniformly, in float32 for a narrower type; or "identity".
        scale: a factor on the matrices; every singular value starts at its size.
        generator: the source of randomness; None for torch's global one.

    Returns:
        The layer.

    Raises:
        TypeError: `scale` is no real number, or `layer` no module.
        ValueError: `kind` is unknown, `scale` isn't finite, there is no such parameter, or its
            blocks aren't square.

    Source: the identity, Le, Jaitly & Hinton 2015, arXiv:1504.00941; orthogonal matrices, Saxe,
    McClelland & Ganguli 2013, arXiv:1312.6120.
    """
    if kind not in get_args(Matrix):
        expected = " or ".join(map(repr, get_args(Matrix)))
        raise ValueError(f"kind: expected {expected}, got {kind!r}")
    check_number(scale, "scale")
    for weight in _recurrent_weights(layer):
        rows = weight.view(-1, weight.size(-1))
        wide = torch.promote_types(weight.dtype, torch.float32)
        for block in torch.split(rows, weight.size(-1)):
            start = torch.empty_like(block, dtype=wide)
            if kind == "identity":
                nn.init.eye_(start)
            else:
                nn.init.orthogonal_(start, generator=generator)
            block.copy_(start * scale)
    return layer


@torch.no_grad()
def _set_sum(biases: Sequence[Tensor], value: Tensor) -> None:
    """Make the sum of all biases equal `value`: the first gets it all."""
    for index, bias in enumerate(biases):
        bias.copy_(value.expand_as(bias) if index == 0 else torch.zeros_like(bias))


def _gate_biases(layer: nn.Module, gate: str) -> list[tuple[Tensor, ...]]:
    if not hasattr(layer, "gate_biases"):
        expected = "a layer that has gate_biases, as LSTM, GRU, Recurrent and Highway have"
        raise TypeError(f"layer: expected {expected}, got {type(layer).__name__}")
    gated: Gated = layer  # type: ignore[assignment]
    return [tuple(bias.detach() for bias in biases) for biases in gated.gate_biases(gate)]


def _memory_gates(layer: nn.Module) -> tuple[str, str | None]:
    """The gate that keeps and the one that writes; f and i where the layer doesn't say."""
    if hasattr(layer, "memory_gates"):
        known: tuple[str, str | None] = layer.memory_gates  # type: ignore[assignment]
        return known
    gates = getattr(getattr(layer, "cell", None), "gates", ())
    return "f", "i" if "i" in gates else None


def _recurrent_weights(layer: nn.Module) -> list[Tensor]:
    """The recurrent matrices in the order in which they are drawn."""
    if not isinstance(layer, nn.Module):
        raise TypeError(f"layer: expected a module, got {type(layer).__name__}")
    named = layer.named_parameters(recurse=False)
    found: list[Tensor] = [value for name, value in named if name.startswith("weight_hh")]
    if not found:
        raise ValueError(f"layer: expected one that has weight_hh, got {type(layer).__name__}")
    for weight in found:
        if weight.dim() not in (2, 3) or weight.size(-2) % weight.size(-1):
            shape = tuple(weight.shape)
            raise ValueError(f"weight_hh: expected (blocks * H, H), got shape {shape}")
    return found
