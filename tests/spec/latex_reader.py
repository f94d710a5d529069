"""Reads the LaTeX of a gate's equations back into Python, by the rules of a reader of formulas.

Imports nothing of gatelib: it knows TeX's own grammar, and what the signs of the book mean.
A product ends a fraction bar's reach nowhere but at its braces; `⊙`, a thin space and `·` multiply;
a superscript binds tightest; brackets are brackets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

TOKEN = re.compile(
    r"\s+|\\left|\\right|\\!|\\[A-Za-z]+|\\,|\d+\.\d+|\d+|[A-Za-z\u0370-\u03ff]+|[-+^_{}(),&]|\\\\|\S"
)
MULTIPLY = (r"\odot", r"\,", r"\cdot")


class LatexReader:
    """One right-hand side; `names` are {LaTeX of a name: Python name}, `functions` likewise."""

    def __init__(self, text: str, names: Mapping[str, str], functions: Mapping[str, str]) -> None:
        self.text, self.at = text.replace(r"\!", "").replace(r"\left", "").replace(r"\right", ""), 0
        self.names = sorted(((self._bare(k), v) for k, v in names.items()), key=self._longest)
        self.functions = sorted(
            ((self._bare(k), v) for k, v in functions.items()), key=self._longest
        )

    @staticmethod
    def _bare(tex: str) -> str:
        return tex.replace(r"\!", "")

    @staticmethod
    def _longest(pair: tuple[str, str]) -> int:
        return -len(pair[0])

    def read(self) -> str:
        """The whole text as a Python expression, fully bracketed."""
        found = self._sum()
        self._space()
        if self.at != len(self.text):
            raise ValueError(f"left over: {self.text[self.at :]!r} of {self.text!r}")
        return found

    def _space(self) -> None:
        while self.text[self.at : self.at + 1] == " ":
            self.at += 1

    def _take(self, *wanted: str) -> str | None:
        self._space()
        for word in wanted:
            if self.text.startswith(word, self.at):
                self.at += len(word)
                return word
        return None

    def _need(self, word: str) -> None:
        if self._take(word) is None:
            raise ValueError(f"expected {word!r} at {self.text[self.at :]!r} of {self.text!r}")

    def _sum(self) -> str:
        found = self._signed()
        while sign := self._take("+", "-"):
            found = f"({found} {sign} {self._product()})"
        return found

    def _signed(self) -> str:
        return f"(-{self._product()})" if self._take("-") else self._product()

    def _product(self) -> str:
        found = self._power()
        while self._take(*MULTIPLY):
            found = f"({found} * {self._power()})"
        return found

    def _power(self) -> str:
        base = self._atom()
        while self._take("^"):
            self._need("{")
            base = f"(({base}) ** ({self._sum()}))"
            self._need("}")
        return base

    def _braced(self) -> str:
        self._need("{")
        found = self._sum()
        self._need("}")
        return found

    def _atom(self) -> str:
        self._space()
        for tex, name in self.names:
            if self.text.startswith(tex, self.at):
                self.at += len(tex)
                return name
        for tex, name in self.functions:
            if self.text.startswith(tex + "(", self.at):
                self.at += len(tex) + 1
                arguments = [self._sum()]
                while self._take(","):
                    arguments.append(self._sum())
                self._need(")")
                return f"{name}({', '.join(arguments)})"
        if self._take(r"\frac", r"\tfrac"):
            return f"(({self._braced()}) / ({self._braced()}))"
        if self._take(r"\sqrt"):
            return f"sqrt({self._braced()})"
        if self._take("("):
            found = self._sum()
            self._need(")")
            return f"({found})"
        if number := re.compile(r"\d+(\.\d+)?").match(self.text, self.at):
            self.at = number.end()
            return number[0]
        raise ValueError(f"can't read {self.text[self.at :]!r} of {self.text!r}")


def equations(block: str) -> list[tuple[str, str]]:
    """The two sides of each line of an `aligned` block."""
    body = block.removeprefix("\\begin{aligned}\n").removesuffix("\n\\end{aligned}")
    return [tuple(line.split(" &= ", 1)) for line in body.split(" \\\\\n")]  # type: ignore[misc]
