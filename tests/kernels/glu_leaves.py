"""What the tests of gates over features share: inputs, and the same by autograd over the equations.

Imports torch.
Must not import gatelib or Hypothesis: a machine with a GPU may lack it.
"""

import torch
import torch.nn.functional as F


def parts(spec, packed, dim=-1, gate="first"):
    """The inputs of a packed tensor, as the words say it."""
    if len(spec.inputs) == 1:
        return [packed]
    halves = packed.chunk(2, dim)
    return halves if gate == "first" else halves[::-1]


def eager(spec, packed, dim=-1, gate="first"):
    return spec.compile("torch")(*parts(spec, packed, dim, gate))


def eager_linear(spec, packed, weight, bias=None, gate="first"):
    return F.linear(eager(spec, packed, gate=gate), weight, bias)


def draw(*shape, dtype=torch.float64, seed=0, scale=2.0):
    """Random values, some of them beyond the limits of clamped gates."""
    x = scale * torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return x.to(dtype).requires_grad_()


def packed_of(spec, *shape, **options):
    return draw(*shape[:-1], len(spec.inputs) * shape[-1], **options)


def leaves_of(spec, rows=5, size=4, outputs=3, **options):
    packed = packed_of(spec, rows, size, **options)
    weight, bias = draw(outputs, size, seed=1, **options), draw(outputs, seed=2, **options)
    return packed, weight, bias


def gradients(value, wanted, seed=3, **options):
    upstream = draw(*value.shape, seed=seed).detach().to(value.dtype)
    return torch.autograd.grad(value, wanted, upstream, **options)


def same(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)
