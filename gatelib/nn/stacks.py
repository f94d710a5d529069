"""Stacks of recurrent layers: variational dropout, shortcuts between layers, pooling over time.
Imports torch, gatelib.nn.check, gatelib.nn.guest and gatelib.nn.impl.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

import inspect
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from gatelib.nn.check import check_choice, check_dropout, check_flags, check_lengths, check_noise
from gatelib.nn.guest import given, unwrapped
from gatelib.nn.impl import traced

__all__ = ["Stack", "VariationalDropout", "pool"]

Pool = Literal["max", "mean", "last", "ends"]


class VariationalDropout(nn.Module):
    """Dropout with one mask for all steps of a sequence: a gate that time shares.

    y = g x, where g is 1/(1 - p) with probability 1 - p and 0 otherwise, drawn once for each
    sequence and feature. `torch.nn.Dropout` draws it anew at each step. Identity after `eval()`.

    Args:
        p: probability of dropping a feature, as in `torch.nn.Dropout`.
        batch_first: whether sequences are (B, T, D) rather than (T, B, D).

    Shapes: x (B, T, D) -> y (B, T, D). noise (B, 1, D), or (1, B, D) without `batch_first`:
    uniform in [0, 1), a feature is kept where it is below 1 - p; given, it is the noise used, in
    training or not.

    Raises: TypeError or ValueError naming the argument that is wrong.
    Source: Gal & Ghahramani 2016, arXiv:1512.05287, section 4.
    """

    def __init__(self, p: float = 0.5, *, batch_first: bool = True) -> None:
        super().__init__()
        check_dropout(p, "p")
        check_flags(batch_first=batch_first)
        self.p, self.batch_first = float(p), batch_first

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Gate a batch of sequences."""
        _check_sequences("x", x)
        if noise is None and not (self.training and self.p > 0):
            return x
        return _gated_features(x, noise, 1 - self.p, 1 if self.batch_first else 0)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"p={self.p}" + ("" if self.batch_first else ", batch_first=False")


