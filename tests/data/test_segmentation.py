"""Sentences keep their words through tags and back, and a word is right if both ends are."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatelib.data import _package, pad, segmentation
from gatelib.data.segmentation import TAGS, to_tags, to_words
from gatelib.lab import word_f1

WORDS = st.lists(st.text(min_size=1, max_size=5), max_size=8)


def tagged(letters: str) -> list[int]:
    return [TAGS.index(letter) for letter in letters]


def test_sentences_have_the_documented_sizes_and_a_tag_for_each_character():
    data = segmentation.sentences()
    assert (len(data.train.x), len(data.test.x)) == (3_500, 849)
    for split in data:
        assert split.x.dtype == split.y.dtype == object and len(split.x) == len(split.y)
        for text, tags in zip(*split, strict=True):
            assert type(text) is str and 3 <= len(text) <= 18
            assert tags.dtype == np.int64 and tags.shape == (len(text),)
    assert pad(data.train.y, value=-100)[0].shape == (3_500, 18)


def test_pinyin_stands_beside_its_sentence_in_the_same_split():
    read, tagged_data = segmentation.pinyin(), segmentation.sentences()
    for mine, other in zip(read, tagged_data, strict=True):
        assert mine.x.tolist() == other.x.tolist()
    found = {text: sound for split in read for text, sound in zip(*split, strict=True)}
    assert len(found) == 4_349 and found["老师，您好！"] == "lǎo shī nín hǎo"
    assert all(type(text) is str and text == text.strip() and text for text in found.values())


def test_no_sentence_is_in_both_splits_or_twice_in_one():
    data = segmentation.sentences()
    assert len({*data.train.x, *data.test.x}) == 4_349


def test_the_words_are_those_of_the_file():
    content = _package.read_checked(
        "hsk_sentences_audio", "", "data/sentences.json", segmentation.SHA256
    )
    records = json.loads(content)
    assert len(records) == 4_354
    for record in records:
        text = record["chinese"]
        found = to_words(text, segmentation._table()[text])
        spoken = [word for word in found if word.isalnum()]
        assert spoken == [token["word"] for token in record["tokens"]]
        assert all(len(word) == 1 for word in found if not word.isalnum())


def test_a_caller_cannot_spoil_the_tags_of_the_next_load():
    segmentation.sentences().train.y[0][:] = 9
    assert segmentation.sentences().train.y[0].max() <= 3


def test_the_stream_of_sentences_has_not_moved():
    data = segmentation.sentences()
    assert to_words(data.train.x[0], data.train.y[0]) == "球 滚 到 了 桌子 下面 。".split()
    assert np.concatenate(data.test.y).sum() == 14872


@given(words=WORDS)
def test_words_come_back_from_their_tags(words):
    assert to_words("".join(words), to_tags(words)) == words
    assert to_tags(words).dtype == np.int64


@given(tags=st.lists(st.integers(0, 3), max_size=12))
def test_any_tags_are_read_and_lose_no_character(tags):
    text = "春眠不觉晓处处闻啼鸟夜来"[: len(tags)]
    found = to_words(text, tags)
    assert "".join(found) == text and "" not in found


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ("BMES", "甲乙丙 丁"),
        ("BBBB", "甲 乙 丙 丁"),
        ("MMMM", "甲乙丙丁"),
        ("EEEE", "甲 乙 丙 丁"),
        ("SEMM", "甲 乙 丙丁"),
        ("BEBE", "甲乙 丙丁"),
        ("MEBM", "甲乙 丙丁"),
    ],
)
def test_a_word_begins_at_b_and_s_and_after_e_and_s(tags, words):
    assert to_words("甲乙丙丁", tagged(tags)) == words.split()
    assert to_words(list("甲乙丙丁"), np.array(tagged(tags))) == words.split()


def test_f1_counts_words_whose_two_ends_are_right():
    # 4 words predicted, 3 there, 2 right: precision 1/2, recall 2/3, F1 4/7
    assert word_f1(["甲乙丙丁戊"], [tagged("BESSS")], [tagged("BEBES")]) == pytest.approx(4 / 7)


def test_f1_is_over_all_words_and_not_the_mean_of_sentences():
    texts, true = ["甲乙丙丁", "甲"], [tagged("SSSS"), tagged("S")]
    assert word_f1(texts, [tagged("BEBE"), tagged("S")], true) == pytest.approx(2 * 1 / (3 + 5))


def test_punctuation_earns_nothing_but_costs_when_glued():
    text, true = ["甲，乙。"], [tagged("SSSS")]
    assert word_f1(text, [tagged("SSSS")], true) == 1
    assert word_f1(text, [tagged("SSBE")], true) == pytest.approx(1 / 2)
    assert word_f1(text, [tagged("BEBE")], true) == 0


@given(words=WORDS.filter(lambda words: any(map(str.isalnum, "".join(words)))))
def test_f1_of_the_truth_is_one(words):
    tags = to_tags(words)
    assert word_f1(["".join(words)], [tags], [tags]) == 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: segmentation.sentences(4_349), ValueError, "train_size: expected .* 4348"),
        (lambda: segmentation.sentences(4_000, 350), ValueError, "test_size: .* at most 349"),
        (lambda: to_tags(["a", ""]), ValueError, "words: expected words of one character"),
        (lambda: to_words("ab", [0]), ValueError, r"tags: expected shape \(2,\), got \(1,\)"),
        (lambda: to_words("ab", [0, 4]), ValueError, r"tags: expected 0 to 3, got \[0, 4\]"),
        (lambda: to_words("ab", [0, -100]), ValueError, "tags: expected 0 to 3"),
        (lambda: to_words("ab", [0.0, 2.0]), TypeError, "tags: expected whole numbers"),
        (lambda: word_f1(["a"], [], [[3]]), ValueError, "predicted: expected 1 arrays of tags"),
        (lambda: word_f1(["a"], [[3]], []), ValueError, "true: expected 1 arrays of tags, got 0"),
        (lambda: word_f1(["。"], [[3]], [[3]]), ValueError, "texts: expected at least one word"),
    ],
)
def test_bad_arguments_of_segmentation_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
