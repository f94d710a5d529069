"""One LSTM layer as an operator that torch.compile takes whole: torch's own kernel, not unrolled.
Imports torch.
Must not import gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

torch.compile breaks the graph at torch.nn.LSTM, and its tracer can't follow the CPU kernel in
training. An opaque operator with a declared backward solves both, for any sequence length.
The kernel's workspace isn't visible from Python, so the backward runs the forward once more.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["lstm_layer"]

Triple = tuple[Tensor, Tensor, Tensor]

_ARGUMENTS = "Tensor x, Tensor? batch_sizes, Tensor h_0, Tensor c_0, Tensor[] weights, bool bias"

torch.library.define("gatelib::lstm", f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)")
torch.library.define(
    "gatelib::lstm_backward", f"(Tensor d_y, Tensor d_h, Tensor d_c, {_ARGUMENTS}) -> Tensor[]"
)


def lstm_layer(
    x: Tensor,
    batch_sizes: Tensor | None,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    bias: bool,
) -> Triple:
    """One LSTM layer, in one or two directions, by torch's kernel, as a single node of the graph.

    Args:
        x: (T, B, D), time first; or (rows, D), the data of a packed batch.
        batch_sizes: None; or (T,), the sequences still running at each step of a packed batch.
        h_0: (directions, B, P), the initial output; P is the projection or hidden size.
        c_0: (directions, B, H), the initial cell state.
        weights: torch's list for the layer: W_ih, W_hh, then b_ih, b_hh where `bias`, then
            W_hr where there is a projection; the reverse direction's follow.
        bias: whether `weights` holds biases.

    Returns:
        y, as `x` with directions * P features; h_T (directions, B, P); c_T (directions, B, H).

    Raises:
        NotImplementedError: when the backward pass is asked for a graph of its own.
    """
    y, h, c = torch.ops.gatelib.lstm(x, batch_sizes, h_0, c_0, list(weights), bias)
    return y, h, c


def _run(
    x: Tensor,
    batch_sizes: Tensor | None,
    h_0: Tensor,
    c_0: Tensor,
    weights: list[Tensor],
    bias: bool,
    train: bool,
) -> Triple:
    """Torch's kernel on one layer without dropout."""
    both = h_0.size(0) == 2
    if batch_sizes is None:
        y, h, c = torch._VF.lstm(x, (h_0, c_0), weights, bias, 1, 0.0, train, both, False)
    else:
        y, h, c = torch._VF.lstm(x, batch_sizes, (h_0, c_0), weights, bias, 1, 0.0, train, both)
    return y, h, c


@torch.library.impl("gatelib::lstm", "CompositeExplicitAutograd")
def _forward(
    x: Tensor,
    batch_sizes: Tensor | None,
    h_0: Tensor,
    c_0: Tensor,
    weights: list[Tensor],
    bias: bool,
) -> Triple:
    with torch.no_grad():
        y, h, c = _run(x, batch_sizes, h_0, c_0, weights, bias, train=False)
    return y.contiguous(), h.contiguous(), c.contiguous()


@torch.library.impl("gatelib::lstm_backward", "CompositeExplicitAutograd")
def _backward(
    d_y: Tensor,
    d_h: Tensor,
    d_c: Tensor,
    x: Tensor,
    batch_sizes: Tensor | None,
    h_0: Tensor,
    c_0: Tensor,
    weights: list[Tensor],
    bias: bool,
) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in (x, h_0, c_0, *weights)]
    x, h_0, c_0, *weights = leaves
    with torch.enable_grad():
        outputs = _run(x, batch_sizes, h_0, c_0, weights, bias, train=True)
    gradients = torch.autograd.grad(outputs, leaves, (d_y, d_h, d_c))
    return [gradient.contiguous() for gradient in gradients]


def _forward_shapes(
    x: Tensor,
    batch_sizes: Tensor | None,
    h_0: Tensor,
    c_0: Tensor,
    weights: list[Tensor],
    bias: bool,
) -> Triple:
    y = x.new_empty(*x.shape[:-1], h_0.size(0) * h_0.size(2))
    return y, h_0.new_empty(h_0.shape), c_0.new_empty(c_0.shape)


def _backward_shapes(
    d_y: Tensor,
    d_h: Tensor,
    d_c: Tensor,
    x: Tensor,
    batch_sizes: Tensor | None,
    h_0: Tensor,
    c_0: Tensor,
    weights: list[Tensor],
    bias: bool,
) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in (x, h_0, c_0, *weights)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, batch_sizes, h_0, c_0, weights, ctx.bias = inputs
    ctx.save_for_backward(x, batch_sizes, h_0, c_0, *weights)


def _differentiate(ctx: Any, d_y: Tensor, d_h: Tensor, d_c: Tensor) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "create_graph: the compiled LSTM kernel has no second derivative; "
            "use impl='reference', or don't compile the module"
        )
    x, batch_sizes, h_0, c_0, *weights = ctx.saved_tensors
    d_x, d_h_0, d_c_0, *d_weights = torch.ops.gatelib.lstm_backward(
        d_y, d_h, d_c, x, batch_sizes, h_0, c_0, weights, ctx.bias
    )
    return d_x, None, d_h_0, d_c_0, d_weights, None


torch.library.register_fake("gatelib::lstm", _forward_shapes)
torch.library.register_fake("gatelib::lstm_backward", _backward_shapes)
torch.library.register_autograd("gatelib::lstm", _differentiate, setup_context=_keep)
