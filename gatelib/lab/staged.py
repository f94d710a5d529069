"""A cell of several stages as a torch layer: the plain loop, differentiated by autograd.

Imports torch, gatelib.cell and gatelib.spec.
Must not import gatelib.reference: it is compared with it.

`gatelib.nn.Recurrent` makes a layer of one Spec. A GRU whose reset gate acts before the product
has a matrix product between its equations, and so two Specs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gatelib import cell as cells
from gatelib.spec import Spec

__all__ = ["Staged"]


class Staged(nn.Module):
    """A layer of one direction whose only carry is `h`, from the Specs of its stages, in order.

    `a_k`, `u_k` and learned vectors are read as `gatelib.nn.Recurrent` reads them, and parameters
    have the same names and order. A stage may use what stages before it compute, by name; U of a
    stage behind the first multiplies their output `q` in the place of h_{t−1}.

    Args:
        cell: the stages, in order.
        input_size: features D of the input (B, T, D).
        hidden_size: features H of the state.
        **options: `device` and `dtype` of the parameters.

    Raises:
        ValueError: no stage computes `h`, or one has another carry than `h`.
    """

    def __init__(
        self, cell: Sequence[Spec], input_size: int, hidden_size: int, **options: Any
    ) -> None:
        super().__init__()
        self.cell, self.num_layers = cells.cell(cell), 1
        self.stages, self.hidden_size = self.cell.stages, hidden_size
        inputs = [str(v) for stage in self.stages for v in stage.inputs]
        made = {str(v) for stage in self.stages for v in stage.outputs}
        if "h" not in made:
            raise ValueError("cell: expected a stage with the output `h`, got none")
        carries = {v for v in inputs if v.endswith("_prev")}
        if not carries <= {"h_prev"}:
            raise ValueError(f"cell: expected no carry but `h_prev`, got {sorted(carries)}")
        rows = sum(v.startswith("a_") for v in inputs) * hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, input_size)}
        shapes |= {"weight_hh": (rows, hidden_size), "bias_ih": (rows,)}
        shapes |= {"bias_hh": (rows,)} if any(v.startswith("u_") for v in inputs) else {}
        special = made | carries | {v for v in inputs if v.startswith(("a_", "u_"))}
        self.vectors = [v for v in dict.fromkeys(inputs) if v not in special]
        shapes |= dict.fromkeys(self.vectors, (hidden_size,))
        for name, shape in shapes.items():
            self.register_parameter(f"{name}_l0", nn.Parameter(torch.empty(shape, **options)))
        self.steps = [stage.compile("torch") for stage in self.stages]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in ±1/√H, as torch draws them; learned vectors called `b_…` start at 0."""
        for name, parameter in self.named_parameters():
            shift = name.startswith("b_")
            bound = 0.0 if shift else self.hidden_size**-0.5
            nn.init.uniform_(parameter, -bound, bound)

    def forward(
        self, input: Tensor, initial_state: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run over (B, T, D) from {"h": (1, B, H)}, zeros if None: (B, T, H) and the last state."""
        own: dict[str, Tensor] = {n.removesuffix("_l0"): p for n, p in self.named_parameters()}
        h = input.new_zeros(len(input), self.hidden_size)
        h = h if initial_state is None else initial_state["h"][0]
        from_input, ys = input @ own["weight_ih"].T + own["bias_ih"], []
        for t in range(input.shape[1]):
            h = self._step(own, from_input[:, t], h)
            ys.append(h)
        return torch.stack(ys, 1) if ys else h.new_zeros(*h.shape[:1], 0, h.shape[1]), {
            "h": h[None]
        }

    def _step(self, own: dict[str, Tensor], from_input: Tensor, h: Tensor) -> Tensor:
        known = own | {"h_prev": h, "q": h}
        start = 0
        for stage, step in zip(self.stages, self.steps, strict=True):
            names = [str(v) for v in stage.inputs]
            gates = [v for v in names if v.startswith("a_")]
            end = start + len(gates) * self.hidden_size
            second = own["bias_hh"][start:end] if "bias_hh" in own else 0.0
            from_h = known["q"] @ own["weight_hh"][start:end].T + second
            count = max(len(gates), 1)
            parts = (part.chunk(count, 1) for part in (from_input[:, start:end], from_h))
            for name, a, u in zip(gates, *parts, strict=False):
                other = name.replace("a_", "u_", 1)
                known |= {name: a, other: u} if other in names else {name: a + u}
            found = step(*(known[name] for name in names))
            found = found if isinstance(found, tuple) else (found,)
            known |= dict(zip(map(str, stage.outputs), found, strict=True))
            start = end
        return known["h"]
