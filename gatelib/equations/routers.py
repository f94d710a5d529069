"""Routers of experts as equations, and the routers of published models as configurations.

Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

A `Spec` acts on one token, and its features are the experts: `a` are their logits W x, and `mask`
is 1 for an expert that was selected, else 0. The selection is given: it has no gradient. `w` is the
weight of an expert, `c` a constant factor on all weights. Expert choice and hash routing differ
from SWITCH and SQRT_SOFTPLUS in the mask alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from gatelib.cell import named
from gatelib.spec import Spec


def _router(name: str, signature: str, *lines: str) -> Spec:
    return Spec.parse(name, signature, "\n".join(lines))


SOFTMAX_TOPK = _router("softmax_topk", "a mask c -> w", "p = softmax(a)", "w = c*mask*p")
"""Softmax over all experts, then the best k of them; what the others had is lost: Σw < c."""

SWITCH = _router("switch_router", "a mask -> w", "p = softmax(a)", "w = mask*p")
"""Fedus et al. 2021, arXiv:2101.03961, eq. 1 and 2: one expert, weighted by its probability.

With a mask that holds the best tokens of each expert it is expert choice (Zhou et al. 2022,
arXiv:2202.09368, section 3.2)."""

SOFTMAX_TOPK_RENORMALIZED = _router(
    "softmax_topk_renormalized", "a mask -> w", "p = softmax(a)", "m = mask*p", "w = m/total(m)"
)
"""Softmax over all experts, the best k, and their weights divided by their sum."""

TOPK_SOFTMAX = _router("topk_softmax", "a mask -> w", "y = mask*exp(a)", "w = y/total(y)")
"""The best k logits, then a softmax over these alone (Shazeer et al. 2017, arXiv:1701.06538,
eq. 3 and 5): the same numbers as SOFTMAX_TOPK_RENORMALIZED."""

NOISY_TOPK = _router(
    "noisy_topk",
    "a n e mask -> w h",
    "s = softplus(n)",
    "h = a + e*s",
    "y = mask*exp(h)",
    "w = y/total(y)",
)
"""The same with noise (eq. 4): `e` is drawn from N(0, 1), `n` = W_noise x; the best of h are
selected."""

LOAD_PROBABILITY = _router(
    "load_probability", "a n t -> p", "s = softplus(n)", "p = normal_cdf((a - t)/s)"
)
"""How likely an expert is among the best k if its own noise is drawn anew (appendix A, eq. 9):
`t` is the k-th largest of the other experts' noisy logits."""

SIGMOID = _router("sigmoid_router", "a mask c -> w", "s = sigmoid(a)", "w = c*mask*s")
"""A score for each expert alone, not renormalised: Llama 4, k = 1."""

SIGMOID_TOPK = _router(
    "sigmoid_topk", "a mask c -> w", "s = sigmoid(a)", "m = mask*s", "w = c*m/total(m)"
)
"""DeepSeek-V3, arXiv:2412.19437, eq. 13 to 16: the bias that selects is in the mask, not in w."""

SQRT_SOFTPLUS = _router(
    "sqrt_softplus_topk", "a mask c -> w", "s = sqrt(softplus(a))", "m = mask*s", "w = c*m/total(m)"
)
"""DeepSeek-V4: the score √log(1 + e^a), without an upper bound."""

HASH = _router("hash_router", "mask -> w", "w = mask/total(mask)")
"""Roller et al. 2021, arXiv:2106.04426: the token's id alone selects, and nothing is learned."""

UNIT_NORM = _router("unit_norm", "x -> u", "u = x/sqrt(total(x**2) + 0.000001)")
"""Soft MoE (Puigcerver et al. 2023, arXiv:2308.00951, section 2.3): tokens and slots have norm 1.
The 10⁻⁶ is that of the authors' program."""

SLOTS = _router("slots", "a -> p", "p = softmax(a)")
"""Soft MoE, eq. 1 and 2: over the tokens of a sequence it says what a slot reads, over all slots
what a token takes of them."""

MIXTURE_OF_DEPTHS = _router("mixture_of_depths", "r mask f x -> y", "y = x + mask*r*f")
"""Raposo et al. 2024, arXiv:2404.02258, eq. 1: the features are the positions; the best positions
of a sequence go through the block f, times their logit r; the others pass by."""

_SPECS = {
    ("softmax", "after", False): SOFTMAX_TOPK,
    ("softmax", "after", True): SOFTMAX_TOPK_RENORMALIZED,
    ("softmax", "before", True): TOPK_SOFTMAX,
    ("sigmoid", "after", False): SIGMOID,
    ("sigmoid", "before", False): SIGMOID,
    ("sigmoid", "after", True): SIGMOID_TOPK,
    ("sqrt_softplus", "after", True): SQRT_SOFTPLUS,
}
"""By score, whether the top k are taken after or before it, and whether they are renormalised."""

ALL = named(*dict.fromkeys(_SPECS.values()), SWITCH, NOISY_TOPK, LOAD_PROBABILITY, HASH)
ALL |= named(UNIT_NORM, SLOTS, MIXTURE_OF_DEPTHS)


