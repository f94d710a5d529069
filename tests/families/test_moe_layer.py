"""Whole layers of experts, router to output: the hand, the equations and torch's layers agree."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib import derived, lab
from gatelib.equations import glu
from gatelib.nn import ExpertChoiceRouter, MixtureOfDepths, MoE, SoftMoE
from gatelib.reference import moe as reference
from gatelib.reference import routers
from gatelib.reference.glu import initialize as initialize_mlp
from tests.families.routing import PARAMETERS, SMALL, drawn_noise, layer_of, problem, router_of
from tests.families.witnesses import assert_agree, close

D, H = 3, 2
OWN = ("W_in", "W_out")
NAMES = {"W_in": "weight_in", "W_out": "weight_out", "gate": "shared_gate.weight"}
NAMES |= {f"shared.{name}": f"shared.{place}" for name, place in list(NAMES.items())[:2]}
NAMES |= {name: f"router.{place}" for name, place in PARAMETERS.items()}


def layer_case(config, N, seed, padded=False):
    """Inputs by name, and the options of the router."""
    case, options = problem(config, N, D, seed, padded=padded)
    rng = np.random.default_rng(seed)
    case |= reference.initialize(rng, config.experts - config.identity_experts, D, H)
    if config.shared:
        own = initialize_mlp(rng, D, config.shared * H)
        case |= {f"shared.{name}": value for name, value in own.items()}
    if config.shared_gate:
        case["gate"] = rng.normal(size=D)
    if config.noise:
        options["noise"] = drawn_noise(N, config.experts, seed)
    return case, options


def room(config, live, N, factor):
    """How many tokens an expert takes."""
    tokens = N if live is None else int(live.sum())
    return reference.capacity_of(tokens, config.k, config.experts, factor)


def by_hand(config, case, upstream, factor=None, priority="position", **options):
    y, found = routed_by_hand(config, case, upstream, factor, priority, **options)
    if config.shared:
        own = {name: case[f"shared.{name}"] for name in OWN}
        f, saved = reference.shared(case["x"], own, gate=case.get("gate"))
        by_shared = reference.shared_backward(upstream["y"], saved)
        found["x"] = found["x"] + by_shared.pop("x")
        found |= {name if name == "gate" else f"shared.{name}": d for name, d in by_shared.items()}
        y = y + f
    if options["live"] is not None:
        found["x"] = found["x"] * options["live"][:, None]
    return {"y": y} | {f"d_{name}": found[name] for name in case}


def routed_by_hand(config, case, upstream, factor, priority, **options):
    """What the routed experts give, and the gradients through them and the router."""
    weights = {name: value for name, value in case.items() if name in PARAMETERS}
    made = routers.forward(case["x"], weights, router_of(config), **options)
    keep = np.ones(made.indices.shape, bool)
    if factor is not None:
        most = room(config, options["live"], len(case["x"]), factor)
        keep = reference.kept(made.indices, made.weights, config.experts, most, priority)
        keep |= made.indices >= config.experts - config.identity_experts
    mask = reference.mask_of(made.indices, config.experts, keep)
    gates = routers.scattered(made.weights * keep, made.indices, config.experts)
    own = {name: case[name] for name in OWN}
    y, saved = reference.forward(case["x"], gates, mask, own, scales=config.scales)
    found = reference.backward(upstream["y"], saved)
    by_router = routers.backward(made, routers.gathered(found.pop("gates"), made.indices) * keep)
    return y, found | by_router | {"x": found["x"] + by_router["x"]}


def counted(weights, rated, k, most, priority):
    """(N, E), whether an expert keeps a token: the places by cumulative sums of choices.

    A token's first choice is the expert that it rates highest, by a selection bias too.
    """
    rated = np.where(weights > 0, rated, -np.inf)
    order = np.arange(len(weights))
    if priority == "probability":
        order = np.argsort(-weights.max(axis=1, initial=0), kind="stable")
    choice = np.argsort(-rated[order], axis=1, kind="stable")[:, :k].T
    asked = np.eye(weights.shape[1])[choice] * (weights[order] > 0)
    place = np.cumsum(asked.reshape(-1, weights.shape[1]), axis=0).reshape(asked.shape)
    keep = np.zeros(weights.shape)
    keep[order] = (asked * (place <= most)).sum(axis=0)
    return keep


def by_equations(config, case, upstream, factor=None, priority="position", **options):
    idle = config.identity_experts

    def run(v):
        made = derived.routers.route(config, v, **options)
        weights = made["weights"]
        if factor is not None:
            most = room(config, options["live"], len(case["x"]), factor)
            before = made.get("noisy", made["logits"])
            rated = (before if config.select == "before" else made["scores"]).array
            bias = options["selection_bias"]
            rated = rated if bias is None else rated + bias
            keep = counted(weights.array, rated, config.k, most, priority)
            keep[:, config.experts - idle :] = 1
            weights = derived.moe.drop(weights, keep)
        made = derived.moe.combine(
            glu.SWIGLU, {**v, "weights": weights}, identity=idle, scales=config.scales
        )
        if not config.shared:
            return made
        own = {name: v[f"shared.{name}"] for name in OWN} | {"x": v["x"], "y": made["y"]}
        own |= {"gate": v["gate"]} if config.shared_gate else {}
        return {"y": derived.moe.share(glu.SWIGLU, own)["o"]}

    return derived.gradients(run, case, upstream)


def by_layer(config, case, upstream, seed, impl, factor=None, priority="position", **options):
    idle = config.identity_experts
    router = layer_of(config, D, options["selection_bias"])
    own = {"hidden": H, "router": router, "shared": config.shared, "identity_experts": idle}
    own |= {"shared_gate": config.shared_gate, "scales": config.scales, "impl": impl}
    own |= {"capacity_factor": factor, "priority": priority}
    layer = MoE(D, config.experts - idle, config.k, dtype=torch.float64, **own)
    live = None if options["live"] is None else torch.tensor(options["live"])

    def run(v):
        weights = {NAMES[name]: value for name, value in v.items() if name != "x"}
        if "gate" in v:
            weights[NAMES["gate"]] = v["gate"][None]
        torch.manual_seed(seed)
        return {"y": lab.called(layer, weights, v["x"], None, live)}

    return lab.gradients(run, case, upstream)


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(sorted(SMALL)),
    N=st.integers(1, 6),
    factor=st.sampled_from([None, 0.5, 1.0]),
    priority=st.sampled_from(["position", "probability"]),
    padded=st.booleans(),
    impl=st.sampled_from(["reference", "auto", "fused"]),
    seed=st.integers(0, 99),
)
def test_whole_layers_of_published_models_agree_in_outputs_and_all_gradients(
    name, N, factor, priority, padded, impl, seed
):
    config = SMALL[name]
    case, options = layer_case(config, N, seed, padded)
    options |= {"factor": factor, "priority": priority}
    upstream = {"y": np.random.default_rng(seed).normal(size=(N, D))}
    expected = by_hand(config, case, upstream, **options)
    assert_agree(by_equations(config, case, upstream, **options), expected)
    assert_agree(by_layer(config, case, upstream, seed, impl, **options), expected)


def test_sequences_are_served_position_by_position_where_experts_are_full():
    """(B, T, D): the earlier position of any sequence before the later."""
    config = SMALL["gshard"]
    case, _ = layer_case(config, 10, 0)
    x = case["x"].reshape(2, 5, D)
    layer = MoE(D, 6, 2, hidden=H, capacity_factor=0.5, dtype=torch.float64)
    with torch.no_grad():
        for name in ("W", *OWN):
            layer.get_parameter(NAMES[name]).copy_(torch.tensor(case[name]))
    flat = case | {"x": x.transpose(1, 0, 2).reshape(10, D)}
    expected = by_hand(config, flat, {"y": np.zeros((10, D))}, 0.5, live=None)["y"]
    found = layer(torch.tensor(x)).detach().numpy()
    close(found.transpose(1, 0, 2).reshape(10, D), expected)


# --- layers in which experts, slots or positions are chosen --------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    N=st.integers(1, 6),
    factor=st.sampled_from([0.5, 1.0, 2.0]),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_layer_with_expert_choice_agrees(N, factor, padded, seed):
    case, options = layer_case(SMALL["switch"], N, seed, padded)
    live = options["live"]
    tokens = N if live is None else int(live.sum())
    capacity = max(math.ceil(factor * tokens / 6), 1)
    upstream = {"y": np.random.default_rng(seed).normal(size=(N, D))}
    own = {name: case[name] for name in OWN}
    choice = routers.expert_choice(case["x"], {"W": case["W"]}, capacity, live)
    y, saved = reference.forward(choice.inputs["x"], choice.weights, choice.mask, own)
    found = reference.backward(upstream["y"], saved)
    by_router = routers.expert_choice_backward(found.pop("gates"), choice)
    found |= by_router | {"x": by_router["x"] + found["x"]}
    hand = {"y": y} | {f"d_{name}": found[name] for name in case}

    def run(v):
        weights = derived.routers.choose(v, capacity, live)["weights"]
        return derived.moe.combine(glu.SWIGLU, {**v, "weights": weights})

    assert_agree(derived.gradients(run, case, upstream), hand)
    router = ExpertChoiceRouter(D, 6, factor, dtype=torch.float64)
    layer = MoE(D, 6, hidden=H, router=router, dtype=torch.float64)
    names = NAMES | {"W": "router.scorer.weight"}

    def by_layer(v):
        weights = {names[name]: value for name, value in v.items() if name != "x"}
        here = None if live is None else torch.tensor(live)
        return {"y": lab.called(layer, weights, v["x"], None, here)}

    assert_agree(lab.gradients(by_layer, case, upstream), hand)


@settings(max_examples=30, deadline=None)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 4),
    E=st.integers(1, 3),
    slots=st.integers(1, 2),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_layer_of_soft_experts_agrees(B, T, E, slots, padded, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, T + 1, B) if padded else np.full(B, T)
    live = np.arange(T) < lengths[:, None]
    own = reference.initialize(rng, E, D, H)
    case = {"x": rng.normal(size=(B, T, D)) * live[..., None]} | own
    case |= {"slots": rng.normal(size=(E * slots, D)), "scale": np.array(2.0)}
    upstream = {"y": rng.normal(size=(B, T, D))}
    routed = case["x"], case["slots"], case["scale"], live
    dispatch, combine, _ = routers.soft_slots(*routed)
    y, saved = reference.soft(case["x"], dispatch, combine, own)
    found = reference.soft_backward(upstream["y"], saved)
    back = routers.soft_slots_backward(found.pop("dispatch"), found.pop("combine"), *routed)
    found |= back | {"x": (found["x"] + back["x"]) * live[..., None]}
    hand = {"y": y} | {f"d_{name}": found[name] for name in case}

    def run(v):
        return derived.moe.soft(glu.SWIGLU, {**v, **derived.routers.slots(v, live)})

    expected = derived.gradients(run, case, upstream)
    expected["d_x"] = expected["d_x"] * live[..., None]
    assert_agree(hand, expected)
    layer = SoftMoE(D, E, slots, H, dtype=torch.float64)

    def by_layer(v):
        weights = {NAMES[name]: v[name] for name in OWN} | {"scale": v["scale"]}
        weights["phi"] = v["slots"].reshape(E, slots, D)
        return {"y": lab.called(layer, weights, v["x"], torch.tensor(lengths))}

    assert_agree(lab.gradients(by_layer, case, upstream), expected)


class Tanh(torch.nn.Module):
    """A block of one map, without a shortcut."""

    def __init__(self):
        super().__init__()
        self.map = torch.nn.Linear(D, D, bias=False, dtype=torch.float64)

    def forward(self, input):
        return torch.tanh(self.map(input))


@settings(max_examples=30, deadline=None)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 5),
    share=st.sampled_from([0.25, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_a_layer_with_mixture_of_depths_agrees(B, T, share, seed):
    rng = np.random.default_rng(seed)
    case = {"x": rng.normal(size=(B, T, D)), "w": rng.normal(size=D), "M": rng.normal(size=(D, D))}
    upstream = {"y": rng.normal(size=(B, T, D))}
    f = np.tanh(case["x"] @ case["M"].T)
    y, mask = routers.mixture_of_depths(case["x"], case["w"], f, math.ceil(share * T))
    found = routers.mixture_of_depths_backward(upstream["y"], case["x"], case["w"], f, mask)
    d_a = found.pop("f") * (1 - f**2)
    found["x"] = found["x"] + d_a @ case["M"]
    found["M"] = np.einsum("bto,btd->od", d_a, case["x"])
    hand = {"y": y} | {f"d_{name}": found[name] for name in case}
    layer = MixtureOfDepths(Tanh(), D, share, dtype=torch.float64)

    def run(v):
        return {
            "y": lab.called(layer, {"weight": v["w"][None], "block.map.weight": v["M"]}, v["x"])
        }

    assert_agree(lab.gradients(run, case, upstream), hand)
