"""Losses that balance the load of experts, and updates of a selection bias, as equations.

Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

The features are the experts. `a` are logits, `p` probabilities or their mean over tokens, `f` the
share of the tokens that selected an expert (it has no gradient; a token that selects k experts
counts k times, so that Σf = k), `c` the number of tokens of an expert, `b` its bias, `eta` a rate.
"""

from gatelib.cell import named
from gatelib.spec import Spec


def _variation(name: str, quantity: str) -> Spec:
    """The squared coefficient of variation over the experts: their variance over mean²."""
    text = f"m = mean({quantity})\nl = mean(({quantity} - m)**2)/m**2"
    return Spec.parse(name, f"{quantity} -> l", text)


IMPORTANCE = _variation("importance_loss", "I")
"""Shazeer et al. 2017, arXiv:1701.06538, eq. 6 and 7: `I` is the sum of an expert's weights."""

LOAD = _variation("load_loss", "L")
"""The same paper's eq. 11: `L` is the sum over tokens of routers.LOAD_PROBABILITY."""

SWITCH_LOSS = Spec.parse("switch_loss", "f p n k -> l", "l = n*total(f*p)/k")
"""Fedus et al. 2021, arXiv:2101.03961, eq. 4, for k experts a token; `n` is the number of experts.
1 when tokens and probabilities are spread evenly, n/k when all k choices fall on one expert."""

SWITCH_LOSS_BY_SLOTS = SWITCH_LOSS.replace("switch_loss_by_slots", l="n*total(f*p)")
"""Without the division by k, as transformers and DeepSpeed have it: k when even."""

GSHARD_LOSS = Spec.parse("gshard_loss", "f p -> l", "l = mean(f*p)")
"""Lepikhin et al. 2020, arXiv:2006.16668, algorithm 1: f counts first choices only; 1/n² when
even. The authors' program multiplies by n²."""

NORMALIZED_SCORES = Spec.parse("normalized_scores", "a -> p", "s = sigmoid(a)\np = s/total(s)")
"""DeepSeek-V3, arXiv:2412.19437, eq. 19: the probabilities that its loss per sequence averages."""

Z_LOSS = Spec.parse("z_loss", "a -> l", "z = log(total(exp(a)))\nl = z**2")
"""Zoph et al. 2022 (ST-MoE), arXiv:2202.08906, eq. 5, of one token: logits stay small."""

ENTROPY = Spec.parse("router_entropy", "p -> h", "h = total(-p*log(p))")
"""How undecided a router is: log n when even, 0 when certain."""

SIGN_UPDATE = Spec.parse(
    "sign_update",
    "c eta b_prev -> b",
    """
    e = mean(c) - c
    s = step(e) - step(-e)
    b = b_prev + eta*s""",
)
"""Wang et al. 2024, arXiv:2408.15664, algorithm 1: an expert that had fewer tokens than the mean
is preferred by eta more at the next step."""

CENTERED_SIGN_UPDATE = SIGN_UPDATE.replace("centered_sign_update", b="b_prev + eta*(s - mean(s))")
"""The same without its mean, as torchtitan has it: Σb stays what it was."""

LOSSES = {
    spec.name: spec
    for spec in (IMPORTANCE, LOAD, SWITCH_LOSS, SWITCH_LOSS_BY_SLOTS, GSHARD_LOSS, Z_LOSS)
}
UPDATES = {False: SIGN_UPDATE, True: CENTERED_SIGN_UPDATE}
"""The updates of the bias, by whether they are centred."""

ALL = named(*LOSSES.values(), *UPDATES.values(), NORMALIZED_SCORES, ENTROPY)
