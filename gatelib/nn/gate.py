"""Gates as torch modules: `Gate` computes its gate from an input, `FeatureGate` learns it freely.
Imports torch, gatelib.nn.check and gatelib.nn.impl.
Must not import the reference or `gatelib.lab`.

Both return the gate; the caller multiplies: `y = gate(x) * x`. Every way to get a gate from a
preactivation is one row of KINDS; sampled kinds sample while training and are noise-free after
`eval()`, as dropout is.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.nn.check import check_choice, check_dtype, check_flags, check_noise, check_sizes
from gatelib.nn.impl import traced

__all__ = ["KINDS", "FeatureGate", "Gate", "Kind", "interpolate"]

LOW, HIGH = -0.1, 1.1  # the hard concrete is stretched to (LOW, HIGH), then clipped to [0, 1]


def _logistic(noise: Tensor) -> Tensor:
    return noise.log() - (-noise).log1p()


def _gumbel(noise: Tensor) -> Tensor:
    return -(-noise.log()).log()


def _stretch(gate: Tensor) -> Tensor:
    return (LOW + (HIGH - LOW) * gate).clamp(0.0, 1.0)


def _hard_sigmoid(a: Tensor) -> Tensor:
    # not F.hardsigmoid: its backward multiplies by a float32 1/6 even in float64 (torch 2.13)
    return F.relu6(a + 3) / 6


def _straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, exactly, with the gradient of `soft` (Bengio et al. 1308.3432)."""
    return hard + (soft - soft.detach())


def _step(a: Tensor) -> Tensor:
    return _straight_through((a > 0).to(a.dtype), a)


def _bernoulli(a: Tensor, temperature: float, noise: Tensor) -> Tensor:
    mean = torch.sigmoid(a / temperature)
    return _straight_through((noise < mean).to(a.dtype), mean)


def _certain(a: Tensor, temperature: float) -> Tensor:
    mean = torch.sigmoid(a / temperature)
    return _straight_through((a > 0).to(a.dtype), mean)


def _concrete(a: Tensor, temperature: float, noise: Tensor) -> Tensor:
    return torch.sigmoid((a + _logistic(noise).to(a.dtype)) / temperature)


def _gumbel_softmax(a: Tensor, temperature: float, noise: Tensor) -> Tensor:
    return torch.softmax((a + _gumbel(noise).to(a.dtype)) / temperature, dim=-1)


def _hard_concrete(a: Tensor, temperature: float, noise: Tensor) -> Tensor:
    return _stretch(_concrete(a, temperature, noise))


def _logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)


class Kind(NamedTuple):
    """How a preactivation becomes a gate.

    Attributes:
        settle: (a, temperature) -> gate without noise.
        sample: (a, temperature, uniform noise) -> gate; None where the kind has no noise.
        preimage: (p, temperature) -> the preactivation whose noise-free gate (the mean, for
            bernoulli) is p; None where there is no such number.
        openness: what p must lie strictly between.
        temperature: the default.
        p_open: (a, temperature) -> P(gate > 0); None where that is not a smooth function of a.
    """

    settle: Callable[[Tensor, float], Tensor]
    sample: Callable[[Tensor, float, Tensor], Tensor] | None = None
    preimage: Callable[[float, float], float] | None = None
    openness: tuple[float, float] = (0.0, 1.0)
    temperature: float = 1.0
    p_open: Callable[[Tensor, float], Tensor] | None = None


_POSITIVE = (0.0, math.inf)

KINDS: dict[str, Kind] = {
    "sigmoid": Kind(lambda a, t: torch.sigmoid(a / t), preimage=lambda p, t: t * _logit(p)),
    "hard_sigmoid": Kind(lambda a, t: _hard_sigmoid(a / t), preimage=lambda p, t: t * (6 * p - 3)),
    "softmax": Kind(lambda a, t: torch.softmax(a / t, dim=-1)),
    "exp": Kind(
        lambda a, t: torch.exp(a / t), preimage=lambda p, t: t * math.log(p), openness=_POSITIVE
    ),
    "relu": Kind(lambda a, t: torch.relu(a / t), preimage=lambda p, t: t * p, openness=_POSITIVE),
    "relu_squared": Kind(
        lambda a, t: torch.relu(a / t).square(),
        preimage=lambda p, t: t * math.sqrt(p),
        openness=_POSITIVE,
    ),
    "linear": Kind(lambda a, t: a / t, preimage=lambda p, t: t * p, openness=(-math.inf, math.inf)),
    "step": Kind(lambda a, t: _step(a / t)),
    "bernoulli": Kind(
        _certain,
        _bernoulli,
        preimage=lambda p, t: t * _logit(p),
        p_open=lambda a, t: torch.sigmoid(a / t),
    ),
    "concrete": Kind(
        lambda a, t: torch.sigmoid(a), _concrete, lambda p, t: _logit(p), temperature=2 / 3
    ),
    "gumbel_softmax": Kind(
        lambda a, t: torch.softmax(a, dim=-1), _gumbel_softmax, temperature=2 / 3
    ),
    "hard_concrete": Kind(
        lambda a, t: _stretch(torch.sigmoid(a)),
        _hard_concrete,
        lambda p, t: _logit((p - LOW) / (HIGH - LOW)),
        temperature=2 / 3,
        p_open=lambda a, t: torch.sigmoid(a - t * math.log(-LOW / HIGH)),
    ),
}


