"""Floors that answer to each other: a gate that one of them forgot is missed, by name.

Imports gatelib.cell, gatelib.equations and gatelib.spec; other floors are read as text.
Must not import torch in this process.

A rule takes files as {path: text} and gives a sentence for each problem: what is missing, and
where to add it. Each is tried on a gate `peek` that was forgotten there.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from gatelib import equations
from gatelib.cell import Cell, cell, named
from gatelib.functions import FUNCTIONS
from gatelib.spec import Spec

ROOT = Path(__file__).resolve().parents[2]
API, STUB = "book/api/", "gatelib/nn/__init__.pyi"
PATTERNS = ("gatelib/**/*.py", "tests/families/*.py", f"{API}*.md", STUB)

NO_LAYERS = {
    "Attention": "what both attentions and the fixed context share",
    "ConvRecurrent": "what the recurrent layers of convolutions share",
    "DropIn": "what the drop-ins share",
    "DropInCell": "what the drop-ins of one step share",
    "DropInLayer": "what the drop-ins of whole layers share",
    "ExpertParallel": "what `MoE` has of its process group",
    "Search": "what `Seq2Seq` inherits its searches from",
}
"""Bases and parts of layers, which nobody makes a layer of."""

OFF_THE_PAGE = {
    "gatelib": "it loads the floors and holds the version",
    "gatelib.circuit.": "steps of a drawing; `gatelib.circuit` has what a reader calls",
    "gatelib.kernels": "an empty package",
    "gatelib.lab": "its names are shown with their modules",
    "gatelib.lab.runs": "an empty package",
    "gatelib.lab.runs.": "the machinery of `gatelib.lab.study`, which has what a reader calls",
    "gatelib.lab.watch": "how a training loop reports to a study",
    "gatelib.nn": "its names are shown with their modules",
    "gatelib.nn.check": "checks that layers share",
    "gatelib.nn.guest": "how a layer calls a module of the user",
    "gatelib.reference": "an empty package",
    "gatelib.reference.check": "checks that references share",
}
"""Modules that no page of the library shows; a name ending in a point stands for all below it."""

BLOCKS: dict[str, str] = {}
"""Specs of a family that are neither in its ALL nor a stage of a cell there, with the reason."""

Files = Mapping[str, str]


def files_of(root: Path) -> dict[str, str]:
    found = (path for pattern in PATTERNS for path in root.glob(pattern))
    return {str(path.relative_to(root)): path.read_text() for path in sorted(found)}


FILES = files_of(ROOT)


# --- the rules --------------------------------------------------------------------------------


def missing_witnesses(files: Files) -> Iterator[str]:
    """A family has the same file name on the floors that check each other, and in the tests."""
    for path in files:
        family = re.fullmatch(r"gatelib/equations/([a-z]\w*)\.py", path)
        for other in ("gatelib/reference/{}.py", "tests/families/test_{}.py"):
            if family and other.format(family[1]) not in files:
                yield f"{path} has no witness: write {other.format(family[1])}"


def unnamed_layers(files: Files) -> Iterator[str]:
    """A public class of gatelib.nn is in its module's __all__, and imported by the stub."""
    names = {
        (node.module, alias.name)
        for node in ast.parse(files[STUB]).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for path, text in files.items():
        module = re.fullmatch(r"gatelib/nn/([a-z]\w*)\.py", path)
        for name in public_classes(text) if module else ():
            if name not in exported(text):
                yield f'{path}: {name} is public; add "{name}" to its __all__'
            if (module[1], name) not in names:
                line = f"from .{module[1]} import {name} as {name}"
                yield f"{path}: {name} is no name of gatelib.nn; add `{line}` to {STUB}"


def public_classes(text: str) -> list[str]:
    """Those with a base that is neither a record's nor a protocol's, and no errors: layers."""
    found = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    found = [node for node in found if {*map(ast.unparse, node.bases)} - {"NamedTuple", "Protocol"}]
    names = [node.name for node in found if not node.name.startswith("_")]
    return [name for name in names if not name.endswith("Error") and name not in NO_LAYERS]


def exported(text: str) -> list[str]:
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def off_the_page(files: Files) -> Iterator[str]:
    """Every public module is on a page of the library, once, and the pages name no other."""
    shown = on_the_pages(files)
    modules = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
        for path in files
        if re.fullmatch(r"gatelib/(\w+/)*([a-z]\w*|__init__)\.py", path)
    }
    for module, pages in shown.items():
        if len(pages) > 1:
            yield f"{' and '.join(pages)}: {module} is shown twice"
        if module not in modules:
            yield f"{pages[0]} shows {module}, which is gone: take its heading and its block away"
    for module in sorted(set(modules) - set(shown)):
        if module not in OFF_THE_PAGE and module.rpartition(".")[0] + "." not in OFF_THE_PAGE:
            yield (
                f"{modules[module]} is not among the pages of the library; add to "
                f"{page_of(module, files)} the heading ## `{module}` and a block with "
                f"`.. automodule:: {module}`"
            )


