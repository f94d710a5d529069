"""The training loop learns, repeats itself, and leaves the caller's world as it was."""

import numpy as np
import pytest
import torch
from torch import nn

from gatelib.data import diagnostics, digits
from gatelib.lab import training
from gatelib.lab.training import Readout, Seeds, accuracy, best_lr, seeds, train


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 10))


def run(**options):
    data = digits.flat()
    settings = {"steps": 150, "lr": 1e-2, "score": accuracy(data.test)} | options
    return train(classifier(), data.train, **settings)


def test_a_small_net_learns_real_digits():
    history = run(every=50)
    assert history.score > 0.85 and list(history.scores) == [50, 100, 150]
    assert history.losses[:5].mean() > 2 and history.loss < 0.5


def test_the_same_seed_repeats_every_number_and_another_does_not():
    assert np.array_equal(run(steps=9).losses, run(steps=9).losses)
    assert not np.array_equal(run(steps=9, seed=1).losses, run(steps=9).losses)
    assert run(steps=9) == run(steps=9) != run(steps=9, seed=1)
    assert run(steps=9) != run(steps=9, clip=0.1)


def test_the_seed_decides_dropout_whatever_came_before():
    losses = []
    for before in (1, 2):
        model = classifier()
        torch.manual_seed(before)
        losses.append(train(model, digits.flat().train, steps=3, lr=0.1).losses)
    assert np.array_equal(*losses)


def test_the_callers_random_state_is_left_alone():
    model, data = classifier(), digits.flat().train
    before = torch.random.get_rng_state()
    train(model, data, steps=2, lr=0.1)
    seeds(lambda seed: torch.rand(()).item())
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_step_is_one_step_of_gradient_descent():
    model = nn.Linear(2, 1, bias=False)
    weight = model.weight.detach().clone()
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])
    history = train(model, (x, y), steps=1, lr=0.1, loss="mse", optimizer="sgd", batch_size=1)
    error = weight @ x[0] - 3
    assert history.losses[0] == pytest.approx(float(error**2), rel=1e-5)
    torch.testing.assert_close(model.weight.detach(), weight - 0.1 * 2 * error * x)


def test_clip_limits_the_step_but_not_the_reported_norm():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    one = torch.tensor([[100.0]])
    history = train(
        model, (one, one), steps=1, lr=1.0, loss="mse", optimizer="sgd", batch_size=1, clip=0.5
    )
    assert model.weight.item() == pytest.approx(0.5, rel=1e-4)
    assert history.gradient_norms[0] == pytest.approx(20000)


def test_an_epoch_shows_every_example_once():
    batch = training.sampled((torch.arange(10), torch.arange(10)), batch_size=5)
    generator = np.random.default_rng(0)
    epochs = [torch.cat([batch(s, generator)[0], batch(s + 1, generator)[0]]) for s in (0, 2)]
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert not torch.equal(*epochs)


def test_fresh_batches_may_come_from_a_function():
    asked = []

    def batches(step, generator):
        asked.append(step)
        return diagnostics.adding(6, 4, 1, seed=int(generator.integers(9))).train

    model = Readout(nn.LSTM(2, 3, batch_first=True), 3, 1)
    assert train(model, batches, steps=3, lr=0.01, loss="mse").losses.shape == (3,)
    assert asked == [0, 1, 2]


def test_divergence_stops_the_run_and_is_reported():
    model, one = nn.Linear(1, 1), torch.ones(1, 1)
    history = train(model, (one, one), steps=50, lr=1e9, loss="mse", optimizer="sgd")
    assert torch.isfinite(model.weight).all()  # no update after the loss that was not finite
    assert history.diverged and history.loss == float("inf") and "diverged" in repr(history)
    assert np.isnan(history.losses[-1]) and np.isfinite(history.losses[0])


def test_the_score_sees_eval_mode_and_training_goes_on():
    modes = []
    run(steps=4, every=2, score=lambda model: modes.append(model.training) or 0.0)
    assert modes == [False, False]


