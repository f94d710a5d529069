"""RNN and RNNCell, drop-ins for torch's; Jordan's net; an RNN with a skip over k steps.
Imports gatelib.nn.drop_in, gatelib.nn.check and torch.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.nn.check import check_dtype, check_flags, check_input, check_like, check_sizes
from gatelib.nn.drop_in import DropIn, DropInCell, DropInLayer, Impl, States, Weights

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
        impl: "fused" is torch's kernel, "reference" a loop in plain torch; "auto" is fused, and
            reference in forward-mode differentiation.

    Derivatives, torch.compile, torch.export and torch.vmap are as for `LSTM`. `init.recurrent_` of
    `gatelib.nn` starts W_hh as an orthogonal matrix or as the identity.

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
    ) -> None:
        options = _options(nonlinearity, impl)
        mode = f"RNN_{nonlinearity}".upper()
        sizes, flags = (input_size, hidden_size, num_layers), (bias, batch_first, bidirectional)
        super().__init__(mode, sizes, flags, dropout, 0, device, dtype, **options)

    def extra_repr(self) -> str:
        """Torch's line, and the options that aren't at their default."""
        relu = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity!r}"
        return super().extra_repr() + relu


class RNNCell(_Family, DropInCell[Tensor]):
    """A drop-in for `torch.nn.RNNCell`: one step of an RNN.

    Args:
        input_size: features D of the input.
        hidden_size: features H of the state.
        bias: whether the preactivation has its two biases.
        nonlinearity: "tanh" or "relu".
        device: where the parameters live.
        dtype: their floating-point type.
        impl: "fused" is torch's cell kernel, "reference" plain torch; "auto" as for `RNN`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: as for `RNN`.

    Source: as for `RNN`.
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
        options = _options(nonlinearity, impl)
        super().__init__((input_size, hidden_size), bias, 1, device, dtype, **options)


def _options(nonlinearity: str, impl: Impl) -> dict[str, Any]:
    """An RNN's own options, checked."""
    if nonlinearity not in get_args(Nonlinearity):
        raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
    return {"nonlinearity": nonlinearity, "impl": impl}


