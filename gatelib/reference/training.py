"""Training in NumPy: losses with gradients by hand, optimisers, penalties and their proximal steps.
Imports NumPy and gatelib.reference.gate.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

A loss returns its value and its gradient by the logits, both as means over the N examples. An
optimiser is a frozen set of options; what it remembers is a state that `step` takes and returns,
so nothing changes in place. Conventions are torch's: epsilon outside the root, decay λ w added to
the gradient (AdamW: to the step), running means corrected for their start at 0.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.gate import sigmoid

Array = NDArray[Any]
State = dict[str, Any]
Weights = dict[str, Array]

# ---- losses -------------------------------------------------------------------------------------


def log_softmax(logits: Array) -> Array:
    """log of the softmax over the last axis; no exponential of a positive number."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def one_hot(classes: Array, count: int, dtype: Any = np.float64) -> Array:
    """(N, count): 1 at each of the whole numbers (N,), 0 elsewhere."""
    if not np.issubdtype(classes.dtype, np.integer):
        raise TypeError(f"classes: expected whole numbers, got {classes.dtype}")
    if classes.size and not 0 <= classes.min() <= classes.max() < count:
        raise ValueError(f"classes: expected 0 … {count - 1}, got {classes.min()}, {classes.max()}")
    return np.asarray(np.eye(count, dtype=dtype)[classes])


def cross_entropy(logits: Array, target: Array) -> tuple[float, Array]:
    """-Σ_k y_k log softmax(a)_k: exclusive classes.

    logits (N, K); target (N,) whole numbers, or (N, K) probabilities. Returns the mean over the N
    examples in nats, and its gradient (N, K): (softmax(a) - y)/N where y adds up to 1.
    """
    _check_logits(logits)
    if target.ndim == 1:
        target = one_hot(target, logits.shape[1], logits.dtype)
    y = _target(logits, target)
    logs = log_softmax(logits)
    gradient = np.exp(logs) * y.sum(axis=-1, keepdims=True) - y
    return float(-(y * logs).sum() / len(logits)), gradient / len(logits)


def binary_cross_entropy(logits: Array, target: Array) -> tuple[float, Array]:
    """-Σ_k [y_k log σ(a_k) + (1 - y_k) log(1 - σ(a_k))]: K questions of yes or no (multi-label).

    logits and target (N, K), the target in [0, 1]. Returns the mean over the N examples of the sum
    over the K questions, in nats, and its gradient (N, K): (σ(a) - y)/N.
    """
    _check_logits(logits)
    y = _target(logits, target)
    value = np.logaddexp(np.zeros_like(logits), logits) - y * logits
    return float(value.sum() / len(logits)), (sigmoid(logits) - y) / len(logits)


def _check_logits(logits: Array) -> None:
    if logits.ndim != 2 or not len(logits):
        raise ValueError(f"logits: expected (N, K) with N > 0, got {logits.shape}")
    if not np.issubdtype(logits.dtype, np.floating):
        raise TypeError(f"logits: expected a floating dtype, got {logits.dtype}")


def _target(logits: Array, target: Array) -> Array:
    if target.shape != logits.shape:
        raise ValueError(f"target: expected {logits.shape} as logits, got {target.shape}")
    if target.dtype != logits.dtype:
        raise TypeError(f"target: expected {logits.dtype} as logits, got {target.dtype}")
    if not ((target >= 0) & (target <= 1)).all():
        raise ValueError(f"target: expected 0 … 1, got {target.min()} … {target.max()}")
    return target


# ---- optimisers ---------------------------------------------------------------------------------


class Optimizer(Protocol):
    """What `update` asks of an optimiser."""

    def start(self, weight: Array) -> State:
        """The state before the first step."""

    def step(self, weight: Array, gradient: Array, state: State) -> tuple[Array, State]:
        """The weight and the state after one step."""


def update(
    optimizer: Optimizer, weights: Weights, gradients: Weights, states: dict[str, State] | None
) -> tuple[Weights, dict[str, State]]:
    """One step of every weight by its gradient of the same name; `states` None: the first step.

    Gradients may hold other names too, such as that of the input; they are left aside.
    """
    missing = sorted(set(weights) - set(gradients))
    if missing:
        raise ValueError(f"gradients: expected {sorted(weights)}, {missing} missing")
    states = {k: optimizer.start(w) for k, w in weights.items()} if states is None else states
    after = {k: optimizer.step(w, gradients[k], states[k]) for k, w in weights.items()}
    return {k: w for k, (w, _) in after.items()}, {k: state for k, (_, state) in after.items()}


