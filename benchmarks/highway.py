"""Gates over depth: what the fused highway saves and costs.
Imports gatelib.nn, gatelib.kernels and the harness.
Must not import gatelib.reference.

Memory is the bytes of distinct storages that the graph holds, without input and weights, as values
a unit and layer. Time is processor time of a training step, medians of turns taken in a circle.
The peer is the eager form as it is usually written, t*h + (1 - t)*x, which saves four values. The
tightest eager form is `torch.lerp`, which saves three; it is timed too. The fused path saves two
and pays with half a forward product more.

Writes one JSON.

Run: python benchmarks/highway.py [--rounds N] [--device cpu|cuda]
"""

import statistics
import time
from collections.abc import Callable

import torch
from _harness import asked, write
from torch import Tensor, nn
from torch.nn import functional as F

from gatelib.kernels import highway as kernel
from gatelib.nn import Highway

CASES = [(64, 64, 30), (256, 64, 30), (256, 256, 10), (1024, 256, 10), (256, 1024, 4)]
SAVED, TIME = 0.7, 1.15


def lerped(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """The tightest eager form of a coupled stack."""
    for w, b in zip(weight, bias, strict=True):
        a_h, a_t = F.linear(x, w, b).chunk(2, -1)
        x = torch.lerp(x, getattr(torch, activation)(a_h), torch.sigmoid(a_t))
    return x


def saved_bytes(run: Callable[[], Tensor], known: tuple[Tensor, ...]) -> int:
    """Bytes of the distinct storages that the graph of `run()` holds, apart from `known`."""
    held: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        result = run()
    own = {value.untyped_storage().data_ptr() for value in known}
    assert result.requires_grad
    return sum(size for at, size in held.items() if at not in own)


def finished() -> float:
    """The time on the wall, once the GPU has done all that it was asked."""
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(runs: dict[str, Callable[[], Tensor]], layer: nn.Module, rounds: int) -> dict:
    """Median time of a training step of each, and ratios to the first, by round.

    On a CPU the processor's time; on a GPU the wall's, once the GPU has finished.
    """
    clock = finished if layer.weight.is_cuda else time.process_time
    spent: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = clock()
            runs[name]().square().mean().backward()
            spent[name].append(clock() - start)
            layer.zero_grad(set_to_none=True)
    spent = {name: values[1:] for name, values in spent.items()}
    first = spent[names[0]]
    return {
        name: {
            "seconds": statistics.median(values),
            "ratio": statistics.median(v / f for v, f in zip(values, first, strict=True)),
        }
        for name, values in spent.items()
    }


def measure(
    batch: int, features: int, layers: int, activation: str, rounds: int, device: str
) -> dict:
    """One row."""
    layer = Highway(features, layers, activation, device=device)
    x = torch.randn(batch, features, device=device)
    given = x, layer.weight, layer.bias
    runs = {
        "eager": lambda: kernel.plain(layer.layer, *given),
        "eager, lerp": lambda: lerped(*given, activation),
        "fused": lambda: kernel.fused(layer.layer, *given, True),
    }
    found = seconds(runs, layer, rounds)
    count = batch * features * layers * x.element_size()
    for name, run in runs.items():
        held = saved_bytes(run, (x, layer.weight, layer.bias))
        found[name]["saved_per_unit_and_layer"] = round(held / count, 3)
    case = {"batch": batch, "features": features, "layers": layers, "activation": activation}
    return {"case": case, "results": found}


def main() -> None:
    """Measure, print, and write the results."""
    arguments = asked(__doc__, 15)
    rows = []
    for case in CASES:
        for activation in ("relu", "tanh"):
            rows.append(measure(*case, activation, arguments.rounds, arguments.device))
            print(rows[-1], flush=True)
    print("wrote", write("highway", rows, arguments.device).name)
    for row in rows:
        fused, eager = row["results"]["fused"], row["results"]["eager"]
        share = fused["saved_per_unit_and_layer"] / eager["saved_per_unit_and_layer"]
        if share > SAVED or fused["ratio"] > TIME:
            print(f"missed: {row['case']}: {share:.2f} of the memory, {fused['ratio']:.2f} of time")


if __name__ == "__main__":
    main()
