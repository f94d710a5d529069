"""The book's style for tests that draw; a tiny study, a copy to damage, a folder to make others in.

Imports matplotlib, gatelib.lab.figures, tests.lab.tiny_study.
Must not make a record for each test: one is made, and copied.
"""

from __future__ import annotations

import shutil
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from gatelib.lab import figures
from tests.lab.tiny_study import chapter, library


@pytest.fixture(scope="module")
def main():
    """The program that runs these tests is `__main__` again after them."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before


@pytest.fixture(scope="module")
def made(main, tmp_path_factory):
    """A folder in which the tiny study has been made, by two workers."""
    folder = tmp_path_factory.mktemp("chapters")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GATES_STUDY", "run")
        patch.setenv("WORKERS", "2")
        library()
        chapter()["tiny"]()
    return folder


@pytest.fixture
def there(made, tmp_path, monkeypatch):
    """A copy of that folder to work in, where nobody makes records."""
    shutil.copytree(made / "studies", tmp_path / "studies")
    monkeypatch.chdir(tmp_path)
    library()
    return tmp_path


@pytest.fixture
def making(main, tmp_path, monkeypatch):
    """An empty folder to make records in, by one worker."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATES_STUDY", "run")
    monkeypatch.setenv("WORKERS", "1")
    library()
    return tmp_path


@pytest.fixture
def style():
    """The book's figures, and matplotlib as it was when the test is over."""
    with mpl.rc_context():
        figures.use()
        yield
        plt.close("all")
