"""A name has one language, is in one split, and comes out the same in every process."""

import numpy as np
import pytest

from gatelib.data import names
from tests.data.processes import printed_by_all


@pytest.fixture(scope="module")
def data():
    return names.languages()


def test_names_have_the_documented_sizes_and_all_languages_in_both_splits(data):
    assert (len(data.train.x), len(data.test.x)) == (15_000, 1_713)
    for split in data:
        assert split.x.dtype == object and split.y.dtype == np.int64
        assert len(split.x) == len(split.y) and set(split.y) == set(range(20))
    counts = np.bincount([*data.train.y, *data.test.y])
    largest, least = counts.argmax(), counts.argmin()
    assert (names.LANGUAGES[largest], counts[largest]) == ("lt", 1_143)
    assert (names.LANGUAGES[least], counts[least]) == ("da", 432)
    lengths = [len(name) for name in (*data.train.x, *data.test.x)]
    assert (min(lengths), max(lengths)) == (2, 63) and 13.5 < np.mean(lengths) < 14.5


def test_no_name_is_in_both_splits(data):
    assert len({*data.train.x, *data.test.x}) == 16_713


def test_babel_gives_each_name_to_its_language_and_to_no_other(data):
    babel = pytest.importorskip("babel")
    said = []
    for language in names.LANGUAGES:
        locale = babel.Locale.parse(language)
        said.append({name for kind in names.KINDS for name in getattr(locale, kind).values()})
    for split in data:
        for name, label in zip(*split, strict=True):
            assert [i for i, known in enumerate(said) if name in known] == [label]


def test_other_alphabets_are_left_out():
    assert names._latin("Île (1990)") and not names._latin("Ελλάδα")
    assert not any("α" <= c <= "я" for name in names._table() for c in name)


def test_every_process_gives_the_same_names():
    program = (
        "import hashlib\n"
        "from gatelib.data import names\n"
        "split = names.languages(200, 20, seed=1).test\n"
        "print(hashlib.sha256((str(split.x.tolist()) + str(split.y.tolist())).encode())"
        ".hexdigest()[:12])\n"
    )
    assert printed_by_all(program) == ["3b49ec447c86"]


def test_bad_sizes_of_names_are_named():
    with pytest.raises(ValueError, match=r"train_size: expected .* 16712, got 16713"):
        names.languages(16_713)
    with pytest.raises(ValueError, match=r"test_size: expected .* at most 713, got 714"):
        names.languages(16_000, 714)
