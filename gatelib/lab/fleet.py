"""Trains many small models of one structure as one, each at its own learning rate.

Imports NumPy, torch, gatelib.lab.training and gatelib.lab.watch.
Must not import the floors below; it trains whatever modules it is given.

A deep, narrow net spends its time on calls, not on numbers. Ten of them side by side cost little
more than one: their weights become the rows of one matrix, and each operation runs on all at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gatelib.lab.training import LOSSES, Batches, Loss, sampled
from gatelib.lab.watch import Trained, watch

__all__ = ["train_together"]


def train_together(
    models: Sequence[nn.Module],
    data: tuple[Tensor, Tensor] | Batches,
    *,
    steps: int,
    rates: Sequence[float],
    loss: str | Loss = "cross_entropy",
    batch_size: int = 64,
    clip: float | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Train `models` in place with Adam, all on the same batches; return losses (models, steps).

    What `gatelib.lab.train` does for one model, with the same batches from the same seed. A model
    that diverges has nan from there on and leaves the others alone.

    Args:
        models: modules of one class and shape, without buffers; weights are tied by a module that
            stands in several places.
        data, loss, clip, seed: as in `train`; the norm that is clipped is each model's own.
        rates: one learning rate for each model.
    """
    _check(models, rates)
    seen = watch()
    kept = seen.restored(models)
    if kept is not None:
        return kept.losses
    measure = LOSSES[loss] if isinstance(loss, str) else loss
    batches = data if callable(data) else sampled(data, batch_size)
    fleet = _Fleet(models, torch.tensor(rates), measure)
    losses = np.full((len(models), steps), np.nan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = np.random.default_rng(seed)
        for step in range(steps):
            x, y = (torch.as_tensor(part) for part in batches(step, generator))
            losses[:, step] = fleet.update(x, y, clip)
            seen.loss(_mean(losses[:, step]))
    fleet.give_back(models)
    return seen.finished(models, Trained(losses, np.full_like(losses, np.nan), {})).losses


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of those that are finite; nan where none is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _check(models: Sequence[nn.Module], rates: Sequence[float]) -> None:
    if len(models) == 0 or len(rates) != len(models):
        raise ValueError(f"rates: expected one for each of the models, got {len(rates)}")
    if any(list(model.buffers()) for model in models):
        raise ValueError("models: expected modules without buffers")
    held = [p for module in models[0].modules() for p in module._parameters.values()]
    if len({id(p) for p in held if p is not None}) < sum(p is not None for p in held):
        raise ValueError(
            "models: expected weights tied by sharing a module, got a shared Parameter"
        )


class _Fleet:
    """All weights of all models: one row (P,) a model."""

    def __init__(self, models: Sequence[nn.Module], rates: Tensor, measure: Loss) -> None:
        self.base, self.measure = models[0].train(), measure
        self.names = [name for name, _ in self.base.named_parameters()]
        self.shapes = [p.shape for p in self.base.parameters()]
        rows = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in models]
        self.start = torch.stack(rows)
        self.weights = self.start.clone().requires_grad_()
        self.rates = rates.to(self.start)[:, None]
        # Adam's step is its rate times something that knows no rate: that sum is kept in `moved`
        self.moved = torch.zeros_like(self.start)
        self.adam = torch.optim.Adam([self.moved], lr=1.0, fused=True)
        self.losses = torch.vmap(self._loss, in_dims=(0, None, None), randomness="different")

    def _loss(self, values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        # tie_weights would swap a module that stands in two places twice, and leave it swapped
        call = torch.func.functional_call
        return self.measure(call(self.base, values, (x,), tie_weights=False), y)

    def _named(self) -> dict[str, Tensor]:
        """{name: (models, *shape)}, views of the rows."""
        parts = torch.split(self.weights, [shape.numel() for shape in self.shapes], dim=1)
        shaped = (p.reshape(-1, *s) for p, s in zip(parts, self.shapes, strict=True))
        return dict(zip(self.names, shaped, strict=True))

    def update(self, x: Tensor, y: Tensor, clip: float | None) -> NDArray[np.float64]:
        """One step of Adam; returns the losses before it."""
        losses: Tensor = self.losses(self._named(), x, y)
        (gradient,) = torch.autograd.grad(losses.sum(), self.weights)
        if clip is not None:
            gradient *= (clip / (gradient.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)
        self.moved.grad = gradient
        self.adam.step()
        with torch.no_grad():
            torch.addcmul(self.start, self.moved, self.rates, out=self.weights)
        found: NDArray[np.float64] = losses.detach().double().numpy()
        return np.where(np.isfinite(found), found, np.nan)

    def give_back(self, models: Sequence[nn.Module]) -> None:
        """Write each row into its model."""
        for model, row in zip(models, self.weights.detach(), strict=True):
            nn.utils.vector_to_parameters(row, model.parameters())
