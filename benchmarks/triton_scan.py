"""Generated time-scan kernels beside the eager loop and a copy of the same bytes, on a GPU.
Imports gatelib.kernels.scan, gatelib.spec, gatelib.equations, torch, Triton and the harness.
Must not import gatelib.reference or gatelib.lab.

Run: python benchmarks/triton_scan.py; says so and stops where there is no GPU.
"""

import argparse
from collections.abc import Callable

import torch
from _harness import by_events, compare, table, write
from torch import Tensor

from gatelib.equations.lstm import LSTM
from gatelib.kernels.scan import TimeScan, scan
from gatelib.spec import Spec

MINGRU = Spec.parse("mingru", "a_z n h_prev -> h", "z = sigmoid(a_z)\nh = (1 - z)*h_prev + z*n")
SIZES = [(8, 2048, 2048), (32, 1024, 1024), (4, 8192, 1024)]
DTYPES = [torch.float32, torch.bfloat16]
GOAL, ROUNDS = 0.8, 25


def eager(spec: Spec) -> Callable[..., tuple[Tensor, ...]]:
    """The Spec's torch source in a loop over time, from a state of zeros."""
    cell, carries = spec.compile("torch"), list(spec.carries.values())
    outputs = list(spec.outputs)

    def run(*streams: Tensor) -> tuple[Tensor, ...]:
        first = streams[0]
        states = [first.new_zeros(first.shape[0], first.shape[2]) for _ in carries]
        steps: list[tuple[Tensor, ...]] = []
        for t in range(first.shape[1]):
            values = cell(*(x[:, t] for x in streams), *states)
            steps.append(values if isinstance(values, tuple) else (values,))
            states = [steps[-1][outputs.index(v)] for v in carries]
        return tuple(torch.stack(values, 1) for values in zip(*steps, strict=True))

    return run


def generated(cell: TimeScan) -> Callable[..., tuple[Tensor, ...]]:
    """The kernel with the same arguments and results as `eager`."""

    def run(*streams: Tensor) -> tuple[Tensor, ...]:
        outputs, _ = cell(*streams)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return run


def bytes_moved(cell: TimeScan, stream: Tensor) -> dict[str, int]:
    """What each kernel must read and write once, states and parameters left out."""
    plan, one = cell.plan, stream.numel() * stream.element_size()
    forward = len(plan.streams) + len(plan.stored)
    # The loss sees the first output alone, so one adjoint arrives.
    reverse = len(plan.reads) + len(plan.states_read) + 1 + len(plan.streams)
    return {"forward": forward * one, "backward": reverse * one}


def jobs(run: Callable[..., tuple[Tensor, ...]], streams: list[Tensor]) -> dict[str, Callable]:
    """The forward pass alone, and the backward pass from the first output alone."""
    output = run(*streams)[0]
    seed = torch.ones_like(output)
    return {
        "forward": lambda: run(*streams),
        "backward": lambda: torch.autograd.grad(output, streams, seed, retain_graph=True),
    }


def copy_job(size: int, device: torch.device) -> Callable[[], Tensor]:
    """A copy that reads and writes `size` bytes in all."""
    source = torch.empty(size // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def eager_of(spec: Spec, streams: list[Tensor]) -> dict[str, Callable]:
    """The loop over an eighth of the steps; all of them would take minutes."""
    steps = streams[0].shape[1] // 8
    return jobs(eager(spec), [x[:, :steps].detach().clone().requires_grad_() for x in streams])


def eighthfold(found: dict[str, float]) -> dict[str, float]:
    """What all steps would have taken."""
    return {k: 8 * v if k == "seconds" else v / 8 for k, v in found.items()}


def measure(spec: Spec, size: tuple[int, int, int], dtype: torch.dtype) -> list[dict[str, object]]:
    """Two rows, forward and backward. Ratios are to the copy: 1 is the speed of memory."""
    cell, rows = scan(spec), []
    streams = [torch.randn(size, device="cuda", dtype=dtype) for _ in cell.names]
    loop = eager_of(spec, streams)
    kernel = jobs(generated(cell), [x.requires_grad_() for x in streams])
    for direction, moved in bytes_moved(cell, streams[0]).items():
        candidates = {
            "copy of the same bytes": copy_job(moved, streams[0].device),
            "generated kernel": kernel[direction],
        }
        found = compare(candidates, ROUNDS, clock=by_events)
        candidates["eager loop"] = loop[direction]
        del candidates["generated kernel"]
        found["eager loop"] = eighthfold(compare(candidates, 5, clock=by_events)["eager loop"])
        case = dict(zip(("batch", "time", "width"), size, strict=True))
        case |= {"cell": spec.name, "dtype": str(dtype), "direction": direction, "bytes": moved}
        rows.append({"case": case, "results": found})
    return rows


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing measured, nothing written")
        return
    torch.manual_seed(0)
    cases = [(s, size, d) for s in (MINGRU, LSTM) for size in SIZES for d in DTYPES]
    rows: list[dict] = []
    for case in cases:
        rows += measure(*case)
        print(table(rows[-2:]), flush=True)
        path = write("triton_scan", rows, "cuda")  # anew each time: a run may be cut off
    print("wrote", path.name)
    below = [r["case"] for r in rows if r["results"]["generated kernel"]["ratio"] < GOAL]
    if below:
        raise SystemExit(f"below {GOAL} of copy bandwidth at {below}")


if __name__ == "__main__":
    main()
