"""Which language is a name written in? Names of the world's places, tongues and coins, by Babel.

Imports NumPy and lets Babel read the names of the Unicode CLDR.
Must not import torch, SymPy or any other floor of gatelib.

Source: the Common Locale Data Repository, as Babel 2.18 carries it; another version has other
names. CLDR names languages, territories, scripts and currencies in every language of the world;
here are 20 that use the Latin alphabet.
"""

import unicodedata
from functools import cache

import numpy as np

from gatelib.data._package import program
from gatelib.data._split import Array, Dataset, objects, shuffle_split

LANGUAGES = (
    *("cs", "da", "de", "en", "es", "et", "fi", "fr", "hr", "hu"),
    *("it", "lt", "lv", "nb", "nl", "pl", "pt", "ro", "sv", "tr"),
)
KINDS = ("languages", "territories", "scripts", "currencies")


def _latin(name: str) -> bool:
    return all(unicodedata.name(c).startswith("LATIN") for c in name if c.isalpha())


@cache
def _table() -> dict[str, int]:
    """Return name → language, names that one language alone has, in the order of their text."""
    read = program("babel", "babel").Locale.parse
    owners: dict[str, set[int]] = {}
    for i, language in enumerate(LANGUAGES):
        locale = read(language)
        for name in {name for kind in KINDS for name in getattr(locale, kind).values()}:
            owners.setdefault(name, set()).add(i)
    return {
        name: min(owner)
        for name, owner in sorted(owners.items())
        if len(owner) == 1 and _latin(name)
    }


def languages(train_size: int = 15_000, test_size: int | None = None, seed: int = 0) -> Dataset:
    """Return names and their languages: x (N,) str, y (N,) int64, an index of ``LANGUAGES``.

    A name that two of the languages share (Angola, Latin) is left out, so each has one answer.
    16,713 names of 2 to 63 characters (14 on average), as CLDR writes them, with capitals and
    brackets. The languages are not equally frequent: Danish has 432 names, Lithuanian 1,143 (7 %).
    No name is in both splits, but parts of names are: "Old English" may train and "English" test.
    ``test_size=None`` tests on all that do not train.

    Raises:
        DataPackageMissing: Babel is not installed.
    """
    y: Array = np.array(list(_table().values()), np.int64)
    return shuffle_split(objects(_table()), y, train_size, seed, test_size)
