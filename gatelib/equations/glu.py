"""Gates over features: the GLU family, its clamped forms, and the units without a gate beside them.

Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

Two linear maps of one input stand before each gate: `a` = W x + b is the gate's preactivation,
`v` = V x + c the value; `y` is the gated value. Behind it a third map leads out.
"""

from __future__ import annotations

import math
from numbers import Real

from gatelib.cell import named
from gatelib.spec import Spec


def _gated(name: str, *lines: str) -> Spec:
    return Spec.parse(name, "a v -> y", "\n".join(lines))


def _unit(name: str, *lines: str) -> Spec:
    return Spec.parse(f"{name}_unit", "a -> y", "\n".join(lines))


_TANH_OF_GELU = "s = tanh(0.7978845608028654*(a + 0.044715*a**3))"  # 0.797… is √(2/π)

GLU = _gated("glu", "g = sigmoid(a)", "y = g*v")
"""Dauphin et al. 2016, arXiv:1612.08083, eq. 1: the gate leaves the value a linear path."""

GTU = _gated("gtu", "g = sigmoid(a)", "h = tanh(v)", "y = g*h")
"""van den Oord et al. 2016, arXiv:1606.05328, eq. 2: the value is squashed too."""

BILINEAR = _gated("bilinear_glu", "y = a*v")
"""Mnih & Hinton 2007, as in Dauphin's comparison and Shazeer's list: no nonlinearity, a product."""

REGLU = _gated("reglu", "g = relu(a)", "y = g*v")
"""Shazeer 2020, arXiv:2002.05202, eq. 5."""

GEGLU = _gated("geglu", "g = gelu(a)", "y = g*v")
"""Shazeer 2020, eq. 5, with GELU as it is defined, by the normal distribution's integral."""

GEGLU_TANH = _gated("geglu_tanh", _TANH_OF_GELU, "g = a*(1 + s)/2", "y = g*v")
"""GEGLU with the tanh form of GELU (Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2), as T5
v1.1 and Gemma compute it."""

SWIGLU = _gated("swiglu", "g = silu(a)", "y = g*v")
"""Shazeer 2020, eq. 5, with β = 1: the gate a·σ(a)."""

RELU_SQUARED_GLU = _gated("relu_squared_glu", "r = relu(a)", "g = r**2", "y = g*v")
"""A gate relu(a)², Primer's unit (RELU_SQUARED_UNIT) in the place of ReLU in REGLU."""


def clamped(
    limit: float = 7.0, alpha: float = 1.702, shift: float = 1.0, name: str = "clamped_glu"
) -> Spec:
    """SwiGLU of clamped inputs: c·σ(α c)·(u + shift), c = min(a, limit), u = v in ±limit.

    The gate is clamped above only, the value on both sides; beyond the limit their gradient is 0,
    and exactly at the limit it still passes, as in torch.clamp. Raises ValueError for a limit that
    is not above 0, TypeError and ValueError for what is no finite number.

    Source: the released code of gpt-oss, 2025, whose numbers are the defaults.
    """
    for argument, number in {"limit": limit, "alpha": alpha, "shift": shift}.items():
        _check(argument, number)
    if limit <= 0:
        raise ValueError(f"limit: expected a number above 0, got {limit}")
    bounds = f"c = minimum(a, {limit!r})", f"u = maximum({-limit!r}, minimum(v, {limit!r}))"
    gate = ("g = silu(c)",) if alpha == 1 else (f"s = sigmoid({alpha!r}*c)", "g = c*s")
    value = f"(u + {shift!r})" if shift else "u"
    return _gated(name, *bounds, *gate, f"y = g*{value}")


def softcapped(gate: float = 4.0, value: float = 25.0, name: str = "softcapped_glu") -> Spec:
    """SwiGLU of soft caps: gate·tanh(a/gate)·σ(a) times value·tanh(v/value).

    The sigmoid sees the raw preactivation. No gradient is ever exactly 0. Raises ValueError for a
    cap that is not above 0, TypeError and ValueError for what is no finite number.

    Source: the form of SiTU-GLU, Kimi K3, as in x-transformers' GLU with softclamp.
    """
    for argument, cap in {"gate": gate, "value": value}.items():
        _check(argument, cap)
        if cap <= 0:
            raise ValueError(f"{argument}: expected a number above 0, got {cap}")
    lines = f"p = tanh(a/{gate!r})", f"q = tanh(v/{value!r})", "s = sigmoid(a)"
    return _gated(name, *lines, f"g = {gate!r}*p*s", f"y = {value!r}*g*q")


def _check(argument: str, number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"{argument}: expected a number, got {type(number).__name__}")
    if not math.isfinite(number):
        raise ValueError(f"{argument}: expected a finite number, got {number}")


GPT_OSS = clamped(name="gpt_oss_glu")
"""gpt-oss, 2025: limit 7, α = 1.702, and 1 added to the value; gate and value are interleaved."""

DEEPSEEK_V4 = clamped(10.0, 1.0, 0.0, name="deepseek_v4_glu")
"""DeepSeek-V4, GLM-5 and Hunyuan-V4: limit 10, a plain SiLU, nothing added."""

SITU = softcapped(name="situ_glu")
"""SiTU-GLU, Kimi K3: soft caps of 4 on the gate and 25 on the value."""

SOFTCAPPED = softcapped(10.0, 10.0)
"""The form of Inkling-2, which is SITU's; its caps are a model's to choose, here DeepSeek's 10."""

RELU_UNIT = _unit("relu", "y = relu(a)")
"""max(a, 0): the unit of a plain MLP."""

GELU_UNIT = _unit("gelu", "y = gelu(a)")
"""Hendrycks & Gimpel 2016, arXiv:1606.08415: a·Φ(a)."""

GELU_TANH_UNIT = _unit("gelu_tanh", _TANH_OF_GELU, "y = a*(1 + s)/2")
"""The same paper's tanh form, within 5e-4 of GELU_UNIT."""

SILU_UNIT = _unit("silu", "y = silu(a)")
"""a·σ(a) (the same paper; Swish with β = 1, Ramachandran et al. 2017, arXiv:1710.05941)."""

RELU_SQUARED_UNIT = _unit("relu_squared", "r = relu(a)", "y = r**2")
"""So et al. 2021, Primer, arXiv:2109.08668: relu(a)²."""

GATED = {
    "glu": GLU,
    "gtu": GTU,
    "bilinear": BILINEAR,
    "reglu": REGLU,
    "geglu": GEGLU,
    "geglu_tanh": GEGLU_TANH,
    "swiglu": SWIGLU,
    "relu_squared_glu": RELU_SQUARED_GLU,
    "gpt_oss": GPT_OSS,
    "deepseek_v4": DEEPSEEK_V4,
    "softcapped": SOFTCAPPED,
    "situ": SITU,
}
"""The kinds that have a gate: `a v -> y`."""

UNITS = {
    "relu": RELU_UNIT,
    "gelu": GELU_UNIT,
    "gelu_tanh": GELU_TANH_UNIT,
    "silu": SILU_UNIT,
    "relu_squared": RELU_SQUARED_UNIT,
}
"""The kinds that have none: `a -> y`."""

KINDS = GATED | UNITS
"""Every Spec of the family by the name that layers take as `kind`."""

ALL = named(*KINDS.values())
