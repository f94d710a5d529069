"""Any recurrent cell as a layer: the peephole LSTM, CIFG, LayerNorm, a reader's own `Spec`.

Imports torch, gatelib.spec, gatelib.kernels, gatelib.nn.convert, gatelib.nn.init, gatelib.nn.check.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd.forward_ad import unpack_dual

from gatelib.kernels import recurrent as kernel
from gatelib.kernels.cell import Cell, cell
from gatelib.nn.check import (
    check_dropout,
    check_dtype,
    check_flags,
    check_input,
    check_lengths,
    check_sizes,
)
from gatelib.nn.check import check_number as check_forget_bias
from gatelib.nn.check import check_steps as check_chrono
from gatelib.nn.convert import add_biases
from gatelib.nn.init import packed_chrono_ as chrono_
from gatelib.nn.init import packed_forget_bias_ as forget_bias_
from gatelib.spec import Spec

__all__ = ["Recurrent"]

Impl = Literal["auto", "fused", "reference"]
LOW_PRECISION = (torch.bfloat16, torch.float16)


class Recurrent(nn.Module):
    """A layer, or a stack of layers, made from any cell `Spec`.

    The Spec's names say what its inputs are. `a_k` is the preactivation W_k x + U_k h + b_k of
    gate k; where the Spec also has `u_k`, `a_k` is W_k x + b_k and `u_k` is U_k h + b'_k.
    `NAME_prev` is the value that `NAME` had one step before. Every other input is a learned
    vector of size H. The state that U multiplies is `h`.

    Parameters, for layer k, with `_reverse` behind it for the reverse direction: `weight_ih_l{k}`
    (G*H, D), `weight_hh_l{k}` (G*H, H), `bias_ih_l{k}` (G*H,), where the Spec has a `u_k` also
    `bias_hh_l{k}` (G*H,), and `{name}_l{k}` (H,) for each learned vector. The G blocks of rows
    are in the order of the Spec's `a_k`, so an LSTM's and a GRU's weights are packed as torch's.

    Args:
        spec: the cell.
        input_size: features D of the input.
        hidden_size: features H of each state.
        num_layers: layers on top of each other.
        bias: whether the preactivations have a bias. Learned vectors stay.
        batch_first: whether input and output are (B, T, features) rather than (T, B, features).
        bidirectional: whether a second cell reads each sequence from its end.
        dropout: probability of dropping an output of each layer but the last, in training.
        impl: "reference" is the plain loop over time under autograd. "fused" is one operator
            with a generated backward. "auto" is fused, and reference in forward-mode
            differentiation and inside torch.func's transforms, which the operator lacks.
        forget_bias: the initial bias of the gate `f`.
        chrono: T_max of the chrono initialisation of the gates `f` and `i`, in time steps
            (Tallec & Ollivier 2018, arXiv:1804.11188).
        device: where the parameters live.
        dtype: their floating-point type.

    States are float32 where parameters or autocast are of lower precision, and float64 where the
    parameters are; final states have that type, so that a sequence may be read in pieces. The
    fused path computes everything in that type and rounds its output. Second derivatives work
    through every impl; the fused path takes the plain loop for them.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the Spec isn't a cell, or an argument is out of range.
    """

    weight_ih_l0: Tensor

    def __init__(
        self,
        spec: Spec,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        *,
        batch_first: bool = True,
        bidirectional: bool = False,
        dropout: float = 0.0,
        impl: Impl = "auto",
        forget_bias: float | None = None,
        chrono: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(spec, Spec):
            raise TypeError(f"spec: expected a Spec, got {type(spec).__name__}")
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        check_flags(bias=bias, batch_first=batch_first, bidirectional=bidirectional)
        check_dropout(dropout)
        check_impl(impl)
        self.spec, self.cell = spec, cell(spec)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.bidirectional = bias, batch_first, bidirectional
        self.dropout, self.impl = float(dropout), impl
        self.forget_bias, self.chrono = forget_bias, chrono
        _check_initialisation(self.cell, bias, forget_bias, chrono)
        self._make_parameters(device, dtype)
        self.reset_parameters()

    def _make_parameters(self, device: Any, dtype: torch.dtype | None) -> None:
        check_dtype(dtype)
        hidden, directions = self.hidden_size, 2 if self.bidirectional else 1
        rows = len(self.cell.gates) * hidden
        for layer in range(self.num_layers):
            features = self.input_size if layer == 0 else hidden * directions
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, features)}
            shapes["weight_hh"] = (rows, hidden)
            shapes |= dict.fromkeys(self._biases, (rows,))
            shapes |= dict.fromkeys(self.cell.vectors, (hidden,))
            for suffix in self._suffixes(layer):
                for name, shape in shapes.items():
                    parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(name + suffix, parameter)

    @property
    def _biases(self) -> tuple[str, ...]:
        if not self.bias:
            return ()
        return ("bias_ih", "bias_hh") if self.cell.split else ("bias_ih",)

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: 2 if self.bidirectional else 1]

    def reset_parameters(self) -> None:
        """Draw weights and biases from U(-1/sqrt(H), 1/sqrt(H)), as torch does; then the gates'.

        Learned vectors called `s_…` (gains) start at 1 and those called `b_…` (shifts) at 0. The
        forget gate's initial bias goes to the shift `b_f` where the Spec has one, otherwise to
        `bias_ih`; `bias_hh` gets 0 there, so that it counts once.
        """
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters():
            if name.startswith("s_"):
                nn.init.ones_(parameter)
            elif name.startswith("b_"):
                nn.init.zeros_(parameter)
            else:
                nn.init.uniform_(parameter, -bound, bound)
        for layer in range(self.num_layers):
            for suffix in self._suffixes(layer):
                self._initialise_gates(suffix)

    def _initialise_gates(self, suffix: str) -> None:
        if self.forget_bias is None and self.chrono is None:
            return
        order, biases = self.cell.gates, [getattr(self, b + suffix) for b in self._biases]
        packed = "b_f" not in self.cell.vectors
        has_input = ("i" in order) if packed else ("b_i" in self.cell.vectors)
        if not packed:
            order = ("f", "i") if has_input else ("f",)
            biases = [torch.cat([getattr(self, f"b_{k}{suffix}").detach() for k in order])]
        if self.forget_bias is not None:
            forget_bias_(biases, self.forget_bias, order)
        elif self.chrono is not None:
            chrono_(biases, self.chrono, order, input_gate="i" if has_input else None)
        if not packed:
            for k, value in zip(order, biases[0].chunk(len(order)), strict=True):
                getattr(self, f"b_{k}{suffix}").data.copy_(value)

    def forward(
        self,
        input: Tensor,
        initial_state: Mapping[str, Tensor] | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the cell over a batch of sequences.

        Args:
            input: (B, T, D), or (T, B, D) without `batch_first`.
            initial_state: {name: (num_layers * directions, B, H)} for each state (`h` and the
                carries), as the final state is; None for zeros.
            lengths: (B,) integers from 0 to T. Sequence b is `input[b, :lengths[b]]`; past it
                the output is 0, and its final state is the one at its length.

        Returns:
            output: `h` of the last layer at each step, (B, T, directions * H).
            final_state: {name: (num_layers * directions, B, H)} for each state.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: a shape or device doesn't fit, a state is missing or unknown, or a length
                is below 0 or above T. (Inside torch.compile and torch.export, lengths can't be
                looked at.)
        """
        check_input("input", input, (3,), self.input_size, self.weight_ih_l0)
        x = input.transpose(0, 1) if self.batch_first else input
        steps, batch, _ = x.shape
        states = self._initial_states(initial_state, batch)
        mask = None
        if lengths is not None:
            check_lengths(lengths, steps, batch)
            lengths = lengths.to(input.device)
            mask = (torch.arange(steps, device=x.device)[:, None] < lengths).unsqueeze(-1)
            x = x.masked_fill(~mask, 0)
        final: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0:
                x = F.dropout(x, self.dropout, self.training)
            x = self._layer(layer, x, states, mask, lengths, final)
        output = x.transpose(0, 1) if self.batch_first else x
        stacked = [torch.stack(values) for values in zip(*final, strict=True)]
        return output, dict(zip(self.cell.states, stacked, strict=True))

    def _layer(
        self,
        layer: int,
        x: Tensor,
        states: dict[str, Tensor],
        mask: Tensor | None,
        lengths: Tensor | None,
        final: list[list[Tensor]],
    ) -> Tensor:
        """One layer in all its directions; appends each direction's final states to `final`."""
        outputs = []
        for direction, suffix in enumerate(self._suffixes(layer)):
            initial = [values[len(final)] for values in states.values()]
            turned = _reversed(x, lengths) if direction == 1 else x
            y, last = self._run(turned, suffix, initial, mask)
            y = y if mask is None else y.masked_fill(~mask, 0)
            outputs.append(_reversed(y, lengths) if direction == 1 else y)
            final.append(last)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)

    def _run(
        self, x: Tensor, suffix: str, initial: list[Tensor], mask: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """One direction of one layer."""
        weights = self._weights(suffix)
        vectors = [getattr(self, name + suffix) for name in self.cell.vectors]
        state_type, rounded = initial[0].dtype, output_type(x)
        vectors = [v.to(state_type) for v in vectors]
        if takes_reference(self.impl, [x, *weights, *vectors, *initial]):
            y, last = kernel.unrolled(self.cell, x, weights, vectors, initial, mask)
        else:
            w, u, b_ih, b_hh = (None if v is None else v.to(state_type) for v in weights)
            assert w is not None and u is not None
            x = x.to(state_type)
            y, last = kernel.fused(self.cell, x, (w, u, b_ih, b_hh), vectors, initial, mask)
        return y.to(rounded), last

    def _weights(self, suffix: str) -> kernel.Weights:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        w, u, b_ih, b_hh = (getattr(self, name + suffix, None) for name in names)
        assert w is not None and u is not None
        return w, u, b_ih, b_hh

    def _initial_states(self, given: Mapping[str, Tensor] | None, batch: int) -> dict[str, Tensor]:
        """The initial state by name, checked, in the type of the states."""
        weight = self.weight_ih_l0
        dtype = torch.float32 if weight.dtype in LOW_PRECISION else weight.dtype
        directions = 2 if self.bidirectional else 1
        shape = (self.num_layers * directions, batch, self.hidden_size)
        if given is None:
            zeros = torch.zeros(shape, dtype=dtype, device=weight.device)
            return dict.fromkeys(self.cell.states, zeros)
        _check_states(given, self.cell.states, shape, weight, dtype)
        return {name: given[name].to(dtype) for name in self.cell.states}

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """A checkpoint of torch's LSTM or RNN fits, or is refused: its two biases become one."""
        error_msgs += add_biases(state_dict, prefix, self._parameters, self.cell.gates)
        told = local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        super()._load_from_state_dict(state_dict, prefix, *told)

    def extra_repr(self) -> str:
        """The arguments that aren't at their default."""
        parts = [self.spec.name, str(self.input_size), str(self.hidden_size)]
        options = {
            "num_layers": (self.num_layers, 1),
            "bias": (self.bias, True),
            "batch_first": (self.batch_first, True),
            "bidirectional": (self.bidirectional, False),
            "dropout": (self.dropout, 0.0),
            "impl": (self.impl, "auto"),
            "forget_bias": (self.forget_bias, None),
            "chrono": (self.chrono, None),
        }
        parts += [f"{name}={value!r}" for name, (value, usual) in options.items() if value != usual]
        return ", ".join(parts)


def takes_reference(impl: Impl, tensors: Sequence[Tensor | None]) -> bool:
    """On request, or where "auto" may choose and the operator can't be differentiated."""
    if impl == "reference" or torch.compiler.is_compiling():
        return impl == "reference"
    transformed = peek_interpreter_stack() is not None
    if impl == "fused" and transformed:
        raise ValueError(
            "impl: expected 'auto' or 'reference' inside torch.func's transforms (grad, vmap, "
            "jvp), got 'fused', whose operator they don't know"
        )
    if impl == "fused":
        return False
    given = (t for t in tensors if t is not None)
    return transformed or any(unpack_dual(t).tangent is not None for t in given)  # type: ignore[no-untyped-call]


def output_type(x: Tensor) -> torch.dtype:
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def _reversed(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Each sequence of (T, B, D) from its end; what lies past its length stays in place."""
    if lengths is None:
        return x.flip(0)
    t = torch.arange(x.shape[0], device=x.device)[:, None]
    source = torch.where(t < lengths, lengths - 1 - t, t)
    return x.gather(0, source.unsqueeze(-1).expand(x.shape))


def check_impl(impl: object) -> None:
    if impl not in ("auto", "fused", "reference"):
        raise ValueError(f"impl: expected 'auto', 'fused' or 'reference', got {impl!r}")


def _check_initialisation(
    known: Cell, bias: bool, forget_bias: float | None, chrono: int | None
) -> None:
    if forget_bias is None and chrono is None:
        return
    if forget_bias is not None and chrono is not None:
        raise ValueError("forget_bias: expected None where chrono is given, got both")
    name = "forget_bias" if forget_bias is not None else "chrono"
    if forget_bias is not None:
        check_forget_bias(forget_bias, "forget_bias")
    else:
        check_chrono(chrono, "chrono")
    if "f" not in known.gates:
        raise ValueError(f"{name}: expected a Spec with a forget gate `a_f`, got {known.spec.name}")
    if not bias and "b_f" not in known.vectors:
        raise ValueError(f"{name}: expected bias=True, as {known.spec.name} has no shift `b_f`")


def _check_states(
    given: object,
    names: tuple[str, ...],
    shape: tuple[int, ...],
    weight: Tensor,
    dtype: torch.dtype,
) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"initial_state: expected a dict of states, got {type(given).__name__}")
    if set(given) != set(names):
        raise ValueError(f"initial_state: expected the states {list(names)}, got {list(given)}")
    for name in names:
        state, what = given[name], f"initial_state[{name!r}]"
        if not isinstance(state, Tensor):
            raise TypeError(f"{what}: expected a tensor, got {type(state).__name__}")
        if tuple(state.shape) != shape:
            raise ValueError(f"{what}: expected shape {shape}, got {tuple(state.shape)}")
        if state.dtype not in (dtype, weight.dtype):
            raise TypeError(f"{what}: expected {dtype}, got {state.dtype}")
        if state.device != weight.device:
            raise ValueError(f"{what}: expected device {weight.device}, got {state.device}")
