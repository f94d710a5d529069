"""Plain recurrent nets in NumPy: Elman's and Jordan's, full and truncated BPTT by hand, clipping.

Imports NumPy and gatelib.reference.check.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

Elman: `W` (H, D), `U` (H, H), `b` (H,); a skip over k steps adds `V` (H, H), which sees h_{t−k}.
Jordan: `W` (H, D), `U` (H, O), `b` (H,) and `Q` (O, H), `c` (O,): its output is what it feeds back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.check import check_array, check_input, check_weights, initial_state
from gatelib.reference.check import row_lengths as _check_lengths

Array = NDArray[Any]
Weights = dict[str, Array]

CEILING = 20.0
"""Where the clipped ReLU stops growing (Hannun et al. 2014, arXiv:1412.5567)."""


@dataclass(frozen=True)
class Variant:
    """A nonlinearity, and the share of the state that is made anew at each step."""

    activation: str = "tanh"
    rate: float = 1.0


VARIANTS = {
    "elman": Variant(),
    "linear": Variant("identity"),
    "relu": Variant("relu"),
    "clipped_relu": Variant("clipped_relu"),
    "leaky": Variant(rate=0.25),
}
OUTPUTS = ("identity", "sigmoid", "tanh")


@dataclass
class Saved:
    """What the backward pass needs: `past` (B, S + T, H) begins with the S initial states."""

    variant: Variant
    weights: Weights
    x: Array
    lengths: Array
    past: Array
    active: Array
    skip: int


def activate(name: str, a: Array) -> Array:
    """The nonlinearity of that name."""
    if name == "tanh":
        return np.asarray(np.tanh(a))
    if name == "sigmoid":
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * a)))
    if name == "identity":
        return a
    return np.clip(a, 0.0, None if name == "relu" else CEILING)


def slope(name: str, value: Array) -> Array:
    """The nonlinearity's derivative, written with its own value."""
    if name == "tanh":
        return np.asarray(1.0 - value**2)
    if name == "sigmoid":
        return np.asarray(value * (1.0 - value))
    if name == "identity":
        return np.ones_like(value)
    inside = value > 0 if name == "relu" else (value > 0) & (value < CEILING)
    return inside.astype(value.dtype)


def initialize(
    rng: np.random.Generator,
    input_size: int,
    hidden_size: int,
    recurrent: str = "uniform",
    skip: bool = False,
) -> Weights:
    """Uniform weights in ±1/√H as torch draws them; U also "orthogonal" or the "identity".

    Orthogonal: the Q of a random Gaussian matrix, signs fixed so that it is uniform (Haar).
    Identity: Le et al. 2015, arXiv:1504.00941, for ReLU; the bias is then 0.
    """
    square, bound = (hidden_size, hidden_size), 1 / np.sqrt(hidden_size)
    shapes: dict[str, tuple[int, ...]] = {"W": (hidden_size, input_size), "U": square}
    shapes |= {"b": (hidden_size,)} | ({"V": square} if skip else {})
    weights = {name: rng.uniform(-bound, bound, shape) for name, shape in shapes.items()}
    if recurrent == "orthogonal":
        q, r = np.linalg.qr(rng.normal(size=square))
        weights["U"] = q * np.sign(np.diag(r))
    elif recurrent == "identity":
        weights |= {"U": np.eye(hidden_size), "b": np.zeros(hidden_size)}
    elif recurrent != "uniform":
        expected = "'uniform', 'orthogonal' or 'identity'"
        raise ValueError(f"recurrent: expected {expected}, got {recurrent!r}")
    return weights


