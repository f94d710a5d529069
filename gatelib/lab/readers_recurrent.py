"""How the gates of recurrent layers are read: torch's, and those of gatelib.nn.

Imports SymPy, torch, gatelib.cell, gatelib.equations and gatelib.nn.
Must not import gatelib.reference: an instrument is no witness.

torch's recurrent layers hide their gates. They are computed again from the weights, the input and
the outputs that were seen: h_{t-1} is known for every t, so all steps are done at once, and only
the cell state is a loop over time. What a name means is read from the cell's equations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from sympy import Expr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from gatelib.cell import Cell
from gatelib.equations import gru as gru_cells
from gatelib.equations import highway as highway_cells
from gatelib.equations import lstm as lstm_cells
from gatelib.equations.searched import MUTATED
from gatelib.nn.conv_recurrent import ConvRecurrent
from gatelib.nn.gated_stack import DepthGatedLSTM
from gatelib.nn.gru import GRU
from gatelib.nn.highway import RecurrentHighway
from gatelib.nn.recurrent import Recurrent
from gatelib.nn.rnn import Jordan, SkipRNN
from gatelib.nn.searched import HighwayNodes, Mutated

__all__ = ["RECURRENT", "Reader", "Role", "inside"]

Gates = dict[str, Tensor]


class Role(NamedTuple):
    """What the names of a layer's recorded values mean.

    free: values that aren't gates or have no ends, such as states.
    keep: what multiplies the old memory, in terms of the values; None where nothing does.
    """

    free: tuple[str, ...] = ()
    keep: Expr | None = None


class Reader(NamedTuple):
    """How one kind of layer is read.

    read: (module, arguments in the order of its forward, what it returned) -> {suffix: gates}.
    role: module -> what the names mean.
    """

    read: Callable[[Any, list[Any], Any], dict[str, Gates]]
    role: Callable[[Any], Role] = lambda module: Role()


def _of_cell(known: Cell) -> Role:
    """States have no ends, and the first gate that keeps a carry tells how long it lasts."""
    return Role(known.states, next(iter(known.keeps.values()), None))


# ---- torch's recurrent layers, and those that take their place --------------------------------


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


def _check_dropout(module: Any) -> None:
    """Between layers it is drawn inside the forward."""
    if module.training and module.dropout > 0 and module.num_layers > 1:
        raise ValueError(
            "model: expected eval mode, since the dropout between recurrent layers can't be seen; "
            "call model.eval() first"
        )


def _read_layers(module: Any, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """The gates of the LSTM, GRU and RNN of torch.nn and of gatelib.nn."""
    x, given = arguments
    ways, layers = 1 + module.bidirectional, module.num_layers
    _check_dropout(module)
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


def _torch_role(module: Any) -> Role:
    """Roles in torch's cells: an LSTM's and a GRU's equations, or a state alone."""
    kind = getattr(module, "mode", type(module).__name__)
    if "LSTM" in kind:
        return _of_cell(lstm_cells.ALL["lstm"])
    if "GRU" in kind:
        return _of_cell(gru_cells.ALL["gru" if getattr(module, "reset_after", True) else "cho"])
    return Role(("h",))


# ---- gatelib's own ----------------------------------------------------------------------------


