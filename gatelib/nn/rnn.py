"""RNN and RNNCell, drop-ins for torch's; Jordan's net; an RNN with a skip over k steps.
Imports gatelib.nn.drop_in, gatelib.nn.check and torch.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.nn.check import (
    check_choice,
    check_dtype,
    check_flags,
    check_input,
    check_lengths,
    check_like,
    check_no_more,
    check_sizes,
)
from gatelib.nn.drop_in import DropIn, DropInCell, DropInLayer, States, Weights
from gatelib.nn.impl import Impl, traced

__all__ = ["RNN", "Jordan", "RNNCell", "SkipRNN"]

Nonlinearity = Literal["tanh", "relu"]
_Activation = Callable[[Tensor], Tensor]
_NONLINEARITIES: dict[str, _Activation] = {"tanh": torch.tanh, "relu": torch.relu}
_OUTPUTS: dict[str, _Activation] = {"identity": nn.Identity(), "sigmoid": torch.sigmoid}
_OUTPUTS["tanh"] = torch.tanh


class _Family(DropIn):
    """What RNN and RNNCell share."""

    nonlinearity: Nonlinearity

    @property
    def _kernel(self) -> str:  # type: ignore[override]
        return f"rnn_{self.nonlinearity}"

    def _step(self, from_x: Tensor, states: States, weights: Weights) -> States:
        h = states[0].to(from_x.dtype)
        a = from_x + F.linear(h, weights.w_hh, weights.b_hh)
        return (torch.tanh(a) if self.nonlinearity == "tanh" else torch.relu(a),)


class RNN(_Family, DropInLayer[Tensor]):
    """A drop-in for `torch.nn.RNN` with a readable twin.

        h = tanh(W_ih x + b_ih + W_hh h_prev + b_hh), or relu of the same

    Arguments, defaults, `state_dict` and the numbers drawn under a seed are torch's, so weights
    load both ways.

    Args:
        input_size: features D of the input.
        hidden_size: features H of the state.
        num_layers: layers stacked on each other.
        nonlinearity: "tanh" or "relu".
        bias, batch_first, dropout, bidirectional, device, dtype: as for `LSTM`.
        impl: "fused" is torch's kernel, "reference" a loop in plain torch; "auto" as for `LSTM`.

    Derivatives, torch.compile, torch.export, torch.func and torch.fx are as for `LSTM`.
    `init.recurrent_` of `gatelib.nn` starts W_hh as an orthogonal matrix or as the identity.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Source: Elman 1990.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Nonlinearity = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        impl: Impl = "auto",
        **unknown: Any,
    ) -> None:
        check_no_more(unknown, self)
        check_choice("nonlinearity", nonlinearity, _NONLINEARITIES)
        mode = f"RNN_{nonlinearity}".upper()
        sizes, flags = (input_size, hidden_size, num_layers), (bias, batch_first, bidirectional)
        super().__init__(mode, sizes, flags, dropout, 0, device, dtype, impl)
        self.nonlinearity = nonlinearity

    def extra_repr(self) -> str:
        """Torch's line, and the options that aren't at their default."""
        relu = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity!r}"
        return super().extra_repr() + relu


