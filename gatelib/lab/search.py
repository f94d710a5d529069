"""Searching for a cell: a table of cells made of parts, random search, regularised evolution.

Imports NumPy, gatelib.spec and gatelib.lab.canonical.
Must not import torch: what a cell is worth is a function that the caller gives.

A `Parts` names one choice for each part of a cell. There are so few that each can be trained once,
and a search then be replayed thousands of times on the table of their scores.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from gatelib.lab.canonical import canonical
from gatelib.spec import Spec

__all__ = [
    "CHOICES",
    "Parts",
    "best",
    "chosen_from",
    "everything",
    "evolve",
    "neighbours",
    "random_search",
]

CHOICES: dict[str, tuple[str, ...]] = {
    "keep": ("none", "all", "gate", "open"),
    "write": ("all", "gate", "rest"),
    "candidate": ("tanh", "relu", "identity"),
    "reset": ("none", "own", "keep", "write"),
    "output": ("state", "tanh", "gate", "both"),
}
"""{part: its choices}; see `Parts`."""


class Parts(NamedTuple):
    """A cell by its parts: c = keep·c_prev + write·g, with a candidate g, and h made of c.

    keep: what stays of the old state: "none" (0), "all" (1), what a "gate" f lets pass, or one that
        starts "open", σ(a + 2).
    write: what enters of the candidate: "all" (1), what a "gate" i lets pass, or the "rest" 1 − f.
    candidate: "tanh", "relu" or "identity" of the preactivation.
    reset: what multiplies U h in the candidate: "none" (1), a gate of its "own", or the gate that
        keeps, or the one that writes.
    output: h is the "state" c, its "tanh", o·c with a "gate" o, or o·tanh(c), which is "both".
    """

    keep: str = "gate"
    write: str = "gate"
    candidate: str = "tanh"
    reset: str = "none"
    output: str = "both"

    def __str__(self) -> str:
        return ", ".join(f"{part} {choice}" for part, choice in self._asdict().items())

    @property
    def problem(self) -> str:
        """Why these parts make no cell, or one that other parts make too; empty where they do."""
        for part, choices in CHOICES.items():
            if getattr(self, part) not in choices:
                return f"{part}: expected one of {choices}, got {getattr(self, part)!r}"
        if self.write == "rest" and self.keep not in ("gate", "open"):
            return "write: the rest of what a gate keeps needs a gate that keeps"
        if self.reset == "keep" and self.keep not in ("gate", "open"):
            return "reset: expected a gate that keeps"
        if self.reset == "write" and self.write == "all":
            return "reset: expected a gate that writes"
        return ""

    @property
    def spec(self) -> Spec:
        """The cell. Raises ValueError where these parts make none."""
        if self.problem:
            raise ValueError(self.problem)
        state = "h" if self.output == "state" else "c"
        text = "\n".join([*self._gates(), *self._state(state), *self._output()])
        inputs = [f"a_{k}" for k in "firgo" if f"a_{k}" in text]
        inputs += [name for name in ("u_g", f"{state}_prev") if name in text]
        outputs = "h c" if "c_prev" in text else "h"
        return Spec.parse("_".join(self), f"{' '.join(inputs)} -> {outputs}", text)

    def _gates(self) -> list[str]:
        start = {"gate": "", "open": " + 2"}
        found = [f"f = sigmoid(a_f{start[self.keep]})"] if self.keep in start else []
        found += ["i = sigmoid(a_i)"] if self.write == "gate" else []
        found += ["i = 1 - f"] if self.write == "rest" else []
        return found + (["r = sigmoid(a_r)"] if self.reset == "own" else [])

    def _state(self, state: str) -> list[str]:
        gate = {"own": "r", "keep": "f", "write": "i"}.get(self.reset)
        new = f"a_g + {gate}*u_g" if gate else "a_g"
        new = new if self.candidate == "identity" else f"{self.candidate}({new})"
        kept = f"{state}_prev + " if self.keep == "all" else f"f*{state}_prev + "
        old = "" if self.keep == "none" else kept
        if not old and self.write == "all":
            return [f"{state} = {new}"]
        return [f"g = {new}", f"{state} = {old}{'g' if self.write == 'all' else 'i*g'}"]

    def _output(self) -> list[str]:
        gate = ["o = sigmoid(a_o)"]
        return {
            "state": [],
            "tanh": ["h = tanh(c)"],
            "gate": [*gate, "h = o*c"],
            "both": [*gate, "m = tanh(c)", "h = o*m"],
        }[self.output]


def chosen_from(allowed: Mapping[str, Collection[str]]) -> dict[str, tuple[str, ...]]:
    """{part: its choices}, fewer where fewer are allowed, in the order of `CHOICES`.

    Raises: ValueError for a part or a choice that there isn't, or a part without a choice.
    """
    for part, choices in allowed.items():
        if part not in CHOICES:
            raise ValueError(f"allowed: expected parts of {sorted(CHOICES)}, got {part!r}")
        if not choices or not set(choices) <= set(CHOICES[part]):
            raise ValueError(f"{part}: expected some of {CHOICES[part]}, got {choices!r}")
    return {
        part: tuple(choice for choice in choices if choice in allowed.get(part, choices))
        for part, choices in CHOICES.items()
    }


def everything(**allowed: Collection[str]) -> list[Parts]:
    """All cells of parts, none twice by `canonical`; the first of each in the order of `CHOICES`.

    Args:
        allowed: the choices of a part, where not all are wanted: candidate=("tanh",).

    Raises: ValueError for a part or a choice that there isn't, or a part without a choice.
    """
    found: dict[str, Parts] = {}
    for parts in map(Parts._make, itertools.product(*chosen_from(allowed).values())):
        if not parts.problem:
            found.setdefault(canonical(parts.spec), parts)
    return list(found.values())


def neighbours(parts: Parts) -> list[Parts]:
    """The cells with another choice for one part; never the same cell written otherwise."""
    changed = (
        parts._replace(**{part: choice}) for part, choices in CHOICES.items() for choice in choices
    )
    own = canonical(parts.spec)
    return [one for one in changed if not one.problem and canonical(one.spec) != own]


# ---- searches --------------------------------------------------------------------------------

Tried = TypeVar("Tried", bound=Hashable)
"""What is searched: `Parts`, or a Spec."""

Draw = Callable[[np.random.Generator], Tried]
Score = Callable[[Tried], float]
Trial = tuple[Tried, float]
"""What was tried, and its score, of which more is better."""


def random_search(
    score: Score[Tried], draw: Draw[Tried], budget: int, seed: int | np.random.Generator
) -> list[Trial[Tried]]:
    """Draw, score, and keep all: the baseline of every search.

    Args:
        score: what one is worth; more is better, and nan counts as the least.
        draw: one at random from a generator; twice the same is scored twice, as a search pays it.
        budget: how many are scored.
        seed: a whole number, or a generator of random numbers, which moves on.

    Returns: (tried, score) in the order tried.
    """
    rng = np.random.default_rng(seed)
    return [_scored(score, draw(rng)) for _ in range(_at_least_one("budget", budget))]


def evolve(
    score: Score[Tried],
    draw: Draw[Tried],
    mutate: Callable[[Tried, np.random.Generator], Tried],
    budget: int,
    seed: int | np.random.Generator,
    *,
    population: int = 20,
    tournament: int = 5,
    ageing: bool = True,
) -> list[Trial[Tried]]:
    """Regularised evolution: the best of a few is changed in one thing, and the oldest dies.

    The population begins with random draws. Then, again and again, `tournament` of it are drawn
    without replacement, and the best of them has one child, which takes the place of the oldest.

    Args:
        score, draw, budget, seed: as for `random_search`; the first draws count too.
        mutate: a child of one, from a generator.
        population, tournament: how many live, and how many compete to be a parent.
        ageing: False lets the worst die instead of the oldest, as a control.

    Returns: (tried, score) in the order tried.

    Raises: ValueError for a size below 1, or a tournament larger than the population.
    Source: Real et al. 2019, arXiv:1802.01548, algorithm 1.
    """
    if _at_least_one("tournament", tournament) > _at_least_one("population", population):
        raise ValueError(f"tournament: expected at most {population}, got {tournament}")
    rng = np.random.default_rng(seed)
    tried = random_search(score, draw, min(population, _at_least_one("budget", budget)), rng)
    living = deque(tried)
    while len(tried) < budget:
        chosen = rng.choice(len(living), min(tournament, len(living)), replace=False)
        parent = best([living[index] for index in chosen])[0]
        tried.append(_scored(score, mutate(parent, rng)))
        living.append(tried[-1])
        if ageing:
            living.popleft()
        else:
            living.remove(min(living, key=_worth))
    return tried


def best(trials: Sequence[Trial[Tried]]) -> Trial[Tried]:
    """The trial with the highest score, the first of them where several have it."""
    return max(trials, key=_worth)


def _worth(trial: Trial[Tried]) -> float:
    return -math.inf if math.isnan(trial[1]) else trial[1]


def _scored(score: Score[Tried], one: Tried) -> Trial[Tried]:
    return one, float(score(one))


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return value
