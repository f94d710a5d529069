"""A gate is an ordered list of scalar equations; everything else is derived from it.

Imports SymPy, gatelib.functions and gatelib.algebra.
Must not import any other floor of gatelib (`source` and `compile` ask the printers when called).

From a `Spec` come the LaTeX that a reader sees, the backward pass (`vjp`), the forward tangents
(`jvp`), single partial derivatives, the gate's limits, and generated source. Each derivative is a
`Spec` again, so second derivatives need nothing new.
"""

from __future__ import annotations

import ast
import keyword
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy as sp

from gatelib import algebra, latex
from gatelib.algebra import plus, power, rebuild, sorted_names, times
from gatelib.functions import FUNCTIONS, Elementwise, Expr, OverFeatures, exact, house

__all__ = ["FUNCTIONS", "Spec", "SpecError", "symbol"]

Equation = tuple[Expr, Expr]
KINDS = (Elementwise, OverFeatures)


RESERVED = frozenset({"F", "np", "special", "torch"})
"""What generated source calls its modules; a gate of that name would hide them."""


class SpecError(ValueError):
    """A gate's text is wrong; the message names the line and the reason."""


def symbol(name: object) -> Expr:
    """The real symbol of that name."""
    return sp.Symbol(str(name), real=True)


@dataclass(frozen=True, repr=False)
class Spec:
    """Ordered scalar equations from inputs to outputs.

    Every name stands for one element of a vector; a product is an elementwise product. An input
    called `NAME_prev` is a carry: the value that `NAME` had one step earlier.
    """

    name: str
    equations: tuple[Equation, ...]
    inputs: tuple[Expr, ...]
    outputs: tuple[Expr, ...]

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or keyword.iskeyword(self.name) or self.name in RESERVED:
            raise SpecError(f"name: expected a free identifier, got {self.name!r}")
        names = [str(v) for v in (*self.inputs, *(v for v, _ in self.equations))]
        for name in names:
            _check_name(name, f"{self.name}")
        for name in sorted({n for n in names if names.count(n) > 1}):
            raise SpecError(f"{self.name}: `{name}` is defined more than once")
        for output in self.outputs:
            if str(output) not in names:
                raise SpecError(f"{self.name}: the output `{output}` is never defined")
        _check_order(self.equations, self.inputs, self.name)
        _check_features(self.equations, self.name)

    def __deepcopy__(self, memo: object) -> Spec:
        return self  # nothing in it can change

    def __reduce__(self) -> Any:
        """Pickle what the author wrote: SymPy would evaluate and sort it again."""
        equations = tuple((v, algebra.packed(e)) for v, e in self.equations)
        return _unpickled, (self.name, equations, self.inputs, self.outputs)

    @classmethod
    def parse(cls, name: str, signature: str, text: str) -> Spec:
        """Read a gate from text.

        `signature` is `"inputs -> outputs"`, names separated by spaces; `text` holds one
        assignment a line. Raises SpecError, with line and reason, for anything else, for a name
        that is undefined, repeated or reserved, and for an input or a line that nothing uses.
        """
        spec = _Parser(name, signature).read(text)
        spec._check_all_used()
        return spec

    @classmethod
    def read(cls, text: str) -> Spec:
        """The Spec that `repr` printed: a line `name: inputs -> outputs`, then the equations."""
        head, _, body = text.partition("\n")
        name, colon, signature = head.partition(": ")
        if not colon:
            raise SpecError(f"text: expected 'name: inputs -> outputs' first, got {head!r}")
        return cls.parse(name, signature, body)

    def _check_all_used(self) -> None:
        used = set(self.outputs).union(*(e.free_symbols for _, e in self.equations))
        for v in (*self.inputs, *dict(self.equations)):
            if v not in used:
                raise SpecError(f"{self.name}: `{v}` is defined but nothing uses it")

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
    def _values(self) -> dict[Expr, Expr]:
        """Right-hand sides whose value already has a name: σ(a_f) is called f."""
        return {e: v for v, e in self.equations if e.args}

    # ---- derivatives ------------------------------------------------------------------------

    def vjp(self, keep: str | None = None) -> Spec:
        """The backward pass: reverse mode, equation by equation, as another Spec.

        Its inputs are the inputs and saved values that it needs and a seed `g_OUT` for each
        output; its outputs are the adjoints `d_IN` of all inputs, in their order. `keep` names the
        intermediate values to save: all that are useful (None), or those listed; the others are
        computed again first. The backward pass of a backward pass writes `dd_` and `gg_`.
        """
        bar, seed = self._fresh("d"), self._fresh("g")
        terms: dict[Expr, list[Expr]] = {v: [] for v in (*self.inputs, *dict(self.equations))}
        for output in self.outputs:
            terms[output].append(symbol(f"{seed}_{output}"))
        backward: list[Equation] = []
        for v, expression in reversed(self.equations):
            adjoint = plus(*terms[v])
            if adjoint == 0:
                continue
            if not adjoint.is_Symbol:
                backward.append((symbol(f"{bar}_{v}"), adjoint))
                adjoint = symbol(f"{bar}_{v}")
            for u in sorted_names(expression.free_symbols):
                terms[u].append(algebra.pull(expression, u, adjoint, self._values))
        backward += [(symbol(f"{bar}_{u}"), plus(*terms[u])) for u in self.inputs]
        adjoints = tuple(symbol(f"{bar}_{u}") for u in self.inputs)
        useful = _pruned(backward, adjoints)
        _check_features((*self.equations, *useful), f"{self.name}.vjp")
        again = self._recomputed(useful, self._kept(keep))
        seeds = [symbol(f"{seed}_{output}") for output in self.outputs]
        return self._derived("vjp", (*again, *useful), seeds, adjoints)

    def _fresh(self, letter: str) -> str:
        """The prefix `letter`, doubled until no name of this Spec would be made twice."""
        names = {str(v) for v in (*self.inputs, *dict(self.equations))}
        prefix = letter
        while names & {f"{prefix}_{name}" for name in names}:
            prefix += letter
        return prefix

    def _kept(self, keep: str | None) -> set[Expr]:
        defined = set(dict(self.equations))
        kept = defined if keep is None else set(map(symbol, keep.split()))
        for name in sorted_names(kept - defined):
            raise SpecError(f"keep: `{name}` is not a value that {self.name} computes")
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
        self, kind: str, equations: tuple[Equation, ...], extra: list[Expr], outputs: Any
    ) -> Spec:
        """A Spec from derived equations; its inputs are the known names that they use."""
        made = dict(equations)
        needed = set[Expr]().union(*(e.free_symbols for e in made.values()))
        known = (*self.inputs, *dict(self.equations), *extra)
        inputs = tuple(v for v in known if v in needed and v not in made)
        return Spec(f"{self.name}_{kind}", equations, inputs, tuple(outputs))

    def jvp(self) -> Spec:
        """Forward mode as another Spec: tangents `t_IN` come in, `t_OUT` go out."""
        dot = self._fresh("t")
        tangents = {v: symbol(f"{dot}_{v}") for v in self.inputs}
        forward: list[Equation] = []
        known: dict[Expr, Expr] = {}
        for v, expression in self.equations:
            forward.append((v, expression))
            known |= {expression: v} if expression.args else {}
            tangent = algebra.push(expression, tangents, known)
            if tangent != 0:
                forward.append((symbol(f"{dot}_{v}"), tangent))
                tangents[v] = symbol(f"{dot}_{v}")
        seeds = [tangents[v] for v in self.inputs]
        made = dict(forward)
        outputs = tuple(symbol(f"{dot}_{output}") for output in self.outputs)
        forward += [(t, sp.S.Zero) for t in outputs if t not in made and t not in seeds]
        return self._derived("jvp", _pruned(forward, outputs), seeds, outputs)

    def partial(self, output: str, by: str) -> Expr:
        """∂output/∂by through every path, in terms of the gate's own values.

        For the LSTM, `partial("c", "c_prev")` is `f`. Raises SpecError for a Spec that looks
        across the features, where the derivative is a matrix.
        """
        if not self.is_elementwise:
            raise SpecError(f"{self.name}: partial needs an elementwise gate; use vjp or jvp")
        self._known(output)
        tangents = {self._known(by): sp.S.One}
        for v, expression in self.equations:
            if v not in tangents:
                tangent = algebra.push(expression, tangents, self._values)
                if tangent != 0:
                    tangents[v] = tangent
        return tangents.get(symbol(output), sp.S.Zero)

    def _known(self, name: str) -> Expr:
        if symbol(name) not in {*self.inputs, *dict(self.equations)}:
            raise SpecError(f"{self.name}: there is no `{name}`")
        return symbol(name)

    # ---- from one gate to another -----------------------------------------------------------

    def replace(self, new_name: str | None = None, /, **right_hand_sides: str) -> Spec:
        """A variant: `LSTM.replace("cifg", i="1 - f")`. Unused inputs and lines fall away."""
        equations = dict(self.equations)
        scope = {str(v): v for v in (*self.inputs, *equations)}
        for name, text in right_hand_sides.items():
            if self._known(name) in self.inputs:
                raise SpecError(f"replace: `{name}` is an input; use subs")
            equations[symbol(name)] = _expression(text, scope, f"replace({name}=…)")
        ordered = _in_dependency_order(equations, self.inputs)
        return self._reduced(ordered, new_name or self.name)

    def subs(self, **values: float | str) -> Spec:
        """The gate with names set to numbers or expressions: `GRU.subs(z=0)`."""
        scope = {str(v): v for v in (*self.inputs, *dict(self.equations))}
        chosen = {
            self._known(name): _expression(str(value), scope, f"subs({name}=…)")
            for name, value in values.items()
        }
        return self._set(chosen)

    def limit(self, **values: object) -> Spec:
        """The gate as names tend to a value (`sympy.oo` allowed): `LSTM.limit(a_f=oo)` has f = 1.

        Raises SpecError where an equation has no finite limit.
        """
        equations: list[Equation] = []
        for v, expression in self.equations:
            for name, value in values.items():
                if expression.has(self._known(name)):
                    expression = self._limit_of(v, expression, symbol(name), value)
            equations.append((v, expression))
        return replace(self, equations=tuple(equations))._set({})

    def _limit_of(self, v: Expr, expression: Expr, towards: Expr, value: Any) -> Expr:
        still = [n for n in expression.atoms(*KINDS) if not n.has(towards)]
        hidden = {node: sp.Dummy(real=True) for node in still}
        value = sp.sympify(value)
        try:
            found = sp.limit(exact(expression.xreplace(hidden)), towards, value)
        except NotImplementedError:
            found = sp.nan
        if not found.is_finite or found.has(sp.Limit):
            raise SpecError(
                f"{self.name}: `{v}` has no finite limit that SymPy finds as {towards} → {value}"
            )
        if value.is_finite:
            there = _fold(rebuild(expression, {towards: value}))
            if sp.simplify(exact(there.xreplace(hidden)) - found) == 0:
                return there
        try:
            return rebuild(house(found, {dummy: node for node, dummy in hidden.items()}))
        except ValueError as error:
            raise SpecError(f"{self.name}: the limit of `{v}` is {found}, and {error}") from None

    def _set(self, chosen: dict[Expr, Expr]) -> Spec:
        """Put `chosen` in, carry every value that became trivial forward, drop what is unused."""
        settled: dict[Expr, Expr] = dict(chosen)
        equations: list[Equation] = []
        for v, expression in self.equations:
            chosen_or_own = settled.get(v, expression)
            _check_division(v, chosen_or_own, settled, self.name)
            value = _fold(rebuild(chosen_or_own, settled))
            if v not in self.outputs and (value.is_Number or value.is_Symbol):
                settled[v] = value
            else:
                equations.append((v, value))
                settled.pop(v, None)
        ordered = _in_dependency_order(dict(equations), self.inputs)
        return self._reduced(ordered, self.name)

    def _reduced(self, equations: Iterable[Equation], name: str) -> Spec:
        kept = _pruned(list(equations), self.outputs)
        used = set(self.outputs).union(*(e.free_symbols for _, e in kept))
        return Spec(name, kept, tuple(v for v in self.inputs if v in used), self.outputs)

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
        lines = [f"    {v} = {sp.sstr(e, order='none')}" for v, e in self.equations]
        return "\n".join([f"{self.name}: {' -> '.join(sides)}", *lines])

    # ---- how a gate is shown ----------------------------------------------------------------

    def latex(self, names: dict[str, str] | None = None) -> str:
        """The equations in textbook order, as one `aligned` block of LaTeX."""
        return latex.aligned(self.equations, latex.Names(self, names or {}))

    def _repr_latex_(self) -> str:
        return f"$$\n{self.latex()}\n$$"

    def source(self, target: str) -> str:
        """The gate as a function in `"numpy"`, `"torch"` or `"javascript"`."""
        from gatelib import printers

        return printers.source(self, target)

    def compile(self, target: str) -> Callable[..., Any]:
        """The function of `source(target)`, ready to call with arrays."""
        from gatelib import printers

        return printers.compile(self, target)

    def evaluate(self, values: Mapping[str, Any], target: str = "numpy") -> dict[str, Any]:
        """The outputs by name, from inputs by name; `values` may hold more than is needed.

        Raises ValueError where an input is missing.
        """
        missing = [str(v) for v in self.inputs if str(v) not in values]
        if missing:
            raise ValueError(f"values: expected {', '.join(missing)} too, got {sorted(values)}")
        found = self.compile(target)(*(values[str(v)] for v in self.inputs))
        found = found if isinstance(found, tuple) else (found,)
        return dict(zip(map(str, self.outputs), found, strict=True))