@dataclass(frozen=True)
class _Options:
    """What all optimisers share: a learning rate, the checks, and decay as an L2 penalty."""

    lr: float
    shares: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool":
                if not isinstance(value, bool):
                    raise TypeError(f"{field.name}: expected a bool, got {value!r}")
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{field.name}: expected a number, got {value!r}")
            end = 1.0 if field.name in self.shares else np.inf
            if not 0 <= value < end:
                raise ValueError(f"{field.name}: expected 0 ≤ {field.name} < {end}, got {value!r}")

    def _pulled(self, weight: Array, gradient: Array) -> Array:
        """The gradient, checked, with the pull of an L2 penalty."""
        if not np.issubdtype(weight.dtype, np.floating):
            raise TypeError(f"weight: expected a floating dtype, got {weight.dtype}")
        if gradient.shape != weight.shape:
            raise ValueError(f"gradient: expected {weight.shape} as weight, got {gradient.shape}")
        if gradient.dtype != weight.dtype:
            raise TypeError(f"gradient: expected {weight.dtype} as weight, got {gradient.dtype}")
        decay = getattr(self, "weight_decay", 0.0)
        return gradient + decay * weight if decay else gradient


@dataclass(frozen=True)
class SGD(_Options):
    """Gradient descent; with momentum, the heavy ball; with `nesterov`, looking one step ahead.

    m = momentum · m + G and w = w - lr · m, or with nesterov w = w - lr (G + momentum · m).
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def start(self, weight: Array) -> State:
        """The running sum of gradients, 0."""
        return {"m": np.zeros_like(weight)}

    def step(self, weight: Array, gradient: Array, state: State) -> tuple[Array, State]:
        """One step down the (running sum of) gradients."""
        pulled = self._pulled(weight, gradient)
        m = self.momentum * state["m"] + pulled
        direction = pulled + self.momentum * m if self.nesterov else m
        return weight - self.lr * direction, {"m": m}


@dataclass(frozen=True)
class Adagrad(_Options):
    """Each weight's gradient over the root of the sum of its squares (Duchi et al. 2011)."""

    eps: float = 1e-10
    weight_decay: float = 0.0
    initial: float = 0.0

    def start(self, weight: Array) -> State:
        """The sum of squares, `initial` (torch: initial_accumulator_value)."""
        return {"s": np.full_like(weight, self.initial)}

    def step(self, weight: Array, gradient: Array, state: State) -> tuple[Array, State]:
        """Add the square first, then divide."""
        pulled = self._pulled(weight, gradient)
        s = state["s"] + pulled**2
        return weight - self.lr * pulled / (np.sqrt(s) + self.eps), {"s": s}


@dataclass(frozen=True)
class PrintedAdagrad(Adagrad):
    """AdaGrad in article A's order (claim A4): divide first, then add the square. Not AdaGrad."""

    def step(self, weight: Array, gradient: Array, state: State) -> tuple[Array, State]:
        """Divide by the root of the sum from before this gradient, eps inside the root."""
        pulled = self._pulled(weight, gradient)
        moved = weight - self.lr * pulled / np.sqrt(state["s"] + self.eps)
        return moved, {"s": state["s"] + pulled**2}


@dataclass(frozen=True)
class RMSprop(_Options):
    """The gradient over the root of a running mean of its squares.

    `centered` takes the squared running mean of the gradient out of it; `momentum` adds the steps
    up. Both together are what Graves 2013 trained LSTMs with (1308.0850), but for the place of eps.
    """

    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False
    shares: ClassVar[tuple[str, ...]] = ("alpha",)

    def start(self, weight: Array) -> State:
        """Running means of squares (v) and gradients (n), and the running sum of steps (m): 0."""
        return {name: np.zeros_like(weight) for name in "vnm"}

    def step(self, weight: Array, gradient: Array, state: State) -> tuple[Array, State]:
        """Update the means, then divide."""
        pulled = self._pulled(weight, gradient)
        v = self.alpha * state["v"] + (1 - self.alpha) * pulled**2
        n = self.alpha * state["n"] + (1 - self.alpha) * pulled
        size = np.sqrt(v - n**2) if self.centered else np.sqrt(v)
        m = self.momentum * state["m"] + pulled / (size + self.eps)
        return weight - self.lr * m, {"v": v, "n": n, "m": m}


