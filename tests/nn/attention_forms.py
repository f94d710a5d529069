"""The forms of gated attention that the tests go through, each with weights that all act.

Imports torch and gatelib.nn.
Must not import Hypothesis or SciPy: a machine with a GPU may have neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gatelib.nn import GatedAttention, GatedAttentionUnit, GTrXLBlock

GATES = {
    f"{gate} gate per {per}": {"gate": gate, "per": per}
    for gate in ("query", "key", "value", "score", "output")
    for per in ("element", "head")
}
"""Each place of a gate, each size."""
PARTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "learned sink": {"sink": "learned"},
    "zero sink": {"sink": "zero"},
    "forget gate": {"forget": True},
    "RoPE": {"position": "rope"},
    "ALiBi": {"position": "alibi"},
    "normed": {"qk_norm": True},
    "shared keys": {"num_kv_heads": 2},
    "sigmoid": {"activation": "sigmoid"},
    "ALiBi and a sink": {"position": "alibi", "sink": "zero"},
    "sigmoid of all": {"activation": "sigmoid", "forget": True, "position": "alibi"},
}
"""Each option by itself, and where two of them meet in the mask."""
ALL_ELSE: dict[str, Any] = {"num_kv_heads": 2, "forget": True, "qk_norm": True}
ALL_ELSE |= {"sink": "learned", "position": "rope"}
FORMS = PARTS | GATES | {f"{name}, all else": own | ALL_ELSE for name, own in GATES.items()}
NOT_BY_SDPA = [
    name for name, own in FORMS.items() if "sigmoid" in name or "score gate per element" in name
]
"""What scaled_dot_product_attention can't express."""


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "unit": lambda: GatedAttentionUnit(16, 20, 6),
    "unit with biases of pairs": lambda: GatedAttentionUnit(16, 20, 6, position="rotary"),
    "unit of a length": lambda: GatedAttentionUnit(16, key_size=5, n=12.5, bias=False),
    "block": lambda: GTrXLBlock(16, 4, 20, position="alibi"),
    "block that sums": lambda: GTrXLBlock(16, 2, 20, stream="sum", gate="output"),
}
"""The other causal layers."""
LAYERS = [*FORMS, *OTHERS]


def attention(name: str, dtype: torch.dtype = torch.float32, **more: Any) -> nn.Module:
    """Of 16 features and 4 heads, its weights drawn so that gates open and shut."""
    torch.manual_seed(1)
    made = OTHERS[name]() if name in OTHERS else GatedAttention(16, 4, **FORMS[name])
    layer = made.double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    for option, value in more.items():
        for part in layer.modules():
            if hasattr(part, option):
                setattr(part, option, value)
    return layer.to(dtype)