def on_the_pages(files: Files) -> dict[str, list[str]]:
    """{module: the pages that show it}."""
    shown: dict[str, list[str]] = {}
    for path, text in files.items():
        for module in re.findall(r"^\.\. automodule:: (\S+)$", text, re.M):
            shown.setdefault(module, []).append(path)
    return shown


def page_of(module: str, files: Files) -> str:
    """The page of a module's floor."""
    page = f"{API}{module.split('.')[1]}.md"
    return page if page in files else f"{API}language.md"


def unlisted(family: str, namespace: Mapping[str, object], known: Mapping[str, Cell]):
    """Every Spec and Cell of a family is in an ALL, or a stage of a cell that is."""
    cells = {one.stages for one in known.values()}
    stages = {stage for one in known.values() for stage in one.stages}
    for name, value in namespace.items():
        loose = isinstance(value, Spec) and value not in stages
        loose = loose or (isinstance(value, Cell) and value.stages not in cells)
        if loose and f"{family}.{name}" not in BLOCKS:
            yield f"{name} is in no ALL; add it to ALL in gatelib/equations/{family}.py"


def family(name: str):
    return importlib.import_module(f"gatelib.equations.{name}")


# --- the library keeps them -------------------------------------------------------------------


@pytest.mark.parametrize("rule", [missing_witnesses, unnamed_layers, off_the_page])
def test_no_floor_forgot_a_gate(rule):
    problems = list(rule(FILES))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", equations.FAMILIES)
def test_every_equation_of_a_family_is_in_the_namespace(name):
    problems = list(unlisted(name, vars(family(name)), equations.ALL))
    assert not problems, "\n".join(problems)


def test_every_exception_is_still_one():
    classes = {
        name
        for path, text in FILES.items()
        if path.startswith("gatelib/nn/") and path.endswith(".py")
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef)
        for name in [node.name]
    }
    assert set(NO_LAYERS) <= classes
    for module in OFF_THE_PAGE:
        path = module.removesuffix(".").replace(".", "/")
        assert f"{path}.py" in FILES or f"{path}/__init__.py" in FILES
        assert module not in on_the_pages(FILES)
    assert all(hasattr(family(block.split(".")[0]), block.split(".")[1]) for block in BLOCKS)


# --- and a gate that was forgotten is missed --------------------------------------------------


LAYER = '__all__ = ["Peek"]\n\n\nclass Peek(nn.Module): ...\n'
BLOCK = "```{eval-rst}\n.. automodule:: gatelib.nn.peek\n```\n"
NAMED = "from .peek import Peek as Peek\n"
WHOLE = {
    "gatelib/equations/peek.py": "",
    "gatelib/reference/peek.py": "",
    "tests/families/test_peek.py": "",
    "gatelib/nn/peek.py": LAYER,
    STUB: NAMED,
} | {f"{API}{floor}.md": BLOCK.replace("nn", floor) for floor in ("nn", "equations", "reference")}
NN = f"{API}nn.md"


def without(path: str) -> dict[str, str]:
    return {name: text for name, text in WHOLE.items() if name != path}


def with_text(path: str, text: str) -> dict[str, str]:
    return WHOLE | {path: text}


@pytest.mark.parametrize("rule", [missing_witnesses, unnamed_layers, off_the_page])
def test_a_gate_that_is_everywhere_passes(rule):
    assert not list(rule(WHOLE))


@pytest.mark.parametrize(
    ("rule", "files", "says"),
    [
        (missing_witnesses, without("gatelib/reference/peek.py"), "write gatelib/reference/peek"),
        (missing_witnesses, without("tests/families/test_peek.py"), "write tests/families/test_pe"),
        (unnamed_layers, with_text(STUB, ""), f"add `{NAMED.strip()}` to {STUB}"),
        (
            unnamed_layers,
            with_text("gatelib/nn/peek.py", LAYER.replace('"Peek"', "")),
            'add "Peek" to its __all__',
        ),
        (off_the_page, with_text(NN, ""), f"add to {NN} the heading ## `gatelib.nn.peek`"),
        (off_the_page, without(NN), "the heading ## `gatelib.nn.peek`"),
        (off_the_page, without("gatelib/nn/peek.py"), "shows gatelib.nn.peek, which is gone"),
        (off_the_page, with_text(NN, BLOCK + BLOCK), "gatelib.nn.peek is shown twice"),
    ],
)
def test_a_gate_that_one_floor_forgot_is_missed(rule, files, says):
    (problem,) = rule(files)
    assert says in problem


