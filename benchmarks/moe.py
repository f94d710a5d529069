"""Experts over segments: time and memory beside a dense gated MLP of as many active FLOPs.
Imports gatelib.equations, gatelib.kernels, gatelib.nn and the harness.
Must not import gatelib.reference.

Dense is nn.GatedMLP of width k*H, which multiplies as often as k experts of width H do for each
token. Experts get their indices and weights, random; the router is not timed. `ratio` is a time
over dense's: below 1 is faster. Time on a CPU is the processor's, one thread, medians of turns
taken in a circle; on a GPU it is between events. `step` is forward and backward with all gradients,
`forward` is without any. `grouped` is `F.grouped_mm` where the other is the loop over experts: what
a CPU would do if it took it.

Memory is the bytes of distinct storages that the graph holds beside the arguments, in values a
pair of a token and a slot; `experts_4x` has four times as many experts.

Run: python benchmarks/moe.py [--rounds N] [--device cpu|cuda]
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from _harness import asked, by_events, write
from torch import Tensor

from gatelib import nn
from gatelib.equations.glu import SWIGLU
from gatelib.kernels import segment_grouped
from gatelib.kernels.gated import gated_of
from gatelib.kernels.segments import experts_mlp

Size = tuple[int, int, int, int, int]
SIZES: dict[str, list[Size]] = {
    "cpu": [
        (4096, 128, 512, 16, 2),
        (4096, 256, 512, 8, 2),
        (2048, 512, 1024, 8, 2),
        (4096, 256, 128, 32, 4),
    ],
    "cuda": [(8192, 1024, 2048, 16, 2), (8192, 2048, 1024, 64, 8), (16384, 4096, 1536, 128, 8)],
}
"""(tokens, D, H, E, k); on a CPU the last is fine-grained: narrow experts, many of them."""
LIMIT = 1.15
KNOWN = gated_of(SWIGLU)


class Case:
    """One size: leaves, and what is timed on them."""

    def __init__(self, size: Size, dtype: torch.dtype, device: str) -> None:
        tokens, features, hidden, experts, slots = size
        options: Any = {"device": device, "dtype": dtype}
        self.indices = torch.rand(tokens, experts, device=device).topk(slots, -1).indices
        self.x = torch.randn(tokens, features, **options).requires_grad_()
        self.weights = torch.rand(tokens, slots, device=device).requires_grad_()
        w_in = torch.randn(experts, 2 * hidden, features, **options) / features**0.5
        w_out = torch.randn(experts, features, hidden, **options) / hidden**0.5
        self.stacks = w_in.requires_grad_(), w_out.requires_grad_()
        self.dense = nn.GatedMLP(features, slots * hidden, **options)
        self.upstream = torch.randn(tokens, features, **options)

    def moe(self) -> Tensor:
        """What the experts give."""
        return experts_mlp(KNOWN, self.x, self.indices, self.weights, *self.stacks)

    def grouped(self) -> Tensor:
        """The same by grouped products."""
        with _everywhere():
            return self.moe()

    def step(self, form: Callable[[], Tensor]) -> None:
        """Forward and backward; the gradients are let go."""
        with _everywhere() if form == self.grouped else contextlib.nullcontext():
            form().backward(self.upstream)
        for leaf in (self.x, self.weights, *self.stacks, *self.dense.parameters()):
            leaf.grad = None

    def forms(self, device: str) -> dict[str, Callable[[], Tensor]]:
        """What is timed; the first is the peer."""
        forms: dict[str, Callable[[], Tensor]] = {
            "dense": lambda: self.dense(self.x),
            "experts": self.moe,
        }
        can = device == "cpu" and hasattr(torch.nn.functional, "grouped_mm")
        return forms | ({"grouped": self.grouped} if can else {})


@contextlib.contextmanager
def _everywhere() -> Iterator[None]:
    """Grouped products on a CPU too."""
    before, segment_grouped.DEVICES = segment_grouped.DEVICES, ("cpu", "cuda")
    try:
        yield
    finally:
        segment_grouped.DEVICES = before


def _unsaved(form: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        form()


def seconds(steps: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, Any]:
    """Median seconds of each, and the median over rounds of its ratio to the first."""
    spent: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(rounds + 2):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            spent[name].append((by_events if device == "cuda" else _by_processor)(steps[name]))
    first = spent[names[0]][2:]
    return {
        name: {
            "seconds": statistics.median(own[2:]),
            "ratio": statistics.median(o / f for o, f in zip(own[2:], first, strict=True)),
        }
        for name, own in spent.items()
    }


def _by_processor(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def saved(case: Case) -> float:
    """Values a pair that the graph of the experts holds beside its arguments."""
    held: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        case.moe()
    for own in (case.x, case.indices, case.weights, *case.stacks):
        held.pop(own.untyped_storage().data_ptr(), None)
    return sum(held.values()) / (case.indices.numel() * case.x.element_size())


def measure(size: Size, dtype: torch.dtype, rounds: int, device: str) -> dict[str, Any]:
    """The row of one size."""
    case, results = Case(size, dtype, device), {}
    forms = case.forms(device)
    for what, run in (("step", case.step), ("forward", _unsaved)):
        own = {name: partial(run, form) for name, form in forms.items()}
        results[what] = seconds(own, rounds, device)
    tokens, features, hidden, experts, slots = size
    kept = {"experts": saved(case), "experts_4x": 0.0}
    if device == "cpu":
        kept["experts_4x"] = saved(
            Case((tokens, features, hidden, 4 * experts, slots), dtype, device)
        )
    names = ("tokens", "features", "hidden", "experts", "slots")
    named = dict(zip(names, size, strict=True)) | {"dtype": str(dtype).removeprefix("torch.")}
    return {"case": named, "results": results, "saved_per_pair": kept}


def main() -> None:
    """Measure, print, and write the results."""
    arguments = asked(__doc__, 11)
    rows, device = [], arguments.device
    wide = torch.bfloat16 if device == "cuda" else torch.float32
    jobs = [(size, wide) for size in SIZES[device]]
    if device == "cpu":
        jobs += [(size, torch.bfloat16) for size in SIZES["cpu"][1::2]]
    for size, dtype in jobs:
        row = measure(size, dtype, arguments.rounds, device)
        ratios = {
            w: {n: f"{r['ratio']:.3f}" for n, r in v.items()} for w, v in row["results"].items()
        }
        print(row["case"], ratios, row["saved_per_pair"], flush=True)
        rows.append(row)
    print("wrote", write("moe", rows, device).name)
    for row in rows:
        found = row["results"]["step"]["experts"]["ratio"]
        if found > LIMIT:
            print(f"missed: {row['case']}: {found:.2f} of dense's time")


if __name__ == "__main__":
    main()
