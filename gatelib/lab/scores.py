"""Scores that are more than the share of right answers.

Imports NumPy, gatelib.data.
Must not be imported by any floor.
"""

from collections.abc import Sequence
from itertools import accumulate

from numpy.typing import ArrayLike

from gatelib.data.segmentation import to_words


def word_f1(
    texts: Sequence[str], predicted: Sequence[ArrayLike], true: Sequence[ArrayLike]
) -> float:
    """Return the F1 of words over all texts: 2·right / (words predicted + words there are), 0 to 1.

    A word is right if both its ends are. Words without a letter, character or digit are not
    counted, since a punctuation mark is too easy a word; one glued to a character is an error.

    Args:
        texts: N texts.
        predicted: N arrays of BMES tags, one tag for each character of the text.
        true: the same, right.

    Raises:
        ValueError: there are not N of each, a tag is missing, or there is no word at all.
    """
    for name, tags in (("predicted", predicted), ("true", true)):
        if len(tags) != len(texts):
            raise ValueError(f"{name}: expected {len(texts)} arrays of tags, got {len(tags)}")
    right = count = 0
    for text, guess, answer in zip(texts, predicted, true, strict=True):
        guessed, words = _spans(text, guess), _spans(text, answer)
        right += len(guessed & words)
        count += len(guessed) + len(words)
    if not count:
        raise ValueError("texts: expected at least one word, got none")
    return 2 * right / count


def _spans(text: str, tags: ArrayLike) -> set[tuple[int, int]]:
    """Return start and end of every word that holds more than punctuation."""
    words = to_words(text, tags)
    ends = accumulate(map(len, words))
    spans = zip(words, ends, strict=True)
    return {(end - len(word), end) for word, end in spans if any(map(str.isalnum, word))}