@dataclass(frozen=True)
class Adam(_Options):
    """A running mean of the gradient over the root of one of its squares (1412.6980, algorithm 1).

    Both means start at 0 and are divided by what they hold of a constant, 1 - β^t. `weight_decay`
    is an L2 penalty: its pull is divided by the root as well; see AdamW.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    shares: ClassVar[tuple[str, ...]] = ("beta1", "beta2")

    def start(self, weight: Array) -> State:
        """Both running means 0, no step made."""
        return {"m": np.zeros_like(weight), "v": np.zeros_like(weight), "t": 0}

    def step(self, weight: Array, gradient: Array, state: State) -> tuple[Array, State]:
        """Update both means, correct them, and divide."""
        return self._stepped(weight, self._pulled(weight, gradient), state)

    def _stepped(self, weight: Array, gradient: Array, state: State) -> tuple[Array, State]:
        t = state["t"] + 1
        m = self.beta1 * state["m"] + (1 - self.beta1) * gradient
        v = self.beta2 * state["v"] + (1 - self.beta2) * gradient**2
        mean, square = m / (1 - self.beta1**t), v / (1 - self.beta2**t)
        moved = weight - self.lr * mean / (np.sqrt(square) + self.eps)
        return moved, {"m": m, "v": v, "t": t}


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with the decay past both means: w shrinks by lr · weight_decay (1711.05101, alg. 2)."""

    weight_decay: float = 0.01

    def step(self, weight: Array, gradient: Array, state: State) -> tuple[Array, State]:
        """Shrink the weight, then make Adam's step with the bare gradient."""
        self._pulled(weight, gradient)  # for its checks
        return self._stepped(weight * (1 - self.lr * self.weight_decay), gradient, state)


# ---- penalties ----------------------------------------------------------------------------------


def soft_threshold(weight: Array, threshold: float) -> Array:
    """argmin over q of (q - w)²/2 + threshold |q|: towards 0 by the threshold, and no further.

    After a gradient step of size lr, threshold lr · λ makes it the proximal step of λ Σ|w|.
    """
    _check_threshold(threshold)
    size = np.maximum(np.abs(weight) - threshold, 0)
    return np.asarray(np.sign(weight) * size, weight.dtype)


def shrink(weight: Array, threshold: float) -> Array:
    """argmin over q of (q - w)²/2 + threshold q²/2: all smaller by one factor, none to 0."""
    _check_threshold(threshold)
    return np.asarray(weight / (1 + threshold), weight.dtype)


def group_soft_threshold(weight: Array, threshold: float) -> Array:
    """argmin over q of ‖q - w‖²/2 + threshold Σ‖q_i‖: each row towards 0 by its length.

    weight (I, J): the rows are the groups, and a row no longer than the threshold is 0 at once.
    """
    _check_threshold(threshold)
    length = np.linalg.norm(weight, axis=-1, keepdims=True)
    factor = np.maximum(1 - threshold / np.where(length > 0, length, 1), 0)
    return np.asarray(weight * factor, weight.dtype)


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold < np.inf:
        raise ValueError(f"threshold: expected a finite number of at least 0, got {threshold!r}")


def dropout_penalty(x: Array, weight: Array, keep: float) -> float:
    """What dropout on the inputs adds to a linear regression's mean squared error, on average.

    x (N, D), weight (D,), inputs kept with probability `keep` and divided by it. Returns
    (1 - keep)/keep Σ_j w_j² mean(x_j²): an L2 penalty with a strength for each weight.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep: expected a probability above 0, got {keep!r}")
    if x.ndim != 2:
        raise ValueError(f"x: expected (N, D), got {x.shape}")
    if weight.shape != x.shape[1:]:
        raise ValueError(f"weight: expected {x.shape[1:]} as x, got {weight.shape}")
    return float((1 - keep) / keep * (weight**2 * (x**2).mean(axis=0)).sum())
