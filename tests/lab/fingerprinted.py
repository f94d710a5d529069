"""Prints the fingerprint of many kinds of code and data; NumPy and torch aren't needed.

The one argument is the folder in which gatelib lies: its modules are loaded without its packages.
"""
# ruff: noqa: E402, F841

import sys
import types

lab = types.ModuleType("gatelib.lab")
lab.__path__ = [sys.argv[1] + "/gatelib/lab"]
pkg = types.ModuleType("gatelib")
pkg.__path__ = [sys.argv[1] + "/gatelib"]
sys.modules["gatelib"], sys.modules["gatelib.lab"] = pkg, lab
import contextlib
import dataclasses
import enum
import functools
import itertools
import math
import operator
import random
import re
import typing
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Mapping
from copy import deepcopy
from fractions import Fraction
from pathlib import Path

from gatelib.lab.fingerprint import fingerprint


class Kind(enum.Enum):
    A = 1
    B = "two"


class Flag(enum.Flag):
    X = enum.auto()
    Y = enum.auto()


@dataclasses.dataclass(frozen=True, order=True)
class Point:
    x: int
    y: float = 2.0
    z: list = dataclasses.field(default_factory=list)
    N: typing.ClassVar[int] = 3

    def norm(self):
        return math.hypot(self.x, self.y)


@dataclasses.dataclass(slots=True, kw_only=True)
class Slotted:
    a: int = 1

    def up(self):
        return dataclasses.replace(self, a=self.a + 1)


class Pair(typing.NamedTuple):
    one: int
    two: int = 5


Old = namedtuple("Old", "p q", defaults=(4,))


class Base:
    rate = 0.1

    def __init__(self, n):
        self.n = n
        self.__private = n

    @property
    def twice(self):
        return 2 * self.n

    @twice.setter
    def twice(self, v):
        self.n = v / 2

    @classmethod
    def make(cls):
        return cls(3)

    @staticmethod
    def add(a, /, b, *c, d=1, **e):
        return a + b + sum(c) + d

    @functools.cached_property
    def slow(self):
        return [i * self.n for i in range(3) if i]


class Child(Base):
    def __init__(self):
        super().__init__(4)

    def __repr__(self):
        return f"{self.n!r:>{self.rate}} {{x}} {self.n=}tail{1}"


def log(f):
    @functools.wraps(f)
    def inner(*args, **kwargs):
        return f(*args, **kwargs)

    return inner


@log
def wrapped(x):
    return x + 1


@functools.cache
def cached(n):
    return n if n < 2 else cached(n - 1) + cached(n - 2)


@contextlib.contextmanager
def opened():
    try:
        yield 1
    finally:
        pass


TABLE = {"a": [1, 2.5, 1j, None, True, b"x", "\U0001fae8é"], 2: {3, 4}, "f": frozenset({"u", "v"})}
PARTIAL = functools.partial(operator.add, 3)
PATTERN = re.compile("a+")
THINGS = [
    Point(1),
    Slotted(),
    Pair(1),
    Old(2),
    Child(),
    Kind.B,
    Flag.X | Flag.Y,
    Fraction(1, 3),
    deque([1]),
    OrderedDict(a=1),
    defaultdict(list),
    range(3),
    10**5000,
    -0.0,
]
square, cube = lambda x: x * x, lambda x: x**3
RNG = random.Random(3)


def matched(cell):
    rest, total = [], 0
    match cell:
        case {"a": [first, *rest], **others}:
            total = first
        case Point(x=0) | Pair(one=1):
            total = 1
        case str() as name if name:
            total = len(name)
        case _:
            pass
    return rest, total


def run(cell, lr=0.1, *, seed: int = 0):
    "doc"
    import json as js

    total: int = 0
    rest, total = matched(cell)
    global COUNT

    def step(x):
        nonlocal total
        total += x
        return [y for row in TABLE for y in str(row) if (z := y)]

    try:
        with opened() as h, contextlib.suppress(ValueError):
            del h, js
    except* KeyError as e:
        print(e)

    for i, (a, b) in enumerate(itertools.pairwise(range(5))):
        total = total if i else -a @ b
    else:
        total //= 2
    return step, lambda *a, k=total: (a, k), {**TABLE}, [*rest], cell[1:2, ...]


async def later(cell):
    async for q in cell:
        await q


def reached(cell):
    return (
        run,
        later,
        wrapped(1),
        cached(2),
        PARTIAL(1),
        PATTERN,
        THINGS,
        square(2) + cube(3),
        RNG,
        Path("a"),
        deepcopy(TABLE),
        isinstance(cell, Mapping),
        sorted(TABLE, key=lambda t: -t),
        functools.reduce(operator.mul, [1]),
        Child.make().slow,
    )


print(fingerprint(run=reached, child=Child, things=THINGS))