def test_a_spec_outside_the_namespace_is_missed():
    peek = Spec.parse("peek", "a -> y", "y = 2*a")
    staged = cell(
        (Spec.parse("first", "a -> q", "q = 2*a"), Spec.parse("last", "q -> y", "y = 3*q"))
    )
    given = {"PEEK": peek, "STAGED": staged, "FIRST": staged.stages[0], "SIZE": 3}
    known = dict(equations.ALL)
    assert [p.split()[0] for p in unlisted("gate", given, known)] == ["PEEK", "STAGED", "FIRST"]
    assert not list(unlisted("gate", given, known | named(peek, staged)))


# --- one namespace of equations ---------------------------------------------------------------


@pytest.mark.parametrize("name", equations.FAMILIES)
def test_a_family_names_its_cells_as_they_name_themselves(name):
    for key, one in family(name).ALL.items():
        assert isinstance(one, Cell) and one.name == key


def test_the_namespace_of_equations_holds_every_cell_of_every_family_once():
    names = [key for name in equations.FAMILIES for key in family(name).ALL]
    assert names == list(equations.ALL)
    assert equations.ALL["peephole"] is family("lstm").ALL["peephole"]


@pytest.mark.parametrize("name", equations.FAMILIES)
def test_every_equation_is_described_on_its_page(name):
    body = ast.parse(FILES[f"gatelib/equations/{name}.py"]).body
    silent = {
        ast.unparse(one.targets[0])
        for one, below in zip(body, [*body[1:], None], strict=True)
        if isinstance(one, ast.Assign) and not isinstance(below, ast.Expr)
    }
    gates = {key for key, value in vars(family(name)).items() if isinstance(value, Spec)}
    assert not silent & gates, f"write a line of docstring below {sorted(silent & gates)}"


def test_two_cells_of_one_name_are_refused():
    twins = (Spec.parse("twin", "a -> y", f"y = {text}") for text in ("2*a", "3*a"))
    with pytest.raises(ValueError, match="two are called 'twin'"):
        named(*twins)


def python(code: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_one_family_is_read_without_the_others():
    code = (
        "import sys, gatelib\nassert 'sympy' not in sys.modules\n"
        "import gatelib.equations as e\nassert 'sympy' not in sys.modules\n"
        "e.lstm\nassert 'gatelib.equations.gru' not in sys.modules\n"
        "e.ALL\nassert 'gatelib.equations.gru' in sys.modules"
    )
    result = python(code)
    assert result.returncode == 0, result.stderr


# --- what a reader is told --------------------------------------------------------------------


def test_the_page_lists_every_function_that_a_gate_may_use():
    text = importlib.import_module("gatelib.functions").__doc__
    listed = re.findall(r"^- `(\w+)\(", text, re.M)
    assert sorted(listed) == sorted(FUNCTIONS)


def test_importing_the_layers_loads_no_torch():
    code = "import sys, gatelib.nn; print({'torch', 'sympy'} & {*sys.modules}, *gatelib.nn.__all__)"
    shown = python(code).stdout
    assert shown.startswith("set() ") and " AdditiveAttention " in shown


MISSING = {
    "torch": ("gatelib.nn; gatelib.nn.GRU", "gatelib.nn needs PyTorch", "torch"),
    "lazy_loader": ("gatelib.nn", "gatelib.nn needs PyTorch", "torch"),
}


@pytest.mark.parametrize("absent", MISSING)
def test_a_missing_package_is_named_with_what_brings_it(absent):
    code, says, extra = MISSING[absent]
    result = python(f"import sys; sys.modules[{absent!r}] = None\nimport {code}")
    message = result.stderr.splitlines()[-1]
    assert message.endswith(f"{says}: pip install 'gatelib[{extra}]'")


INSTRUMENTS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.glob("gatelib/lab/**/*.py")
)


@pytest.mark.parametrize("absent", ["matplotlib", "IPython", "torch", "tqdm"])
def test_every_instrument_says_that_it_needs_the_extra_of_the_lab(absent):
    """`gatelib[torch]` is enough for the layers, and each module of the lab says what it is not."""
    result = python(
        f"import importlib, sys; sys.modules[{absent!r}] = None\n"
        f"for name in {INSTRUMENTS}:\n"
        "    for m in [m for m in sys.modules if m.startswith('gatelib.lab')]: del sys.modules[m]\n"
        "    try: importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error: print(error)"
    )
    says = f"gatelib.lab needs {absent}: pip install 'gatelib[lab]'"
    assert result.stdout.splitlines() == [says] * len(INSTRUMENTS), result.stderr