def interpolate(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """(1 - g) a + g b: a gate as a choice between two values (highway, GRU).

    Args: a, b and g of one shape, or broadcastable. Returns: a where g is 0, b where g is 1.
    """
    return (1 - g) * a + g * b


def _check_temperature(temperature: float) -> float:
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise TypeError(f"temperature: expected a number, got {type(temperature).__name__}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a positive finite number, got {temperature}")
    return float(temperature)


class _AnyGate(nn.Module):
    """What the two gates share: the kind, its temperature and sampling, and the checks."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self, input_size: int, kind: str, temperature: float | None, openness: float | None
    ) -> None:
        super().__init__()
        check_choice("kind", kind, KINDS)
        self.input_size = input_size
        self.kind = kind
        row = KINDS[kind]
        self.temperature = _check_temperature(
            row.temperature if temperature is None else temperature
        )
        self.openness = openness
        if openness is not None:
            self._bias_for(openness)

    def _bias_for(self, openness: float) -> float:
        if isinstance(openness, bool) or not isinstance(openness, int | float):
            raise TypeError(f"openness: expected a number, got {type(openness).__name__}")
        row = KINDS[self.kind]
        if row.preimage is None:
            raise ValueError(
                f"openness: expected None for kind {self.kind!r}, "
                f"whose mean no bias can set; got {openness}"
            )
        low, high = row.openness
        if not low < openness < high:
            raise ValueError(
                f"openness: expected a number strictly between {low} and {high} "
                f"for kind {self.kind!r}; got {openness}"
            )
        return row.preimage(openness, self.temperature)

    def _check_input(self, x: Tensor, parameter: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a Tensor, got {type(x).__name__}")
        if x.dim() == 0 or x.shape[-1] != self.input_size:
            raise ValueError(f"x: expected shape (..., {self.input_size}), got {tuple(x.shape)}")
        if x.device != parameter.device:
            raise ValueError(f"x: expected device {parameter.device}, got {x.device}")
        if x.dtype != parameter.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"x: expected dtype {parameter.dtype}, got {x.dtype}")

    def _open(self, a: Tensor, noise: Tensor | None) -> Tensor:
        """The gate of preactivation a: sampled when training or when noise is given."""
        row = KINDS[self.kind]
        if row.sample is None:
            if noise is not None:
                raise ValueError(f"noise: expected None for kind {self.kind!r}, which has no noise")
            return row.settle(a, self.temperature)
        if noise is None:
            if not self.training:
                return row.settle(a, self.temperature)
            dtype = torch.promote_types(a.dtype, torch.float32)
            tiny = torch.finfo(dtype).tiny
            noise = torch.rand(a.shape, dtype=dtype, device=a.device).clamp_min(tiny)
        check_noise(noise, tuple(a.shape), a)
        return row.sample(a, self.temperature, noise)

    def _expected_l0(self, a: Tensor) -> Tensor:
        row = KINDS[self.kind]
        if row.p_open is None:
            kinds = ", ".join(name for name, other in KINDS.items() if other.p_open)
            raise ValueError(f"expected_l0: expected kind {kinds}; got {self.kind!r}")
        wide = torch.promote_types(a.dtype, torch.float32)
        return row.p_open(a, self.temperature).sum(dim=-1, dtype=wide)


class Gate(_AnyGate):
    """A gate computed from an input: kind(W x + b). The caller multiplies: `gate(x) * value`.

    Args:
        input_size: D. hidden_size: H, how many gates; None means D.
        kind: a row of KINDS. sigmoid, hard_sigmoid, softmax (sums to 1), exp, relu, relu_squared
            and linear are functions; step is 0 or 1 with the gradient of the identity; bernoulli
            is a sample of 0 or 1 with the gradient of its mean (both straight-through, Bengio et
            al. 1308.3432, section 4); concrete (Maddison et al. 1611.00712), gumbel_softmax (Jang
            et al. 1611.01144) and hard_concrete (Louizos et al. 1712.01312) are reparametrised
            samples. Without noise, the concrete kinds open by what they open to on average in the
            limit of temperature 0: sigmoid(a), softmax(a), or the stretched sigmoid(a).
        temperature: divides the preactivation and its noise; None means the kind's default, 2/3
            for the concrete kinds and 1 for the others.
        openness: the gate's mean p at input 0 before training, set by the bias (log p/(1-p) for a
            sigmoid); a prior on how open a gate is. None leaves torch's default for a Linear.
        bias, device, dtype: as in `torch.nn.Linear`, as are the parameters `weight` (H, D) and
            `bias` (H,).

    Shapes: x (..., D) -> gate (..., H). noise (..., H): uniform in (0, 1), for a sampled kind
    only; given, it is the noise used, in training or not.

    Raises: TypeError or ValueError naming the argument that is wrong.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | None = None,
        kind: str = "sigmoid",
        temperature: float | None = None,
        openness: float | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(input_size=input_size)
        hidden_size = input_size if hidden_size is None else hidden_size
        check_sizes(hidden_size=hidden_size)
        check_flags(bias=bias)
        check_dtype(dtype)
        if openness is not None and not bias:
            raise ValueError(f"openness: expected None where bias is False, got {openness}")
        super().__init__(input_size, kind, temperature, openness)
        self.hidden_size = hidden_size
        empty = torch.empty((hidden_size, input_size), device=device, dtype=dtype)
        self.weight = nn.Parameter(empty)
        self.bias = nn.Parameter(empty.new_empty(hidden_size)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights and bias as in `torch.nn.Linear`; then the bias from `openness`, where given."""
        assert self.weight is not None
        bound = 1 / math.sqrt(self.input_size)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
            if self.openness is not None:
                nn.init.constant_(self.bias, self._bias_for(self.openness))

    def _preactivation(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        self._check_input(x, self.weight)
        return F.linear(x, self.weight, self.bias)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """The gate (..., H) of x (..., D). `torch.fx` keeps it whole, as one node."""
        node = traced(self, x, noise)
        if node is not None:
            return node  # type: ignore[return-value]
        return self._open(self._preactivation(x), noise)

    def expected_l0(self, x: Tensor) -> Tensor:
        """Expected number of gates above 0 for each x, (...); bernoulli and hard_concrete only.

        Counted in float32 where the gate is of lower precision.
        """
        return self._expected_l0(self._preactivation(x))

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, kind={self.kind!r}, "
            f"temperature={self.temperature:.4g}, bias={self.bias is not None}"
        )


class FeatureGate(_AnyGate):
    """One free gate per feature, the same for every input: a feature selector.

    This is `Gate` with W = 0; its only parameter is `bias` (D,), the preactivation.

    Args:
        num_features: D. kind, temperature, device, dtype: as in `Gate`.
        openness: the gates' value before training; None means 1/2 for the kinds that have an
            openness, and preactivation 0 for the others (softmax: 1/D each; step: closed).

    Shapes: x (..., D) -> gate (..., D), one sample per example for sampled kinds.
    Raises: TypeError or ValueError naming the argument that is wrong.
    """

    def __init__(
        self,
        num_features: int,
        kind: str = "sigmoid",
        temperature: float | None = None,
        openness: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(num_features=num_features)
        check_dtype(dtype)
        super().__init__(num_features, kind, temperature, openness)
        self.bias = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every gate open by `openness`."""
        assert self.bias is not None
        start = 0.0
        if KINDS[self.kind].preimage is not None:
            start = self._bias_for(0.5 if self.openness is None else self.openness)
        nn.init.constant_(self.bias, start)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """The gate (..., D) of x (..., D); only x's shape matters. `torch.fx` keeps it whole."""
        node = traced(self, x, noise)
        if node is not None:
            return node  # type: ignore[return-value]
        assert self.bias is not None
        self._check_input(x, self.bias)
        return self._open(self.bias.expand(x.shape), noise)

    def values(self) -> Tensor:
        """The noise-free gates (D,), differentiable: what to look at, and what to penalise."""
        assert self.bias is not None
        return KINDS[self.kind].settle(self.bias, self.temperature)

    def expected_l0(self) -> Tensor:
        """Expected number of gates above 0, a scalar, as `Gate.expected_l0` counts it."""
        assert self.bias is not None
        return self._expected_l0(self.bias)

    def extra_repr(self) -> str:
        return f"{self.input_size}, kind={self.kind!r}, temperature={self.temperature:.4g}"
