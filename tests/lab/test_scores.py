"""Average precision counts what it says it counts: by hand, and against scikit-learn's curve."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve

from gatelib.lab import average_precision
from gatelib.lab.scores import overlap, suppressed

BOX = (0, 0, 10, 10)
FAR = (20, 20, 30, 30)
NONE = np.zeros((0, 6))


def said(*rows):
    """Detections (P, 6), from (class, box, score)."""
    return np.array([(label, *box, score) for label, box, score in rows]).reshape(-1, 6)


def test_the_truth_has_a_precision_of_one():
    assert average_precision([said((3, BOX, 0.1))], [[(3, *BOX)]]) == 1


def test_nothing_found_is_zero():
    assert average_precision([NONE], [[(3, *BOX)]]) == 0
    assert average_precision([NONE], [[(3, *BOX)]], points=101) == 0


def test_a_class_an_image_or_a_box_that_is_wrong_counts_nothing():
    true = [[(3, *BOX)], [(3, *FAR)]]
    assert average_precision([said((4, BOX, 0.9)), NONE], true) == 0
    assert average_precision([said((3, FAR, 0.9)), said((3, BOX, 0.9))], true) == 0


def test_a_box_found_twice_is_one_right_and_one_wrong():
    twice = said((3, BOX, 0.9), (3, BOX, 0.8), (3, FAR, 0.7))
    # right, wrong, right: precisions 1, 1/2, 2/3 at recalls 1/2, 1/2, 1
    assert average_precision([twice], [[(3, *BOX), (3, *FAR)]]) == pytest.approx(1 / 2 + 1 / 3)


def test_a_second_hit_on_the_best_box_is_wrong_though_another_is_free():
    near = (1, 0, 11, 10)  # overlaps BOX by 9/11
    found = said((3, BOX, 0.9), (3, (0, 0, 10.1, 10), 0.8))
    assert average_precision([found], [[(3, *BOX), (3, *near)]]) == pytest.approx(0.5)


def test_a_wrong_answer_that_is_surer_costs_more():
    true = [[(3, *BOX)]]
    first = said((3, FAR, 0.9), (3, BOX, 0.8))
    last = said((3, BOX, 0.9), (3, FAR, 0.8))
    assert average_precision([first], true) == pytest.approx(0.5)
    assert average_precision([last], true) == 1


def test_the_mean_is_over_the_classes_that_are_there():
    true = [[(3, *BOX), (5, *FAR), (-1, -1, -1, -1, -1)]]
    found = said((3, BOX, 0.9), (7, FAR, 0.9))
    assert average_precision([found], true) == pytest.approx(0.5)


def test_the_threshold_is_met_by_an_equal_overlap():
    half = (0, 0, 10, 5)
    assert average_precision([said((3, half, 1))], [[(3, *BOX)]], threshold=0.5) == 1
    assert average_precision([said((3, half, 1))], [[(3, *BOX)]], threshold=0.51) == 0


def test_101_points_are_the_mean_of_101_recalls():
    # one of three is found at once, then a wrong one, then a second: precision 1, 1/2, 2/3
    third = (40, 0, 50, 10)
    found = said((3, BOX, 0.9), (3, (60, 0, 70, 10), 0.8), (3, FAR, 0.7))
    true = [[(3, *BOX), (3, *FAR), (3, *third)]]
    assert average_precision([found], true) == pytest.approx(1 / 3 + 2 / 9)
    expected = (34 * 1 + 33 * 2 / 3) / 101  # recalls 0 … .33, then .34 … .66
    assert average_precision([found], true, points=101) == pytest.approx(expected)


def ranked(labels, scores):
    """One image an answer, with a true box where the answer is right."""
    found = [said((1, BOX, score)) for score in scores]
    return found, [[(1, *(BOX if label else FAR))] for label in labels]


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.booleans(), min_size=1, max_size=12).filter(any), seed=st.integers(0, 99))
def test_it_is_the_area_under_the_hull_of_scikit_learns_curve(labels, seed):
    scores = np.random.default_rng(seed).permutation(len(labels)) / len(labels)
    found, true = ranked(labels, scores)
    precision, recall, _ = precision_recall_curve(labels, scores)
    hull = np.maximum.accumulate(precision[:-1])
    share = np.mean(labels)  # where the answer is wrong there is a box too, and it isn't found
    assert average_precision(found, true) == pytest.approx(share * -np.diff(recall) @ hull)
    plain = share * average_precision_score(labels, scores)
    assert average_precision(found, true) >= plain - 1e-12


def test_where_precision_only_falls_it_is_scikit_learns_average_precision():
    labels, scores = [1, 1, 0, 0, 0], [0.9, 0.8, 0.7, 0.6, 0.5]
    found, _ = ranked(labels, scores)
    true = [[(1, *BOX)] if label else np.zeros((0, 5)) for label in labels]
    assert average_precision(found, true) == average_precision_score(labels, scores) == 1


def test_of_boxes_of_one_class_that_overlap_the_surest_stays():
    near = (2, 0, 12, 10)  # shares 2/3 with BOX
    rows = said((7, near, 0.5), (7, BOX, 0.9), (7, FAR, 0.2))
    assert suppressed(rows)[:, -1].tolist() == [0.9, 0.2]
    assert suppressed(rows, shared=0.7)[:, -1].tolist() == [0.9, 0.5, 0.2]
    other = said((3, near, 0.5), (7, BOX, 0.9))
    assert len(suppressed(other)) == 2


def test_what_was_suppressed_suppresses_nothing():
    middle, last = (4, 0, 14, 10), (8, 0, 18, 10)  # neighbours share 3/7, the ends 1/9
    rows = said((7, BOX, 0.9), (7, middle, 0.8), (7, last, 0.7))
    assert suppressed(rows, shared=0.4)[:, -1].tolist() == [0.9, 0.7]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 12), shared=st.floats(0.1, 0.9), seed=st.integers(0, 99))
def test_what_is_kept_lies_apart_and_covers_the_rest(count, shared, seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 10, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 10, (count, 2))], axis=1)
    rows = np.concatenate([rng.integers(0, 2, (count, 1)), boxes, rng.random((count, 1))], axis=1)
    kept = suppressed(rows, shared)
    assert (np.diff(kept[:, -1]) <= 0).all()
    both = overlap(rows[:, 1:5], kept[:, 1:5]) * (rows[:, :1] == kept[:, 0])
    surer = kept[:, -1] >= rows[:, -1:]
    assert ((both * surer) > shared).any(1)[~np.isin(rows[:, -1], kept[:, -1])].all()
    among = overlap(kept[:, 1:5], kept[:, 1:5]) * (kept[:, :1] == kept[:, 0])
    assert (among - np.eye(len(kept)) <= shared + 1e-12).all()


def test_overlap_is_intersection_over_union():
    found = overlap([BOX, FAR, (3, 3, 3, 3)], [BOX, (5, 0, 15, 10), (3, 3, 3, 3)])
    np.testing.assert_allclose(found, [[1, 1 / 3, 0], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: average_precision([NONE], []), "predicted: expected 0 arrays of boxes, got 1"),
        (lambda: average_precision([NONE], [NONE[:, :5]]), "true: expected at least one box"),
        (lambda: average_precision([[1, 2]], [[(3, *BOX)]]), r"predicted\[0\]: expected"),
        (lambda: average_precision([NONE], [NONE]), r"true\[0\]: expected \(…, 5\), got \(0, 6\)"),
        (lambda: suppressed([1, 2, 3]), r"boxes\[0\]: expected \(…, 6\)"),
        (lambda: average_precision([NONE], [[(3, *BOX)]], 0), "threshold: expected"),
        (lambda: average_precision([NONE], [[(3, *BOX)]], points=1), "points: expected None"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
