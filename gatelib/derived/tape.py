"""A tape: what was computed from what, and the walk back through the derived gradients.

Imports NumPy and gatelib.spec.
Must not import torch, nor any other floor: every witness is compared with it.

Only a gate knows its derivative from `Spec.vjp`. Around it stand a linear map, a sum, and four ways
to cut and join arrays, whose adjoints are a line each. A forward pass is written with these, once;
no backward pass is written at all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.spec import Spec

__all__ = [
    "Tape",
    "Value",
    "gate",
    "gradients",
    "join",
    "linear",
    "split",
    "stack",
    "swap",
    "under",
]

Array = NDArray[Any]
Arrays = dict[str, Array]
Pull = Callable[..., Iterable[Array]]
"""The adjoints of a step's inputs, from those of its outputs."""


class Value:
    """An array, and the tape that knows where it came from."""

    def __init__(self, array: Any, tape: Tape) -> None:
        self.array, self.tape = np.asarray(array), tape

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.array.shape

    def __add__(self, other: Value) -> Value:
        def pull(d: Array) -> list[Array]:
            return [_summed(d, d.shape, value.shape) for value in (self, other)]

        return self.tape.record((self, other), pull, self.array + other.array)[0]

    def __getitem__(self, key: Any) -> Value:
        """A part: an index, a slice, `...` or None for each axis, or an array of indices."""

        def pull(d: Array) -> tuple[Array]:
            whole = np.zeros(self.shape, d.dtype)
            np.add.at(whole, key, d)
            return (whole,)

        return self.tape.record((self,), pull, self.array[key])[0]


Values = Mapping[str, Value]


class Tape:
    """The steps of a computation in their order: outputs, inputs, and how adjoints go back."""

    def __init__(self) -> None:
        self.steps: list[tuple[tuple[Value, ...], tuple[Value, ...], Pull]] = []

    def record(self, inputs: Iterable[Value], pull: Pull, *arrays: Array) -> tuple[Value, ...]:
        """Add a step that computed these arrays."""
        outputs = tuple(Value(array, self) for array in arrays)
        self.steps.append((outputs, tuple(inputs), pull))
        return outputs

    def gradients(self, upstream: Mapping[Value, Array]) -> dict[Value, Array]:
        """The loss's gradients by all values on which it depends, from those by some of them."""
        found = dict(upstream)
        for outputs, inputs, pull in reversed(self.steps):
            if not any(output in found for output in outputs):
                continue
            seeds = (found.get(v, np.zeros_like(v.array)) for v in outputs)
            for value, d in zip(inputs, pull(*seeds), strict=True):
                found[value] = found[value] + d if value in found else d
        return found


def gate(spec: Spec, /, **values: Value | Any) -> dict[str, Value]:
    """The outputs of a Spec by name, from its inputs by name; there may be more than it reads.

    The inputs are broadcast against each other; the last axis holds the features. What is no Value
    is a constant. Raises ValueError where an input is missing, or the Values are of two tapes.
    """
    exposed, vjp = _derived(spec)
    tape = _tape_of(values)
    given = {k: v if isinstance(v, Value) else Value(v, tape) for k, v in values.items()}
    inputs = {str(v): given[str(v)] for v in spec.inputs if str(v) in given}
    shape = np.broadcast_shapes(*(value.shape for value in inputs.values()))
    known = {name: np.broadcast_to(value.array, shape) for name, value in inputs.items()}
    known |= exposed.evaluate(known)
    names = [str(v) for v in spec.outputs]

    def pull(*seeds: Array) -> list[Array]:
        seed_of, adjoint_of = vjp.seed_of, vjp.adjoint_of
        pairs = zip(names, seeds, strict=True)
        placed = {seed_of[name]: _placed(d, shape) for name, d in pairs if name in seed_of}
        found = vjp.evaluate(known | placed)
        return [_summed(found[adjoint_of[k]], shape, v.shape) for k, v in inputs.items()]

    made = tape.record(inputs.values(), pull, *(known[name] for name in names))
    return dict(zip(names, made, strict=True))


def _tape_of(values: Mapping[str, Value | Any]) -> Tape:
    tapes = {value.tape for value in values.values() if isinstance(value, Value)}
    if len(tapes) != 1:
        raise ValueError(f"values: expected Values of one tape, got {len(tapes)} tapes")
    return tapes.pop()


