"""Generated time-scan kernels beside the eager loop and a copy of the same bytes, on a GPU.
Imports gatelib.kernels.scan, gatelib.spec, gatelib.equations, torch, Triton and the harness.
Must not import gatelib.reference or gatelib.lab.

Run: python benchmarks/triton_scan.py; says so and stops where there is no GPU.
"""

import argparse
from collections.abc import Callable

import torch
from _harness import table, write
from torch import Tensor

from gatelib.equations.lstm import LSTM
from gatelib.kernels.scan import TimeScan, scan
from gatelib.spec import Spec

MINGRU = Spec.parse("mingru", "a_z n h_prev -> h", "z = sigmoid(a_z)\nh = (1 - z)*h_prev + z*n")
SIZES = [(8, 2048, 2048), (32, 1024, 1024), (4, 8192, 1024)]
DTYPES = [torch.float32, torch.bfloat16]
GOAL = 0.8


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


def timed(job: Callable[[], object]) -> tuple[float, float, float]:
    """(median, lower quartile, upper quartile) in seconds, the cache emptied before every run."""
    from triton.testing import do_bench

    return tuple(1e-3 * t for t in do_bench(job, quantiles=[0.5, 0.25, 0.75]))


def summary(times: dict[str, tuple[float, float, float]]) -> dict[str, dict[str, float]]:
    """Seconds, and the copy's time over each one's time: 1 is the speed of memory."""
    copy = times["copy of the same bytes"][0]
    return {
        name: {"seconds": middle, "ratio": copy / middle, "low": copy / slow, "high": copy / fast}
        for name, (middle, fast, slow) in times.items()
    }


def measure(spec: Spec, size: tuple[int, int, int], dtype: torch.dtype) -> list[dict[str, object]]:
    """Two rows, forward and backward; the eager loop runs an eighth of the steps, times eight."""
    cell, rows = scan(spec), []
    streams = [torch.randn(size, device="cuda", dtype=dtype) for _ in cell.names]
    short = [x[:, : size[1] // 8].contiguous().requires_grad_() for x in streams]
    kernel = jobs(generated(cell), [x.requires_grad_() for x in streams])
    loop = jobs(eager(spec), short)
    for direction, moved in bytes_moved(cell, streams[0]).items():
        times = {"copy of the same bytes": timed(copy_job(moved, streams[0].device))}
        times["generated kernel"] = timed(kernel[direction])
        times["eager loop"] = tuple(8 * t for t in timed(loop[direction]))
        case = dict(zip(("batch", "time", "width"), size, strict=True))
        case |= {"cell": spec.name, "dtype": str(dtype), "direction": direction, "bytes": moved}
        rows.append({"case": case, "results": summary(times)})
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
    rows = [row for case in cases for row in measure(*case)]
    print(table(rows))
    print("wrote", write("triton_scan", rows, "cuda").name)
    below = [r["case"] for r in rows if r["results"]["generated kernel"]["ratio"] < GOAL]
    if below:
        raise SystemExit(f"below {GOAL} of copy bandwidth at {below}")


if __name__ == "__main__":
    main()
