"""What chapter 9 runs: tasks of pairs, batches, the searches' scores, a copier, and baselines.

Imports NumPy, torch, gatelib.data, gatelib.lab and gatelib.nn.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.data import Dataset, Vocabulary
from gatelib.lab import train
from gatelib.nn import Seq2Seq

Read = Callable[[str], Sequence[str]]
Pair = tuple[Any, Any]


class Task(NamedTuple):
    """Pairs as ids, x (N, S) and y (N, T) with the end, and their vocabularies."""

    source: Vocabulary
    target: Vocabulary
    train: Pair
    valid: Pair
    test: Pair


def encoded(data: Dataset, read: Read = list, write: Read = list, valid: int = 500) -> Task:
    """Texts as a task; the last `valid` training pairs are set apart to choose on."""
    (x, y), test = data.train, data.test
    parts = (x[:-valid], y[:-valid]), (x[-valid:], y[-valid:]), tuple(test)
    source = Vocabulary.fit(map(read, parts[0][0]))
    target = Vocabulary.fit(map(write, parts[0][1]))

    def ids(part: Pair) -> Pair:
        answers = target.encode(map(write, part[1]), ends=True)[0][:, 1:]
        return source.encode(map(read, part[0]))[0], answers

    return Task(source, target, *map(ids, parts))


Change = Callable[[Any, np.random.Generator], Any]


def batches(pairs: Pair, size: int, change: Change | None = None) -> Any:
    """Batches of sources of about equal length; `change` may put noise into them.

    A recurrent layer takes one step after the other, so a batch costs as much as its longest
    source: batches are cut from eight batches' worth of pairs, sorted by length.
    """
    (x, y), waiting = pairs, []
    lengths = (x != 0).sum(1)

    def batch(step: int, generator: np.random.Generator) -> tuple[Any, Any]:
        if step % 8 == 0:
            rows = generator.choice(len(x), 8 * size, replace=False)
            rows = rows[np.argsort(lengths[rows], kind="stable")].reshape(8, size)
            waiting[:] = rows[generator.permutation(8)]
        rows = waiting[step % 8]
        source = x[rows] if change is None else change(x[rows], generator)
        return np.concatenate([source, y[rows]], 1), y[rows]

    return batch


class Taught(nn.Module):
    """A model whose input is a source and, beside it, its teacher's target."""

    def __init__(self, model: nn.Module, longest: int) -> None:
        super().__init__()
        self.model, self.longest = model, longest

    def forward(self, both: Tensor) -> Tensor:
        source, target = both[:, : -self.longest], both[:, -self.longest :]
        lengths = (source != 0).sum(1)
        answers: Tensor = self.model(source[:, : int(lengths.max())], lengths, target)
        return answers


def loss(logits: Tensor, target: Tensor) -> Tensor:
    """Nats a token; padding is left out."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=0)


def adam(parameters: Iterable[Any], lr: float) -> torch.optim.Optimizer:
    """The same updates as torch's plain Adam, in one call."""
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def fit(model: nn.Module, task: Task, lr: float, seed: int, steps: int, **more: Any) -> Any:
    """Train with a teacher; the History."""
    size, change = more.pop("size", 64), more.pop("change", None)
    taught = more.pop("taught", Taught)(model, task.train[1].shape[1])
    options = {"loss": loss, "clip": 1.0, "optimizer": adam} | more
    data = batches(task.train, size, change)
    return train(taught, data, steps=steps, lr=lr, seed=seed, **options)


def tensors(pairs: Pair) -> tuple[Tensor, Tensor, Tensor]:
    """Sources, their lengths and targets."""
    x, y = map(torch.as_tensor, pairs)
    return x, (x != 0).sum(1), y


def right(model: Seq2Seq, pairs: Pair, **beam: Any) -> Any:
    """Which answers are right to the last token (N,), the net reading what it wrote itself."""
    x, n, y = tensors(pairs)
    longest = y.shape[1]
    found = model.beam(x, n, max_length=longest, **beam)[0][:, 0] if beam else None
    found = model.greedy(x, n, longest) if found is None else found
    return (found == y).all(1).numpy()


# ---- dates: noise, and rules that read them without a net ---------------------------------------


def noise_for(task: Task) -> Change:
    """A function that replaces characters but digits, each with probability p (or up to 0.3)."""
    may = np.array([not token.isdigit() for token in task.source.tokens])
    may[:4] = False

    def change(x: Any, generator: np.random.Generator, p: float | None = None) -> Any:
        share = generator.uniform(0, 0.3) if p is None else p
        hit = may[x] & (generator.random(x.shape) < share)
        return np.where(hit, generator.choice(np.flatnonzero(may), x.shape), x)

    return change


def trigrams(text: str) -> list[str]:
    """Three characters in a row, numbers as one sign."""
    bare = re.sub(r"\d+", "#", f" {text} ".lower())
    return [bare[i : i + 3] for i in range(len(bare) - 2)]


def count_months(texts: Iterable[str], answers: Iterable[str]) -> dict[str, Any]:
    """How often each trigram stands in a date of each month."""
    counts: dict[str, Any] = defaultdict(lambda: np.full(12, 0.1))
    for text, answer in zip(texts, answers, strict=True):
        if len(re.findall(r"\d+", text)) == 2:
            for gram in trigrams(text):
                counts[gram][int(answer[5:7]) - 1] += 1
    return counts


def by_rules(text: str, counts: dict[str, Any]) -> str:
    """A date by its digit groups, and the votes of its trigrams where no number is the month."""
    numbers = re.findall(r"\d+", text)
    year = next((n for n in numbers if len(n) == 4), "")
    rest = [n.zfill(2) for n in numbers if n != year]
    if len(rest) == 1:
        known = [counts[g] for g in trigrams(text) if g in counts]
        votes = sum((np.log(c / c.sum()) for c in known), np.zeros(12))
        rest = [rest[0], f"{int(np.argmax(votes)) + 1:02}"]
    return "-".join([year, *(rest if numbers[0] == year else rest[::-1])])
