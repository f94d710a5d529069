"""Gates over depth as torch layers: Highway, the gate of GTrXL, and RecurrentHighway.
Imports torch, gatelib.equations.highway, gatelib.kernels, gatelib.spec, and of gatelib.nn check,
init and recurrent.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.equations import highway as equations
from gatelib.kernels import highway as kernel
from gatelib.kernels.layers import layer as read_layer
from gatelib.nn.check import (
    LOW_PRECISION,
    check_dtype,
    check_features,
    check_flags,
    check_gate,
    check_input,
    check_lengths,
    check_number,
    check_sizes,
    check_state,
)
from gatelib.nn.impl import Impl, check_impl, may_need_gradient, takes_reference, traced
from gatelib.nn.init import gate_rows, open_
from gatelib.nn.recurrent import output_type
from gatelib.spec import Spec

__all__ = ["GTrXLGate", "Highway", "RecurrentHighway"]


class Highway(nn.Module):
    """A stack of highway layers: each mixes its input with a transform of it.

        h = activation(W_h x + b_h)
        t = sigmoid(W_t x + b_t)
        y = t * h + (1 - t) * x          (coupled)
        y = t * h + sigmoid(W_c x + b_c) * x

    Parameters, with L layers and G = 2 blocks of rows (3 where not coupled), in the order h, t, c:
    `weight` (L, G*D, D) and `bias` (L, G*D). One product a layer computes all blocks. Other
    libraries call the carry gate "the gate", or pack it first: see `gate_rows` in
    `gatelib.nn.init` before you load weights from elsewhere.

    A layer of your own takes the place of these equations as a `spec`. Its inputs are `x`, which
    the layer receives, and preactivations `a_k` = W_k x + b_k, whose blocks of rows are in the
    order of the Spec; its output is `y`.

    Args:
        features: D, of input and output alike.
        layers: L.
        activation: of the transform: "relu", "tanh", "sigmoid" or "identity".
        bias: initial bias of the transform gate, in units of its preactivation. The paper starts
            between -1 and -4, the lower the deeper: at first a layer changes about sigmoid(bias)
            of its input. A carry gate of its own starts at minus this.
        coupled: whether the carry gate is one minus the transform gate.
        spec: another layer, in the place of `activation` and `coupled`; its gates `t` and `c`,
            if any, start as above.
        impl: "reference" is the plain loop under autograd, which saves about 4 values a unit and
            layer. "fused" is one operator that saves 2, x and the values of the Spec's first
            preactivation, and computes the gates again in the backward pass. "auto" is fused,
            and reference where an operator can't go: in forward-mode differentiation, inside the
            transforms of torch.func but vmap, and in an ONNX export (see `gatelib.nn.impl`).
        device: where the parameters live.
        dtype: their floating-point type.

    Where parameters or autocast are of lower precision the stream from layer to layer is float32,
    and the output is rounded once. Second derivatives work through every impl.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Source: Srivastava, Greff & Schmidhuber 2015, arXiv:1505.00387, eq. 2 and 3.
    """

    memory_gates = ("c", "t")

    def __init__(
        self,
        features: int,
        layers: int = 1,
        activation: str = "relu",
        bias: float = -1.0,
        coupled: bool = True,
        *,
        spec: Spec | None = None,
        impl: Impl = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(features=features, layers=layers)
        check_flags(coupled=coupled)
        check_dtype(dtype)
        check_impl(impl)
        check_number(bias, "bias")
        self.features, self.layers, self.activation = features, layers, activation
        self.initial_bias, self.coupled, self.impl = float(bias), coupled, impl
        self.spec = _spec_of(spec, activation, coupled)
        self.layer = read_layer(self.spec)
        rows = len(self.layer.blocks) * features
        options = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(layers, rows, features, **options))
        self.bias = nn.Parameter(torch.empty(layers, rows, **options))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights and transform biases from U(-1/sqrt(D), 1/sqrt(D)); gate biases as asked."""
        bound = 1 / math.sqrt(self.features)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)
        for gate, value in (("t", self.initial_bias), ("c", -self.initial_bias)):
            if gate in self.layer.blocks:
                open_(self, gate, value)

    def gate_biases(self, gate: str) -> list[tuple[Tensor, ...]]:
        """Views of the bias of gate "t", or "c", layer by layer: see `gatelib.nn.init`."""
        return _gate_biases(self, gate, self.layer.blocks)

    def forward(self, input: Tensor) -> Tensor:
        """Pass (..., D) through all layers; the result has the same shape.

        Raises:
            TypeError: the input is no tensor or of another dtype than the parameters.
            ValueError: its features or device don't fit.
        """
        node = traced(self, input)
        if node is not None:
            return node  # type: ignore[return-value]
        check_features("input", input, self.features, self.weight)
        dtype, result = _stream_type(self.weight), output_type(input)
        x = input.reshape(-1, self.features).to(dtype)
        given = x, self.weight, self.bias
        if takes_reference(self.impl, given):
            y = kernel.plain(self.layer, *given)
        else:
            wide = x.contiguous(), self.weight.to(dtype), self.bias.to(dtype)
            y = kernel.fused(self.layer, *wide, may_need_gradient(given))
        return y.reshape(input.shape).to(result)

    def values(self, input: Tensor) -> dict[str, Tensor]:
        """What every layer does, layer by layer: to look at, differentiable.

        Returns:
            `x` (what the layer received), `h`, `t`, `c` and `y`, each (L, ..., D); for a Spec of
            your own, `x` and each of its values.
        """
        check_features("input", input, self.features, self.weight)
        x, exposed, found = input, self.spec.exposed, []
        for weight, bias in zip(self.weight, self.bias, strict=True):
            given = self.layer.parts(F.linear(x, weight, bias)) | {"x": x}
            values = {"x": x} | exposed.evaluate(given, "torch")
            y = values.pop("y")
            if "t" in values and "c" not in values:
                values["c"] = 1 - values["t"]
            found.append(values | {"y": y})
            x = y
        return {name: torch.stack([layer[name] for layer in found]) for name in found[0]}

    def extra_repr(self) -> str:
        """The arguments."""
        kind = f"activation={self.activation!r}", f"coupled={self.coupled}"
        if self.spec != equations.layer(self.activation, self.coupled):
            kind = f"spec={self.spec.name}", ""
        text = [str(self.features), f"layers={self.layers}", kind[0]]
        text += [f"bias={self.initial_bias:g}", kind[1], f"impl={self.impl!r}"]
        return ", ".join(filter(None, text))


