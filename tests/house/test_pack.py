"""Python for the workshop's page is packed once, under stamps of exactly what goes in.

Imports tools.pack, tools.vendor.
Must not import gatelib: it is read as files.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tools import pack, vendor


@pytest.fixture
def packing(tmp_path, monkeypatch):
    """Notes which parts are made, and makes empty ones."""
    made: list[str] = []

    def make(part, folder):
        made.append(part)
        for name in pack.BASE if part == "base" else pack.LIBRARY:
            (folder / f"{name}.js").touch()

    monkeypatch.setattr(pack, "make", make)
    return made, tmp_path


def test_what_is_packed_is_packed_once(packing):
    made, folder = packing
    assert pack.ensure(folder) == ["base", "gatelib"]
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert pack.ensure(folder) == [] and made == ["base", "gatelib"]
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written


def test_a_change_of_gatelib_packs_gatelib_alone(packing, monkeypatch):
    _, folder = packing
    pack.ensure(folder)
    monkeypatch.setattr(pack, "library_stamp", lambda: "another")
    assert pack.ensure(folder) == ["gatelib"]


def test_a_lost_file_or_another_base_is_packed_again(packing, monkeypatch):
    _, folder = packing
    pack.ensure(folder)
    (folder / "sympy.zip.js").unlink()
    assert pack.ensure(folder) == ["base"]
    monkeypatch.setattr(pack, "base_stamp", lambda: "another")
    assert pack.ensure(folder) == ["base"]


@pytest.fixture
def fresh_stamps():
    """Stamps are worked out anew, in the test and after it."""
    stamps = (pack.base_stamp, pack.library_stamp)
    for stamp in stamps:
        stamp.cache_clear()
    yield
    for stamp in stamps:
        stamp.cache_clear()


def test_another_module_of_others_means_another_base(monkeypatch, fresh_stamps):
    before = pack.base_stamp()
    monkeypatch.setattr(pack, "asked_of_others", lambda: ["sympy", "a.new.module"])
    pack.base_stamp.cache_clear()
    assert pack.base_stamp() != before


def test_another_file_of_gatelib_means_another_stamp(monkeypatch, fresh_stamps):
    before, fewer = pack.library_stamp(), pack.library()[:-1]
    monkeypatch.setattr(pack, "library", lambda: fewer)
    pack.library_stamp.cache_clear()
    assert pack.library_stamp() != before


def test_only_what_the_workshop_imports_goes_in():
    names = {str(path.relative_to(pack.ROOT)) for path in pack.library()}
    assert {"gatelib/workshop.py", "gatelib/spec.py", "gatelib/circuit/svg.py"} <= names
    floors = ("equations", "nn", "reference", "derived", "lab", "data")
    assert not [name for name in names if name.startswith(tuple(f"gatelib/{f}" for f in floors))]


def test_the_workshop_loads_no_more_of_gatelib_than_is_packed():
    code = (
        "import json, sys; from gatelib import workshop;"
        "workshop.answer('g: a h_prev -> h\\nh = a*h_prev'); workshop.drawing('g: a -> y\\ny = a');"
        "print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.startswith('gatelib')]))"
    )
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=pack.ROOT, capture_output=True, text=True, check=True)
    assert set(json.loads(ran.stdout)) <= {str(path) for path in pack.library()}


def test_pyodide_is_pinned_by_its_hash_and_comes_with_the_other_assets():
    lock = json.loads((vendor.PINNED / "package-lock.json").read_text())
    assert lock["packages"]["node_modules/pyodide"]["integrity"].startswith("sha512-")
    assert "pyodide/pyodide.asm.wasm" in vendor.FILES.values()


def test_a_program_that_fails_says_what_it_said(tmp_path, monkeypatch):
    monkeypatch.setattr(vendor, "VENDOR", tmp_path)
    with pytest.raises(pack.PackError, match=r"(?s)gatelib could not be packed.*pyodide\.mjs"):
        pack.make("gatelib", tmp_path / "pack")
    assert not list((tmp_path / "pack").glob("*.js"))
