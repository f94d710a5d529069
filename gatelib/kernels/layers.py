"""What a Spec means as a layer over depth: its step, its step back, and what it saves between.

Imports SymPy, gatelib.cell, gatelib.functions, gatelib.spec, and of gatelib.kernels inplace and
patterns.
Must not import torch, gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

The first `a_k` is the preactivation of the transform: its values are saved for the backward pass.
Any other that a sigmoid alone reads is a gate's, and is computed again from the weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy as sp

from gatelib.cell import cell
from gatelib.functions import FUNCTIONS
from gatelib.kernels.inplace import FULL, Program, lower, shape_of
from gatelib.kernels.patterns import tightened
from gatelib.spec import Equation, Spec, symbol

__all__ = ["Layer", "layer", "layer_of_text"]


@dataclass(frozen=True)
class Layer:
    """One layer's Spec: `a_k` is W_k x + b_k, `x` what the layer receives, `y` what it gives."""

    spec: Spec

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is read from its Spec again."""
        return layer, (self.spec,)

    @functools.cached_property
    def inputs(self) -> tuple[str, ...]:
        """The names of the Spec's inputs."""
        return tuple(map(str, self.spec.inputs))

    @functools.cached_property
    def blocks(self) -> tuple[str, ...]:
        """The k of each `a_k`, in the order of the blocks of rows."""
        return cell(self.spec).gates

    @functools.cached_property
    def gates(self) -> dict[str, str]:
        """{k: name of σ(a_k)} for each a_k that it alone reads, but the first."""
        found = {}
        for k in self.blocks[1:]:
            a = symbol(f"a_{k}")
            readers = [(v, e) for v, e in self.spec.equations if a in e.free_symbols]
            if [e for _, e in readers] == [FUNCTIONS["sigmoid"](a)]:
                found[k] = str(readers[0][0])
        return found

    @functools.cached_property
    def shapes(self) -> dict[str, str]:
        """The shape of every input and value."""
        shapes = dict.fromkeys(self.inputs, FULL)
        for v, e in self.spec.equations:
            shapes[str(v)] = shape_of(e, shapes)
        return shapes

    @functools.cached_property
    def vjp(self) -> Spec:
        """The backward pass from x, what is saved, and the gates' preactivations."""
        first = {symbol(f"a_{k}") for k in self.blocks if k not in self.gates}
        kept = [str(v) for v, e in self.spec.equations if e.free_symbols & first]
        return self.spec.vjp(keep=" ".join(kept))

    @functools.cached_property
    def again(self) -> range:
        """The blocks whose product runs again: from the first gate's to the last one's."""
        at = [self.blocks.index(k) for k in self.gates]
        return range(at[0], at[-1] + 1) if at else range(0)

    @functools.cached_property
    def back(self) -> tuple[Equation, ...]:
        """The equations of `vjp` with torch's own calls; x's adjoint is 0 where y sees x by a_k."""
        equations = tightened(self.vjp.equations, {e: v for v, e in self.spec.equations})
        passed = () if "x" in self.inputs else ((symbol(self.adjoints["x"]), sp.S.Zero),)
        return (*equations, *passed)

    @functools.cached_property
    def saved(self) -> dict[str, str]:
        """{what `step_back` reads, but for x and what is found again: the result of `step`}.

        An input is saved as a copy, since its place is used again, and so is y, the next one's x.
        """
        made, again = {v for v, _ in self.back}, {"x", *(f"a_{k}" for k in self.gates)}
        read = {str(v) for _, e in self.back for v in e.free_symbols - made} - again
        return {
            v: self._free(v) if v in (*self.inputs, "y") else v for v in self.shapes if v in read
        }

    def _free(self, name: str) -> str:
        taken = {*self.shapes, *(str(v) for v, _ in self.vjp.equations)}
        while name in taken:
            name += "_saved"
        return name

    @functools.cached_property
    def seed(self) -> str:
        """The name of y's adjoint; where no derivative needs it, some free name."""
        found = (v for v in map(str, self.vjp.inputs) if v not in self.shapes)
        return next(found, self._free("g_y"))

    @functools.cached_property
    def adjoints(self) -> dict[str, str]:
        """{input: name of its adjoint}, that of x in any case."""
        pairs = zip(self.inputs, map(str, self.vjp.outputs), strict=True)
        return {"x": self._free("d_x")} | dict(pairs)

    @functools.cached_property
    def step(self) -> Program:
        """The layer; fills y and what is saved."""
        copies = [(symbol(to), symbol(v)) for v, to in self.saved.items() if to != v]
        results = {"y": FULL} | {to: self.shapes[v] for v, to in self.saved.items()}
        equations = [*tightened(self.spec.equations), *copies]
        shapes = dict.fromkeys(self.inputs, FULL)
        return lower(f"{self.spec.name}_layer", equations, shapes, results)

    @functools.cached_property
    def step_back(self) -> Program:
        """The layer backwards; fills the adjoints of its inputs."""
        made = {str(v) for v, _ in self.back}
        shapes = {v: s for v, s in self.shapes.items() if v not in made} | {self.seed: FULL}
        results = dict.fromkeys(self.adjoints.values(), FULL)
        return lower(f"{self.spec.name}_layer_back", self.back, shapes, results)

    @functools.cached_property
    def in_torch(self) -> Callable[..., Any]:
        """The layer as a torch function."""
        return self.spec.compile("torch")

    @functools.cached_property
    def text(self) -> str:
        """The Spec as text, from which `layer_of_text` makes this layer again."""
        return repr(self.spec)

    def parts(self, packed: Any) -> dict[str, Any]:
        """{a_k: its (N, D) part} of a packed (N, G*D)."""
        chunks = packed.chunk(len(self.blocks), -1)
        return {f"a_{k}": a for k, a in zip(self.blocks, chunks, strict=True)}


@functools.lru_cache(maxsize=256)
def layer(spec: Spec) -> Layer:
    """Read a Spec as a layer; ValueError, naming the Spec, where it is none."""
    made, blocks = Layer(spec), cell(spec).gates
    for v in map(str, spec.inputs):
        if v != "x" and v.removeprefix("a_") not in blocks:
            raise ValueError(f"spec: {spec.name} has the input `{v}`; a layer has `x` and `a_k`")
    if [str(v) for v in spec.outputs] != ["y"] or "y" in map(str, spec.inputs):
        raise ValueError(f"spec: expected a layer that computes `y` alone, got {spec.name}")
    if not blocks or made.shapes["y"] != FULL:
        raise ValueError(f"spec: expected `a_k` and `y` of every feature, got {spec.name}")
    _ = made.text, made.in_torch  # now, since torch.compile can't trace what makes them
    return made


@functools.lru_cache(maxsize=256)
def layer_of_text(text: str) -> Layer:
    """The layer whose `text` this is."""
    return layer(Spec.read(text))
