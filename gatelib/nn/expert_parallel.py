"""The experts of a layer in several processes: each has some of them, and a batch of its own.

Imports torch; balance, check, exchange and impl of nn.
Must not import gatelib.reference, gatelib.lab or gatelib.data.

Rank r of R has the experts r*E/R to (r+1)*E/R - 1, whole; everything else of a model is there on
every rank. A forward pass

- gathers a few numbers of each rank: how many rows it has for whom, and what must be the same;
- sends each token once to each rank that has any of its experts, with indices and weights;
- runs the experts there, by the operator that one process has, on the rows that came;
- sends the weighted sum of each row back, and adds a token's sums up in the order of the ranks.

Shared experts run while the rows are on their way, in the backward pass too. What is sent has the
type in which the experts compute: a rank's sum is rounded to it once more than in one process.

The backward pass goes the same ways back. So all ranks must call the layer and the backward pass
equally often, also one without a token: give its loss the graph, as in `y.sum()`. On the others a
rank that doesn't ends in an error that names it: at once if it died, and otherwise when the time of
the group is over, `timeout` of `torch.distributed.new_group`, which is half an hour if none is
given. That is with gloo; with NCCL torch's own watchdog ends the process, unless the environment
has TORCH_NCCL_BLOCKING_WAIT=1. `torch.compile` leaves the layer out of its graphs, and with
fullgraph=True refuses it.

A rank's experts see the tokens of all ranks: their gradient is that of the sum of the ranks'
losses, and every other parameter has that of its own rank's loss. `average_gradients` makes of both
the gradient of the mean of all losses; so does `data_parallel`, which is torch's
DistributedDataParallel for such a model, and so do torch's `fully_shard` and `divide_experts`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch import distributed as dist

from gatelib.nn.check import autocast_is_on
from gatelib.nn.exchange import Exchange, Route
from gatelib.nn.impl import transforms

__all__ = [
    "ExpertParallel",
    "average_gradients",
    "data_parallel",
    "divide_experts",
    "expert_parameters",
    "gradient_norm",
]

STACKS = ("weight_in", "weight_out")
"""The parameters of a layer that are shared out."""
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
YES = ("False", "True")


class ExpertParallel(Exchange):
    """What a `gatelib.nn.MoE` has of its experts, and how its tokens come to the others'.

    experts: E of the layer; `share` of them are this rank's, from number `first`.
    counts: how many slots each expert got from all ranks in the last pass, identity experts too.
    traffic, reset_traffic(), whole(share): as `gatelib.nn.exchange.Exchange` has them.

    Args:
        group: the process group.
        experts: E, a multiple of its ranks.

    Raises:
        TypeError: it is no process group that this process belongs to.
        ValueError: the experts can't be shared out evenly.
    """

    def __init__(self, group: object, experts: int) -> None:
        super().__init__(group)
        if experts % self.ranks:
            wanted = f"a multiple of the {self.ranks} ranks of the group"
            raise ValueError(f"experts: expected {wanted}, got {experts}")
        self.experts, self.share = experts, experts // self.ranks
        self.first = self.rank * self.share
        self.counts: Tensor | None = None
        self.met = False

    def own_part(self, stack: Tensor) -> Tensor:
        """This rank's experts of a stack, whole (E, ...) or placed; another is given back."""
        from torch.distributed.tensor import DTensor

        if isinstance(stack, DTensor):
            local = stack.to_local()
            return local if len(local) == self.share else self.own_part(stack.full_tensor())
        if len(stack) != self.experts:
            return stack
        return stack[self.first : self.first + self.share]

    def placed(self, share: Tensor) -> Tensor:
        """This rank's experts as their part of a whole: a DTensor that uses the same memory."""
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import DTensor, Shard

        mesh = DeviceMesh.from_group(self.group, share.device.type)
        return DTensor.from_local(share, mesh, [Shard(0)], run_check=False)

    def __call__(
        self,
        layer: Any,
        given: tuple[Tensor, Tensor, Tensor],
        counts: Tensor,
        meanwhile: Callable[[], Tensor | None],
    ) -> tuple[Tensor, Tensor | None]:
        """What the experts of all ranks give, (N, D), and what `meanwhile` did.

        Args:
            layer: the MoE whose experts are shared out.
            given: rows (N, D), indices (N, k) of all experts, weights (N, k).
            counts: how many slots each expert has from this rank.
            meanwhile: is called while the rows are on their way.
        """
        _refuse()
        self._meet(layer)
        x, indices, weights = _narrowed(*given)
        token, sent = self._addressed(indices)
        received = self._agreed(layer, (x, indices, weights), counts, sent)
        away = Route(self, sent, received, "dispatch")
        on_the_way = away.depart(*(v.index_select(0, token) for v in (x, weights, indices)))
        shared = meanwhile()
        rows, shares, named = away.arrive(*on_the_way)
        own = named - self.first
        own = torch.where((own >= 0) & (own < self.share), own, self.share)
        home = Route(self, received, sent, "combine")
        (found,) = home.arrive(*home.depart(layer._stacked(rows, own, shares)))
        return _added(found, token, sent, len(x)), shared

    def _addressed(self, indices: Tensor) -> tuple[Tensor, list[int]]:
        """Which token's row stands where, (M), sorted by rank; and how many rows each rank gets."""
        there = (indices >= 0) & (indices < self.experts)
        rank = torch.where(there, indices // self.share, self.ranks)
        goes = torch.zeros(len(indices), self.ranks + 1, dtype=torch.bool, device=indices.device)
        goes = goes.scatter(1, rank, True)[:, : self.ranks]
        return goes.t().nonzero()[:, 1], goes.sum(0).tolist()

    def _agreed(
        self, layer: nn.Module, given: Sequence[Tensor], counts: Tensor, sent: list[int]
    ) -> list[int]:
        """How many rows come from each rank; raises where this call isn't the same on all."""
        told = _of_a_call(layer, *given)
        numbers = [number for number, _ in told.values()] + sent
        found = self.gather(torch.cat([counts.new_tensor(numbers), counts]))
        self.check_same(told, found[:, : len(told)])
        self.counts = found[:, len(numbers) :].sum(0)
        received: list[int] = found[:, len(told) + self.rank].tolist()
        return received

    def _meet(self, layer: Any) -> None:
        """Once: whether all ranks have the same layer, and the same weights but for the experts."""
        if self.met:
            return
        where = layer.weight_in.device
        for told in (_of_a_layer(layer), _of_its_weights(layer)):
            if told:
                numbers = torch.tensor([number for number, _ in told.values()], device=where)
                self.check_same(told, self.gather(numbers))
        self.met = True

    def __deepcopy__(self, memo: Any) -> ExpertParallel:
        """The same group: a process can't be copied."""
        return ExpertParallel(self.group, self.experts)

    def __getstate__(self) -> NoReturn:
        raise TypeError("group: expected None in a layer that is pickled; save its state_dict")


def share_out(layer: nn.Module) -> None:
    """Let a layer say in its `state_dict` that it has a part of each stack, and take its own.

    With a group a stack there is a DTensor of all experts, Shard(0), as
    `torch.distributed.checkpoint` saves it and reads it for any number of ranks. A state with whole
    stacks, of one process, can be loaded too.
    """
    layer.register_state_dict_post_hook(_say_whole)  # type: ignore[no-untyped-call]
    layer.register_load_state_dict_pre_hook(_take_own)  # type: ignore[no-untyped-call]


def _say_whole(layer: Any, state: Any, prefix: str, _: Any) -> None:
    for name in STACKS:
        state[prefix + name] = layer.parallel.placed(state[prefix + name])


def _take_own(layer: Any, state: Any, prefix: str, *_: Any) -> None:
    for name in STACKS:
        value = state.get(prefix + name)
        if isinstance(value, Tensor):
            state[prefix + name] = layer.parallel.own_part(value)


def expert_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a model that are no copies of another rank's: the experts of its layers."""
    return [getattr(layer, name) for layer in _layers(model) for name in STACKS]


def average_gradients(
    model: nn.Module,
    group: dist.ProcessGroup | None = None,
    replicas: dist.ProcessGroup | None = None,
) -> None:
    """Make each gradient of a model that of the mean of all ranks' losses.

    Call it on every rank, after the backward pass and before the optimiser's step; with several
    micro-batches once, after the last. Parameters that all ranks have are summed over the ranks;
    experts, whose gradients hold all ranks' tokens already, are not. Both are divided by the number
    of ranks. (Several public programs left out that division for the experts.)

    A parameter without a gradient on some ranks has 0 there; one without it on all stays without.

    Args:
        model: holds layers with a group, or none.
        group: all ranks that have this model; None for the default group.
        replicas: the ranks that have the same experts as this one, where the layers' groups are
            parts of `group`; None where they are `group`.

    Raises:
        ValueError: a layer's group and `replicas` don't make up `group`.
    """
    everyone = _default(group)
    experts = set(expert_parameters(model))
    copies = 1 if replicas is None else replicas.size()
    for layer in _layers(model):
        if layer.parallel.ranks * copies != everyone.size():
            wanted = f"{everyone.size() // layer.parallel.ranks} ranks with the same experts"
            raise ValueError(f"replicas: expected a group of {wanted}, got {replicas and copies}")
    _sum([p for p in model.parameters() if p.requires_grad and p not in experts], everyone)
    if replicas is not None:
        _sum([p for p in model.parameters() if p in experts], replicas)
    for p in model.parameters():
        if p.grad is not None:
            p.grad.div_(everyone.size())


def divide_experts(model: nn.Module, group: dist.ProcessGroup | None = None) -> set[nn.Parameter]:
    """Have the experts' gradients divided by the ranks as they come; and say which they are.

    For what averages all other gradients by itself, and has to leave these alone. Not beside
    `average_gradients`.

        fully_shard(model, ignored_params=divide_experts(model))     # torch.distributed.fsdp

    Args:
        model: holds layers whose group has as many ranks as `group`.
        group: all ranks; None for the default group.

    Raises:
        ValueError: a layer's group has another size.
    """
    everyone, experts = _default(group), set(expert_parameters(model))
    for layer in _layers(model):
        if layer.parallel.ranks != everyone.size():
            wanted = f"as many ranks as the layers' groups, {layer.parallel.ranks}"
            raise ValueError(f"group: expected {wanted}, got {everyone.size()}")
    for p in experts:
        p.register_hook(lambda gradient: gradient / everyone.size())  # type: ignore[no-untyped-call]
    return experts


def data_parallel(
    model: nn.Module, group: dist.ProcessGroup | None = None, **options: Any
) -> nn.parallel.DistributedDataParallel:
    """The model in torch's DistributedDataParallel, which leaves its experts alone.

    After a backward pass all gradients are those of the mean of all ranks' losses.

    Args:
        model, group: as in `divide_experts`, which this calls.
        options: for DistributedDataParallel.

    Raises: ValueError, as `divide_experts`.
    """
    experts = divide_experts(model, group)
    names = [name for name, p in model.named_parameters() if p in experts]
    wrapper: Any = nn.parallel.DistributedDataParallel
    wrapper._set_params_and_buffers_to_ignore_for_model(model, names)
    return wrapper(model, process_group=_default(group), **options)  # type: ignore[no-any-return]


def gradient_norm(model: nn.Module) -> Tensor:
    """The Euclidean norm of the gradients of all ranks' parameters, the same on each rank.

    Each rank's own norm differs by its experts, and ranks that clip by different norms drift apart:

        torch.nn.utils.clip_grads_with_norm_(model.parameters(), 1.0, gradient_norm(model))
    """
    experts = set(expert_parameters(model))
    total = _square([p for p in model.parameters() if p not in experts])
    for layer in _layers(model):
        own = _square([getattr(layer, name) for name in STACKS])
        total = total + layer.parallel.total(own).to(total)
    return total.sqrt()


# --- what must be the same on all ranks -----------------------------------------------------------


def _of_a_call(
    layer: nn.Module, x: Tensor, indices: Tensor, weights: Tensor
) -> dict[str, tuple[int, Any]]:
    """By name a number of this call, and what it says."""
    graph = x.requires_grad + 2 * weights.requires_grad
    return {
        "input": (DTYPES.index(x.dtype), DTYPES.__getitem__),
        "weights of the routing": (DTYPES.index(weights.dtype), DTYPES.__getitem__),
        "slots of a token": (indices.shape[1], str),
        "training": (int(layer.training), YES.__getitem__),
        "torch.is_grad_enabled()": (int(torch.is_grad_enabled()), YES.__getitem__),
        "gradients of input and weights": (graph, ("none", "input", "weights", "both").__getitem__),
    }


def _of_a_layer(layer: nn.Module) -> dict[str, tuple[int, Any]]:
    """The same of the layer."""
    sizes = ("experts", "identity_experts", "features", "hidden", "k")
    told: dict[str, tuple[int, Any]] = {name: (getattr(layer, name), str) for name in sizes}
    text = repr(layer) + repr([name for name, _ in _replicated(layer)])
    return told | {"layer": (zlib.crc32(text.encode()), "one that prints itself as {:08x}".format)}


def _of_its_weights(layer: nn.Module) -> dict[str, tuple[int, Any]]:
    """The same of the weights that all ranks have."""
    says = "bits whose sum is {}".format
    return {name: (_digest(value), says) for name, value in _replicated(layer)}


def _replicated(layer: nn.Module) -> list[tuple[str, Tensor]]:
    found = (*layer.named_parameters(), *layer.named_buffers())
    return [(name, value) for name, value in found if name not in STACKS]


def _digest(value: Tensor) -> int:
    """The sum of a tensor's bits, read as whole numbers: exact, whatever the order."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
    return int(value.detach().contiguous().view(whole).sum(dtype=torch.int64))


def _refuse() -> None:
    """What can't hold a collective is refused by name."""
    names = transforms() if not torch.compiler.is_compiling() else ["torch.compile"]
    if names:
        raise ValueError(f"group: expected None inside {names[0]}, got a process group")


def _narrowed(x: Tensor, indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In the types in which the experts compute: what is sent is as small as what is used."""
    kind = x.device.type
    if x.dtype == torch.float64 or not autocast_is_on(kind):
        return x, indices, weights
    return x.to(torch.get_autocast_dtype(kind)), indices, weights.float()


# --- rows and gradients ---------------------------------------------------------------------------


def _added(rows: Tensor, token: Tensor, sent: list[int], tokens: int) -> Tensor:
    """(N, D) sums of the rows of each token, rank by rank, in float32 at least, rounded once."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    y = rows.new_zeros(tokens, rows.shape[1], dtype=wide)
    for own, part in zip(torch.split(token, sent), torch.split(rows, sent), strict=True):
        y.index_add_(0, own, part.to(wide))  # none of a rank's rows is of the same token
    return y.to(rows.dtype)


def _layers(model: nn.Module) -> list[Any]:
    """Those with a group, each once."""
    return [m for m in model.modules() if isinstance(getattr(m, "parallel", None), ExpertParallel)]


def _default(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    found = dist.group.WORLD if group is None else group
    if found is None:
        raise ValueError("group: expected one, or a default group, got None before there is one")
    return found


def _square(parameters: Sequence[Tensor]) -> Tensor:
    """The sum of the squares of all gradients."""
    found = [p.grad.square().sum() for p in parameters if p.grad is not None]
    return torch.stack(found).sum() if found else torch.zeros((), device=_device(parameters))


def _device(parameters: Sequence[Tensor]) -> torch.device:
    return parameters[0].device if parameters else torch.device("cpu")


def _sum(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Sum the gradients of each over the ranks, in one collective for each type of number."""
    if not parameters:
        return
    there = torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device)
    there = there.int()
    dist.all_reduce(there, dist.ReduceOp.MAX, group=group)
    used = [p for p, known in zip(parameters, there.tolist(), strict=True) if known]
    for p in used:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    for dtype in sorted({p.dtype for p in used}, key=str):
        gradients = [p.grad for p in used if p.dtype == dtype and p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat, group=group)
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()
