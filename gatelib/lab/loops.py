"""Two other loops around a cell's equations: Jordan's, over the output, and a skip over k steps.

Imports NumPy, gatelib.spec and gatelib.printers.
Must not import gatelib.reference or gatelib.nn: it is compared with both.

As in gatelib.lab.unrolled, each step is the Spec's own generated NumPy and each step back its
`vjp()`. Only the matrix products between the steps are written here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.spec import Spec

Array = NDArray[Any]
Arrays = dict[str, Array]


def all_values(spec: Spec) -> Spec:
    """The Spec with every value as an output."""
    outputs = tuple(v for v, _ in spec.equations)
    return Spec(f"{spec.name}_values", spec.equations, spec.inputs, outputs)


def symbolic_skip(
    spec: Spec, x: Array, weights: Arrays, past: Array, upstream: Arrays
) -> dict[str, Array]:
    """A cell with the preactivation W x_t + U h_{t−1} + V h_{t−k} + b, from its equations.

    x (B, T, D); weights `W`, `U`, `V`, `b`; past (B, k, H), the k states before the first step;
    upstream `y` (B, T, H) and `h` (B, k, H). Returns `y`, `final_h` and `d_NAME` of every input.
    """
    count, values = past.shape[1], all_values(spec)
    states, steps = list(past.swapaxes(0, 1)), []
    for t in range(x.shape[1]):
        a = x[:, t] @ weights["W"].T + states[-1] @ weights["U"].T
        step = {"a_h": a + states[-count] @ weights["V"].T + weights["b"], "h_prev": states[-1]}
        steps.append(step | values.evaluate(step))
        states.append(steps[-1]["h"])
    ends = {"y": np.stack(states[count:], 1), "final_h": np.stack(states[-count:], 1)}
    return ends | _skip_backward(spec.vjp(), x, weights, (states, steps), upstream)


def _skip_backward(
    vjp: Spec, x: Array, weights: Arrays, saved: tuple[list[Array], list[Arrays]], upstream: Arrays
) -> dict[str, Array]:
    states, steps = saved
    count = upstream["h"].shape[1]
    d = [np.zeros_like(states[0])] * count + list(upstream["y"].swapaxes(0, 1))
    for j in range(count):
        d[len(steps) + j] = d[len(steps) + j] + upstream["h"][:, j]
    grads, d_x = {name: np.zeros_like(value) for name, value in weights.items()}, np.zeros_like(x)
    for t in reversed(range(len(steps))):
        found = vjp.evaluate(steps[t] | {"g_h": d[count + t]})
        d_a, before = found["d_a_h"], count + t - 1
        d[before] = d[before] + d_a @ weights["U"] + found.get("d_h_prev", 0.0)
        d[t] = d[t] + d_a @ weights["V"]
        _add(grads, d_a, {"W": x[:, t], "U": states[before], "V": states[t]}, "b")
        d_x[:, t] = d_a @ weights["W"]
    named = {f"d_{name}": value for name, value in grads.items()}
    return named | {"d_x": d_x, "d_h0": np.stack(d[:count], 1)}


def symbolic_jordan(
    hidden: Spec, output: Spec, x: Array, weights: Arrays, s0: Array, upstream: Arrays
) -> dict[str, Array]:
    """Jordan's net from the equations of its hidden and of its output and state units.

    x (B, T, D); weights `W`, `U`, `b`, `Q`, `c`; s0 (B, O); upstream `y` (B, T, O), `s` (B, O).
    Returns `y`, `final_s` and `d_NAME` of every input.
    """
    steps, s, values = [], s0, (all_values(hidden), all_values(output))
    for t in range(x.shape[1]):
        step = {"a_h": x[:, t] @ weights["W"].T + s @ weights["U"].T + weights["b"], "s_prev": s}
        step |= values[0].evaluate(step)
        step["a_y"] = step["h"] @ weights["Q"].T + weights["c"]
        step |= values[1].evaluate(step)
        s = step["s"]
        steps.append(step)
    y = np.stack([step["y"] for step in steps], 1)
    backs = hidden.vjp(), output.vjp()
    return {"y": y, "final_s": s} | _jordan_backward(backs, x, weights, steps, upstream)


def _jordan_backward(
    backs: tuple[Spec, Spec], x: Array, weights: Arrays, steps: list[Arrays], upstream: Arrays
) -> dict[str, Array]:
    grads, d_x = {name: np.zeros_like(value) for name, value in weights.items()}, np.zeros_like(x)
    d_s = upstream["s"]
    for t in reversed(range(len(steps))):
        out = backs[1].evaluate(steps[t] | {"g_y": upstream["y"][:, t], "g_s": d_s})
        d_a = backs[0].evaluate(steps[t] | {"g_h": out["d_a_y"] @ weights["Q"]})["d_a_h"]
        _add(grads, out["d_a_y"], {"Q": steps[t]["h"]}, "c")
        _add(grads, d_a, {"W": x[:, t], "U": steps[t]["s_prev"]}, "b")
        d_x[:, t] = d_a @ weights["W"]
        d_s = d_a @ weights["U"] + out.get("d_s_prev", 0.0)
    named = {f"d_{name}": value for name, value in grads.items()}
    return named | {"d_x": d_x, "d_s0": d_s}


def _add(grads: Arrays, d_a: Array, seen: Arrays, bias: str) -> None:
    """Add one step's share of the gradients of matrices, by what they multiplied, and of a bias."""
    for name, value in seen.items():
        grads[name] += d_a.T @ value
    grads[bias] += d_a.sum(axis=0)