@functools.lru_cache(maxsize=256)
def _derived(spec: Spec) -> tuple[Spec, Spec]:
    """The Spec with every value as an output, and its backward pass."""
    return spec.exposed, spec.vjp()


def _summed(d: Array, shape: tuple[int, ...], wanted: tuple[int, ...]) -> Array:
    """The adjoint of broadcasting from `wanted` to `shape`: a sum over the repeated axes."""
    new = len(shape) - len(wanted)
    repeated = [i for i in range(new, len(shape)) if wanted[i - new] == 1 != shape[i]]
    d = np.broadcast_to(d, shape).sum(axis=(*range(new), *repeated), keepdims=True)
    return d.reshape(wanted)


def _placed(d: Array, shape: tuple[int, ...]) -> Array:
    """The adjoint of a value that is the same along an axis, and is read at its first place."""
    if d.shape == shape:
        return d
    whole = np.zeros(shape, d.dtype)
    aligned = d.reshape((1,) * (len(shape) - d.ndim) + d.shape)
    whole[tuple(slice(size) for size in aligned.shape)] = aligned
    return whole


def linear(x: Value, weight: Value, bias: Value | None = None) -> Value:
    """W x + b over the last axis, with weight (rows, features) and bias (rows,)."""
    y = x.array @ weight.array.T
    rest = tuple(range(y.ndim - 1))

    def pull(d: Array) -> list[Array]:
        d_weight = np.tensordot(d, x.array, (rest, rest))
        return [d @ weight.array, d_weight, *([] if bias is None else [d.sum(axis=rest)])]

    if bias is None:
        return x.tape.record((x, weight), pull, y)[0]
    return x.tape.record((x, weight, bias), pull, y + bias.array)[0]


def split(value: Value, count: int) -> list[Value]:
    """Equal blocks of the last axis."""
    size = value.shape[-1] // max(count, 1)
    return [value[..., k * size : (k + 1) * size] for k in range(count)]


def join(values: Sequence[Value], axis: int = -1) -> Value:
    """Values one behind the other along an axis."""
    ends = np.cumsum([value.shape[axis] for value in values])[:-1]
    joined = np.concatenate([value.array for value in values], axis)
    return values[0].tape.record(values, lambda d: np.split(d, ends, axis), joined)[0]


def stack(values: Sequence[Value], like: Value) -> Value:
    """Steps (B, ...) along a new axis 1; `like` has the shape of one, where there may be none."""
    steps = [value[:, None] for value in values]
    return join([like[:, None][:, :0], *steps], axis=1)


def swap(value: Value, first: int, second: int) -> Value:
    """Two axes exchanged."""

    def pull(d: Array) -> tuple[Array]:
        return (d.swapaxes(first, second),)

    return value.tape.record((value,), pull, value.array.swapaxes(first, second))[0]


def under(place: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values whose names begin with `place`, by the rest of their names."""
    return {n.removeprefix(place): v for n, v in values.items() if n.startswith(place)}


def gradients(
    run: Callable[[Values], Values], inputs: Mapping[str, Array], upstream: Mapping[str, Array]
) -> Arrays:
    """The outputs of `run` by name, and the loss's gradient `d_NAME` by each of its inputs.

    Args:
        run: computes outputs by name from inputs by name, on a tape.
        inputs: arrays by name.
        upstream: the loss's gradients by the outputs, by their names; 0 where none is given.

    Raises: ValueError for an upstream gradient of no output, or of another shape.
    """
    tape = Tape()
    leaves = {name: Value(array, tape) for name, array in inputs.items()}
    outputs = run(leaves)
    for name, d in upstream.items():
        if name not in outputs or np.shape(d) != outputs[name].shape:
            shapes = {known: value.shape for known, value in outputs.items()}
            raise ValueError(f"upstream[{name!r}]: expected one of {shapes}, got {np.shape(d)}")
    seeds: dict[Value, Array] = {}
    for name, d in upstream.items():
        seeds[outputs[name]] = seeds.get(outputs[name], 0.0) + np.asarray(d)
    found = tape.gradients(seeds)
    result = {name: value.array for name, value in outputs.items()}
    return result | {f"d_{k}": found.get(v, np.zeros_like(v.array)) for k, v in leaves.items()}
