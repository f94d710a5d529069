"""What chapter 20 trains: flocks of networks of one cell, its two tasks, and the one-shot cell.

Imports NumPy, torch, gatelib.cell, gatelib.data, gatelib.lab, gatelib.nn and gatelib.spec.

A flock is many networks of one cell trained as one: their weights are the blocks of one matrix, so
that a step costs little more than that of one network. Each has its own start, rate and clipping.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.cell import cell as cell_of
from gatelib.data import diagnostics, reviews, with_validation
from gatelib.lab import Readout, train
from gatelib.lab.search import Parts, chosen_from
from gatelib.nn import Recurrent
from gatelib.spec import Spec

__all__ = [
    "Flock",
    "OneShot",
    "Task",
    "bits",
    "held",
    "starts",
    "taking_turns",
    "task",
    "trained",
    "width_like",
]

# --- the tasks --------------------------------------------------------------------------------

ALPHABET = " abcdefghijklmnopqrstuvwxyz"
AT_ONCE = 24  # letters of a review that are read in one go


class Task(NamedTuple):
    """Sequences x (N, T, D) with answers y (N, T); -100 isn't asked for."""

    train: Any
    valid: Any
    test: Any
    features: int
    answers: int


@cache
def task(name: str) -> Task:
    """`registers`: say the latest value of a key. `letters`: say the next letter of a review."""
    if name == "registers":
        data = with_validation(diagnostics.registers(16, keys=3, values=3), 500)
        return Task(*data, features=9, answers=3)
    if name != "letters":
        raise ValueError(f"name: expected registers or letters, got {name!r}")
    codes = _codes(" ".join(reviews.rotten_tomatoes(5000, 1000).train.x))
    rows = codes[: len(codes) // (AT_ONCE + 1) * (AT_ONCE + 1)].reshape(-1, AT_ONCE + 1)
    hot = np.eye(len(ALPHABET), dtype=np.float32)
    ends = itertools.pairwise((0, 5000, 5500, 6500))
    parts = [(torch.tensor(hot[rows[a:b, :-1]]), torch.tensor(rows[a:b, 1:])) for a, b in ends]
    return Task(*parts, features=len(ALPHABET), answers=len(ALPHABET))


def _codes(text: str) -> NDArray[np.int64]:
    """Letters as numbers; whatever is no letter is a space, and one space is enough."""
    kept = "".join(c if c in ALPHABET else " " for c in text.lower())
    return np.array([ALPHABET.index(c) for c in " ".join(kept.split())])


# --- flocks -----------------------------------------------------------------------------------


class Flock(nn.Module):
    """Networks of one cell side by side, (B, T, D) → (B, T, networks, answers).

    No weight leads from one to another: what lies off the blocks of the matrices is 0 and stays 0.
    """

    def __init__(self, nets: Sequence[Readout]) -> None:
        super().__init__()
        one = nets[0].layer
        self.count, self.size = len(nets), one.hidden_size
        self.answers = nets[0].linear.out_features
        wide = Recurrent(one.cell, one.input_size, self.count * self.size)
        self.whole = Readout(
            wide, self.count * self.size, self.count * self.answers, every_step=True
        )
        self.owners: dict[str, Tensor] = {}
        self.masks: dict[str, Tensor] = {}
        for name, weight in self.whole.named_parameters():
            parts = [net.get_parameter(name).detach() for net in nets]
            self._lay(f"whole.{name}", weight, torch.stack(parts))

    def _lay(self, name: str, weight: Tensor, parts: Tensor) -> None:
        """Put the networks' weights (networks, rows, …) where they belong; note whose rows are."""
        size = self.answers if "linear" in name else self.size
        blocks = parts.shape[1] // size
        owner = torch.arange(self.count).repeat_interleave(size).repeat(blocks)
        self.owners[name] = owner
        rows = parts.unflatten(1, (blocks, size)).transpose(0, 1).flatten(0, 2)
        if name.endswith(("weight_hh_l0", "linear.weight")):
            columns = torch.arange(self.count).repeat_interleave(self.size)
            self.masks[name] = (owner[:, None] == columns).float()
            rows = rows.repeat(1, self.count) * self.masks[name]
        weight.data.copy_(rows)

    def forward(self, x: Tensor) -> Tensor:
        """Each network's answers to x (B, T, D)."""
        answers: Tensor = self.whole(x).unflatten(-1, (self.count, self.answers))
        return answers

    def price(self) -> Tensor | float:
        """What is added to the loss."""
        return 0.0


def costs(logits: Tensor, y: Tensor) -> Tensor:
    """Each network's mean cross-entropy, in nats: (networks,). One that diverged has no slope."""
    asked = y != diagnostics.UNASKED
    spoken = torch.nan_to_num(logits[asked], 0.0, 1e4, -1e4).log_softmax(-1)
    right = y[asked][:, None, None].expand(-1, logits.shape[-2], 1)
    return -spoken.gather(-1, right)[..., 0].mean(0)


class Apart(torch.optim.Adam):
    """Adam at a rate of its own for each network of a flock, its gradient clipped to norm 1.

    Where the flock learns an `alpha` too, the two take turns, the weights first.
    """

    def __init__(self, flock: Flock, rates: Sequence[float]) -> None:
        self.named = {n: p for n, p in flock.named_parameters() if n in flock.owners}
        super().__init__(list(self.named.values()), lr=1.0, fused=True)
        self.flock, self.rates, self.turn = flock, torch.tensor(rates), 0

    def step(self, closure: Any = None) -> None:
        """One update: Adam's step at rate 1, of which each row takes its network's share."""
        mine = "alpha" if self.turn % 2 and "alpha" in self.named else "whole"
        self.turn += 1
        moved = {name: p for name, p in self.named.items() if name.startswith(mine)}
        for name, weight in self.named.items():
            if name not in moved:
                weight.grad = None
        self._clip(moved)
        before = {name: weight.detach().clone() for name, weight in moved.items()}
        super().step()
        with torch.no_grad():
            for name, weight in moved.items():
                torch.lerp(before[name], weight, self._rows(self.rates, name, weight), out=weight)

    def _clip(self, moved: dict[str, nn.Parameter]) -> None:
        """Blocks alone, no nan, and norm 1 at most for each network."""
        squares = torch.zeros(self.flock.count, dtype=torch.float64)
        for name, weight in moved.items():
            weight.grad = torch.nan_to_num(weight.grad, 0.0, 0.0, 0.0)
            weight.grad *= self.flock.masks.get(name, 1.0)
            rows = weight.grad.double().square().flatten(1 if weight.ndim > 1 else 0)
            rows = rows.sum(1) if rows.ndim > 1 else rows
            squares.index_add_(0, self.flock.owners[name], rows)
        shares = (1 / (squares.sqrt() + 1e-6)).clamp(max=1).float()
        for name, weight in moved.items():
            weight.grad *= self._rows(shares, name, weight)

    def _rows(self, values: Tensor, name: str, weight: Tensor) -> Tensor:
        """A number for each row of a weight, its network's."""
        own = values[self.flock.owners[name]]
        return own.reshape(-1, *[1] * (weight.ndim - 1)).expand_as(weight)


# --- training them ----------------------------------------------------------------------------


def width_like(spec: Spec, features: int, size: int) -> int:
    """Units with which a layer of the cell has, as nearly as may be, an LSTM's weights."""
    cell = cell_of(spec)
    blocks, more = len(cell.gates), len(cell.split)
    goal = 4 * size * (features + size + 1)
    far = {h: abs(h * (blocks * (features + h + 1) + more) - goal) for h in range(1, 8 * size)}
    return min(far, key=far.__getitem__)


def starts(spec: Spec, of: Task, units: int, seeds: Sequence[int]) -> list[Readout]:
    """A network as it starts from each seed."""
    nets = []
    for seed in seeds:
        torch.manual_seed(seed)
        layer = Recurrent(spec, of.features, units)
        nets.append(Readout(layer, units, of.answers, every_step=True))
    return nets


def trained(flock: Flock, data: Any, rates: Sequence[float], steps: int, seed: int) -> Flock:
    """The flock after so many updates on the same batches, each network at its rate."""

    def total(logits: Tensor, y: Tensor) -> Tensor:
        return costs(logits, y).sum() + flock.price()

    options: dict[str, Any] = {"loss": total, "batch_size": 32, "lr": 1.0, "seed": seed}
    train(flock, data, steps=steps, optimizer=lambda _, lr: Apart(flock, rates), **options)
    return flock


def bits(flock: nn.Module, part: Any) -> NDArray[np.float64]:
    """Each network's loss in bits an answer, at most twice what guessing costs."""
    x, y = map(torch.as_tensor, part)
    flock.eval()
    with torch.no_grad():
        logits = flock(x)
        logits = logits if logits.ndim == 4 else logits[..., None, :]
        found: NDArray[np.float64] = (costs(logits, y) / math.log(2)).double().numpy()
    return np.minimum(found, 2 * math.log2(logits.shape[-1]))


# --- one-shot ---------------------------------------------------------------------------------


class OneShot(Flock):
    """A flock whose cell mixes all choices; what each choice weighs is learned, or drawn.

    kind: "softmax" mixes by a softmax of alpha, as DARTS does; "hard concrete" gives each choice a
    gate of its own, which is drawn and may be exactly 0, and divides by their sum; "one path" draws
    one choice of each part at each update, and learns no alpha.
    """

    PRICE = 0.02  # nats, for each hard concrete gate that may be open

    def __init__(self, nets: Sequence[Readout], kind: str, **allowed: Sequence[str]) -> None:
        super().__init__(nets)
        self.kind, self.choices = kind, chosen_from(allowed)
        self.names = [f"p_{part}_{c}" for part, options in self.choices.items() for c in options]
        ends = np.cumsum([0, *(len(options) for options in self.choices.values())])
        self.groups = [slice(a, b) for a, b in itertools.pairwise(ends.tolist())]
        self.fixed: Tensor | None = None
        if kind != "one path":
            self.alpha = nn.Parameter(torch.zeros(self.count, len(self.names)))
            self.owners["alpha"] = torch.arange(self.count)
        self.owners = {n: owner for n, owner in self.owners.items() if ".p_" not in n}

    def fix(self, parts: Parts | None) -> None:
        """Weigh one cell's choices 1 and all others 0, until `fix(None)`."""
        said = [f"p_{part}_{c}" for part, c in parts._asdict().items()] if parts else []
        row = torch.tensor([float(name in said) for name in self.names])
        self.fixed = row.expand(self.count, -1) if parts else None

    def weights(self) -> Tensor:
        """What each choice weighs in each network: (networks, choices)."""
        if self.fixed is not None:
            return self.fixed
        return torch.cat([self._part(rows) for rows in self.groups], 1)

    def _part(self, rows: slice) -> Tensor:
        """The weights of one part's choices."""
        if self.kind == "one path":
            size = rows.stop - rows.start
            return F.one_hot(torch.randint(size, (self.count,)), size).float()
        alpha = self.alpha[:, rows]
        if self.kind == "softmax":
            return alpha.softmax(1)
        noise = torch.logit(torch.rand_like(alpha), 1e-6) if self.training else 0.0
        gate = torch.sigmoid((alpha + noise) / (2 / 3 if self.training else 1))
        gate = (1.2 * gate - 0.1).clamp(0, 1)
        return gate / gate.sum(1, keepdim=True).clamp(min=0.05)

    def price(self) -> Tensor | float:
        """Of hard concrete gates, what the expected number of open ones costs."""
        if self.kind != "hard concrete":
            return 0.0
        return self.PRICE * torch.sigmoid(self.alpha - 2 / 3 * math.log(0.1 / 1.1)).sum()

    def forward(self, x: Tensor) -> Tensor:
        """As of a flock, with the choices weighed."""
        wide = self.weights().T.repeat_interleave(self.size, 1)
        own = {
            f"layer.{name}_l0": wide[n]
            for n, name in enumerate(self.names)
            if hasattr(self.whole.layer, f"{name}_l0")
        }
        answers: Tensor = torch.func.functional_call(self.whole, own, (x,))
        return answers.unflatten(-1, (self.count, self.answers))


def held(flock: OneShot, of: Task, cells: Sequence[Parts]) -> NDArray[np.float64]:
    """How good each network holds each cell to be, more is better: (networks, cells).

    By the weights of its choices; where one path was drawn, by the loss of each cell with the
    weights that all cells share.
    """
    flock.eval()
    if flock.kind == "one path":
        scores = []
        for parts in cells:
            flock.fix(parts)
            scores.append(-bits(flock, of.valid))
        flock.fix(None)
        return np.stack(scores, 1)
    logs = flock.weights().detach().clamp(min=1e-9).log().double().numpy()
    places = {name: n for n, name in enumerate(flock.names)}
    chosen = [[places[f"p_{part}_{c}"] for part, c in each._asdict().items()] for each in cells]
    return logs[:, chosen].sum(2)


def taking_turns(of: Task) -> Callable[[int, np.random.Generator], tuple[Any, Any]]:
    """Batches of training data for the weights, and of validation data for alpha, in turns."""

    def batch(step: int, generator: np.random.Generator) -> tuple[Any, Any]:
        x, y = of.valid if step % 2 else of.train
        rows = generator.integers(0, len(x), 32)
        return x[rows], y[rows]

    return batch