def forward(
    x: Array,
    weights: Weights,
    h0: Array | None = None,
    lengths: Array | None = None,
    variant: str = "elman",
    skip: int = 0,
) -> tuple[Array, Array, Saved]:
    """Run an Elman net over a batch of sequences: h = (1 − r)·h' + r·act(W x + U h' + V h'' + b).

    x (B, T, D); lengths (B,) whole numbers in 0…T. h0 (B, H) is the state before the first step,
    or, with a skip over k ≥ 2 steps, the last k states (B, k, H), the latest last; zeros if absent.
    Returns the outputs (B, T, H), 0 past each length; the final state, of h0's shape; and what
    `backward` needs. Raises ValueError for a shape, TypeError for a dtype that does not fit.
    Source: Elman 1990, Cognitive Science 14; the skip: Zhang et al. 2016, arXiv:1602.08210.
    """
    kind, count = _variant(variant), _check_lengths(lengths, x)
    saved = Saved(kind, weights, x, count, _history(x, weights, h0, skip), x[:, :, :0], skip)
    from_input, back = x @ weights["W"].T + weights["b"], saved.past.shape[1]
    states, active = list(saved.past.swapaxes(0, 1)), []
    for t in range(x.shape[1]):
        a = from_input[:, t] + states[-1] @ weights["U"].T
        if skip:
            a = a + states[-skip] @ weights["V"].T
        active.append(activate(kind.activation, a))
        states.append((1 - kind.rate) * states[-1] + kind.rate * active[-1])
    saved.past = np.stack(states, axis=1)
    saved.active = np.stack(active, axis=1) if active else saved.past[:, back:]
    live = np.arange(x.shape[1]) < count[:, None]
    final = saved.past[_last_states(saved)]
    return saved.past[:, back:] * live[:, :, None], final if skip else final[:, 0], saved


def _last_states(saved: Saved) -> tuple[Array, Array]:
    """Where in `past` each row's final states stand, as an index."""
    rows, back = np.arange(len(saved.lengths)), max(1, saved.skip)
    return rows[:, None], saved.lengths[:, None] + np.arange(back)


def backward(
    dy: Array, dh: Array | None, saved: Saved, every: int | None = None
) -> dict[str, Array]:
    """Backpropagation through time, full or truncated.

    dy (B, T, H): the loss's gradients by the outputs; dh: by the final state, zeros if absent.
    With `every` = k the sequence is cut into chunks of k steps; states run on across a cut, but
    no gradient does. So step t learns from losses up to the end of its own chunk, and k ≥ T is
    full BPTT. Returns `x`, `h0` and one gradient for each weight.
    """
    kind, w, steps = saved.variant, saved.weights, saved.x.shape[1]
    k, back = _chunk(every, steps), max(1, saved.skip)
    d_past = _seeds(dy, dh, saved)
    d_a = np.zeros_like(saved.active)
    slopes = kind.rate * slope(kind.activation, saved.active)
    for t in reversed(range(steps)):
        arrived = d_past[:, back + t]
        d_a[:, t] = arrived * slopes[:, t]
        if _same_chunk(t, t - 1, k):
            kept = (1 - kind.rate) * arrived
            d_past[:, back + t - 1] += kept + d_a[:, t] @ w["U"]
        if saved.skip and _same_chunk(t, t - saved.skip, k):
            d_past[:, t] += d_a[:, t] @ w["V"]
    d_h0 = d_past[:, :back]
    return {"h0": d_h0 if saved.skip else d_h0[:, 0], **_weight_gradients(d_a, saved)}


def _same_chunk(t: int, source: int, every: int) -> bool:
    """Whether step t and the state that step `source` made lie in one chunk; h0 is in the first."""
    return t // every == max(source, 0) // every


def _seeds(dy: Array, dh: Array | None, saved: Saved) -> Array:
    """Gradients that arrive at each state from outside: from the outputs and the final state."""
    d_past, back = np.zeros_like(saved.past), max(1, saved.skip)
    live = np.arange(saved.x.shape[1]) < saved.lengths[:, None]
    d_past[:, back:] = dy * live[:, :, None]
    if dh is not None:
        d_past[_last_states(saved)] += dh if saved.skip else dh[:, None]
    return d_past


