"""The witness of autograd: any computation in torch, on arrays, with all its gradients.

Imports NumPy and torch.
Must not import the floors below; it runs whatever it is given.

The call and what comes back are those of `gatelib.derived.gradients`, so that both can be handed to
`agreement` as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["called", "gradients", "over_time"]

Tensors = Mapping[str, Tensor]
WEIGHTS = {"W": "weight_ih_l0", "U": "weight_hh_l0", "b": "bias_ih_l0", "b_u": "bias_hh_l0"}


def gradients(
    run: Callable[[Tensors], Tensors],
    inputs: Mapping[str, NDArray[Any]],
    upstream: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[Any]]:
    """The outputs of `run` by name, and the loss's gradient `d_NAME` by each of its inputs.

    Args:
        run: computes outputs by name from inputs by name; an input that it doesn't use has
            gradient 0.
        inputs: arrays of floats by name; each becomes a leaf of its own dtype.
        upstream: the loss's gradients by the outputs, by their names; 0 where none is given.

    Raises: ValueError for an upstream gradient of no output, or of another shape.
    """
    leaves = {name: torch.tensor(array, requires_grad=True) for name, array in inputs.items()}
    outputs = run(leaves)
    for name, d in upstream.items():
        if name not in outputs or np.shape(d) != outputs[name].shape:
            shapes = {known: tuple(value.shape) for known, value in outputs.items()}
            raise ValueError(f"upstream[{name!r}]: expected one of {shapes}, got {np.shape(d)}")
    wanted = [name for name in upstream if outputs[name].requires_grad]
    if wanted:
        seeds = [torch.as_tensor(upstream[name]) for name in wanted]
        torch.autograd.backward([outputs[name] for name in wanted], seeds)
    found = {name: torch.zeros_like(v) if v.grad is None else v.grad for name, v in leaves.items()}
    named = dict(outputs) | {f"d_{name}": d for name, d in found.items()}
    return {name: value.detach().numpy() for name, value in named.items()}


def called(module: nn.Module, weights: Tensors, *args: Any) -> Any:
    """What the module gives with these weights in the place of its parameters; the others are 0."""
    dtype = next((value.dtype for value in weights.values()), None)
    own = {name: torch.zeros_like(p, dtype=dtype) for name, p in module.named_parameters()}
    for name in weights.keys() - own.keys():
        raise ValueError(f"weights: expected names of {sorted(own)}, got {name!r}")
    return torch.func.functional_call(module, own | dict(weights), args)


def over_time(layer: nn.Module, **names: str) -> Callable[[Tensors], dict[str, Tensor]]:
    """How `gradients` runs a recurrent layer of one direction, by the names of the reference.

    The inputs are `x`, initial states `h0`, … (B, H), and weights: W, U, b, b_u and vectors have
    torch's names with `_l0`, others the parameter's name as given in `names`.
    """

    def run(given: Tensors) -> dict[str, Tensor]:
        states = {name[:-1]: v for name, v in given.items() if name.endswith("0")}
        rest = given.keys() - {"x", *(f"{name}0" for name in states)}
        known = names or {name: WEIGHTS.get(name, f"{name}_l0") for name in rest}
        weights = {known[name]: given[name] for name in rest}
        flat = not hasattr(layer, "num_layers")
        first = {name: value if flat else value[None] for name, value in states.items()}
        one = next(iter(first.values())) if len(first) == 1 else tuple(first.values())
        y, last = called(layer, weights, given["x"], first if hasattr(layer, "cell") else one)
        if not isinstance(last, dict):
            last = dict(zip(states, last if isinstance(last, tuple) else (last,), strict=True))
        return {"y": y} | {f"final_{k}": v if flat else v[0] for k, v in last.items()}

    return run
