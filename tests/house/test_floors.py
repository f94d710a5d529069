"""Floors that answer to each other: whatever a gate needs on one floor is missed on the others.

Imports gatelib.equations, gatelib.cell and gatelib.spec.
Must not import torch in this process.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from gatelib import equations
from gatelib.cell import Cell, named
from gatelib.spec import Spec

ROOT = Path(__file__).resolve().parents[2]


def family(name: str):
    return importlib.import_module(f"gatelib.equations.{name}")


# --- one namespace of equations ---------------------------------------------------------------


@pytest.mark.parametrize("name", equations.FAMILIES)
def test_a_family_names_its_cells_as_they_name_themselves(name):
    for key, cell in family(name).ALL.items():
        assert isinstance(cell, Cell) and cell.name == key


def test_the_namespace_of_equations_holds_every_cell_of_every_family_once():
    names = [key for name in equations.FAMILIES for key in family(name).ALL]
    assert names == list(equations.ALL)
    assert equations.ALL["peephole"] is family("lstm").ALL["peephole"]


def test_two_cells_of_one_name_are_refused():
    twins = (Spec.parse("twin", "a -> y", f"y = {text}") for text in ("2*a", "3*a"))
    with pytest.raises(ValueError, match="two are called 'twin'"):
        named(*twins)


def test_one_family_is_read_without_the_others():
    code = (
        "import sys, gatelib\nassert 'sympy' not in sys.modules\n"
        "import gatelib.equations as e\nassert 'sympy' not in sys.modules\n"
        "e.lstm\nassert 'gatelib.equations.gru' not in sys.modules\n"
        "e.ALL\nassert 'gatelib.equations.gru' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