def test_early_numbers_are_data():
    history = run(steps=6)
    assert history.early(3, 2) == [round(float(v), 2) for v in history.losses[:3]]


def test_nothing_is_printed_where_nobody_watches(capfd):
    run(steps=3)
    assert capfd.readouterr() == ("", "")


def test_a_readout_answers_at_the_end_or_at_every_step():
    layer, x = nn.GRU(3, 5, batch_first=True), torch.zeros(2, 7, 3)
    assert Readout(layer, 5, 4)(x).shape == (2, 4)
    assert Readout(layer, 5, 4, every_step=True)(x).shape == (2, 7, 4)


def test_accuracy_counts_right_answers():
    x, y = torch.eye(4), torch.tensor([0, 1, 2, 0])
    assert accuracy((x, y), batch_size=3)(nn.Identity()) == 0.75


def test_accuracy_leaves_out_what_is_not_asked_for():
    x, y = torch.eye(4)[None], torch.tensor([[0, -100, 2, 0]])
    assert accuracy((x, y))(nn.Identity()) == pytest.approx(2 / 3)


def test_seeds_give_mean_and_sample_spread():
    result = seeds(lambda seed: [1.0, 3.0][seed], range(2))
    assert result == Seeds((1.0, 3.0)) and result.mean == 2
    assert result.spread == pytest.approx(2**0.5) and repr(result) == "2 ± 1.4 (2 seeds)"
    assert seeds(lambda seed: 5.0, [0]).spread == 0


def test_seeds_set_torch_for_the_model_that_is_built_inside():
    draw = lambda seed: torch.rand(()).item()  # noqa: E731
    assert seeds(draw) == seeds(draw) and len(set(seeds(draw).values)) == 3


def test_the_best_rate_wins_nan_never_does_and_the_edge_is_told():
    score = {0.1: float("nan"), 0.2: 5.0, 0.4: 9.0, 0.8: 1.0}
    sweep = best_lr(lambda lr, seed: score[lr], list(score))
    assert sweep.best == 0.4 and not sweep.at_edge
    low = best_lr(lambda lr, seed: score[lr], list(score), largest=False)
    assert low.best == 0.8 and low.at_edge


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps: expected at least 1, got 0"),
        ({"steps": 1.5}, TypeError, "steps: expected a whole number"),
        ({"lr": -1.0}, ValueError, "lr: expected a positive number, got -1"),
        ({"lr": float("nan")}, ValueError, "lr: expected a positive number"),
        ({"clip": 0.0}, ValueError, "clip: expected a positive number"),
        ({"loss": "hinge"}, ValueError, "loss: expected one of .*got 'hinge'"),
        ({"optimizer": "lion"}, ValueError, "optimizer: expected one of .*got 'lion'"),
        ({"batch_size": 0}, ValueError, "batch_size: expected at least 1"),
        ({"every": 0}, ValueError, "every: expected at least 1"),
    ],
)
def test_bad_settings_are_named(options, error, words):
    with pytest.raises(error, match=words):
        run(**options)


def test_x_and_y_of_different_length_are_refused():
    with pytest.raises(ValueError, match=r"data: expected .* equal length, got lengths 3 and 2"):
        train(nn.Linear(1, 1), (torch.zeros(3, 1), torch.zeros(2, 1)), steps=1, lr=1.0)


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="data: expected at least one example"):
        train(classifier(), (np.zeros((0, 64), "f4"), np.zeros(0, int)), steps=1, lr=0.1)


def test_no_seed_and_no_rate_are_refused():
    with pytest.raises(ValueError, match="which: expected at least one seed"):
        seeds(lambda seed: 0.0, [])
    with pytest.raises(ValueError, match="rates: expected at least one"):
        best_lr(lambda lr, seed: 0.0, [])
    with pytest.raises(ValueError, match="run: expected a number"):
        best_lr(lambda lr, seed: float("nan"), [1.0, 2.0])
