"""Gates over features: what the fused operators save and cost, beside eager torch and a compiler.
Imports gatelib.equations, gatelib.kernels and the harness; Liger on a GPU where it is installed.
Must not import gatelib.reference.

A training step is forward and backward of the gate alone, or of the gate and the linear map behind
it, from a packed tensor that is a leaf. Peers: the usual form, act(a) * v and `F.linear`; the same
by torch.compile (Inductor) where a compiler is there; `F.glu` for its kind; Liger's SwiGLU and
GEGLU on a GPU. `ratio` is a peer's time over the first's, the usual form's: below 1 is faster.

Time on a CPU is the processor's, one thread, medians of turns taken in a circle. Memory is the
bytes of distinct storages that the graph holds beside the weight, as values an element of y.
On a GPU the time is between events, the cache empty, and `GB_per_s` counts 3 values an element
forward and 5 back, for the gate alone, beside a copy of the same bytes.

Run: python benchmarks/glu.py [--rounds N] [--device cpu|cuda] [--no-compile]
"""

import importlib.util
import shutil
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _harness import asked, by_events, write
from torch import Tensor
from torch.nn import functional as F

from gatelib.equations.glu import KINDS
from gatelib.kernels.gated import gated_of
from gatelib.kernels.glu import gated, gated_linear

SIZES = {
    "cpu": [
        (64, 256, 256),
        (512, 1024, 512),
        (4096, 1024, 512),
        (4096, 256, 256),
        (256, 4096, 1024),
    ],
    "cuda": [(8192, 3072, 1024), (8192, 11008, 4096), (2048, 1024, 1024)],
}
"""(rows, hidden, outputs)."""
KINDS_TIMED = {
    "cpu": "swiglu geglu geglu_tanh glu reglu bilinear gpt_oss situ gelu".split(),
    "cuda": "swiglu geglu_tanh glu gpt_oss".split(),
}
WHOLE = "swiglu"
"""The kind that is timed at all sizes; the others at the second alone."""
COMPILED = (512, 1024, 512)
"""The size of that kind at which a compiler takes it too; it may need a minute."""
TIME = 1.10


def usual(kind: str) -> Callable[..., Tensor]:
    """The gate as people write it."""
    units: dict[str, Callable[[Tensor], Tensor]] = {
        "swiglu": F.silu,
        "geglu": F.gelu,
        "geglu_tanh": partial(F.gelu, approximate="tanh"),
        "glu": torch.sigmoid,
        "reglu": F.relu,
        "bilinear": lambda a: a,
    }
    if kind in units:
        return lambda a, v: units[kind](a) * v
    if kind == "gpt_oss":
        return _gpt_oss
    if kind == "situ":
        return lambda a, v: 4 * torch.tanh(a / 4) * torch.sigmoid(a) * (25 * torch.tanh(v / 25))
    return F.gelu


def _gpt_oss(a: Tensor, v: Tensor) -> Tensor:
    a, v = a.clamp(max=7.0), v.clamp(-7.0, 7.0)
    return a * torch.sigmoid(1.702 * a) * (v + 1)


def forms(kind: str, inputs: int, compiled: bool) -> dict[str, dict[str, Callable[..., Tensor]]]:
    """{"gate" or "down": {name: function of packed and weight}}; the first is the usual form."""
    act, known = usual(kind), gated_of(KINDS[kind])

    def gate(packed: Tensor, weight: Tensor) -> Tensor:
        return act(*packed.chunk(inputs, -1))

    def down(packed: Tensor, weight: Tensor) -> Tensor:
        return F.linear(act(*packed.chunk(inputs, -1)), weight)

    found: dict[str, dict[str, Callable[..., Tensor]]] = {
        "gate": {"usual": gate, "fused": lambda packed, weight: gated(known, packed)},
        "down": {"usual": down, "fused": lambda p, weight: gated_linear(known, p, weight)},
    }
    if kind == "glu":
        found["gate"]["F.glu"] = lambda packed, weight: F.glu(packed)
    if compiled:
        for name, form in (("gate", gate), ("down", down)):
            found[name]["compiled"] = torch.compile(form, fullgraph=True, dynamic=False)
    peer = _liger(kind)
    if peer is not None:
        found["gate"]["Liger"] = lambda packed, weight: peer(*packed.chunk(2, -1))
        found["down"]["Liger"] = lambda p, weight: F.linear(peer(*p.chunk(2, -1)), weight)
    return found


