"""Plain `pytest --nbval` on a chapter sees what the runner saw: its environment and sanitisers.

Imports nbformat, tools.notebooks, tools.stages.
Must not import gatelib: a chapter is judged as it is stored.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tools import notebooks, stages

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(notebooks.ENVIRONMENT)
INHERITED = f"import os\n{{name: os.environ.get(name) for name in {NAMES}}}"
UNSTABLE = "print(object(), {'b', 'a', 'c'}, hash('gate'))"


def nbval(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a user types, in a shell whose settings are not the runner's."""
    shutil.copy(ROOT / "chapters" / "conftest.py", folder)
    command = [sys.executable, "-m", "pytest", "--nbval", str(folder), "-c", "pyproject.toml"]
    outside = os.environ.keys() - notebooks.ENVIRONMENT.keys()
    inherited = {name: os.environ[name] for name in outside} | {"PYTHONHASHSEED": "random"}
    return subprocess.run(
        [*command, f"--rootdir={ROOT}", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of one chapter that shows what its kernel inherits, and what no two runs share."""
    folder = tmp_path_factory.mktemp("chapters")
    cells = [new_code_cell(INHERITED), new_code_cell(UNSTABLE)]
    path = folder / "01_small.ipynb"
    notebooks.write(notebooks.clean(new_notebook(cells=cells)), path)
    notebooks.execute(path)
    return folder


def test_the_plain_command_hands_the_kernel_what_the_runner_does(folder):
    shown = (folder / "01_small.ipynb").read_text()
    assert all(f"'{name}'" in shown for name in NAMES)
    run = nbval(folder, "-q", OMP_NUM_THREADS="2", MPLBACKEND="agg")
    assert run.returncode == 0 and "2 passed" in run.stdout, run.stdout + run.stderr


def test_without_the_file_beside_the_chapters_the_same_notebook_fails(folder, tmp_path):
    shutil.copy(folder / "01_small.ipynb", tmp_path)
    run = nbval(tmp_path, "-q", "--noconftest", OMP_NUM_THREADS="2")
    assert "2 failed" in run.stdout, run.stdout


def test_a_cell_may_take_as_long_as_the_runner_lets_it(folder):
    plain = "config.option.nbval_cell_timeout, item.get_closest_marker('timeout').args"
    code = f"def pytest_runtest_setup(item):\n    config = item.config\n    print(({plain}))"
    (folder / "asked.py").write_text(code)
    run = nbval(folder, "-q", "-s", "-p", "asked", PYTHONPATH=str(folder))
    seconds = notebooks.CELL_SECONDS
    assert f"({seconds}, ({2 * seconds},))" in run.stdout, run.stdout + run.stderr
    (folder / "asked.py").unlink()


def test_an_option_on_the_command_line_goes_first(folder, tmp_path):
    (tmp_path / "none.cfg").write_text("[none]\nregex: xyz\nreplace: xyz\n")
    run = nbval(folder, "-q", f"--nbval-sanitize-with={tmp_path / 'none.cfg'}")
    assert "1 failed, 1 passed" in run.stdout, run.stdout


def test_the_stage_of_a_chapter_is_the_plain_command():
    for path in notebooks.find(()):
        stage = stages.chapter_stage(path)
        options = [word for word in stage.commands[0] if word.startswith("--")]
        assert options == ["--nbval"] and "chapters/conftest.py" in stage.inputs