class GTrXLGate(nn.Module):
    """The gate of GRU type that takes the place of `x + y` around a sublayer.

        r = sigmoid(W_r y + U_r x)
        z = sigmoid(W_z y + U_z x - b)
        h = tanh(W_h y + U_h (r * x))
        g = (1 - z) * x + z * h

    x is the residual stream, y the sublayer's output: a GRU over depth, with the stream as its
    state. Parameters: `weight_y` and `weight_x` (3*D, D), blocks of rows in the order r, z, h, and
    `bias` (D,), which is learned.

    Args:
        features: D.
        bias: where b starts. At 2 a gate starts at about sigmoid(-2) = 0.12, near the identity.
        device: where the parameters live.
        dtype: their floating-point type.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Source: Parisotto et al. 2019, arXiv:1910.06764, gating of GRU type; the paper starts b above 0.
    """

    def __init__(
        self,
        features: int,
        bias: float = 2.0,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(features=features)
        check_dtype(dtype)
        check_number(bias, "bias")
        self.features, self.initial_bias = features, float(bias)
        options = {"device": device, "dtype": dtype}
        self.weight_y = nn.Parameter(torch.empty(3 * features, features, **options))
        self.weight_x = nn.Parameter(torch.empty(3 * features, features, **options))
        self.bias = nn.Parameter(torch.empty(features, **options))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights from U(-1/sqrt(D), 1/sqrt(D)); the bias as asked."""
        bound = 1 / math.sqrt(self.features)
        nn.init.uniform_(self.weight_y, -bound, bound)
        nn.init.uniform_(self.weight_x, -bound, bound)
        nn.init.constant_(self.bias, self.initial_bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The gated stream (..., D), from the stream x and the sublayer's output y, (..., D) each.

        The stream comes first. Raises TypeError for a dtype, ValueError for a shape or a device
        that doesn't fit. `torch.fx` keeps the gate whole, as one node.
        """
        node = traced(self, x, y)
        if node is not None:
            return node  # type: ignore[return-value]
        check_features("x", x, self.features, self.weight_x)
        check_features("y", y, self.features, self.weight_y)
        if x.shape != y.shape:
            raise ValueError(f"y: expected x's shape {tuple(x.shape)}, got {tuple(y.shape)}")
        _, z, h = self.gates(x, y)
        return (1 - z) * x + z * h

    def gates(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """r, z and the candidate h of `forward`'s inputs, (..., D) each: to look at."""
        size = 2 * self.features
        from_y, gates = F.linear(y, self.weight_y), F.linear(x, self.weight_x[:size])
        r, z = (from_y[..., :size] + gates).chunk(2, -1)
        r, z = torch.sigmoid(r), torch.sigmoid(z - self.bias)
        h = torch.tanh(from_y[..., size:] + F.linear(r * x, self.weight_x[size:]))
        return r, z, h

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.features}, bias={self.initial_bias:g}"


class RecurrentHighway(nn.Module):
    """A recurrent net whose step from one time to the next is a stack of highway layers.

        n = tanh(W_n x [first layer only] + R_n s + b_n)
        t = sigmoid(W_t x [first layer only] + R_t s + b_t)
        s = t * n + (1 - t) * s          (coupled; else a carry gate c like t)

    At depth 1 it is `gatelib.nn.Recurrent` of the Spec RECURRENT_HIGHWAY. Parameters, with depth
    L and blocks of rows n, t, c: `weight_ih` (G*H, D), `weight_hh` (L, G*H, H), `bias` (L, G*H).

    Args:
        input_size: features D of the input.
        hidden_size: features H of the state.
        depth: L, highway layers in each time step.
        bias: initial bias of the transform gates; a carry gate of its own starts at minus this.
        coupled: whether the carry gate is one minus the transform gate.
        device: where the parameters live.
        dtype: their floating-point type.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Source: Zilly et al. 2016, arXiv:1607.03474, section 4.
    """

    memory_gates = ("c", "t")
    batch_first = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        depth: int = 1,
        bias: float = -2.0,
        coupled: bool = True,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size, depth=depth)
        check_flags(coupled=coupled)
        check_dtype(dtype)
        check_number(bias, "bias")
        self.input_size, self.hidden_size, self.depth = input_size, hidden_size, depth
        self.initial_bias, self.coupled = float(bias), coupled
        rows, options = (2 if coupled else 3) * hidden_size, {"device": device, "dtype": dtype}
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size, **options))
        self.weight_hh = nn.Parameter(torch.empty(depth, rows, hidden_size, **options))
        self.bias = nn.Parameter(torch.empty(depth, rows, **options))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights and candidate biases from U(-1/sqrt(H), 1/sqrt(H)); gate biases as asked."""
        bound, size = 1 / math.sqrt(self.hidden_size), self.hidden_size
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        self.bias.data[:, size : 2 * size] = self.initial_bias
        self.bias.data[:, 2 * size :] = -self.initial_bias

    def gate_biases(self, gate: str) -> list[tuple[Tensor, ...]]:
        """Views of the bias of gate "t", or "c", layer by layer: see `gatelib.nn.init`."""
        return _gate_biases(self, gate, ("n", "t") if self.coupled else ("n", "t", "c"))

    def forward(
        self, input: Tensor, initial_state: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run over a batch of sequences.

        Args:
            input: (B, T, D).
            initial_state: (B, H), zeros if absent.
            lengths: (B,) integers from 0 to T; None where no row is padded. Past its length a
                row's output is 0, and its final state is the one at its length.

        Returns:
            output: the state after each step, (B, T, H); final_state: the last one, (B, H),
            float32 where the parameters are of lower precision. `torch.fx` keeps the layer whole.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: a shape, a device or a length doesn't fit.
        """
        node = traced(self, input, initial_state, lengths)
        if node is not None:
            return node  # type: ignore[return-value]
        check_input("input", input, (3,), self.input_size, self.weight_ih)
        s, x, mask = self._initial(input, initial_state), input, None
        if lengths is not None:
            check_lengths(lengths, x.shape[1], x.shape[0])
            steps = torch.arange(x.shape[1], device=x.device)
            mask = (steps < lengths.to(x.device)[:, None]).unsqueeze(-1)
            x = x.masked_fill(~mask, 0)
        first, outputs = F.linear(x, self.weight_ih, self.bias[0]), []
        for t in range(x.shape[1]):
            after = self._step(first[:, t], s)
            s = after if mask is None else torch.where(mask[:, t], after, s)
            outputs.append(s)
        empty = s.new_zeros(s.shape[0], 0, s.shape[1])
        y = (torch.stack(outputs, 1) if outputs else empty).to(input.dtype)
        return y if mask is None else y.masked_fill(~mask, 0), s

    def _step(self, first: Tensor, s: Tensor) -> Tensor:
        """One step of time: the micro-steps of all layers, of which the first sees the input."""
        for layer in range(self.depth):
            bias = None if layer == 0 else self.bias[layer]
            a = F.linear(s.to(first.dtype), self.weight_hh[layer], bias)
            n, t, c = self.gates(a + first if layer == 0 else a)
            s = t * n + c * s
        return s

    def gates(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Candidate n, transform gate t and carry gate c of packed preactivations (..., G*H)."""
        a_n, *a = packed.chunk(2 if self.coupled else 3, -1)
        n, t = torch.tanh(a_n), torch.sigmoid(a[0])
        return n, t, 1 - t if self.coupled else torch.sigmoid(a[1])

    def _initial(self, input: Tensor, given: Tensor | None) -> Tensor:
        shape = (input.shape[0], self.hidden_size)
        if given is None:
            return input.new_zeros(shape, dtype=_stream_type(input))
        wide = _stream_type(self.weight_hh)
        kept = getattr(given, "dtype", None) == wide  # a final state, come back
        like = self.weight_hh.to(wide) if kept else self.weight_hh
        check_state("initial_state", given, shape, like, "weights")
        return given.to(wide)

    def extra_repr(self) -> str:
        """The arguments."""
        text = f"{self.input_size}, {self.hidden_size}, depth={self.depth}"
        return f"{text}, bias={self.initial_bias:g}, coupled={self.coupled}"


def _gate_biases(
    layer: Highway | RecurrentHighway, gate: str, blocks: tuple[str, ...]
) -> list[tuple[Tensor, ...]]:
    check_gate(gate, [k for k in blocks if k not in "hn"], layer)
    return [(gate_rows(rows, gate, blocks),) for rows in layer.bias.detach()]


def _spec_of(spec: object, activation: str, coupled: bool) -> Spec:
    """The layer's Spec, checked; the paper's where there is none."""
    if spec is None:
        return equations.layer(activation, coupled)
    if not isinstance(spec, Spec):
        raise TypeError(f"spec: expected a Spec, got {type(spec).__name__}")
    if (activation, coupled) != ("relu", True):
        raise ValueError("spec: expected None where activation or coupled is given, got both")
    return spec


def _stream_type(weight: Tensor) -> torch.dtype:
    return torch.float32 if weight.dtype in LOW_PRECISION else weight.dtype
