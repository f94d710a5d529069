"""The small detector of chapter 12, with and without gates: net, loss, and boxes from its answer.

Imports NumPy, torch, gatelib.data.detection, gatelib.lab.scores and gatelib.nn.

An image has 6 × 6 cells. For each the net says whether the centre of a digit lies there, which
digit, and where its box is: channels 0, 1 … 10 and 11 … 14 of its answer (B, 15, 6, 6).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.data import detection
from gatelib.lab.scores import overlap
from gatelib.nn import SqueezeExcitation

__all__ = ["GATES", "PixelGate", "detection_loss", "detections", "detector"]

GATES = ("none", "se", "spatial", "input_output")
CHANNELS = 15


class PixelGate(nn.Module):
    """y = sigmoid(conv x) · x: each pixel has gates of its own, one for each channel, or one alone.

    With one for each channel it is what an article calls an input or an output gate, on an image.
    """

    def __init__(self, channels: int, gates: int | None = None) -> None:
        super().__init__()
        self.preactivation = nn.Conv2d(channels, gates or channels, 3, padding=1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Gate (B, C, H, W)."""
        return self.gate(self.preactivation(x)) * x


def detector(width: int = 8, gate: str = "none", reduction: float = 4) -> nn.Sequential:
    """Images (B, 1, 48, 48) to what is in each cell (B, 15, 6, 6).

    Four layers of convolution, norm and ReLU, of `width`, 2, 4 and 4 times as many channels, each
    of the first three before a max pooling by 2; then a linear map to the answer. gate: "se" puts
    squeeze-and-excitation behind the norm of each layer but the first; "spatial" a gate a pixel
    there, the same for all channels; "input_output" gates the image and what the last layer made,
    as an article proposes.
    """
    if gate not in GATES:
        raise ValueError(f"gate: expected one of {GATES}, got {gate!r}")
    sizes = [1, width, 2 * width, 4 * width, 4 * width]
    layers: list[nn.Module] = [PixelGate(1)] if gate == "input_output" else []
    for k, (inside, outside) in enumerate(pairwise(sizes)):
        layers += [nn.Conv2d(inside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)]
        if gate == "se" and k:
            layers.append(SqueezeExcitation(outside, reduction))
        if gate == "spatial" and k:
            layers.append(PixelGate(outside, 1))
        layers += [nn.ReLU(), *([nn.MaxPool2d(2)] if k < 3 else [])]
    layers += [PixelGate(sizes[-1])] if gate == "input_output" else []
    return nn.Sequential(*layers, nn.Conv2d(sizes[-1], CHANNELS, 1))


def detection_loss(answer: Tensor, target: Tensor) -> Tensor:
    """Of an answer (B, 15, 6, 6) against `detection.grid_target`, per image.

    Whether there is a digit is asked of all cells; which, and where, of those that have one. A box
    costs 10 times the square of its error, where the width and the height count as roots.
    """
    there = target[:, 0]
    seen = F.binary_cross_entropy_with_logits(answer[:, 0], there, reduction="sum")
    label = F.cross_entropy(answer[:, 1:11], target[:, 1].long(), reduction="none")
    place = (answer[:, 11:].sigmoid() - target[:, 2:]).square().sum(1)
    return (seen + (there * (label + 10 * place)).sum()) / len(answer)


def detections(
    answer: Tensor, least: float = 0.05, shared: float = 0.3
) -> list[NDArray[np.float64]]:
    """What an answer (B, 15, 6, 6) found, for each image (P, 6): class, box, score, surest first.

    The score is the probability of a digit times that of its class. Of two boxes of a class that
    overlap by more than `shared` of their union, the surer one stays: non-maximum suppression.
    """
    with torch.no_grad():
        sure, label = answer[:, 1:11].softmax(1).max(1)
        score = (answer[:, 0].sigmoid() * sure).double().numpy()
        boxes = detection.boxes(answer[:, 11:].sigmoid().double().numpy())
    found = []
    for scores, labels, places in zip(score, label.double().numpy(), boxes, strict=True):
        rows = np.concatenate([labels[..., None], places, scores[..., None]], axis=-1).reshape(
            -1, 6
        )
        rows = rows[rows[:, 5] >= least]
        found.append(_apart(rows[np.argsort(-rows[:, 5], kind="stable")], shared))
    return found


def _apart(rows: NDArray[np.float64], shared: float) -> NDArray[np.float64]:
    """The rows (P, 6), surest first, that no surer one of their class covers."""
    close = overlap(rows[:, 1:5], rows[:, 1:5]) > shared
    close &= rows[:, :1] == rows[:, 0]
    kept = np.ones(len(rows), bool)
    for i in range(len(rows)):
        kept[i + 1 :] &= ~(close[i, i + 1 :] & kept[i])
    return rows[kept]
