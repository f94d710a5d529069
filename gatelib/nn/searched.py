"""Cells that a search found, as torch layers: the mutated units, and cells of highway nodes.
Imports torch, gatelib.equations.searched; check, drop_in and rnn of gatelib.nn.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.equations.searched import DARTS_SECOND, MUTATED, Nodes, check_nodes
from gatelib.nn.check import check_choice, check_flags, check_sizes
from gatelib.nn.drop_in import States
from gatelib.nn.rnn import _Loop

__all__ = ["HighwayNodes", "Mutated"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": nn.Identity(),
}
_OF_X = {"mut1": "zr", "mut2": "zn"}
"""The blocks of rows of W, where not all of z, r and n have one."""
_OF_H = {"mut1": "rn", "mut1_code": "rn"}
"""And of U."""


class Mutated(_Loop):
    """MUT1, MUT2 or MUT3, as printed or as public code has it.

        z = sigmoid(W_z x + b_z)                    MUT1
        z = sigmoid(W_z x + U_z h + b_z)            MUT2
        z = sigmoid(W_z x + U_z tanh(h) + b_z)      MUT3
        r = sigmoid(W_r x + U_r h + b_r)            MUT1, MUT3
        r = sigmoid(x + U_r h + b_r)                MUT2
        n = tanh(U_n (r * h) + tanh(x) + b_n)       MUT1
        n = tanh(U_n (r * h) + W_n x + b_n)         MUT2, MUT3
        h = z * n + (1 - z) * h

    Public code has W_n x + c_n in the place of MUT1's x ("mut1_code"), and W_r x in the place of
    MUT2's ("mut2_code"), which then is the GRU of Chung et al. 2014. The printed forms add the
    input to the state: D = H.

    Parameters, drawn from U(-1/sqrt(H), 1/sqrt(H)), with one block of H rows for each of z, r and n
    that has a product: `weight_x` (·, D), `weight_hh` (·, H), and `bias` (3·H,) of all three;
    "mut1_code" has `bias_x` (H,), which is c_n, too. The output is h (B, T, H), the state its last,
    (B, H).

    Args:
        input_size: features D of the input.
        hidden_size: hidden units H.
        variant: "mut1", "mut2" or "mut3" as printed; "mut1_code" or "mut2_code".
        batch_first: whether input and output are (B, T, features) rather than (T, B, features).
        device: where the parameters live.
        dtype: their floating-point type.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or D isn't H in a printed form that needs it.

    Source: Jozefowicz, Zaremba & Sutskever 2015, "An empirical exploration of recurrent network
    architectures", section 3.2.
    """

    weight_x: Tensor
    weight_hh: Tensor
    bias: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        variant: str = "mut1",
        *,
        batch_first: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        check_flags(batch_first=batch_first)
        check_choice("variant", variant, MUTATED)
        if variant in ("mut1", "mut2") and input_size != hidden_size:
            raise ValueError(
                f"input_size: expected {hidden_size}, as many as hidden_size, where {variant} adds "
                f"the input to the state; got {input_size}"
            )
        self.input_size, self.hidden_size, self.variant = input_size, hidden_size, variant
        self.batch_first = batch_first
        self.of_x, self.of_h = _OF_X.get(variant, "zrn"), _OF_H.get(variant, "zrn")
        shapes: dict[str, tuple[int, ...]] = {
            "weight_x": (len(self.of_x) * hidden_size, input_size),
            "weight_hh": (len(self.of_h) * hidden_size, hidden_size),
            "bias": (3 * hidden_size,),
        }
        shapes |= {"bias_x": (hidden_size,)} if variant == "mut1_code" else {}
        self._make(shapes, device, dtype)

    @property
    def weight_ih(self) -> Tensor:  # type: ignore[override]
        """(3·H, D), what z, r and n see of the input: their products, and the input itself."""
        blocks = dict(zip(self.of_x, self.weight_x.chunk(len(self.of_x)), strict=True))
        like, size = self.weight_x, self.hidden_size
        itself = torch.eye(size, self.input_size, device=like.device, dtype=like.dtype)
        return torch.cat([blocks.get(k, itself) for k in "zrn"])

    @property
    def bias_ih(self) -> Tensor:
        """(3·H,), what is added to that; MUT1's b_n is added to U_n (r * h) alone."""
        if self.squashed_alone:
            b, size = self.bias, 2 * self.hidden_size
            inside = getattr(self, "bias_x", torch.zeros_like(b[size:]))
            return torch.cat([b[:size], inside])
        return self.bias

    _bias = "bias_ih"

    @property
    def squashed_alone(self) -> bool:
        """Whether the candidate squashes what it sees of the input on its own, as MUT1's."""
        return self.variant.startswith("mut1")

    def _state_shape(self, batch: int) -> tuple[int, ...]:
        return batch, self.hidden_size

    def _matrix(self) -> Tensor:
        return self.weight_hh

    def _step(self, from_input: Tensor, state: States, matrix: Tensor) -> tuple[Tensor, States]:
        h = state[0].to(from_input.dtype)
        z, r = self.gates(from_input, h)
        x_n = from_input[..., 2 * self.hidden_size :]
        if self.squashed_alone:
            x_n = torch.tanh(x_n) + self.bias[2 * self.hidden_size :]
        n = torch.tanh(F.linear(r * h, matrix[-self.hidden_size :]) + x_n)
        new = z * n + (1 - z) * state[0]
        return new.to(from_input.dtype), (new,)

    def gates(self, from_input: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """z and r, (..., H) each, of what `weight_ih` and `bias_ih` make of the input, (..., 3·H),
        and of the state before (..., H)."""
        x_z, x_r, _ = from_input.chunk(3, -1)
        U = dict(zip(self.of_h, self.weight_hh.chunk(len(self.of_h)), strict=True))
        seen = torch.tanh(h) if self.variant == "mut3" else h
        z = torch.sigmoid(x_z + F.linear(seen, U["z"]) if "z" in U else x_z)
        return z, torch.sigmoid(x_r + F.linear(h, U["r"]))

    def extra_repr(self) -> str:
        """Sizes and the variant."""
        return f"{self.input_size}, {self.hidden_size}, {self.variant!r}"


class HighwayNodes(_Loop):
    """A cell of highway nodes, as ENAS and DARTS search for them.

        s_0 = h + sigmoid(c_0) * (tanh(n_0) - h)            [c_0, n_0] = W x + U_0 h
        s_i = s_p + sigmoid(c_i) * (act(n_i) - s_p)         [c_i, n_i] = U_i s_p
        h = mean of some s_i

    Each node steps from an earlier one, p, towards a candidate, and c says how far. As in public
    code there are no biases. What DARTS adds while it searches (batch normalisation of every node,
    a weight for no operation) isn't in the cell that is found.

    Parameters, with N nodes, the rows of the gates first: `weight_ih` (2·H, D), `weight_hh`
    (N, 2·H, H), from U(-1/sqrt(H), 1/sqrt(H)). The output is h (B, T, H), the state its last,
    (B, H).

    Args:
        input_size: features D of the input.
        hidden_size: hidden units H.
        nodes: `Nodes` of `gatelib.equations.searched`: ENAS, DARTS_FIRST, DARTS_SECOND, your own.
        batch_first: whether input and output are (B, T, features) rather than (T, B, features).
        device: where the parameters live.
        dtype: their floating-point type.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or a node reads a later one.

    Source: Pham et al. 2018, arXiv:1802.03268; Liu, Simonyan & Yang 2019, arXiv:1806.09055.
    """

    weight_hh: Tensor
    bias = None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        nodes: Nodes = DARTS_SECOND,
        *,
        batch_first: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        check_flags(batch_first=batch_first)
        if not isinstance(nodes, Nodes):
            raise TypeError(f"nodes: expected Nodes, got {type(nodes).__name__}")
        self.input_size, self.hidden_size = input_size, hidden_size
        self.nodes, self.batch_first = check_nodes(nodes), batch_first
        count, rows = len(nodes.steps) + 1, 2 * hidden_size
        shapes = {"weight_ih": (rows, input_size), "weight_hh": (count, rows, hidden_size)}
        self._make(shapes, device, dtype)

    def _state_shape(self, batch: int) -> tuple[int, ...]:
        return batch, self.hidden_size

    def _matrix(self) -> Tensor:
        return self.weight_hh

    def _step(self, from_input: Tensor, state: States, matrix: Tensor) -> tuple[Tensor, States]:
        made = self.gates(from_input, state[0])
        new = torch.stack([made[i][1] for i in self.nodes.read]).mean(0)
        return new.to(from_input.dtype), (new,)

    def gates(self, from_input: Tensor, h: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(c, s) of each node, (..., H) both: its gate, and the value that it makes.

        from_input: W x, (..., 2·H); h: the state before, (..., H).
        """
        narrow, weight = from_input.dtype, self.weight_hh
        made = [_node("tanh", from_input + F.linear(h.to(narrow), weight[0]), h)]
        for i, (activation, place) in enumerate(self.nodes.steps, 1):
            s = made[place][1]
            made.append(_node(activation, F.linear(s.to(narrow), weight[i]), s))
        return made

    def extra_repr(self) -> str:
        """Sizes, and how many nodes there are."""
        return f"{self.input_size}, {self.hidden_size}, {len(self.nodes.steps) + 1} nodes"


def _node(activation: str, packed: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """A gate, and the step from s towards a candidate that it lets pass."""
    a_c, a_n = packed.chunk(2, -1)
    c = torch.sigmoid(a_c)
    return c, s + c * (_ACTIVATIONS[activation](a_n) - s)
