"""What chapter 20 shares: flocks that learn as their networks do alone, tasks, one-shot cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chapters.support import search as shared
from gatelib.lab import train
from gatelib.lab.one_shot import one_shot
from gatelib.lab.search import Parts, everything

REGISTERS = shared.task("registers")
X = torch.as_tensor(REGISTERS.valid[0])[:20]


def parameters(layer):
    return sum(weight.numel() for weight in layer.parameters())


@pytest.mark.parametrize("parts", [Parts(), Parts("open", "rest", "relu", "own", "state")])
def test_a_network_of_a_flock_learns_what_it_learns_alone(parts):
    nets = shared.starts(parts.spec, REGISTERS, 5, (3, 4))
    (alone,) = shared.starts(parts.spec, REGISTERS, 5, (4,))
    flock = shared.trained(shared.Flock(nets), REGISTERS.train, (0.3, 0.01), 6, 0)
    options = {"steps": 6, "lr": 0.01, "batch_size": 32, "clip": 1.0, "seed": 0}
    train(alone, REGISTERS.train, **options)
    with torch.no_grad():
        torch.testing.assert_close(flock(X)[:, :, 1], alone(X), atol=1e-4, rtol=1e-4)


def test_no_weight_leads_from_one_network_of_a_flock_to_another():
    nets = shared.starts(Parts().spec, REGISTERS, 4, (0, 1, 2))
    flock = shared.trained(shared.Flock(nets), REGISTERS.train, (0.1,) * 3, 3, 0)
    for name, mask in flock.masks.items():
        weight = flock.get_parameter(name)
        assert (weight[mask == 0] == 0).all() and (weight[mask == 1] != 0).all()


def test_a_network_at_far_too_large_a_rate_leaves_the_others_alone():
    nets = shared.starts(Parts("open", "rest").spec, REGISTERS, 4, (0, 1))
    first, second = (
        shared.trained(shared.Flock(nets), REGISTERS.train, (0.01, rate), 8, 0)
        for rate in (0.01, 30.0)
    )
    found = [shared.bits(flock, REGISTERS.valid) for flock in (first, second)]
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4)
    assert found[1][1] > found[0][1] + 0.5


def test_a_loss_that_is_no_number_has_no_slope():
    logits = torch.tensor([[[[1.0, float("nan")]], [[0.5, 0.1]]]], requires_grad=True)
    shared.costs(logits, torch.tensor([[0, 1]])).sum().backward()
    assert logits.grad.isfinite().all() and logits.grad[0, 0, 0, 1] == 0


def test_a_layer_of_any_cell_has_about_the_weights_of_an_lstm():
    goal = 4 * 10 * (9 + 10 + 1)
    for parts in everything(candidate=("tanh",))[::9]:
        units = shared.width_like(parts.spec, 9, 10)
        layer = shared.starts(parts.spec, REGISTERS, units, (0,))[0].layer
        assert 0.9 < parameters(layer) / goal < 1.1, parts


def test_guessing_costs_the_logarithm_of_the_answers():
    (net,) = shared.starts(Parts().spec, REGISTERS, 4, (0,))
    for weight in net.parameters():
        weight.data.zero_()
    (found,) = shared.bits(net, REGISTERS.test)
    assert abs(found - np.log2(3)) < 1e-6


def test_the_letters_are_those_of_a_text_and_each_answer_is_the_next_letter():
    x, y = shared.task("letters").train
    np.testing.assert_array_equal(x[:, 1:].argmax(-1), y[:, :-1])
    assert y.min() == 0 and y.max() == 26 and (x.sum(-1) == 1).all()


@pytest.mark.parametrize("kind", ["softmax", "hard concrete", "one path"])
def test_the_choices_of_a_one_shot_net_share_one(kind):
    nets = shared.starts(one_shot(), REGISTERS, 4, (0, 1))
    weights = shared.OneShot(nets, kind).weights()
    torch.testing.assert_close(weights.sum(1), torch.full((2,), 5.0))
    assert kind != "one path" or set(weights.flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("parts", [Parts(), Parts("none", "all", "relu", "own", "both")])
def test_a_one_shot_net_that_is_fixed_is_the_cell(parts):
    """With the weights of its gates, and what it doesn't have left out."""
    (net,) = shared.starts(one_shot(), REGISTERS, 4, (0,))
    flock = shared.OneShot([net], "softmax")
    flock.fix(parts)
    (own,) = shared.starts(parts.spec, REGISTERS, 4, (1,))
    own.linear.load_state_dict(net.linear.state_dict())
    many, few = net.layer.cell.gates, own.layer.cell.gates
    rows = [many.index(gate) * 4 + unit for gate in few for unit in range(4)]
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0"):
        own.layer.get_parameter(name).data = net.layer.get_parameter(name).data[rows]
    second = net.layer.bias_hh_l0.data[rows]
    if parts.reset == "none":
        own.layer.bias_ih_l0.data += second
    else:
        own.layer.bias_hh_l0.data = second
    with torch.no_grad():
        torch.testing.assert_close(flock(X)[:, :, 0], own(X), atol=1e-5, rtol=1e-5)


def test_the_weights_and_the_choices_take_turns():
    nets = shared.starts(one_shot(), REGISTERS, 4, (0,))
    flock = shared.OneShot(nets, "softmax")
    drawn = flock.whole.layer.weight_ih_l0.detach().clone()
    batches = shared.taking_turns(REGISTERS)
    shared.trained(flock, batches, (0.01,), 1, 0)
    assert not flock.alpha.any() and (flock.whole.layer.weight_ih_l0 != drawn).any()
    shared.trained(flock, batches, (0.01,), 2, 0)
    assert flock.alpha.any()


def test_a_path_is_judged_by_the_loss_with_shared_weights():
    cells = [Parts(), Parts("open"), Parts("none", "all")]
    flock = shared.OneShot(shared.starts(one_shot(), REGISTERS, 4, (0,)), "one path")
    scores = shared.held(flock, REGISTERS, cells)
    flock.fix(cells[1])
    assert scores.shape == (1, 3)
    assert scores[0, 1] == -shared.bits(flock, REGISTERS.valid)[0]
    softmax = shared.OneShot(shared.starts(one_shot(), REGISTERS, 4, (0,)), "softmax")
    softmax.alpha.data[0, softmax.names.index("p_keep_open")] = 3.0
    assert shared.held(softmax, REGISTERS, cells)[0].argmax() == 1
