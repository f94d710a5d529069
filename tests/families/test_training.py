"""The witnesses of training agree: equations, NumPy by hand, torch.optim and autograd."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gatelib.derived.training import unfold
from gatelib.equations import training as equations
from gatelib.reference import gate
from gatelib.reference import training as reference
from tests.families.witnesses import close

STEPS = 100
small = st.floats(1e-4, 0.1)
share = st.floats(0.0, 0.999)
eps = st.sampled_from([1e-10, 1e-8, 1e-3])
decay = st.sampled_from([0.0, 1e-2, 0.3])


def options(name, lr, one, two, epsilon, pull):
    """One optimiser's options in three languages: reference, torch, equations."""
    rates = {"lr": lr, "weight_decay": pull}
    consts = {"eta": lr, "decay": pull, "epsilon": epsilon}
    eps, moving, mu = {"eps": epsilon}, {"momentum": one}, {"mu": one}
    both = moving | {"nesterov": True}, moving | {"nesterov": one > 0}
    running = {"alpha": one} | eps
    centered = running | {"momentum": two, "centered": True}
    momenta, betas = {"beta1": one, "beta2": two}, {"betas": (one, two)} | eps
    table = {
        "sgd": ("SGD", {}, {}, {}),
        "momentum": ("SGD", moving, moving, mu),
        "nesterov": ("SGD", *both, mu),
        "adagrad": ("Adagrad", eps, eps, {}),
        "rmsprop": ("RMSprop", running, running, {"alpha": one}),
        "rmsprop_centered": ("RMSprop", centered, centered, {"alpha": one, "mu": two}),
        "adam": ("Adam", momenta | eps, betas, momenta),
        "adamw": ("AdamW", momenta | eps, betas, momenta),
    }
    kind, mine, theirs, extra = table[name]
    ours, peer = getattr(reference, kind), getattr(torch.optim, kind)
    return ours(**rates, **mine), lambda w: peer([w], **rates, **theirs), consts | extra


NAMES = [name for name in equations.OPTIMIZERS if name != "adagrad_printed"]


def gradients(seed, steps=STEPS, size=5, idle=0.3):
    """Random gradients of many sizes, some weights often idle: what gates see."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-3, 3, size)
    return rng.normal(size=(steps, size)) * scale * (rng.random((steps, size)) >= idle)


def by_hand(optimizer, w, given):
    state, path = optimizer.start(w), []
    for G in given:
        w, state = optimizer.step(w, G, state)
        path.append(w)
    return np.array(path)


def by_torch(make, w, given):
    weight = torch.nn.Parameter(torch.tensor(w))
    optimizer, path = make(weight), []
    for G in given:
        weight.grad = torch.tensor(G)
        optimizer.step()
        path.append(weight.detach().numpy().copy())
    return np.array(path)


def by_equations(name, w, given, constants):
    start = {"w": w} | {k: np.ones(1) for k in "pq"}
    return unfold(equations.OPTIMIZERS[name], {"G": given}, start, constants)["w"]


def shaken(rng, value, *near, size=1e-9):
    """A value with an error that is relative to it and to what it was made from."""
    largest = np.max(np.abs([value, *near]), axis=0)
    return value + size * largest * rng.choice([-1.0, 1.0], value.shape)


def growth(optimizer, w, given, size=1e-9):
    """By how much the path multiplies a relative error in all that each step computes.

    A mean of gradients may be a small rest of large ones: its error is relative to those.
    """
    rng, state, moved = np.random.default_rng(0), optimizer.start(w), w
    for G in given:
        before = state
        moved, state = optimizer.step(moved, G, state)
        moved = shaken(rng, moved, size=size)
        means = {k: shaken(rng, state[k], before[k], G, size=size) for k in "mn" if k in state}
        state |= means | {k: shaken(rng, state[k], size=size) for k in "sv" if k in state}
    path = by_hand(optimizer, w, given)
    return np.abs(moved - path[-1]).max() / size / max(1.0, np.abs(path).max())


# ---- optimisers ---------------------------------------------------------------------------------


def hundred_steps(name, lr, one, two, epsilon, pull, seed):
    """An optimiser in three languages, a weight and gradients on which a rounding stays small.

    Squares that are soon forgotten leave a root that is 0 while a weight is idle and near 0 by
    chance. What is divided by it is then a rest of older gradients, or the pull of a penalty,
    each with a rounding error that grows by millions: no two programs agree, however exact. So
    where the memory is short no weight is idle and no penalty pulls: `growth` stays below 1e5.
    """
    memory = {"rmsprop": one, "adam": two, "adamw": two}.get(name, 1.0)
    kept = memory >= 0.9
    found = options(name, lr, one, two, epsilon, pull if kept else 0.0)
    w = np.random.default_rng(seed).normal(size=5)
    return *found, w, gradients(seed, idle=0.3 if kept else 0.0)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "rmsprop_centered"])
@settings(max_examples=8)
@given(lr=small, one=share, two=share, epsilon=eps, pull=decay, seed=st.integers(0, 999))
@example(lr=0.0625, one=1.2e-7, two=0.0, epsilon=1e-10, pull=0.0, seed=0)
def test_three_witnesses_make_the_same_hundred_steps(name, lr, one, two, epsilon, pull, seed):
    hand, peer, constants, w, given = hundred_steps(name, lr, one, two, epsilon, pull, seed)
    assume(growth(hand, w, given) < 1e5)
    expected = by_torch(peer, w, given)
    close(by_hand(hand, w, given), expected)
    close(by_equations(name, w, given, constants), expected)


@settings(max_examples=8)
@given(lr=small, one=st.floats(0.1, 0.99), two=share, seed=st.integers(0, 999))
def test_the_centered_root_agrees_where_it_is_not_all_rounding(lr, one, two, seed):
    """v - n² is a difference of near equals; epsilon keeps the root off its rounding."""
    hand, peer, constants = options("rmsprop_centered", lr, one, two, 1e-2, 0.01)
    rng = np.random.default_rng(seed)
    w, given = rng.normal(size=5), rng.normal(size=(STEPS, 5))
    expected = by_torch(peer, w, given)
    close(by_hand(hand, w, given), expected, 1e-8)
    close(by_equations("rmsprop_centered", w, given, constants), expected, 1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_a_gated_net_trained_in_numpy_is_the_one_trained_in_torch(name):
    """Each follows its own gradients for 100 steps, so that every error would grow."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(20, 6)), rng.integers(0, 3, 20)
    weights = {"W": rng.normal(size=(6, 6)), "b": rng.normal(size=6), "A": rng.normal(size=(3, 6))}
    hand, peer, _ = options(name, 0.01, 0.9, 0.99, 1e-3, 1e-3)
    mine, states = dict(weights), None
    for _ in range(STEPS):
        h, saved = gate.forward(x, {k: mine[k] for k in "Wb"})
        _, d_a = reference.cross_entropy(h @ mine["A"].T, y)
        found = gate.backward(d_a @ mine["A"], saved) | {"A": d_a.T @ h}
        mine, states = reference.update(hand, mine, found, states)
    theirs = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in weights.items()}
    steppers = [peer(w) for w in theirs.values()]
    inputs = torch.tensor(x)
    for _ in range(STEPS):
        h = torch.sigmoid(inputs @ theirs["W"].T + theirs["b"]) * inputs
        loss = F.cross_entropy(h @ theirs["A"].T, torch.tensor(y))
        loss.backward(inputs=list(theirs.values()))
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
    for k, weight in theirs.items():
        assert np.abs(mine[k] - weights[k]).max() > 1e-3
        close(mine[k], weight.detach().numpy())


