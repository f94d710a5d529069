"""Records what the gates of a model do, in gatelib's modules and in torch's own.

Imports NumPy, torch and gatelib.lab.readers.
Must not import gatelib.reference: an instrument is no witness.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gatelib.lab.readers import Reader, Role, reader_of

__all__ = ["Recording", "record"]

Array = NDArray[Any]


class Recording(dict[str, dict[str, Array]]):
    """{path of the module: {gate: array}}; the path of the model itself is its class's name.

    roles: {path: what the names mean}, for the instruments that ask which gate keeps the memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.roles: dict[str, Role] = {}

    def add(self, path: str, gates: dict[str, Tensor], role: Role | None = None) -> None:
        """Add one call. Calls of the same module follow each other on the time axis.

        A gate that is a parameter, and so the same in each call, is kept once.
        """
        layer = self.setdefault(path, {})
        self.roles[path] = role or Role()
        for name, value in gates.items():
            value = value.detach().cpu()
            new = (value.float() if value.dtype.itemsize < 4 else value).numpy()
            old = layer.get(name)
            if old is not None and new.ndim < 3 and np.array_equal(old, new):
                continue
            if old is not None and (new.ndim != 3 or old[:, :1].shape != new[:, :1].shape):
                raise ValueError(
                    f"{path}: expected one forward pass, or calls of equal (B, H) that follow each "
                    f"other in time; got {name} of shape {old.shape}, then {new.shape}"
                )
            layer[name] = new.copy() if old is None else np.concatenate([old, new], 1)


def _watch(recording: Recording, path: str, module: nn.Module, reader: Reader) -> Any:
    @torch.no_grad()
    def seen(module: nn.Module, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        signature = inspect.signature(module.forward)
        given = signature.bind(*args, **kwargs).arguments
        arguments = [given.get(name) for name in signature.parameters]
        for suffix, gates in reader.read(module, arguments, result).items():
            recording.add(path + suffix, gates, reader.role(module))

    return module.register_forward_hook(seen, with_kwargs=True)


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Record the gates of every module of `model` that is called inside the `with` block.

    Known are torch.nn.LSTM, GRU, RNN and their cells, every gated layer of gatelib.nn,
    torch.nn.GLU, and activation modules (Sigmoid, Hardsigmoid, Softmax, Tanh) as "gate". A function
    such as torch.sigmoid inside a forward can't be seen.

    Yields a dict {path: {gate: array}}, filled as the model runs. Arrays are (B, T, H) whatever the
    layout of the layer was, nan beyond the end of a sequence; a layer over depth or an activation
    keeps the shape of its output. With several layers or directions the path ends in .l0,
    .l0_reverse, .l1, …; reverse gates stand at the step whose input they read. Names: i f g o c h
    (LSTM, c the cell state), r z n h (GRU), h (RNN, SkipRNN), h y s (Jordan), h t c y (Highway, c
    the carry gate), n t c h (RecurrentHighway), i f g o c h d (DepthGatedLSTM, d the gate on the
    memory below), r z h (GTrXLGate), attention (B, T, S), g (AttentionPool: (B, T, hops); SoftPool:
    (B, T, D)), z (ContextGate), p (PointerGenerator: (B, T, 1)), alpha (Residual, as its
    parameter), w s (MoE: weights and scores by expert, (B, T, E)), dispatch and
    combine (SoftMoE: (B, T, slots)), r mask (MixtureOfDepths), gate and beta (SqueezeExcitation,
    ECA, FiLM: (B, C), with gamma where that isn't a gate), gate; gatelib.nn's Recurrent, GLU,
    GatedMLP and the recurrent layers over films (B, T, C, H, W) have all the names of their Spec's
    equations.

    Raises:
        TypeError: `model` is no module, or has no module whose gates are known.
        ValueError: dropout between recurrent layers is active.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    found = [(path, m, reader_of(m)) for path, m in model.named_modules()]
    known = [(path or type(m).__name__, m, reader) for path, m, reader in found if reader]
    if not known:
        raise TypeError(f"model: expected a module with gates inside, got {type(model).__name__}")
    recording = Recording()
    hooks = [_watch(recording, path, module, reader) for path, module, reader in known]
    try:
        yield recording
    finally:
        for hook in hooks:
            hook.remove()
