"""The generic gate, y = g v, as equations: one `Spec` for each way to get g from a preactivation a.
Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch, or another floor.

Symbols: `a` preactivation, `v` gated value, `t` temperature, `u` uniform noise in (0, 1).
A noise-free gate is the noisy one at u = 1/2, where the noise is zero.
"""

from gatelib.cell import named
from gatelib.spec import Spec

SIGMOID = Spec.parse(
    "sigmoid_gate",
    "a v -> y",
    """
    g = sigmoid(a)
    y = g*v""",
)
"""The plain gate: a share between 0 and 1 of the value v."""

TEMPERED = Spec.parse(
    "tempered_gate",
    "a t v -> y",
    """
    g = sigmoid(a/t)
    y = g*v""",
)
"""A temperature t sharpens the sigmoid where it is below 1, and flattens it above."""

HARD_SIGMOID = SIGMOID.replace("hard_sigmoid_gate", g="hardsigmoid(a)")
"""Straight lines in the place of the sigmoid: exactly 0 and 1 beyond ±3."""

SOFTMAX = SIGMOID.replace("softmax_gate", g="softmax(a)")
"""Gates that share one unit of opening between all features."""

EXP = SIGMOID.replace("exp_gate", g="exp(a)")
"""A gate without an upper end."""

RELU = SIGMOID.replace("relu_gate", g="relu(a)")
"""A gate that can be exactly 0, and has no upper end."""

RELU_SQUARED = SIGMOID.replace("relu_squared_gate", g="relu(a)**2")
"""As RELU, with a slope that starts at 0."""

LINEAR = SIGMOID.replace("linear_gate", g="identity(a)")
"""No nonlinearity: a product of two linear maps (a bilinear gate)."""

STEP = SIGMOID.replace("step_gate", g="step(a)")
"""A switch, 0 or 1; its derivative is 0."""

CONCRETE = Spec.parse(
    "concrete_gate",
    "a t u v -> y",
    """
    l = log(u) - log(1 - u)
    g = sigmoid((a + l)/t)
    y = g*v""",
)
"""Maddison et al. 2016, arXiv:1611.00712: logistic noise l of a uniform number u, temperature t."""

GUMBEL_SOFTMAX = Spec.parse(
    "gumbel_softmax_gate",
    "a t u v -> y",
    """
    l = -log(-log(u))
    g = softmax((a + l)/t)
    y = g*v""",
)
"""Jang et al. 2016, arXiv:1611.01144: Gumbel noise l of a uniform number u, temperature t."""

HARD_CONCRETE = Spec.parse(
    "hard_concrete_gate",
    "a t u v -> y",
    """
    l = log(u) - log(1 - u)
    s = sigmoid((a + l)/t)
    r = 1.2*s - 0.1
    g = 1 - relu(1 - relu(r))
    y = g*v""",
)
"""Louizos et al. 2017, arXiv:1712.01312: CONCRETE stretched to -0.1 … 1.1, then clipped."""

HARD_CONCRETE_MEAN = HARD_CONCRETE.replace("hard_concrete_mean_gate", s="sigmoid(a)")
"""HARD_CONCRETE without noise, as it is used after training."""

INTERPOLATION = Spec.parse(
    "interpolation",
    "old new g -> y",
    """
    y = (1 - g)*old + g*new""",
)
"""A gate as a choice between two values: old where it is 0, new where it is 1."""

ALL = named(
    SIGMOID,
    TEMPERED,
    HARD_SIGMOID,
    SOFTMAX,
    EXP,
    RELU,
    RELU_SQUARED,
    LINEAR,
    STEP,
    CONCRETE,
    GUMBEL_SOFTMAX,
    HARD_CONCRETE,
    HARD_CONCRETE_MEAN,
    INTERPOLATION,
)
