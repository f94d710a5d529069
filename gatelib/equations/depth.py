"""Depth as equations: what one layer adds to, takes from or puts in the place of the stream.
Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

A layer of depth is a cell whose steps are layers. It carries the stream `x`, from which the next
layer reads `h`; `a` = W h_prev + b is its branch. `alpha` is a learned gate on the branch, `m` a
mask of zeros and ones, `keep` the probability of a one.
"""

from gatelib.cell import named
from gatelib.spec import Spec

PLAIN = Spec.parse(
    "plain",
    "a -> h x",
    """
    x = a
    h = relu(x)""",
)
"""No shortcut: the branch takes the place of the stream."""

RESIDUAL = Spec.parse(
    "residual",
    "a x_prev -> h x",
    """
    x = x_prev + a
    h = relu(x)""",
)
"""He et al. 2016, arXiv:1603.05027, equation 3: the branch is added, nothing acts on the sum."""

GATED = Spec.parse(
    "gated",
    "a alpha x_prev -> h x",
    """
    x = x_prev + alpha*a
    h = relu(x)""",
)
"""A free gate on the branch: ReZero (2003.04887, equation 1) and SkipInit (2002.10444), one number
for a layer that starts at 0; LayerScale (2103.17239, equation 3), one for each feature."""

STOCHASTIC = Spec.parse(
    "stochastic",
    "a m keep x_prev -> h x",
    """
    g = m/keep
    x = x_prev + g*a
    h = relu(x)""",
)
"""Stochastic depth (Huang et al. 2016, arXiv:1603.09382, equation 2) with a mean of 1, as dropout
has it; there the branch is scaled by `keep` in the test instead."""

POSTACTIVATION = Spec.parse(
    "postactivation",
    "a x_prev -> h x",
    """
    x = relu(x_prev + a)
    h = x""",
)
"""The first residual block (He et al. 2016, arXiv:1512.03385, equation 1): a ReLU on the sum."""

DENSE = PLAIN
"""A dense layer (1608.06993, equation 2) is a plain one whose branch reads every `h` before it."""

ALL = named(PLAIN, RESIDUAL, GATED, STOCHASTIC, POSTACTIVATION)


def chain(depth: int, kind: str = "plain", activation: str = "identity") -> Spec:
    """A network one unit wide, written out: from `x_0` to `x_depth`, of layers f_l = φ(w x).

    Args:
        depth: the number of layers.
        kind: "plain", x_l = f_l(x_{l-1}); "residual", x_l = x_{l-1} + f_l(x_{l-1}); or "dense",
            where f_l reads every earlier value through a weight `w_lk` of its own, and the output
            y is the sum of them all, each through `v_k`.
        activation: the name of φ.

    Raises: ValueError for a depth below 1 or above 9, or an unknown kind.
    """
    if kind not in ("plain", "residual", "dense"):
        raise ValueError(f"kind: expected plain, residual or dense, got {kind!r}")
    if not 1 <= depth <= 9:
        raise ValueError(f"depth: expected 1 … 9, got {depth}")
    layers = range(1, depth + 1)
    if kind == "dense":
        return _dense_chain(depth, activation)
    skip = "x_{k} + " if kind == "residual" else ""
    line = "x_{l} = " + skip + ("w_{l}*x_{k}" if activation == "identity" else "{f}(w_{l}*x_{k})")
    text = "\n".join(line.format(l=l, k=l - 1, f=activation) for l in layers)
    weights = " ".join(f"w_{l}" for l in layers)
    return Spec.parse(f"{kind}_chain", f"x_0 {weights} -> x_{depth}", text)


def _dense_chain(depth: int, activation: str) -> Spec:
    lines = []
    for l in range(1, depth + 1):
        inner = " + ".join(f"w_{l}{k}*x_{k}" for k in range(l))
        lines.append(
            f"x_{l} = " + (inner if activation == "identity" else f"{activation}({inner})")
        )
    lines.append("y = " + " + ".join(f"v_{k}*x_{k}" for k in range(depth + 1)))
    weights = [f"w_{l}{k}" for l in range(1, depth + 1) for k in range(l)]
    weights += [f"v_{k}" for k in range(depth + 1)]
    return Spec.parse("dense_chain", f"x_0 {' '.join(weights)} -> y", "\n".join(lines))
