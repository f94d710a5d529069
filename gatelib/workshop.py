"""What the workshop shows of a gate, as plain data: the same where the book is built and in a page.

Imports gatelib.cell, gatelib.circuit, gatelib.functions, gatelib.kernels.scan_source,
gatelib.kernels.triton_source, gatelib.parse, gatelib.pieces, gatelib.spec.
Must not import NumPy, SciPy, torch, Triton or a floor that does: Pyodide has none of them here.

A page asks with a text and gets JSON: `answer` and `drawing` never raise. `brief`, `sheet` and
`picture` are what the JSON holds; an explorer needs the brief, the workshop the sheet.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from gatelib import circuit
from gatelib.cell import cell
from gatelib.functions import FUNCTIONS, Expr, OverFeatures
from gatelib.kernels import scan_source, triton_source
from gatelib.parse import DEEPEST
from gatelib.pieces import UnprintableError
from gatelib.spec import Spec, SpecError

__all__ = ["answer", "brief", "drawing", "picture", "read", "sheet"]

Data = dict[str, Any]
"""What JSON can hold."""

MOST_LETTERS, MOST_EQUATIONS, LONGEST_NAME = 20_000, 200, 60
LONGEST_NUMBER, LONGEST_WORDS, MOST_WORK = 400, 500, 20_000
"""Of a text that the workshop takes, and of a message; gatelib itself has no such limits. Deriving
an equation takes time like the square of its parts, so these squares are added."""

TWICE = ("gelu", "normalize", "silu", "softplus", "step")
"""Functions that a language writes with their argument more than once."""

INDENT = "    "
BETWEEN = ("sigmoid", "hardsigmoid", "softmax", "step", "normal_cdf")
"""Functions whose values lie between 0 and 1."""


# ---- what a page asks --------------------------------------------------------------------------


def answer(text: str) -> str:
    """The `sheet` of a reader's text as JSON, or {"error": {message, line, column, header?}}.

    line, column: where, counted from 1. header: a first line that would fit, where it is missing.
    """
    return _told(text, sheet)


def drawing(text: str) -> str:
    """The `picture` of the same text as JSON, or {"error": …}; it takes longer than all else."""
    return _told(text, picture)


def _told(text: str, make: Callable[[Spec], Data]) -> str:
    typed = Typed(tuple(re.split("\r\n|\r|\n", text)))
    try:
        return json.dumps(make(typed.spec()))
    except SpecError as error:
        return json.dumps({"error": typed.complaint(typed.placed(error))})
    except (RecursionError, MemoryError):
        return json.dumps({"error": typed.complaint(typed.too_large())})
    except Exception as error:  # a page must be told, whatever it was
        fault = SpecError(f"the workshop fails at this text: {type(error).__name__}: {error}")
        return json.dumps({"error": typed.complaint(typed.placed(fault))})


def read(text: str) -> Spec:
    """The Spec of `name: inputs -> outputs` and its equations, as a reader types them.

    Blank lines, comments and any indent are allowed. Raises SpecError, with line and column of the
    text as it was given, for what `Spec.parse` refuses and for what is too long for a page.
    """
    typed = Typed(tuple(re.split("\r\n|\r|\n", text)))
    try:
        return typed.spec()
    except SpecError as error:
        raise typed.placed(error) from None


@dataclass(frozen=True)
class Typed:
    """The lines that a reader typed."""

    lines: tuple[str, ...]

    @property
    def first(self) -> int:
        """The index of the first line that says something: the header."""
        return next((n for n, line in enumerate(self.lines) if _code(line)), 0)

    @property
    def name(self) -> str:
        """The gate's name, as the header has it."""
        return self.lines[self.first].partition(":")[0].strip()

    def spec(self) -> Spec:
        """The Spec. Raises SpecError, whose place is one of the text that `Spec.read` was given."""
        self._check_length()
        header, *body = self.lines[self.first :]
        name, colon, signature = _code(header).partition(":")
        if not colon:
            raise SpecError("expected `name: inputs -> outputs` first", 1, 1)
        head = f"{name.strip()}: {signature.strip()}"
        spec = Spec.read("\n".join([head, *(INDENT + line.strip() for line in body)]))
        spec._check_all_used()
        _check_work(spec)
        for v in (spec.name, *spec.inputs, *dict(spec.equations)):
            if len(str(v)) > LONGEST_NAME:
                reason = f"a name has at most {LONGEST_NAME} letters here, this one {len(str(v))}"
                raise SpecError(reason, about=str(v))
        return spec

    def _check_length(self) -> None:
        letters = sum(map(len, self.lines))
        if letters > MOST_LETTERS:
            raise SpecError(f"expected at most {MOST_LETTERS:,} letters, got {letters:,}")
        count = sum(bool(_code(line)) for line in self.lines) - 1
        if count > MOST_EQUATIONS:
            raise SpecError(f"expected at most {MOST_EQUATIONS} equations, got {count:,}")
        for n, line in enumerate(self.lines[self.first :], 1):
            if _depth(line) > DEEPEST:
                raise SpecError(f"nested too deeply, more than {DEEPEST} within each other", n, 1)
            if re.search(rf"[\d.]{{{LONGEST_NUMBER}}}", line):
                raise SpecError(f"a number has less than {LONGEST_NUMBER} digits here", n, 1)

    def placed(self, error: SpecError) -> SpecError:
        """The same error, without its place in words, at the place where it was typed."""
        line, column = error.line, error.column
        if line is None:
            line, column = self._line_of(error.about), 1
        else:
            line += self.first
            column = (column or 1) - (len(INDENT) if line > self.first + 1 else 0)
        line = min(line, len(self.lines))
        margin = len(self.lines[line - 1]) - len(self.lines[line - 1].lstrip())
        return SpecError(self._words(error), line, max(1, column) + margin, error.about)

    def too_large(self) -> SpecError:
        """What to say where Python's stack or memory ends: the longest line is the likeliest."""
        longest = max(range(len(self.lines)), key=lambda n: len(self.lines[n]))
        return SpecError("this gate is too large, or nested too deeply", longest + 1, 1)

    def _line_of(self, name: str) -> int:
        """The line that defines a value, and the header for all else."""
        body = enumerate(self.lines[self.first + 1 :], self.first + 2)
        return next((n for n, line in body if _left(line) == name), self.first + 1)

    def _words(self, error: SpecError) -> str:
        words = str(error)
        for name in (self.name, unicodedata.normalize("NFKC", self.name)):
            for place in (f"{name}, line {error.line}: ", f"{name}.vjp: ", f"{name}: "):
                words = words.removeprefix(place)
        return words.removeprefix("signature: ")

    def complaint(self, error: SpecError) -> Data:
        """The error as data."""
        words = str(error) if len(str(error)) < LONGEST_WORDS else f"{str(error)[:LONGEST_WORDS]}…"
        found: Data = {"message": words, "line": error.line, "column": error.column}
        header = "" if ":" in _code(self.lines[self.first]) else self._header()
        return found | ({"header": header} if header else {})

    def _header(self) -> str:
        """`gate: a b -> y` for equations without a header: what is read, what nobody reads."""
        nodes: list[ast.AST] = []
        text = "\n".join(line.strip() for line in self.lines)
        with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
            nodes = list(ast.walk(ast.parse(text))) if _depth(text) <= DEEPEST else []
        names = [node for node in nodes if isinstance(node, ast.Name)]
        names.sort(key=lambda node: (node.lineno, node.col_offset))
        made = dict.fromkeys(n.id for n in names if isinstance(n.ctx, ast.Store))
        read = dict.fromkeys(n.id for n in names if isinstance(n.ctx, ast.Load))
        inputs = [n for n in read if n not in made and n not in FUNCTIONS]
        outputs = [n for n in made if n not in read or f"{n}_prev" in inputs]
        return f"gate: {' '.join(inputs)} -> {' '.join(outputs)}" if inputs and outputs else ""


