"""Pasted digits lie where their boxes say, and no split shares a digit or a piece of photograph."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib.data import DataPackageMissing, Validated, _package, detection, mnist
from gatelib.data._split import Split
from tests.data.processes import printed
from tests.data.test_data import digest

SMALL = {"train_size": 60, "valid_size": 30, "test_size": 30}
PARTS = ("train", "valid", "test")


def there(y):
    """The rows of y that hold a digit."""
    return y[y[..., 0] >= 0]


def test_images_have_the_documented_shapes_and_range():
    data = detection.pasted()
    assert isinstance(data, Validated)
    for split, size in zip(data, (2000, 400, 400), strict=True):
        assert split.x.shape == (size, 1, 48, 48) and split.y.shape == (size, 3, 5)
        assert split.x.dtype == split.y.dtype == np.float32
        assert split.x.min() >= 0 and split.x.max() <= 1
        assert set(there(split.y)[:, 0]) == set(range(10))
        counts = (split.y[..., 0] >= 0).sum(1)
        assert set(counts) == {1, 2, 3} and 1.8 < counts.mean() < 2.2


def test_boxes_enclose_the_ink_and_nothing_is_changed_outside_them():
    x, y = detection.pasted(**SMALL).train
    clean = detection._backgrounds("train", len(x), np.random.default_rng(0))
    for image, before, rows in zip(x[:, 0], clean, y, strict=True):
        changed = np.abs(image - before) > 1e-6
        for left, top, right, bottom in there(rows)[:, 1:].astype(int):
            ink = changed[top:bottom, left:right]
            assert all(side.any() for side in (ink[0], ink[-1], ink[:, 0], ink[:, -1]))
            changed[top:bottom, left:right] = False
        assert not changed.any()


def test_boxes_are_of_whole_pixels_inside_the_image_and_apart():
    for _, y in detection.pasted(**SMALL):
        boxes = there(y)[:, 1:]
        assert (boxes == boxes.round()).all() and (boxes >= 0).all() and (boxes <= 48).all()
        longer = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
        assert longer.min() >= 10 and longer.max() <= 20
        for rows in y:
            drawn = np.zeros((48, 48), int)
            for left, top, right, bottom in there(rows)[:, 1:].astype(int):
                drawn[top:bottom, left:right] += 1
            assert drawn.max() == 1
            assert (rows[len(there(rows)) :] == -1).all()


def test_a_lower_contrast_lets_the_photograph_through_and_changes_nothing_else():
    full, half = (detection.pasted(**SMALL, contrast=contrast).train for contrast in (1, 0.5))
    clean = detection._backgrounds("train", 60, np.random.default_rng(0))[:, None]
    assert np.array_equal(full.y, half.y)
    np.testing.assert_allclose(half.x - clean, (full.x - clean) / 2, atol=1e-6)


def test_the_splits_share_no_digit(monkeypatch):
    pools = {}

    def note(digits, part, count, contrast, generator):
        pools[part] = {image.tobytes() for image in digits.x}
        return Split(digits.x[:count], digits.y[:count])

    monkeypatch.setattr(detection, "_draw", note)
    detection.pasted()
    assert [len(pools[part]) for part in PARTS] == [3500, 500, 1000]
    assert len(set.union(*pools.values())) == 5000


def test_the_splits_share_no_part_of_a_photograph(monkeypatch):
    numbered = np.arange(213 * 320, dtype=float).reshape(213, 320)
    monkeypatch.setattr(detection, "photograph", lambda name: numbered)
    seen = [
        set(detection._backgrounds(part, 300, np.random.default_rng(0)).ravel()) for part in PARTS
    ]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_a_digit_is_found_in_the_pool_of_its_split():
    """Pasted at its own size on black, a digit is the digit of the file."""
    pool = mnist.images(4000).test
    image = np.zeros((48, 48), np.float32)
    ink = detection._scaled(pool.x[0, 0], 20)
    rows, columns = (np.nonzero((pool.x[0, 0] > 0.1).any(axis))[0] for axis in (1, 0))
    own = pool.x[0, 0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert max(own.shape) == 20 and np.allclose(ink, own, atol=1e-6)
    detection._paste(image, ink, (5, 6, 5 + ink.shape[1], 6 + ink.shape[0]))
    assert np.array_equal(image[6 : 6 + ink.shape[0], 5 : 5 + ink.shape[1]], ink)


def test_scaling_keeps_the_mean_of_the_ink():
    digit = mnist.images().train.x[0, 0]
    rows, columns = (np.nonzero((digit > 0.1).any(axis))[0] for axis in (1, 0))
    own = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    for side in (10, 13, 20):
        assert detection._scaled(digit, side).mean() == pytest.approx(own.mean(), rel=1e-5)


def test_the_seed_alone_decides_the_images():
    first, again, other = (detection.pasted(**SMALL, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.test.x, again.test.x) and np.array_equal(first.test.y, again.test.y)
    assert not np.array_equal(first.test.x, other.test.x)


def test_the_stream_of_images_has_not_moved():
    data = detection.pasted(**SMALL)
    assert [digest(data.train.y), digest(data.test.y)] == ["d4042b2d49bd", "f7281f382720"]
    rounded = (data.train.x * 255).round().astype(np.uint8)
    assert digest(rounded) == "c815dcefaabc"


def test_a_grid_says_where_the_centre_of_each_box_lies():
    y = np.full((2, 3, 5), -1.0)
    y[0, 0] = 7, 10, 20, 20, 40  # centre (15, 30): cell 1 from the left, 3 from the top
    y[1, 0] = 3, 40, 40, 48, 48  # centre (44, 44): the last cell
    target = detection.grid_target(y)
    assert target.shape == (2, 6, 6, 6) and target[:, 0].sum() == 2
    assert target[0, :, 3, 1] == pytest.approx([1, 7, 0.875, 0.75, 10 / 48, 20 / 48])
    assert target[1, :, 5, 5] == pytest.approx([1, 3, 0.5, 0.5, 8 / 48, 8 / 48])


def test_a_centre_on_the_right_edge_lies_in_the_last_cell():
    target = detection.grid_target(np.array([[[0, 48, 0, 48, 10]]]))
    assert target[0, 0, 0, 5] == 1 and target[0, 2, 0, 5] == 1


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999))
def test_boxes_come_back_from_the_grid(seed):
    y = detection.pasted(10, 1, 1, seed=seed).train.y
    target = detection.grid_target(y)
    found = detection.boxes(target[:, 2:])
    n, line, column = np.nonzero(target[:, 0])
    rows = {(k, *box) for k, box in zip(n, found[n, line, column].round(3).tolist(), strict=True)}
    rows = {(k, *map(float, box)) for k, *box in rows}
    wanted = {(k, *map(float, row[1:])) for k, rows_ in enumerate(y) for row in there(rows_)}
    assert rows == wanted


def test_they_are_made_within_two_seconds_of_a_fresh_process():
    program = (
        "import sys, time\n"
        "from gatelib.data import detection\n"
        "detection.grid_target(detection.pasted().train.y)\n"
        "print(time.process_time())\n"
        "print({'torch', 'sympy', 'sklearn', 'pandas', 'mlxtend'} & set(sys.modules))"
    )
    seconds, heavy = printed(program)
    assert float(seconds) < 2
    assert heavy == "set()"


def test_making_them_again_takes_less_than_a_second():
    start = time.process_time()
    detection.pasted()
    assert time.process_time() - start < 1


def test_scikit_learns_own_loader_shows_the_same_photographs():
    loader = pytest.importorskip("sklearn.datasets")
    for name in detection.SHA256:
        colours = loader.load_sample_image(f"{name}.jpg").astype(float)
        grey = colours @ [0.299, 0.587, 0.114]
        half = grey[:426].reshape(213, 2, 320, 2).mean((1, 3)) / 255
        assert np.abs(detection.photograph(name) - half).max() < 0.6 / 255


def test_a_caller_cannot_spoil_a_photograph():
    with pytest.raises(ValueError, match="read-only"):
        detection.photograph("china")[0, 0] = 1


def test_photographs_that_are_missing_changed_or_unreadable_are_named(monkeypatch):
    detection.photograph.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(detection.SHA256, "china", "0" * 64)
        with pytest.raises(ValueError, match=r"china\.jpg of scikit-learn: .*000.*837802"):
            detection.photograph("china")
    find = _package.find_spec
    for package, install in (("sklearn", "scikit-learn"), ("PIL", "pillow")):
        with monkeypatch.context() as patch:
            patch.setattr(_package, "find_spec", lambda n, p=package: None if n == p else find(n))
            with pytest.raises(DataPackageMissing, match=f"pip install {install}"):
                detection.photograph("china")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: detection.pasted(0), ValueError, "train_size: expected at least 1, got 0"),
        (lambda: detection.pasted(9, 9.5), TypeError, "valid_size: expected a whole number"),
        (lambda: detection.pasted(9, 9, True), TypeError, "test_size: expected a whole number"),
        (lambda: detection.pasted(seed=-1), ValueError, "seed: expected at least 0, got -1"),
        (lambda: detection.pasted(contrast=0), ValueError, "contrast: expected .* got 0"),
        (lambda: detection.pasted(contrast="1"), TypeError, "contrast: expected a number, got str"),
        (lambda: detection.photograph("dog"), ValueError, "name: expected one of"),
        (lambda: detection.grid_target(np.ones((2, 5))), ValueError, r"y: expected \(N, K, 5\)"),
        (
            lambda: detection.grid_target(np.array([[[1, 0, 0, 4, 4], [2, 1, 1, 5, 5]]])),
            ValueError,
            "y: expected one digit a cell",
        ),
        (lambda: detection.boxes(np.ones((2, 3, 6, 6))), ValueError, "grid: expected"),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
