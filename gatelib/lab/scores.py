"""Scores that are more than the share of right answers.

Imports NumPy, gatelib.data.
Must not be imported by any floor.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gatelib.data.segmentation import to_words

Array = NDArray[np.float64]


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


def average_precision(
    predicted: Sequence[ArrayLike],
    true: Sequence[ArrayLike],
    threshold: float = 0.5,
    points: int | None = None,
) -> float:
    """Return the mean over classes of the average precision of detections, 0 to 1.

    The detections of a class are taken from the surest to the least sure, those of equal score in
    the order given. One is right if the true box of its class and image that it overlaps most has
    an intersection over union of at least ``threshold`` with it, and was not found before.
    Precision at a recall is the best that any recall at least as high has.

    Args:
        predicted: for each of N images (P, 6): class, left, top, right, bottom, score; P may be 0.
        true: for each image (K, 5): class, left, top, right, bottom; rows of class −1 are skipped.
        threshold: of the intersection over union, above 0, at most 1.
        points: None for the area under the curve, as PASCAL VOC has it since 2010; 101 for the
            mean at the recalls 0, .01, …, 1, as COCO. Boxes are matched as VOC has it in both.

    Raises:
        ValueError: there are not N of each, a shape is another, or there is no true box at all.

    Source: Everingham et al. 2010, "The PASCAL visual object classes challenge", section 4.2.
    """
    guesses, answers = _rows("predicted", predicted, 6), _rows("true", true, 5)
    if len(predicted) != len(true):
        raise ValueError(f"predicted: expected {len(true)} arrays of boxes, got {len(predicted)}")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: expected a number above 0, at most 1, got {threshold}")
    if points is not None and points < 2:
        raise ValueError(f"points: expected None or at least 2, got {points}")
    answers = answers[answers[:, 1] >= 0]
    classes = np.unique(answers[:, 1])
    if not len(classes):
        raise ValueError("true: expected at least one box, got none")
    found = []
    for label in classes:
        there, said = (rows[rows[:, 1] == label] for rows in (answers, guesses))
        said = said[np.argsort(-said[:, -1], kind="stable")]
        found.append(_area(_right(said, there, threshold), len(there), points))
    return float(np.mean(found))


def _rows(name: str, boxes: Sequence[ArrayLike], width: int) -> Array:
    """Return all rows of all images below each other, the number of the image before each."""
    parts = [np.zeros((0, width + 1))]
    for n, given in enumerate(boxes):
        rows = np.asarray(given, np.float64)
        if rows.ndim != 2 or rows.shape[1] != width:
            raise ValueError(f"{name}[{n}]: expected (…, {width}), got {rows.shape}")
        parts.append(np.insert(rows, 0, n, axis=1))
    return np.concatenate(parts)


def _right(said: Array, there: Array, threshold: float) -> NDArray[np.bool_]:
    """Whether each detection, from the surest on, finds a true box that none before it found."""
    right, taken = np.zeros(len(said), bool), np.zeros(len(there), bool)
    for i, row in enumerate(said):
        (same,) = np.nonzero(there[:, 0] == row[0])
        if len(same):
            shares = overlap(row[None, 2:6], there[same, 2:6])[0]
            best = same[shares.argmax()]
            right[i] = shares.max() >= threshold and not taken[best]
            taken[best] |= right[i]
    return right


def _area(right: NDArray[np.bool_], count: int, points: int | None) -> float:
    """The area under the precision that never rises with recall, or its mean at some recalls."""
    recall = np.cumsum(right) / count
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    if points is None:
        return float(np.sum(np.diff(recall, prepend=0) * best[:-1]))
    return float(best[np.searchsorted(recall, np.linspace(0, 1, points))].mean())


def suppressed(boxes: ArrayLike, shared: float = 0.5) -> Array:
    """Return the detections (P, 6) of one image that no surer one of their class covers.

    A row is class, left, top, right, bottom, score, as in ``average_precision``. From the surest
    on, one is kept unless its intersection over union with one that was kept is above ``shared``:
    greedy non-maximum suppression. What is kept comes surest first, equal scores in their order.

    Raises: ValueError unless the boxes are (P, 6).
    """
    rows = _rows("boxes", [boxes], 6)[:, 1:]
    rows = rows[np.argsort(-rows[:, -1], kind="stable")]
    covers = overlap(rows[:, 1:5], rows[:, 1:5]) > shared
    covers &= rows[:, :1] == rows[:, 0]
    kept = np.ones(len(rows), bool)
    for i in range(len(rows)):
        kept[i + 1 :] &= ~(covers[i, i + 1 :] & kept[i])
    found: Array = rows[kept]
    return found


def overlap(first: ArrayLike, second: ArrayLike) -> Array:
    """Return the intersection over union (N, M) of boxes (N, 4) and (M, 4), 0 where both are empty.

    A box is left, top, right, bottom.
    """
    a, b = np.asarray(first, np.float64)[:, None], np.asarray(second, np.float64)[None]
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    sizes = (np.clip(box[..., 2:] - box[..., :2], 0, None).prod(-1) for box in (a, b))
    union = sum(sizes) - shared
    shares: Array = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return shares
