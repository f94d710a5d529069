"""A digit moves as its velocity says, over all edges, and no split shares a digit."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib.data import Validated, digits, video
from tests.data.processes import printed
from tests.data.test_data import digest

SMALL = {"train_size": 60, "valid_size": 30, "test_size": 30}


def test_clips_have_the_documented_shapes_and_types():
    for load, steps, y in (
        (video.coasting, 15, (5, 1, 16, 16)),
        (video.motion, 8, ()),
        (video.names, 8, ()),
    ):
        data = load(**SMALL)
        assert isinstance(data, Validated)
        for split, size in zip(data, SMALL.values(), strict=True):
            assert split.x.shape == (size, steps, 1, 16, 16) and split.x.dtype == np.float32
            assert split.y.shape == (size, *y)
            assert split.y.dtype == (np.float32 if y else np.int64)


def test_answers_are_equally_frequent():
    motion = np.bincount(video.motion(train_size=8000).train.y)
    names = np.bincount(video.names(train_size=8000).train.y)
    assert len(motion) == 8 and abs(motion / 8000 - 1 / 8).max() < 0.02
    assert len(names) == 10 and abs(names / 8000 - 1 / 10).max() < 0.02


def test_velocities_and_directions_are_all_that_there_are_and_each_has_its_opposite():
    for kinds, count in ((video.VELOCITIES, 24), (video.DIRECTIONS, 8)):
        ways = {tuple(v) for v in kinds.tolist()}
        assert len(ways) == count and (0, 0) not in ways
        assert ways == {(-x, -y) for x, y in ways}


@settings(max_examples=30, deadline=None)
@given(
    start=st.tuples(st.integers(0, 15), st.integers(0, 15)),
    velocity=st.tuples(st.integers(-3, 3), st.integers(-3, 3)),
)
def test_each_frame_is_the_one_before_it_rolled_by_the_velocity(start, velocity):
    image = digits.images().train.x[:1, 0]
    clip = video.moved(image, np.array([start]), np.array([velocity]), 6)[0, :, 0]
    x, y = velocity
    for before, after in pairwise(clip):
        assert np.array_equal(np.roll(before, (y, x), (0, 1)), after)
    home = np.roll(clip[0], (-start[1], -start[0]), (0, 1))
    assert np.array_equal(home[:8, :8], image[0]) and home.sum() == image.sum()


def test_without_noise_what_is_hidden_goes_on_as_what_was_seen():
    x, y = video.coasting(seen=4, hidden=3, noise=0, **SMALL).train
    assert x.shape[1] == 7 and not x[:, 4:].any()
    for clip, after in zip(x[:, :4, 0], y[:, :, 0], strict=True):
        moves = [
            (i, j)
            for j, i in video.VELOCITIES
            if np.array_equal(np.roll(clip[0], (i, j), (0, 1)), clip[1])
        ]
        assert len(moves) == 1
        for t, frame in enumerate(after, 4):
            assert np.array_equal(np.roll(clip[0], np.multiply(t, moves[0]), (0, 1)), frame)


def test_a_clip_may_move_by_one_pixel_alone():
    _, y = video.coasting(noise=0, **SMALL, velocities=video.DIRECTIONS).train
    for frames in y[:, :2, 0]:
        moves = [
            m for m in video.DIRECTIONS if (np.roll(frames[0], m[::-1], (0, 1)) == frames[1]).all()
        ]
        assert len(moves) == 1


def test_noise_has_the_deviation_asked_for_and_spares_the_hidden_frames_and_the_answer():
    quiet, loud = (video.coasting(noise=noise, **SMALL).train for noise in (0, 0.3))
    assert np.array_equal(quiet.y, loud.y) and not loud.x[:, 10:].any()
    noise = (loud.x - quiet.x)[:, :10]
    assert noise.std() == pytest.approx(0.3, rel=0.02) and abs(noise.mean()) < 0.005


def test_a_clip_run_backwards_is_a_clip_of_the_opposite_answer():
    x, y = video.motion(noise=0, **SMALL).train
    for clip, label in zip(x[:, :, 0], y, strict=True):
        right, down = video.DIRECTIONS[label]
        backwards = clip[::-1]
        for before, after in pairwise(backwards):
            assert np.array_equal(np.roll(before, (-down, -right), (0, 1)), after)
    opposite = {tuple(-v) for v in video.DIRECTIONS}
    assert opposite == {tuple(v) for v in video.DIRECTIONS}


def test_one_frame_is_equally_likely_for_every_motion():
    """The start is drawn apart from the motion: the place of the ink tells nothing."""
    x, y = video.motion(noise=0, train_size=8000).train
    for t in (0, 7):
        means = np.stack([x[y == k, t, 0].mean(0) for k in range(8)])
        assert np.abs(means - means.mean(0)).max() < 0.06


def test_the_splits_share_no_digit(monkeypatch):
    seen, moved = [], video.moved

    def note(images, *rest):
        seen.append({image.tobytes() for image in images})
        return moved(images, *rest)

    monkeypatch.setattr(video, "moved", note)
    video.names(train_size=4000, valid_size=2000, test_size=2000)
    assert len(set.union(*seen)) == sum(map(len, seen)) > 1600  # of 1,797


def test_the_seed_alone_decides_the_clips():
    first, again, other = (video.names(**SMALL, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.test.x, again.test.x) and np.array_equal(first.test.y, again.test.y)
    assert not np.array_equal(first.test.x, other.test.x)


def test_the_streams_of_clips_have_not_moved():
    found = [
        digest(video.coasting(**SMALL).train.y),
        digest(video.motion(**SMALL).train.y),
        digest(video.names(**SMALL).train.y),
    ]
    assert found == ["06da89445ff8", "339e13287fde", "adfa50b1fe56"]


def test_all_are_made_within_two_seconds_of_a_fresh_process():
    program = (
        "import sys, time\n"
        "from gatelib.data import video\n"
        "video.coasting(), video.motion(), video.names()\n"
        "print(time.process_time())\n"
        "print({'torch', 'sympy', 'sklearn', 'pandas', 'mlxtend'} & set(sys.modules))"
    )
    seconds, heavy = printed(program)
    assert float(seconds) < 2
    assert heavy == "set()"


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: video.coasting(seen=1), ValueError, "seen: expected at least 2, got 1"),
        (lambda: video.coasting(hidden=0), ValueError, "hidden: expected at least 1, got 0"),
        (
            lambda: video.coasting(velocities=np.ones((3, 2))),
            ValueError,
            r"velocities: expected \(K, 2\) of whole numbers, got \(3, 2\) of float64",
        ),
        (lambda: video.motion(steps=1), ValueError, "steps: expected at least 2, got 1"),
        (lambda: video.names(steps=2.0), TypeError, "steps: expected a whole number"),
        (lambda: video.names(noise=-1), ValueError, "noise: expected a finite number"),
        (lambda: video.names(noise=float("nan")), ValueError, "noise: expected a finite number"),
        (lambda: video.names(noise="a"), TypeError, "noise: expected a number, got str"),
        (lambda: video.names(test_size=0), ValueError, "test_size: expected at least 1, got 0"),
        (lambda: video.names(seed=-1), ValueError, "seed: expected at least 0, got -1"),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
