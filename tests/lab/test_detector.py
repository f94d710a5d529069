"""Chapter 12's detector: what is right comes back as found, and only the surest of a heap stays."""

import numpy as np
import pytest
import torch

from chapters.support.vision import GATES, detection_loss, detections, detector
from gatelib.data import detection
from gatelib.lab import average_precision


def perfect(target, sure=12.0):
    """The answer that says what the target is."""
    inside = np.clip(target[:, 2:], 1e-6, 1 - 1e-6)
    label = np.eye(10)[target[:, 1].astype(int)].transpose(0, 3, 1, 2)
    there = sure * (2 * target[:, :1] - 1)
    answer = np.concatenate([there, sure * label, np.log(inside / (1 - inside))], axis=1)
    return torch.tensor(answer, dtype=torch.float32)


DATA = detection.pasted(40, 1, 1).train
TARGET = detection.grid_target(DATA.y)


def test_a_perfect_answer_finds_every_digit_and_costs_next_to_nothing():
    answer = perfect(TARGET)
    assert average_precision(detections(answer), DATA.y) == 1
    assert float(detection_loss(answer, torch.tensor(TARGET))) < 0.01
    worse = perfect(np.roll(TARGET, 1, axis=0))
    assert float(detection_loss(worse, torch.tensor(TARGET))) > 10


def test_of_boxes_of_one_class_that_overlap_the_surest_stays():
    target = np.zeros((1, 6, 6, 6))
    target[0, :, 2, 2] = 1, 7, 0.9, 0.5, 0.3, 0.3
    target[0, :, 2, 3] = 1, 7, 0.1, 0.5, 0.3, 0.3
    target[0, :, 5, 5] = 1, 7, 0.5, 0.5, 0.1, 0.1
    answer = perfect(target)
    answer[0, 0, 2, 2] = 3.0
    (found,) = detections(answer)
    assert found.shape == (2, 6) and (found[:, 0] == 7).all() and (np.diff(found[:, 5]) <= 0).all()
    assert found[:, 1].tolist() == pytest.approx([17.6, 41.6], abs=1e-3)
    other = answer.clone()
    other[0, 1:11, 2, 2] = torch.eye(10)[3] * 12
    assert len(detections(other)[0]) == 3  # of another class


def test_suppression_is_greedy_from_the_surest_on():
    """The middle of three is covered by the first, so it covers the last no more."""
    target = np.zeros((1, 6, 6, 6))
    for column in (1, 2, 3):
        target[0, :, 2, column] = 1, 7, 0.5, 0.5, 0.35, 0.3
    answer = perfect(target)
    answer[0, 0, 2, 1:4] = torch.tensor([5.0, 4.0, 3.0])
    (found,) = detections(answer)
    assert found[:, 1].tolist() == pytest.approx([12 - 8.4, 28 - 8.4], abs=1e-3)


def test_nothing_found_is_an_empty_table():
    answer = torch.full((2, 15, 6, 6), -20.0)
    assert [rows.shape for rows in detections(answer)] == [(0, 6), (0, 6)]


@pytest.mark.parametrize("gate", GATES)
def test_every_detector_answers_on_the_grid_and_learns(gate):
    torch.manual_seed(0)
    net, x, y = detector(4, gate), torch.tensor(DATA.x[:16]), torch.tensor(TARGET[:16])
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=0.01), []
    for _ in range(12):
        answer = net(x)
        loss = detection_loss(answer, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert answer.shape == (16, 15, 6, 6) and losses[-1] < 0.7 * losses[0]
    assert all(p.grad is not None for p in net.parameters())


def test_an_unknown_gate_is_named():
    with pytest.raises(ValueError, match=r"gate: expected one of .* got 'all'"):
        detector(gate="all")
