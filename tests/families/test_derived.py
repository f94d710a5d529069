"""The tape's gradients are the slopes of what it computed, however its steps are put together."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib import derived
from gatelib.derived import Tape, Value, gate, join, linear, split, stack, swap
from gatelib.equations import gru, lstm, rnn
from gatelib.equations.depth import RESIDUAL
from gatelib.spec import Spec
from tests.families import witnesses

B, H = 3, 4
MEAN = Spec.parse("center", "v -> m", "m = mean(v)")
TOTAL = Spec.parse("sums", "v s -> t w", "t = total(s*v)\nw = t*v")
SOFT = Spec.parse("soft", "a v -> y", "g = softmax(a)\ny = g*v")
NORM = Spec.parse("norm", "a s b -> y", "y = tanh(s*normalize(a) + b)")
TAKEN = Spec.parse("taken", "d_f f g_y -> y g", "d_y = d_f*f\ny = tanh(d_y) + g_y\ng = f*g_y")
"""Names that a derivation would like to have itself."""


def lstm_step(pool, own, i, j):
    gates = dict(
        zip(("a_i", "a_f", "a_g", "a_o"), split(linear(pool[i], own["four"]), 4), strict=True)
    )
    made = gate(lstm.LSTM, c_prev=pool[j], **gates)
    return made["h"] + made["c"]


def halves(pool, own, i, j):
    first, second = split(pool[i], 2)
    return join([second, first])


def centered(pool, own, i, j):
    return pool[i] + gate(MEAN, v=pool[j])["m"]


def totals(pool, own, i, j):
    made = gate(TOTAL, v=pool[i], s=own["b"])
    return made["w"] + made["t"]


def taken(pool, own, i, j):
    made = gate(TAKEN, d_f=pool[i], f=pool[j], g_y=own["b"])
    return made["y"] + made["g"]


def derived_itself(pool, own, i, j):
    """A backward pass as a gate: its derivative is a second one."""
    known = {"d_f": pool[i], "f": pool[j], "g_y": own["b"], "d_y": pool[i] + pool[j]}
    made = gate(TAKEN.vjp(), gg_y=pool[j], gg_g=own["b"], **known)
    return made["dd_d_f"] + made["dd_f"]


STEPS = {
    "add": lambda pool, own, i, j: pool[i] + pool[j],
    "linear": lambda pool, own, i, j: linear(pool[i], own["W"], own["b"]),
    "linear without a bias": lambda pool, own, i, j: linear(pool[i], own["W"]),
    "a vector": lambda pool, own, i, j: pool[i] + own["b"],
    "backwards": lambda pool, own, i, j: pool[i][::-1, ::-1],
    "a row twice": lambda pool, own, i, j: pool[i][np.array([0, 0, 2])],
    "stack": lambda pool, own, i, j: stack([pool[i], pool[j], pool[i]], pool[0])[:, j % 3],
    "swap": lambda pool, own, i, j: linear(swap(pool[i], 0, 1), own["M"]),
    "halves": halves,
    "lstm": lstm_step,
    "softmax": lambda pool, own, i, j: gate(SOFT, a=pool[i], v=pool[j])["y"],
    "normalize": lambda pool, own, i, j: gate(NORM, a=pool[i], s=own["b"], b=0.5)["y"],
    "a mean": centered,
    "a total": totals,
    "taken names": taken,
    "a derived gate": derived_itself,
}
OWN = {"W": (H, H), "b": (H,), "four": (4 * H, H), "M": (B, B)}


def composed(steps, values):
    """Each step reads two of the values before it; all of them are the outputs."""
    pool = [values["x"], values["z"]]
    for name, i, j in steps:
        made = STEPS[name](pool, values, i % len(pool), j % len(pool))
        pool.append(swap(made, 0, 1) if made.shape != (B, H) else made)
    return {f"out{k}": value for k, value in enumerate(pool)}


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 9), st.integers(0, 9)),
        min_size=1,
        max_size=8,
    ),
    seed=st.integers(0, 99),
)
def test_gradients_of_any_composition_are_its_slopes(steps, seed):
    rng = np.random.default_rng(seed)
    inputs = {"x": rng.normal(size=(B, H)), "z": rng.normal(size=(B, H))}
    inputs |= {name: 0.5 * rng.normal(size=shape) for name, shape in OWN.items()}
    run = partial(composed, steps)
    shapes = {name: v.shape for name, v in derived.gradients(run, inputs, {}).items()}
    upstream = {k: rng.normal(size=s) for k, s in shapes.items() if k.startswith("out")}
    way = {name: rng.normal(size=v.shape) for name, v in inputs.items()}

    def loss(step):
        moved = {name: v + step * way[name] for name, v in inputs.items()}
        found = derived.gradients(run, moved, {})
        return sum((found[name] * d).sum() for name, d in upstream.items())

    found = derived.gradients(run, inputs, upstream)
    slope = sum((found[f"d_{name}"] * d).sum() for name, d in way.items())
    by_steps = (8 * (loss(1e-4) - loss(-1e-4)) - (loss(2e-4) - loss(-2e-4))) / 12e-4
    scale = sum(np.abs(found[f"d_{name}"] * d).sum() for name, d in way.items())
    # two equal features make a normalisation steep, and its fifth derivative steeper
    assert abs(slope - by_steps) <= 1e-8 * (1 + scale) ** 2


def test_a_value_that_is_used_twice_gets_both_gradients():
    run = lambda v: {"y": v["x"] + v["x"]}  # noqa: E731
    found = derived.gradients(run, {"x": np.ones(2)}, {"y": np.array([1, 3])})
    np.testing.assert_array_equal(found["d_x"], [2, 6])


def test_an_input_that_is_an_output_under_two_names_gets_the_gradients_of_both():
    upstream = {"y": np.array([1, 2]), "z": np.array([3, 4])}
    found = derived.gradients(lambda v: {"y": v["x"], "z": v["x"]}, {"x": np.ones(2)}, upstream)
    np.testing.assert_array_equal(found["d_x"], [4, 6])


def test_shared_weights_add_up():
    rng = np.random.default_rng(0)
    x, W, d = (rng.normal(size=(2, 2)) for _ in range(3))
    run = lambda v: {"y": linear(linear(v["x"], v["W"]), v["W"])}  # noqa: E731
    found = derived.gradients(run, {"x": x, "W": W}, {"y": d})
    np.testing.assert_allclose(found["d_W"], d.T @ (x @ W.T) + (d @ W).T @ x, atol=1e-15)


def test_what_no_output_needs_has_gradient_zero():
    found = derived.gradients(lambda v: {"y": v["x"]}, {"x": np.ones(1), "z": np.ones(2)}, {})
    np.testing.assert_array_equal(found["d_z"], [0, 0])
    np.testing.assert_array_equal(found["d_x"], [0])


@pytest.mark.parametrize("cell", [lstm.PEEPHOLE, gru.MGU, gru.GRU, rnn.LEAKY])
def test_an_empty_sequence_gives_the_initial_states_and_their_gradients_back(cell):
    from gatelib.cell import cell as read

    names, rows = read(cell), len(read(cell).gates) * H
    inputs = {"x": np.ones((B, 0, 2)), "W": np.ones((rows, 2)), "U": np.ones((rows, H))}
    inputs |= {"b": np.ones(rows)} | {name: np.ones(H) for name in names.vectors}
    inputs |= {f"{name}0": np.full((B, H), 7.0) for name in names.states}
    upstream = {f"final_{name}": np.full((B, H), 3.0) for name in names.states}
    found = derived.gradients(partial(derived.rnn.over_time, cell), inputs, upstream)
    assert found["y"].shape == (B, 0, H)
    for name in names.states:
        np.testing.assert_array_equal(found[f"final_{name}"], inputs[f"{name}0"])
        np.testing.assert_array_equal(found[f"d_{name}0"], upstream[f"final_{name}"])
    assert not any(found[f"d_{name}"].any() for name in ("W", "U", "b", "x", *names.vectors))


def test_gradients_flow_through_a_tape_that_was_written_by_hand():
    tape = Tape()
    x, a = Value(np.array([1.0, 2.0]), tape), Value(np.array([3.0, 4.0]), tape)
    y = gate(RESIDUAL, a=a, x_prev=x)["x"]
    found = tape.gradients({y: np.array([5.0, 6.0])})
    np.testing.assert_array_equal(found[x], [5, 6])
    np.testing.assert_array_equal(found[a], [5, 6])


def test_what_is_asked_wrongly_is_named():
    witnesses.assert_upstream_is_checked(derived.gradients)
    with pytest.raises(ValueError, match=r"values: expected Values of one tape, got 0 tapes"):
        gate(RESIDUAL, a=1.0, x_prev=2.0)
    with pytest.raises(ValueError, match="got 2 tapes"):
        gate(RESIDUAL, a=Value(1.0, Tape()), x_prev=Value(2.0, Tape()))
    with pytest.raises(ValueError, match="values: expected x_prev too"):
        derived.gradients(lambda v: gate(RESIDUAL, a=v["x"]), {"x": np.ones(3)}, {})
