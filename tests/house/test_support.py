"""What a chapter shares with a benchmark is found by both, and goes with the chapter's copies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chapters.support import highway
from tools import colab, stages

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = sorted(p.stem for p in (ROOT / "chapters" / "support").glob("[!_]*.py"))


@pytest.mark.parametrize("name", SHARED)
def test_shared_code_bears_its_chapters_name(name):
    assert len(list((ROOT / "chapters").glob(f"[0-9][0-9]_{name}.ipynb"))) == 1


@pytest.mark.parametrize(
    ("name", "folder"), [(n, f) for n in SHARED for f in ("chapters", "benchmarks")]
)
def test_a_chapter_and_a_benchmark_find_it_in_their_own_clone(name, folder):
    """As a kernel does: the notebook's folder is on the path, and nothing else of the clone."""
    before = "import _harness; " if folder == "benchmarks" else ""
    command = [sys.executable, "-c", f"{before}import support.{name} as s; print(s.__file__)"]
    done = subprocess.run(command, cwd=ROOT / folder, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == ROOT / "chapters" / "support" / f"{name}.py"


@pytest.mark.parametrize("name", SHARED)
def test_a_copy_for_colab_brings_it_along(name, tmp_path):
    chapter = next(p.stem for p in (ROOT / "chapters").glob(f"[0-9][0-9]_{name}.ipynb"))
    copy = colab.with_installation({"cells": []}, "https://example.org/o/gates", chapter)
    first, *text = copy["cells"][-1]["source"]
    assert first == f"%%writefile support/{name}.py\n"
    assert "".join(text) == (ROOT / "chapters" / "support" / f"{name}.py").read_text().rstrip("\n")
    assert len({cell["id"] for cell in copy["cells"]}) == len(copy["cells"]) == 3


@pytest.mark.parametrize("name", SHARED)
def test_a_chapter_is_validated_again_when_what_it_shares_has_changed(name):
    stage = next(s for s in stages.all_stages().values() if s.name[3:] == name)
    assert f"chapters/support/{name}.py" in stage.inputs


@pytest.mark.parametrize("depth", highway.DEPTHS)
def test_the_nets_of_chapter_four_have_as_many_parameters(depth):
    sizes = [sum(p.numel() for p in highway.net(n, depth)[1].parameters()) for n in highway.NETS]
    gated = sizes[highway.NETS.index("highway")]
    assert all(0.9 < size / gated < 1.1 for size in sizes)


def test_an_unknown_net_is_named():
    with pytest.raises(ValueError, match=r"name: expected one of .*got 'wide'"):
        highway.net("wide", 10)
