"""Torch's recurrent kernels, and one layer of each as an operator that torch.compile takes whole.
Imports torch.
Must not import gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

torch.compile breaks the graph at torch.nn.LSTM, and its tracer can't follow the CPU kernel in
training. An opaque operator with a declared backward solves both, for any sequence length.
The kernel's workspace isn't visible from Python, so the backward runs the forward once more.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["CELLS", "LAYERS", "torch_layer"]

LAYERS: dict[str, Callable[..., Any]] = {
    "lstm": torch._VF.lstm,
    "gru": torch._VF.gru,
    "rnn_tanh": torch._VF.rnn_tanh,
    "rnn_relu": torch._VF.rnn_relu,
}
"""Torch's kernel for a stack of layers, by name. An LSTM's takes its two states as a pair."""

CELLS: dict[str, Callable[..., Any]] = {
    "lstm": torch._VF.lstm_cell,
    "gru": torch._VF.gru_cell,
    "rnn_tanh": torch._VF.rnn_tanh_cell,
    "rnn_relu": torch._VF.rnn_relu_cell,
}
"""Torch's kernel for one step, by name."""


def torch_layer(
    kernel: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer, in one or two directions, by torch's kernel, as a single node of the graph.

    Args:
        kernel: one of LAYERS.
        x: (T, B, D), time first; or (rows, D), the data of a packed batch.
        batch_sizes: None; or (T,), the sequences still running at each step of a packed batch.
        states: (directions, B, P), the initial output, P the projection or hidden size; for an
            LSTM also (directions, B, H), the initial cell state.
        weights: torch's list for the layer: W_ih, W_hh, then b_ih, b_hh where `bias`, then
            W_hr where there is a projection; the reverse direction's follow.
        bias: whether `weights` holds biases.

    Returns:
        y, as `x` with directions * P features; the final states, shaped as `states`.

    Raises:
        NotImplementedError: when the backward pass is asked for a graph of its own.
    """
    operator = getattr(torch.ops.gatelib, kernel)
    y, *final = operator(x, batch_sizes, *states, list(weights), bias)
    return y, tuple(final)


class _Given(NamedTuple):
    """What an operator was called with. `states` are one tensor or two."""

    x: Tensor
    batch_sizes: Tensor | None
    states: list[Tensor]
    weights: list[Tensor]
    bias: bool

    @classmethod
    def of(cls, arguments: Sequence[Any]) -> "_Given":
        x, batch_sizes, *states, weights, bias = arguments
        return cls(x, batch_sizes, states, weights, bias)

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors that have a gradient."""
        return [self.x, *self.states, *self.weights]


class _Operator:
    """One of LAYERS on one layer without dropout, with its shapes and its backward."""

    def __init__(self, kernel: str, states: Sequence[str]) -> None:
        self.kernel, self.name, self.count = LAYERS[kernel], f"gatelib::{kernel}", len(states)
        initial = ", ".join(f"Tensor {name}_0" for name in states)
        arguments = f"Tensor x, Tensor? batch_sizes, {initial}, Tensor[] weights, bool bias"
        results = ", ".join(["Tensor"] * (1 + self.count))
        gradients = ", ".join(f"Tensor d_{name}" for name in ("y", *states))
        self._define("", f"({arguments}) -> ({results})", self.forward, self.shapes)
        signature = f"({gradients}, {arguments}) -> Tensor[]"
        self._define("_backward", signature, self.backward, self.backward_shapes)
        torch.library.register_autograd(self.name, self.differentiate, setup_context=self.keep)

    def _define(self, suffix: str, signature: str, run: Any, shapes: Any) -> None:
        torch.library.define(self.name + suffix, signature)
        torch.library.impl(self.name + suffix, "CompositeExplicitAutograd", run)
        torch.library.register_fake(self.name + suffix, shapes)

    def _run(self, given: _Given, train: bool) -> tuple[Tensor, ...]:
        hx = given.states[0] if self.count == 1 else tuple(given.states)
        both = given.states[0].size(0) == 2
        options = (given.weights, given.bias, 1, 0.0, train, both)
        if given.batch_sizes is None:
            found: tuple[Tensor, ...] = self.kernel(given.x, hx, *options, False)
        else:
            found = self.kernel(given.x, given.batch_sizes, hx, *options)
        return found

    def forward(self, *arguments: Any) -> tuple[Tensor, ...]:
        with torch.no_grad():
            found = self._run(_Given.of(arguments), train=False)
        return tuple(value.contiguous() for value in found)

    def shapes(self, *arguments: Any) -> tuple[Tensor, ...]:
        x, _, states, *_ = _Given.of(arguments)
        y = x.new_empty(*x.shape[:-1], states[0].size(0) * states[0].size(2))
        return y, *(state.new_empty(state.shape) for state in states)

    def _split(self, arguments: Sequence[Any]) -> tuple[tuple[Tensor, ...], _Given]:
        """The backward operator's arguments: gradients of the results, then the forward's."""
        return tuple(arguments[: 1 + self.count]), _Given.of(arguments[1 + self.count :])

    def backward(self, *arguments: Any) -> list[Tensor]:
        gradients, given = self._split(arguments)
        leaves = [tensor.detach().requires_grad_() for tensor in given.leaves]
        x, states, weights = leaves[0], leaves[1 : 1 + self.count], leaves[1 + self.count :]
        with torch.enable_grad():
            found = self._run(given._replace(x=x, states=states, weights=weights), train=True)
        return [g.contiguous() for g in torch.autograd.grad(found, leaves, gradients)]

    def backward_shapes(self, *arguments: Any) -> list[Tensor]:
        _, given = self._split(arguments)
        return [tensor.new_empty(tensor.shape) for tensor in given.leaves]

    def keep(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        given = _Given.of(inputs)
        ctx.bias = given.bias
        ctx.save_for_backward(given.batch_sizes, *given.leaves)

    def differentiate(self, ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                f"create_graph: the compiled kernel of {self.name} has no second derivative; "
                "use impl='reference', or don't compile the module"
            )
        batch_sizes, x, *rest = ctx.saved_tensors
        states, weights = rest[: self.count], rest[self.count :]
        operator = getattr(torch.ops.gatelib, self.name.removeprefix("gatelib::") + "_backward")
        d_x, *found = operator(*gradients, x, batch_sizes, *states, weights, ctx.bias)
        return d_x, None, *found[: self.count], found[self.count :], None


for _kernel in LAYERS:
    _Operator(_kernel, ("h", "c") if _kernel == "lstm" else ("h",))
