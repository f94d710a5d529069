"""Context gates: equations, NumPy by hand and torch agree; the limits are those of the page."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from gatelib import derived, lab
from gatelib.equations import context_gate as equations
from gatelib.nn import ContextGate, Decoder, DotAttention, init
from gatelib.reference import context_gate as reference
from gatelib.spec import symbol
from tests.families.witnesses import assert_agree, for_any_shape

NAMES = {"z": "gate", "t": "target_proj", "s": "source_proj"}
every_kind = pytest.mark.parametrize("kind", reference.KINDS)


def problem(kind, B=3, T=4, D=5, H=2, seed=0):
    rng = np.random.default_rng(seed)
    weights = reference.initialize(rng, D, D + 1, H, kind)
    inputs = {"target": rng.normal(size=(B, T, D)), "source": rng.normal(size=(B, T, D + 1))}
    return inputs | weights, {"y": rng.normal(size=(B, T, H))}


def by_equations(kind, inputs, upstream):
    spec = equations.KINDS[kind]
    return derived.gradients(partial(derived.context_gate.mix, spec), inputs, upstream)


def by_hand(kind, inputs, upstream):
    own = {k: v for k, v in inputs.items() if k not in ("target", "source")}
    y, saved = reference.forward(inputs["target"], inputs["source"], own, kind)
    found = reference.backward(upstream["y"], saved)
    return {"y": y} | {f"d_{name}": value for name, value in found.items()}


def layer_of(kind, inputs):
    sizes = (inputs[k].shape[-1] for k in ("target", "source"))
    return ContextGate(*sizes, len(inputs["b_t"]), kind, dtype=torch.float64)


def torchs(name):
    """The layer's name of a weight."""
    return f"{NAMES[name[-1]]}.{'weight' if name[0] == 'W' else 'bias'}"


def by_torch(kind, inputs, upstream):
    layer = layer_of(kind, inputs)

    def run(given):
        own = {torchs(k): v for k, v in given.items() if k not in ("target", "source")}
        return {"y": lab.called(layer, own, given["target"], given["source"])}

    return lab.gradients(run, inputs, upstream)


@every_kind
def test_all_witnesses_agree(kind):
    case = problem(kind)
    for witness in (by_hand, by_torch):
        assert_agree(witness(kind, *case), by_equations(kind, *case), 1e-12)


@for_any_shape(20, kind=st.sampled_from(reference.KINDS))
def test_all_witnesses_agree_for_any_shape(kind, shape, seed):
    case = problem(kind, *shape, seed=seed)
    for witness in (by_hand, by_torch):
        assert_agree(witness(kind, *case), by_equations(kind, *case), 1e-12)


def test_a_gate_at_one_half_gives_both_contexts_half_and_at_its_ends_one_of_them_alone():
    values = {"source": np.array([3.0]), "target": np.array([-1.0])}
    both = equations.CONTEXT_BOTH.exposed
    at = {a: both.evaluate(values | {"a": np.array([a])})["m"][0] for a in (-800.0, 0.0, 800.0)}
    assert at == {-800.0: -1.0, 0.0: 1.0, 800.0: 3.0}


def test_only_the_gate_on_both_keeps_the_sum_of_the_shares():
    """∂m/∂source + ∂m/∂target is 1 for one gate on both, and 1 + z for a gate on one."""
    z = symbol("z")
    for kind, expected in {"both": 1, "source": 1 + z, "target": 1 + z}.items():
        spec = equations.KINDS[kind]
        slopes = [spec.exposed.partial("m", name) for name in ("source", "target")]
        assert sp.simplify(sum(slopes) - expected) == 0


@every_kind
def test_first_and_second_derivatives_are_right(kind):
    inputs, _ = problem(kind, B=2, T=2, D=2, H=2)
    layer = layer_of(kind, inputs)
    given = [torch.tensor(inputs[k], requires_grad=True) for k in ("target", "source")]
    assert gradcheck(layer, given) and gradgradcheck(layer, given)


