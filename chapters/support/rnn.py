"""The four shapes of sequences that chapter 5 runs: data, a plain recurrent net, a linear model.

Imports NumPy, torch, num2words, gatelib.data, gatelib.lab and gatelib.nn.

Each task is a function of "RNN" or "linear" that returns the net, its training data, its loss, and
its scores on validation and test data. Two know an "MLP" too, and a "wide MLP".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from num2words import num2words
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.data import Vocabulary, mnist, pad, segmentation, translation, with_validation, words
from gatelib.lab import Readout, accuracy, word_f1
from gatelib.nn import RNN, init

__all__ = [
    "passing",
    "sliding",
    "spelling",
    "spelling_without_state",
    "tagging",
    "translating",
    "translating_without_state",
]

Score = Callable[[nn.Module], float]
Task = tuple[nn.Module, Any, Any, list[Score]]

STEPS = 28  # of a sequence in which a digit passes by, two rows at a step
SAID = 14  # words of a number, at most
CHARACTERS = 18  # of a Chinese sentence, at most
READ, WRITTEN = 6, 9  # letters of a word; phones with a mark before and behind
SPELLERS = {"MLP": 19, "wide MLP": 128}  # hidden units; the first has as many weights as the RNN
SPEAKERS = {"MLP": 61, "wide MLP": 256}


class Affine(nn.Module):
    """The linear model: every output is a weighted sum of all inputs, which come as one-hot."""

    def __init__(self, inputs: int, symbols: int, *outputs: int) -> None:
        super().__init__()
        self.inputs, self.symbols, self.outputs = inputs, symbols, outputs
        self.linear: nn.Module = nn.Linear(inputs * symbols, int(np.prod(outputs)))

    def forward(self, x: Tensor) -> Tensor:
        """Of x (B, …) the first `inputs` features."""
        x = x.flatten(1)[:, : self.inputs]
        hot = F.one_hot(x, self.symbols).float() if self.symbols > 1 else x
        answers: Tensor = self.linear(hot.flatten(1))
        return answers.reshape(-1, *self.outputs)


class Layered(Affine):
    """The same with a hidden layer of ReLUs: it sees all places at once, and has no state."""

    def __init__(self, hidden: int, inputs: int, symbols: int, *outputs: int) -> None:
        super().__init__(inputs, symbols, *outputs)
        below = nn.Linear(inputs * symbols, hidden)
        self.linear = nn.Sequential(below, nn.ReLU(), nn.Linear(hidden, int(np.prod(outputs))))


class Stateless(nn.Module):
    """One hidden layer with the same weights at every place, and no state.

    It sees all that was read, the place, and the last `back` symbols that it wrote.
    """

    def __init__(
        self, read: int, symbols: int, places: int, outputs: int, hidden: int, back: int = 0
    ) -> None:
        super().__init__()
        self.read, self.symbols = read, symbols
        self.seen = nn.Linear(read * symbols, hidden)
        self.place = nn.Parameter(torch.randn(places, hidden) * 0.1)
        self.written = nn.ModuleList(nn.Embedding(outputs, hidden) for _ in range(back))
        self.linear = nn.Linear(hidden, outputs)
        for table in self.written.parameters():
            nn.init.normal_(table, 0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """In training it reads the right symbols back; else those that it wrote."""
        hot = F.one_hot(x[:, : self.read], self.symbols).float()
        seen, answers = self.seen(hot.flatten(1)), []
        past = [x[:, self.read] if self.written else x[:, 0], torch.zeros_like(x[:, 0])]
        for number, place in enumerate(self.place):
            fed = [embed(symbol) for embed, symbol in zip(self.written, past, strict=False)]
            answers.append(self.linear(torch.relu(torch.stack([seen + place, *fed]).sum(0))))
            taught = self.training and len(self.written) > 0
            right = x[:, self.read + number + 1] if taught else answers[-1].argmax(-1)
            past = [right, past[0]]
        return torch.stack(answers, 1)


def orthogonal(features: int, size: int) -> RNN:
    """A tanh RNN whose recurrent matrix starts orthogonal."""
    return init.recurrent_(RNN(features, size, batch_first=True), "orthogonal")


def exactly(x: Any, y: Any) -> Score:
    """A score: the share of answers without an error; a padded place doesn't count."""
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    return lambda net: float(((net(x).argmax(-1) == y) | (y == 0)).all(1).double().mean())