def _read_recurrent(module: Any, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """The named values of a Recurrent, and of the recurrent layers over films."""
    found: dict[str, Gates] = module.values(*arguments)
    return found


def _read_depth(module: DepthGatedLSTM, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """The named values of each layer, d among them in the upper ones."""
    _check_dropout(module)
    layers = module.values(*arguments)
    return {f".l{k}" if len(layers) > 1 else "": named for k, named in enumerate(layers)}


def inside(value: Tensor, lengths: Tensor | None, batch_first: bool = True) -> Tensor:
    """A (B, T, H) with nan past each row's length, from the layer's own layout."""
    value = value if batch_first else value.transpose(0, 1)
    if lengths is None:
        return value
    return torch.where(Sequence(value, lengths.to(value.device)).inside, value, torch.nan)


def _read_skip(module: SkipRNN, arguments: list[Any], result: Any) -> dict[str, Gates]:
    return {"": {"h": inside(result[0], arguments[2], module.batch_first)}}


def _read_jordan(module: Jordan, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """Hidden units h, outputs y and state units s, from the outputs that were seen."""
    x, start, lengths = arguments
    x, y = (v if module.batch_first else v.transpose(0, 1) for v in (x, result[0]))
    y = y.to(result[1].dtype)
    first = torch.zeros_like(y[:, 0]) if start is None else start.to(y)
    s = cell_states(y, torch.full_like(y, module.decay), first, reverse=False)
    past = before(Sequence(s, torch.empty(0)), first, reverse=False)
    weights: Any = module
    a = F.linear(x, weights.weight_ih, weights.bias_h) + F.linear(past.to(x), weights.weight_sh)
    found = {"h": torch.tanh(a), "y": y, "s": s}
    return {"": {name: inside(value, lengths) for name, value in found.items()}}


def _before(module: Any, arguments: list[Any], result: Any) -> tuple[Tensor, Tensor]:
    """The input, and the output one step before, all steps of time at once: both (B, T, ·)."""
    x, start, _ = arguments
    batch_first = getattr(module, "batch_first", True)
    x, h = (v if batch_first else v.transpose(0, 1) for v in (x, result[0]))
    first = h.new_zeros(len(h), module.hidden_size) if start is None else start.to(h)
    return x, before(Sequence(h, torch.empty(0)), first, reverse=False)


def _read_recurrent_highway(
    module: RecurrentHighway, arguments: list[Any], result: Any
) -> dict[str, Gates]:
    """Candidate, gates and state of each micro-step, all steps of time at once."""
    x, s = _before(module, arguments, result)
    found = {}
    for layer in range(module.depth):
        a = F.linear(s, module.weight_hh[layer], None if layer == 0 else module.bias[layer])
        a = a + F.linear(x, module.weight_ih, module.bias[0]) if layer == 0 else a
        n, t, c = module.gates(a)
        s = t * n + c * s
        named = {"n": n, "t": t, "c": c, "h": s}
        path = f".l{layer}" if module.depth > 1 else ""
        found[path] = {name: inside(value, arguments[2]) for name, value in named.items()}
    return found


def _recurrent_highway_role(module: RecurrentHighway) -> Role:
    """A step keeps what all its micro-steps keep: one gate tells it where there is one."""
    name = "recurrent_highway" if module.coupled else "recurrent_uncoupled"
    role = _of_cell(highway_cells.ALL[name])
    return role if module.depth == 1 else Role(role.free)


def _read_mutated(module: Mutated, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """z, r and the state h, from the states that were seen."""
    x, past = _before(module, arguments, result)
    z, r = module.gates(F.linear(x, module.weight_ih, module.bias_ih), past)
    found = {name: inside(value, arguments[2]) for name, value in (("z", z), ("r", r))}
    return {"": found | {"h": inside(result[0], arguments[2], module.batch_first)}}


def _read_nodes(module: HighwayNodes, arguments: list[Any], result: Any) -> dict[str, Gates]:
    """The gate c of each node, and the value h that the node makes."""
    x, past = _before(module, arguments, result)
    made = module.gates(F.linear(x, module.weight_ih), past)
    return {
        f".n{place}": {"c": inside(c, arguments[2]), "h": inside(s, arguments[2])}
        for place, (c, s) in enumerate(made)
    }


RECURRENT: list[tuple[tuple[type, ...], Reader]] = [
    ((Recurrent, ConvRecurrent), Reader(_read_recurrent, lambda module: _of_cell(module.cell))),
    ((nn.RNNBase,), Reader(_read_layers, _torch_role)),
    ((nn.RNNCellBase,), Reader(_read_cell, _torch_role)),
    ((DepthGatedLSTM,), Reader(_read_depth, lambda module: _of_cell(lstm_cells.ALL["lstm"]))),
    ((SkipRNN,), Reader(_read_skip, lambda module: Role(("h",)))),
    ((Jordan,), Reader(_read_jordan, lambda module: Role(("h", "y", "s")))),
    ((RecurrentHighway,), Reader(_read_recurrent_highway, _recurrent_highway_role)),
    ((Mutated,), Reader(_read_mutated, lambda module: _of_cell(MUTATED[module.variant]))),
    ((HighwayNodes,), Reader(_read_nodes, lambda module: Role(("h",)))),
]
"""Kinds of recurrent layers and how they are read; the first that fits."""
