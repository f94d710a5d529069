"""A program for test_sources: the workshop's Triton kernels, launched as a reader would.

Imports NumPy, torch, Triton in its interpreter, and gatelib.
"""

from __future__ import annotations

import torch
import triton.language as tl

from gatelib import equations, workshop
from gatelib.kernels.launch import load
from gatelib.spec import Spec

COUNT, BLOCK = 37, 64
SIMPLE = [known.stages[0] for known in equations.ALL.values() if len(known.stages) == 1]
PLAIN = [spec for spec in SIMPLE if spec.is_elementwise and not spec.carries][:12]
CELLS = [spec for spec in SIMPLE if spec.is_elementwise and spec.carries][:6]


def launched(kernels, spec: Spec, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The outputs of an elementwise kernel."""
    found = {str(v): torch.empty(COUNT, dtype=torch.float64) for v in spec.outputs}
    given = [values[str(v)] for v in spec.inputs]
    kernel = kernels[f"{spec.name}_elementwise"]
    kernel[(1,)](*given, *found.values(), COUNT, BLOCK_=BLOCK, DTYPE_=tl.float64)
    return found


def check(spec: Spec) -> None:
    """Both kernels of a gate against its torch source."""
    kernels = load(workshop.sheet(spec)["source"]["triton"]["code"])
    for part in (spec, spec.vjp("")):
        if part.inputs:
            values = {str(v): torch.rand(COUNT, dtype=torch.float64) for v in part.inputs}
            expected = part.evaluate(values, "torch")
            for name, found in launched(kernels, part, values).items():
                assert torch.allclose(found, expected[name], rtol=1e-12, atol=1e-13), name


if __name__ == "__main__":
    torch.manual_seed(0)
    for plain in PLAIN:
        check(plain)
    for cell in CELLS:
        names = load(workshop.sheet(cell)["source"]["triton"]["code"])
        assert {f"{cell.name}_forward", f"{cell.name}_reverse"} <= set(names)
    print("ran", len(PLAIN), len(CELLS))
