"""Where Chinese words begin and end: 4,349 graded sentences, from the file of hsk-sentences-audio.

Imports NumPy and reads the JSON of hsk-sentences-audio 1.0.0.
Must not import torch, SymPy or any other floor of gatelib.

x is an array (N,) of str, a sentence of 3 to 18 characters; y is an array (N,) of int64 arrays, a
tag for each character: 0 begins a word (B), 1 is in its middle (M), 2 ends it (E), 3 is a word of
its own (S). The file lists the words without punctuation; a punctuation mark is tagged S.
Five of the 4,354 sentences repeat another; the first is kept, so no sentence is in both splits.
Of the words 61 % have one character, 37 % two, none more than four.

Licence of the sentences: CC BY-SA 4.0, by the hsk-sentences-audio contributors. They are read where
they are installed and are no part of gatelib; whoever shows them names them and shares alike.
Source of tagging by position: N. Xue, 2003, "Chinese word segmentation as character tagging",
Computational Linguistics and Chinese Language Processing 8(1).
"""

import json
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gatelib.data._package import read_checked
from gatelib.data._split import Dataset, objects, shuffle_split

SHA256 = "8f8ffd34eee29f395724ce060cad22511eeeabb7af731d5b5879dc0548e01660"
TAGS = "BMES"
BEGIN, MIDDLE, END, SINGLE = range(4)

Tags = NDArray[np.int64]


def _records() -> list[dict[str, Any]]:
    """Return what the file says of each sentence, in its order."""
    content = read_checked(
        "hsk_sentences_audio", "hsk-sentences-audio==1.0.0", "data/sentences.json", SHA256
    )
    found: list[dict[str, Any]] = json.loads(content)
    return found


@cache
def _table() -> dict[str, tuple[int, ...]]:
    """Return sentence → tags, in the order of the file."""
    found: dict[str, tuple[int, ...]] = {}
    for record in _records():
        words = [token["word"] for token in record["tokens"]]
        tags = to_tags(_with_punctuation(record["chinese"], words))
        found.setdefault(record["chinese"], tuple(tags.tolist()))
    return found


def _with_punctuation(sentence: str, words: Iterable[str]) -> list[str]:
    """Return the words and, one by one, the characters between them."""
    parts: list[str] = []
    at = 0
    for word in words:
        start = sentence.index(word, at)
        parts += [*sentence[at:start], word]
        at = start + len(word)
    return [*parts, *sentence[at:]]


def sentences(train_size: int = 3_500, test_size: int | None = None, seed: int = 0) -> Dataset:
    """Return sentences and their tags: x (N,) str, y (N,) int64 arrays, len(x[i]) == len(y[i]).

    ``test_size=None`` tests on all that do not train. ``pad(split.y, value=-100)`` makes (N, T).
    """
    x = objects(_table())
    y = objects(np.array(tags, np.int64) for tags in _table().values())
    return shuffle_split(x, y, train_size, seed, test_size)


def pinyin(train_size: int = 3_500, test_size: int | None = None, seed: int = 0) -> Dataset:
    """Return sentences and how they are read: x (N,) str as in ``sentences``, y (N,) str in pinyin.

    The same split as that of ``sentences``. The pinyin is in lower case or not as in the file, its
    syllables apart by spaces, with marks for tones: ``lǎo shī nín hǎo``, without punctuation.
    """
    found: dict[str, str] = {}
    for record in _records():
        found.setdefault(record["chinese"], record["pinyin"])
    return shuffle_split(objects(found), objects(found.values()), train_size, seed, test_size)


def to_tags(words: Iterable[str]) -> Tags:
    """Return the tags (T,) int64 of the characters of ``words``: B M … M E, or S alone.

    Raises:
        ValueError: a word is empty.
    """
    tags: list[int] = []
    for word in words:
        if not word:
            raise ValueError("words: expected words of one character or more, got ''")
        inner = [MIDDLE] * (len(word) - 2)
        tags += [SINGLE] if len(word) == 1 else [BEGIN, *inner, END]
    return np.array(tags, np.int64)


def to_words(chars: Sequence[str], tags: ArrayLike) -> list[str]:
    """Return the words of the characters ``chars`` (T) under ``tags`` (T,).

    A word begins at B and S, and after E and S. So any tags are read, those of an untrained model
    too: B B is two words of one character each, and a first M begins a word.

    Raises:
        TypeError: the tags are not whole numbers.
        ValueError: there is not one tag from 0 to 3 for each character.
    """
    found = np.asarray(tags)
    if len(found) and not np.issubdtype(found.dtype, np.integer):
        raise TypeError(f"tags: expected whole numbers, got dtype {found.dtype}")
    if found.shape != (len(chars),):
        raise ValueError(f"tags: expected shape ({len(chars)},), got {found.shape}")
    if not np.isin(found, range(len(TAGS))).all():
        raise ValueError(f"tags: expected 0 to {len(TAGS) - 1}, got {found.tolist()}")
    begins = np.isin(found, (BEGIN, SINGLE))
    begins[1:] |= np.isin(found[:-1], (END, SINGLE))
    begins[:1] = True
    bounds = [*np.flatnonzero(begins).tolist(), len(chars)]
    return ["".join(chars[a:b]) for a, b in pairwise(bounds)]
