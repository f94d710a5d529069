"""What chapter 15 runs: letters, a speller of 64 experts, where letters are sent, and a picture.

Imports matplotlib, NumPy, torch, gatelib.data, gatelib.lab and gatelib.nn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.data import reviews
from gatelib.lab import figures, train
from gatelib.nn import MoE, TopKRouter, updated_after

Counts = NDArray[np.float64]

SEEN = 8
"""Letters that a prediction sees."""
FEATURES, UNITS = 32, 512
"""Features of a letter, and hidden units of all experts together."""
PARTS = 6
"""Curves in which a record keeps the shares of all experts."""
RANKS, TOKENS = 1024, 256
"""In the unseen text each of so many ranks reads so many letters."""


def letters(texts: list[str], length: int) -> Tensor:
    """Texts as numbers: 0 is a space, or whatever is no letter; a to z are 1 to 26."""
    text = " ".join(texts).replace("<br />", " ").lower()
    codes = np.frombuffer(re.sub("[^a-z]+", " ", text).encode(), np.uint8)[:length]
    return torch.as_tensor(np.where(codes == 32, 0, codes - 96).astype(np.uint8))


def parts() -> dict[str, Tensor]:
    """Film reviews to train on, to choose on, and 262,151 letters of others to test on."""
    film = reviews.imdb()
    train_text, test_text = film.train.x, film.test.x
    return {
        "train": letters(train_text[:1700], 1_000_000),
        "valid": letters(train_text[2000:2100], 32_768 + SEEN - 1),
        "test": letters(test_text[:500], RANKS * TOKENS + SEEN - 1),
    }


class Speller(nn.Module):
    """Eight letters through a convolution, one residual layer of experts, the next letter."""

    def __init__(self, layer: MoE) -> None:
        super().__init__()
        self.letters, self.read = nn.Embedding(27, 8), nn.Conv1d(8, FEATURES, SEEN)
        self.norm, self.layer = nn.RMSNorm(FEATURES), layer
        self.answer = nn.Sequential(nn.RMSNorm(FEATURES), nn.Linear(FEATURES, 27))

    def features(self, x: Tensor) -> Tensor:
        """What the layer of experts adds to, (..., 32), for letters (...)."""
        found: Tensor = self.read(self.letters(x).mT).mT
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next letter, (..., 27), one for each eight letters of (...)."""
        h = self.features(x)
        answer: Tensor = self.answer(h + self.layer(self.norm(h)))
        return answer