def test_an_initial_sum_slows_adagrad_as_in_torch():
    w, given = np.ones(5), gradients(0)
    peer = lambda p: torch.optim.Adagrad([p], 0.1, initial_accumulator_value=2.0)  # noqa: E731
    close(by_hand(reference.Adagrad(0.1, initial=2.0), w, given), by_torch(peer, w, given))


def test_a_gradient_of_zero_moves_nothing_but_what_remembers():
    w, given = np.ones(3), np.zeros((4, 3))
    for name in NAMES:
        hand, *_ = options(name, 0.1, 0.9, 0.99, 1e-8, 0.0)
        close(by_hand(hand, w, given), np.ones((4, 3)), 0)
    gone = np.concatenate([np.ones((1, 3)), given])
    last = by_hand(reference.SGD(0.1, momentum=0.5), w, gone)
    close(last[-1], np.full(3, 1 - 0.1 * (1 + 0.5 + 0.25 + 0.125 + 0.0625)))


def test_an_optimizer_changes_nothing_in_place():
    w, G = np.ones(3), np.full(3, 2.0)
    for name in NAMES:
        hand, *_ = options(name, 0.1, 0.9, 0.99, 1e-8, 0.1)
        state = hand.start(w)
        before = {k: np.copy(v) for k, v in state.items()}
        hand.step(w, G, state)
        assert (w == 1).all() and (G == 2).all()
        assert all((before[k] == v).all() for k, v in state.items())


def test_single_precision_stays_single():
    w = np.ones(3, np.float32)
    for name in NAMES:
        hand, *_ = options(name, 0.1, 0.9, 0.99, 1e-8, 0.1)
        moved, state = hand.step(w, w, hand.start(w))
        arrays = [moved, *(v for v in state.values() if isinstance(v, np.ndarray))]
        assert {a.dtype for a in arrays} == {np.dtype(np.float32)}


def test_the_first_step_of_adagrad_rmsprop_and_adam_does_not_depend_on_the_size():
    for G in (1e-3, 1.0, 1e3):
        G = np.full(1, G)
        lr = 0.01
        close(by_hand(reference.Adagrad(lr), np.zeros(1), [G]), np.full((1, 1), -lr), 1e-6)
        close(by_hand(reference.Adam(lr), np.zeros(1), [G]), np.full((1, 1), -lr), 1e-6)
        rms = by_hand(reference.RMSprop(lr, alpha=0.99), np.zeros(1), [G])
        close(rms, np.full((1, 1), -10 * lr), 1e-5)


