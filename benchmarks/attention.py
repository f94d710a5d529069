"""Gated attention: what each option costs beside a plain layer of scaled dot-product attention.
Imports gatelib.nn and the harness.
Must not import gatelib.reference.

A step is forward and backward, the gradients of input and parameters included. The peer is the
layer that one would write: two Linear and `F.scaled_dot_product_attention(is_causal=True)`, with
the same weights. `ratio` is its time over a form's: 1 is as fast, above is faster. "mha" is
`torch.nn.MultiheadAttention` with a causal mask; "written out" the plain layer with
impl="reference". Time on a CPU is the processor's, one thread, medians of turns taken in a circle.

Run: python benchmarks/attention.py [--rounds N] [--device cpu|cuda]
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _harness import asked, by_events, compare, table, write
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.nn import GatedAttention, GatedAttentionUnit

SIZES = {
    "cpu": [(32, 64, 64, 4), (8, 256, 64, 4), (4, 512, 64, 4)],
    "cuda": [(8, 2048, 1024, 16), (2, 8192, 1024, 16)],
}
"""(batch, positions, features, heads)."""
FORMS: dict[str, dict[str, Any]] = {
    "none": {},
    "written out": {"impl": "reference"},
    "output, element": {"gate": "output"},
    "output, head": {"gate": "output", "per": "head"},
    "value, element": {"gate": "value"},
    "learned sink": {"sink": "learned"},
    "forget": {"forget": True},
    "alibi": {"position": "alibi"},
    "rope": {"position": "rope"},
    "qk_norm": {"qk_norm": True},
    "sigmoid": {"activation": "sigmoid"},
}
GOAL = 1 / 1.1
"""The plain form may take 1.1 times the peer's time."""


class Plain(nn.Module):
    """The peer, with the weights of a GatedAttention without options."""

    def __init__(self, layer: GatedAttention) -> None:
        super().__init__()
        self.heads = layer.num_heads
        self.inside = nn.Linear(layer.embed_dim, 3 * layer.embed_dim)
        self.inside.weight, self.inside.bias = layer.in_proj_weight, layer.in_proj_bias
        self.out = layer.out_proj

    def forward(self, x: Tensor) -> Tensor:
        """A causal read."""
        parts = self.inside(x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


def step(call: Callable[[], Tensor], wanted: list[Tensor], upstream: Tensor) -> None:
    """Forward and backward."""
    torch.autograd.grad(call(), wanted, upstream)


def candidates(size: tuple[int, int, int, int], device: str) -> dict[str, Callable[[], None]]:
    """{name: one step}; the first is the peer."""
    batch, steps, features, heads = size
    own: dict[str, Any] = {"device": device}
    own["dtype"] = torch.bfloat16 if device == "cuda" else torch.float32
    x = torch.randn(batch, steps, features, **own).requires_grad_()
    upstream = torch.randn_like(x)
    base = GatedAttention(features, heads, **own)
    peer, theirs = Plain(base), nn.MultiheadAttention(features, heads, batch_first=True, **own)
    mask = nn.Transformer.generate_square_subsequent_mask(steps, **own)

    def mha() -> Tensor:
        return theirs(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)[0]

    calls: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        "SDPA": (peer, partial(peer, x)),
        "mha": (theirs, mha),
    }
    layers: dict[str, nn.Module] = {
        name: GatedAttention(features, heads, **options, **own) for name, options in FORMS.items()
    }
    layers["GAU"] = GatedAttentionUnit(features, 2 * features, 128, **own)
    for name, layer in layers.items():
        calls[name] = layer, lambda layer=layer: layer(x)[0]
    return {
        name: partial(step, call, [x, *module.parameters()], upstream)
        for name, (module, call) in calls.items()
    }


def by_processor(run: Callable[[], object], least: float = 4e-3) -> float:
    """Processor seconds of one run; of several where one is too short for the clock."""
    count, start = 0, time.process_time()
    while time.process_time() - start < least:
        run()
        count += 1
    return (time.process_time() - start) / count


def main() -> None:
    """Measure, print, and write the results."""
    arguments, rows = asked(__doc__, 21), []
    clock = by_events if arguments.device == "cuda" else by_processor
    for size in SIZES[arguments.device]:
        found = compare(candidates(size, arguments.device), arguments.rounds, clock=clock)
        case = dict(zip(("batch", "positions", "features", "heads"), size, strict=True))
        rows.append({"case": case, "results": found})
        print(table(rows[-1:]))
    print("wrote", write("attention", rows, arguments.device).name)
    for row in rows:
        if row["results"]["none"]["ratio"] < GOAL:
            print(f"missed: {row['case']}: {row['results']['none']['ratio']:.3f}")


if __name__ == "__main__":
    main()
