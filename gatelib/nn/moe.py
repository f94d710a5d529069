"""A mixture of experts: a router sends each token to a few of many gated MLPs.

Imports torch, gatelib.equations.routers, gatelib.kernels.segments, gatelib.spec; balance, balancer,
check, choices, expert_parallel, experts, glu, impl and routers of nn.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from gatelib.equations.routers import CONFIGURATIONS
from gatelib.kernels.segments import experts_mlp, experts_mlp_reference
from gatelib.nn.balance import expert_counts
from gatelib.nn.balancer import Balance, Balancer
from gatelib.nn.check import (
    ShapeError,
    check_choice,
    check_dtype,
    check_features,
    check_flags,
    check_lengths,
    check_number,
    check_sizes,
)
from gatelib.nn.choices import ExpertChoiceRouter
from gatelib.nn.expert_parallel import ExpertParallel, share_out
from gatelib.nn.experts import stack_of, start_share, start_stack
from gatelib.nn.glu import GatedMLP, gating
from gatelib.nn.impl import Impl, check_impl, takes_reference, traced
from gatelib.nn.routers import Routing, Score, TopKRouter, flattened, rounded_up
from gatelib.spec import Spec

__all__ = ["MoE"]

Priority = Literal["position", "probability"]


class MoE(nn.Module):
    """E gated MLPs, of which each token passes through k, weighted by a router.

        i, w = router(x)                         for each token
        y = sum over its k slots of w_s f_{i_s}(x)  + shared(x)

    Parameters: `router`'s; `weight_in` (E, G*H, D) and `weight_out` (E, D, H), each expert's as
    `GatedMLP` has them, without biases; `shared`, a GatedMLP, and `shared_gate` (1, D), or None.

    Without a capacity no token is dropped. With one, an expert takes at most
    ceil(capacity_factor k N / E) slots of the N live tokens of a call, and the others give 0.

    After a forward pass `routing` is what the router said, `loss()` what is to be added to the
    model's loss, and `metrics` what to watch; `return_routing=True` hands the routing over instead.

    With a group of R processes each holds E/R experts, the weights (E/R, ...), and has tokens of
    its own; the rows go to the experts' ranks and back, and `gatelib.nn.expert_parallel` says what
    that asks of the program around. `parallel` is what the layer has of its group, and counts the
    bytes. Outputs, losses and gradients are those of one process that has all tokens. Two things
    look at a rank's own tokens alone, as if it were the only one: a capacity, and a router that
    compares tokens, as `ExpertChoiceRouter` does.

    Args:
        features: D.
        experts: E.
        k: how many experts a token has.
        hidden: H of an expert; None for as many as give k experts the weights of a plain MLP of
            4*D units, rounded up to a multiple of 8, as fast matrix products want it.
        kind: the gate between both maps, as in `GatedMLP`.
        router: the score of a `TopKRouter`; or a published model's, as `TopKRouter.from_config` has
            them; or a module that returns a `Routing`.
        shared: how many experts of H every token passes through besides; one MLP of shared*H.
        shared_gate: whether their output is multiplied by sigmoid(w x).
        identity_experts: how many more experts hand their token on, at no cost; indices from E.
        capacity_factor: None for no limit.
        priority: who comes first where an expert is full. First choices come before second ones.
            Then by "position": of (B, T, D) the earlier of any sequence, before the later. Or by
            "probability": the token whose largest weight is larger, and of equal ones by position.
        balance: what keeps experts equally busy: a loss ("importance", with the load where there is
            noise; "switch"; per "sequence"; "global", with counts since the last update), or the
            router's selection bias, moved by `update_balance` ("bias" by sign, "quantile").
        balance_weight: of that loss.
        balance_rate: the step of "bias".
        centred: whether the mean is taken out of that step.
        z_weight: of the router's z-loss.
        scales: what is multiplied by w: an expert's "output", or its "input"; None for what the
            published model does whose router is named, and for the output otherwise.
        impl: "reference" runs expert by expert under autograd, or every expert on every token where
            no number can be read. "fused" is one operator over segments of sorted tokens, which
            keeps x and the experts' preactivations alone. "auto" is as `gatelib.nn.impl` says.
        group: a `torch.distributed.ProcessGroup`, whose ranks share the experts out between them;
            None for one process, which has all.
        device: where the parameters live.
        dtype: their floating-point type.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or arguments contradict each other.

    Source: Shazeer et al. 2017, arXiv:1701.06538; shared experts Dai et al. 2024, arXiv:2401.06066;
    identity experts Meituan 2025, arXiv:2509.01322.
    """

    def __init__(
        self,
        features: int,
        experts: int,
        k: int = 2,
        *,
        hidden: int | None = None,
        kind: str | Spec = "swiglu",
        router: str | nn.Module = "softmax",
        shared: int = 0,
        shared_gate: bool = False,
        identity_experts: int = 0,
        capacity_factor: float | None = None,
        priority: Priority = "position",
        balance: Balance | None = None,
        balance_weight: float = 0.01,
        balance_rate: float = 1e-3,
        centred: bool = True,
        z_weight: float = 0.0,
        scales: Literal["output", "input"] | None = None,
        impl: Impl = "auto",
        group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(features=features, experts=experts, k=k)
        _check_numbers(shared=shared, identity_experts=identity_experts)
        check_flags(shared_gate=shared_gate)
        check_choice("priority", priority, get_args(Priority))
        check_impl(impl)
        check_dtype(dtype)
        self.gating, self.impl = gating(kind), impl
        size = _own_width(features, k, self.gating.parts) if hidden is None else hidden
        check_sizes(hidden=size)
        self.features, self.experts, self.k, self.hidden = features, experts, k, size
        self.identity_experts, self.every = identity_experts, experts + identity_experts
        self.capacity_factor, self.priority = _checked_capacity(capacity_factor), priority
        self.scales = _checked_scales(scales, router)
        options: dict[str, Any] = {"rate": balance_rate, "centred": centred, "z_weight": z_weight}
        self.parallel = None if group is None else ExpertParallel(group, experts)
        total = None if self.parallel is None else self.parallel.total
        options |= {"weight": balance_weight, "device": device, "total": total}
        self.balancer = Balancer(self.every, k, balance, **options)
        own: dict[str, Any] = {"device": device, "dtype": dtype}
        self.router = self._made_router(router, own)
        self._make_stacks(own)
        self._make_shared(shared, shared_gate, kind, own)
        self._start()

    def _made_router(self, router: str | nn.Module, own: dict[str, Any]) -> nn.Module:
        every, biased = self.every, self.balancer.moves_bias
        if not isinstance(router, str | nn.Module):
            found = type(router).__name__
            raise TypeError(f"router: expected a name or a torch.nn.Module, got {found}")
        if isinstance(router, str):
            check_choice("router", router, [*get_args(Score), *CONFIGURATIONS])
            more: dict[str, Any] = {"experts": every, "k": self.k} | own
            more |= {"selection_bias": True} if biased else {}
            if router in CONFIGURATIONS:
                return TopKRouter.from_config(router, self.features, **more)
            return TopKRouter(self.features, score=router, **more)  # type: ignore[arg-type]
        if getattr(router, "experts", every) != every:
            raise ValueError(
                f"router: expected one of {every} experts (experts + identity_experts), "
                f"got {router.experts}"
            )
        if biased and getattr(router, "selection_bias", None) is None:
            raise ValueError(
                f"router: expected a selection bias for balance={self.balancer.balance!r}, got none"
            )
        return router

    def _make_stacks(self, own: dict[str, Any]) -> None:
        here = self.experts if self.parallel is None else self.parallel.share
        shape = here, self.hidden, self.features, self.gating.parts
        self.weight_in, self.weight_out = stack_of(*shape, **own)
        if self.parallel is not None:
            share_out(self)

    def _make_shared(self, shared: int, gated: bool, kind: str | Spec, own: dict[str, Any]) -> None:
        if gated and not shared:
            raise ValueError("shared_gate: expected False without a shared expert, got True")
        self.shared = self.shared_gate = None
        if shared:
            size = shared * self.hidden
            self.shared = GatedMLP(self.features, size, kind=kind, impl=self.impl, **own)
        if gated:
            self.shared_gate = nn.Linear(self.features, 1, bias=False, **own)

    def reset_parameters(self) -> None:
        """Draw all anew, each map as a `torch.nn.Linear`; biases and counts are 0."""
        self._start()
        for part in self.children():
            if callable(start := getattr(part, "reset_parameters", None)):
                start()

    def _start(self) -> None:
        stacks = self.weight_in, self.weight_out
        if self.parallel is None:
            start_stack(stacks)
        else:
            start_share(stacks, self.experts, self.parallel.first)

    @classmethod
    def from_config(cls, name: str, features: int, **changes: Any) -> Self:
        """The layer of a published model: its router, and its shared and identity experts.

        Args:
            name: a key of CONFIGURATIONS in `gatelib.equations.routers`, where its source stands.
            features: D.
            changes: arguments that shall differ: experts=16, k=2, hidden=32 for a small one.

        Raises: TypeError or ValueError, as the class and `TopKRouter.from_config`.
        """
        check_choice("name", name, CONFIGURATIONS)
        given = CONFIGURATIONS[name]
        idle = given.identity_experts
        own: dict[str, Any] = {
            "experts": given.experts - idle,
            "identity_experts": idle,
            "k": given.k,
        }
        own |= {"shared": given.shared, "shared_gate": given.shared_gate, "router": name}
        return cls(features, **own | changes)

    @property
    def causal(self) -> bool:
        """Whether an output depends on no later position of its sequence."""
        first = self.priority == "position" and self.k == 1
        return getattr(self.router, "causal", True) and (self.capacity_factor is None or first)

    def forward(
        self,
        input: Tensor,
        lengths: Tensor | None = None,
        live: Tensor | None = None,
        tokens: Tensor | None = None,
        return_routing: bool = False,
    ) -> Any:
        """Map x (..., D) to y of the same shape; with `return_routing` to (y, routing).

        Args:
            input: x; (B, T, D) where there are lengths, and for the loss per sequence.
            lengths: (B) whole numbers, 1 to T; later positions are padding.
            live: (...) of torch.bool, False for padding, in the place of lengths.
            tokens: (...) of torch.int64, for a router that reads them.

        Padding has no expert, takes no capacity, counts in no loss, and gives 0.

        Raises:
            TypeError: the input is no tensor or of another dtype than the parameters.
            ValueError: a shape, a device or a length doesn't fit.
        """
        node = traced(self, input, lengths, live, tokens, return_routing)
        if node is not None:
            return node
        check_features("input", input, self.features, self.weight_in)
        x, alive = flattened(input, _checked_live(input, lengths, live))
        more = () if tokens is None else (_flat_tokens(tokens, input, self.router),)
        routing: Routing = self.router(x, alive, *more)
        kept = self._kept(routing, input.shape[:-1])
        y, own = self._routed(x, routing, kept)
        own = self._of_all(x) if own is None else own
        y = y if own is None else y + own
        counts = None if self.parallel is None else self.parallel.counts
        self.balancer(routing, input.shape[:-1], self.router, counts)
        y = y.reshape(input.shape)
        return (y, routing) if return_routing else y

    def _of_all(self, x: Tensor) -> Tensor | None:
        """What the experts give that every token has."""
        if self.shared is None:
            return None
        own: Tensor = self.shared(x)
        return own if self.shared_gate is None else torch.sigmoid(self.shared_gate(x)) * own

    def _routed(
        self, x: Tensor, routing: Routing, kept: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What the experts give, (N, D); and the shared ones', where that was done meanwhile."""
        indices, weights = routing.indices, routing.weights
        if kept is not None:
            indices = indices.masked_fill(~kept, self.every)
        given = x, indices, weights
        if self.scales == "input":
            scaled = (x.unsqueeze(1) * weights.unsqueeze(-1)).to(x.dtype).flatten(0, 1)
            alone = indices.reshape(-1, 1)
            given = scaled, alone, torch.ones_like(alone).to(x)
        if self.parallel is None:
            y, own = self._stacked(*given), None
        else:
            counts = expert_counts(routing.indices, self.every)
            y, own = self.parallel(self, given, counts, lambda: self._of_all(x))
        if self.scales == "input":
            y = y.reshape(*indices.shape, self.features).sum(1)
        if self.identity_experts:
            idle = (indices >= self.experts) & (indices < self.every)
            share = torch.where(idle, weights, 0).sum(-1, keepdim=True)
            y = y + (x * share).to(y.dtype)
        return y, own

    def _stacked(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of what the experts that are here give, by either path."""
        given = x, indices, weights, self.weight_in, self.weight_out
        run = experts_mlp_reference if takes_reference(self.impl, given) else experts_mlp
        return run(self.gating.known, *given)

    def _kept(self, routing: Routing, shape: tuple[int, ...]) -> Tensor | None:
        """(N, k), False for a slot that found its expert full; None without a capacity."""
        if self.capacity_factor is None:
            return None
        order = _order(routing, shape, self.priority)
        asked = routing.indices.t().gather(1, order.expand(routing.indices.size(1), -1))
        place = _place(asked.reshape(-1)).reshape(asked.shape)
        tokens = len(order) if routing.live is None else routing.live.sum()
        most = rounded_up(tokens, self.capacity_factor * self.k / self.every)
        fits = (place < most) | (asked >= self.experts)
        return torch.zeros_like(fits).scatter(1, order.expand_as(fits), fits).t()

    @property
    def routing(self) -> Routing:
        """What the router said in the last forward pass, with that pass's graph."""
        return self.balancer.last()[0]

    def loss(self) -> Tensor:
        """What is to be added to the model's loss for the last forward pass; see `Balancer.loss`.

        Of all layers of a model `auxiliary_loss(model)` is the sum.
        """
        return self.balancer.loss()

    @property
    def metrics(self) -> dict[str, Tensor]:
        """What to watch of the last forward pass; see `Balancer.metrics`.

        And `dropped`, the share of the live slots that found their expert full.
        """
        found = self.balancer.metrics()
        routing, shape = self.balancer.last()
        asked = (routing.indices < self.every).sum()
        kept = self._kept(routing, shape)
        lost = asked * 0 if kept is None else ((routing.indices < self.every) & ~kept).sum()
        return found | {"dropped": lost / asked.clamp(min=1)}

    def update_balance(self) -> None:
        """Move the router's selection bias by what came since the last call; see `Balancer.update`.

        Once after each step of the optimiser, not after each of its micro-batches; `updated_after`
        has it done.
        """
        self.balancer.update(getattr(self.router, "selection_bias", None))

    def extra_repr(self) -> str:
        """What the layer was made with; its parts tell the rest."""
        text = [f"{self.features}, {self.experts}, {self.k}, hidden={self.hidden}"]
        text += [f"kind={self.gating.spec.name!r}"]
        told: dict[str, tuple[Any, Any]] = {
            "identity_experts": (self.identity_experts, 0),
            "scales": (self.scales, "output"),
        }
        told |= {"capacity_factor": (self.capacity_factor, None)}
        told |= {"priority": (self.priority, "position")}
        told |= {"ranks": (1 if self.parallel is None else self.parallel.ranks, 1)}
        text += [f"{name}={value!r}" for name, (value, usual) in told.items() if value != usual]
        return ", ".join([*text, f"impl={self.impl!r}"])


def _check_numbers(**numbers: object) -> None:
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name}: expected an integer, got {type(number).__name__}")
        if number < 0:
            raise ValueError(f"{name}: expected at least 0, got {number}")


