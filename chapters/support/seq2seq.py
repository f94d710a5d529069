"""What chapter 9 runs: tasks of pairs, batches, the searches' scores, a copier, and baselines.

Imports NumPy, torch, gatelib.data, gatelib.lab and gatelib.nn.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.data import Dataset, Vocabulary
from gatelib.lab import train
from gatelib.nn import GRU, Decoder, DotAttention, Encoder, PointerGenerator, Seq2Seq, copy_mixture

Read = Callable[[str], Sequence[str]]
Pair = tuple[Any, Any]


class Task(NamedTuple):
    """Pairs as ids, x (N, S) and y (N, T) with the end, and their vocabularies."""

    source: Vocabulary
    target: Vocabulary
    train: Pair
    valid: Pair
    test: Pair


def encoded(data: Dataset, read: Read = list, write: Read = list, valid: int = 500) -> Task:
    """Texts as a task; the last `valid` training pairs are set apart to choose on."""
    (x, y), test = data.train, data.test
    parts = (x[:-valid], y[:-valid]), (x[-valid:], y[-valid:]), tuple(test)
    source = Vocabulary.fit(map(read, parts[0][0]))
    target = Vocabulary.fit(map(write, parts[0][1]))

    def ids(part: Pair) -> Pair:
        answers = target.encode(map(write, part[1]), ends=True)[0][:, 1:]
        return source.encode(map(read, part[0]))[0], answers

    return Task(source, target, *map(ids, parts))


Change = Callable[[Any, np.random.Generator], Any]


def batches(pairs: Pair, size: int, change: Change | None = None) -> Any:
    """Batches of sources of about equal length; `change` may put noise into them.

    A recurrent layer takes one step after the other, so a batch costs as much as its longest
    source: batches are cut from eight batches' worth of pairs, sorted by length.
    """
    (x, y), waiting = pairs, []
    lengths = (x != 0).sum(1)

    def batch(step: int, generator: np.random.Generator) -> tuple[Any, Any]:
        if step % 8 == 0:
            rows = generator.choice(len(x), 8 * size, replace=False)
            rows = rows[np.argsort(lengths[rows], kind="stable")].reshape(8, size)
            waiting[:] = rows[generator.permutation(8)]
        rows = waiting[step % 8]
        source = x[rows] if change is None else change(x[rows], generator)
        return np.concatenate([source, y[rows]], 1), y[rows]

    return batch


class Taught(nn.Module):
    """A model whose input is a source and, beside it, its teacher's target."""

    def __init__(self, model: nn.Module, longest: int) -> None:
        super().__init__()
        self.model, self.longest = model, longest

    def forward(self, both: Tensor) -> Tensor:
        source, target = both[:, : -self.longest], both[:, -self.longest :]
        lengths = (source != 0).sum(1)
        answers: Tensor = self.model(source[:, : int(lengths.max())], lengths, target)
        return answers


def loss(logits: Tensor, target: Tensor) -> Tensor:
    """Nats a token; padding is left out."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=0)


def adam(parameters: Iterable[Any], lr: float) -> torch.optim.Optimizer:
    """The same updates as torch's plain Adam, in one call."""
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def fit(model: nn.Module, task: Task, lr: float, seed: int, steps: int, **more: Any) -> Any:
    """Train with a teacher; the History."""
    size, change = more.pop("size", 64), more.pop("change", None)
    taught = more.pop("taught", Taught)(model, task.train[1].shape[1])
    options = {"loss": loss, "clip": 1.0, "optimizer": adam} | more
    data = batches(task.train, size, change)
    return train(taught, data, steps=steps, lr=lr, seed=seed, **options)


def tensors(pairs: Pair) -> tuple[Tensor, Tensor, Tensor]:
    """Sources, their lengths and targets."""
    x, y = map(torch.as_tensor, pairs)
    return x, (x != 0).sum(1), y


def right(model: Seq2Seq, pairs: Pair, **beam: Any) -> Any:
    """Which answers are right to the last token (N,), the net reading what it wrote itself."""
    x, n, y = tensors(pairs)
    longest = y.shape[1]
    found = model.beam(x, n, max_length=longest, **beam)[0][:, 0] if beam else None
    found = model.greedy(x, n, longest) if found is None else found
    return (found == y).all(1).numpy()


