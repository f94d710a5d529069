"""Cells that a search found, over time: the mutated units, and the cells of highway nodes.

Imports gatelib.equations.searched, gatelib.derived.tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.
"""

from __future__ import annotations

from gatelib.derived.tape import Value, Values, gate, linear, stack
from gatelib.equations import searched as equations

__all__ = ["mutated", "nodes"]


def mutated(variant: str, given: Values) -> dict[str, Value]:
    """A mutated unit over a sequence.

    given: `x` (B, T, D), `h0` (B, H), `b` (3·H,) of z, r and n; `W` and `U`, whose blocks of H rows
    are those of the three that see a product of x, and of the state; for mut1_code `c` (H,), added
    to the candidate's W x. Returns `y` (B, T, H) and `final_h` (B, H).
    """
    h, ys = given["h0"], []
    for t in range(given["x"].shape[1]):
        h = _mutated_step(variant, given["x"][:, t], h, given)
        ys.append(h)
    return {"y": stack(ys, like=given["h0"]), "final_h": h}


def _mutated_step(variant: str, x: Value, h: Value, given: Values) -> Value:
    *look, first, second = equations.MUTATED[variant].stages
    seen = gate(look[0], h_prev=h)["t"] if look else h
    W, U, b = _blocks(given, "W", SEE_X[variant]), _blocks(given, "U", SEE_H[variant]), given["b"]
    size = h.shape[-1]
    a_z = linear(x, W["z"], b[:size])
    a_z = a_z + linear(seen, U["z"]) if "z" in U else a_z
    u_r = linear(h, U["r"], b[size : 2 * size])
    a_r = u_r + linear(x, W["r"]) if "r" in W else u_r
    made = gate(first, a_z=a_z, u_z=h, a_r=a_r, u_r=u_r, x=x, h_prev=h)
    a_n = u_n = linear(made["q"], U["n"], b[2 * size :])
    if "c" in given:
        a_n = linear(x, W["n"], given["c"])
    elif "n" in W:
        a_n = u_n + linear(x, W["n"])
    return gate(second, a_n=a_n, u_n=u_n, x=x, z=made["z"], h_prev=h)["h"]


SEE_X = {"mut1": "zr", "mut1_code": "zrn", "mut2": "zn", "mut2_code": "zrn", "mut3": "zrn"}
"""Which of z, r and n see a product of the input."""
SEE_H = {"mut1": "rn", "mut1_code": "rn", "mut2": "zrn", "mut2_code": "zrn", "mut3": "zrn"}
"""Which see a product of the state, squashed or reset or neither."""


def _blocks(given: Values, name: str, of: str) -> dict[str, Value]:
    size = given["h0"].shape[-1]
    return {k: given[name][i * size : (i + 1) * size] for i, k in enumerate(of)}


def nodes(cell: equations.Nodes, given: Values) -> dict[str, Value]:
    """A cell of nodes over a sequence.

    given: `x` (B, T, D), `h0` (B, H), `W` (2·H, D) and `U` (N, 2·H, H) for N nodes, the rows of
    each being those of the gate c, then those of the candidate n. Returns `y` (B, T, H) and
    `final_h` (B, H).
    """
    mean = equations.mean_of(len(cell.read))
    h, ys = given["h0"], []
    for t in range(given["x"].shape[1]):
        from_x = linear(given["x"][:, t], given["W"])
        states = [_node("tanh", h, linear(h, given["U"][0]) + from_x)]
        for i, (activation, place) in enumerate(cell.steps, 1):
            states.append(_node(activation, states[place], linear(states[place], given["U"][i])))
        read = {f"s_{k}": states[i] for k, i in enumerate(cell.read, 1)}
        h = gate(mean, **read)["h"]
        ys.append(h)
    return {"y": stack(ys, like=given["h0"]), "final_h": h}


def _node(activation: str, s: Value, packed: Value) -> Value:
    size = s.shape[-1]
    spec = equations.node(activation)
    return gate(spec, a_c=packed[..., :size], a_n=packed[..., size:], s=s)["y"]
