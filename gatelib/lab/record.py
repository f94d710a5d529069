"""Records what the gates of a model do, in gatelib's modules and in torch's own.

Imports NumPy, torch and gatelib.nn.
Must not import gatelib.reference: an instrument is no witness.

torch's recurrent layers hide their gates. They are computed again from the weights, the input and
the outputs that were seen: h_{t-1} is known for every t, so all steps are done at once, and only
the cell state is a loop over time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from gatelib.lab.replay import replay
from gatelib.nn.gate import FeatureGate, Gate
from gatelib.nn.gru import GRU
from gatelib.nn.recurrent import Recurrent

__all__ = ["Recording", "record"]

Array = NDArray[Any]
Gates = dict[str, Tensor]
Reader = Callable[[Any, list[Any], Any], dict[str, Gates]]
"""(module, arguments in the order of its forward, what it returned) -> {suffix: gates}."""


class Recording(dict[str, dict[str, Array]]):
    """{path of the module: {gate: array}}; the path of the model itself is its class's name."""

    def add(self, path: str, gates: Gates) -> None:
        """Add one call. Calls of the same module follow each other on the time axis."""
        layer = self.setdefault(path, {})
        for name, value in gates.items():
            value = value.detach().cpu()
            new = (value.float() if value.dtype.itemsize < 4 else value).numpy()
            old = layer.get(name)
            if old is not None and (new.ndim != 3 or old[:, :1].shape != new[:, :1].shape):
                raise ValueError(
                    f"{path}: expected one forward pass, or calls of equal (B, H) that follow each "
                    f"other in time; got {name} of shape {old.shape}, then {new.shape}"
                )
            layer[name] = new.copy() if old is None else np.concatenate([old, new], 1)


class Sequence(NamedTuple):
    """A padded batch `values` (B, T, D) and the `lengths` (B,) of its rows."""

    values: Tensor
    lengths: Tensor

    @property
    def inside(self) -> Tensor:
        """(B, T, 1): does this step belong to the sequence?"""
        steps = torch.arange(self.values.shape[1], device=self.values.device)
        return (steps < self.lengths[:, None])[..., None]


def as_sequence(value: Tensor | PackedSequence, batch_first: bool) -> Sequence:
    """Bring what a recurrent layer takes or gives into (B, T, D) with lengths."""
    if isinstance(value, PackedSequence):
        values, lengths = pad_packed_sequence(value, batch_first=True)
        return Sequence(values, lengths.to(values.device))
    if value.dim() == 2:
        value = value[None]
    elif not batch_first:
        value = value.transpose(0, 1)
    lengths = torch.full((value.shape[0],), value.shape[1], device=value.device)
    return Sequence(value, lengths)


def before(output: Sequence, first: Tensor, reverse: bool) -> Tensor:
    """The state before each step (B, T, H), from the states after it and the initial one."""
    after = output.values
    if not reverse:
        return torch.cat([first[:, None], after[:, :-1]], 1)
    states = torch.cat([after[:, 1:], first[:, None]], 1)
    states[torch.arange(len(after)), output.lengths - 1] = first
    return states


def cell_states(write: Tensor, keep: Tensor, first: Tensor, reverse: bool) -> Tensor:
    """c_t = keep_t c_{t-1} + write_t (B, T, H), from `first` (B, H)."""
    steps = range(write.shape[1])
    cells, c = torch.empty_like(write), first
    for t in reversed(steps) if reverse else steps:
        c = keep[:, t] * c + write[:, t]
        cells[:, t] = c
    return cells