# ---- dates: noise, and rules that read them without a net ---------------------------------------


def noise_for(task: Task) -> Change:
    """A function that replaces characters but digits, each with probability p (or up to 0.3)."""
    may = np.array([not token.isdigit() for token in task.source.tokens])
    may[:4] = False

    def change(x: Any, generator: np.random.Generator, p: float | None = None) -> Any:
        share = generator.uniform(0, 0.3) if p is None else p
        hit = may[x] & (generator.random(x.shape) < share)
        return np.where(hit, generator.choice(np.flatnonzero(may), x.shape), x)

    return change


def trigrams(text: str) -> list[str]:
    """Three characters in a row, numbers as one sign."""
    bare = re.sub(r"\d+", "#", f" {text} ".lower())
    return [bare[i : i + 3] for i in range(len(bare) - 2)]


def count_months(texts: Iterable[str], answers: Iterable[str]) -> dict[str, Any]:
    """How often each trigram stands in a date of each month."""
    counts: dict[str, Any] = defaultdict(lambda: np.full(12, 0.1))
    for text, answer in zip(texts, answers, strict=True):
        if len(re.findall(r"\d+", text)) == 2:
            for gram in trigrams(text):
                counts[gram][int(answer[5:7]) - 1] += 1
    return counts


def by_rules(text: str, counts: dict[str, Any]) -> str:
    """A date by its digit groups, and the votes of its trigrams where no number is the month."""
    numbers = re.findall(r"\d+", text)
    year = next((n for n in numbers if len(n) == 4), "")
    rest = [n.zfill(2) for n in numbers if n != year]
    if len(rest) == 1:
        known = [counts[g] for g in trigrams(text) if g in counts]
        votes = sum((np.log(c / c.sum()) for c in known), np.zeros(12))
        rest = [rest[0], f"{int(np.argmax(votes)) + 1:02}"]
    return "-".join([year, *(rest if numbers[0] == year else rest[::-1])])


# ---- letters to phones: the net that speaks, and tables of letters ------------------------------


class Speaker(Seq2Seq):
    """A Seq2Seq whose training may replace tokens that the teacher would feed.

    feed: "teacher", "own" (what the net itself would say there) or "random"; share: how many.
    """

    feed, share = "teacher", 0.25

    def forward(self, source: Tensor, lengths: Tensor | None, target: Tensor) -> Tensor:
        """As Seq2Seq; outside training the teacher feeds all."""
        memory, state = self.encoder(source, lengths)
        first = target.new_full((len(target), 1), self.start)
        fed = torch.cat([first, target[:, :-1]], 1)
        if self.training and self.feed != "teacher":
            fed = self._replaced(fed, state, memory, lengths)
        logits: Tensor = self.decoder(fed, state, memory, lengths)[0]
        return logits

    def _replaced(self, fed: Tensor, state: Any, memory: Tensor, lengths: Any) -> Tensor:
        if self.feed == "own":
            with torch.no_grad():
                logits = self.decoder(fed, state, memory, lengths)[0]
            other = torch.cat([fed[:, :1], logits[:, :-1, 3:].argmax(-1) + 3], 1)
        else:
            other = torch.randint_like(fed, 4, self.decoder.embedding.num_embeddings)
        chosen = (torch.rand(fed.shape) < self.share) & (fed > 3)
        return torch.where(chosen, other, fed)


@torch.no_grad()
def run_on(model: Seq2Seq, pairs: Pair, first: Tensor) -> list[list[int]]:
    """What the net says after a first token (N,) that it is given, reading what it says itself."""
    x, n, y = tensors(pairs)
    memory, state = model.encoder(x, n)
    token = torch.full((len(x), 1), model.start)
    state = model.decoder(token, state, memory, n)[2]
    token, said = first[:, None], []
    for _step in range(y.shape[1]):
        logits, _, state = model.decoder(token, state, memory, n)
        token = logits[:, -1, 3:].argmax(-1, keepdim=True) + 3
        said.append(token)
    return [until_end(row, model.end) for row in torch.cat(said, 1).tolist()]


def until_end(row: list[int], end: int) -> list[int]:
    """The tokens before the end."""
    return row[: row.index(end)] if end in row else row


