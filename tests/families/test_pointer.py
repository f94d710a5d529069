"""The pointer-generator: equations, NumPy and torch agree, and no switch is too far for it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from gatelib import derived, lab
from gatelib.equations import pointer as equations
from gatelib.functions import exact
from gatelib.nn import PointerGenerator, copy_mixture, extended_vocabulary, init
from gatelib.reference import pointer as reference
from gatelib.spec import symbol
from tests.families.witnesses import assert_agree

EXTRA = 2


def problem(B=3, T=2, V=4, S=5, F=3, seed=0, scale=1.0):
    """Inputs and upstream gradients, words of the source, and lengths, 0 among them."""
    rng = np.random.default_rng(seed)
    weights = reference.initialize(rng, F)
    weights["b"] = weights["b"] + scale * rng.normal()
    source = rng.integers(0, V + EXTRA, (B, S))
    lengths = np.minimum(np.array([5, 0, 2, 1])[:B], S)
    attention = rng.dirichlet(np.ones(S), (B, T))
    inputs = {"logits": scale * rng.normal(size=(B, T, V)), "attention": attention}
    inputs |= {"features": rng.normal(size=(B, T, F))} | weights
    live = np.arange(S) < lengths[:, None]
    possible = ((source[..., None] == np.arange(V + EXTRA)) & live[..., None]).any(axis=1)
    possible[:, :V] = True
    dy = rng.normal(size=(B, T, V + EXTRA)) * possible[:, None]
    return inputs, {"y": dy, "p": rng.normal(size=(B, T))}, source, lengths


def by_equations(inputs, upstream, source, lengths):
    told = {"source": source, "extra": EXTRA, "lengths": lengths}
    given = inputs | {"b": inputs["b"][None]}
    run = partial(derived.pointer.mixture, equations.POINTER, **told)

    def squeezed(values):
        return run(values | {"b": values["b"][0]})

    found = derived.gradients(squeezed, given, upstream)
    return found | {"d_b": found["d_b"][0]}


def by_hand(inputs, upstream, source, lengths):
    arrays = [inputs[k] for k in ("logits", "attention")]
    weights = {k: inputs[k] for k in "wb"}
    told = inputs["features"], weights, EXTRA, lengths
    y, p, saved = reference.forward(*arrays, source, *told)
    found = reference.backward(upstream["y"], upstream["p"], saved)
    return {"y": y, "p": p} | {f"d_{name}": value for name, value in found.items()}


def by_torch(inputs, upstream, source, lengths):
    size = inputs["features"].shape[-1]
    layer = PointerGenerator(1, size - 1, dtype=torch.float64)
    words, ends = torch.tensor(source), torch.tensor(lengths)

    def run(values):
        own = {"switch.weight": values["w"][None], "switch.bias": values["b"][None]}
        context, state = values["features"].split([1, size - 1], -1)
        seen = values["logits"], values["attention"], words, context, state, None, EXTRA, ends
        y, p = lab.called(layer, own, *seen)
        return {"y": y, "p": p}

    return lab.gradients(run, inputs, upstream)


def finite(found):
    """The same with 0 for −∞, of which all must have the same."""
    return found | {"y": np.where(np.isneginf(found["y"]), 0, found["y"])}


def assert_all_agree(case, bound):
    expected = by_equations(*case)
    for witness in (by_hand, by_torch):
        found = witness(*case)
        np.testing.assert_array_equal(np.isneginf(found["y"]), np.isneginf(expected["y"]))
        assert_agree(finite(found), finite(expected), bound)


@pytest.mark.parametrize("seed", range(4))
def test_all_witnesses_agree(seed):
    assert_all_agree(problem(seed=seed), 1e-11)


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), *[st.integers(1, 4)] * 3, st.integers(2, 4)),
    seed=st.integers(0, 99),
)
def test_all_witnesses_agree_for_any_shape(shape, seed):
    case = problem(*shape, seed=seed)
    size = max(np.abs(v).max(initial=0.0) for v in finite(by_equations(*case)).values())
    assert_all_agree(case, 1e-12 * (1 + size))


def test_the_probabilities_of_every_step_sum_to_one():
    inputs, upstream, source, _ = problem(scale=3.0)
    y = by_hand(inputs, upstream, source, None)["y"]
    np.testing.assert_allclose(np.exp(y).sum(-1), 1, atol=1e-14)


def test_the_logarithm_of_the_mixture_is_the_mixture_of_logarithms():
    a, u, v = (symbol(name) for name in ("a", "u", "v"))
    logs = {symbol("l_u"): sp.log(u), symbol("l_v"): sp.log(v)}
    values = {name: exact(e) for name, e in equations.LOG_POINTER.exposed.compose().items()}
    s, t = (sp.exp(values[name].subs(logs)) for name in "st")
    mixture = exact(equations.POINTER.compose()["y"])
    positive = {u: sp.Symbol("u", positive=True), v: sp.Symbol("v", positive=True)}
    assert sp.simplify((s + t - mixture).subs(positive)) == 0
    rng = np.random.default_rng(0)
    given = {"a": rng.normal(size=50), "u": rng.uniform(size=50), "v": rng.uniform(size=50)}
    given |= {"l_u": np.log(given["u"]), "l_v": np.log(given["v"])}
    found = equations.LOG_POINTER.evaluate(given)["y"]
    np.testing.assert_allclose(found, np.log(equations.POINTER.evaluate(given)["y"]), atol=1e-14)
    alone = given | {"l_v": np.full(50, -np.inf)}
    expected = given["l_u"] - np.logaddexp(0, -given["a"])
    np.testing.assert_allclose(equations.LOG_POINTER.evaluate(alone)["y"], expected, atol=1e-14)
    assert a in mixture.free_symbols


def test_places_of_the_same_word_are_summed():
    attention = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]])
    source = torch.tensor([[5, 2, 5, 3]])
    y = copy_mixture(torch.zeros(1, 1, 5), attention, source, torch.full((1, 1), -200.0), 1)
    expected = torch.tensor([0.0, 0.0, 0.2, 0.4, 0.0, 0.4])
    torch.testing.assert_close(y.exp()[0, 0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_switch_far_shut_still_gives_the_probability_and_its_gradient(dtype):
    """At a = −200 a word that no place has keeps log p − log V; at 200 a copy log (1 − p)."""
    attention, source = torch.tensor([[[0.25, 0.75]]], dtype=dtype), torch.tensor([[0, 4]])
    logits = torch.zeros(1, 1, 4, dtype=dtype)
    for at, word, expected in ((-200.0, 1, -200 - np.log(4)), (200.0, 4, -200 + np.log(0.75))):
        switch = torch.full((1, 1), at, dtype=dtype, requires_grad=True)
        y = copy_mixture(logits, attention, source, switch, 1)
        torch.testing.assert_close(y[0, 0, word], torch.tensor(expected, dtype=dtype))
        y[0, 0, word].backward()
        assert switch.grad.item() == pytest.approx(-np.sign(at))


def test_an_impossible_word_has_no_probability_and_passes_no_gradient():
    attention = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    logits, switch = (torch.zeros(shape, requires_grad=True) for shape in ((1, 1, 3), (1, 1)))
    y = copy_mixture(logits, attention, torch.tensor([[3, 4]]), switch, 3)
    assert torch.isneginf(y[0, 0, 4:]).all()
    torch.where(y.isfinite(), y, 0).sum().backward()
    for value in (attention, logits, switch):
        assert value.grad.isfinite().all()
    assert attention.grad[0, 0, 1] == 0


def test_nothing_past_a_length_is_copied_whatever_stands_there():
    inputs, _, source, lengths = problem()
    given = [torch.tensor(inputs[k]) for k in ("logits", "attention")]
    switch = torch.zeros(3, 2, dtype=torch.float64)
    live = torch.arange(5) < torch.tensor(lengths)[:, None]
    spoiled = given[1].masked_fill(~live[:, None], torch.nan)
    words, ends = torch.tensor(source), torch.tensor(lengths)
    found = copy_mixture(given[0], spoiled, words, switch, EXTRA, ends)
    assert torch.equal(found, copy_mixture(*given, words, switch, EXTRA, ends))


def test_first_and_second_derivatives_are_right():
    inputs, _, source, _ = problem(B=2, T=1, V=3, S=3)
    words = torch.tensor(source[:2] % 4)
    logits, attention = (
        torch.tensor(inputs[k], requires_grad=True) for k in ("logits", "attention")
    )
    switch = torch.randn(2, 1, dtype=torch.float64, requires_grad=True)

    def probabilities(logits, attention, switch):
        return copy_mixture(logits, attention, words, switch, 1).exp()

    given = logits, attention, switch
    assert gradcheck(probabilities, given) and gradgradcheck(probabilities, given)


def test_rare_words_are_numbered_anew_in_each_sentence():
    source = torch.tensor([[90, 3, 70, 90], [70, 1, 2, 0]])
    extended, rare = extended_vocabulary(source, 5)
    assert extended.tolist() == [[5, 3, 6, 5], [5, 1, 2, 0]]
    assert rare.tolist() == [[90, 70], [70, -1]]
    same, none = extended_vocabulary(torch.tensor([[1, 2]]), 5)
    assert same.tolist() == [[1, 2]] and none.shape == (1, 0)


def layer_and_inputs():
    torch.manual_seed(0)
    layer, source = PointerGenerator(3, 4, 2), torch.randint(0, 7, (2, 5))
    parts = torch.randn(2, 6, 3), torch.randn(2, 6, 4), torch.randn(2, 6, 2)
    attention = torch.randn(2, 6, 5).softmax(-1)
    return layer, (torch.randn(2, 6, 5), attention, source, *parts, 2, torch.tensor([5, 3]))


def test_compiled_and_exported_it_is_the_same():
    layer, given = layer_and_inputs()
    expected = layer(*given)
    whole = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for found in (whole(*given), torch.export.export(layer, given).module()(*given)):
        torch.testing.assert_close(found, expected)


def test_mapped_it_is_the_layer_for_each():
    layer, (logits, *rest) = layer_and_inputs()
    both = torch.stack([logits, 2 * logits])
    found = torch.vmap(lambda x: layer(x, *rest)[0])(both)
    torch.testing.assert_close(found[1], layer(2 * logits, *rest)[0])


def test_under_autocast_the_distribution_is_of_float32():
    layer, given = layer_and_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        y, p = layer(given[0].bfloat16(), *given[1:])
    assert y.dtype == torch.float32 and p.dtype == torch.bfloat16
    ends = torch.arange(5) < given[-1][:, None]
    share = p.float() + (1 - p.float()) * (given[1] * ends[:, None]).sum(-1)
    torch.testing.assert_close(y.exp().sum(-1), share, atol=1e-2, rtol=0)


def test_the_switch_starts_where_its_bias_says():
    layer, given = layer_and_inputs()
    init.open_(layer, "p", 3.0)
    with torch.no_grad():
        layer.switch.weight.zero_()
    torch.testing.assert_close(layer(*given)[1], torch.full((2, 6), 3.0).sigmoid())


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"logits": torch.zeros(2, 5)}, ValueError, r"logits: expected \(B, T, V\)"),
        ({"attention": torch.zeros(2, 6, 4)}, ValueError, r"attention: expected \(2, 6, 5\)"),
        ({"source": torch.zeros(2, 5)}, TypeError, "source: expected torch.int64 or torch.int32"),
        ({"source": torch.zeros(3, 5).long()}, ValueError, "source: expected batch 2"),
        ({"source": torch.full((2, 5), 7)}, ValueError, "source: expected words from 0 to 6"),
        ({"context": torch.zeros(2, 6, 4)}, ValueError, r"context: expected \(B, T, 3\)"),
        ({"input": None}, ValueError, "input: expected a tensor, got None"),
        ({"extra": -1}, ValueError, "extra: expected at least 0"),
        ({"extra": 2.0}, TypeError, "extra: expected an integer"),
        ({"lengths": torch.tensor([6, 1])}, ValueError, "lengths: expected 0 to T = 5"),
    ],
)
def test_a_layer_names_bad_input(change, error, says):
    layer, given = layer_and_inputs()
    names = "logits attention source context state input extra lengths".split()
    with pytest.raises(error, match=says):
        layer(**dict(zip(names, given, strict=True)) | change)


@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        (lambda: PointerGenerator(0, 3), ValueError, "context_size: expected at least 1"),
        (lambda: PointerGenerator(3, 3, -1), ValueError, "input_size: expected at least 1"),
        (lambda: extended_vocabulary(torch.zeros(3), 2), TypeError, "source: expected torch.int"),
        (lambda: extended_vocabulary(torch.tensor([1]), 2), ValueError, r"source: expected \(B, S"),
    ],
)
def test_bad_arguments_are_named(act, error, says):
    with pytest.raises(error, match=says):
        act()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"logits": np.zeros((3, 4))}, ValueError, "logits: expected"),
        ({"attention": np.zeros((3, 2, 5), "f4")}, TypeError, "attention: expected float64"),
        ({"source": np.zeros((3, 4), int)}, ValueError, r"source: expected \(3, 5\)"),
        ({"source": np.zeros((3, 5))}, TypeError, "source: expected whole numbers"),
        ({"source": np.full((3, 5), 9)}, ValueError, "source: expected words from 0 to 5"),
        ({"weights": {}}, ValueError, r"weights: expected \['b', 'w'\]"),
        ({"lengths": np.array([6, 1, 1])}, ValueError, "lengths: expected 0 … 5"),
    ],
)
def test_the_reference_names_bad_input(change, error, says):
    inputs, _, source, lengths = problem()
    arguments = {k: inputs[k] for k in ("logits", "attention", "features")}
    arguments |= {"weights": {k: inputs[k] for k in "wb"}, "source": source}
    with pytest.raises(error, match=says):
        reference.forward(**arguments | {"extra": EXTRA, "lengths": lengths} | change)