def _check_work(spec: Spec) -> None:
    """Raise SpecError where the derivation of a gate would take a page too long."""
    work = 0
    for v, e in spec.equations:
        work += _parts(e) ** 2
        if work > MOST_WORK:
            reason = f"`{v}` makes the gate too large for a page: name parts of it, or leave some"
            raise SpecError(reason, about=str(v))


def _parts(e: Expr) -> int:
    """The parts of an expression, each as often as code and derivative repeat it."""
    repeated = 2 if type(e).__name__ in TWICE else 1
    repeated = 4 if e.is_Pow and e.exp != -1 else 3 if isinstance(e, OverFeatures) else repeated
    return 1 + repeated * sum(map(_parts, e.args))


def _code(line: str) -> str:
    """A line without its comment."""
    return line.partition("#")[0].strip()


def _depth(text: str) -> int:
    """How deep Python's parser may go: in a browser its stack ends, and Python with it."""
    steps = itertools.accumulate((sign in "([{") - (sign in ")]}") for sign in text)
    signs = (len(re.sub(r"\s", "", run)) for run in re.findall(r"(?:[-+~]\s*)+", text))
    return max([0, *steps, *signs, len(re.findall(r"\*\*|\b(?:not|else|lambda)\b", text))])


def _left(line: str) -> str:
    """The name that a line defines, as Python reads it."""
    return unicodedata.normalize("NFKC", line.partition("=")[0].strip())


