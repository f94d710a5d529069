"""Keeps the experts of one router equally busy: what is added to the loss, what moves the bias.

Imports torch; balance, check, impl and routers of nn.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from gatelib.nn import balance as how
from gatelib.nn.check import check_choice, check_flags, check_number, check_sizes
from gatelib.nn.impl import transforms
from gatelib.nn.routers import Routing

__all__ = ["Balance", "Balancer", "auxiliary_loss", "update_balance", "updated_after"]

Balance = Literal["importance", "switch", "sequence", "global", "bias", "quantile"]
"""A loss, or with the last two what moves a router's selection bias."""


class Balancer(nn.Module):
    """Hears each routing; knows the loss for the last one, and moves a selection bias by all.

    Buffers, or None: `counts` (E) int64, for "bias" and "global"; `quantile_sum` (E) float64 and
    `quantile_batches` (1) int64 for "quantile". They count from one update to the next, in training
    alone, and not in a backward pass, where a checkpoint computes the same tokens again. `seen` is
    the last routing, and `told` what all machines said of it, which are no part of a state or copy.

    Args:
        experts: E.
        k: how many experts a token has.
        balance: a loss: "importance" (and with a noisy router the load), "switch", per "sequence",
            "global" (f from all tokens since the last update); or "bias" by sign, or "quantile"; or
            None, which counts and balances nothing.
        weight: of the loss.
        rate: the step of "bias".
        centred: whether its mean is taken out.
        z_weight: of the router's z-loss, which is added.
        device: where the buffers live.
        total: None on one machine. On several, each with tokens of its own, what makes of a sum
            that of all of them, as `gatelib.nn.balance` says. Then loss and counts are of all
            tokens, the same on every machine, and are found as a routing is heard: `loss()`,
            `metrics()` and `update()` may be called on one alone. "quantile" averages what the
            machines found, each weighing the same.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        experts: int,
        k: int,
        balance: Balance | None = None,
        *,
        weight: float = 0.01,
        rate: float = 1e-3,
        centred: bool = True,
        z_weight: float = 0.0,
        device: Any = None,
        total: how.Total | None = None,
    ) -> None:
        super().__init__()
        check_sizes(experts=experts, k=k)
        check_flags(centred=centred)
        if balance is not None:
            check_choice("balance", balance, get_args(Balance))
        for name, value in {"weight": weight, "rate": rate, "z_weight": z_weight}.items():
            check_number(value, name)
        self.experts, self.k, self.balance, self.centred = experts, k, balance, centred
        self.weight, self.rate, self.z_weight = float(weight), float(rate), float(z_weight)
        whole: dict[str, Any] = {"dtype": torch.int64, "device": device}
        counts = torch.zeros(experts, **whole) if balance in ("bias", "global") else None
        quantile = balance == "quantile"
        sums = torch.zeros(experts, dtype=torch.float64, device=device) if quantile else None
        self.register_buffer("counts", counts)
        self.register_buffer("quantile_sum", sums)
        self.register_buffer("quantile_batches", torch.zeros(1, **whole) if quantile else None)
        self.counts: Tensor | None
        self.quantile_sum: Tensor | None
        self.quantile_batches: Tensor | None
        self.seen: tuple[Routing, tuple[int, ...]] | None = None
        self.total = total
        self.told: tuple[Tensor, Tensor] | None = None

    @property
    def moves_bias(self) -> bool:
        """Whether it needs a router with a selection bias."""
        return self.balance in ("bias", "quantile")

    def reset_parameters(self) -> None:
        """Count from 0."""
        for value in (self.counts, self.quantile_sum, self.quantile_batches):
            if value is not None:
                value.zero_()

    def forward(
        self,
        routing: Routing,
        shape: tuple[int, ...],
        router: nn.Module,
        counts: Tensor | None = None,
    ) -> None:
        """Hear a routing of tokens (...) = `shape`, and who made it.

        counts: how many slots each expert has on all machines, where that is known already.
        """
        if torch.compiler.is_exporting() or _recomputes():
            return
        self.seen, self.told = (routing, tuple(shape)), None
        if self.total is not None and counts is None:
            counts = self.total(how.expert_counts(routing.indices, self.experts))
        if self.training:
            self._count(routing, router, counts)
        if counts is not None:
            self.told = counts, self._loss(routing, tuple(shape), counts)

    @torch.no_grad()
    def _count(self, routing: Routing, router: Any, counts: Tensor | None) -> None:
        if self.counts is not None:
            own = how.expert_counts(routing.indices, self.experts) if counts is None else counts
            self.counts += own
        if self.quantile_sum is not None and self.quantile_batches is not None:
            ranked = routing.logits if router.select == "before" else routing.scores
            bias = how.quantile_bias(ranked, self.k, router.selection_bias, routing.live).double()
            passes = torch.ones_like(self.quantile_batches)
            if self.total is not None:  # a machine without a token has found nothing
                there = (routing.indices < self.experts).any()
                bias, passes = self.total(bias * there), self.total(passes * there)
            self.quantile_sum += bias
            self.quantile_batches += passes

    @torch.no_grad()
    def update(self, bias: Tensor | None) -> None:
        """Move the router's selection bias, in place, by all since the last update.

        By sign where the balance is "bias", see `gatelib.nn.balance.update_bias`; for "quantile" it
        becomes the mean of what each pass found. On several machines without `total` sum the
        buffers first.
        """
        if self.balance == "bias" and bias is not None and self.counts is not None:
            bias.copy_(how.update_bias(bias, self.counts, self.rate, self.centred))
        if self.quantile_sum is not None and self.quantile_batches is not None and bias is not None:
            passes = self.quantile_batches
            found = self.quantile_sum / passes.clamp(min=1)
            bias.copy_(torch.where(passes > 0, found, bias.double()))
        self.reset_parameters()

    def loss(self) -> Tensor:
        """What is to be added to the model's loss for the last routing: a number, 0 for none.

        Raises:
            ValueError: there was no routing, or in training one without a graph, as in a checkpoint
                with use_reentrant=True: no gradient could come back.
        """
        routing, shape = self.last()
        if self._expects_graph() and not routing.logits.requires_grad:
            raise ValueError(
                "routing: expected a forward pass with a graph while the layer trains, got one "
                "without: under torch.no_grad, or in a checkpoint with use_reentrant=True"
            )
        return self._loss(routing, shape) if self.told is None else self.told[1]

    def _loss(
        self, routing: Routing, shape: tuple[int, ...], counts: Tensor | None = None
    ) -> Tensor:
        total = routing.logits.new_zeros(())
        if self.balance == "importance":
            total = self.weight * self._importance(routing)
        elif self.balance in ("switch", "sequence", "global"):
            total = self.weight * self._switch(routing, shape, counts)
        if self.z_weight:
            total = total + self.z_weight * how.z_loss(routing.logits, routing.live, self.total)
        return total

    def _expects_graph(self) -> bool:
        """Whether a gradient is to come back; inside torch.func a tensor doesn't say."""
        asked = bool(self.z_weight) or not (self.balance is None or self.moves_bias)
        trains = self.training and torch.is_grad_enabled()
        return asked and trains and (torch.compiler.is_compiling() or not transforms())

    def last(self) -> tuple[Routing, tuple[int, ...]]:
        """The last routing and the shape of its tokens; ValueError where there was none."""
        if self.seen is None:
            raise ValueError("routing: expected a forward pass before it is asked for, got none")
        return self.seen

    def _importance(self, routing: Routing) -> Tensor:
        chosen = routing.indices, routing.weights
        found = how.importance_loss(*chosen, self.experts, self.total)
        if routing.clean is None or routing.spread is None:
            return found
        noisy = routing.clean, routing.logits, routing.spread
        return found + how.load_loss(*noisy, self.k, routing.live, self.total)

    def _switch(self, routing: Routing, shape: tuple[int, ...], counts: Tensor | None) -> Tensor:
        scores, indices, live = routing.scores, routing.indices, routing.live
        if self.balance == "sequence":
            scores = scores.reshape(*shape, self.experts)
            indices = indices.reshape(*shape, indices.size(-1))
            live = None if live is None else live.reshape(shape)
            return how.switch_loss(scores, indices, live, per="sequence", total=self.total)
        if self.counts is None and counts is None:
            return how.switch_loss(scores, indices, live)
        if self.counts is not None and self.training:
            counts = self.counts
        if counts is None:
            counts = how.expert_counts(indices, self.experts)
        own: dict[str, Any] = {"per": "global", "counts": counts, "total": self.total}
        return how.switch_loss(scores, indices, live, **own)

    def metrics(self) -> dict[str, Tensor]:
        """What to watch of the last routing, without gradients.

        Returns:
            `load` (E), the share of the slots of each expert (all of them 1/E at balance);
            `max_violation`, `dead_experts`, `router_entropy` in nats; `loss` as `loss()` gives it.
            On several machines the entropy alone is of this one's tokens.
        """
        with torch.no_grad():
            routing, _ = self.last()
            counts = how.expert_counts(routing.indices, self.experts)
            counts = counts if self.told is None else self.told[0]
            return {
                "load": counts.double() / counts.sum().clamp(min=1),
                "max_violation": how.max_violation(counts),
                "dead_experts": how.dead_experts(counts),
                "router_entropy": how.router_entropy(routing.scores, routing.live),
                "loss": self.loss().detach(),
            }

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move or cast; the sums stay in float64, to the bit."""
        before = self.quantile_sum
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = self.quantile_sum
        if before is not None and after is not None and after.dtype != torch.float64:
            self.quantile_sum = before.to(after.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without the last routing, whose graph can't be copied."""
        return self.__dict__ | {"seen": None, "told": None}

    def extra_repr(self) -> str:
        """What balances."""
        return f"{self.experts}, {self.k}, {self.balance!r}"


def auxiliary_loss(model: nn.Module) -> Tensor:
    """The sum of `loss()` over each `Balancer` of a model: add it to the loss of the last forward.

        train(model, data, loss=lambda y, t: cross_entropy(y, t) + auxiliary_loss(model), ...)

    Raises:
        ValueError: the model has no such module, or one without a forward pass.
    """
    found = [m.loss() for m in model.modules() if isinstance(m, Balancer)]
    if not found:
        raise ValueError(f"model: expected a layer of experts inside, got {type(model).__name__}")
    return torch.stack(found).sum()


def update_balance(model: nn.Module) -> None:
    """Call `update_balance()` of every layer of a model that has it: once an optimiser's step."""
    for module in model.modules():
        if callable(update := getattr(module, "update_balance", None)):
            update()


def updated_after(optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer, which from now on calls `update_balance(model)` after each of its steps.

    train(model, data, optimizer=lambda p, lr: updated_after(torch.optim.Adam(p, lr), model), ...)
    """
    optimizer.register_step_post_hook(lambda *_: update_balance(model))
    return optimizer


def _recomputes() -> bool:
    """Whether a backward pass runs: it calls a layer only to compute again what was thrown away."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
