"""A training step of a drop-in beside torch's layer: what `lstm.py` and `gru.py` share.
Imports gatelib.nn, torch and the harness.
Must not import gatelib.reference or gatelib.lab.
"""

from collections.abc import Callable

import torch
from _harness import asked, compare, table, write
from torch import nn

import gatelib.nn

GOAL = 0.98
Case = tuple[int, int, int, int]
"""Batch, time, input features, hidden features."""


def training_step(module: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """Forward, a scalar loss, backward into fresh gradients."""

    def run() -> None:
        module.zero_grad(set_to_none=True)
        output, _ = module(x)
        output.square().mean().backward()

    return run


def measure(name: str, case: Case, rounds: int, device: str) -> dict[str, object]:
    """One row: both layers of that name at one case."""
    batch, time, features, hidden = case
    theirs = getattr(nn, name)(features, hidden, batch_first=True, device=device)
    ours = getattr(gatelib.nn, name)(features, hidden, batch_first=True, device=device)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(batch, time, features, device=device)
    modules = {f"torch.nn.{name}": theirs, f"gatelib.nn.{name}": ours}
    steps = {name: training_step(module, x) for name, module in modules.items()}
    names = ("batch", "time", "input", "hidden")
    found = compare(steps, rounds if batch > 1 else 100 * rounds)
    return {"case": dict(zip(names, case, strict=True)), "results": found}


def main(name: str, cases: list[Case], description: str) -> None:
    """Measure, print against the goal, and write the results."""
    arguments = asked(description, 21)
    rows = [measure(name, case, arguments.rounds, arguments.device) for case in cases]
    print(table(rows))
    print("wrote", write(name.lower(), rows, arguments.device).name)
    ratios = [(r["case"], r["results"][f"gatelib.nn.{name}"]["ratio"]) for r in rows]
    slow = [case for case, ratio in ratios if case["batch"] > 1 and ratio < GOAL]
    print(f"goal {GOAL} of torch.nn.{name}: {'missed' if slow else 'met'}")
    if slow:
        raise SystemExit(f"slower than {GOAL} of torch.nn.{name} at {slow}")