class Jordan(nn.Module):
    """Jordan's net: the output, not the hidden layer, is what the next step sees.

    h_t = tanh(W x_t + U s_{t-1} + b), y_t = out(Q h_t + c), s_t = decay * s_{t-1} + y_t.

    Parameters: `weight_ih` (H, D), `weight_sh` (H, O), `bias_h` (H,), `weight_ho` (O, H) and
    `bias_o` (O,), drawn from U(-1/sqrt(H), 1/sqrt(H)).

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
        check_dtype(dtype)
        _check_choice("output", output, _OUTPUTS)
        _check_decay(decay)
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, output_size
        self.output, self.decay, self.batch_first = output, float(decay), batch_first
        where = {"device": device, "dtype": dtype}
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, input_size, **where))
        self.weight_sh = nn.Parameter(torch.empty(hidden_size, output_size, **where))
        self.bias_h = nn.Parameter(torch.empty(hidden_size, **where))
        self.weight_ho = nn.Parameter(torch.empty(output_size, hidden_size, **where))
        self.bias_o = nn.Parameter(torch.empty(output_size, **where))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H))."""
        _draw(self)

    def forward(self, input: Tensor, initial_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the net over a batch of sequences.

        Args:
            input: (B, T, D), or (T, B, D) without `batch_first`.
            initial_state: (B, O), zeros if absent.

        Returns:
            output: y at each step, (B, T, O); final_state: s, (B, O).

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: a shape or device doesn't fit, or there is no step.
        """
        check_input("input", input, (3,), self.input_size, self.weight_ih)
        x = input.transpose(0, 1) if self.batch_first else input
        state = _initial(initial_state, (x.shape[1], self.output_size), self.weight_ih, x)
        activation, outputs = _OUTPUTS[self.output], []
        for from_input in F.linear(x, self.weight_ih, self.bias_h):
            h = torch.tanh(from_input + F.linear(state, self.weight_sh))
            y = activation(F.linear(h, self.weight_ho, self.bias_o))
            outputs.append(y)
            state = y + self.decay * state if self.decay else y
        return torch.stack(outputs, 1 if self.batch_first else 0), state

    def extra_repr(self) -> str:
        """Sizes, and what differs from the usual."""
        return f"{self.input_size}, {self.hidden_size}, {self.output_size}, output={self.output!r}"


class SkipRNN(nn.Module):
    """A plain recurrent net that also sees its state k steps before, through a matrix of its own.

    h_t = act(W x_t + U h_{t-1} + V h_{t-k} + b).

    Parameters: `weight_ih` (H, D), `weight_hh` (H, H), `weight_skip` (H, H), `bias` (H,), drawn
    from U(-1/sqrt(H), 1/sqrt(H)).

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
        check_dtype(dtype)
        _check_choice("nonlinearity", nonlinearity, _NONLINEARITIES)
        if skip < 2:
            raise ValueError(f"skip: expected at least 2 steps, got {skip}")
        self.input_size, self.hidden_size, self.skip = input_size, hidden_size, skip
        self.nonlinearity, self.batch_first = nonlinearity, batch_first
        where = {"device": device, "dtype": dtype}
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, input_size, **where))
        self.weight_hh = nn.Parameter(torch.empty(hidden_size, hidden_size, **where))
        self.weight_skip = nn.Parameter(torch.empty(hidden_size, hidden_size, **where))
        self.bias = nn.Parameter(torch.empty(hidden_size, **where))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H))."""
        _draw(self)

    def forward(self, input: Tensor, initial_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the net over a batch of sequences.

        Args:
            input: (B, T, D), or (T, B, D) without `batch_first`.
            initial_state: (B, k, H), the k states before the first step, the latest last; zeros
                if absent.

        Returns:
            output: h at each step, (B, T, H); final_state: the last k states, (B, k, H).

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: a shape or device doesn't fit, or there is no step.
        """
        check_input("input", input, (3,), self.input_size, self.weight_ih)
        x = input.transpose(0, 1) if self.batch_first else input
        shape = (x.shape[1], self.skip, self.hidden_size)
        past = _initial(initial_state, shape, self.weight_ih, x)
        states, activation = list(past.unbind(1)), _NONLINEARITIES[self.nonlinearity]
        recurrent = torch.cat([self.weight_hh, self.weight_skip], 1)
        for from_input in F.linear(x, self.weight_ih, self.bias):
            seen = torch.cat([states[-1], states[-self.skip]], 1)
            states.append(activation(from_input + F.linear(seen, recurrent)))
        output = torch.stack(states[self.skip :], 1 if self.batch_first else 0)
        return output, torch.stack(states[-self.skip :], 1)

    def extra_repr(self) -> str:
        """Sizes, and the nonlinearity."""
        sizes = f"{self.input_size}, {self.hidden_size}, skip={self.skip}"
        return f"{sizes}, nonlinearity={self.nonlinearity!r}"


@torch.no_grad()
def _draw(module: nn.Module) -> None:
    bound = 1 / math.sqrt(module.hidden_size)  # type: ignore[arg-type]
    for parameter in module.parameters():
        parameter.uniform_(-bound, bound)


def _check_choice(name: str, value: object, known: Mapping[str, Any]) -> None:
    if value not in known:
        raise ValueError(f"{name}: expected one of {sorted(known)}, got {value!r}")


def _check_decay(decay: object) -> None:
    if isinstance(decay, bool) or not isinstance(decay, int | float):
        raise TypeError(f"decay: expected a real number, got {type(decay).__name__}")
    if not 0 <= decay < 1:
        raise ValueError(f"decay: expected a number in [0, 1), got {decay}")


def _initial(given: object, shape: tuple[int, ...], weight: Tensor, x: Tensor) -> Tensor:
    """The initial state, checked; zeros if absent."""
    if x.shape[0] == 0:
        raise ValueError("input: expected at least one step, got none")
    if given is None:
        return torch.zeros(shape, dtype=weight.dtype, device=weight.device)
    if not isinstance(given, Tensor):
        raise TypeError(f"initial_state: expected a tensor, got {type(given).__name__}")
    if tuple(given.shape) != shape:
        raise ValueError(f"initial_state: expected shape {shape}, got {tuple(given.shape)}")
    check_like("initial_state", given, weight, "weights")
    return given