def _flat_tokens(tokens: Tensor, input: Tensor, router: nn.Module) -> Tensor:
    if isinstance(router, TopKRouter | ExpertChoiceRouter):
        found = f"with a {type(router).__name__}, which reads none, got a tensor"
        raise ValueError(f"tokens: expected None {found}")
    if tokens.shape != input.shape[:-1]:
        shape = tuple(input.shape[:-1])
        raise ShapeError(f"tokens: expected shape {shape}, got {tuple(tokens.shape)}")
    return tokens.reshape(-1)


def _own_width(features: int, k: int, parts: int) -> int:
    """H at which k experts have the 8 D^2 weights of a plain MLP of 4 D; a multiple of 8."""
    return -(-8 * features // ((parts + 1) * k * 8)) * 8


def _checked_capacity(factor: object) -> float | None:
    if factor is None:
        return None
    check_number(factor, "capacity_factor")
    if not factor > 0:  # type: ignore[operator]
        raise ValueError(f"capacity_factor: expected more than 0, or None, got {factor}")
    return float(factor)  # type: ignore[arg-type]


def _checked_scales(scales: str | None, router: object) -> str:
    if scales is not None:
        check_choice("scales", scales, ("output", "input"))
        return scales
    known = CONFIGURATIONS.get(router) if isinstance(router, str) else None
    return "output" if known is None else known.scales


def _checked_live(input: Tensor, lengths: Tensor | None, live: Tensor | None) -> Tensor | None:
    """Which positions are live, of either."""
    if lengths is None:
        return live
    if live is not None:
        raise ValueError("live: expected None beside lengths, got a tensor")
    if input.dim() != 3:
        raise ShapeError(f"input: expected (B, T, D) with lengths, got {tuple(input.shape)}")
    check_lengths(lengths, input.size(1), input.size(0))
    positions = torch.arange(input.size(1), device=input.device)
    return positions < lengths.to(input.device)[:, None]


def _order(routing: Routing, shape: tuple[int, ...], priority: Priority) -> Tensor:
    """(N) the tokens in the order in which they choose."""
    tokens = torch.arange(len(routing.indices), device=routing.indices.device)
    if len(shape) == 2:
        tokens = tokens.reshape(shape).t().reshape(-1)
    if priority == "position":
        return tokens
    return tokens[routing.weights.detach().amax(-1)[tokens].argsort(descending=True, stable=True)]


def _place(experts: Tensor) -> Tensor:
    """How many earlier slots of (S) name the same expert."""
    order = experts.argsort(stable=True)
    ranked = experts[order]
    first = torch.searchsorted(ranked, ranked)
    steps = torch.arange(len(experts), device=experts.device)
    return torch.empty_like(order).scatter(0, order, steps - first)