class Stack(nn.Module):
    """Recurrent layers on top of each other, with shortcuts and variational dropout between them.

        y_0 = layer_0(x)
        y_k = layer_k(g_k y_{k-1}), plus y_{k-1} with `residual`,    k = 1, 2, …

    The mask g_k stands inside the branch, so the shortcut is never dropped.

    Args:
        layers: recurrent modules that read (B, T, D): `gatelib.nn.Recurrent`, `gatelib.nn.LSTM`,
            `torch.nn.GRU`, …, each with its own size, cell and directions, or another Stack. A
            module without an argument `lengths` is given a packed batch where rows are padded.
        residual: whether the input is added to the output of each layer but the first. The sizes
            must then be equal.
        dropout: probability of dropping a feature of the input of each layer but the first.

    With `residual`, a layer that may write into its input gets a copy; see `Residual`.

    Attributes: input_size and output_size, the features of input and output.
    Raises: TypeError or ValueError naming the argument that is wrong.
    Source: Graves 2013, arXiv:1303.5778 (stacks); He et al. 2016, arXiv:1512.03385 (shortcuts);
    Gal & Ghahramani 2016, arXiv:1512.05287 (dropout).
    """

    batch_first = True

    def __init__(
        self, layers: Iterable[nn.Module], *, residual: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_flags(residual=residual)
        check_dropout(dropout)
        self.layers = nn.ModuleList(_checked_layers(layers))
        self.residual, self.dropout = residual, VariationalDropout(dropout)
        if len(self.layers) == 0:
            raise ValueError("layers: expected at least one recurrent module, got none")
        sizes = [_sizes(f"layers[{k}]", layer) for k, layer in enumerate(self.layers)]
        for k, ((_, before), (size, after)) in enumerate(pairwise(sizes), 1):
            if size != before:
                raise ValueError(f"layers[{k}]: expected input_size {before}, got {size}")
            if residual and after != size:
                raise ValueError(
                    f"layers[{k}]: expected {size} output features as residual adds its input, "
                    f"got {after}"
                )
        self.input_size, self.output_size = sizes[0][0], sizes[-1][1]

    def forward(
        self,
        input: Tensor,
        initial_state: Sequence[Any] | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """Run all layers over a batch of sequences.

        Args:
            input: (B, T, D).
            initial_state: one state for each layer as that layer takes it; None for zeros.
            lengths: (B,) integers from 1 to T. Past its length a row's output is 0, and its final
                state is the one at its length.

        Returns: the output (B, T, output_size), and one final state for each layer.
        Raises: TypeError or ValueError naming the argument that is wrong.
        """
        node = traced(self, input, initial_state, lengths)
        if node is not None:
            return node  # type: ignore[return-value]
        _check_sequences("input", input)
        if lengths is not None:
            check_lengths(lengths, input.shape[1], input.shape[0], least=1)
        if initial_state is None:
            initial_state = [None] * len(self.layers)
        if not isinstance(initial_state, Sequence):
            found = type(initial_state).__name__
            raise TypeError(f"initial_state: expected a list or a tuple of states, got {found}")
        if len(initial_state) != len(self.layers):
            raise ValueError(
                f"initial_state: expected {len(self.layers)} states, one for each layer, "
                f"got {len(initial_state)}"
            )
        x, final = input, []
        for k, (layer, state) in enumerate(zip(self.layers, initial_state, strict=True)):
            read = self.dropout(x) if k > 0 else x
            y, last = _run(layer, given(layer, read) if self.residual else read, state, lengths)
            x = x + y if self.residual and k > 0 else y
            final.append(last)
        return x, tuple(final)

    def extra_repr(self) -> str:
        """The arguments that aren't modules."""
        return f"residual={self.residual}"


def pool(y: Tensor, lengths: Tensor | None = None, kind: Pool = "max") -> Tensor:
    """Pool a batch of sequences over time, without their padding.

    Args:
        y: (B, T, H).
        lengths: (B,) integers from 1 to T; None where no row is padded.
        kind: "max", "mean", "last", or "ends", which is "last" for a bidirectional layer: the
            first half of the features at the last step, the second half at the first one, where
            the reverse direction has read the whole row.

    Returns: (B, H), in y's dtype; a mean of low precision is summed in float32. A tie of largest
    values sends its gradient to one of them.
    Raises: TypeError or ValueError naming the argument that is wrong.
    """
    if isinstance(y, fx.Proxy):  # one node of a graph that torch.fx traces
        return y.tracer.create_proxy("call_function", pool, (y, lengths, kind), {})
    _check_sequences("y", y)
    check_choice("kind", kind, get_args(Pool))
    if not y.is_floating_point():
        raise TypeError(f"y: expected a floating-point tensor, got {y.dtype}")
    if y.shape[1] == 0:
        raise ValueError(f"y: expected at least one time step, got {tuple(y.shape)}")
    if kind == "ends" and y.shape[2] % 2:
        raise ValueError(f"y: expected two halves of features for 'ends', got {y.shape[2]}")
    if lengths is None:
        lengths = torch.full((y.shape[0],), y.shape[1], device=y.device)
    check_lengths(lengths, y.shape[1], y.shape[0], least=1)
    return _pooled(y, lengths.to(y.device), kind)


def _pooled(y: Tensor, lengths: Tensor, kind: Pool) -> Tensor:
    """`pool` of what was checked."""
    padding = torch.arange(y.shape[1], device=y.device)[:, None] >= lengths[:, None, None]
    if kind == "max":
        return y.masked_fill(padding, -torch.inf).max(dim=1).values
    if kind == "mean":
        wide = torch.promote_types(y.dtype, torch.float32)
        total = y.masked_fill(padding, 0).sum(dim=1, dtype=wide)
        return (total / lengths[:, None].to(wide)).to(y.dtype)
    last = y[torch.arange(y.shape[0], device=y.device), lengths.long() - 1]
    if kind == "last":
        return last
    half = y.shape[2] // 2
    return torch.cat([last[:, :half], y[:, 0, half:]], dim=1)


@fx.wrap
def _gated_features(x: Tensor, noise: Tensor | None, keep: float, time: int) -> Tensor:
    """x times one gate for each row and feature, the same at all steps."""
    shape = tuple(1 if dim == time else size for dim, size in enumerate(x.shape))
    if noise is None:
        noise = torch.rand(shape, device=x.device)
    else:
        check_noise(noise, shape, x)
    return x * ((noise < keep).to(x.dtype) / (keep or 1.0))


def _run(layer: nn.Module, x: Tensor, state: Any, lengths: Tensor | None) -> tuple[Tensor, Any]:
    """One layer, through a packed batch where that is how it learns of lengths."""
    if lengths is None:
        y, last = layer(x, state)
    elif "lengths" in inspect.signature(unwrapped(layer).forward).parameters:
        y, last = layer(x, state, lengths)
    else:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        packed_y, last = layer(packed, state)
        y, _ = pad_packed_sequence(packed_y, batch_first=True, total_length=x.shape[1])
    return y, last


def _checked_layers(layers: object) -> list[nn.Module]:
    if not isinstance(layers, Iterable) or isinstance(layers, Tensor):
        raise TypeError(f"layers: expected recurrent modules, got {type(layers).__name__}")
    found = list(layers)
    for k, layer in enumerate(found):
        if not isinstance(layer, nn.Module):
            raise TypeError(f"layers[{k}]: expected a module, got {type(layer).__name__}")
    return found


def _sizes(name: str, layer: nn.Module) -> tuple[int, int]:
    """The features of a recurrent module's input and output."""
    inner = unwrapped(layer)
    size, output = (getattr(inner, which, None) for which in ("input_size", "output_size"))
    if output is None and hasattr(inner, "hidden_size"):
        width = getattr(inner, "proj_size", 0) or inner.hidden_size
        output = width * (1 + getattr(inner, "bidirectional", False))
    if size is None or output is None or not getattr(inner, "batch_first", False):
        raise ValueError(
            f"{name}: expected a recurrent module with batch_first=True, input_size and "
            f"hidden_size or output_size, got {layer}"
        )
    return int(size), int(output)


@fx.wrap
def _check_sequences(name: str, x: object) -> None:
    if isinstance(x, PackedSequence):
        raise TypeError(f"{name}: expected a padded tensor and `lengths`, got a PackedSequence")
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if x.dim() != 3:
        raise ValueError(f"{name}: expected 3 dimensions, got {x.dim()} {tuple(x.shape)}")
