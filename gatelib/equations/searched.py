"""Cells that a search found: MUT1, MUT2 and MUT3, and the nodes of ENAS's and DARTS's cells.

Imports gatelib.cell, gatelib.spec and gatelib.equations.gru.
Must not import NumPy, torch or any other floor.

The mutated units of Jozefowicz et al. 2015 are GRUs whose reset gate acts before the product; what
sets them apart is what a gate sees. `a_k` is W_k x + U_k h_prev + b_k but where it says otherwise,
`u_k` has no product of x, and `x` is the input itself, as wide as the state.

- MUT1: z sees no state, `a_z` = W_z x + b_z; the candidate no product of x, `u_n` = U_n q + b_n.
- MUT2: r sees the input itself, `u_r` = U_r h_prev + b_r.
- MUT3: z sees the squashed state t, `a_z` = W_z x + U_z t + b_z.

Public code has W x + b in the place of x. MUT2 is then `gru.CHUNG` to the letter.

A node of ENAS's and DARTS's cells has two preactivations `a_c`, `a_n`, both products of an earlier
node `s`; the first node's are W x + U s, and its `s` is the state. The mean of some nodes is read.
"""

from __future__ import annotations

from typing import NamedTuple

from gatelib.cell import Cell, cell, named
from gatelib.equations.gru import CHUNG, RESET, WRITE
from gatelib.spec import Spec


def _write(name: str, squashed: str) -> Spec:
    """A second stage whose candidate squashes what it sees of the input on its own."""
    text = f"n = tanh(u_n + tanh({squashed}))\nh = (1 - z)*h_prev + z*n"
    return Spec.parse(name, f"{squashed} u_n z h_prev -> h", text)


MUT1_WRITE = _write("mut1_write", "x")
"""MUT1's second stage in the paper: tanh of the input itself."""

MUT1_WRITE_CODE = _write("mut1_write_code", "a_n")
"""MUT1's second stage in public code: `a_n` = W_n x + c_n, and `u_n` = U_n q + b_n."""

MUT1_RESET = Spec.read(
    """mut1_reset: a_z u_z a_r h_prev -> z q
    r = sigmoid(a_r)
    z = sigmoid(a_z)
    q = r*h_prev"""
)
"""MUT1's first stage. No line reads `u_z`: with it, `a_z` is W_z x + b_z alone."""

MUT2_RESET = Spec.parse(
    "mut2_reset",
    "a_z u_r x h_prev -> z q",
    """
    r = sigmoid(u_r + x)
    z = sigmoid(a_z)
    q = r*h_prev
    """,
)
"""MUT2's first stage in the paper: the input itself is added to r's preactivation."""

MUT3_LOOK = Spec.parse("mut3_look", "h_prev -> t", "t = tanh(h_prev)")
"""What MUT3's z sees of the state."""

MUT1 = cell((MUT1_RESET, MUT1_WRITE), "mut1")
"""MUT1 (Jozefowicz, Zaremba & Sutskever 2015, "An empirical exploration of recurrent network
architectures", ICML, section 3.2), as printed."""

MUT1_CODE = cell((MUT1_RESET, MUT1_WRITE_CODE), "mut1_code")
"""MUT1 as torchrecurrent and others have it; `nn.Recurrent` of it has a U_z that nothing reads."""

MUT2 = cell((MUT2_RESET, WRITE), "mut2")
"""MUT2 of the same paper, as printed."""

MUT3 = cell((MUT3_LOOK, RESET, WRITE), "mut3")
"""MUT3 of the same paper, and of its public code."""

MUTATED: dict[str, Cell] = {
    "mut1": MUT1,
    "mut1_code": MUT1_CODE,
    "mut2": MUT2,
    "mut2_code": CHUNG,
    "mut3": MUT3,
}
"""The mutated units by variant: as printed, or as public code has them."""

ACTIVATIONS = ("tanh", "relu", "sigmoid", "identity")
"""What a node of ENAS's and DARTS's cells may apply."""