def speller(
    experts: int = 64, k: int = 8, nodes: int | None = None, score: str = "softmax", **options: Any
) -> Speller:
    """A net whose experts have 512 units in all, so that k of them have 512 k / experts.

    Args:
        experts: E, in eight nodes of equal size.
        k: experts a letter.
        nodes: how many of the eight nodes a letter may be sent to; None for all.
        score: of the router.
        options: what keeps the load even, as `MoE` has it.
    """
    biased = options.get("balance") in ("bias", "quantile")
    groups = {} if nodes is None else {"groups": 8, "kept_groups": nodes}
    groups |= {} if nodes is None else {"group_score": min(k // nodes, experts // 8)}
    router = TopKRouter(FEATURES, experts, k, score=score, selection_bias=biased, **groups)
    options |= {"hidden": UNITS // experts, "router": router, "impl": "reference"}
    return Speller(MoE(FEATURES, experts, k, **options))


def batches(text: Tensor, rows: int = 8, length: int = 64) -> Callable[..., Any]:
    """Batches of (rows, length) places in a text, each with the letter that follows."""
    offsets = torch.arange(length + SEEN)

    def draw(step: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        start = torch.as_tensor(generator.integers(0, len(text) - len(offsets), rows))
        found = text[start[:, None] + offsets].long()
        return found[:, :-1], found[:, SEEN:]

    return draw


def fitted(model: Speller, text: Tensor, steps: int, lr: float, seed: int) -> Any:
    """Train on a text, with the loss that balances or the bias that is moved, if any."""

    def loss(answers: Tensor, wanted: Tensor) -> Tensor:
        own = F.cross_entropy(answers.flatten(0, -2), wanted.flatten())
        return own + model.layer.loss() if model.layer.balancer.balance else own

    def adam(parameters: Any, lr: float) -> torch.optim.Optimizer:
        return updated_after(torch.optim.Adam(parameters, lr=lr, fused=True), model)

    options = {"loss": loss, "optimizer": adam, "clip": 1.0}
    return train(model, batches(text), steps=steps, lr=lr, seed=seed, **options)


@torch.no_grad()
def bits(model: Speller, text: Tensor) -> float:
    """Bits a letter of the first 32,768 letters that have eight before them."""
    x = text[: 32_768 + SEEN - 1].long()
    answers = model(x[None, :-1])[0]
    return F.cross_entropy(answers, x[SEEN:]).item() / math.log(2)


@torch.no_grad()
def chosen(model: Speller, text: Tensor) -> Tensor:
    """The experts (N, k) of each letter of a text that has seven before it."""
    found = []
    for piece in text.unfold(0, 2048 + SEEN - 1, 2048):
        h = model.norm(model.features(piece[None].long())[0])
        found.append(model.layer.router(h).indices)
    return torch.cat(found)


def counted(experts: Tensor, every: int, tokens: int) -> Counts:
    """Rows for each expert, (N / tokens, every), from each `tokens` letters in turn."""
    places = torch.arange(len(experts) // tokens).repeat_interleave(tokens * experts.size(1))
    flat = places * every + experts.flatten()
    return torch.bincount(flat, minlength=(int(places[-1]) + 1) * every).view(-1, every).numpy()


def ranked(rows: Counts, ranks: int) -> Counts:
    """Rows for each rank (..., ranks) from rows for each expert (..., E): neighbours together."""
    return rows.reshape(*rows.shape[:-1], ranks, -1).sum(-1)


def kept_speed(rows: Counts, ranks: int) -> float:
    """The mean share of the ideal speed that `ranks` ranks keep, which wait for the slowest.

    Args:
        rows: (batches, E), for each expert, from the letters that each rank reads. Ranks beyond
            the number of experts hold a second copy of them, and so on; all wait for all.
        ranks: a power of two up to the number of batches.
    """
    batches, experts = rows.shape
    group = min(ranks, experts)
    exchanged = rows.reshape(batches // group, group, experts).sum(1)
    slowest = ranked(exchanged, group).max(-1).reshape(batches // ranks, -1).max(-1)
    return float((rows.sum() / batches / slowest).mean())


def nodes_reached(experts: Tensor, every: int, nodes: int = 8) -> float:
    """To how many nodes a letter is sent; the mean over all letters."""
    found = torch.zeros(len(experts), nodes).scatter(1, experts // (every // nodes), 1.0)
    return found.sum(1).mean().item()


def split(name: str, shares: Counts) -> dict[str, Counts]:
    """Shares of the experts as curves of so few numbers that a record keeps each of them."""
    return {f"{name} {part}": found for part, found in enumerate(np.array_split(shares, PARTS))}


def joined(runs: Any, arm: str, name: str) -> Counts:
    """Shares of the experts, (seeds, E), from the curves of a record; they sum to 1."""
    found = np.concatenate([runs.of(arm, f"{name} {part}") for part in range(PARTS)], axis=1)
    return found / found.sum(1, keepdims=True)


def studied(text: dict[str, Tensor], make: Callable[[], Speller], lr: float, seed: int) -> Any:
    """Train a net; score its letters, and say where unseen ones would be sent."""
    torch.manual_seed(seed)
    model = make()
    history = fitted(model, text["train"], 500, lr, seed)
    model.eval()
    found = {"loss": history} | {part: bits(model, text[part]) for part in ("valid", "test")}
    every = model.layer.experts
    sent = chosen(model, text["test"])
    rows = counted(sent, every, TOKENS)
    before = counted(chosen(model, text["valid"]), every, TOKENS)
    found |= {f"{ranks} ranks": kept_speed(rows, ranks) for ranks in 2 ** np.arange(1, 11)}
    shares = rows.sum(0) / rows.sum()
    found |= split("load", shares) | split("seen", before.sum(0) / before.sum())
    found["MaxVio"] = float(every * shares.max() - 1)
    return found | {"nodes": nodes_reached(sent, every)}


def exchange_drawn(owners: NDArray[np.int64], ranks: int = 4) -> None:
    """Draw tokens (ranks, n), each given by the rank of its expert, on their way there and back."""
    ax = plt.subplots(figsize=(5.0, 2.5), layout="constrained")[1]
    size, loads = owners.shape[1], np.bincount(owners.ravel(), minlength=ranks)
    middle, right = size + 4, size + 8 + int(loads.max())
    filled = [0] * ranks
    for source in range(ranks):
        for start in (0, right):
            _squares(ax, start, source, [source] * size)
        for place, owner in enumerate(owners[source]):
            there = middle + filled[owner]
            _squares(ax, there, owner, [source])
            _journey(ax, source, owner, (place, there, right + place))
            filled[owner] += 1
    for owner in range(ranks):
        _squares(ax, middle + filled[owner], owner, [None] * int(loads.max() - loads[owner]))
    ax.plot([middle + size] * 2, [-0.6, ranks - 0.4], color="k", ls="--", lw=1.2)
    _headed(ax, {0: "own batch", middle: "at the experts", right: "back again"}, right + size)
    ax.set(ylim=(ranks - 0.4, -1.2), yticks=range(ranks))
    ax.set_yticklabels([f"rank {rank}" for rank in range(ranks)])


def _headed(ax: Axes, heads: dict[int, str], end: int) -> None:
    """A word above each part of the picture, and no frame around it."""
    for x, text in heads.items():
        ax.text(x, -0.75, text, fontsize=10)
    ax.set(xlim=(-0.3, end + 0.3), xticks=[])
    ax.tick_params(length=0)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.grid(False)


def _squares(ax: Axes, x: int, y: int, colours: list[int | None]) -> None:
    """A row of squares from x on, one for each colour; None is a dotted one: a wait."""
    for place, colour in enumerate(colours):
        waits = {"fill": False, "ls": ":", "ec": figures.COLOURS[6]}
        look = waits if colour is None else {"fc": figures.COLOURS[colour], "ec": "w"}
        ax.add_patch(plt.Rectangle((x + place, y - 0.4), 1, 0.8, **look))


def _journey(ax: Axes, source: int, owner: int, places: tuple[int, int, int]) -> None:
    """The way of one row from its rank to that of its expert, and back."""
    x = [place + 0.5 for place in places]
    look = {"color": figures.COLOURS[source], "lw": 0.6, "ls": "-", "alpha": 0.5}
    ax.plot(x, [source, owner, source], zorder=0, **look)
