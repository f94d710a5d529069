"""Gates over the channels of an image: squeeze-and-excitation, ECA, FiLM, a gated residual block.
Imports torch, and of gatelib.nn check, gate and impl.
Must not import gatelib.reference, gatelib.lab or gatelib.data.

Images are (B, C, H, W). A gate has one value for each channel, the same at all of its pixels.
"""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.nn.check import (
    ShapeError,
    check_choice,
    check_dtype,
    check_flags,
    check_like,
    check_sizes,
    check_tensor,
    known,
)
from gatelib.nn.gate import KINDS
from gatelib.nn.impl import traced

__all__ = ["ECA", "FiLM", "GatedResidualBlock2d", "SqueezeExcitation"]

Gate = Literal["sigmoid", "hard_sigmoid"]
Modulation = Literal["film", "affine", "scale", "shift", "sigmoid", "sigmoid_shift"]


class _ChannelGate(nn.Module):
    """What the gates of channels share: pooling, the gate of a preactivation, and the product."""

    channels: int
    kind: str
    pooled: bool

    def preactivations(self, z: Tensor) -> Tensor:
        """What the gates are made of, (B, G*C, …), from z (B, C, …)."""
        raise NotImplementedError

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Gate the channels of images (B, C, H, W); the result has the same shape.

        Args:
            input: (B, C, H, W).
            mask: (B, H, W) of bool, True on an image and False on its padding, where images of
                several sizes share a batch. Padding has no part in the mean, and is 0 in the
                result, whatever stands there. None where no image is padded.

        Raises:
            TypeError: the input is no tensor or of another dtype than the parameters, or the mask
                isn't of bool.
            ValueError: a shape or a device doesn't fit, or a mask leaves nothing of an image.
        """
        node = traced(self, input, mask)
        if node is not None:
            return node  # type: ignore[return-value]
        found = self.gates(input, mask)
        y = found["gate"] * input
        if "beta" in found:
            y = y + found["beta"]
        return y if mask is None else y.masked_fill(~mask[:, None], 0)

    def gates(self, input: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """`gate`, and `beta` where something is added: what `forward` does with its input.

        (B, C, 1, 1) each; (B, C, H, W) each where nothing is pooled.
        """
        _check_images(input, self.channels, next(self.parameters()))
        _check_mask(mask, input)
        packed = self.preactivations(_mean(input, mask) if self.pooled else input)
        gate, beta = packed.tensor_split([self.channels], 1)
        found = {"gate": KINDS[self.kind].settle(gate, 1.0)}
        return found | ({"beta": beta} if beta.size(1) else {})


class SqueezeExcitation(_ChannelGate):
    """Gates each channel of an image by what all channels saw.

        z = mean of x over its pixels
        s = sigmoid(W_out relu(W_in z + b_in) + b_out)
        y = s * x

    Parameters, with R hidden units and G = 1 (2 with `shift`): `weight_in` (R, C), `bias_in` (R,),
    `weight_out` (G*C, R), `bias_out` (G*C,). A gate starts near 1/2. The article's equation has no
    biases; its authors' programs, and timm's, have them.

    Args:
        channels: C.
        reduction: R is about C / reduction.
        hidden: R itself, in the place of `reduction`.
        multiple_of: R is the nearest multiple of it, half of one rounded up, and at least one;
            timm's modules have 8.
        kind: "sigmoid", or "hard_sigmoid", which is clip(a/6 + 1/2, 0, 1).
        bias: whether there are biases.
        shift: whether W_out also makes a number b for each channel, so that y = s * x + b, as
            programs for chess and Go have it.
        pooled: False makes a gate for each pixel from its own channels: another layer, and what a
            public program computed that forgot to call its pooling.
        device: where the parameters live.
        dtype: their floating-point type. A mean of low precision is taken in float32.

    Raises: TypeError for an argument of the wrong type, ValueError for one out of range.

    Source: Hu et al. 2017, arXiv:1709.01507, equations 2 to 4; "hard_sigmoid", Howard et al. 2019,
    arXiv:1905.02244.
    """

    bias_in: Tensor | None
    bias_out: Tensor | None

    def __init__(
        self,
        channels: int,
        reduction: float = 16,
        hidden: int | None = None,
        multiple_of: int = 1,
        kind: Gate = "sigmoid",
        bias: bool = True,
        shift: bool = False,
        pooled: bool = True,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, multiple_of=multiple_of)
        check_flags(bias=bias, shift=shift, pooled=pooled)
        check_choice("kind", kind, get_args(Gate))
        check_dtype(dtype)
        self.channels, self.kind, self.pooled, self.shift = channels, kind, pooled, shift
        self.hidden = _hidden(channels, reduction, hidden, multiple_of)
        rows, options = channels * (1 + shift), {"device": device, "dtype": dtype}
        self.weight_in = nn.Parameter(torch.empty(self.hidden, channels, **options))
        self.bias_in = nn.Parameter(torch.empty(self.hidden, **options)) if bias else None
        self.weight_out = nn.Parameter(torch.empty(rows, self.hidden, **options))
        self.bias_out = nn.Parameter(torch.empty(rows, **options)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights and biases uniform in ±1/sqrt(inputs), as torch's linear layers draw them."""
        for weight, bias in ((self.weight_in, self.bias_in), (self.weight_out, self.bias_out)):
            _draw(weight, bias)

    def preactivations(self, z: Tensor) -> Tensor:
        """W_out relu(W_in z), with the biases, over the channels of z (B, C, H, W)."""
        hidden = F.conv2d(z, self.weight_in[:, :, None, None], self.bias_in)
        return F.conv2d(torch.relu(hidden), self.weight_out[:, :, None, None], self.bias_out)

    def extra_repr(self) -> str:
        """What the squeeze was made with."""
        flags = f"bias={self.bias_in is not None}, shift={self.shift}, pooled={self.pooled}"
        return f"{self.channels}, hidden={self.hidden}, kind={self.kind!r}, {flags}"


