"""A layer of experts as equations: how outputs are combined, and what stands beside them.

Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

In COMBINE and DROP the features are the experts: `w` are their weights (0 for an expert that was
not selected), `v` one feature of their outputs, `keep` is 1 where an expert had room for the token.
In the others the features are those of the token: `y` is what the experts gave, `f` what a shared
expert gives, `a` the logit of its gate. What an expert computes is a gate of `equations.glu`.
"""

from gatelib.cell import named
from gatelib.spec import Spec

COMBINE = Spec.parse("combine", "w v -> y", "y = total(w*v)")
"""Shazeer et al. 2017, arXiv:1701.06538, eq. 1: the sum of the experts' outputs, each weighted."""

DROP = Spec.parse("drop", "w keep -> d", "d = w*keep")
"""A token that comes when its expert is full is not seen by it; the other weights stay."""

DROP_RENORMALIZED = Spec.parse("drop_renormalized", "w keep -> d", "m = w*keep\nd = m/total(m)")
"""The same, where the weights that are left are divided by their sum afterwards (fairseq's
`normalize_gate_prob_before_dropping = False`)."""

SHARED = Spec.parse("shared_expert", "y f -> o", "o = y + f")
"""Dai et al. 2024 (DeepSeekMoE), arXiv:2401.06066, eq. 9: shared experts see every token."""

GATED_SHARED = Spec.parse("gated_shared_expert", "y f a -> o", "g = sigmoid(a)\no = y + g*f")
"""Qwen2-MoE: a gate of its own, one number a token, weighs the shared expert."""

ALL = named(COMBINE, DROP, DROP_RENORMALIZED, SHARED, GATED_SHARED)
