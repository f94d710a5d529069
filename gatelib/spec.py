"""A gate is an ordered list of scalar equations; everything else is derived from it.

Imports SymPy, gatelib.algebra, gatelib.constants, gatelib.functions, gatelib.latex, gatelib.lines,
gatelib.parse, gatelib.pieces, gatelib.printers. Must not import any other floor of gatelib.
From a `Spec` come the LaTeX that a reader sees, the backward pass (`vjp`), the forward tangents
(`jvp`), single partial derivatives, the gate's limits, and generated source. Each derivative is a
`Spec` again, so second derivatives need nothing new.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy as sp

from gatelib import algebra, latex, lines, pieces
from gatelib.algebra import Equation, plus, sorted_names, symbol
from gatelib.constants import as_number
from gatelib.functions import FUNCTIONS, Expr, exact
from gatelib.parse import (
    SpecError,
    Text,
    check_gate_name,
    check_name,
    did_you_mean,
    free,
    read_expression,
    read_signature,
)

__all__ = ["FUNCTIONS", "Equation", "Spec", "SpecError", "free", "symbol"]


@dataclass(frozen=True, repr=False)
class Spec:
    """Ordered scalar equations from inputs to outputs.

    Every name stands for one element of a vector; a product is an elementwise product. An input
    called `NAME_prev` is a carry: the value that `NAME` had one step earlier. `roles` are the names
    that a derivation made, each with the name that it belongs to: (`d_c`, `c`).
    """

    name: str
    equations: tuple[Equation, ...]
    inputs: tuple[Expr, ...]
    outputs: tuple[Expr, ...]
    roles: lines.Roles = ()

    def __post_init__(self) -> None:
        check_gate_name(self.name)
        names = [str(v) for v in self._all_names]
        for name in names:
            check_name(name, self.name)
        for name in sorted({n for n in names if names.count(n) > 1}):
            raise SpecError(f"{self.name}: `{name}` is defined more than once", about=name)
        for output in self.outputs:
            if str(output) not in names:
                raise SpecError(f"{self.name}: the output `{output}` is never defined")
        set_once = functools.partial(object.__setattr__, self)
        for side in ("inputs", "outputs"):
            set_once(side, tuple(map(symbol, getattr(self, side))))
        set_once("equations", tuple(lines.checked(self.equations, self.name)))
        lines.check_roles(self.roles, self.name)
        set_once("roles", lines.needed_roles(dict(self.roles), self._all_names))
        lines.check_order(self.equations, self.inputs, self.name)
        lines.check_features(self.equations, self.name)

    @property
    def _all_names(self) -> tuple[Expr, ...]:
        return (*self.inputs, *(v for v, _ in self.equations))

    def __deepcopy__(self, memo: object) -> Spec:
        return self  # nothing in it can change

    def __reduce__(self) -> Any:
        """Pickle what the author wrote: SymPy would evaluate and sort it again."""
        equations = tuple((v, algebra.packed(e)) for v, e in self.equations)
        return _unpickled, (self.name, equations, self.inputs, self.outputs, self.roles)

    @classmethod
    def parse(cls, name: str, signature: str, text: str) -> Spec:
        """Read a gate from text.

        `signature` is `"inputs -> outputs"`, names separated by spaces; `text` holds one
        assignment a line. Raises SpecError, with line, column and reason, for anything else, for a
        name that is undefined, repeated or reserved, for an input or a line that nothing uses, and
        for a number that is not finite and real.
        """
        inputs, outputs = read_signature(signature, name)
        if not (inputs and outputs):
            raise SpecError(f"{name}: the signature {signature!r} needs inputs and outputs")
        return cls._of_text(Text(name, text), inputs, outputs, everything_used=True)

    @classmethod
    def read(cls, text: str) -> Spec:
        """The Spec that `repr` printed: a line `name: inputs -> outputs`, then the equations.

        `Spec.read(repr(spec)) == spec` for every Spec.
        """
        head, _, body = text.partition("\n")
        name, colon, signature = head.partition(": ")
        if not colon:
            raise SpecError(f"text: expected 'name: inputs -> outputs' first, got {head!r}", 1, 1)
        inputs, outputs = read_signature(signature, name)
        spec = cls._of_text(Text(name, body, above=1), inputs, outputs)
        said = re.search(f"^{lines.DERIVED}(.*)$", body, re.MULTILINE)
        roles = (
            lines.roles_said(said[1])
            if said
            else lines.roles_by_letters(spec.name, spec._all_names)
        )
        return replace(spec, roles=roles)

    @classmethod
    def _of_text(
        cls,
        text: Text,
        inputs: Iterable[str],
        outputs: Iterable[str],
        everything_used: bool = False,
    ) -> Spec:
        name = unicodedata.normalize("NFKC", text.where)
        equations = tuple(text.equations(inputs))
        try:
            spec = cls(name, equations, tuple(map(symbol, inputs)), tuple(map(symbol, outputs)))
            if everything_used:
                spec._check_all_used()
        except SpecError as error:
            line, column = text.places.get(error.about, (None, None))
            raise SpecError(str(error), line, column, error.about) from None
        return spec

    def _check_all_used(self) -> None:
        used = set(self.outputs).union(*(e.free_symbols for _, e in self.equations))
        for v in self._all_names:
            if v not in used:
                reason = f"`{v}` is defined but nothing uses it"
                raise SpecError(f"{self.name}: {reason}", about=str(v))

    # ---- what a gate is made of -------------------------------------------------------------

    @property
    def carries(self) -> dict[Expr, Expr]:
        """{c_prev: c}: each carried input and the value that becomes it at the next step."""
        defined = set(dict(self.equations))
        pairs = {v: symbol(str(v).removesuffix("_prev")) for v in self.inputs}
        return {v: now for v, now in pairs.items() if now != v and now in defined}

    @property
    def exposed(self) -> Spec:
        """The same gate with every value as an output, called NAME_values."""
        everything = tuple(v for v, _ in self.equations)
        return Spec(f"{self.name}_values", self.equations, self.inputs, everything)

    @property
    def is_elementwise(self) -> bool:
        """Whether every equation acts on each element alone (no mean, norm or softmax)."""
        return not any(algebra.looks_over_features(e) for _, e in self.equations)

    @property
    def adjoint_of(self) -> dict[str, str]:
        """{"c": "d_c"}: the adjoints that `vjp` made here, by the name that each belongs to."""
        return self._made("d")

    @property
    def seed_of(self) -> dict[str, str]:
        """{"h": "g_h"}: the seeds that `vjp` asks for, by the output that each belongs to."""
        return self._made("g")

    @property
    def tangent_of(self) -> dict[str, str]:
        """{"x": "t_x"}: the tangents that `jvp` made here, by the name that each belongs to."""
        return self._made("t")

    def _made(self, letter: str) -> dict[str, str]:
        pairs = [(str(v), str(of)) for v, of in self.roles if str(v)[0] == letter]
        pairs.sort(key=lambda pair: len(pair[0]) - len(pair[1]))  # the last derivation wins
        return {of: v for v, of in pairs}

    @property
    def _values(self) -> dict[Expr, Expr]:
        """Right-hand sides whose value already has a name: σ(a_f) is called f."""
        return {e: v for v, e in self.equations if e.args and as_number(e) is None}

    # ---- derivatives ------------------------------------------------------------------------

    def vjp(self, keep: str | None = None) -> Spec:
        """The backward pass: reverse mode, equation by equation, as another Spec.

        Its inputs are the inputs and saved values that it needs and a seed `g_OUT` for each
        output; its outputs are the adjoints `d_IN` of all inputs, in their order. `keep` names the
        intermediate values to save: all that are useful (None), or those listed; the others are
        computed again first. Where a name is taken, and in the backward pass of a backward pass,
        the letters are doubled: `dd_` and `gg_`; `adjoint_of` and `seed_of` say which is which.
        Raises SpecError where a derivative can't be written.
        """
        bar, seed = self._made_names("d"), self._made_names("g")
        seeds = [seed[output] for output in self.outputs]
        with lines.finite(f"{self.name}.vjp"):
            backward = self._backward(bar, seed)
        adjoints = tuple(bar[u] for u in self.inputs)
        useful = lines.pruned(backward, adjoints)
        lines.check_features((*self.equations, *useful), f"{self.name}.vjp")
        again = self._recomputed(useful, self._kept(keep))
        return self._derived("vjp", (*again, *useful), seeds, adjoints, [bar, seed])

    def _backward(self, bar: dict[Expr, Expr], seed: dict[Expr, Expr]) -> list[Equation]:
        """The adjoint of every value, from the last equation to the first, then of the inputs."""
        terms: dict[Expr, list[Expr]] = {v: [] for v in self._all_names}
        for output in self.outputs:
            terms[output].append(seed[output])
        backward: list[Equation] = []
        for v, expression in reversed(self.equations):
            adjoint = plus(*terms[v])
            if adjoint == 0:
                continue
            if not adjoint.is_Symbol:
                backward.append((bar[v], adjoint))
                adjoint = bar[v]
            for u in sorted_names(expression.free_symbols):
                terms[u].append(algebra.pull(expression, u, adjoint, self._values))
        return backward + [(bar[u], plus(*terms[u])) for u in self.inputs]

    def _made_names(self, letter: str) -> dict[Expr, Expr]:
        """{c: d_c} for every name; the letter is doubled until all that it makes are free."""
        names = {str(v) for v in self._all_names}
        prefix = letter
        while names & {f"{prefix}_{name}" for name in names}:
            prefix += letter
        return {v: symbol(f"{prefix}_{v}") for v in self._all_names}

    def _kept(self, keep: str | None) -> set[Expr]:
        defined = set(dict(self.equations))
        kept = defined if keep is None else set(map(symbol, keep.split()))
        for name in sorted_names(kept - defined):
            hint = did_you_mean(str(name), map(str, defined))
            raise SpecError(f"keep: `{name}` is not a value that {self.name} computes{hint}")
        return kept

    def _recomputed(self, body: Iterable[Equation], kept: set[Expr]) -> list[Equation]:
        """The equations to run again, because `body` needs values that were not kept."""
        needed = set[Expr]().union(*(e.free_symbols for _, e in body))
        again: list[Equation] = []
        for v, expression in reversed(self.equations):
            if v in needed - kept:
                again.insert(0, (v, expression))
                needed |= expression.free_symbols
        return again

    def _derived(
        self,
        kind: str,
        equations: tuple[Equation, ...],
        seeds: list[Expr],
        outputs: tuple[Expr, ...],
        made: list[dict[Expr, Expr]],
    ) -> Spec:
        """A Spec from derived equations; its inputs are the known names that they use."""
        defined = dict(equations)
        needed = set(outputs).union(*(e.free_symbols for e in defined.values()))
        known = (*self._all_names, *seeds)
        inputs = tuple(v for v in known if v in needed and v not in defined)
        roles = (*self.roles, *((v, of) for names in made for of, v in names.items()))
        return Spec(f"{self.name}_{kind}", equations, inputs, outputs, roles)

    def jvp(self) -> Spec:
        """Forward mode as another Spec: tangents `t_IN` come in, `t_OUT` go out.

        `tangent_of` says which is which. Raises SpecError where a derivative can't be written.
        """
        dot = self._made_names("t")
        with lines.finite(f"{self.name}.jvp"):
            forward = self._forward(dot)
        seeds = [dot[v] for v in self.inputs]
        made = dict(forward)
        outputs = tuple(dot[output] for output in self.outputs)
        forward += [(t, sp.S.Zero) for t in outputs if t not in made and t not in seeds]
        return self._derived("jvp", lines.pruned(forward, outputs), seeds, outputs, [dot])

    def _forward(self, dot: dict[Expr, Expr]) -> list[Equation]:
        """Each equation, and behind it the tangent of its value where that isn't 0."""
        tangents = {v: dot[v] for v in self.inputs}
        forward: list[Equation] = []
        known: dict[Expr, Expr] = {}
        for v, expression in self.equations:
            forward.append((v, expression))
            known |= {expression: v} if expression in self._values else {}
            tangent = algebra.push(expression, tangents, known)
            if tangent != 0:
                forward.append((dot[v], tangent))
                tangents[v] = dot[v]
        return forward

    def partial(self, output: str, by: str) -> Expr:
        """∂output/∂by through every path, in terms of the gate's own values.

        For the LSTM, `partial("c", "c_prev")` is `f`. Raises SpecError for a Spec that looks
        across the features, where the derivative is a matrix.
        """
        if not self.is_elementwise:
            raise SpecError(f"{self.name}: partial needs an elementwise gate; use vjp or jvp")
        self._known(output)
        tangents = {self._known(by): sp.S.One}
        with lines.finite(f"{self.name}.partial"):
            for v, expression in self.equations:
                tangent = algebra.push(expression, tangents, self._values)
                if tangent != 0 and v not in tangents:
                    tangents[v] = tangent
        return tangents.get(symbol(output), sp.S.Zero)

    def _known(self, name: str) -> Expr:
        if symbol(name) not in self._all_names:
            hint = did_you_mean(name, map(str, self._all_names))
            raise SpecError(f"{self.name}: there is no `{name}`{hint}")
        return symbol(name)

    # ---- from one gate to another -----------------------------------------------------------

    def replace(self, new_name: str | None = None, /, **right_hand_sides: str) -> Spec:
        """A variant: `LSTM.replace("cifg", i="1 - f")`. Unused inputs and lines fall away."""
        equations = dict(self.equations)
        for name, text in right_hand_sides.items():
            if self._known(name) in self.inputs:
                raise SpecError(f"replace: `{name}` is an input; use subs")
            equations[symbol(name)] = read_expression(text, self._scope, f"replace({name}=…)")
        ordered = lines.in_dependency_order(equations, self.inputs)
        return self._reduced(ordered, new_name or self.name)

    @property
    def _scope(self) -> dict[str, Expr]:
        return {str(v): v for v in self._all_names}

    def subs(self, /, **values: float | str) -> Spec:
        """The gate with names set to numbers or expressions: `GRU.subs(z=0)`.

        Raises SpecError where a value is no expression of the gate's names, or an equation then has
        no finite real value.
        """
        chosen = {
            self._known(name): read_expression(str(value), self._scope, f"subs({name}=…)")
            for name, value in values.items()
        }
        return self._set(chosen)

    def limit(self, /, **values: object) -> Spec:
        """The gate as names tend to a value (`sympy.oo` allowed): `LSTM.limit(a_f=oo)` has f = 1.

        Raises SpecError where an equation has no finite limit.
        """
        equations: list[Equation] = []
        for v, expression in self.equations:
            for name, value in values.items():
                if expression.has(self._known(name)):
                    expression = lines.limit_of(v, expression, symbol(name), value, self.name)
            equations.append((v, expression))
        return replace(self, equations=tuple(equations))._set({})

    def _set(self, chosen: dict[Expr, Expr]) -> Spec:
        """Put `chosen` in, carry every value that became trivial forward, drop what is unused."""
        settled: dict[Expr, Expr] = dict(chosen)
        equations: list[Equation] = []
        for v, expression in self.equations:
            value = lines.settled(v, settled.get(v, expression), settled, self.name)
            if v not in self.outputs and (value.is_Symbol or as_number(value) is not None):
                settled[v] = value
            else:
                equations.append((v, value))
                settled.pop(v, None)
        ordered = lines.in_dependency_order(dict(equations), self.inputs)
        return self._reduced(ordered, self.name)

    def _reduced(self, equations: Iterable[Equation], name: str) -> Spec:
        kept = lines.pruned(list(equations), self.outputs)
        used = set(self.outputs).union(*(e.free_symbols for _, e in kept))
        inputs = tuple(v for v in self.inputs if v in used)
        return Spec(name, kept, inputs, self.outputs, self.roles)

    def compose(self) -> dict[str, Expr]:
        """Each output as one expression of the inputs, in SymPy's own functions."""
        values: dict[Expr, Expr] = {}
        for v, expression in self.equations:
            values[v] = exact(expression).xreplace(values)
        return {str(output): values.get(output, output) for output in self.outputs}

    def same_as(self, other: Spec) -> bool:
        """Whether SymPy proves that both Specs compute the same outputs from the same names."""
        mine, theirs = self.compose(), other.compose()
        if mine.keys() != theirs.keys():
            return False
        return all(sp.simplify(mine[name] - theirs[name]) == 0 for name in mine)

    def __repr__(self) -> str:
        """The text that `read` reads, for terminals and plain diffs."""
        sides = (" ".join(map(str, side)) for side in (self.inputs, self.outputs))
        written = [f"    {v} = {pieces.text(e)}" for v, e in self.equations]
        if self.roles != lines.roles_by_letters(self.name, self._all_names):
            written.append(lines.DERIVED + lines.roles_in_words(self.roles))
        return "\n".join([f"{self.name}: {' -> '.join(sides)}", *written])

    # ---- how a gate is shown ----------------------------------------------------------------

    def latex(self, names: dict[str, str] | None = None) -> str:
        """The equations in textbook order, as one `aligned` block of LaTeX."""
        return latex.aligned(self.equations, latex.Names(self, names or {}))

    def _repr_latex_(self) -> str:
        return f"$$\n{self.latex()}\n$$"

    def source(self, target: str) -> str:
        """The gate as a function in `"numpy"`, `"torch"` or `"javascript"`.

        An output that depends on no input is a plain number there. In JavaScript a name is one
        number; where the gate looks across the features, an array of them.
        """
        from gatelib import printers

        return printers.source(self, target)

    def compile(self, target: str) -> Callable[..., Any]:
        """The function of `source(target)`, ready to call with arrays."""
        from gatelib import printers

        return printers.compile(self, target)

    def evaluate(self, values: Mapping[str, Any], target: str = "numpy") -> dict[str, Any]:
        """The outputs by name, from inputs by name; `values` may hold more than is needed.

        An output that depends on no input has the shape and type that the inputs have together.
        Raises ValueError where an input is missing.
        """
        missing = [str(v) for v in self.inputs if str(v) not in values]
        if missing:
            raise ValueError(f"values: expected {', '.join(missing)} too, got {sorted(values)}")
        from gatelib import printers

        given = [values[str(v)] for v in self.inputs]
        found = self.compile(target)(*given)
        found = found if isinstance(found, tuple) else (found,)
        found = tuple(printers.filled(f, given, target) for f in found)
        return dict(zip(map(str, self.outputs), found, strict=True))


def _unpickled(name: str, equations: Any, inputs: Any, outputs: Any, roles: Any = ()) -> Spec:
    unpacked = tuple((v, algebra.unpacked(e)) for v, e in equations)
    return Spec(name, unpacked, inputs, outputs, roles)