def _pruned(equations: list[Equation], outputs: Iterable[Expr]) -> tuple[Equation, ...]:
    """The equations without those that no output needs."""
    needed = set(outputs)
    kept: list[Equation] = []
    for v, expression in reversed(equations):
        if v in needed:
            kept.insert(0, (v, expression))
            needed |= expression.free_symbols
    return tuple(kept)


def _unpickled(name: str, equations: Any, inputs: Any, outputs: Any) -> Spec:
    return Spec(name, tuple((v, algebra.unpacked(e)) for v, e in equations), inputs, outputs)


def _check_order(equations: Iterable[Equation], inputs: Iterable[Expr], where: str) -> None:
    """Every name must be an input or defined above the equation that uses it."""
    known = set(inputs)
    for v, expression in equations:
        for name in sorted_names(expression.free_symbols - known):
            raise SpecError(f"{where}: `{v}` uses `{name}`, neither an input nor defined above")
        known.add(v)


def _check_features(equations: Iterable[Equation], where: str) -> None:
    """A sum over features can't be told from its term where all features are alike."""
    even: set[Expr] = set()
    for v, expression in equations:
        for node in expression.atoms(FUNCTIONS["total"], FUNCTIONS["softmax"]):
            if algebra.is_even(node.args[0], even):
                raise SpecError(
                    f"{where}: `{v}` takes {node.func.__name__} of a value that is the same for "
                    "every feature (a mean, total or rstd)"
                )
        if algebra.is_even(expression, even):
            even.add(v)


