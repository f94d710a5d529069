"""Random functions and values: renaming leaves no trace, any other change does."""

import ast

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gatelib.lab.fingerprint import fingerprint
from tests.lab.attacked import of

LOCALS = ("total", "x_", "len", "row", "_", "Σ", "f", "half", "self", "run")
GLOBALS = "import math\nrate = 0.5\ndef scale(v, by=2):\n    return v * by\n\n"
NUMBERS = st.integers(0, 9) | st.floats(0, 9, allow_nan=False).map(lambda v: round(v, 2))
VARIABLES = st.sampled_from(["{a}", "{b}", "{c}"])
OPERATORS = st.sampled_from(["+", "-", "*", "/", "//", "%", "**"])


def joined(inner):
    """Larger expressions of smaller ones; `{a}`, `{b}`, `{c}` are places for local names."""
    pair = st.tuples(inner, OPERATORS, inner).map(lambda p: f"({p[0]} {p[1]} {p[2]})")
    call = st.tuples(inner, inner).map(lambda p: f"scale({p[0]}, by={p[1]})")
    listed = st.tuples(inner, inner).map(lambda p: f"[{p[0]} for {{c}} in range({p[1]})]")
    other = st.tuples(inner, inner).map(lambda p: f"(lambda v, k={p[0]}: v + {{a}})({p[1]})")
    chosen = st.tuples(inner, inner, inner).map(lambda p: f"({p[0]} if {p[1]} < {p[2]} else rate)")
    return pair | call | listed | other | chosen | inner.map(lambda v: f"math.sin({v})")


EXPRESSIONS = st.recursive(VARIABLES | NUMBERS.map(repr), joined, max_leaves=5)
LINES = st.one_of(
    st.tuples(VARIABLES, EXPRESSIONS).map(lambda p: f"{p[0]} = {p[1]}"),
    st.tuples(VARIABLES, OPERATORS, EXPRESSIONS).map(lambda p: f"{p[0]} {p[1]}= {p[2]}"),
    st.tuples(VARIABLES, EXPRESSIONS).map(lambda p: f"for {p[0]} in range(3): {{b}} = {p[1]}"),
    st.tuples(EXPRESSIONS, EXPRESSIONS).map(lambda p: f"if {p[0]}: {{a}} = {p[1]}"),
    EXPRESSIONS.map(lambda e: f"def {{b}}(v): return v + {e}"),
)
BODIES = st.lists(LINES, min_size=1, max_size=6)


def written(body, names, notes=False):
    """The source of a function with these local names, with or without remarks."""
    a, b, c = names
    framed = ["{a} = {b} = {c} = seed", *body, "return {a}, {b}"]
    lines = [line.format(a=a, b=b, c=c) for line in framed]
    if notes:
        lines = [part for line in lines for part in ("", "# a remark", f"{line}  # and why")]
        lines.insert(0, '"""What it does."""')
    text = "\n    ".join(lines)
    return f"{GLOBALS}def run(seed{': int' * notes}, lr{': float' * notes}=0.1):\n    {text}\n"


QUICK = (Phase.explicit, Phase.generate)  # shrinking is slow where coverage is traced
NAMES = st.permutations(LOCALS).map(lambda names: names[:3])


@settings(max_examples=40, phases=QUICK)
@given(BODIES, NAMES, NAMES)
def test_renamed_locals_and_remarks_leave_no_trace_in_random_functions(body, names, others):
    first = of(written(body, names))
    assert of(written(body, others)) == first == of(written(body, names, notes=True))


class Changed(ast.NodeTransformer):
    """Changes one thing of a function: the `which`-th number, operator, name that is called."""

    def __init__(self, which):
        self.left = which
        self.done = False

    def chosen(self):
        self.left -= 1
        self.done = self.done or self.left == -1
        return self.left == -1

    def visit_Constant(self, node):
        number = isinstance(node.value, int | float) and self.chosen()
        return ast.Constant(node.value + 1) if number else node

    def visit_BinOp(self, node):
        self.generic_visit(node)
        if self.chosen():
            node.op = ast.Add() if isinstance(node.op, ast.Sub) else ast.Sub()
        return node

    def visit_Call(self, node):
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and self.chosen():
            node.func.id = "max"
        return node


@settings(max_examples=40, phases=QUICK)
@given(BODIES, NAMES, st.data())
def test_one_changed_number_operator_or_call_is_seen_in_random_functions(body, names, data):
    tree, count = ast.parse(written(body, names)), Changed(-1)
    count.visit(ast.parse(written(body, names)).body[-1])
    change = Changed(data.draw(st.integers(0, -count.left - 2)))
    tree.body[-1] = change.visit(tree.body[-1])
    assert change.done and of(ast.unparse(tree)) != of(written(body, names))


VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=3) | st.binary(max_size=2),
    lambda v: (
        st.lists(v, max_size=3)
        | st.lists(v, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=2), v, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=60, phases=QUICK)
@given(VALUES, VALUES)
def test_two_values_have_one_fingerprint_if_they_are_written_alike(one, other):
    assert (fingerprint(v=one) == fingerprint(v=other)) == (repr(one) == repr(other))
