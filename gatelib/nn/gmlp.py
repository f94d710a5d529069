"""gMLP as torch layers: the spatial gating unit, the gMLP block and the aMLP block.
Imports torch, gatelib.equations.gmlp, and of gatelib.nn attention, check and impl.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.equations import gmlp as equations
from gatelib.nn.attention import live_positions, read
from gatelib.nn.check import (
    LOW_PRECISION,
    check_choice,
    check_dtype,
    check_features,
    check_flags,
    check_sizes,
)
from gatelib.nn.impl import traced

__all__ = ["AMLPBlock", "GMLPBlock", "SpatialGatingUnit"]

Gate = Literal["multiplicative", "additive", "linear", "none"]
Start = Literal["paper", "plain"]

COMPILED = {spec: spec.compile("torch") for spec in equations.UNITS}
"""The gates as functions of tensors."""

NEUTRAL = {"multiplicative": 1.0, "additive": 0.0}
"""The gate that hands u on; a linear gate has none."""
NEAR_ZERO = 1e-3
"""The rows of W start with a sum of absolute values below this."""
LONG = 512
"""The length of a unit from which on batch and features are folded into one axis for the product:
W's gradient is then summed inside of it, and not over (B, T, T). Below, the copies cost more."""


class SpatialGatingUnit(nn.Module):
    """A gate over features whose opening is a mixture over positions.

        u, v = the halves of z                   (split=False: u = v = z)
        m = W norm(v)                            over the positions, each feature alone
        s = u * (m + b)                          "multiplicative"; "additive" u + m + b;
                                                 "linear" m + b; "none" u

    Parameters: `weight` W (heads, N, N), row s of which makes position s; `bias` b (heads, N);
    `norm`, layer normalisation over the features of v. With several heads each has a share of the
    features and a W and b of its own. A gate "none" has no parameters.

    Args:
        features: E, of z.
        length: N, the most positions that an input may have.
        causal: whether position s reads no position after it: the upper triangle of W is masked,
            its gradient is 0, and it starts at 0.
        init: "paper" starts W near 0 and b where the gate hands u on, 1 for a product and 0 for a
            sum. The paper gives no number for W; here W is drawn from ±1e-3/N, so that no gate is
            further from b than 1e-3 sqrt(F - 1), F the features of v. "plain" draws both as
            torch's Linear(N, N) does. None: "paper", and for a linear gate, which has no such
            start, "plain". The unit draws itself; no parent has to.
        gate: how u and the mixture meet.
        split: whether u and v are halves of z. None: True for the gates that read both.
        heads: groups of features, a divisor of F.
        attention: whether the gate reads a `context` too.
        device: where the parameters live.
        dtype: their floating-point type.

    Shapes: z (B, T, E), T at most N, to s (B, T, F), F = E/2 with a split and E without.

    Under bfloat16 and float16 the gate and the product are float32, rounded once: 1 + m would lose
    an m below 2^-9.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a size or a name doesn't fit; a split of a gate that reads one input; a linear
            gate with the paper's start.

    Source: Liu, Dai, So & Le 2021, arXiv:2105.08050, section 2.1 and, for the other gates, the
    ablation in section 4.1.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        features: int,
        length: int,
        causal: bool = False,
        init: Start | None = None,
        *,
        gate: Gate = "multiplicative",
        split: bool | None = None,
        heads: int = 1,
        attention: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(features=features, length=length, heads=heads)
        check_flags(causal=causal, attention=attention)
        check_dtype(dtype)
        check_choice("gate", gate, equations.HYBRID if attention else equations.GATES)
        self.split = _checked_split(split, gate, features)
        self.init = _checked_start(init, gate)
        self.features, self.length, self.causal = features, length, causal
        self.gate, self.heads, self.attention = gate, heads, attention
        self.out_features = features // 2 if self.split else features
        if self.out_features % heads:
            raise ValueError(f"heads: expected a divisor of {self.out_features}, got {heads}")
        self.spec = equations.spec_of(gate, attention)
        self.names = tuple(str(v) for v in self.spec.inputs)
        own: dict[str, Any] = {"device": device, "dtype": dtype}
        mixes = "m" in self.names
        shape = heads, length, length
        self.norm = nn.LayerNorm(self.out_features, **own) if mixes else None
        self.weight = nn.Parameter(torch.empty(shape, **own)) if mixes else None
        self.bias = nn.Parameter(torch.empty(shape[:2], **own)) if mixes else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """W and b as `init` says; the norm's gain 1 and shift 0."""
        if self.norm is None or self.weight is None or self.bias is None:
            return
        self.norm.reset_parameters()
        paper, bound = self.init == "paper", 1 / math.sqrt(self.length)
        span = NEAR_ZERO / self.length if paper else bound
        nn.init.uniform_(self.weight, -span, span)
        if paper:
            nn.init.constant_(self.bias, NEUTRAL[self.gate])
        else:
            nn.init.uniform_(self.bias, -bound, bound)
        if self.causal:
            with torch.no_grad():
                self.weight.tril_()

    def forward(
        self, input: Tensor, lengths: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """Gate z (B, T, E); the result is (B, T, F).

        Args:
            input: z. A sequence shorter than `length` is read by the leading T rows and columns
                of W and the leading T numbers of b: its first position is position 0.
            lengths: (B,) integers from 1 to T. Positions past them are padding: nothing of them,
                NaN included, reaches another position, and their outputs are 0. Each row is then
                what it would be alone. None: all positions are real; a padded batch without
                lengths lets padding flow through W.
            context: (B, T, F), added to the mixture; given where `attention` is True, and there
                alone.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: a shape, a device or a length doesn't fit; more than `length` positions.
        """
        node = traced(self, input, lengths, context)
        if node is not None:
            return node  # type: ignore[return-value]
        given, live = self._given(input, lengths, context)
        s: Tensor = COMPILED[self.spec](*(given[name] for name in self.names))
        return _blank(s.flatten(2).to(input.dtype), live)

    def values(
        self, input: Tensor, lengths: Tensor | None = None, context: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What the unit does, to look at, differentiable.

        Returns:
            `u`, `m` (W times the norm of v), `g` (the gate) and `s`, as the Spec names them; each
            (B, T, F), and 0 past the lengths.
        """
        given, live = self._given(input, lengths, context)
        found = given | self.spec.exposed.evaluate(given, "torch")
        found = {name: value for name, value in found.items() if name not in ("b", "c")}
        return {name: _blank(value.flatten(2), live) for name, value in found.items()}

    def _given(
        self, input: Tensor, lengths: Tensor | None, context: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """What the Spec reads, by name, (B, T, H, F/H) in float32 at least; live positions."""
        _check_sequence(input, self.features, self.length, _like(self, input))
        self._check_context(input, context)
        live = live_positions(lengths, input)
        z = _blank(input, live)
        u, v = z.chunk(2, -1) if self.split else (z, z)
        given = {"u": u}
        if self.norm is not None:
            given["m"] = self.mixture(_blank(self.norm(v), live))
        if context is not None:
            given["c"] = _blank(context, live)
        shape = *u.shape[:2], self.heads, self.out_features // self.heads
        given = {name: _wide(value).reshape(shape) for name, value in given.items()}
        if self.bias is not None:
            given["b"] = _wide(_leading(self.bias, input.size(1))).t().unsqueeze(-1)
        return given, live

    def mixture(self, n: Tensor) -> Tensor:
        """W n over the positions: (B, T, F) to (B, T, F), for each head by itself."""
        if self.weight is None:
            raise ValueError(f"gate: expected one that mixes positions, got {self.gate!r}")
        batch, steps, features = n.shape
        weight = _leading(self.weight, steps)
        weight = weight.tril() if self.causal else weight
        if self.length >= LONG:  # of the unit, not of this input, which may be of any length
            size = features // self.heads
            shares = n.reshape(batch, steps, self.heads, size).permute(2, 1, 0, 3)
            folded = torch.bmm(weight, shares.flatten(2))
            return folded.view(shares.shape).permute(2, 1, 0, 3).flatten(2)
        pairs = zip(weight, n.chunk(self.heads, -1), strict=True)
        mixed = [torch.bmm(own.expand(batch, -1, -1), share) for own, share in pairs]
        return mixed[0] if self.heads == 1 else torch.cat(mixed, -1)

    def _check_context(self, input: Tensor, context: Tensor | None) -> None:
        if (context is not None) != self.attention:
            expected = "a tensor" if self.attention else "None without attention=True"
            raise ValueError(f"context: expected {expected}, got {type(context).__name__}")
        if context is not None:
            check_features("context", context, self.out_features, _like(self, input))
            if context.shape[:-1] != input.shape[:-1]:
                shape = (*input.shape[:-1], self.out_features)
                raise ValueError(f"context: expected {shape}, got {tuple(context.shape)}")

    def extra_repr(self) -> str:
        """The arguments that aren't at their defaults."""
        text = [str(self.features), str(self.length), f"gate={self.gate!r}", f"init={self.init!r}"]
        told = {"split": self.split, "heads": self.heads, "causal": self.causal}
        usual = {"split": equations.reads_both(self.gate), "heads": 1, "causal": False}
        return ", ".join(text + [f"{k}={v}" for k, v in told.items() if v != usual[k]])


class GMLPBlock(nn.Module):
    """A gMLP block: an MLP of each position, in whose hidden layer the positions meet.

        n = norm(x)
        z = gelu(U n)                            E hidden features, the exact GELU
        y = x + V s(z)                           s: the spatial gating unit
        c = O attention(n)                       where `attention` is given, added in s to W norm(v)

    At the paper's start s hands the first half of z on, so the block is x + V gelu(U1 norm(x)),
    an MLP of half the hidden features, and no position reads another: it is not the identity.

    Parameters: `norm`, `proj_in` U, `unit`, `proj_out` V; where there is attention `qkv`, the
    packed queries, keys and values of one head, without biases, and `proj_attention` O.

    Args:
        features: D, of input and output alike.
        hidden: E, of z; even where the unit splits it.
        length: N, the most positions that an input may have.
        causal, init, gate, split, heads: as in `SpatialGatingUnit`. The attention is causal too.
        attention: the width of the small attention, 64 in the paper; None for none.
        device: where the parameters live.
        dtype: their floating-point type.

    Shapes: x (B, T, D) to y (B, T, D).

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument doesn't fit; attention with the gate "none".

    Source: Liu, Dai, So & Le 2021, arXiv:2105.08050, figure 1 and, with attention, section 4.3.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        length: int,
        causal: bool = False,
        init: Start | None = None,
        *,
        attention: int | None = None,
        gate: Gate = "multiplicative",
        split: bool | None = None,
        heads: int = 1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(features=features, hidden=hidden)
        if attention is not None:
            check_sizes(attention=attention)
        own: dict[str, Any] = {"device": device, "dtype": dtype}
        kind: dict[str, Any] = {"gate": gate, "split": split, "heads": heads}
        kind["attention"] = attention is not None
        check_choice("gate", gate, equations.HYBRID if attention else equations.GATES)
        _checked_split(split, gate, hidden, "hidden")
        self.unit = SpatialGatingUnit(hidden, length, causal, init, **kind, **own)
        self.features, self.hidden, self.length = features, hidden, length
        self.causal, self.attention = causal, attention
        self.norm = nn.LayerNorm(features, **own)
        self.proj_in = nn.Linear(features, hidden, **own)
        self.proj_out = nn.Linear(self.unit.out_features, features, **own)
        self.qkv = self.proj_attention = None
        if attention is not None:
            self.qkv = nn.Linear(features, 3 * attention, bias=False, **own)
            self.proj_attention = nn.Linear(attention, self.unit.out_features, **own)

    def reset_parameters(self) -> None:
        """Draw the unit as `init` says, and all else as torch does."""
        for part in self.children():
            part.reset_parameters()  # type: ignore[operator]

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Pass x (B, T, D) through the block; the result has the same shape.

        Args:
            input: x, of at most `length` positions.
            lengths: as in `SpatialGatingUnit.forward`; padding takes no part in the attention
                either, and its outputs are 0.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: a shape, a device or a length doesn't fit; more than `length` positions.
        """
        node = traced(self, input, lengths)
        if node is not None:
            return node  # type: ignore[return-value]
        _check_sequence(input, self.features, self.length, self.norm.weight)
        live = live_positions(lengths, input)
        x = _blank(input, live)
        n = self.norm(x)
        z = F.gelu(self.proj_in(n))
        s = self.unit(z, lengths, self._context(n, live))
        y: Tensor = x + self.proj_out(s)
        return _blank(y, live)

    def _context(self, n: Tensor, live: Tensor | None) -> Tensor | None:
        """What the small attention reads, (B, T, F)."""
        if self.qkv is None or self.proj_attention is None:
            return None
        queries, keys, values = self.qkv(n).chunk(3, -1)
        scores = torch.bmm(queries, keys.transpose(1, 2)) / math.sqrt(keys.size(-1))
        if self.causal:
            past = scores.new_ones(scores.shape[1:], dtype=torch.bool).tril()
            live = past if live is None else live & past
        context: Tensor = self.proj_attention(read(scores, values, live)[0])
        return context

    def extra_repr(self) -> str:
        """The sizes; the unit tells the rest."""
        return f"{self.features}, {self.hidden}, {self.length}"


class AMLPBlock(GMLPBlock):
    """A gMLP block with a small attention beside its unit: `GMLPBlock` with attention=64.

    The attention has one head, reads the block's normalised input, and is added to W norm(v) + b
    before the product.

    Args:
        features, hidden, length, causal, init: as in `GMLPBlock`.
        attention: the width of queries, keys and values.
        options: further arguments of `GMLPBlock`.

    Raises: TypeError or ValueError, as `GMLPBlock`.

    Source: Liu, Dai, So & Le 2021, arXiv:2105.08050, section 4.3.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        length: int,
        causal: bool = False,
        init: Start | None = None,
        *,
        attention: int = 64,
        **options: Any,
    ) -> None:
        check_sizes(attention=attention)
        super().__init__(features, hidden, length, causal, init, attention=attention, **options)


def _leading(values: Tensor, steps: int) -> Tensor:
    """The first entries along each axis but the first. A view has other strides where it is whole,
    which would fix an exported program to shorter sequences; there it is a copy."""
    first: Any = slice(steps)
    if torch.compiler.is_exporting():
        first = torch.arange(steps, device=values.device)
    values = values[:, first]
    return values if values.dim() == 2 else values[:, :, first]


def _blank(values: Tensor, live: Tensor | None) -> Tensor:
    """(B, T, ...) with 0 where there is padding."""
    return values if live is None else values.masked_fill(~live.transpose(1, 2), 0)


def _wide(values: Tensor) -> Tensor:
    """In float32 where they are of lower precision."""
    return values.float() if values.dtype in LOW_PRECISION else values


def _like(unit: SpatialGatingUnit, input: Tensor) -> Tensor:
    """What the input's type is compared with; a unit without weights takes any."""
    return input if unit.weight is None else unit.weight


def _checked_split(split: bool | None, gate: str, features: int, name: str = "features") -> bool:
    """Whether z is split; the gate must read both halves, and they must be equal."""
    both = equations.reads_both(gate)
    if split is None:
        split = both
    check_flags(split=split)
    if split and not both:
        raise ValueError(f"split: expected False, for a gate {gate!r} reads one input, got True")
    if split and features % 2:
        raise ValueError(f"{name}: expected an even number to split, got {features}")
    return split


def _checked_start(init: Start | None, gate: str) -> str:
    """How W and b start."""
    usual = "paper" if gate in NEUTRAL else "plain"
    check_choice("init", usual if init is None else init, ("paper", "plain"))
    if init == "paper" and gate not in NEUTRAL:
        raise ValueError(f"init: expected 'plain', for no start makes {gate!r} an identity")
    return usual if init is None else init


def _check_sequence(input: object, features: int, length: int, like: Tensor) -> None:
    """It must be (B, T, features) with at most `length` positions."""
    check_features("input", input, features, like)
    shape = tuple(input.shape)  # type: ignore[attr-defined]
    if len(shape) != 3:
        raise ValueError(f"input: expected (B, T, {features}), got shape {shape}")
    if shape[1] > length:
        raise ValueError(
            f"input: expected at most {length} positions (length), for W has a row for each, "
            f"got {shape[1]} in shape {shape}"
        )
