"""A training step of `gatelib.nn.Recurrent`: the fused path beside the plain loop and torch's LSTM.
Imports gatelib.nn, gatelib.kernels, gatelib.equations, torch and the harness.
Must not import gatelib.reference or gatelib.lab.

The plain loop is `impl="reference"`: two linear maps and the cell at each step, under autograd. It
takes the steps apart once; a loop that indexes `input[:, t]` instead pays for one full-sized
gradient a step where the input needs a gradient, and is timed too.

Two more rows say what is left to win. "products alone" is the step's matrix products and nothing
else: both loops do these sums, so its ratio is what a cell that costs nothing would reach. The
loss and its gradient are the same on both sides as well: "products and loss" has them too, and its
ratio is the bound for any operator that multiplies no faster than this.

What lies between that row and "fused", at (64, 256, 128, 256) on an AMD EPYC of family 25: torch's
tanh (42 us for 64 x 256 numbers, where sigmoid takes 7), about 18 calls of 3 to 4 us a step
backward, and writing about 100 MB of saved values to memory that the C library gives back to the
system after each step and that must be mapped again page by page.
A cheaper tanh, 2 sigmoid(2x) - 1, has no correct digit near 0, and one by expm1 triples the
rounding error for an estimated hundredth of the time; neither is used.

Run: python benchmarks/recurrent.py [--rounds N] [--device cpu|cuda] [--input-grad]
"""

from collections.abc import Callable, Iterator

import torch
from _harness import asked, compare, table, write
from torch import nn

from gatelib.equations.lstm import CIFG, LAYERNORM, PEEPHOLE
from gatelib.kernels import products as kernel
from gatelib.nn import Recurrent
from gatelib.spec import Spec

CASES = [(32, 128, 64, 128), (64, 256, 128, 256)]
SPECS = [PEEPHOLE, CIFG, LAYERNORM]
GOAL = 1.4


class Indexing(nn.Module):
    """The loop as it is often written: one step of the layer at a time."""

    def __init__(self, layer: Recurrent) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Like the layer's."""
        state, outputs = None, []
        for t in range(x.shape[1]):
            output, state = self.layer(x[:, t : t + 1], state)
            outputs.append(output)
        return torch.cat(outputs, 1), state


class Products:
    """The matrix products of a training step of one layer, alone.

    W x and the weights' gradients take a block of steps at a time; U h and its adjoint take one.
    """

    def __init__(self, layer: Recurrent, x: torch.Tensor) -> None:
        self.weight_ih, weight_hh = (w.detach() for w in (layer.weight_ih_l0, layer.weight_hh_l0))
        (width, hidden), (batch, time, _) = weight_hh.shape, x.shape
        self.rows = x.detach().transpose(0, 1).contiguous().view(time * batch, -1)
        self.block = kernel.block_steps(time, batch, width, x.element_size())
        self.gates = x.new_zeros(self.block, batch, width)
        self.h, self.state = x.new_zeros(time, batch, hidden), x.new_zeros(batch, hidden)
        self.d_x = torch.empty_like(self.rows) if x.requires_grad else None
        self.d_ih, self.d_hh = (torch.zeros_like(w.t()) for w in (self.weight_ih, weight_hh))
        self.there = kernel.Map(weight_hh, batch, time)
        self.back = kernel.Map(weight_hh.t(), batch, time)

    def blocks(self) -> Iterator[tuple[slice, slice, torch.Tensor]]:
        """For each block of steps its steps, its rows, and room for its gates."""
        time, batch, _ = self.h.shape
        for start in range(0, time, self.block):
            steps = slice(start, min(start + self.block, time))
            yield steps, slice(steps.start * batch, steps.stop * batch), self.gates[: time - start]

    def forward(self) -> None:
        """W x for a block, U h added at each step."""
        for _, rows, a in self.blocks():
            torch.mm(self.rows[rows], self.weight_ih.t(), out=a.flatten(0, 1))
            for at in a:
                self.there.added(at, at, self.state)

    def loss(self) -> None:
        """The loss of a training step, and its gradient."""
        self.h.requires_grad_().transpose(0, 1).square().mean().backward()
        self.h.grad = None

    def backward(self) -> None:
        """The adjoint of U h at each step, the weights' gradients for a block."""
        for steps, rows, a in self.blocks():
            for at in a:
                self.back.into(self.state, at, None)
            self.state.zero_()
            flat = a.flatten(0, 1)
            self.d_ih.addmm_(self.rows[rows].t(), flat)
            self.d_hh.addmm_(self.h.detach()[steps].flatten(0, 1).t(), flat)
            if self.d_x is not None:
                torch.mm(flat, self.weight_ih, out=self.d_x[rows])


def products(layer: Recurrent, x: torch.Tensor, loss: bool) -> Callable[[], None]:
    """The matrix products of a training step of one layer and, on demand, the loss, alone."""
    own = Products(layer, x)
    parts = [own.forward, *([own.loss] if loss else []), own.backward]

    def run() -> None:
        for part in parts:
            part()

    return run


def training_step(module: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """Forward, a scalar loss, backward into fresh gradients."""

    def run() -> None:
        module.zero_grad(set_to_none=True)
        x.grad = None
        output, _ = module(x)
        output.square().mean().backward()

    return run


def measure(
    spec: Spec, case: tuple[int, int, int, int], rounds: int, device: str, input_grad: bool
) -> dict[str, object]:
    """One row: the modules at (batch, time, input, hidden)."""
    batch, time, features, hidden = case
    plain = Recurrent(spec, features, hidden, impl="reference", device=device)
    fused = Recurrent(spec, features, hidden, impl="fused", device=device)
    fused.load_state_dict(plain.state_dict())
    modules = {
        "plain loop": plain,
        "fused": fused,
        "torch.nn.LSTM": nn.LSTM(features, hidden, batch_first=True, device=device),
    }
    if input_grad:
        modules["loop by index"] = Indexing(plain)
    x = torch.randn(batch, time, features, device=device, requires_grad=input_grad)
    steps = {name: training_step(module, x) for name, module in modules.items()}
    steps["products alone"] = products(fused, x, loss=False)
    steps["products and loss"] = products(fused, x, loss=True)
    names = ("batch", "time", "input", "hidden")
    sizes = {"cell": spec.name, **dict(zip(names, case, strict=True)), "input_grad": input_grad}
    return {"case": sizes, "results": compare(steps, rounds)}


def main() -> None:
    """Measure, print, and write the results."""
    arguments = asked(__doc__, 9, input_grad="the input needs a gradient")
    rows, name = [], "recurrent-input-grad" if arguments.input_grad else "recurrent"
    for case in CASES:
        for spec in SPECS:
            rows.append(
                measure(spec, case, arguments.rounds, arguments.device, arguments.input_grad)
            )
            print(table(rows[-1:]), flush=True)
            path = write(name, rows, arguments.device)  # anew each time: a run may be cut off
    print("wrote", path.name)
    slow = [row["case"] for row in rows if row["results"]["fused"]["ratio"] < GOAL]
    for case in slow:
        print(f"below the goal of {GOAL} times the plain loop: {case}")


if __name__ == "__main__":
    main()
