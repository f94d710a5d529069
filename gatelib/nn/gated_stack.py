"""LSTM layers on top of each other with a gate between their memories.

Imports torch; check, convert, impl, init and recurrent of gatelib.nn.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.nn.check import (
    LOW_PRECISION,
    check_choice,
    check_dropout,
    check_dtype,
    check_flags,
    check_gate,
    check_input,
    check_lengths,
    check_sizes,
    check_state,
)
from gatelib.nn.convert import add_biases
from gatelib.nn.impl import traced
from gatelib.nn.init import gate_rows
from gatelib.nn.recurrent import output_type

__all__ = ["DepthGatedLSTM"]

Kind = Literal["gate", "static", "open", "none"]
State = dict[str, Tensor]
PEEPHOLES = ("w_i", "w_f", "w_o")
OWN = {"gate": ("w_d", "w_l"), "static": ("b_d",)}
"""The vectors of an upper layer by its kind."""


class DepthGatedLSTM(nn.Module):
    """A stack of LSTM layers in which each takes over the memory of the one below it, gated.

        d = sigmoid(W_d x + b_d + w_d * c_prev + w_l * c_below)
        c = d * c_below + f * c_prev + i * g

    x is the output of the layer below, c_below its memory after the same step; i, f, g and o are an
    LSTM's. So memory has a straight way up as it has one along time. The lowest layer is a plain
    LSTM. `kind` names the gate and what to compare it with: "gate" as above; "static",
    d = sigmoid(b_d), a gate that sees nothing; "open", d = 1, a shortcut of memories; "none",
    d = 0, which is `torch.nn.LSTM` with as many layers.

    Parameters, for layer k: `weight_ih_l{k}` (G*H, D), blocks of rows i, f, g, o, and d in an upper
    layer of kind "gate"; `weight_hh_l{k}` (4*H, H), as d doesn't see h; `bias_ih_l{k}` (G*H,);
    `w_d_l{k}`, `w_l_l{k}`, `b_d_l{k}` and peepholes `w_i_l{k}`, `w_f_l{k}`, `w_o_l{k}` (H,). A
    checkpoint of torch's LSTM loads into the kinds "none" and "open", its two biases summed.

    Args:
        input_size: features D of the input.
        hidden_size: features H of all layers.
        num_layers: how many there are.
        bias: whether the preactivations have a bias; a static gate keeps its own.
        kind: what lets the memory below in.
        peephole: whether i, f and o see the memory of their own layer, as in both papers.
        dropout: probability of dropping a feature of the input of each layer but the lowest, in
            training, anew at each step; never of a memory.
        device: where the parameters live.
        dtype: their floating-point type.

    Functions of `gatelib.nn.init` set how a gate starts: `init.open_(layer, "d", -2.0)`. States
    are float32 where parameters or autocast are of lower precision.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Source: Yao et al. 2015, arXiv:1508.03790 ("depth gate"); Zhang et al. 2016, arXiv:1510.08983
    ("carry gate", in a "highway LSTM"). Both have this gate, and an author in common. They differ
    around it: Yao et al. may tie the lowest layer to the input too, through a matrix of its own;
    Zhang et al. have a projection behind each layer's output, and train with dropout. Programs
    differ more: one well-known highway LSTM gives the gate full matrices for both memories; and in
    other papers and programs "highway LSTM" is a gate between a layer's output and its input.
    """

    memory_gates = ("f", "i")
    batch_first = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 2,
        bias: bool = True,
        *,
        kind: Kind = "gate",
        peephole: bool = False,
        dropout: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        check_flags(bias=bias, peephole=peephole)
        check_choice("kind", kind, get_args(Kind))
        check_dropout(dropout)
        check_dtype(dtype)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.kind, self.peephole, self.dropout = bias, kind, peephole, float(dropout)
        for k in range(num_layers):
            for name, shape in self._shapes(k).items():
                made = torch.empty(shape, device=device, dtype=dtype)
                self.register_parameter(f"{name}_l{k}", nn.Parameter(made))
        self.reset_parameters()

    def _gates(self, layer: int) -> str:
        """The blocks of rows that read a layer's input."""
        return "ifgod" if layer and self.kind == "gate" else "ifgo"

    def _vectors(self, layer: int) -> tuple[str, ...]:
        own = OWN.get(self.kind, ()) if layer else ()
        return (*own, *(PEEPHOLES if self.peephole else ()))

    def _shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        hidden, rows = self.hidden_size, len(self._gates(layer)) * self.hidden_size
        features = hidden if layer else self.input_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, features)}
        shapes["weight_hh"] = (4 * hidden, hidden)
        if self.bias:
            shapes["bias_ih"] = (rows,)
        return shapes | dict.fromkeys(self._vectors(layer), (hidden,))

    def reset_parameters(self) -> None:
        """Draw all from U(-1/sqrt(H), 1/sqrt(H)), as torch does; a static gate starts half open."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters():
            nn.init.uniform_(parameter, -bound, bound)
            if name.startswith("b_d"):
                nn.init.zeros_(parameter)

    def gate_biases(self, gate: str) -> list[tuple[Tensor, ...]]:
        """Views of the bias of a gate, layer by layer; "d" is in the upper layers alone.

        Raises ValueError where the layer has no such gate, or no biases.
        """
        has_depth = self.num_layers > 1 and self.kind in OWN
        check_gate(gate, ("i", "f", "g", "o", "d") if has_depth else ("i", "f", "g", "o"), self)
        layers = range(1 if gate == "d" else 0, self.num_layers)
        if gate == "d" and self.kind == "static":
            return [(getattr(self, f"b_d_l{k}").detach(),) for k in layers]
        if not self.bias:
            raise ValueError("bias: expected a layer with biases, got bias=False")
        biases = [(getattr(self, f"bias_ih_l{k}").detach(), self._gates(k)) for k in layers]
        return [(gate_rows(packed, gate, order),) for packed, order in biases]

    def forward(
        self,
        input: Tensor,
        initial_state: Mapping[str, Tensor] | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Run all layers over a batch of sequences.

        Args:
            input: (B, T, D).
            initial_state: {"h", "c"}, (num_layers, B, H) each, as the final state is; None for
                zeros.
            lengths: (B,) integers from 0 to T. Past its length a row's output is 0, and its final
                state is the one at its length.

        Returns:
            output: h of the last layer at each step, (B, T, H).
            final_state: {"h", "c"}, (num_layers, B, H) each.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: a shape, a device or a length doesn't fit, or a state is missing or unknown.
        """
        node = traced(self, input, initial_state, lengths)
        if node is not None:
            return node  # type: ignore[return-value]
        output, layers = self._run(input, initial_state, lengths)
        final = {name: torch.stack([last[name] for _, last in layers]) for name in "hc"}
        return output, final

    def values(
        self,
        input: Tensor,
        initial_state: Mapping[str, Tensor] | None = None,
        lengths: Tensor | None = None,
    ) -> list[State]:
        """For each layer i, f, g, o, c, h and, in the upper ones, d: (B, T, H) each, to look at.

        Beyond a sequence's length, nan. Arguments and errors are those of `forward`.
        """
        _, layers = self._run(input, initial_state, lengths)
        return [named for named, _ in layers]

    def _run(
        self, input: Tensor, state: Mapping[str, Tensor] | None, lengths: Tensor | None
    ) -> tuple[Tensor, list[tuple[State, State]]]:
        """The output, and of each layer its values at all steps and its final state."""
        check_input("input", input, (3,), self.input_size, self.weight_ih_l0)  # type: ignore[arg-type]
        states, mask = self._initial(state, input), None
        if lengths is not None:
            check_lengths(lengths, input.size(1), input.size(0))
            steps = torch.arange(input.size(1), device=input.device)
            mask = (steps < lengths.to(input.device)[:, None]).unsqueeze(-1)
            input = input.masked_fill(~mask, 0)
        x, below, found = input, None, []
        for k in range(self.num_layers):
            if k and self.dropout > 0:
                x = F.dropout(x, self.dropout, self.training)
            first = {name: value[k] for name, value in states.items()}
            named, last = self._layer(k, x, first, below, mask)
            x, below = named["h"], None if self.kind == "none" else named["c"]
            x = (x if mask is None else x.masked_fill(~mask, 0)).to(output_type(input))
            if mask is not None:
                named = {n: v.masked_fill(~mask, torch.nan) for n, v in named.items()}
            found.append((named, last))
        return x, found

    def _layer(
        self, layer: int, x: Tensor, state: State, below: Tensor | None, mask: Tensor | None
    ) -> tuple[State, State]:
        """One layer over all steps: its values (B, T, H), and its final state."""
        own = {name: getattr(self, f"{name}_l{layer}", None) for name in self._shapes(layer)}
        from_x = F.linear(x, own["weight_ih"], own.get("bias_ih"))  # type: ignore[arg-type]
        steps = []
        for t in range(x.size(1)):
            under = None if below is None else below[:, t]
            made = self._step(own, from_x[:, t], state, under)
            if mask is not None:
                kept = {n: torch.where(mask[:, t], made[n], state[n]) for n in "hc"}
                made |= kept
            state = {n: made[n] for n in "hc"}
            steps.append(made)
        if not steps:
            empty = state["h"][:, None][:, :0]
            return dict.fromkeys("ifgohc", empty), state
        return {n: torch.stack([step[n] for step in steps], 1) for n in steps[0]}, state

    def _step(
        self, own: Mapping[str, Any], from_x: Tensor, state: State, below: Tensor | None
    ) -> State:
        """One step of one layer, in the type of its state."""
        h, c_prev = state["h"], state["c"]
        size = 4 * self.hidden_size
        from_h = F.linear(h.to(from_x.dtype), own["weight_hh"])
        a = (from_x[:, :size] + from_h).to(c_prev.dtype)
        a_i, a_f, a_g, a_o = a.chunk(4, -1)
        if self.peephole:
            a_i, a_f = a_i + own["w_i"] * c_prev, a_f + own["w_f"] * c_prev
        i, f, g = torch.sigmoid(a_i), torch.sigmoid(a_f), torch.tanh(a_g)
        made = {"i": i, "f": f, "g": g}
        c = f * c_prev + i * g
        if below is not None:
            d = self._depth(own, from_x[:, size:], c_prev, below)
            made["d"] = d
            c = c + d * below
        o = torch.sigmoid(a_o + own["w_o"] * c if self.peephole else a_o)
        return made | {"o": o, "c": c, "h": o * torch.tanh(c)}

    def _depth(self, own: Mapping[str, Any], a_d: Tensor, c_prev: Tensor, below: Tensor) -> Tensor:
        """How much of the memory below is let in, (B, H)."""
        if self.kind == "gate":
            a = a_d.to(c_prev.dtype) + own["w_d"] * c_prev + own["w_l"] * below
            return torch.sigmoid(a)
        if self.kind == "static":
            return torch.sigmoid(own["b_d"].to(c_prev.dtype)).expand_as(below)
        return torch.ones_like(below)

    def _initial(self, given: Mapping[str, Tensor] | None, input: Tensor) -> State:
        """The states before the first step, (num_layers, B, H) each."""
        dtype = torch.float32 if input.dtype in LOW_PRECISION else input.dtype
        shape = (self.num_layers, input.size(0), self.hidden_size)
        if given is None:
            return dict.fromkeys("hc", input.new_zeros(shape, dtype=dtype))
        if not isinstance(given, Mapping):
            raise TypeError(f"initial_state: expected a mapping, got {type(given).__name__}")
        if set(given) != {"h", "c"}:
            raise ValueError(f"initial_state: expected 'h' and 'c', got {sorted(given)}")
        for name in "hc":
            wide = getattr(given[name], "dtype", None) == dtype  # a final state, come back
            like = input.to(dtype) if wide else input
            check_state(f"initial_state[{name!r}]", given[name], shape, like, "input")
        return {name: given[name].to(dtype) for name in "hc"}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, *told: Any
    ) -> None:
        """A checkpoint of torch's LSTM fits: its two biases become one."""
        told[-1].extend(add_biases(state_dict, prefix, self._parameters, "ifgo"))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *told)

    def extra_repr(self) -> str:
        """The arguments."""
        text = f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"
        return f"{text}, kind={self.kind!r}, peephole={self.peephole}, dropout={self.dropout:g}"