class RNNCell(_Family, DropInCell[Tensor]):
    """A drop-in for `torch.nn.RNNCell`: one step of an RNN.

    Arguments, errors and source are those of `RNN`; "fused" is torch's kernel of one step.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Nonlinearity = "tanh",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        impl: Impl = "auto",
    ) -> None:
        check_choice("nonlinearity", nonlinearity, _NONLINEARITIES)
        super().__init__(input_size, hidden_size, bias, device, dtype, impl=impl)
        self.nonlinearity = nonlinearity


class _Loop(nn.Module):
    """What Jordan, SkipRNN and the searched cells share: parameters, checks, a loop over time.

    A class says its parameters' shapes, the shape of its state, its step and how it takes and
    gives its state.
    """

    input_size: int
    hidden_size: int
    batch_first: bool
    weight_ih: Tensor
    _bias = "bias"

    def _make(self, shapes: Mapping[str, tuple[int, ...]], device: Any, dtype: Any) -> None:
        """One parameter for each shape, in this order, and their first values."""
        check_dtype(dtype)
        for name, shape in shapes.items():
            parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, parameter)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H))."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            parameter.uniform_(-bound, bound)

    def _state_shape(self, batch: int) -> tuple[int, ...]:
        raise NotImplementedError

    def _parts(self, state: Tensor) -> States:
        """The state as the step takes it."""
        return (state,)

    def _whole(self, parts: States) -> Tensor:
        """The inverse of `_parts`."""
        return parts[0]

    def _matrix(self) -> Tensor:
        """What multiplies the state."""
        raise NotImplementedError

    def _step(self, from_input: Tensor, state: States, matrix: Tensor) -> tuple[Tensor, States]:
        """Output and state after one step, from W x + b and the state before it."""
        raise NotImplementedError

    def forward(
        self, input: Tensor, initial_state: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the net over a batch of sequences.

        Args:
            input: (B, T, D), or (T, B, D) without `batch_first`.
            initial_state: the state before the first step, as the class says; zeros if absent.
            lengths: (B,) integers from 0 to T; None where no row is padded. Past its length a
                row's output is 0, and its final state is the one at its length.

        Returns:
            output: at each step, (B, T, features); final_state: as the initial one.

        The state is float32 where the parameters are of lower precision. `torch.fx` keeps the
        layer whole, as one node.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: a shape, a device or a length doesn't fit, or there is no step.
        """
        node = traced(self, input, initial_state, lengths)
        if node is not None:
            return node  # type: ignore[return-value]
        check_input("input", input, (3,), self.input_size, self.weight_ih)
        x = input.transpose(0, 1) if self.batch_first else input
        parts = self._parts(self._initial(initial_state, x))
        x, mask = _masked(x, lengths)
        matrix, outputs = self._matrix(), []
        for t, from_input in enumerate(F.linear(x, self.weight_ih, getattr(self, self._bias))):
            y, after = self._step(from_input, parts, matrix)
            if mask is not None:
                y = y.masked_fill(~mask[t], 0)
                kept = zip(after, parts, strict=True)
                after = tuple(torch.where(mask[t], new, old) for new, old in kept)
            parts = after
            outputs.append(y)
        return torch.stack(outputs, 1 if self.batch_first else 0), self._whole(parts)

    def _initial(self, given: object, x: Tensor) -> Tensor:
        """The initial state, checked, in the type of states; zeros if absent."""
        if x.shape[0] == 0:
            raise ValueError("input: expected at least one step, got none")
        shape, weight = self._state_shape(x.shape[1]), self.weight_ih
        wide = torch.promote_types(weight.dtype, torch.float32)
        if given is None:
            return torch.zeros(shape, dtype=wide, device=weight.device)
        if not isinstance(given, Tensor):
            raise TypeError(f"initial_state: expected a tensor, got {type(given).__name__}")
        if tuple(given.shape) != shape:
            raise ValueError(f"initial_state: expected shape {shape}, got {tuple(given.shape)}")
        if given.dtype != wide:
            check_like("initial_state", given, weight, "weights")
        return given.to(wide)


class Jordan(_Loop):
    """Jordan's net: the output, not the hidden layer, is what the next step sees.

    h_t = tanh(W x_t + U s_{t-1} + b), y_t = out(Q h_t + c), s_t = decay * s_{t-1} + y_t.

    Parameters: `weight_ih` (H, D), `weight_sh` (H, O), `bias_h` (H,), `weight_ho` (O, H) and
    `bias_o` (O,), drawn from U(-1/sqrt(H), 1/sqrt(H)). The output is y (B, T, O), the state s
    (B, O).

    Args:
        input_size: features D of the input.
        hidden_size: hidden units H.
        output_size: outputs O, which are fed back.
        output: the outputs' nonlinearity, "identity", "sigmoid" or "tanh".
        decay: how much of itself the state keeps, from 0 (textbooks) to below 1.
        batch_first: whether input and output are (B, T, features) rather than (T, B, features).
        device: where the parameters live.
        dtype: their floating-point type.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Source: M. I. Jordan 1986, "Serial order: a parallel distributed processing approach", ICS
    Report 8604, whose output and hidden units are logistic and whose state units decay.
    """

    weight_sh: Tensor
    weight_ho: Tensor
    bias_o: Tensor
    _bias = "bias_h"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        output: str = "identity",
        decay: float = 0.0,
        batch_first: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size, output_size=output_size)
        check_flags(batch_first=batch_first)
        check_choice("output", output, _OUTPUTS)
        _check_decay(decay)
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, output_size
        self.output, self.decay, self.batch_first = output, float(decay), batch_first
        inner = {"weight_ih": (hidden_size, input_size), "weight_sh": (hidden_size, output_size)}
        outer = {"weight_ho": (output_size, hidden_size), "bias_o": (output_size,)}
        self._make({**inner, "bias_h": (hidden_size,), **outer}, device, dtype)

    def _state_shape(self, batch: int) -> tuple[int, ...]:
        return batch, self.output_size

    def _matrix(self) -> Tensor:
        return self.weight_sh

    def _step(self, from_input: Tensor, state: States, matrix: Tensor) -> tuple[Tensor, States]:
        s = state[0]
        h = torch.tanh(from_input + F.linear(s.to(from_input.dtype), matrix))
        y = _OUTPUTS[self.output](F.linear(h, self.weight_ho, self.bias_o))
        wide = y.to(s.dtype)
        return y, (wide + self.decay * s if self.decay else wide,)

    def extra_repr(self) -> str:
        """Sizes, and what differs from the usual."""
        return f"{self.input_size}, {self.hidden_size}, {self.output_size}, output={self.output!r}"


