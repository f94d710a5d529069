"""Rows that go from every process of a group to every other, with gradients that come back.

Imports torch.
Must not import any other module of gatelib.

All is done by the collectives of `torch.distributed`, with gloo on a CPU and NCCL on a GPU. An
error of theirs says at which socket something broke; here it becomes one that names the rank.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd import Function

__all__ = ["GRACE", "PHASES", "Exchange", "Route"]

PHASES = ("dispatch", "combine", "combine_backward", "dispatch_backward", "overhead")
"""What bytes are counted by: rows on their way to the experts and back, in both passes; and all
that goes with them."""
GRACE = 3.0
"""Seconds that a rank has after a failure to say that it is still there."""


class Exchange:
    """The ranks of a process group, between which rows are exchanged.

    group: the process group; `ranks` of them, of which this process is number `rank`.
    traffic: by phase how many bytes went to each rank, (R) int64, itself included.

    Args:
        group: a `torch.distributed.ProcessGroup` that this process belongs to.

    Raises:
        TypeError: it is none.
    """

    def __init__(self, group: object) -> None:
        if not isinstance(group, dist.ProcessGroup):
            found = type(group).__name__
            wanted = "a torch.distributed.ProcessGroup that this process belongs to"
            raise TypeError(f"group: expected {wanted}, got {found}")
        self.group = group
        self.rank, self.ranks = group.rank(), group.size()
        self.names = dist.get_process_group_ranks(group)
        self.traffic: dict[str, Tensor] = {}
        self.reset_traffic()

    def reset_traffic(self) -> None:
        """Count bytes from 0."""
        self.traffic = {phase: torch.zeros(self.ranks, dtype=torch.int64) for phase in PHASES}

    def count(self, phase: str, rows: Sequence[int], value: Tensor) -> None:
        """Add what `rows` of `value` for each rank are in bytes."""
        size = math.prod(value.shape[1:]) * value.element_size()
        self.traffic[phase] += torch.tensor(rows) * size

    def gather(self, numbers: Tensor) -> Tensor:
        """(R, n): what each rank has in its (n) whole numbers."""
        found = self.whole(numbers)
        self.count("overhead", [1] * self.ranks, numbers[None])
        return found.view(self.ranks, -1)

    def whole(self, share: Tensor) -> Tensor:
        """Shares of equal shapes (n, ...) of all ranks side by side: (R*n, ...), no gradient."""
        own = share.detach().contiguous()
        found = own.new_empty(self.ranks, *own.shape)
        with self.naming():
            dist.all_gather(list(found), own, group=self.group)
        return found.flatten(0, 1)

    def total(self, value: Tensor) -> Tensor:
        """The sum over ranks, the same on each.

        Its gradient is that of the sum of all ranks' losses, under the assumption that each rank
        does the same with it: R times its own. So no collective is needed in the backward pass.
        """
        return _Total.apply(self, value)  # type: ignore[no-any-return, no-untyped-call]

    def check_same(self, told: Mapping[str, Sequence[Any]], found: Tensor) -> None:
        """Raise unless all ranks tell the same.

        Args:
            told: by name this rank's number, and a function that makes a text of such a number.
            found: (R, n) the numbers that all ranks told, in this order.

        Raises:
            ValueError: two ranks differ; it says in what, and which.
        """
        if torch.equal(found, found[:1].expand_as(found)):
            return
        for (name, (_, text)), column in zip(told.items(), found.t().tolist(), strict=True):
            if len(set(column)) > 1:
                other = next(rank for rank, value in enumerate(column) if value != column[0])
                one, two = (f"{text(column[r])} on rank {self.names[r]}" for r in (0, other))
                raise ValueError(f"{name}: expected the same on all ranks, got {one}, {two}")

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """What fails inside is told with the numbers of the ranks that don't answer.

        A rank doesn't if it is dead or stalled, has raised an error, or went on without this call.
        The group is of no use afterwards.

        Raises:
            RuntimeError: a collective failed, or its time was over.
        """
        try:
            yield
        except RuntimeError as error:
            missing = ", ".join(map(str, self._missing()))
            found = f"no answer from rank {missing}"
            if not missing:
                found = "an answer from all, which were at different places of their programs"
            wanted = "every rank to take part in this exchange"
            raise RuntimeError(f"group: expected {wanted}, got {found}") from error

    def _missing(self) -> list[int]:
        """Who doesn't say, within a time of grace, that it has seen the failure too."""
        waiting = set(range(self.ranks)) - {self.rank}
        try:
            store = self.group.get_group_store()
            store.set(f"failed/{self.rank}", "seen")
            end = time.monotonic() + GRACE
            while waiting and time.monotonic() < end:
                waiting = {r for r in waiting if not store.check([f"failed/{r}"])}
                time.sleep(0.02)
        except RuntimeError:  # the store died with the rank that kept it
            waiting = {0} - {self.rank}
        return [self.names[r] for r in sorted(waiting)]