def _weight_gradients(d_a: Array, saved: Saved) -> Weights:
    """One product over all steps and rows for each matrix."""
    steps, back = saved.x.shape[1], max(1, saved.skip)
    before = saved.past[:, back - 1 : back - 1 + steps]
    found = {"W": _outer(d_a, saved.x), "U": _outer(d_a, before), "b": d_a.sum(axis=(0, 1))}
    if saved.skip:
        found["V"] = _outer(d_a, saved.past[:, :steps])
    return found | {"x": d_a @ saved.weights["W"]}


def _outer(left: Array, right: Array) -> Array:
    """Σ over rows and steps of left rightᵀ."""
    flat = left.reshape(-1, left.shape[2]).T @ right.reshape(-1, right.shape[2])
    return np.asarray(flat)


# --- Jordan's net -----------------------------------------------------------------------------


@dataclass
class SavedJordan:
    """What Jordan's backward pass needs; arrays are (B, T, …), `state` has one step more."""

    output: str
    decay: float
    weights: Weights
    x: Array
    h: Array
    y: Array
    state: Array


def initialize_jordan(
    rng: np.random.Generator, input_size: int, hidden_size: int, output_size: int
) -> Weights:
    """Uniform weights in ±1/√H."""
    bound = 1 / np.sqrt(hidden_size)
    shapes = {"W": (hidden_size, input_size), "U": (hidden_size, output_size)}
    shapes |= {"Q": (output_size, hidden_size)}
    vectors = {"b": (hidden_size,), "c": (output_size,)}
    return {k: rng.uniform(-bound, bound, shape) for k, shape in (shapes | vectors).items()}


def forward_jordan(
    x: Array,
    weights: Weights,
    s0: Array | None = None,
    output: str = "identity",
    decay: float = 0.0,
) -> tuple[Array, Array, SavedJordan]:
    """Run Jordan's net: h = tanh(W x + U s' + b), y = out(Q h + c), s = decay·s' + y.

    x (B, T, D); s0 (B, O), zeros if absent. Returns the outputs y (B, T, O), the final state s
    (B, O), and what `backward_jordan` needs. Raises ValueError or TypeError, naming the argument.
    Source: Jordan 1986, "Serial order", ICS Report 8604.
    """
    _check_jordan(x, weights, s0, output)
    if not 0 <= decay < 1:
        raise ValueError(f"decay: expected a number in [0, 1), got {decay}")
    w, state = weights, s0
    if state is None:
        state = np.zeros((x.shape[0], w["c"].size), x.dtype)
    hidden, outputs, states = [], [], [state]
    for t in range(x.shape[1]):
        h = np.tanh(x[:, t] @ w["W"].T + states[-1] @ w["U"].T + w["b"])
        y = activate(output, h @ w["Q"].T + w["c"])
        hidden.append(h)
        outputs.append(y)
        states.append(decay * states[-1] + y)
    h, y, s = (_stacked(v, x, n) for v, n in _with_sizes(hidden, outputs, states, w))
    return y, states[-1], SavedJordan(output, decay, w, x, h, y, s)


def _with_sizes(
    hidden: list[Array], outputs: list[Array], states: list[Array], w: Weights
) -> list[tuple[list[Array], int]]:
    return [(hidden, w["b"].size), (outputs, w["c"].size), (states, w["c"].size)]


def _stacked(values: list[Array], x: Array, size: int) -> Array:
    """(B, steps, size), also for no step."""
    empty = np.zeros((x.shape[0], 0, size), x.dtype)
    return np.stack(values, axis=1) if values else empty


