"""Text to numbers: split reviews into words, give each token an id, pad rows to one length.

Imports the standard library and NumPy.
Must not import torch, SymPy or any other floor of gatelib.

scikit-learn's ``CountVectorizer`` learns a vocabulary but gives counts, not sequences; the
tokenizers that give sequences bring far more than the book needs. So this is the smallest one.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gatelib.data._split import check_count

PAD, UNKNOWN, START, END = range(4)
RESERVED = ("<pad>", "<unk>", "<s>", "</s>")

Tokens = Sequence[str]
Padded = tuple[NDArray[np.int64], NDArray[np.int64]]

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def words(text: str) -> list[str]:
    """Return the words of ``text`` in lower case: letters and digits, apostrophes only inside.

    ``<br />`` and punctuation separate words: ``words("Don't<br />go.")`` is ``["don't", "go"]``.
    Scripts that write no spaces come out as one word; split those with ``list(text)``.
    """
    return _WORD.findall(text.replace("<br />", " ").lower())


def pad(rows: Iterable[Sequence[int]], length: int | None = None, value: int = PAD) -> Padded:
    """Return ids (N, T) int64, filled with ``value`` at the end, and lengths (N,) int64.

    T is ``length``, or the longest row if it is None; what a row has beyond T is cut off, and its
    length is then T. An empty row has length 0.
    """
    if length is not None:
        check_count("length", length, 1)
    kept = [row[:length] for row in rows]
    lengths = np.fromiter(map(len, kept), np.int64, len(kept))
    width = int(lengths.max(initial=0)) if length is None else length
    ids = np.full((len(kept), width), value, np.int64)
    flat = np.fromiter(chain.from_iterable(kept), np.int64, int(lengths.sum()))
    ids[np.arange(width) < lengths[:, None]] = flat
    return ids, lengths


class _Ids(dict[str, int]):
    """Token → id, where a token that was never seen is UNKNOWN."""

    def __missing__(self, token: object) -> int:
        if not isinstance(token, str):
            raise TypeError(f"sequences: expected tokens of type str, got {token!r}")
        return UNKNOWN


def _checked(sequences: Iterable[Tokens]) -> Iterator[Tokens]:
    """Yield the sequences; raise at one that is a string, which would be taken by its letters."""
    for row, tokens in enumerate(sequences):
        if isinstance(tokens, str):
            raise TypeError(
                f"sequences: expected lists of tokens, got a string in row {row}; "
                "split it with words(), .split() or list()"
            )
        yield tokens


class Vocabulary:
    """Tokens and their ids: 0 pads, 1 is unknown, 2 starts, 3 ends, the others are the tokens.

    ``Vocabulary.fit`` collects the tokens. ``len(vocabulary)`` counts all ids, so it is the number
    of rows of an embedding; ``vocabulary.tokens[id]`` is a token, ``token in vocabulary`` asks
    whether one is known.

    Args:
        tokens: the different tokens, in the order of their ids, without the four reserved ones.

    Raises:
        TypeError: a token is not a string, or ``tokens`` is one.
        ValueError: a token occurs twice or is one of ``RESERVED``; there is none.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        if isinstance(tokens, str):
            raise TypeError(f"tokens: expected a list of tokens, got the string {tokens!r}")
        self.tokens: tuple[str, ...] = (*RESERVED, *tokens)
        counts = Counter(self.tokens)
        for token, count in counts.items():
            if not isinstance(token, str):
                raise TypeError(f"tokens: expected strings, got {token!r}")
            if count > 1:
                raise ValueError(f"tokens: expected each once and none reserved, got {token!r}")
        if len(counts) == len(RESERVED):
            raise ValueError("tokens: expected at least one, got none")
        self._ids = _Ids({t: i for i, t in enumerate(self.tokens) if i >= len(RESERVED)})

    @classmethod
    def fit(
        cls, sequences: Iterable[Tokens], size: int | None = None, minimum: int = 1
    ) -> "Vocabulary":
        """Collect the tokens of ``sequences`` that occur ``minimum`` times or more.

        The most frequent come first, and tokens of one count in the order of their text, so the
        ids do not depend on the order of the sequences. Fit on the training split alone.

        Args:
            sequences: lists (or tuples, arrays) of string tokens.
            size: the largest number of ids, the four reserved ones included; None keeps all.

        Raises:
            TypeError: a sequence is a string, or a token is not one.
            ValueError: no token is left.
        """
        check_count("minimum", minimum, 1)
        if size is not None:
            check_count("size", size, len(RESERVED) + 1)
        counts: Counter[str] = Counter()
        for tokens in _checked(sequences):
            counts.update(tokens)
        if not all(isinstance(token, str) for token in counts):
            raise TypeError("sequences: expected tokens of type str")
        often = [token for token, count in counts.items() if count >= minimum]
        if not often:
            raise ValueError(f"sequences: expected a token that occurs {minimum} times, got none")
        often.sort(key=lambda token: (-counts[token], token))
        return cls(often[: None if size is None else size - len(RESERVED)])

    def encode(
        self, sequences: Iterable[Tokens], length: int | None = None, ends: bool = False
    ) -> Padded:
        """Return ids (N, T) int64 and lengths (N,) int64; tokens that are not known become 1.

        Args:
            sequences: N lists of tokens; an empty one has length 0.
            length: T; longer sequences lose their end. None: as long as the longest.
            ends: put START before and END after each sequence, inside T. A decoder reads
                ``ids[:, :-1]`` and answers ``ids[:, 1:]``.
        """
        find = self._ids.__getitem__
        rows = [list(map(find, tokens)) for tokens in _checked(sequences)]
        if ends:
            if length is not None:
                check_count("length", length, 2)
                rows = [row[: length - 2] for row in rows]
            rows = [[START, *row, END] for row in rows]
        return pad(rows, length)

    def decode(self, ids: ArrayLike) -> list[list[str]]:
        """Return the tokens of ids (N, T): up to the first END, without PAD and START.

        Raises:
            TypeError: ``ids`` are not whole numbers.
            ValueError: they are not (N, T), or one is no id of this vocabulary.
        """
        found = np.asarray(ids)
        if not np.issubdtype(found.dtype, np.integer):
            raise TypeError(f"ids: expected whole numbers, got dtype {found.dtype}")
        if found.ndim != 2:
            raise ValueError(f"ids: expected shape (N, T), got {found.shape}")
        wrong = found[(found < 0) | (found >= len(self))]
        if wrong.size:
            raise ValueError(f"ids: expected 0 to {len(self) - 1}, got {wrong[0]}")
        return [self._said(row) for row in found.tolist()]

    def _said(self, row: list[int]) -> list[str]:
        until = row.index(END) if END in row else len(row)
        return [self.tokens[i] for i in row[:until] if i not in (PAD, START)]

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} ids: {' '.join(self.tokens[:8])} …)"