def brief(spec: Spec) -> Data:
    """A gate as an explorer needs it.

    values: all that the equations compute, in order. carries: {"c_prev": "c"}. open: the values
    that lie between 0 and 1 by their form. run: JavaScript that a page executes, each time the last
    function of a text: `forward` takes the inputs and returns all values; `backward` takes what
    `takes` names and returns the adjoints of the inputs; `seeds` is {value: the name of its
    adjoint} for the outputs and what is carried.
    """
    return {
        "name": spec.name,
        "inputs": _names(spec.inputs),
        "outputs": _names(spec.outputs),
        "values": _names(dict(spec.equations)),
        "carries": {str(old): str(new) for old, new in spec.carries.items()},
        "open": _names(_between(spec)),
        "elementwise": spec.is_elementwise,
        "run": _run(spec),
    }


def sheet(spec: Spec) -> Data:
    """A gate as the workshop shows it, all but its picture: the brief, and

    text: what `read` reads again. latex, backward: the equations and their derived backward pass.
    source: {language: {"code": forward and backward, with imports}, or {"none": why}}.
    layer: {"code": what makes a layer of it, "kind": "recurrent", "function" or "step",
    "note": what a reader should know, or ""}.
    """
    return brief(spec) | {
        "text": "\n".join(line.strip() for line in repr(spec).splitlines()),
        "latex": spec.latex(),
        "backward": spec.vjp().latex(),
        "source": {language: _source(spec, write) for language, write in WRITERS.items()},
        "layer": _layer(spec),
    }


def picture(spec: Spec) -> Data:
    """The circuit: {"svg": …, "alt": what it shows in words}."""
    drawn = circuit.draw(spec)
    return {"svg": drawn.svg, "alt": drawn.alt}


def _names(symbols: Iterable[Expr]) -> list[str]:
    return [str(v) for v in symbols]


def _between(spec: Spec) -> list[Expr]:
    """The values between 0 and 1 by their form."""
    found: list[Expr] = []
    for v, e in spec.equations:
        if _is_between(e, found):
            found.append(v)
    return found


def _is_between(e: Expr, known: list[Expr]) -> bool:
    """Whether an expression is a bounded function, 1 minus such a one, or a product of them."""
    if e.is_Number:
        return bool(0 <= e <= 1)
    if e.is_Add:
        return len(e.args) == 2 and e.args[0] == 1 and _is_between(-e.args[1], known)
    if e.is_Mul or type(e).__name__ in ("mean", "maximum", "minimum"):
        return all(_is_between(part, known) for part in e.args)
    return e in known or type(e).__name__ in BETWEEN


def _run(spec: Spec) -> Data:
    """Forward with every value as a result; backward from the inputs and a seed per output."""
    hidden = [v for v in spec.carries.values() if v not in spec.outputs]
    whole = replace(spec, outputs=(*spec.outputs, *hidden))
    backward = whole.vjp("")
    return {
        "forward": spec.exposed.source("javascript"),
        "backward": backward.source("javascript"),
        "takes": _names(backward.inputs),
        "seeds": triton_source.seeds(whole, backward),
    }


HEADS = {
    "np": "import numpy as np",
    "special": "from scipy import special",
    "torch": "import torch",
    "F": "import torch.nn.functional as F",
}
"""What generated source calls its modules, which no gate's name is."""


def _source(spec: Spec, write: Callable[[Spec], str]) -> Data:
    """The code of a language, forward and backward, or why it has none."""
    try:
        return {"code": write(spec)}
    except (SpecError, UnprintableError) as error:
        return {"none": str(error).removeprefix(f"{spec.name}: ")}


def _python(language: str) -> Callable[[Spec], str]:
    """Writes two functions that need nothing but their arguments, behind their imports."""

    def write(spec: Spec) -> str:
        code = f"{spec.source(language)}\n\n{spec.vjp('').source(language)}"
        heads = [line for name, line in HEADS.items() if re.search(rf"\b{name}\.", code)]
        return "\n".join([*heads, "", "", code]) if heads else code

    return write


