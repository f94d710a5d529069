"""What the tests of experts over segments share: routings, leaves, memory that holds NaN.

Imports torch, gatelib.kernels and tests.kernels.
Must not import Hypothesis: a machine with a GPU may lack it.
"""

import torch
import torch.nn.functional as F

from gatelib.kernels import segment_grouped
from tests.kernels.glu_leaves import draw

ROUTINGS = {
    "two empty experts, pairs without one": [[2, 0], [-1, 2], [5, 0], [0, 3], [2, -1]],
    "one expert takes all": [[3], [3], [3]],
    "an expert twice": [[1, 1], [4, 1]],
    "one token": [[4, 0, 2]],
    "no pair has an expert": [[-1, 5], [7, -1]],
    "every expert": [[0, 1, 2, 3, 4]] * 3,
}
ROUTINGS = {name: torch.tensor(rows) for name, rows in ROUTINGS.items()} | {
    "no token": torch.zeros(0, 2, dtype=torch.int64),
    "no slot": torch.zeros(3, 0, dtype=torch.int64),
}
"""Of five experts."""
INDICES = next(iter(ROUTINGS.values()))


def leaves_of(spec, indices=INDICES, features=3, size=4, experts=5, outputs=2, **options):
    """x, weights, and both stacks."""
    x = draw(len(indices), features, **options)
    weights = draw(*indices.shape, seed=1, **options)
    weight_in = draw(experts, len(spec.inputs) * size, features, seed=2, **options)
    return x, weights, weight_in, draw(experts, outputs, size, seed=3, **options)


def run(form, spec, indices=INDICES):
    """`form` as a function of the leaves."""
    return lambda x, weights, *stacks: form(spec, x, indices, weights, *stacks)


def poisoned(patch, number=torch.nan):
    """From here on new memory holds this, and so do the rows that `F.grouped_mm` leaves alone."""

    def spoil(value):
        return value.fill_(number) if value.is_floating_point() else value

    def after(make):
        return lambda *given, **options: spoil(make(*given, **options))

    product = F.grouped_mm

    def grouped(a, b, *, offs):
        found = product(a, b, offs=offs)
        if found.dim() == 2:
            found[int(offs[-1]) :] = number
        return found

    patch.setattr(torch.Tensor, "new_empty", after(torch.Tensor.new_empty))
    patch.setattr(torch, "empty_like", after(torch.empty_like))
    patch.setattr(torch, "empty", after(torch.empty))
    patch.setattr(F, "grouped_mm", grouped)


def on_every_device(patch):
    """`F.grouped_mm` is taken wherever it can go, on a CPU too."""
    patch.setattr(segment_grouped, "DEVICES", ("cpu", "cuda"))
