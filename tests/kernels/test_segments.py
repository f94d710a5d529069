"""Experts over segments: every derivative is the formula's, and nothing unwritten is read.

Imports torch, gatelib.kernels and tests.kernels.
"""

import torch

from gatelib.kernels.segments import experts_mlp, experts_mlp_reference, segments
from tests.kernels.glu_leaves import draw, gradients, same
from tests.kernels.glu_specs import FAMILY, SWIGLU, named

INDICES = torch.tensor([[2, 0], [-1, 2], [5, 0], [0, 3], [2, -1]])
"""Of five experts: 1 and 4 are empty, three pairs have none."""


def leaves_of(spec, indices=INDICES, features=3, size=4, experts=5, outputs=2, **options):
    x = draw(len(indices), features, **options)
    weights = draw(*indices.shape, seed=1, **options)
    weight_in = draw(experts, len(spec.inputs) * size, features, seed=2, **options)
    return x, weights, weight_in, draw(experts, outputs, size, seed=3, **options)


def run(form, spec, indices=INDICES):
    return lambda x, weights, *stacks: form(spec, x, indices, weights, *stacks)


def test_pairs_are_sorted_by_expert_and_then_by_token():
    where = segments(INDICES, 5)
    assert where.order.tolist() == [1, 5, 6, 0, 3, 8, 7, 2, 4, 9]
    assert where.token.tolist() == [0, 2, 3, 0, 1, 4, 3, 1, 2, 4]
    assert where.counts.tolist() == [3, 0, 3, 1, 0] and where.offsets.tolist() == [3, 3, 6, 7, 7]


@named(FAMILY)
def test_value_and_gradients_are_those_of_the_formula(spec):
    leaves = leaves_of(spec)
    got, expected = (run(form, spec)(*leaves) for form in (experts_mlp, experts_mlp_reference))
    same(got, expected)
    same(gradients(got, leaves), gradients(expected, leaves))


def test_first_and_second_derivatives_are_those_of_differences():
    leaves = leaves_of(SWIGLU)
    assert torch.autograd.gradcheck(run(experts_mlp, SWIGLU), leaves)
    assert torch.autograd.gradgradcheck(run(experts_mlp, SWIGLU), leaves)