class SkipRNN(_Loop):
    """A plain recurrent net that also sees its state k steps before, through a matrix of its own.

    h_t = act(W x_t + U h_{t-1} + V h_{t-k} + b).

    Parameters: `weight_ih` (H, D), `weight_hh` (H, H), `weight_skip` (H, H), `bias` (H,), drawn
    from U(-1/sqrt(H), 1/sqrt(H)). The output is h (B, T, H), the state the last k of them
    (B, k, H), the latest last.

    Args:
        input_size: features D of the input.
        hidden_size: hidden units H.
        skip: k, at least 2 steps.
        nonlinearity: "tanh" or "relu".
        batch_first: whether input and output are (B, T, features) rather than (T, B, features).
        device: where the parameters live.
        dtype: their floating-point type.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Source: S. Zhang et al. 2016, "Architectural complexity measures of recurrent neural
    networks", arXiv:1602.08210, where such nets have the recurrent skip coefficient k.
    """

    weight_hh: Tensor
    weight_skip: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        skip: int,
        *,
        nonlinearity: str = "tanh",
        batch_first: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size, skip=skip)
        check_flags(batch_first=batch_first)
        check_choice("nonlinearity", nonlinearity, _NONLINEARITIES)
        if skip < 2:
            raise ValueError(f"skip: expected at least 2 steps, got {skip}")
        self.input_size, self.hidden_size, self.skip = input_size, hidden_size, skip
        self.nonlinearity, self.batch_first = nonlinearity, batch_first
        square = (hidden_size, hidden_size)
        shapes = {"weight_ih": (hidden_size, input_size), "weight_hh": square}
        self._make({**shapes, "weight_skip": square, "bias": (hidden_size,)}, device, dtype)

    def _state_shape(self, batch: int) -> tuple[int, ...]:
        return batch, self.skip, self.hidden_size

    def _parts(self, state: Tensor) -> States:
        return state.unbind(1)

    def _whole(self, parts: States) -> Tensor:
        return torch.stack(parts, 1)

    def _matrix(self) -> Tensor:
        return torch.cat([self.weight_hh, self.weight_skip], 1)

    def _step(self, from_input: Tensor, state: States, matrix: Tensor) -> tuple[Tensor, States]:
        seen = torch.cat([state[-1], state[0]], 1).to(from_input.dtype)
        h = _NONLINEARITIES[self.nonlinearity](from_input + F.linear(seen, matrix))
        return h, (*state[1:], h.to(state[0].dtype))

    def extra_repr(self) -> str:
        """Sizes, and the nonlinearity."""
        sizes = f"{self.input_size}, {self.hidden_size}, skip={self.skip}"
        return f"{sizes}, nonlinearity={self.nonlinearity!r}"


def _masked(x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x (T, B, D) with zeros for padding, and (T, B, 1): is this step inside its row?"""
    if lengths is None:
        return x, None
    check_lengths(lengths, *x.shape[:2])
    steps = torch.arange(x.shape[0], device=x.device)[:, None]
    mask = (steps < lengths.to(x.device)).unsqueeze(-1)
    return x.masked_fill(~mask, 0), mask


def _check_decay(decay: object) -> None:
    if isinstance(decay, bool) or not isinstance(decay, int | float):
        raise TypeError(f"decay: expected a real number, got {type(decay).__name__}")
    if not 0 <= decay < 1:
        raise ValueError(f"decay: expected a number in [0, 1), got {decay}")