@dataclass(frozen=True)
class RouterConfig:
    """One router: what turns logits into experts and weights.

    source: where the equation stands. experts, k: how many there are, and how many a token uses;
    identity_experts are among `experts`, at the end, and give back their input. score: `softmax`,
    `sigmoid` or `sqrt_softplus`. select: whether the best k are taken `after` the score (of all
    experts) or `before` it (of the logits; a softmax then sees k of them). renormalize: whether
    the k weights are divided by their sum; scale: what they are then multiplied by. groups,
    kept_groups: experts stand in groups of equal size, and only those of the kept groups can be
    selected; a group is rated by the sum of its `group_score` best. bias: whether the logits have
    one. selection_bias: whether one is added to the scores for the selection alone. noise: whether
    training adds learned noise to the logits. scales: whether the weight multiplies an expert's
    `output` or its `input`. shared: experts that see every token; shared_gate: whether a sigmoid
    gate of their own weighs them. hash_layers: how many first layers select by the token's id.
    """

    source: str
    experts: int
    k: int
    score: str = "softmax"
    select: str = "after"
    renormalize: bool = True
    scale: float = 1.0
    groups: int = 1
    kept_groups: int = 1
    group_score: int = 1
    bias: bool = False
    selection_bias: bool = False
    noise: bool = False
    scales: str = "output"
    identity_experts: int = 0
    shared: int = 0
    shared_gate: bool = False
    hash_layers: int = 0

    def __post_init__(self) -> None:
        if (self.score, self.select, self.renormalize) not in _SPECS:
            raise ValueError(
                f"score, select, renormalize: expected one of {sorted(_SPECS)}, "
                f"got {(self.score, self.select, self.renormalize)}"
            )
        if not 1 <= self.kept_groups <= self.groups or self.experts % self.groups:
            raise ValueError(
                f"groups: expected equal groups of {self.experts} experts, of which 1 … all are "
                f"kept, got {self.groups} and {self.kept_groups} kept"
            )
        size = self.experts // self.groups
        if not 1 <= self.k <= self.kept_groups * size:
            raise ValueError(f"k: expected 1 … {self.kept_groups * size}, got {self.k}")
        if not 1 <= self.group_score <= size:
            raise ValueError(f"group_score: expected 1 … {size}, got {self.group_score}")
        if self.scales not in ("output", "input"):
            raise ValueError(f"scales: expected 'output' or 'input', got {self.scales!r}")

    @property
    def spec(self) -> Spec:
        """The equation of its weights."""
        return _SPECS[self.score, self.select, self.renormalize]


def _like_v3(
    source: str, experts: int, k: int, scale: float = 1.0, shared: int = 0
) -> RouterConfig:
    """DeepSeek-V3's router without groups."""
    return RouterConfig(
        source,
        experts,
        k,
        score="sigmoid",
        scale=scale,
        selection_bias=True,
        shared=shared,
    )


CONFIGURATIONS: dict[str, RouterConfig] = {
    "shazeer2017": RouterConfig(
        "arXiv:1701.06538, eq. 3 to 5; the largest flat layer of its language models",
        experts=256,
        k=4,
        select="before",
        noise=True,
    ),
    "gshard": RouterConfig(
        "arXiv:2006.16668, algorithm 1; without its random dispatch of the second expert",
        experts=2048,
        k=2,
    ),
    "switch": RouterConfig("arXiv:2101.03961, eq. 1 and 2", experts=128, k=1, renormalize=False),
    "mixtral": RouterConfig("arXiv:2401.04088, section 2.1; 8x7B", experts=8, k=2, select="before"),
    "dbrx": RouterConfig("the released code, 2024, with its norm of order 1", experts=16, k=4),
    "qwen2_moe": RouterConfig(
        "the released code of Qwen1.5-MoE-A2.7B, 2024",
        experts=60,
        k=4,
        renormalize=False,
        shared=1,
        shared_gate=True,
    ),
    "qwen3_moe": RouterConfig("the released code of 30B-A3B and 235B-A22B, 2025", experts=128, k=8),
    "olmoe": RouterConfig(
        "arXiv:2409.02060, section 2, and its released code", experts=64, k=8, renormalize=False
    ),
    "deepseek_v2": RouterConfig(
        "arXiv:2405.04434, eq. 20 to 22, and its released code",
        experts=160,
        k=6,
        renormalize=False,
        scale=16.0,
        groups=8,
        kept_groups=3,
        shared=2,
    ),
    "deepseek_v3": RouterConfig(
        "arXiv:2412.19437, eq. 12 to 16, and its released code",
        experts=256,
        k=8,
        score="sigmoid",
        scale=2.5,
        groups=8,
        kept_groups=4,
        group_score=2,
        selection_bias=True,
        shared=1,
    ),
    "moonlight": _like_v3(
        "the released configuration of Moonlight-16B-A3B, 2025", 64, 6, scale=2.446, shared=2
    ),
    "kimi_k2": _like_v3("the released configuration, 2025", 384, 8, scale=2.827, shared=1),
    "kimi_linear": _like_v3(
        "the released configuration of 48B-A3B, 2025", 256, 8, scale=2.446, shared=1
    ),
    "minimax_m2": _like_v3("the released code, 2025", 256, 8),
    "deepseek_v4": RouterConfig(
        "the released code of V4-Flash, 2026",
        experts=256,
        k=6,
        score="sqrt_softplus",
        scale=1.5,
        selection_bias=True,
        shared=1,
        hash_layers=3,
    ),
    "gpt_oss": RouterConfig(
        "the released code of gpt-oss-120b, 2025", experts=128, k=4, select="before", bias=True
    ),
    "ernie": RouterConfig(
        "the released code of ERNIE 4.5, 2025", experts=64, k=6, selection_bias=True, shared=2
    ),
    "longcat": RouterConfig(
        "the released code of LongCat-Flash, 2025",
        experts=768,
        k=12,
        renormalize=False,
        scale=6.0,
        selection_bias=True,
        identity_experts=256,
    ),
    "llama4": RouterConfig(
        "the released code of Scout, 2025",
        experts=16,
        k=1,
        score="sigmoid",
        select="before",
        renormalize=False,
        scales="input",
        shared=1,
    ),
}
"""Routers of published models by name. What stands here was read in the model's paper or in its
released program; where a family has several sizes, `source` says which."""
