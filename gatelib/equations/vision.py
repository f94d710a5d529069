"""Gates over the channels of an image: squeeze-and-excitation, scale and shift, FiLM, a block.

Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

`v` is one channel at one pixel, `z` the channel's mean over the pixels, `a` the preactivation of
the channel's gate, `b` its shift; a learned matrix between the channels makes them of z, or, in
FiLM, of a condition that stands outside the image. Where `mean`, `total` or `normalize` looks over
the features, the features are the pixels of one channel.
"""

from gatelib.cell import named
from gatelib.spec import Spec

SQUEEZE = Spec.parse("squeeze", "v -> z", "z = mean(v)")
"""Hu et al. 2017, arXiv:1709.01507, equation 2: one number says what a channel saw."""

MASKED_SQUEEZE = Spec.parse("masked_squeeze", "m v -> z", "z = total(m*v)/total(m)")
"""The same in an image that is padded to a larger one: m is 1 on the image, and 0 beside it."""

EXCITE = Spec.parse("excite", "a -> h", "h = relu(a)")
"""The hidden layer of the excitation, narrower than the channels: δ in equation 3."""

CHANNEL_GATE = Spec.parse(
    "channel_gate",
    "a v -> y",
    """
    s = sigmoid(a)
    y = s*v""",
)
"""Equations 3 and 4: a gate for each channel, the same at all of its pixels."""

HARD_CHANNEL_GATE = CHANNEL_GATE.replace("hard_channel_gate", s="hardsigmoid(a)")
"""MobileNetV3 (Howard et al. 2019, arXiv:1905.02244, section 5.2): straight lines for σ."""

SCALE_SHIFT = Spec.parse(
    "scale_shift",
    "a b v -> y",
    """
    s = sigmoid(a)
    y = s*v + b""",
)
"""The gate that programs for chess and Go use (Lc0, KataGo): what squeezes also adds."""

HARD_SCALE_SHIFT = SCALE_SHIFT.replace("hard_scale_shift", s="hardsigmoid(a)")
"""The same with straight lines."""

FILM = Spec.parse(
    "film",
    "gamma beta v -> y",
    """
    s = 1 + gamma
    y = s*v + beta""",
)
"""Feature-wise linear modulation (Perez et al. 2017, arXiv:1709.07871, equation 2), with the 1
that its authors' generator adds, so that at γ = β = 0 nothing is changed."""

AFFINE_FILM = FILM.replace("affine_film", s="gamma")
"""Equation 2 to the letter, without the 1: at γ = β = 0 nothing comes through."""

FILM_SCALE = Spec.parse(
    "film_scale",
    "gamma v -> y",
    """
    s = 1 + gamma
    y = s*v""",
)
"""FiLM without its shift."""

FILM_SHIFT = Spec.parse("film_shift", "beta v -> y", "y = v + beta")
"""FiLM without its scale: a bias that depends on the condition."""

KINDS = {
    "film": FILM,
    "affine": AFFINE_FILM,
    "scale": FILM_SCALE,
    "shift": FILM_SHIFT,
    "sigmoid": CHANNEL_GATE,
    "sigmoid_shift": SCALE_SHIFT,
}
"""What a condition may do to a channel, by the names of `gatelib.nn.FiLM`."""

NORM = Spec.parse("channel_norm", "v w b -> n", "n = w*normalize(v) + b")
"""Batch normalisation while training: the features are a channel's pixels in the whole batch."""

BLOCK = Spec.parse("residual_block", "f x -> y", "y = relu(x + f)")
"""The end of a residual block (He et al. 2015, arXiv:1512.03385, figure 2), f its branch."""

GATED_BLOCK = Spec.parse(
    "gated_block",
    "a f x -> y",
    """
    s = sigmoid(a)
    y = relu(x + s*f)""",
)
"""The same with a gate on the branch, after its last norm and before the sum (figure 3 of Hu et
al.)."""

ALL = named(
    SQUEEZE,
    MASKED_SQUEEZE,
    EXCITE,
    CHANNEL_GATE,
    HARD_CHANNEL_GATE,
    SCALE_SHIFT,
    HARD_SCALE_SHIFT,
    FILM,
    AFFINE_FILM,
    FILM_SCALE,
    FILM_SHIFT,
    NORM,
    BLOCK,
    GATED_BLOCK,
)


def channel_gate(kind: str = "sigmoid", shift: bool = False) -> Spec:
    """The gate of squeeze-and-excitation; ValueError unless kind is sigmoid or hard_sigmoid."""
    gates = {
        "sigmoid": (CHANNEL_GATE, SCALE_SHIFT),
        "hard_sigmoid": (HARD_CHANNEL_GATE, HARD_SCALE_SHIFT),
    }
    if kind not in gates:
        raise ValueError(f"kind: expected one of {sorted(gates)}, got {kind!r}")
    return gates[kind][shift]