def distance(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many insertions, deletions and replacements make one of the other."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


def error_rate(found: Sequence[Sequence[Any]], true: Sequence[Sequence[Any]]) -> float:
    """Edits for each true token."""
    wrong = sum(map(distance, found, true))
    return wrong / sum(map(len, true))


def align(letters: str, phones: Sequence[str], cost: Any) -> tuple[str, ...]:
    """The cheapest way, from left to right, to give each letter one phone or none ("")."""
    best: dict[int, tuple[float, tuple[str, ...]]] = {0: (0.0, ())}
    for letter in letters:
        after: dict[int, tuple[float, tuple[str, ...]]] = {}
        for said, (spent, path) in best.items():
            for more, phone in ((0, ""), (1, phones[said] if said < len(phones) else None)):
                if phone is not None:
                    tried = spent + cost[letter].get(phone, 9.0), (*path, phone)
                    old = after.get(said + more)
                    after[said + more] = tried if old is None else min(old, tried)
        best = after
    return best[len(phones)][1]


def aligned(pairs: Sequence[tuple[str, list[str]]], rounds: int = 3) -> list[Any]:
    """Pairs of letters and phones, letter by letter; each round counts anew and aligns anew."""
    counts: Any = defaultdict(Counter)
    for letters, phones in pairs:
        for place, letter in enumerate(letters):
            counts[letter][phones[place * len(phones) // len(letters)]] += 1
            counts[letter][""] += 0.3
    paths: list[Any] = []
    for _round in range(rounds):
        cost = {
            letter: {p: -np.log(n / seen.total()) for p, n in seen.items()}
            for letter, seen in counts.items()
        }
        paths = [align(*pair, cost) for pair in pairs]
        counts = defaultdict(Counter)
        for (letters, _), path in zip(pairs, paths, strict=True):
            for letter, phone in zip(letters, path, strict=True):
                counts[letter][phone] += 1
    return [(letters, path) for (letters, _), path in zip(pairs, paths, strict=True)]


def windows(word: str, reach: int) -> list[str]:
    """Each letter with `reach` neighbours on both sides."""
    padded = "#" * reach + word + "#" * reach
    return [padded[i : i + 2 * reach + 1] for i in range(len(word))]


def speller(pairs: Iterable[Any], reach: int) -> Callable[[str], list[str]]:
    """A function that says each letter as it was said between the most neighbours known."""
    tables: list[Any] = [defaultdict(Counter) for _ in range(reach + 1)]
    for word, path in pairs:
        for size, counts in enumerate(tables):
            for seen, phone in zip(windows(word, size), path, strict=True):
                counts[seen][phone] += 1

    def say(word: str) -> list[str]:
        found = [""] * len(word)
        for size, counts in enumerate(tables):
            for place, seen in enumerate(windows(word, size)):
                if seen in counts:
                    found[place] = counts[seen].most_common(1)[0][0]
        return [phone for phone in found if phone]

    return say


# ---- dates as words: a year is one word, and not every year is known ----------------------------


class Words(NamedTuple):
    """Dates as words: x (N, S), y (N, 4); a year outside the vocabulary is the word `size`."""

    size: int
    tokens: tuple[str, ...]
    train: Pair
    valid: Pair
    tests: dict[str, Pair]


def split_words(text: str) -> list[str]:
    """Numbers, words and signs."""
    return re.findall(r"\d+|[^\W\d]+|[^\w\s]", text.lower())


def date_words(data: Dataset, groups: dict[str, set[str]], vocabulary: set[str]) -> Words:
    """Dates of three groups of years, known, rare and new; the new ones are for the test alone."""
    years = set().union(*groups.values())

    def some(part: Any, *names: str) -> Pair:
        chosen = np.isin([y[:4] for y in part.y], sorted(set().union(*(groups[n] for n in names))))
        return part.x[chosen], part.y[chosen]

    x, y = some(data.train, "known", "rare")
    told = [*map(split_words, x[:-500]), *(answer.split("-") for answer in y[:-500])]
    kept = [[w for w in text if w not in years or w in vocabulary] for text in told]
    known = Vocabulary.fit(kept)
    every = Vocabulary([*known.tokens[4:], *sorted(years - set(known.tokens))])

    def ids(pair: Pair) -> Pair:
        source = every.encode(map(split_words, pair[0]))[0]
        answer = every.encode([a.split("-") for a in pair[1]], ends=True)[0][:, 1:]
        return np.minimum(source, len(known)), np.minimum(answer, len(known))

    tests = {name: ids(some(data.test, name)) for name in groups}
    parts = ids((x[:-500], y[:-500])), ids((x[-500:], y[-500:]))
    return Words(len(known), (*known.tokens, "?"), *parts, tests)


class Copier(nn.Module):
    """Reads words, writes or copies words; the word `size` is one that only the source has.

    switch: "seen" (p from context, state and input), "constant" (p learned), a number (the
    preactivation of p, held), or "write" (no copying: `size` is the vocabulary's unknown word).
    """

    def __init__(self, size: int, switch: str | float, hidden: int = 32) -> None:
        super().__init__()
        self.size, self.how = size, switch
        reads, writes = (GRU(16, hidden, batch_first=True) for _ in range(2))
        self.encoder = Encoder(size + 1, 16, reads)
        attention = DotAttention(hidden, hidden, "scaled")
        self.decoder = Decoder(size + 1, 16, writes, attention)
        if switch == "seen":
            self.point = PointerGenerator(hidden, hidden, 16)
        if switch == "constant":
            self.a = nn.Parameter(torch.zeros(()))

    def step(self, fed: Tensor, state: Any, memory: Tensor, source: Tensor, n: Any) -> Any:
        """Log-probabilities (B, T, size + 1), the switch, the attention, the state."""
        y, context, weights, state = self.decoder.look(fed, state, memory, n)
        logits = self.decoder.say(y, context)
        if self.how == "write":
            return logits.log_softmax(-1), None, weights, state
        logits = logits[..., : self.size]
        if self.how == "seen":
            told = self.decoder.embedding(fed)
            answers, p = self.point(logits, weights, source, context, y, told, 1, n)
            return answers, p, weights, state
        a = self.a if self.how == "constant" else torch.tensor(float(self.how))
        a = a.expand(fed.shape)
        answers = copy_mixture(logits, weights, source, a, 1, n)
        return answers, torch.sigmoid(a), weights, state

    def forced(self, source: Tensor, lengths: Tensor, target: Tensor) -> Any:
        """What `step` gives when the teacher feeds."""
        memory, state = self.encoder(source, lengths)
        fed = torch.cat([torch.full_like(target[:, :1], 2), target[:, :-1]], 1)
        return self.step(fed, state, memory, source, lengths)

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Log-probabilities (B, T, size + 1)."""
        answers: Tensor = self.forced(source, lengths, target)[0]
        return answers

    @torch.no_grad()
    def greedy(self, source: Tensor, lengths: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """The answers (B, steps), and beside them the word that was attended most each time."""
        memory, state = self.encoder(source, lengths)
        token, said, seen = torch.full_like(source[:, :1], 2), [], []
        for _step in range(steps):
            answers, _, weights, state = self.step(token, state, memory, source, lengths)
            token = answers[:, -1, 3:].argmax(-1, keepdim=True) + 3
            said.append(token)
            seen.append(source.gather(1, weights[:, -1].argmax(-1, keepdim=True)))
        return torch.cat(said, 1), torch.cat(seen, 1)


def word_loss(answers: Tensor, target: Tensor) -> Tensor:
    """Nats a word; a target that can't be said at all is left out, as padding is."""
    nats = -answers.gather(-1, target[..., None])[..., 0]
    told = torch.isfinite(nats) & (target != 0)
    return nats.masked_fill(~told, 0.0).sum() / told.sum()


def exact_words(model: Copier, pairs: Pair, replace: bool = False) -> float:
    """The share of dates right to the end.

    A net that only writes says "unknown" for a word outside the vocabulary, which is not right;
    `replace` puts the word there that it attended most.
    """
    x, n, y = tensors(pairs)
    said, seen = model.greedy(x, n, y.shape[1])
    if model.how == "write":
        said = torch.where(said == model.size, seen if replace else -1, said)
    return (said == y).all(1).double().mean().item()