def node(activation: str) -> Spec:
    """A node: y = s + c·(n − s), a step from s towards the candidate n.

    Raises ValueError for an activation that these cells don't have.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {ACTIVATIONS}, got {activation!r}")
    text = f"c = sigmoid(a_c)\nn = {activation}(a_n)\ny = s + c*(n - s)"
    return Spec.parse(f"node_{activation}", "a_c a_n s -> y", text)


NODE_TANH = node("tanh")
"""The first node of every such cell, and others."""
NODE_RELU = node("relu")
"""A node that can add without end."""
NODE_SIGMOID = node("sigmoid")
"""A node whose candidate is positive."""
NODE_IDENTITY = node("identity")
"""A node without a nonlinearity but its gate."""


class Nodes(NamedTuple):
    """A cell of nodes: node 0 is tanh of W x + U h_prev; node i + 1 is made by `steps[i]`.

    steps: (activation, the earlier node that it reads) for each node but the first.
    read: the nodes whose mean is the output.
    """

    steps: tuple[tuple[str, int], ...]
    read: tuple[int, ...]


def _nodes(text: str, *read: int) -> Nodes:
    """From words such as `relu 0`, parted by commas."""
    steps = (word.split() for word in text.split(","))
    return Nodes(tuple((activation, int(place)) for activation, place in steps), read)


ENAS = _nodes(
    "tanh 0, tanh 1, relu 1, tanh 3, tanh 3, relu 3, relu 4, relu 7, relu 8, relu 8, relu 8",
    *(2, 5, 6, 9, 10, 11),
)
"""Pham et al. 2018, arXiv:1802.03268, as the authors of DARTS have it in `genotypes.py`."""

DARTS_FIRST = _nodes(
    "relu 0, relu 1, tanh 2, relu 3, relu 4, identity 1, relu 5, relu 1", *range(1, 9)
)
"""Liu, Simonyan & Yang 2019, arXiv:1806.09055: the cell of the first-order search, DARTS_V1."""

DARTS_SECOND = _nodes(
    "sigmoid 0, relu 1, relu 1, identity 1, tanh 2, sigmoid 5, tanh 3, relu 5", *range(1, 9)
)
"""The same paper's cell of the second-order search, DARTS_V2."""


def whole(nodes: Nodes, name: str = "nodes") -> Spec:
    """All lines of a cell of nodes, for proofs and drawings.

    The products between the nodes are not among the lines: node i has inputs `a_ci` and `a_ni`.
    Raises ValueError for nodes that can't be made in their order.
    """
    steps = (("tanh", -1), *check_nodes(nodes).steps)
    lines, inputs = list[str](), list[str]()
    for i, (activation, place) in enumerate(steps):
        s = "h_prev" if place < 0 else f"s_{place}"
        lines += [f"c_{i} = sigmoid(a_c{i})", f"n_{i} = {activation}(a_n{i})"]
        lines += [f"s_{i} = {s} + c_{i}*(n_{i} - {s})"]
        inputs += [f"a_c{i}", f"a_n{i}"]
    total = " + ".join(f"s_{i}" for i in nodes.read)
    outputs = " ".join(["h", *(f"s_{i}" for i in range(len(steps)))])
    text = "\n".join([*lines, f"h = ({total})/{len(nodes.read)}"])
    return Spec.parse(name, f"{' '.join(inputs)} h_prev -> {outputs}", text)


def check_nodes(nodes: Nodes) -> Nodes:
    """The nodes; ValueError where one reads a later one, or has another activation."""
    for i, (activation, place) in enumerate(nodes.steps):
        node(activation)
        if not 0 <= place <= i:
            raise ValueError(f"nodes: expected node {i + 1} to read one of 0 … {i}, got {place}")
    last = len(nodes.steps)
    if not nodes.read or not all(0 <= place <= last for place in nodes.read):
        raise ValueError(f"nodes: expected to read some of 0 … {last}, got {nodes.read}")
    return nodes


def mean_of(count: int) -> Spec:
    """The mean of that many nodes, `s_1`, `s_2`, …"""
    names = [f"s_{i}" for i in range(1, count + 1)]
    return Spec.parse("mean_of", f"{' '.join(names)} -> h", f"h = ({' + '.join(names)})/{count}")


ALL = named(MUT1, MUT1_CODE, MUT2, MUT3, NODE_TANH, NODE_RELU, NODE_SIGMOID, NODE_IDENTITY)