def test_decay_divided_by_the_root_is_not_decay_past_it():
    w, given = (
        np.array([1.0, 1.0]),
        np.tile([10.0, 0.1], (50, 1)) * (-1.0) ** np.arange(50)[:, None],
    )
    coupled = by_hand(reference.Adam(1e-3, weight_decay=0.1), w, given)[-1]
    apart = by_hand(reference.AdamW(1e-3, weight_decay=0.1), w, given)[-1]
    bare = by_hand(reference.Adam(1e-3), w, given)[-1]
    assert abs((bare - apart)[0] - (bare - apart)[1]) < 1e-3 * (bare - apart)[0]
    assert (bare - coupled)[1] > 20 * (bare - coupled)[0]


# ---- the AdaGrad of the article (claim A4) ------------------------------------------------------


def test_the_printed_adagrads_first_step_is_the_gradient_over_the_root_of_epsilon():
    G, eta, epsilon = sp.symbols("G eta epsilon", positive=True)
    first = equations.ADAGRAD_PRINTED.subs(decay=0, s_prev=0, w_prev=0).compose()["w"]
    names = {str(v): v for v in first.free_symbols}
    derived = first.subs({names["G"]: G, names["eta"]: eta, names["epsilon"]: epsilon})
    assert sp.simplify(derived + eta * G / sp.sqrt(epsilon)) == 0
    for g, e in ((0.3, 1e-8), (-2.0, 0.1), (5.0, 1e-10)):
        step = by_hand(reference.PrintedAdagrad(0.01, eps=e), np.zeros(1), [np.full(1, g)])[0, 0]
        assert np.isclose(step, float(derived.subs({G: sp.Float(g), eta: 0.01, epsilon: e})))


def test_an_epsilon_of_one_is_a_printed_sum_that_starts_at_one():
    w, given = np.ones(5), gradients(7)
    wide = reference.PrintedAdagrad(0.1, eps=1.0, initial=0.0)
    close(by_hand(wide, w, given), by_hand(reference.PrintedAdagrad(0.1, 0.0, 0.0, 1.0), w, given))


def test_the_printed_order_and_the_published_one_have_the_same_sum():
    given, start, constants = (
        gradients(4),
        {"w": np.zeros(5)},
        {"eta": 0.1, "epsilon": 1e-8, "decay": 0},
    )
    runs = [
        unfold(equations.OPTIMIZERS[k], {"G": given}, start, constants)
        for k in ("adagrad", "adagrad_printed")
    ]
    close(runs[0]["s"], runs[1]["s"], 0)
    close(runs[0]["s"][-1], (given**2).sum(0), 1e-12)
    hand = by_hand(reference.PrintedAdagrad(0.1, eps=1e-8), np.zeros(5), given)
    close(hand, runs[1]["w"])


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: reference.SGD(-1.0), ValueError, "lr: expected"),
        (lambda: reference.SGD(float("nan")), ValueError, "lr: expected"),
        (lambda: reference.SGD("1"), TypeError, "lr: expected a number"),
        (lambda: reference.SGD(0.1, nesterov=1), TypeError, "nesterov: expected a bool"),
        (lambda: reference.Adam(0.1, beta2=1.0), ValueError, "beta2: expected 0"),
        (lambda: reference.RMSprop(0.1, alpha=1.0), ValueError, "alpha: expected 0"),
        (lambda: reference.Adagrad(0.1, eps=-1e-8), ValueError, "eps: expected"),
        (
            lambda: reference.SGD(0.1).step(np.ones(2), np.ones(3), {"m": np.zeros(2)}),
            ValueError,
            r"gradient: expected \(2,\)",
        ),
        (
            lambda: reference.AdamW(0.1).step(np.ones(2), np.ones(2, "f4"), {}),
            TypeError,
            "gradient: expected float64",
        ),
        (
            lambda: reference.SGD(0.1).step(np.ones(2, int), np.ones(2, int), {}),
            TypeError,
            "weight: expected a floating dtype",
        ),
        (
            lambda: reference.update(reference.SGD(0.1), {"W": np.ones(1)}, {}, None),
            ValueError,
            "gradients: expected",
        ),
        (
            lambda: unfold(equations.SGD, {"G": np.ones((2, 1))}, {"w": np.ones(1)}, {"eta": 1}),
            ValueError,
            "decay",
        ),
        (
            lambda: unfold(equations.SGD, {"G": np.ones((2, 1))}, {"v": np.ones(1)}, {}),
            ValueError,
            "start: expected names of",
        ),
    ],
)
def test_bad_input_is_named(make, error, says):
    with pytest.raises(error, match=says):
        make()
