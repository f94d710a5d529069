"""A training step of `gatelib.nn.LSTM` beside `torch.nn.LSTM`, on the same weights and input.
Imports gatelib.nn, torch and the harness.
Must not import gatelib.reference or gatelib.lab.

Run: python benchmarks/lstm.py [--rounds N] [--device cpu|cuda]
"""

import argparse
from collections.abc import Callable

import torch
from _harness import compare, table, write
from torch import nn

from gatelib.nn import LSTM

CASES = [(32, 128, 64, 128), (64, 256, 128, 256), (1, 1, 8, 8)]
GOAL = 0.98


def training_step(module: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """Forward, a scalar loss, backward into fresh gradients."""

    def run() -> None:
        module.zero_grad(set_to_none=True)
        output, _ = module(x)
        output.square().mean().backward()

    return run


def measure(case: tuple[int, int, int, int], rounds: int, device: str) -> dict[str, object]:
    """One row: both modules at (batch, time, input, hidden)."""
    batch, time, features, hidden = case
    theirs = nn.LSTM(features, hidden, batch_first=True, device=device)
    ours = LSTM(features, hidden, batch_first=True, device=device)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(batch, time, features, device=device)
    modules = {"torch.nn.LSTM": theirs, "gatelib.nn.LSTM": ours}
    steps = {name: training_step(module, x) for name, module in modules.items()}
    names = ("batch", "time", "input", "hidden")
    found = compare(steps, rounds if batch > 1 else 100 * rounds)
    return {"case": dict(zip(names, case, strict=True)), "results": found}


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [measure(case, arguments.rounds, arguments.device) for case in CASES]
    print(table(rows))
    print("wrote", write("lstm", rows, arguments.device).name)
    slow = [r["case"] for r in rows[:2] if r["results"]["gatelib.nn.LSTM"]["ratio"] < GOAL]
    if slow:
        raise SystemExit(f"slower than {GOAL} of torch.nn.LSTM at {slow}")


if __name__ == "__main__":
    main()
