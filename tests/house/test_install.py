"""The environment: made from the lock, used while nothing changed, healed in a moved clone.

Imports tools.install, tools.stages.
Must not import gatelib: an environment is looked at from outside.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import install, notebooks, stages

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def calls(monkeypatch):
    """The commands that pip is given, none of which is run."""
    given: list[tuple[str, ...]] = []
    real = subprocess.run

    def run(command, **options):
        if "pip" not in command:
            return real(command, **options)
        given.append(tuple(command))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(install.subprocess, "run", run)
    return given


@pytest.fixture
def clone(tmp_path, monkeypatch, calls):
    """A clone with an environment that was just made; making one anew is noted, not done."""
    root = tmp_path / "a clone"
    (root / ".venv" / "bin").mkdir(parents=True)
    install.python_of(root / ".venv").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    install.python_of(root / ".venv").chmod(0o755)
    for name in install.READ:
        (root / name).write_text("numpy==2.0")
    monkeypatch.setattr(install.venv, "create", lambda *a, **k: calls.append(("create",)))
    assert install.install(root) == 0 and len(calls) == 2
    calls.clear()
    return root


def test_an_environment_is_used_as_it_is_while_nothing_has_changed(clone, calls, capsys):
    capsys.readouterr()
    assert install.install(clone) == 0
    assert not calls and capsys.readouterr().out == ""


def test_another_lock_is_installed(clone, calls):
    (clone / "requirements.lock").write_text("numpy==2.1")
    install.install(clone)
    assert [command[1:] for command in calls] == list(install.COMMANDS)
    assert install.install(clone) == 0 and len(calls) == 2


@pytest.mark.parametrize("act", [shutil.copytree, shutil.move])
def test_a_copied_and_a_moved_clone_are_set_to_their_own_library(clone, calls, capsys, act):
    other = clone.parent / "another"
    act(clone, other)
    install.install(other)
    assert "copied or moved" in capsys.readouterr().out
    assert ("create",) not in calls and calls[-1][-2:] == ("-e", ".")
    assert calls[-1][0] == str(other / ".venv" / "bin" / "python")
    assert install.install(other) == 0 and len(calls) == 2


def test_another_python_makes_the_environment_anew(clone, calls, capsys, monkeypatch):
    monkeypatch.setattr(install.sys, "version_info", (3, 99, 0))
    install.install(clone)
    assert calls[0] == ("create",) and len(calls) == 3
    assert "anew with Python 3.99" in capsys.readouterr().out


def test_an_environment_without_a_working_python_is_made_anew(clone, calls):
    install.python_of(clone / ".venv").unlink()
    install.install(clone)
    assert calls[0] == ("create",)


def test_a_failed_installation_says_that_the_network_is_needed(clone, monkeypatch, capsys):
    (clone / "requirements.lock").write_text("numpy==2.1")
    monkeypatch.setattr(install, "COMMANDS", (("-c", "import sys; sys.exit(3)"),))
    for _ in range(2):  # the second time too: nothing is remembered
        assert install.install(clone) == 3
        assert "network is needed" in capsys.readouterr().err


def test_a_linked_environment_is_left_to_the_clone_that_it_belongs_to(clone, calls):
    worktree = clone.parent / "worktree"
    worktree.mkdir()
    (worktree / ".venv").symlink_to(clone / ".venv")
    assert install.install(worktree) == 0 and not calls


def test_programs_are_started_by_this_python_and_kernels_use_this_library():
    for name in ("lint-imports", "jupyter-book"):
        assert stages.script(name)[0] == sys.executable
    assert notebooks.ENVIRONMENT["PYTHONPATH"] == str(ROOT)


def test_no_file_asks_for_a_program_by_a_line_that_names_another_place():
    """A script's first line names the environment that it was installed into."""
    for name in ("Makefile", "README.md", "CONTRIBUTING.md", ".pre-commit-config.yaml"):
        text = (ROOT / name).read_text()
        named = set(re.findall(r"\.venv/bin/[\w-]+", text))
        assert named <= {".venv/bin/python", ".venv/bin/ruff", ".venv/bin/lint-imports"}, name
        assert text.count(".venv/bin/lint-imports") == text.count("python .venv/bin/lint-imports")
