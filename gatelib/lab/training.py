"""The training loop of every experiment, and fair comparisons built on it.

Imports NumPy, torch, tqdm and gatelib.lab.watch.
Must not import the floors below; it trains whatever module it is given.

Steps are counted, never timed. Batches come from a generator seeded by `seed`, so the same call
gives the same numbers on the same machine; the random state of the caller is left as it was.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from gatelib.lab.watch import Trained, watch

__all__ = ["History", "Readout", "Seeds", "Sweep", "accuracy", "best_lr", "seeds", "train"]

Loss = Callable[[Tensor, Tensor], Tensor]
Batches = Callable[[int, np.random.Generator], tuple[Any, Any]]
Score = Callable[[nn.Module], float]


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy: logits (..., classes) against whole numbers (...), in nats."""
    return F.cross_entropy(logits.flatten(0, -2), target.flatten())


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "mse": F.mse_loss}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


@dataclass(frozen=True, eq=False)
class History:
    """What happened while training.

    losses: (steps,) training loss before each update; nan from the first loss that is not finite.
    gradient_norms: (steps,) norm of the whole gradient before clipping.
    scores: {step: score}, the score after that many updates.
    """

    losses: NDArray[np.float64]
    gradient_norms: NDArray[np.float64]
    scores: dict[int, float]
    lr: float
    seconds: float

    def __eq__(self, other: object) -> bool:
        """The same numbers, nan included, however long they took."""
        if not isinstance(other, History):
            return NotImplemented
        pairs = [(self.losses, other.losses), (self.gradient_norms, other.gradient_norms)]
        same = all(np.array_equal(mine, theirs, equal_nan=True) for mine, theirs in pairs)
        return same and (self.lr, self.scores) == (other.lr, other.scores)

    @property
    def diverged(self) -> bool:
        """Did a loss come out infinite or not a number? Training stopped there."""
        return not bool(np.isfinite(self.losses).all())

    @property
    def score(self) -> float:
        """The last score; nan where none was asked for."""
        return list(self.scores.values())[-1] if self.scores else float("nan")

    @property
    def loss(self) -> float:
        """Mean training loss over the last tenth of the steps; inf if training diverged."""
        last = max(1, len(self.losses) // 10)
        return float("inf") if self.diverged else float(self.losses[-last:].mean())

    def early(self, count: int = 5, digits: int = 3) -> list[float]:
        """The first losses, rounded: the numbers that another machine should see too."""
        return [round(float(value), digits) for value in self.losses[:count]]

    def __repr__(self) -> str:
        end = "diverged" if self.diverged else f"loss {self.loss:.3g}"
        score = f", score {self.score:.3g}" if self.scores else ""
        return f"History({len(self.losses)} steps at lr {self.lr:g}: {end}{score})"


class Readout(nn.Module):
    """A linear answer on top of a recurrent layer: from its last step, or from every step.

    `layer(x)` must return `(output, final_state)` with output (B, T, features), as torch's do
    with `batch_first=True`. Returns (B, outputs), or (B, T, outputs) with `every_step=True`.
    """

    def __init__(
        self, layer: nn.Module, features: int, outputs: int, *, every_step: bool = False
    ) -> None:
        super().__init__()
        self.layer = layer
        self.linear = nn.Linear(features, outputs)
        self.every_step = every_step

    def forward(self, x: Tensor) -> Tensor:
        """Answer a batch of sequences (B, T, D)."""
        output = self.layer(x)[0]
        answer: Tensor = self.linear(output if self.every_step else output[:, -1])
        return answer


def _pick(name: str, value: object, table: dict[str, Any]) -> Any:
    if callable(value):
        return value
    if value not in table:
        raise ValueError(f"{name}: expected one of {sorted(table)} or a callable, got {value!r}")
    return table[str(value)]


def _check(steps: int, lr: float, batch_size: int, clip: float | None, every: int | None) -> None:
    whole = {"steps": steps, "batch_size": batch_size, "every": 1 if every is None else every}
    for name, value in whole.items():
        if type(value) is not int:
            raise TypeError(f"{name}: expected a whole number, got {value!r}")
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    for name, number in {"lr": lr, "clip": 1.0 if clip is None else clip}.items():
        if not 0 < number < float("inf"):
            raise ValueError(f"{name}: expected a positive number, got {number!r}")


def sampled(data: tuple[Any, Any], batch_size: int) -> Batches:
    """Batches of a split (x, y): every example once per epoch, in a new order each time."""
    if len(data[0]) != len(data[1]):
        found = " and ".join(str(len(part)) for part in data)
        raise ValueError(f"data: expected (x, y) of equal length, got lengths {found}")
    if len(data[0]) == 0:
        raise ValueError("data: expected at least one example, got none")
    x, y = (torch.as_tensor(part) for part in data)
    waiting: list[int] = []

    def batch(step: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        if step == 0:
            waiting.clear()
        while len(waiting) < batch_size:
            waiting.extend(generator.permutation(len(x)).tolist())
        rows = torch.tensor(waiting[:batch_size])
        del waiting[:batch_size]
        return x[rows], y[rows]

    return batch


def watched() -> bool:
    """Is somebody there to see a progress bar? A runner of notebooks or tests is nobody."""
    if os.environ.get("TQDM_DISABLE"):
        return False
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    kernel = getattr(shell, "kernel", None)
    if kernel is not None:  # a runner does not offer to type answers; a person's browser does
        return bool(getattr(kernel, "_allow_stdin", False))
    return sys.stderr.isatty()


def train(
    model: nn.Module,
    data: tuple[Any, Any] | Batches,
    *,
    steps: int,
    lr: float,
    loss: str | Loss = "cross_entropy",
    optimizer: str | Callable[..., torch.optim.Optimizer] = "adam",
    batch_size: int = 64,
    clip: float | None = None,
    seed: int = 0,
    score: Score | None = None,
    every: int | None = None,
) -> History:
    """Train `model` in place for a fixed number of steps.

    Args:
        data: a split (x, y) whose rows are sampled, or a function (step, generator) -> (x, y).
        loss: "cross_entropy", "mse", or a function of the model's output and y.
        optimizer: a name in OPTIMIZERS, or a function of (parameters, lr=...).
        clip: largest norm of the whole gradient; None leaves it alone.
        seed: decides the batches and what is random inside the model, such as dropout.
        score: called with the model in eval mode after every `every` steps and at the end.
    """
    _check(steps, lr, batch_size, clip, every)
    measure = _pick("loss", loss, LOSSES)
    update = _pick("optimizer", optimizer, OPTIMIZERS)(list(model.parameters()), lr=lr)
    batches = data if callable(data) else sampled(data, batch_size)
    start, seen = time.perf_counter(), watch()
    if (kept := seen.restored([model])) is not None:
        return _from_weights(model, kept, score, lr)
    norms, losses, scores = np.full(steps, np.nan), np.full(steps, np.nan), {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = np.random.default_rng(seed)
        for step in tqdm(range(steps), leave=False, disable=not watched()):
            batch = batches(step, generator)
            losses[step], norms[step] = _step(model, batch, measure, update, clip)
            seen.loss(losses[step])
            last = step + 1 == steps or not np.isfinite(losses[step])
            if score and (last or (step + 1) % (every or steps) == 0):
                scores[step + 1] = _scored(model, score)
            if last:
                break
    losses[~np.isfinite(losses)] = np.nan
    told = seen.finished([model], Trained(losses, norms, scores))
    return History(told.losses, told.gradient_norms, scores, lr, time.perf_counter() - start)


def _from_weights(model: nn.Module, kept: Trained, score: Score | None, lr: float) -> History:
    """What the training came to whose weights were kept; its last score is measured again."""
    scores = dict(kept.scores)
    if score and scores:
        scores[max(scores)] = _scored(model, score)
    return History(kept.losses, kept.gradient_norms, scores, lr, 0.0)


def _step(
    model: nn.Module,
    batch: tuple[Any, Any],
    measure: Loss,
    update: torch.optim.Optimizer,
    clip: float | None,
) -> tuple[float, float]:
    """One update; returns the loss and the norm of the gradient. No update if it is not finite."""
    x, y = (torch.as_tensor(part) for part in batch)
    model.train()
    update.zero_grad()
    value = measure(model(x), y)
    if not bool(torch.isfinite(value)):
        return float("nan"), float("nan")
    value.backward()  # type: ignore[no-untyped-call]
    limit = float("inf") if clip is None else clip
    norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
    update.step()
    return float(value.detach()), float(norm)


def _scored(model: nn.Module, score: Score) -> float:
    model.eval()
    with torch.no_grad():
        value = float(score(model))
    model.train()
    return value


def accuracy(data: tuple[Any, Any], batch_size: int = 1000) -> Score:
    """Return a score: the share of answers y (N, ...) that the largest logit gets right.

    An answer of -100 isn't asked for: it is left out, as `F.cross_entropy` leaves it out.
    """
    x, y = (torch.as_tensor(part) for part in data)
    asked = y != -100

    def score(model: nn.Module) -> float:
        answers = [model(part).argmax(-1) for part in torch.split(x, batch_size)]
        return float((torch.cat(answers) == y)[asked].double().mean())

    return score


class Seeds(NamedTuple):
    """One number per seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """The sample standard deviation over seeds; 0 for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def __repr__(self) -> str:
        return f"{self.mean:.3g} ± {self.spread:.2g} ({len(self.values)} seeds)"


def _seeded(run: Callable[[int], float], which: Iterable[int]) -> Iterator[float]:
    for seed in which:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield float(run(seed))


def seeds(run: Callable[[int], float], which: Iterable[int] = range(3)) -> Seeds:
    """Call `run(seed)` with torch's generator at that seed; return its numbers, mean and spread."""
    values = tuple(_seeded(run, which))
    if not values:
        raise ValueError("which: expected at least one seed, got none")
    return Seeds(values)


class Sweep(NamedTuple):
    """The best learning rate and what each one gave."""

    best: float
    results: dict[float, Seeds]

    @property
    def at_edge(self) -> bool:
        """Is the best rate the smallest or the largest tried? Then try further."""
        return self.best in (min(self.results), max(self.results))


def best_lr(
    run: Callable[[float, int], float],
    rates: Sequence[float] = (1e-3, 3e-3, 1e-2),
    which: Sequence[int] = (0,),
    *,
    largest: bool = True,
) -> Sweep:
    """Try each learning rate: `run(lr, seed)` builds, trains and returns a score (or a loss).

    The best mean wins: the largest, or with `largest=False` the smallest; nan never does.
    """
    if not rates:
        raise ValueError("rates: expected at least one learning rate, got none")
    results = {lr: seeds(lambda seed, lr=lr: run(lr, seed), which) for lr in rates}  # type: ignore[misc]
    sign = 1 if largest else -1
    ranked = {lr: sign * result.mean for lr, result in results.items()}
    finite = {lr: value for lr, value in ranked.items() if value == value}
    if not finite:
        raise ValueError(f"run: expected a number for some learning rate of {list(rates)}, got nan")
    return Sweep(max(finite, key=finite.__getitem__), results)