def _javascript(spec: Spec) -> str:
    both = (spec.source("javascript"), spec.vjp("").source("javascript"))
    return _once(both, "\n", "(?=function )")


def _triton(spec: Spec) -> str:
    """Two kernels over time where the gate has a carry, and two over elements where it has none."""
    if spec.carries:
        return scan_source.time_scan(spec).text
    vjp = spec.vjp("")
    gates = (spec, vjp) if vjp.inputs else (spec,)
    return _once(map(triton_source.elementwise, gates), "\n\n\n")


WRITERS: dict[str, Callable[[Spec], str]] = {
    "numpy": _python("numpy"),
    "torch": _python("torch"),
    "triton": _triton,
    "javascript": _javascript,
}
"""The languages of a sheet."""


def _once(sources: Iterable[str], between: str, before: str = "") -> str:
    """Several sources as one, each helper written once."""
    parts = (part for text in sources for part in re.split(between + before, text.strip("\n")))
    return between.join(dict.fromkeys(parts)) + "\n"


READ = '''
spec = Spec.read("""\\
{text}
""")
'''
RECURRENT = """\
import torch
from gatelib import nn
from gatelib.spec import Spec
{read}
layer = nn.Recurrent(spec, input_size=3, hidden_size=4)
y, final_state = layer(torch.zeros(2, 5, 3))  # (B, T, D)
"""
FUNCTION = """\
import torch{kernel}
from gatelib.spec import Spec
{read}
gate = spec.compile("torch")  # a function of tensors, differentiated by autograd
values = gate(*(torch.zeros(4) for name in spec.inputs))
"""
FUSED = """\
fused = elementwise(spec)  # the same as one Triton kernel each way, on a GPU
"""
STEP = """\
import torch{kernel}
from gatelib.spec import Spec
{read}
state = {{{zeros}}}
for t in range(5):
    given = {{name: torch.zeros(4) for name in {free}}}
    values = spec.exposed.evaluate(given | state, "torch")
    state = {{{ends}}}
"""
SCANNED = """\
over_time = scan(spec)  # the same over (B, T, D) as one Triton kernel each way, on a GPU
"""
PACKED = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
"""What `nn.Recurrent` calls its own parameters; a test compares."""


def _layer(spec: Spec) -> Data:
    """What makes a layer of a gate, as code that runs."""
    given = READ.format(text=repr(spec))
    refused = _refused(spec)
    if not refused:
        code, kind = RECURRENT.format(read=given), "recurrent"
        return {"code": code, "kind": kind, "note": _learned(spec)}
    if not spec.carries:
        return {"code": _function(spec, given), "kind": "function", "note": ""}
    note = f"`nn.Recurrent` makes no layer of it, since {refused}: this is a loop over time."
    return {"code": _step(spec, given), "kind": "step", "note": note}


def _refused(spec: Spec) -> str:
    """Why `nn.Recurrent` makes no layer of a gate, or nothing."""
    try:
        vectors = cell(spec).checked().vectors
    except ValueError as error:
        return str(error).removeprefix(f"spec: {spec.name} ")
    taken = [v for v in vectors if v in PACKED]
    return f"`{taken[0]}` is the name of its own weights" if taken else ""


def _learned(spec: Spec) -> str:
    """What becomes of inputs that are neither preactivations nor carries."""
    vectors = cell(spec).vectors
    if not vectors:
        return ""
    named, hint = ", ".join(f"`{v}`" for v in vectors), f"`a_{vectors[0]}`"
    many = "are learned vectors" if len(vectors) > 1 else "is a learned vector"
    return f"{named} {many} of the layer; what it computes from x is called {hint}."


def _function(spec: Spec, given: str) -> str:
    kernel = "\nfrom gatelib.kernels.elementwise import elementwise" if spec.is_elementwise else ""
    code = FUNCTION.format(kernel=kernel, read=given)
    return code + FUSED if spec.is_elementwise else code


def _step(spec: Spec, given: str) -> str:
    carries = {str(old): str(new) for old, new in spec.carries.items()}
    free = [v for v in _names(spec.inputs) if v not in carries]
    fused = spec.is_elementwise and bool(free)
    code = STEP.format(
        kernel="\nfrom gatelib.kernels.scan import scan" if fused else "",
        read=given,
        zeros=", ".join(f'"{old}": torch.zeros(4)' for old in carries),
        free=json.dumps(free),
        ends=", ".join(f'"{old}": values["{new}"]' for old, new in carries.items()),
    )
    return code + SCANNED if fused else code
