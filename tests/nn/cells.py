"""Cells that a reader might write, each from its paper or a textbook, and some with rough numbers.

Imports gatelib.spec.
Must not import torch.
"""

from gatelib.spec import Spec


def _cell(name: str, signature: str, text: str) -> Spec:
    return Spec.parse(name, signature, text)


SLSTM = _cell(
    "slstm",
    "a_z a_i a_f a_o c_prev n_prev m_prev -> h c n m",
    """
    m = maximum(a_f + m_prev, a_i)
    i = exp(a_i - m)
    f = exp(a_f + m_prev - m)
    z = tanh(a_z)
    o = sigmoid(a_o)
    c = f*c_prev + i*z
    n = f*n_prev + i
    h = o*c/n
    """,
)
"""Beck et al. 2024, arXiv:2405.04517, with exponential gates and a running maximum."""

JANET = _cell(
    "janet",
    "a_f a_g h_prev -> h",
    """
    s = sigmoid(a_f)
    b = sigmoid(a_f - 1)
    h = s*h_prev + (1 - b)*tanh(a_g)
    """,
)
"""Van der Westhuizen & Lasenby 2018, arXiv:1804.04849: a forget gate alone, β = 1."""

UGRNN = _cell("ugrnn", "a_g a_c h_prev -> h", "g = sigmoid(a_g)\nh = g*h_prev + (1 - g)*tanh(a_c)")
"""Collins et al. 2017, arXiv:1611.09913."""

MUT1 = _cell(
    "mut1",
    "a_z a_r u_r a_n u_n h_prev -> h",
    """
    z = sigmoid(a_z)
    r = sigmoid(a_r + u_r)
    n = tanh(r*u_n + tanh(a_n))
    h = n*z + h_prev*(1 - z)
    """,
)
"""After Jozefowicz et al. 2015, with the reset behind the product."""

RAN = _cell(
    "ran",
    "a_c u_c a_i a_f c_prev -> h c",
    """
    i = sigmoid(a_i)
    f = sigmoid(a_f)
    c = i*a_c + f*c_prev
    h = tanh(c + u_c/8)
    """,
)
"""After Lee et al. 2017, arXiv:1705.07393: the content sees the input alone, W x apart from U h."""

PEEPHOLE_CIFG = _cell(
    "peephole_cifg",
    "a_f a_g a_o w_f w_o c_prev -> h c",
    """
    f = sigmoid(a_f + w_f*c_prev)
    c = f*c_prev + (1 - f)*tanh(a_g)
    o = sigmoid(a_o + w_o*c)
    h = o*tanh(c)
    """,
)
"""Greff et al. 2017, arXiv:1503.04069: coupled gates that look at the cell."""

TEMPERED = _cell(
    "tempered",
    "a_f a_g s c_prev -> h c",
    """
    f = exp(-exp(a_f/(1 + s*s)))
    c = f*c_prev + (1 - f)/(2 + a_g**2)*a_g
    h = c/(1 + exp(-a_g/0.5))
    """,
)
"""A decay made of two exponentials, and divisions."""

THREE_STATES = _cell(
    "three_states",
    "a_f a_i a_g h_prev fast_prev slow_prev -> h fast slow",
    """
    f = sigmoid(a_f)
    i = sigmoid(a_i)
    fast = f*fast_prev + i*tanh(a_g)
    slow = 0.9*slow_prev + 0.1*fast
    h = tanh(fast + slow)*f + h_prev*(1 - f)
    """,
)

NORMALIZED = _cell(
    "normalized",
    "a_f a_g s_f b_f s_g b_g c_prev -> h c",
    """
    f = sigmoid(s_f*normalize(a_f) + b_f)
    g = tanh(s_g*normalize(a_g) + b_g)
    c = f*c_prev + (1 - f)*g
    h = normalize(c)*f
    """,
)

FRACTIONS = _cell(
    "fractions",
    "a_f a_g c_prev h_prev -> h c",
    """
    f = sigmoid(a_f/0.7 - 1/3)
    g = tanh(-a_g/0.5)
    c = 0.9*c_prev - f/0.3 + g/1.5
    h = 0.5*tanh(c) + h_prev/4 - f**1.5
    """,
)

README = _cell(
    "coupled",
    "a_f a_g c_prev -> h c",
    """
    f = sigmoid(a_f)
    g = tanh(a_g)
    c = f*c_prev + (1 - f)*g
    h = tanh(c)
    """,
)
"""The README's example."""

WRITTEN = [
    SLSTM,
    JANET,
    UGRNN,
    MUT1,
    RAN,
    PEEPHOLE_CIFG,
    TEMPERED,
    THREE_STATES,
    NORMALIZED,
    FRACTIONS,
    README,
]
"""The cells that train."""

LINES = {
    "a decay by an exponential": "c = 0.9*c_prev + exp(-a_f/0.1)\nh = tanh(c)/9",
    "a gate taken away": "f = sigmoid(a_f)\nc = c_prev/3 + a_g - f/0.3\nh = tanh(c)",
    "minus a quotient": "c = -a_g/1.5 + c_prev/4\nh = c*sigmoid(a_f)",
    "a quotient inside": "c = tanh(-a_f/0.5) - c_prev/7\nh = c*a_g",
    "a power and a half": "f = sigmoid(a_f)\nc = f**1.5*c_prev + a_g\nh = c",
    "a negative power": "f = sigmoid(a_f)\nc = f**-0.5 + c_prev*f**-3\nh = tanh(c)*a_g",
    "half of it": "c = 0.5*c_prev + a_g\nh = 0.5*tanh(c - a_f)",
    "a power of a number": "c = 2**0.5*c_prev/3 - 0.1**4*a_g\nh = tanh(c)*3**-2*a_f",
    "one divided by it": "f = 1 + exp(a_f)\nc = 1/f - 2/(3/f) + c_prev/2\nh = c/(1/a_g)",
    "huge and tiny": "c = 1e-30*a_g*1e30 + c_prev/1e3\nh = tanh(c)*1e5/1e5 - 1e-12*a_f",
    "a constant beside": "k = 2\nc = k*c_prev/5 + sigmoid(a_f)/k\nh = tanh(c) - k/8*a_g",
    "a constant state": "c = 1\nh = sigmoid(a_f)*c_prev - a_g/3",
    "a constant output": "h = 1\nc = c_prev/2 + a_f*a_g",
    "twice the same": "c = tanh(a_f) + c_prev/2\nh = tanh(a_f) - a_g",
    "the old state": "c = a_f + a_g/2\nh = c_prev",
    "a maximum with a number": "c = maximum(0.1, c_prev) - maximum(a_g, -0.2)\nh = c*a_f",
}
"""Lines over a_f, a_g and c_prev whose numbers were once printed, or computed, as another's."""


def of_lines(title: str) -> Spec:
    """The cell of one of LINES."""
    given = [v for v in ("a_f", "a_g", "c_prev") if v in LINES[title]]
    return _cell("lines", f"{' '.join(given)} -> h c", LINES[title])
