"""Runs inside Pyodide, in node, when the workshop is packed: modules as archives of bytecode.

Imports the standard library of Pyodide's Python; gatelib and SymPy where it looks what they load.
Must not run in this repository's own Python, whose bytecode is another.

Others' modules are compiled without docstrings, and with one line number for each function: Python
then starts in a third of the time. gatelib keeps both, so that a fault can be told.
"""

from __future__ import annotations

import importlib
import io
import sys
import types
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from importlib._bootstrap_external import _code_to_timestamp_pyc  # type: ignore[attr-defined]
from pathlib import Path

sys.dont_write_bytecode = True

CODECS = ("encodings/cp437", "encodings/latin_1")  # of names in an archive, and of what JS passes
PLATFORM = ("_sysconfigdata", "pyodide/", "_pyodide/")  # what Pyodide loads by itself
FAMILIES = ("gate", "gru", "lstm", "rnn")
NUMBERS = ("0", "1", "-2", "0.5", "30", "1/3")
DRAWN = "g: a x c_prev -> h c\nf = sigmoid(a)\nc = f*c_prev + (1 - f)*x\nh = tanh(c)"
FAULTS = ("", "g: a -> y", "g: a -> y\ny = f(a", "y = a*b", "g: a -> y\ny = sigmod(a)/0")


def bare(code: types.CodeType) -> types.CodeType:
    """The code with one entry in its table of lines: all of it stands on its first line."""
    constants = tuple(bare(c) if isinstance(c, types.CodeType) else c for c in code.co_consts)
    whole, rest = divmod(len(code.co_code) // 2, 8)
    table = b"\xef\x00" * whole + (bytes([0xE8 | (rest - 1), 0]) if rest else b"")
    return code.replace(co_consts=constants, co_linetable=table)


def compiled(source: bytes, name: str, whole: bool) -> bytes:
    """A module as the content of a .pyc file that is valid without its source."""
    code = compile(source, name, "exec", dont_inherit=True, optimize=0 if whole else 2)
    return bytes(_code_to_timestamp_pyc(code if whole else bare(code), 0, 0))


def archive(
    sources: Mapping[str, bytes], whole: bool = False, folders: Iterable[str] = ()
) -> bytes:
    """Compiled modules in a zip file, uncompressed: what carries it compresses all of it."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as made:
        for name, source in sorted(sources.items()):
            made.writestr(zipfile.ZipInfo(f"{name}c"), compiled(source, name, whole))
        for folder in folders:
            made.writestr(zipfile.ZipInfo(folder), b"")
    return target.getvalue()


def texts() -> Iterator[str]:
    """Gates that make SymPy load what any gate may: each function, of names and of numbers."""
    from gatelib.functions import FUNCTIONS

    yield from FAULTS
    for name, kind in FUNCTIONS.items():
        count = next(iter(kind.nargs))
        names = ["a", "b"][:count]
        call = f"{name}({', '.join(names)})"
        yield f"g: {' '.join(names)} h_prev -> y h\ny = 2*{call}**0.5 + {call}/3\nh = y + h_prev"
        for number in NUMBERS:
            yield f"g: a -> y\ny = a*{name}({', '.join([number, '2'][:count])})"
            yield f"g: a -> y\nk = {name}({', '.join([number, '2'][:count])})\ny = a/k**0.5 + k"
    for family in FAMILIES:
        known = importlib.import_module(f"gatelib.equations.{family}").ALL
        yield from (repr(stage) for cell in known.values() for stage in cell.stages)


def exercise() -> None:
    """Ask the workshop for all of them, and for two drawings."""
    from gatelib import workshop

    for text in texts():
        workshop.answer(text)
    for text in (DRAWN, "g: a -> y\ny = sigmoid(a)/2 + maximum(a, 1/3)**1.5"):
        workshop.drawing(text)


def loaded(folder: str) -> dict[str, bytes]:
    """The sources of all modules that were loaded from a folder, by their place in it."""
    files = (getattr(module, "__file__", None) or "" for module in list(sys.modules.values()))
    inside = (file for file in files if file.startswith(f"{folder}/") and file.endswith(".py"))
    return {file.removeprefix(f"{folder}/"): Path(file).read_bytes() for file in inside}


def standard(library: str) -> dict[str, bytes]:
    """The modules of Pyodide's own archive that were loaded, or that it loads by itself."""
    known = {name.replace(".", "/") for name in sys.modules} | set(CODECS)
    with zipfile.ZipFile(library) as original:
        names = [n for n in original.namelist() if n.endswith(".py")]
        kept = [n for n in names if n.startswith(PLATFORM)]
        kept += [n for n in names if n[:-3].removesuffix("/__init__") in known]
        return {name: original.read(name) for name in dict.fromkeys(kept)}


def base(packages: str, repository: str, library: str, out: str) -> None:
    """Write python.zip and sympy.zip: what the workshop loads, and nothing else."""
    sys.path[:0] = [packages, repository]
    exercise()
    for name, content in (
        ("python.zip", archive(standard(library), folders=["site-packages/"])),
        ("sympy.zip", archive(loaded(packages))),
    ):
        Path(out, name).write_bytes(content)


def gatelib(repository: str, files: Iterable[str], out: str) -> None:
    """Write gatelib.zip: the files that the workshop imports."""
    sources = {name: Path(repository, name).read_bytes() for name in files}
    Path(out, "gatelib.zip").write_bytes(archive(sources, whole=True))
