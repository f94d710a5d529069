"""Torch's recurrent kernels, and one layer of each as an operator that torch.compile takes whole.
Imports torch.
Must not import gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

torch.compile breaks the graph at torch.nn.LSTM, and its tracer can't follow the CPU kernel in
training. An opaque operator with a declared backward solves both, for any sequence length.
The kernel's workspace isn't visible from Python, so the backward runs the forward once more, under
autograd. `gatelib.kernels.operator` can't declare it: inside its operators autograd is shut off,
and torch.func's vjp doesn't know this kernel's workspace on a CPU.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["CELLS", "LAYERS", "result_type", "torch_layer"]

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
    autocast: torch.dtype | None = None,
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
        autocast: the type in which autocast computes products; None where it is off. A graph that
            was compiled under autocast runs without it, so the kernel is told.

    Returns:
        y, as `x` with directions * P features; the final states, shaped as `states`.

    Raises:
        NotImplementedError: when the backward pass is asked for a graph of its own.
    """
    operator = getattr(torch.ops.gatelib, kernel)
    y, *final = operator(x, batch_sizes, *states, list(weights), bias, autocast)
    return y, tuple(final)


def result_type(kernel: str, h: Tensor, products: torch.dtype) -> torch.dtype:
    """The type of a kernel's results, where its products have the type `products`.

    Under autocast it is that type, but torch's GRU on a CPU keeps the type of its state.
    """
    keeps = kernel == "gru" and h.device.type == "cpu"
    return torch.promote_types(h.dtype, products) if keeps else products


class _Given(NamedTuple):
    """What an operator was called with."""

    x: Tensor
    batch_sizes: Tensor | None
    states: list[Tensor]
    weights: list[Tensor]
    bias: bool
    autocast: torch.dtype | None

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors that have a gradient."""
        return [self.x, *self.states, *self.weights]


class _Operator:
    """One of LAYERS on one layer without dropout, with its shapes and its backward."""

    def __init__(self, kernel: str, states: Sequence[str]) -> None:
        self.kernel, self.name, self.count = kernel, f"gatelib::{kernel}", len(states)
        initial = ", ".join(f"Tensor {name}_0" for name in states)
        arguments = f"Tensor x, Tensor? batch_sizes, {initial}, Tensor[] weights, bool bias"
        arguments += ", ScalarType? autocast"
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

    def _given(self, x: Tensor, batch_sizes: Tensor | None, *rest: Any) -> _Given:
        return _Given(x, batch_sizes, list(rest[: self.count]), *rest[self.count :])

    def _run(self, given: _Given, train: bool) -> tuple[Tensor, ...]:
        kernel, device = LAYERS[self.kernel], given.x.device.type
        hx = given.states[0] if self.count == 1 else tuple(given.states)
        both = given.states[0].size(0) == 2
        options = (given.weights, given.bias, 1, 0.0, train, both)
        enabled = given.autocast is not None  # a cached cast would have the history of another call
        with torch.autocast(device, given.autocast, enabled, cache_enabled=False):
            if given.batch_sizes is None:
                found: tuple[Tensor, ...] = kernel(given.x, hx, *options, False)
            else:
                found = kernel(given.x, given.batch_sizes, hx, *options)
        return found

    def forward(self, *arguments: Any) -> tuple[Tensor, ...]:
        with torch.no_grad():
            found = self._run(self._given(*arguments), train=False)
        return tuple(value.contiguous() for value in found)

    def shapes(self, *arguments: Any) -> tuple[Tensor, ...]:
        given = self._given(*arguments)
        x, h = given.x, given.states[0]
        dtype = result_type(self.kernel, h, given.autocast or x.dtype)
        y = x.new_empty(*x.shape[:-1], h.size(0) * h.size(2), dtype=dtype)
        return y, *(state.new_empty(state.shape, dtype=dtype) for state in given.states)

    def _split(self, arguments: Sequence[Any]) -> tuple[tuple[Tensor, ...], _Given]:
        """The backward operator's arguments: gradients of the results, then the forward's."""
        return tuple(arguments[: 1 + self.count]), self._given(*arguments[1 + self.count :])

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
        given = self._given(*inputs)
        ctx.options = (given.bias, given.autocast)
        ctx.save_for_backward(given.batch_sizes, *given.leaves)

    def differentiate(self, ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                f"create_graph: the compiled kernel of {self.name} has no second derivative; "
                "use impl='reference', or don't compile the module"
            )
        batch_sizes, x, *rest = ctx.saved_tensors
        states, weights = rest[: self.count], rest[self.count :]
        operator = getattr(torch.ops.gatelib, f"{self.kernel}_backward")
        d_x, *found = operator(*gradients, x, batch_sizes, *states, weights, *ctx.options)
        return d_x, None, *found[: self.count], found[self.count :], None, None


for _kernel in LAYERS:
    _Operator(_kernel, ("h", "c") if _kernel == "lstm" else ("h",))
