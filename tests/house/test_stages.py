"""The stage runner: what passed is not run again while every byte that it reads is the same.

Imports tools.inputs, tools.stages.
Must not import gatelib in this process: what it loads is tested in processes of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools import inputs, stages

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A stage that reads one file and notes each of its runs in another."""
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    monkeypatch.setattr(stages, "PASSED", tmp_path / "passed")
    (tmp_path / "input.txt").write_text("pass")
    code = (
        "import pathlib, sys; open('runs', 'a').write('x');"
        "print('== 2 passed, 1 skipped in 0.10s ==');"
        "sys.exit(pathlib.Path('input.txt').read_text() != 'pass')"
    )
    return stages.Stage("small", ((sys.executable, "-c", code),), ("input.txt",))


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text())


def test_a_stage_that_passed_is_not_run_again_on_the_same_bytes(stage, tmp_path):
    first, second = stages.run(stage, fresh=False), stages.run(stage, fresh=False)
    assert first.ok and second.ok and second.remembered
    assert runs(tmp_path) == 1
    assert stages.run(stage, fresh=True).ok and runs(tmp_path) == 2


def test_a_stage_runs_again_when_a_byte_of_its_input_changes(stage, tmp_path):
    stages.run(stage, fresh=False)
    (tmp_path / "input.txt").write_text("fail")
    failed = stages.run(stage, fresh=False)
    assert not failed.ok and not failed.remembered
    assert not stages.run(stage, fresh=False).ok
    assert runs(tmp_path) == 3


def test_totals_count_tests_and_stages_without_tests():
    results = {
        "unit": stages.Result(True, 1.0, "5 passed, 2 skipped in 1.00s"),
        "types": stages.Result(True, 1.0, "passed"),
        "chapter": stages.Result(False, 1.0, "1 failed, 3 passed, 2 errors in 1.00s"),
        "style": stages.Result(False, 1.0, "failed with exit status 1"),
    }
    assert stages.totals(results) == {"failed": 4, "passed": 9, "skipped": 2}


def test_a_failure_is_counted_even_when_every_test_passed():
    crashed = stages.Result(False, 1.0, "3 passed in 1.00s")
    assert stages.totals({"unit": crashed})["failed"] == 1


def test_stages_wait_for_those_they_build_on(stage):
    code = "import sys; sys.exit(open('runs').read() != 'x')"
    later = stages.Stage("later", ((sys.executable, "-c", code),), (), after=("small",))
    results = stages.run_all([later, stage], fresh=True)
    assert results["small"].ok and results["later"].ok


def test_nothing_is_left_to_run_beside_the_last_stages():
    """The site waits for the book and the book for the chapters: they start before other tests."""
    order = list(stages.all_stages())
    chapters = [path.stem for path in stages.notebooks.find(())]
    last = max(order.index(name) for name in chapters)
    assert order[last + 1 : last + 3] == ["book", "site"]
    assert {"nn", "spec", "families", "lab"} <= set(order[last + 3 :])
    assert order.index("kernels") < min(order.index(name) for name in chapters)


# --- what a stage reads -----------------------------------------------------------------------


def files_of(folder: str) -> set[str]:
    """What the stage of a folder of tests reads, as paths from the root."""
    stage = stages.unit_stage(folder)
    paths = stages.found(stage.inputs) | inputs.reached(stages.found(stage.modules))
    return {str(path.relative_to(ROOT)) for path in paths}


UNITS = [stage.name for stage in stages.unit_stages()]


def test_every_folder_of_tests_is_a_stage():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert set(UNITS) | {"site"} == folders <= set(stages.all_stages())
    assert not list((ROOT / "tests").glob("test_*.py")), "a test stands in a folder"


@pytest.mark.parametrize("folder", sorted(set(UNITS) - {"house"}))
def test_an_edit_of_prose_reruns_no_test_but_those_of_the_house(folder):
    prose = {name for name in files_of(folder) if name.endswith((".ipynb", ".md", ".yml"))}
    of_the_book = {name for name in files_of(folder) if name.startswith("book/")}
    assert not prose and (folder == "workshop" or not of_the_book)
    assert all(name.endswith((".js", ".py")) for name in of_the_book)


@pytest.mark.parametrize("folder", ["circuit", "kernels", "nn", "spec"])
def test_an_edit_of_the_lab_reruns_no_test_of_a_floor_below(folder):
    assert not [name for name in files_of(folder) if name.startswith("gatelib/lab/")]
    assert "tests/conftest.py" in files_of(folder) and "requirements.lock" in files_of(folder)


@pytest.mark.parametrize("folder", ["circuit", "nn"])
def test_a_stage_reads_every_file_that_its_tests_load(folder):
    code = (
        "import contextlib, io, sys, pytest\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    pytest.main(['tests/{folder}', '--collect-only', '-q', '-p', 'no:cacheprovider'])\n"
        "print('\\n'.join(str(getattr(m, '__file__', '')) for m in [*sys.modules.values()]))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = {Path(line) for line in run.stdout.splitlines() if line.startswith(str(ROOT))}
    own = {str(path.relative_to(ROOT)) for path in loaded if ".venv" not in path.parts}
    assert f"tests/{folder}" in {str(Path(name).parent) for name in own}, run.stderr
    assert own <= files_of(folder)


@pytest.fixture
def tree(tmp_path):
    """A small repository: a lazy package, a plain one, and a program that a test starts."""
    files = {
        "gatelib/__init__.py": "def __getattr__(name): ...",
        "gatelib/spec.py": "",
        "gatelib/nn/__init__.py": "def __getattr__(name): ...",
        "gatelib/nn/__init__.pyi": "from .gru import GRU as GRU",
        "gatelib/nn/gru.py": "def run():\n    import gatelib.kernels.scan",
        "gatelib/kernels/__init__.py": "",
        "gatelib/kernels/scan.py": "",
        "gatelib/kernels/other.py": "",
        "benchmarks/speed.py": "from gatelib import spec",
        "tests/a.py": "from gatelib.nn import GRU",
        "tests/b.py": "run('import gatelib.kernels.scan as s; s.go()')",
        "tests/c.py": "'''Tells of gatelib.nn.'''\nrun(ROOT / \"benchmarks\" / \"speed.py\")",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("start", "others"),
    [
        ("a", "__init__ nn/__init__ nn/__init__.pyi nn/gru kernels/__init__ kernels/scan"),
        ("b", "__init__ kernels/__init__ kernels/scan"),
        ("c", "__init__ spec"),
    ],
)
def test_imports_are_followed_into_functions_lazy_packages_and_programs(tree, start, others):
    expected = {f"gatelib/{name}" + ".py" * (".pyi" not in name) for name in others.split()}
    expected |= {f"tests/{start}.py"} | ({"benchmarks/speed.py"} if start == "c" else set())
    found = inputs.reached([tree / "tests" / f"{start}.py"], tree)
    assert {str(path.relative_to(tree)) for path in found} == expected