class ECA(_ChannelGate):
    """Efficient channel attention: gates each channel by what its K neighbours saw.

        z = mean of x over its pixels
        s_c = sigmoid(sum over k of w_k z_{c+k}),   k = -(K-1)/2 … (K-1)/2
        y = s * x

    `weight` (K,) are all its parameters; beyond the first and the last channel z is 0.

    Args:
        channels: C.
        kernel_size: K, odd; None for the whole part of (log2(C) + 1) / 2, or one more where that
            is even, as in the authors' program. timm takes 3 at least.
        kind: "sigmoid" or "hard_sigmoid", as in `SqueezeExcitation`.
        device: where the parameters live.
        dtype: their floating-point type. A mean of low precision is taken in float32.

    Raises: TypeError for an argument of the wrong type, ValueError for one out of range.

    Source: Wang et al. 2019, arXiv:1910.03151, equations 7 and 12.
    """

    pooled = True

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        kind: Gate = "sigmoid",
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(channels=channels)
        check_choice("kind", kind, get_args(Gate))
        check_dtype(dtype)
        if kernel_size is None:
            kernel_size = int((math.log2(channels) + 1) / 2) // 2 * 2 + 1
        check_sizes(kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        self.channels, self.kind, self.kernel_size = channels, kind, kernel_size
        self.weight = nn.Parameter(torch.empty(kernel_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights uniform in ±1/sqrt(K), as torch's convolutions draw them."""
        bound = 1 / math.sqrt(self.kernel_size)
        nn.init.uniform_(self.weight, -bound, bound)

    def preactivations(self, z: Tensor) -> Tensor:
        """The filter over neighbouring channels of z (B, C, 1, 1)."""
        mixed = F.conv1d(z.flatten(2).mT, self.weight[None, None], padding=self.kernel_size // 2)
        return mixed.mT[..., None]

    def extra_repr(self) -> str:
        """What the attention over channels was made with."""
        return f"{self.channels}, kernel_size={self.kernel_size}, kind={self.kind!r}"


MODULATIONS = {
    "film": ("gamma", "beta"),
    "affine": ("gamma", "beta"),
    "scale": ("gamma",),
    "shift": ("beta",),
    "sigmoid": ("gate",),
    "sigmoid_shift": ("gate", "beta"),
}
"""What the condition makes for each channel, in the order of the blocks of rows."""


class FiLM(nn.Module):
    """Feature-wise linear modulation: a condition scales and shifts the channels of an image.

        gamma, beta = W condition + b, split into two halves
        y = (1 + gamma) * x + beta

    Its authors put it behind a batch normalisation without weights of its own,
    `nn.BatchNorm2d(channels, affine=False)`, and before a ReLU. Parameters: `weight` (G*C, E),
    `bias` (G*C,), blocks of rows in the order of the formula.

    Args:
        condition_features: E.
        channels: C.
        kind: "film" as above; "affine", gamma * x + beta, which is the paper's equation without
            the 1 that its program adds; "scale", (1 + gamma) * x; "shift", x + beta; "sigmoid",
            sigmoid(a) * x, a gate; "sigmoid_shift", sigmoid(a) * x + beta.
        device: where the parameters live.
        dtype: their floating-point type.

    Raises: TypeError for an argument of the wrong type, ValueError for one out of range.

    Source: Perez et al. 2017, arXiv:1709.07871, equation 2.
    """

    def __init__(
        self,
        condition_features: int,
        channels: int,
        kind: Modulation = "film",
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(condition_features=condition_features, channels=channels)
        check_choice("kind", kind, get_args(Modulation))
        check_dtype(dtype)
        self.condition_features, self.channels, self.kind = condition_features, channels, kind
        rows, options = len(MODULATIONS[kind]) * channels, {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(rows, condition_features, **options))
        self.bias = nn.Parameter(torch.empty(rows, **options))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights and biases uniform in ±1/sqrt(E), as torch's linear layers draw them."""
        _draw(self.weight, self.bias)

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        """Modulate images (B, C, H, W) as a condition (B, E) says; the result has their shape.

        Raises TypeError for a dtype, ValueError for a shape or a device that doesn't fit.
        """
        node = traced(self, input, condition)
        if node is not None:
            return node  # type: ignore[return-value]
        found = self.gates(input, condition)
        y = input
        if "gamma" in found:
            y = (found["gamma"] if self.kind == "affine" else 1 + found["gamma"]) * y
        if "gate" in found:
            y = found["gate"] * y
        return y + found["beta"] if "beta" in found else y

    def gates(self, input: Tensor, condition: Tensor) -> dict[str, Tensor]:
        """`gamma`, `beta`, `gate`, those that the kind has: what `forward` does, (B, C, 1, 1) each.

        A gate is sigmoid(a) already; 1 is not yet added to gamma.
        """
        _check_images(input, self.channels, self.weight)
        value = check_tensor("condition", condition)
        expected = (input.shape[0], self.condition_features)
        if tuple(value.shape) != expected:
            raise ShapeError(f"condition: expected {expected}, got shape {tuple(value.shape)}")
        check_like("condition", value, self.weight, "weights")
        names = MODULATIONS[self.kind]
        packed = F.linear(value, self.weight, self.bias)[:, :, None, None].chunk(len(names), 1)
        found = dict(zip(names, packed, strict=True))
        return found | ({"gate": torch.sigmoid(found["gate"])} if "gate" in found else {})

    def extra_repr(self) -> str:
        """What the modulation was made with."""
        return f"{self.condition_features}, {self.channels}, kind={self.kind!r}"


class GatedResidualBlock2d(nn.Module):
    """A residual block of two 3 × 3 convolutions whose branch goes through a gate.

        f = norm(conv(relu(norm(conv(x)))))
        y = relu(shortcut(x) + gate(f))

    The gate stands on the branch, after its last norm and before the sum. The shortcut is x, or a
    1 × 1 convolution and a norm where `stride` or the number of channels changes its shape. Norms
    are torch's BatchNorm2d; convolutions have no bias.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; None for as many.
        stride: of the first convolution and of the shortcut.
        gate: any module that maps (B, out_channels, H, W) to its shape, such as
            `SqueezeExcitation` or `ECA`; or one that reads a condition too, such as `FiLM`. None
            for no gate.
        device: where the parameters live.
        dtype: their floating-point type.

    Raises: TypeError for an argument of the wrong type, ValueError for one out of range.

    Source: He et al. 2015, arXiv:1512.03385, figure 2; Hu et al. 2017, arXiv:1709.01507, figure 3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        stride: int = 1,
        gate: nn.Module | None = None,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        check_sizes(in_channels=in_channels, out_channels=out_channels, stride=stride)
        check_dtype(dtype)
        if gate is not None and not isinstance(gate, nn.Module):
            raise TypeError(f"gate: expected a module or None, got {type(gate).__name__}")
        self.in_channels, self.out_channels = in_channels, out_channels
        options = {"device": device, "dtype": dtype}
        self.branch = nn.Sequential(
            *_unit(in_channels, out_channels, 3, stride, options),
            nn.ReLU(),
            *_unit(out_channels, out_channels, 3, 1, options),
        )
        self.gate = gate
        changed = stride != 1 or in_channels != out_channels
        projection = _unit(in_channels, out_channels, 1, stride, options) if changed else ()
        self.shortcut = nn.Sequential(*projection)

    def forward(self, input: Tensor, condition: Tensor | None = None) -> Tensor:
        """Images (B, in_channels, H, W) to (B, out_channels, H', W').

        A condition, where there is one, goes to the gate, which must read it.

        Raises TypeError for a dtype, ValueError for a shape or a device that doesn't fit.
        """
        node = traced(self, input, condition)
        if node is not None:
            return node  # type: ignore[return-value]
        _check_images(input, self.in_channels, next(self.branch.parameters()))
        branch = self.branch(input)
        given = () if condition is None else (condition,)
        if self.gate is not None:
            branch = self.gate(branch, *given)
        elif given:
            raise ValueError("condition: expected None where there is no gate to read it")
        y: Tensor = torch.relu(self.shortcut(input) + branch)
        return y


def _unit(inside: int, outside: int, side: int, stride: int, options: Any) -> tuple[nn.Module, ...]:
    """A convolution without bias, and its norm."""
    convolution = nn.Conv2d(inside, outside, side, stride, padding=side // 2, bias=False, **options)
    return convolution, nn.BatchNorm2d(outside, **options)


def _hidden(channels: int, reduction: object, hidden: int | None, multiple_of: int) -> int:
    """The hidden units that were asked for."""
    if hidden is not None:
        check_sizes(hidden=hidden)
        return hidden
    if isinstance(reduction, bool) or not isinstance(reduction, int | float):
        raise TypeError(f"reduction: expected a number, got {type(reduction).__name__}")
    if not 0 < reduction < math.inf:
        raise ValueError(f"reduction: expected a finite number above 0, got {reduction}")
    nearest = int(channels / reduction + multiple_of / 2) // multiple_of * multiple_of
    return max(multiple_of, nearest)


def _draw(weight: Tensor, bias: Tensor | None) -> None:
    bound = 1 / math.sqrt(weight.shape[1])
    nn.init.uniform_(weight, -bound, bound)
    if bias is not None:
        nn.init.uniform_(bias, -bound, bound)


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, C, 1, 1): the mean over the pixels of the image, in float32 at least, in x's type."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if mask is None:
        return x.mean((2, 3), keepdim=True, dtype=wide).to(x.dtype)
    total = x.masked_fill(~mask[:, None], 0).sum((2, 3), keepdim=True, dtype=wide)
    return (total / mask.sum((1, 2))[:, None, None, None].to(wide)).to(x.dtype)


def _check_images(input: object, channels: int, weight: Tensor) -> None:
    value = check_tensor("input", input)
    if value.dim() != 4 or value.size(1) != channels:
        shape = tuple(value.shape)
        raise ShapeError(f"input: expected (B, {channels}, H, W), got shape {shape}")
    if value.size(2) == 0 or value.size(3) == 0:
        raise ShapeError(f"input: expected at least one pixel, got shape {tuple(value.shape)}")
    check_like("input", value, weight, "weights")


def _check_mask(mask: object, input: Tensor) -> None:
    if mask is None:
        return
    value = check_tensor("mask", mask)
    if value.dtype != torch.bool:
        raise TypeError(f"mask: expected torch.bool, got {value.dtype}")
    expected = (input.shape[0], *input.shape[2:])
    if tuple(value.shape) != expected:
        raise ShapeError(f"mask: expected (B, H, W) = {expected}, got shape {tuple(value.shape)}")
    if value.device != input.device:
        raise ShapeError(f"mask: expected device {input.device} as input, got {value.device}")
    if known(lambda: value.flatten(1).any(1).all()) == 0:
        raise ValueError("mask: expected at least one pixel of each image, got an image of none")
