"""Gates over the channels of an image, and a residual block with one.

Imports NumPy, gatelib.equations.vision, gatelib.spec, and of gatelib.derived conv_rnn and tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.

Images are `x` (B, C, H, W). A mean over the pixels is a Spec whose features are the pixels of one
channel; a 1 × 1 convolution is a linear map over the channels, and a larger one is a linear map
over what each pixel sees around itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.derived.conv_rnn import convolution
from gatelib.derived.tape import Value, Values, gate, join, linear, split, swap
from gatelib.equations.vision import EXCITE, MASKED_SQUEEZE, NORM, SQUEEZE
from gatelib.spec import Spec

__all__ = ["block", "film", "local_attention", "squeeze_excitation"]

Mask = NDArray[Any]


def squeeze_excitation(
    spec: Spec, given: Values, mask: Mask | None = None, pooled: bool = True
) -> dict[str, Value]:
    """`x`, `W_1` (R, C), `W_2` (G·C, R), and perhaps `b_1`, `b_2`, to `y` (B, C, H, W).

    spec: reads v and the preactivations that the blocks of W_2 make, in their order. mask
    (B, H, W): 1 on the image, 0 on its padding. pooled: without it each pixel has its own gate.
    """
    pixels = _flat(given["x"])
    live = _live(mask)
    packed = _excited(_squeezed(pixels, live) if pooled else pixels, given)
    y = _gated(spec, pixels, packed)
    y = y if live is None else gate(_MASK, m=live, v=y)["y"]
    return {"y": _image(y, given["x"].shape[2:])}


def local_attention(spec: Spec, given: Values, mask: Mask | None = None) -> dict[str, Value]:
    """ECA: `x` and one filter over neighbouring channels, `w` (K,), to `y` (B, C, H, W)."""
    pixels, (taps,) = _flat(given["x"]), given["w"].shape
    live = _live(mask)
    z = _squeezed(pixels, live)[..., 0]
    nothing = Value(np.zeros((z.shape[0], taps // 2)), z.tape)
    around = join([nothing, z, nothing])[:, np.arange(z.shape[1])[:, None] + np.arange(taps)]
    y = _gated(spec, pixels, linear(around, given["w"][None]))
    y = y if live is None else gate(_MASK, m=live, v=y)["y"]
    return {"y": _image(y, given["x"].shape[2:])}


def film(spec: Spec, given: Values) -> dict[str, Value]:
    """`x`, `condition` (B, E), `W` (G·C, E) and `b` (G·C,) to `y` (B, C, H, W)."""
    packed = linear(given["condition"], given["W"], given["b"])[..., None]
    return {"y": _image(_gated(spec, _flat(given["x"]), packed), given["x"].shape[2:])}


def block(spec: Spec, given: Values, stride: int = 1) -> dict[str, Value]:
    """A residual block while it trains: `x` to `y`.

    given: `conv_k` (O, I, K, K), `scale_k` and `shift_k` (O,) for k = 1, 2, and x where the
    shortcut projects; where `spec` has a gate `a`, its weights as `squeeze_excitation` has them.
    """
    x = given["x"]
    h = gate(EXCITE, a=_unit(x, "1", given, stride))["h"]
    f = _unit(h, "2", given, 1)
    skip = _unit(x, "x", given, stride) if "conv_x" in given else x
    parts = {"f": _flat(f), "x": _flat(skip)}
    if "W_1" in given:
        parts["a"] = _excited(_squeezed(parts["f"], None), given)
    return {"y": _image(gate(spec, **parts)["y"], f.shape[2:])}


_MASK = Spec.parse("mask", "m v -> y", "y = m*v")


def _live(mask: Mask | None) -> Mask | None:
    """(B, 1, H·W)."""
    return None if mask is None else mask.reshape(len(mask), 1, mask.shape[1] * mask.shape[2])


def _flat(x: Value) -> Value:
    """(B, C, H·W)."""
    row, column = np.divmod(np.arange(x.shape[2] * x.shape[3]), x.shape[3])
    return x[:, :, row, column]


def _image(pixels: Value, size: tuple[int, ...]) -> Value:
    """(B, C, H, W) again."""
    return pixels[:, :, np.arange(size[0] * size[1]).reshape(size)]


def _squeezed(pixels: Value, live: Mask | None) -> Value:
    """(B, C, 1): the mean over the pixels that count."""
    if live is None:
        return gate(SQUEEZE, v=pixels)["z"][..., :1]
    return gate(MASKED_SQUEEZE, m=live, v=pixels)["z"][..., :1]


def _excited(z: Value, given: Values) -> Value:
    """(B, G·C, P): the packed preactivations, from z (B, C, P), P the pixels or 1."""
    h = gate(EXCITE, a=linear(swap(z, 1, 2), given["W_1"], given.get("b_1")))["h"]
    return swap(linear(h, given["W_2"], given.get("b_2")), 1, 2)


def _gated(spec: Spec, pixels: Value, packed: Value) -> Value:
    """The Spec's `y`; `packed` (B, G·C, P) holds its inputs but v, in their order."""
    names = [str(name) for name in spec.inputs if str(name) != "v"]
    blocks = split(swap(packed, 1, 2), len(names))
    made = {name: swap(part, 1, 2) for name, part in zip(names, blocks, strict=True)}
    return gate(spec, v=pixels, **made)["y"]


def _unit(x: Value, k: str, given: Values, stride: int) -> Value:
    """A convolution and its batch normalisation, whose features are a channel's pixels."""
    a = convolution(x, given[f"conv_{k}"])[:, ::stride, ::stride]
    batch, high, wide, _ = a.shape
    every = np.arange(batch * high * wide).reshape(batch, high, wide)
    image, line, column = (at.ravel() for at in np.indices(every.shape))
    scale, shift = (given[f"{name}_{k}"][:, None] for name in ("scale", "shift"))
    n = gate(NORM, v=swap(a[image, line, column], 0, 1), w=scale, b=shift)["n"]
    return swap(n[:, every], 0, 1)