def _check_division(v: Expr, expression: Expr, settled: Mapping[Expr, Expr], where: str) -> None:
    """Refuse 1/0 and log(0), which a factor 0 beside them would hide."""
    under = [p.base for p in expression.atoms(sp.Pow) if p.exp.is_negative]
    under += [node.args[0] for node in expression.atoms(FUNCTIONS["log"])]
    if any(_fold(rebuild(part, settled)) == 0 for part in under):
        raise SpecError(f"{where}: `{v}` divides by 0 or takes the logarithm of 0 there")


def _in_dependency_order(equations: dict[Expr, Expr], inputs: Iterable[Expr]) -> list[Equation]:
    """The equations so that each uses only what stands above it; otherwise the order is kept."""
    known, waiting, ordered = set(inputs), dict(equations), list[Equation]()
    while waiting:
        ready = next((v for v, e in waiting.items() if e.free_symbols <= known), None)
        if ready is None:
            names = ", ".join(f"`{v}`" for v in waiting)
            raise SpecError(f"the equations of {names} depend on each other in a circle")
        ordered.append((ready, waiting.pop(ready)))
        known.add(ready)
    return ordered


def _fold(expression: Expr) -> Expr:
    """Evaluate nonlinearities of numbers: tanh(0) is 0."""
    arguments = [_fold(argument) for argument in expression.args]
    if not arguments:
        return expression
    if isinstance(expression, Elementwise) and all(a.is_Number for a in arguments):
        value = sp.nsimplify(expression.func(*arguments).exact())
        if value.is_Rational:
            return value
    makers: dict[Any, Any] = {sp.Add: plus, sp.Mul: times, sp.Pow: power}
    return makers.get(expression.func, expression.func)(*arguments)


