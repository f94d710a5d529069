"""Routers choose what their equations say, and nothing but the logits of the chosen learns.

Imports gatelib.nn, gatelib.equations and torch.
Must not import gatelib.reference: tests/families holds routers against it.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib.equations import routers as equations
from gatelib.nn import ExpertChoiceRouter, HashRouter, TopKRouter
from gatelib.nn.balance import expert_counts
from gatelib.nn.routers import top_indices

D = 6
NAMES = sorted(equations.CONFIGURATIONS)


def small(name, **changes):
    """A published router of few experts: two a group at least."""
    given = equations.CONFIGURATIONS[name]
    experts = given.groups * max(2, given.group_score) if given.groups > 1 else 6
    k = min(given.k, 3, experts)
    return TopKRouter.from_config(name, D, **{"experts": experts, "k": k} | changes)


def spread(router, dtype=torch.float64):
    torch.manual_seed(3)
    router = router.to(dtype)
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter)
    if router.selection_bias is not None:
        torch.nn.init.normal_(router.selection_bias, std=0.2)
    return router


def identity(logits, **options):
    """A router whose logits are these (N, E)."""
    experts = logits.size(-1)
    router = TopKRouter(experts, experts, **options).to(logits.dtype)
    with torch.no_grad():
        router.weight.copy_(torch.eye(experts))
    return router, router(logits)


# ---- what is chosen -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_published_router_weighs_as_its_equation_says_with_every_gradient(name):
    router = spread(small(name)).eval()
    x = torch.randn(7, D, dtype=torch.float64, requires_grad=True)
    routing = router(x)
    mask = torch.zeros(7, router.experts, dtype=torch.float64).scatter(1, routing.indices, 1)
    spec = equations.CONFIGURATIONS[name].spec
    named = {"a": routing.logits, "mask": mask}
    if "c" in map(str, spec.inputs):
        named["c"] = torch.full((7, router.experts), router.scale, dtype=torch.float64)
    expected = spec.evaluate(named, "torch")["w"].gather(1, routing.indices)
    assert (routing.weights - expected).abs().max() <= 1e-12
    dw = torch.randn(7, router.k, dtype=torch.float64)
    wanted = [x, *(p for p in (router.weight, router.bias) if p is not None)]
    found = torch.autograd.grad((routing.weights * dw).sum(), wanted, retain_graph=True)
    for mine, theirs in zip(found, torch.autograd.grad((expected * dw).sum(), wanted), strict=True):
        assert (mine - theirs).abs().max() <= 1e-12


def chosen_by_hand(router, logits):
    """The experts of one token, by comparing pairs: (value, lower index first)."""
    scores = {
        "softmax": lambda z: torch.softmax(z, -1),
        "sigmoid": torch.sigmoid,
        "sqrt_softplus": lambda z: torch.log1p(z.exp()).sqrt(),
    }[router.score](logits)
    ranked = (logits if router.select == "before" else scores).tolist()
    if router.selection_bias is not None:
        ranked = [r + b for r, b in zip(ranked, router.selection_bias.tolist(), strict=True)]
    size = len(ranked) // router.groups
    groups = [ranked[i : i + size] for i in range(0, len(ranked), size)]
    best = [sum(sorted(g, reverse=True)[: router.group_score]) for g in groups]
    kept = sorted(range(len(groups)), key=lambda g: (-best[g], g))[: router.kept_groups]
    open_to = [i for i in range(len(ranked)) if i // size in kept]
    return sorted(open_to, key=lambda i: (-ranked[i], i))[: router.k]


@pytest.mark.parametrize("name", NAMES)
def test_a_published_router_chooses_as_comparing_by_hand_does(name):
    router = spread(small(name)).eval()
    routing = router(torch.randn(20, D, dtype=torch.float64))
    for indices, logits in zip(routing.indices, routing.logits, strict=True):
        assert indices.tolist() == chosen_by_hand(router, logits)


@pytest.mark.parametrize("name", NAMES)
def test_a_published_router_has_its_own_sizes_unless_told_otherwise(name):
    router, given = TopKRouter.from_config(name, 2), equations.CONFIGURATIONS[name]
    for key in ("experts", "k", "score", "select", "renormalize", "scale", "groups", "kept_groups"):
        assert getattr(router, key) == getattr(given, key), key
    for key in ("bias", "selection_bias"):
        assert (getattr(router, key) is not None) == getattr(given, key)
    assert (router.weight_noise is not None) == given.noise


@given(st.integers(1, 9), st.integers(1, 5), st.data())
def test_of_equal_values_the_lowest_index_wins(experts, tokens, data):
    k = data.draw(st.integers(1, experts))
    few = st.sampled_from([-1.0, 0.0, 0.5])
    values = data.draw(st.lists(st.lists(few, min_size=experts, max_size=experts), min_size=tokens))
    if not values:
        return
    for row, found in zip(values, top_indices(torch.tensor(values), k).tolist(), strict=True):
        assert found == sorted(range(experts), key=lambda i: (-row[i], i))[:k]


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrt_softplus"])
def test_all_equal_logits_choose_the_first_experts(score):
    _, routing = identity(torch.zeros(4, 5), k=3, score=score)
    assert routing.indices.tolist() == [[0, 1, 2]] * 4


def test_a_masked_group_never_wins_even_if_all_that_is_open_is_negative():
    router, _ = identity(torch.zeros(1, 4), k=2, groups=2, kept_groups=1, selection_bias=True)
    router.selection_bias.copy_(torch.tensor([-5.0, -9.0, -6.0, -7.0]))
    assert router(torch.zeros(1, 4)).indices.tolist() == [[0, 1]]


def test_the_selection_bias_is_in_no_weight_and_has_no_gradient():
    logits = torch.tensor([[2.0, 1.0, -3.0]], dtype=torch.float64, requires_grad=True)
    router, plain = identity(logits, k=2, score="sigmoid", selection_bias=True)
    router.selection_bias.copy_(torch.tensor([-9.0, 0.0, 9.0]))
    routing = router(logits)
    assert routing.indices.tolist() == [[2, 1]]
    s = torch.sigmoid(logits.detach())[0]
    assert torch.allclose(routing.weights[0], torch.stack([s[2], s[1]]) / (s[1] + s[2]))
    assert torch.equal(routing.scores, plain.scores)


def test_a_large_selection_bias_leaves_weights_apart_that_a_difference_would_lose():
    """(s + b) - b in float32 at b = 12 rounds every s below 5e-7 to the same number."""
    logits = torch.linspace(-18, -15, 8)[None]
    router, _ = identity(logits, k=8, score="sigmoid", selection_bias=True, renormalize=False)
    router.selection_bias.fill_(12.0)
    assert len(set(router(logits).weights[0].tolist())) == 8
    s = torch.sigmoid(logits)
    assert len(set(((s + 12) - 12)[0].tolist())) == 1


# ---- weights and gradients ----------------------------------------------------------------------


def test_with_one_expert_and_renormalisation_the_router_learns_nothing_at_all():
    for select in ("after", "before"):
        router = TopKRouter(D, 4, 1, select=select)
        router(torch.randn(50, D)).weights.square().sum().backward()
        assert router.weight.grad.abs().max() == 0.0


@given(st.sampled_from(["softmax", "sigmoid", "sqrt_softplus"]), st.sampled_from([30.0, 3e3, 3e37]))
@settings(deadline=None)
def test_extreme_logits_give_finite_weights_that_sum_to_the_scale(score, size):
    logits = torch.tensor([[-size, -size, -size / 2], [size, -size, 0], [size, size, size]])
    _, routing = identity(logits.requires_grad_(), k=2, score=score, scale=2.5)
    assert torch.allclose(routing.weights.sum(-1), torch.full((3,), 2.5))
    routing.weights.square().sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrt_softplus"])
@pytest.mark.parametrize("renormalize", [True, False])
def test_first_and_second_derivatives_of_the_weights(score, renormalize):
    router = spread(TopKRouter(3, 4, 2, score=score, renormalize=renormalize, scale=1.7))
    x = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: router(x).weights, x)
    assert torch.autograd.gradgradcheck(lambda x: router(x).weights, x)


def test_square_root_softplus_keeps_its_digits_at_both_ends():
    logits = torch.tensor([[-200.0, -39.9, -40.1, 0.0, 40.0]], dtype=torch.float64)
    _, routing = identity(logits, k=5, score="sqrt_softplus", renormalize=False)
    z = logits[0].tolist()
    expected = torch.tensor([z[0] / 2, z[1] / 2, z[2] / 2], dtype=torch.float64).exp()
    found = routing.scores[0]
    assert (found[:3] / expected - 1).abs().max() < 1e-13
    assert abs(found[4].item() ** 2 - 40.0) < 1e-13


# ---- noise --------------------------------------------------------------------------------------


def test_jitter_reaches_the_router_alone_and_leaves_its_input_as_it_was():
    router = spread(TopKRouter(D, 4, 2, jitter=0.5), torch.float32)
    x = torch.randn(9, D)
    before = x.clone()
    first, second = router(x), router(x)
    assert torch.equal(x, before) and not torch.equal(first.logits, second.logits)
    router.eval()
    assert torch.equal(router(x).logits, x @ router.weight.t())


def test_learned_noise_starts_even_is_off_in_eval_and_can_learn():
    router = TopKRouter.from_config("shazeer2017", D, experts=8, k=2)
    x = torch.randn(400, D)
    routing = router(x)
    counts = expert_counts(routing.indices, 8)
    assert counts.min() > 60 and torch.equal(routing.clean, torch.zeros(400, 8))
    assert torch.equal(router.eval()(x).indices, torch.tensor([[0, 1]] * 400))
    router = spread(router, torch.float32).train()
    router(x).weights.square().sum().backward()
    assert router.weight_noise.grad.abs().max() > 0


# ---- precision ----------------------------------------------------------------------------------


def test_a_router_of_low_precision_computes_in_float32_unless_told_otherwise():
    wide = spread(TopKRouter(64, 128, 8), torch.float32)
    x = torch.randn(500, 64).bfloat16()
    exact = TopKRouter(64, 128, 8)
    low, own = TopKRouter(64, 128, 8).bfloat16(), TopKRouter(64, 128, 8, float32=False).bfloat16()
    for router in (low, own):
        router.load_state_dict(wide.state_dict())
    exact.load_state_dict(low.state_dict())
    truth = exact(x.float())
    found, rounded = low(x), own(x)
    assert found.weights.dtype == torch.float32 and torch.equal(found.indices, truth.indices)
    assert rounded.logits.dtype == torch.bfloat16
    assert (rounded.indices.sort(-1).values != truth.indices.sort(-1).values).any()


def test_autocast_doesnt_narrow_a_router_unless_told_so():
    x = torch.randn(20, D)
    for wide, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        router = TopKRouter(D, 8, 2, float32=wide)
        with torch.autocast("cpu", torch.bfloat16):
            found = router(x).logits
        assert found.dtype == dtype
        if wide:
            assert torch.equal(found, router(x).logits)


def test_the_selection_bias_stays_in_float32_when_the_model_is_cast():
    router = TopKRouter(D, 3, 1, selection_bias=True)
    router.selection_bias.copy_(torch.tensor([1.0, 1.001, -1.0]))
    kept = router.selection_bias.clone()
    for cast in (router.bfloat16(), router.half(), router.to(torch.bfloat16)):
        assert torch.equal(cast.selection_bias, kept)
    assert router.double().selection_bias.dtype == torch.float64


# ---- padding ------------------------------------------------------------------------------------

ROUTERS = {
    "softmax": lambda: TopKRouter(D, 5, 2),
    "sigmoid": lambda: TopKRouter(D, 4, 2, score="sigmoid", groups=2, kept_groups=1),
    "noisy": lambda: TopKRouter(D, 5, 2, noise=True, select="before"),
    "experts choose": lambda: ExpertChoiceRouter(D, 5),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_padding_has_no_expert_and_changes_nothing_even_if_it_is_nan(name):
    router = ROUTERS[name]().eval()
    torch.manual_seed(0)
    x, live = torch.randn(3, 4, D), torch.rand(3, 4) < 0.6
    alone = router(x[live])
    x[~live] = torch.nan
    x.requires_grad_()
    routing = router(x, live)
    assert torch.equal(routing.indices[live.flatten()], alone.indices)
    assert torch.allclose(routing.weights[live.flatten()], alone.weights)
    assert (routing.indices[~live.flatten()] == router.experts).all()
    routing.weights.square().sum().backward()
    assert (x.grad[~live] == 0).all() and torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in router.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ROUTERS)
def test_all_padding_and_no_token_at_all_are_routed_nowhere(name):
    router = ROUTERS[name]()
    routing = router(torch.randn(2, 3, D), torch.zeros(2, 3, dtype=torch.bool))
    assert (routing.indices == router.experts).all() and (routing.weights == 0).all()
    assert len(router(torch.randn(0, D)).indices) == 0


# ---- by hash, and by the experts ----------------------------------------------------------------


def test_a_hash_gives_an_id_the_same_experts_wherever_it_stands_and_spreads_ids():
    router = HashRouter(7, 3)
    ids = torch.randint(0, 10**6, (5000,))
    one, two = (router(torch.zeros(len(i), 1), tokens=i).indices for i in (ids, ids.flip(0)))
    assert torch.equal(one, two.flip(0))
    assert (one.sort(-1).values.diff(dim=-1) > 0).all()  # three different experts
    counts = expert_counts(one, 7).double()
    assert (counts / counts.mean() - 1).abs().max() < 0.1
    other = HashRouter(7, 3, seed=1)(torch.zeros(5000, 1), tokens=ids).indices
    assert 0.05 < (other[:, 0] == one[:, 0]).double().mean() < 0.25


@given(st.integers(1, 6), st.integers(1, 12), st.data())
@settings(deadline=None)
def test_experts_choose_equally_many_tokens_and_a_tokens_weight_is_its_score(experts, tokens, data):
    factor = data.draw(st.sampled_from([0.5, 1.0, 1.25, float(experts)]))
    if factor > experts:
        return
    router = ExpertChoiceRouter(D, experts, factor)
    routing = router(torch.randn(tokens, D))
    most = min(tokens, -(-int(factor * 100) * tokens // (100 * experts)))
    assert expert_counts(routing.indices, experts).tolist() == [most] * experts
    named = routing.indices < experts
    assert torch.equal(routing.weights, torch.where(named, routing.scores, 0))
    for e in range(experts):
        chosen, left = routing.scores[named[:, e], e], routing.scores[~named[:, e], e]
        assert not len(left) or not len(chosen) or chosen.min() >= left.max()


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"k": 5}, ValueError, "k: expected at most the 4 experts to choose from, got 5"),
        ({"k": 0}, ValueError, "k: expected at least 1, got 0"),
        ({"experts": 2.0}, TypeError, "experts: expected an integer, got float"),
        ({"groups": 3}, ValueError, "groups: expected a divisor of the 4 experts, got 3"),
        ({"groups": 2, "kept_groups": 3}, ValueError, "kept_groups: expected at most groups = 2"),
        ({"groups": 2, "group_score": 3}, ValueError, "group_score: expected at most the 2 exp"),
        ({"k": 3, "groups": 2, "kept_groups": 1}, ValueError, "k: expected at most the 2 experts"),
        ({"score": "tanh"}, ValueError, "score: expected one of 'sigmoid', 'softmax', 'sqrt_sof"),
        ({"select": "never"}, ValueError, "select: expected one of 'after', 'before'; got"),
        ({"scale": "1"}, TypeError, "scale: expected a real number, got str"),
        ({"jitter": 2}, ValueError, r"jitter: expected a probability in \[0, 1\], got 2"),
        ({"float32": 1}, TypeError, "float32: expected True or False, got int"),
        ({"dtype": torch.int64}, TypeError, "dtype: expected a floating-point torch.dtype"),
    ],
)
def test_a_wrong_argument_is_named(options, error, says):
    with pytest.raises(error, match=says):
        TopKRouter(**{"features": D, "experts": 4, "k": 2} | options)


def test_a_wrong_name_tensor_or_mask_is_named():
    with pytest.raises(ValueError, match=r"name: expected one of .*'switch'; got 'gpt5'"):
        TopKRouter.from_config("gpt5", D)
    with pytest.raises(ValueError, match="group_score: expected at most the 1 experts of a group"):
        TopKRouter.from_config("deepseek_v3", D, experts=8, k=2)
    assert TopKRouter.from_config("deepseek_v3", D, experts=8, k=2, groups=1).kept_groups == 1
    router = TopKRouter(D, 4, 2)
    for x, live, says in (
        (torch.randn(3, D + 1), None, r"input: expected \(..., 6\), got shape \(3, 7\)"),
        (torch.randn(3, D).double(), None, "input: expected torch.float32 as the weights"),
        (torch.randn(3, D), torch.ones(3), r"live: expected torch.bool \(3,\), got torch.float32"),
        (torch.randn(3, D), torch.ones(2, dtype=torch.bool), r"live: .* got torch.bool \(2,\)"),
    ):
        with pytest.raises((TypeError, ValueError), match=says):
            router(x, live)
    with pytest.raises(TypeError, match=r"tokens: expected ids of torch.int64, got None"):
        HashRouter(4)(torch.randn(3, D))
    with pytest.raises(ValueError, match=r"tokens: expected shape \(3,\), got \(2,\)"):
        HashRouter(4)(torch.randn(3, D), tokens=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="k: expected at most the 4 experts, got 5"):
        HashRouter(4, 5)
    with pytest.raises(ValueError, match="capacity_factor: expected 0 to E, got 9"):
        ExpertChoiceRouter(D, 4, 9)
