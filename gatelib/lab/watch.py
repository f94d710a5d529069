"""Lets a study watch the training inside an experiment, which knows nothing of the study.

Imports NumPy and torch.
Must not import any other module of gatelib: every training loop reports here.

A training loop asks for `watch()` and tells it each loss. A study that runs the experiment can
then end it after the first losses, or put kept weights in the place of the training.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["FIRST", "Enough", "Trained", "Watch", "watch", "watching"]

FIRST = 5
"""How many first losses are kept. The first knows the seed, the second the learning rate."""

PARTS = 100
"""Of how many equal parts of a training the mean losses are kept."""

Array = NDArray[np.float64]


class Enough(BaseException):
    """A replay has seen its losses. No `except Exception` of an author can swallow it."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What one call of a training loop came to.

    losses, gradient_norms: (steps,), or (models, steps) of models that were trained together.
    scores: {step: score}; a model that comes from kept weights is scored again at its last step.
    """

    losses: Array
    gradient_norms: Array
    scores: Mapping[int, float]


class Watch:
    """What a run shows while it trains.

    Args:
        stop: end the run after so many losses.
        seconds: end it with a TimeoutError after so much processor time.
        weights: what `state` gave after such a run: it takes the place of each training.
    """

    def __init__(
        self,
        stop: int | None = None,
        seconds: float = math.inf,
        weights: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self.stop, self.seconds, self.weights = stop, seconds, weights
        self.start = time.process_time()
        self.first: list[float | None] = []
        self.models: list[list[nn.Module]] = []
        self.trained: list[Trained] = []

    def loss(self, value: float) -> None:
        """Hear the loss before an update: a mean, where several models are trained together."""
        if len(self.first) < FIRST:
            self.first.append(float(f"{value:.9g}") if math.isfinite(value) else None)
        if len(self.first) == self.stop:
            raise Enough
        if time.process_time() - self.start > self.seconds:
            raise TimeoutError(f"still training after {self.seconds:g} s of processor time")

    def restored(self, models: Sequence[nn.Module]) -> Trained | None:
        """Load kept weights into `models`; None where there are none, so that they must train.

        Losses are nan where none were kept, since no number of the run needed them.

        Raises:
            KeyError: weights were kept, but none for a training as late as this one.
        """
        if self.weights is None:
            return None
        start = f"{len(self.models)}."
        kept = {k.removeprefix(start): v for k, v in self.weights.items() if k.startswith(start)}
        for index, model in enumerate(models):
            mine = f"{index}."
            named = {k.removeprefix(mine): v for k, v in kept.items() if k.startswith(mine)}
            if not named:
                raise KeyError(f"no weights are kept of the training {len(self.models)}")
            model.load_state_dict({k: torch.as_tensor(v) for k, v in named.items()})
            model.train()
        unknown = np.full(kept.get("shape", ()), np.nan)
        losses, norms = (kept.get(n, unknown).astype(np.float64) for n in ("losses", "norms"))
        scores = {int(step): float(score) for step, score in kept.get("scores", ())}
        return self._noted(models, Trained(losses, norms, scores))

    def finished(self, models: Sequence[nn.Module], trained: Trained) -> Trained:
        """Hear that a training has ended; returns what is kept of its losses, three digits each."""
        losses, norms = (_kept(each) for each in (trained.losses, trained.gradient_norms))
        return self._noted(models, Trained(losses, norms, trained.scores))

    def _noted(self, models: Sequence[nn.Module], trained: Trained) -> Trained:
        self.models.append(list(models))
        self.trained.append(trained)
        return trained

    def state(self) -> dict[str, NDArray[Any]]:
        """The weights, losses and scores of each training, by name."""
        found: dict[str, NDArray[Any]] = {}
        for i, (models, trained) in enumerate(zip(self.models, self.trained, strict=True)):
            found[f"{i}.shape"] = np.array(trained.losses.shape)
            found[f"{i}.losses"] = trained.losses.astype(np.float32)
            found[f"{i}.norms"] = trained.gradient_norms.astype(np.float32)
            if trained.scores:
                found[f"{i}.scores"] = np.array([*trained.scores.items()], np.float64)
            for index, model in enumerate(models):
                for name, value in model.state_dict().items():
                    found[f"{i}.{index}.{name}"] = value.detach().cpu().numpy().copy()
        return found


def _kept(values: Array) -> Array:
    """Means of 100 parts or fewer at 11 significant bits: all that a run may see of its losses.

    What isn't finite is nan, and left out of its part's mean.
    """
    there = np.isfinite(values)
    parts = np.array_split(np.arange(values.shape[-1]), PARTS)
    shown = np.array(values)
    for part in filter(len, parts):
        count = there[..., part].sum(-1, keepdims=True)
        sums = np.where(there, values, 0.0)[..., part].sum(-1, keepdims=True)
        shown[..., part] = np.where(there[..., part], sums / np.maximum(count, 1), np.nan)
    bits = shown.astype(np.float32).view(np.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(np.float32).astype(np.float64)


class _Unwatched(Watch):
    """Outside of a study: nobody reads it, and it holds nothing."""

    def loss(self, value: float) -> None: ...

    def finished(self, models: Sequence[nn.Module], trained: Trained) -> Trained:
        return trained


_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)


def watch() -> Watch:
    """The watch of the running study; outside of one, a watch that nobody reads."""
    return _WATCH.get() or _Unwatched()


@contextlib.contextmanager
def watching(seen: Watch) -> Iterator[None]:
    """Let the training loops of the block report to `seen`."""
    token = _WATCH.set(seen)
    try:
        yield
    finally:
        _WATCH.reset(token)
