"""What `torch.distributed.checkpoint` saves of a model whose experts are in several processes.

Imports torch; expert_parallel of nn.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gatelib.nn.expert_parallel import STACKS, ExpertParallel

__all__ = ["Saved"]


class Saved:
    """A model and its optimisers, to be saved by so many ranks and loaded by as many others.

        torch.distributed.checkpoint.save({"all": Saved(model, optimizer)}, checkpoint_id=folder)
        torch.distributed.checkpoint.load({"all": Saved(model, optimizer)}, checkpoint_id=folder)

    It is what that package calls Stateful. A stack of experts is saved as one tensor of all, each
    rank writing its own; and so is what an optimiser keeps for it of the same shape, its moments.
    (`get_state_dict` alone takes these for copies, and of all ranks' one is kept.) Both calls are
    to be made by every rank; by one process without a group give them `no_dist=True`.

    Args:
        model: holds layers with a group, or none; DistributedDataParallel around it is looked into.
        optimizers: of its parameters.
    """

    def __init__(self, model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
        inside: Any = model
        if isinstance(model, nn.parallel.DistributedDataParallel):
            inside = model.module
        self.model: nn.Module = inside
        self.optimizers = optimizers

    def state_dict(self) -> dict[str, Any]:
        """{"model": ..., "optimizer": ...}; what is loaded into it is loaded in place."""
        from torch.distributed.checkpoint.state_dict import get_state_dict

        model, optimizer = get_state_dict(self.model, self.optimizers)
        return {"model": model, "optimizer": self._stacks(optimizer, ExpertParallel.placed)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give the model and the optimisers what `state_dict` holds."""
        from torch.distributed.checkpoint.state_dict import set_state_dict

        optimizer = self._stacks(state_dict["optimizer"], ExpertParallel.own_part)
        given = {"model_state_dict": state_dict["model"], "optim_state_dict": optimizer}
        set_state_dict(self.model, self.optimizers, **given)

    def _stacks(
        self, state: dict[str, Any], turned: Callable[[ExpertParallel, Tensor], Tensor]
    ) -> dict[str, Any]:
        """An optimiser's state, with what it keeps for each stack of experts turned."""
        found = dict(state.get("state", {}))
        for name, layer in self.model.named_modules():
            parallel = getattr(layer, "parallel", None)
            if not isinstance(parallel, ExpertParallel):
                continue
            for stack in STACKS:
                key, like = f"{name}.{stack}".lstrip("."), getattr(layer, stack)
                found[key] = {
                    kind: turned(parallel, value) if _moment(value, like) else value
                    for kind, value in found.get(key, {}).items()
                }
        return state | {"state": found}


def _moment(value: object, parameter: Tensor) -> bool:
    """Whether it holds a number for each of the parameter's: its own part, or that of the whole."""
    return isinstance(value, Tensor) and value.shape[1:] == parameter.shape[1:] and value.dim() > 1