class Route:
    """How many rows go to each rank and come from each: one way of an exchange, and its reverse.

    Args:
        exchange: between whom.
        sent: for each rank how many rows go there, in this order.
        received: and how many come from there.
        phase: what the bytes of the rows are counted by; the reverse by `phase` + "_backward".
    """

    def __init__(
        self, exchange: Exchange, sent: Sequence[int], received: Sequence[int], phase: str
    ) -> None:
        self.exchange, self.phase = exchange, phase
        self.sent, self.received = list(sent), list(received)
        self._away: list[tuple[Any, Tensor, Tensor]] = []
        self._reverse: Route | None = None

    @property
    def reverse(self) -> Route:
        """The way back, on which the gradients go."""
        if self._reverse is None:
            phase = f"{self.phase}_backward"
            self._reverse = Route(self.exchange, self.received, self.sent, phase)
            self._reverse._reverse = self
        return self._reverse

    def depart(self, rows: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Send rows (sum of sent, ...) and what goes with them, and don't wait for them.

        What is returned are tickets, empty tensors that hold the graph: `arrive` takes them.
        """
        return _Depart.apply(self, _first(1 + len(others)), rows, *others)  # type: ignore[no-any-return, no-untyped-call]

    def arrive(self, *tickets: Tensor) -> tuple[Tensor, ...]:
        """Wait for what comes in the place of what left: (sum of received, ...) each."""
        return _Arrive.apply(self, _first(len(tickets)), *tickets)  # type: ignore[no-any-return, no-untyped-call]

    def start(self, value: Tensor, payload: bool) -> Tensor:
        """Send one value; gives its ticket."""
        own = value.contiguous()
        into = own.new_empty(sum(self.received), *own.shape[1:])
        self.exchange.count(self.phase if payload else "overhead", self.sent, own)
        options: dict[str, Any] = {"group": self.exchange.group, "async_op": True}
        with self.exchange.naming():
            work = dist.all_to_all_single(into, own, self.received, self.sent, **options)
        self._away.append((work, own, into))
        return own.new_empty(0)

    def finish(self) -> list[Tensor]:
        """All that came in the place of what was sent, once it is there."""
        away, self._away = self._away, []
        with self.exchange.naming():
            for work, _, _ in away:
                work.wait()
        return [into for _, _, into in away]


def _first(values: int) -> tuple[bool, ...]:
    """Of several values the first are the rows."""
    return (True,) + (False,) * (values - 1)


class _Depart(Function):
    """Sends; in the backward pass it waits for what came back."""

    @staticmethod
    def forward(ctx: Any, route: Route, payload: tuple[bool, ...], *values: Tensor) -> Any:
        ctx.route, ctx.payload = route, payload
        found = [route.start(v, own) for v, own in zip(values, payload, strict=True)]
        return _kept(ctx, found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _back(_Arrive, ctx, gradients)


class _Arrive(Function):
    """Waits; in the backward pass it sends back."""

    @staticmethod
    def forward(ctx: Any, route: Route, payload: tuple[bool, ...], *tickets: Tensor) -> Any:
        ctx.route, ctx.payload = route, payload
        return _kept(ctx, route.finish())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _back(_Depart, ctx, gradients)


def _kept(ctx: Any, found: list[Tensor]) -> tuple[Tensor, ...]:
    """Results, of which those have a gradient whose argument needs one: the same on each rank."""
    wanted = ctx.needs_input_grad[2:]
    ctx.mark_non_differentiable(*(v for v, asked in zip(found, wanted, strict=True) if not asked))
    return tuple(found)


def _back(way: Any, ctx: Any, gradients: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The gradients that are wanted, by the other of both functions on the way back."""
    wanted, route = ctx.needs_input_grad[2:], ctx.route.reverse
    chosen = [n for n, asked in enumerate(wanted) if asked]
    payload = tuple(ctx.payload[n] for n in chosen)
    found = iter(way.apply(route, payload, *(gradients[n] for n in chosen)))
    return None, None, *(next(found) if asked else None for asked in wanted)


class _Total(Function):
    """A sum over ranks; see `Exchange.total`."""

    @staticmethod
    def forward(ctx: Any, exchange: Exchange, value: Tensor) -> Tensor:
        ctx.ranks = exchange.ranks
        found = value.clone(memory_format=torch.contiguous_format)
        with exchange.naming():
            dist.all_reduce(found, group=exchange.group)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient * ctx.ranks