def _liger(kind: str) -> Callable[..., Tensor] | None:
    """Liger's function of the kind, where it is installed and a GPU is there."""
    if not torch.cuda.is_available() or importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.ops.geglu import LigerGELUMulFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    classes: dict[str, Any] = {"swiglu": LigerSiLUMulFunction, "geglu_tanh": LigerGELUMulFunction}
    return classes[kind].apply if kind in classes else None


def saved(form: Callable[..., Tensor], packed: Tensor, weight: Tensor) -> int:
    """Bytes of the distinct storages that the graph holds, apart from the weight."""
    held: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        form(packed, weight)
    held.pop(weight.untyped_storage().data_ptr(), None)
    return sum(held.values())


def seconds(steps: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, Any]:
    """Median seconds of each, and the median over rounds of its ratio to the first."""
    clock = by_events if device == "cuda" else _by_processor
    spent: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(rounds + 2):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            spent[name].append(clock(steps[name]))
    first = spent[names[0]][2:]
    return {
        name: {
            "seconds": statistics.median(own[2:]),
            "ratio": statistics.median(o / f for o, f in zip(own[2:], first, strict=True)),
        }
        for name, own in spent.items()
    }


def _by_processor(run: Callable[[], None], least: float = 2e-3) -> float:
    """Processor seconds of one run; of several where one is too short for the clock."""
    count, start = 0, time.process_time()
    while time.process_time() - start < least:
        run()
        count += 1
    return (time.process_time() - start) / count


def measure(
    kind: str, size: tuple[int, int, int], rounds: int, device: str, compiled: bool
) -> list:
    """The rows of one kind and size."""
    (rows, hidden, outputs), inputs = size, len(KINDS[kind].inputs)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    options: Any = {"device": device, "dtype": dtype}
    packed = torch.randn(rows, inputs * hidden, **options).requires_grad_()
    weight = (torch.randn(outputs, hidden, **options) / hidden**0.5).requires_grad_()
    found = []
    for what, own in forms(kind, inputs, compiled).items():
        upstream = torch.randn(rows, hidden if what == "gate" else outputs, **options)

        def step(form: Callable[..., Tensor], upstream: Tensor = upstream) -> None:
            form(packed, weight).backward(upstream)
            packed.grad = weight.grad = None

        results = seconds({n: partial(step, form) for n, form in own.items()}, rounds, device)
        for name, form in own.items():
            values = saved(form, packed, weight) / (rows * hidden * packed.element_size())
            results[name]["saved_per_element"] = round(values, 3)
        case = {"what": what, "kind": kind, "rows": rows, "hidden": hidden, "outputs": outputs}
        if device == "cuda" and what == "gate":
            _add_rates(results, packed, rows * hidden)
        found.append({"case": case, "results": results})
    return found


def _add_rates(results: dict[str, Any], packed: Tensor, count: int) -> None:
    """GB/s of forward and backward together, 8 values an element, beside a copy of as many."""
    size = 8 * count * packed.element_size()
    source = torch.empty(size // 2, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    took = statistics.median(by_events(lambda: target.copy_(source)) for _ in range(20))
    results["copy"] = {"seconds": took, "ratio": took / results["usual"]["seconds"]}
    for own in results.values():
        own["GB_per_s"] = round(size / own["seconds"] / 1e9, 1)


def main() -> None:
    """Measure, print, and write the results."""
    arguments = asked(__doc__, 15, no_compile="leave torch.compile out")
    compiled = not arguments.no_compile and shutil.which("c++") is not None
    rows, device = [], arguments.device
    for kind in KINDS_TIMED[device]:
        for size in SIZES[device] if kind == WHOLE else SIZES[device][1:2]:
            here = compiled and (kind, size) == (WHOLE, COMPILED)
            for row in measure(kind, size, arguments.rounds, device, here):
                print(row["case"], {n: f"{r['ratio']:.3f}" for n, r in row["results"].items()})
                rows.append(row)
    print("wrote", write("glu", rows, arguments.device).name)
    for row in rows:
        fused, peer = row["results"]["fused"], row["results"]["usual"]
        share = fused["saved_per_element"] / peer["saved_per_element"]
        if fused["ratio"] > TIME or share > 1:
            print(f"missed: {row['case']}: {share:.2f} of the memory, {fused['ratio']:.2f} of time")


if __name__ == "__main__":
    main()