@every_kind
def test_compiled_exported_and_mapped_it_is_the_same(kind):
    layer = ContextGate(3, 4, 5, kind)
    given = torch.randn(2, 6, 3), torch.randn(2, 6, 4)
    expected = layer(*given)
    whole = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(*given), expected)
    torch.testing.assert_close(torch.export.export(layer, given).module()(*given), expected)
    torch.testing.assert_close(torch.vmap(layer)(*given), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(*given).dtype == torch.bfloat16


def test_the_weights_have_the_names_of_opennmts_layer():
    names = {"gate", "source_proj", "target_proj"}
    expected = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    assert set(ContextGate(3, 4, 5).state_dict()) == expected
    assert not any(name.startswith("gate") for name in ContextGate(3, 4, 5, "none").state_dict())


def test_what_stands_in_the_tanh_fits_a_decoder_that_has_one():
    """In the place of `combine`, which reads [context, output]; "none" is that Linear again."""

    class Combine(torch.nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.gate = ContextGate(6, 4, 6, kind)

        def forward(self, both):
            context, output = both.split([4, 6], -1)
            return self.gate.mix(output, context)

    torch.manual_seed(0)
    memory, previous = torch.randn(2, 5, 4), torch.randint(1, 9, (2, 3))
    attention, layer = DotAttention(6, 4, "general"), torch.nn.GRU(5, 6, batch_first=True)
    decoder = Decoder(9, 5, layer, attention)
    state = torch.zeros(1, 2, 6)
    expected = decoder(previous, state, memory)[0]
    old, decoder.combine = decoder.combine, Combine("none")
    with torch.no_grad():
        gate = decoder.combine.gate
        gate.source_proj.weight.copy_(old.weight[:, :4])
        gate.target_proj.weight.copy_(old.weight[:, 4:])
        gate.target_proj.bias.copy_(old.bias - gate.source_proj.bias)
    torch.testing.assert_close(decoder(previous, state, memory)[0], expected)
    decoder.combine = Combine("both")
    assert decoder(previous, state, memory)[0].shape == expected.shape


def test_the_gate_starts_where_its_bias_says():
    layer = init.open_(ContextGate(3, 4, 5), "z", -2.0)
    z = layer.gates(torch.zeros(3), torch.zeros(4))
    torch.testing.assert_close(z, torch.full((5,), -2.0).sigmoid())
    with pytest.raises(ValueError, match="gate: expected a layer with gates"):
        init.open_(ContextGate(3, 4, 5, "none"), "z", 1.0)


@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        (lambda: ContextGate(3, 0, 5), ValueError, "source_size: expected at least 1"),
        (lambda: ContextGate(3, 4, 5, "all"), ValueError, "kind: expected one of"),
        (lambda: ContextGate(3, 4, 5, bias=1), TypeError, "bias: expected True or False"),
        (
            lambda: ContextGate(3, 4, 5)(torch.ones(2, 3), torch.ones(3, 4)),
            ValueError,
            r"source: expected \(2, 4\), got \(3, 4\)",
        ),
        (lambda: ContextGate(3, 4, 5)(torch.ones(4), torch.ones(4)), ValueError, "target: expec"),
        (lambda: ContextGate(3, 4, 5)(torch.ones(3), 1), TypeError, "source: expected a tensor"),
        (
            lambda: reference.forward(np.ones((2, 3)), np.ones((3, 3)), {}),
            ValueError,
            "source: expected",
        ),
        (
            lambda: reference.forward(np.ones((2, 3)), np.ones((2, 3)), {}, "all"),
            ValueError,
            "kind: expected one of",
        ),
        (
            lambda: reference.forward(np.ones((2, 3)), np.ones((2, 3)), {}),
            ValueError,
            r"weights: expected \['W_s'",
        ),
    ],
)
def test_bad_input_is_named(act, error, says):
    with pytest.raises(error, match=says):
        act()