def likelihood(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of every place that isn't padded."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=0)


# --- N→1 --------------------------------------------------------------------------------------


@cache
def _digits() -> list[Any]:
    """Digits as 14 steps of two rows each: training, validation, test."""
    parts = with_validation(mnist.rows(), 500)
    return [part._replace(x=part.x.reshape(len(part.x), 14, 56)) for part in parts]


def placed(split: Any, generator: np.random.Generator) -> Any:
    """Each digit somewhere in a sequence of blank steps."""
    x = np.zeros((len(split.x), STEPS, 56), np.float32)
    begin = generator.integers(0, STEPS - 13, len(x))
    x[np.arange(len(x))[:, None], begin[:, None] + np.arange(14)] = split.x
    return split._replace(x=x)


def passing(model: str) -> Task:
    """N→1: which digit passed by?"""
    known, *others = _digits()

    def batch(step: int, generator: np.random.Generator) -> Any:
        rows = generator.integers(0, len(known.x), 64)
        return placed(known._replace(x=known.x[rows], y=known.y[rows]), generator)

    nets: dict[str, nn.Module] = {"RNN": Readout(orthogonal(56, 64), 64, 10)}
    nets["linear"] = Affine(STEPS * 56, 1, 10)
    asked = [placed(part, np.random.default_rng(5)) for part in others]
    return nets[model], batch, "cross_entropy", [accuracy(part) for part in asked]


class Sliding(nn.Module):
    """One linear map of 14 steps at every place: logits are added as probabilities are."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(14 * 56, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Name the digit that passes in x (B, STEPS, 56)."""
        places = x.unfold(1, 14, 1).flatten(2)
        answers: Tensor = self.linear(places).logsumexp(1)
        return answers


def sliding(model: str) -> Task:
    """N→1 without recurrence: the same weights at every place of a window."""
    _, batch, loss, scores = passing(model)
    return Sliding(), batch, loss, scores


# --- 1→N --------------------------------------------------------------------------------------


def in_digits(text: str) -> list[int]:
    """The number that these words name, as seven digits."""
    named = {num2words(n): n for n in [*range(20), *range(20, 100, 10)]}
    value, part = 0, 0
    for word in words(text):
        if word in ("thousand", "million"):
            value, part = (value + part) * 1000, 0
        else:
            part = part * 100 if word == "hundred" else part + named.get(word, 0)
    return [int(digit) for digit in f"{value + part:07}"]


@cache
def _numbers() -> tuple[Vocabulary, list[tuple[Any, Any]]]:
    """The words, and (digits, words said) for training, validation, test."""
    parts = with_validation(translation.numerals(3500, 500, digits=7), 500)
    english = Vocabulary.fit([words(text) for text in parts.train.x])
    data = []
    for part in parts:
        said = english.encode([words(text) for text in part.x], SAID)[0]
        data.append((np.array([in_digits(text) for text in part.x]), said))
    return english, data


class Speller(nn.Module):
    """The same seven digits at every step; a word at every step."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.words = Readout(orthogonal(70, 64), 64, symbols, every_step=True)

    def forward(self, x: Tensor) -> Tensor:
        """Say the numbers x (B, 7)."""
        plan = F.one_hot(x, 10).float().flatten(1)
        said: Tensor = self.words(plan[:, None].expand(-1, SAID, -1))
        return said


def spelling(model: str) -> Task:
    """1→N: seven digits, seen at once, to be said in words."""
    english, data = _numbers()
    size = len(english)
    nets: dict[str, nn.Module] = {"RNN": Speller(size), "linear": Affine(7, 10, SAID, size)}
    nets |= {name: Layered(hidden, 7, 10, SAID, size) for name, hidden in SPELLERS.items()}
    return nets[model], data[0], likelihood, [exactly(*part) for part in data[1:]]


def spelling_without_state(model: str) -> Task:
    """1→N with the same weights at every place, as many as the RNN's."""
    _, *rest = spelling("RNN")
    return Stateless(7, 10, SAID, len(_numbers()[0]), 91), *rest


# --- N→N --------------------------------------------------------------------------------------


@cache
def _sentences() -> tuple[int, Any, list[tuple[Any, Any]]]:
    """The number of characters, the sentences, and their ids and tags."""
    parts = with_validation(segmentation.sentences(3500), 300)
    alphabet = Vocabulary.fit([list(text) for text in parts.train.x], minimum=2)
    data = []
    for part in parts:
        ids, _ = alphabet.encode([list(text) for text in part.x], CHARACTERS)
        data.append((ids, pad(part.y, CHARACTERS, value=-100)[0]))
    return len(alphabet), parts, data


class Tagger(nn.Module):
    """A tag for each character, from all before it (RNN) or from the last three (linear)."""

    def __init__(self, symbols: int, recurrent: bool) -> None:
        super().__init__()
        widths = [32] if recurrent else [4, 4, 4]
        self.seen = nn.ModuleList(nn.Embedding(symbols, width) for width in widths)
        self.tags = Readout(orthogonal(32, 64), 64, 4, every_step=True) if recurrent else None

    def forward(self, ids: Tensor) -> Tensor:
        """Tag the characters ids (B, T)."""
        late = [F.pad(ids, (n, 0))[:, : ids.shape[1]] for n in range(len(self.seen))]
        found = [each(moved) for each, moved in zip(self.seen, late, strict=True)]
        tagged: Tensor = self.tags(found[0]) if self.tags else torch.stack(found).sum(0)
        return tagged


def words_found(ids: Any, part: Any) -> Score:
    """A score: the F1 of words."""

    def score(net: nn.Module) -> float:
        tags = net(torch.as_tensor(ids)).argmax(-1).numpy()
        cut = [row[: len(text)] for row, text in zip(tags, part.x, strict=True)]
        return word_f1(part.x, cut, part.y)

    return score


def tagging(model: str) -> Task:
    """N→N: does the character begin, continue or end a word, or is it one?"""
    symbols, parts, data = _sentences()
    known = zip(data, parts, strict=True)
    scores = [words_found(ids, part) for (ids, _), part in known]
    return Tagger(symbols, model == "RNN"), data[0], "cross_entropy", scores[1:]


# --- N→M --------------------------------------------------------------------------------------


def short(part: Any) -> Any:
    """The words of at most six letters."""
    kept = [i for i, word in enumerate(part.x) if len(word) <= READ]
    return part._replace(x=part.x[kept], y=part.y[kept])


@cache
def _spoken() -> tuple[int, int, list[tuple[Any, Any]]]:
    """How many letters and phones; letters, the last first, and phones, together and alone."""
    parts = with_validation(translation.phones(40_000, 4_000), 2_000)
    parts = [short(part) for part in parts]
    letters = Vocabulary.fit([list(word) for word in parts[0].x])
    phones = Vocabulary.fit([text.split() for text in parts[0].y])
    data = []
    for part in parts:
        source = letters.encode([list(word) for word in part.x], READ)[0][:, ::-1]
        target = phones.encode([text.split() for text in part.y], WRITTEN, ends=True)[0]
        data.append((np.concatenate([source, target], 1), target[:, 1:].copy()))
    return len(letters), len(phones), data


class Translator(nn.Module):
    """Two plain recurrent nets; the second starts where the first one ends."""

    def __init__(self, letters: int, phones: int, size: int = 96) -> None:
        super().__init__()
        self.read, self.write = nn.Embedding(letters, 32), nn.Embedding(phones, 32)
        self.encoder, self.decoder = orthogonal(32, size), orthogonal(32, size)
        self.linear = nn.Linear(size, phones)

    def forward(self, ids: Tensor) -> Tensor:
        """In training it reads the right answer; else it reads back what it wrote."""
        state = self.encoder(self.read(ids[:, :READ]))[1]
        if self.training:
            taught: Tensor = self.linear(self.decoder(self.write(ids[:, READ:-1]), state)[0])
            return taught
        written, answers = ids[:, READ : READ + 1], []
        for _step in range(WRITTEN - 1):
            output, state = self.decoder(self.write(written), state)
            answers.append(self.linear(output))
            written = answers[-1].argmax(-1)
        return torch.cat(answers, 1)


def translating(model: str) -> Task:
    """N→M: letters in, and phones out."""
    letters, phones, data = _spoken()
    nets: dict[str, nn.Module] = {"RNN": Translator(letters, phones)}
    outputs = (WRITTEN - 1, phones)
    nets["linear"] = Affine(READ, letters, *outputs)
    nets |= {name: Layered(hidden, READ, letters, *outputs) for name, hidden in SPEAKERS.items()}
    return nets[model], data[0], likelihood, [exactly(*part) for part in data[1:]]


def translating_without_state(model: str) -> Task:
    """N→M with the same weights at every place, as many as the RNN's; phones are read back."""
    _, *rest = translating("RNN")
    letters, phones, _ = _spoken()
    return Stateless(READ, letters, WRITTEN - 1, phones, 98, back=2), *rest