def _check_name(name: str, where: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise SpecError(f"{where}: `{name}` is not a name")
    if name in FUNCTIONS:
        raise SpecError(f"{where}: `{name}` is the name of a function")
    if name in RESERVED:
        raise SpecError(f"{where}: `{name}` is the name of a module in generated source")
    if name.endswith("_") or "__" in name or name.startswith("_"):
        raise SpecError(f"{where}: `{name}` may not start or end with _ or hold __")


class _Parser:
    """Reads assignments in Python's syntax, and only the arithmetic that a gate may use."""

    def __init__(self, name: str, signature: str) -> None:
        self.name = name
        if signature.count("->") != 1:
            raise SpecError(f"{name}: expected a signature 'inputs -> outputs', got {signature!r}")
        inputs, outputs = (part.split() for part in signature.split("->"))
        if not inputs or not outputs:
            raise SpecError(f"{name}: the signature {signature!r} needs inputs and outputs")
        for group in (inputs, outputs):
            for repeated in sorted({n for n in group if group.count(n) > 1}):
                raise SpecError(f"{name}: `{repeated}` stands twice in the signature")
        for n in (*inputs, *outputs):
            _check_name(n, f"{name}: signature")
        self.inputs, self.outputs = inputs, outputs
        self.scope = {n: symbol(n) for n in inputs}

    def read(self, text: str) -> Spec:
        try:
            statements = ast.parse(textwrap.dedent(text).strip("\n")).body
        except SyntaxError as error:
            raise SpecError(f"{self.name}, line {error.lineno}: {error.msg}") from None
        equations = [self._statement(statement) for statement in statements]
        outputs = tuple(symbol(n) for n in self.outputs)
        return Spec(self.name, tuple(equations), tuple(symbol(n) for n in self.inputs), outputs)

    def _statement(self, statement: ast.stmt) -> Equation:
        where = f"{self.name}, line {statement.lineno}"
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case _:
                raise SpecError(f"{where}: expected 'name = expression'")
        _check_name(name, where)
        if name in self.scope:
            raise SpecError(f"{where}: `{name}` is already defined")
        expression = _read(value, self.scope, where)
        self.scope[name] = symbol(name)
        return symbol(name), expression


def _expression(text: str, scope: dict[str, Expr], where: str) -> Expr:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise SpecError(f"{where}: {error.msg} in {text!r}") from None
    return _read(tree, scope, where)


def _read(node: ast.expr, scope: dict[str, Expr], where: str) -> Expr:
    """A SymPy expression from Python's syntax tree, in the author's order."""
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            return _binary(_read(left, scope, where), op, _read(right, scope, where), where)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return times(sp.S.NegativeOne, _read(operand, scope, where))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return _call(name, [_read(argument, scope, where) for argument in args], where)
        case ast.Name(id=name) if name in scope:
            return scope[name]
        case ast.Name(id=name):
            raise SpecError(f"{where}: `{name}` is neither an input nor defined above")
        case ast.Constant(value=value) if type(value) in (int, float):
            return sp.Rational(str(value))
    raise SpecError(f"{where}: `{ast.unparse(node)}` is not an expression that a gate may use")


def _binary(left: Expr, op: ast.operator, right: Expr, where: str) -> Expr:
    match op:
        case ast.Add():
            return plus(left, right)
        case ast.Sub():
            return plus(left, times(sp.S.NegativeOne, right))
        case ast.Mult():
            return times(left, right)
        case ast.Div():
            return times(left, power(right, sp.S.NegativeOne))
        case ast.Pow() if right.is_Number:
            return power(left, right)
    raise SpecError(f"{where}: only + - * / and ** with a number are allowed")


def _call(name: str, arguments: list[Expr], where: str) -> Expr:
    if name not in FUNCTIONS:
        known = ", ".join(sorted(FUNCTIONS))
        raise SpecError(f"{where}: `{name}` is not a known function; known are {known}")
    expected = next(iter(FUNCTIONS[name].nargs))
    if len(arguments) != expected:
        raise SpecError(f"{where}: `{name}` takes {expected} argument(s), got {len(arguments)}")
    return FUNCTIONS[name](*arguments)