def backward_jordan(
    dy: Array, ds: Array | None, saved: SavedJordan, every: int | None = None
) -> dict[str, Array]:
    """Full or truncated BPTT of Jordan's net: the way back in time leads through the output.

    dy (B, T, O); ds (B, O), zeros if absent; `every` as in `backward`. Returns `x`, `s0` and one
    gradient for each weight.
    """
    w, steps = saved.weights, saved.x.shape[1]
    k = _chunk(every, steps)
    d_state = np.zeros_like(saved.state[:, 0]) if ds is None else ds
    d_a, d_out = np.zeros_like(saved.h), np.zeros_like(saved.y)
    for t in reversed(range(steps)):
        d_out[:, t] = (dy[:, t] + d_state) * slope(saved.output, saved.y[:, t])
        d_a[:, t] = (d_out[:, t] @ w["Q"]) * slope("tanh", saved.h[:, t])
        d_state = saved.decay * d_state + d_a[:, t] @ w["U"]
        if not _same_chunk(t, t - 1, k):
            d_state = np.zeros_like(d_state)
    found = {"W": _outer(d_a, saved.x), "U": _outer(d_a, saved.state[:, :steps])}
    found |= {"Q": _outer(d_out, saved.h), "b": d_a.sum((0, 1)), "c": d_out.sum((0, 1))}
    return {"x": d_a @ w["W"], "s0": d_state, **found}


# --- clipping ---------------------------------------------------------------------------------


def clip_by_norm(gradients: Weights, limit: float) -> tuple[Weights, float]:
    """Scale all gradients alike so that their joint norm is at most `limit`; also that norm.

    The direction stays. As torch does, 1e-6 is added to the norm before dividing. Raises ValueError
    for a norm that isn't finite: no scale mends it. Source: Pascanu et al. 2013, algorithm 1.
    """
    _check_limit(limit)
    norm = float(np.sqrt(sum(float((g**2).sum()) for g in gradients.values())))
    if not np.isfinite(norm):
        raise ValueError(f"gradients: expected a finite norm, got {norm}")
    factor = min(1.0, limit / (norm + 1e-6))
    return {name: g * factor for name, g in gradients.items()}, norm


def clip_by_value(gradients: Weights, limit: float) -> Weights:
    """Cut each number at ±limit. The direction changes."""
    _check_limit(limit)
    return {name: np.clip(g, -limit, limit) for name, g in gradients.items()}


# --- checks -----------------------------------------------------------------------------------


def _check_limit(limit: float) -> None:
    if not 0 < limit < np.inf:
        raise ValueError(f"limit: expected a positive number, got {limit}")


def _variant(name: str) -> Variant:
    if name not in VARIANTS:
        raise ValueError(f"variant: expected one of {sorted(VARIANTS)}, got {name!r}")
    return VARIANTS[name]


def _chunk(every: int | None, steps: int) -> int:
    if every is None:
        return max(1, steps)
    if every < 1:
        raise ValueError(f"every: expected at least 1 step, got {every}")
    return every


def _history(x: Array, weights: Weights, h0: Array | None, skip: int) -> Array:
    """Check everything; return the states before the first step (B, S, H)."""
    if skip < 0 or skip == 1:
        raise ValueError(f"skip: expected 0 (none) or at least 2 steps, got {skip}")
    hidden = weights["b"].size if "b" in weights else 0
    shapes: dict[str, tuple[int, ...]] = {"W": (hidden, x.shape[-1]), "U": (hidden, hidden)}
    shapes |= {"b": (hidden,)} | ({"V": (hidden, hidden)} if skip else {})
    check_input(x)
    check_weights(weights, shapes, x)
    h0 = initial_state(h0, "h0", x, *((skip, hidden) if skip else (hidden,)))
    return h0 if skip else h0[:, None]


def _check_jordan(x: Array, weights: Weights, s0: Array | None, output: str) -> None:
    if output not in OUTPUTS:
        raise ValueError(f"output: expected one of {sorted(OUTPUTS)}, got {output!r}")
    hidden, out = (weights[k].size if k in weights else 0 for k in "bc")
    shapes: dict[str, tuple[int, ...]] = {"W": (hidden, x.shape[-1]), "U": (hidden, out)}
    check_input(x)
    check_weights(weights, shapes | {"Q": (out, hidden), "b": (hidden,), "c": (out,)}, x)
    if s0 is not None:
        check_array("s0", s0, (x.shape[0], out), x)