def gates_of(layer: Any, suffix: str, x: Tensor, h: Tensor) -> Gates:
    """The gates (B, T, H) of torch's cells, from the input x and the state h before each step."""
    names = [f"{name}{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    weights: list[Any] = [getattr(layer, name, None) for name in names]
    w_x, w_h, b_x, b_h = weights
    from_x, from_h = F.linear(x, w_x, b_x), F.linear(h, w_h, b_h)
    size = layer.hidden_size
    if len(w_x) == 4 * size:
        i, f, g, o = (from_x + from_h).chunk(4, -1)
        return {"i": i.sigmoid(), "f": f.sigmoid(), "g": g.tanh(), "o": o.sigmoid()}
    if len(w_x) == 3 * size:
        r, z = (from_x + from_h)[..., : 2 * size].sigmoid().chunk(2, -1)
        past = r * from_h[..., 2 * size :]
        if not getattr(layer, "reset_after", True):  # gatelib.nn.GRU: before the product with h
            past = F.linear(r * h, w_h[2 * size :], None if b_h is None else b_h[2 * size :])
        return {"r": r, "z": z, "n": (from_x[..., 2 * size :] + past).tanh()}
    return {}


def _row(state: Tensor | None, row: int, like: Tensor, size: int) -> Tensor:
    """One row (B, size) of a state (rows, B, size); zeros where none was given."""
    if state is None:
        return like.new_zeros(len(like), size)
    return state[row] if state.dim() == 3 else state[row][None]


def _states(module: Any, given: Any) -> tuple[Tensor | None, Tensor | None]:
    if given is None:
        return None, None
    return given if module.mode == "LSTM" else (given, None)


def _direction(
    module: Any, row: int, x: Sequence, y: Sequence, states: tuple[Tensor | None, Tensor | None]
) -> Gates:
    """The gates of one direction of one layer; `row` counts them as torch's states do."""
    layer, reverse = divmod(row, 1 + module.bidirectional)
    size = module.proj_size or module.hidden_size
    y = Sequence(y.values[..., reverse * size : (reverse + 1) * size], y.lengths)
    h = before(y, _row(states[0], row, y.values, size), bool(reverse))
    gates = gates_of(module, f"_l{layer}" + "_reverse" * reverse, x.values, h)
    inside = x.inside
    if module.mode == "LSTM":
        c = _row(states[1], row, y.values, module.hidden_size)
        write, keep = gates["i"] * gates["g"] * inside, torch.where(inside, gates["f"], 1.0)
        gates["c"] = cell_states(write, keep, c, bool(reverse))
    gates["h"] = y.values
    return {name: torch.where(inside, value, torch.nan) for name, value in gates.items()}


def _one_layer(module: Any, layer: int, x: Any, states: tuple[Tensor | None, ...]) -> Any:
    """The output of layer `layer` alone, from a layer with its weights."""
    ways = 1 + module.bidirectional
    made: Any = {"LSTM": nn.LSTM, "GRU": GRU}.get(module.mode, nn.RNN)
    options: dict[str, dict[str, Any]] = {
        "LSTM": {"proj_size": module.proj_size},
        "GRU": {"reset_after": getattr(module, "reset_after", True)},
        "RNN_RELU": {"nonlinearity": "relu"},
    }
    width = module.input_size if layer == 0 else ways * (module.proj_size or module.hidden_size)
    alone: Any = made(  # on no device, since a draw of weights would move the caller's generator
        width,
        module.hidden_size,
        bias=module.bias,
        batch_first=module.batch_first,
        bidirectional=module.bidirectional,
        device="meta",
        **options.get(module.mode, {}),
    )
    own = {name: getattr(module, name.replace("_l0", f"_l{layer}")) for name in alone.state_dict()}
    alone.load_state_dict(own, assign=True)
    rows = slice(layer * ways, (layer + 1) * ways)
    given = [state[rows] for state in states if state is not None]
    return alone(x, *([] if not given else [tuple(given) if len(given) == 2 else given[0]]))[0]


def _read_layers(module: Any, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """The gates of the LSTM, GRU and RNN of torch.nn and of gatelib.nn."""
    x, given = arguments
    ways, layers = 1 + module.bidirectional, module.num_layers
    if module.training and module.dropout > 0 and layers > 1:
        raise ValueError(
            "model: expected eval mode, since the dropout between recurrent layers can't be seen; "
            "call model.eval() first"
        )
    states = _states(module, given)
    found: dict[str, Gates] = {}
    for layer in range(layers):
        output = result[0] if layer == layers - 1 else _one_layer(module, layer, x, states)
        inputs, outputs = (as_sequence(v, module.batch_first) for v in (x, output))
        for way in range(ways):
            row = layer * ways + way
            name = f".l{layer}" + "_reverse" * way if layers * ways > 1 else ""
            found[name] = _direction(module, row, inputs, outputs, states)
        x = output
    return found


def _read_cell(module: Any, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """The gates of the LSTMCell, GRUCell and RNNCell of torch.nn and of gatelib.nn: T = 1."""
    x, given = arguments
    long = isinstance(result, tuple)
    h = given[0] if long and given is not None else given
    x = x if x.dim() == 2 else x[None]
    h = x.new_zeros(len(x), module.hidden_size) if h is None else h.reshape(len(x), -1)
    gates = gates_of(module, "", x, h)
    gates |= {"c": result[1], "h": result[0]} if long else {"h": result}
    return {"": {name: value.reshape(len(x), 1, -1) for name, value in gates.items()}}


def _read_output(module: Any, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """A module that returns its gate."""
    return {"": {"gate": result}}


def _read_glu(module: nn.GLU, arguments: list[Any], result: Any) -> dict[str, Gates]:
    return {"": {"gate": arguments[0].chunk(2, module.dim)[1].sigmoid()}}


def _read_recurrent(module: Any, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """The named values of gatelib.nn.Recurrent."""
    return replay(module, *arguments)


def _reader(module: nn.Module) -> Reader | None:
    """How to read the gates of a module; None if it has none that we know."""
    readers: list[tuple[tuple[type, ...], Reader]] = [
        ((Recurrent,), _read_recurrent),
        ((nn.RNNBase,), _read_layers),
        ((nn.RNNCellBase,), _read_cell),
        ((nn.GLU,), _read_glu),
        ((Gate, FeatureGate, nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Tanh), _read_output),
    ]
    return next((reader for types, reader in readers if isinstance(module, types)), None)


def _watch(recording: Recording, path: str, module: nn.Module, reader: Reader) -> Any:
    @torch.no_grad()
    def seen(module: nn.Module, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        signature = inspect.signature(module.forward)
        given = signature.bind(*args, **kwargs).arguments
        arguments = [given.get(name) for name in signature.parameters]
        for suffix, gates in reader(module, arguments, result).items():
            recording.add(path + suffix, gates)

    return module.register_forward_hook(seen, with_kwargs=True)


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Record the gates of every module of `model` that is called inside the `with` block.

    Known are torch.nn.LSTM, GRU, RNN and their cells, gatelib's recurrent layers, cells and gates,
    torch.nn.GLU, and activation modules (Sigmoid, Hardsigmoid, Softmax, Tanh) as "gate". A function
    such as torch.sigmoid inside a forward can't be seen.

    Yields a dict {path: {gate: array}}, filled as the model runs. Arrays are (B, T, H) whatever the
    layout of the layer was, nan beyond the end of a packed sequence; an activation keeps the shape
    of its output. With several layers or directions the path ends in .l0, .l0_reverse, .l1, …;
    reverse gates stand at the step whose input they read. Names: i f g o c h (LSTM, c the cell
    state), r z n h (GRU), h (RNN); gatelib.nn.Recurrent has all the names of its Spec's equations.

    Raises:
        TypeError: `model` is no module, or has no module whose gates are known.
        ValueError: dropout between recurrent layers is active.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    found = [(path, m, _reader(m)) for path, m in model.named_modules()]
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
