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
TEMPERED = Spec.parse(
    "tempered_gate",
    "a t v -> y",
    """
    g = sigmoid(a/t)
    y = g*v""",
)
HARD_SIGMOID = SIGMOID.replace("hard_sigmoid_gate", g="hardsigmoid(a)")
SOFTMAX = SIGMOID.replace("softmax_gate", g="softmax(a)")
EXP = SIGMOID.replace("exp_gate", g="exp(a)")
RELU = SIGMOID.replace("relu_gate", g="relu(a)")
RELU_SQUARED = SIGMOID.replace("relu_squared_gate", g="relu(a)**2")
LINEAR = SIGMOID.replace("linear_gate", g="identity(a)")
STEP = SIGMOID.replace("step_gate", g="step(a)")

CONCRETE = Spec.parse(
    "concrete_gate",
    "a t u v -> y",
    """
    l = log(u) - log(1 - u)
    g = sigmoid((a + l)/t)
    y = g*v""",
)
GUMBEL_SOFTMAX = Spec.parse(
    "gumbel_softmax_gate",
    "a t u v -> y",
    """
    l = -log(-log(u))
    g = softmax((a + l)/t)
    y = g*v""",
)
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
HARD_CONCRETE_MEAN = HARD_CONCRETE.replace("hard_concrete_mean_gate", s="sigmoid(a)")
INTERPOLATION = Spec.parse(
    "interpolation",
    "old new g -> y",
    """
    y = (1 - g)*old + g*new""",
)

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
