"""Code beside a chapter is found by it and by benchmarks, and goes with the chapter's copies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from chapters.support import highway
from gatelib.nn import Highway
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
    sources = ["".join(cell["source"]) for cell in copy["cells"]]
    text = (ROOT / "chapters" / "support" / f"{name}.py").read_text().rstrip("\n")
    written = [source for source in sources if source.startswith("%%writefile support")]
    assert written == [f"%%writefile support/{name}.py\n{text}"]
    assert len({cell["id"] for cell in copy["cells"]}) == len(copy["cells"])


@pytest.mark.parametrize("name", SHARED)
def test_a_chapter_is_validated_again_when_what_it_shares_has_changed(name):
    stage = next(s for s in stages.all_stages().values() if s.name[3:] == name)
    assert f"chapters/support/{name}.py" in stage.inputs


@pytest.mark.parametrize("kind", highway.KINDS)
@pytest.mark.parametrize("depth", [10, 50])
def test_the_nets_of_chapter_four_have_as_many_parameters(kind, depth):
    size, gated = (
        sum(p.numel() for p in highway.net(name, depth)[1].parameters())
        for name in (kind, "dynamic")
    )
    assert 0.97 < size / gated < 1.03


def test_a_stack_with_gates_is_the_librarys_highway():
    ours, theirs = highway.Stack("dynamic", 6, 4, bias=-1.0), Highway(6, 4)
    parts = {"weight": (ours.weight, ours.gate_weight), "bias": (ours.bias, ours.gate_bias)}
    theirs.load_state_dict({name: torch.cat(pair, 1) for name, pair in parts.items()})
    x = torch.randn(5, 6)
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_frozen_stack_has_constants_in_the_place_of_its_gates():
    stack, x = highway.Stack("dynamic", 6, 4, bias=-1.0), torch.randn(5, 6)
    means = stack.gates(x).mean(1)
    stack.freeze(means.detach())
    torch.testing.assert_close(stack.gates(x), means[:, None].expand(-1, 5, -1))


@pytest.mark.parametrize("norm", [False, True])
def test_a_gate_on_the_shortcut_alone_leaves_the_transform_whole(norm):
    stack, x = highway.Stack("shortcut", 6, 1, bias=-2.0, norm=norm), torch.randn(5, 6)
    seen = stack.read(x)
    h = torch.relu(seen @ stack.weight[0].T + stack.bias[0])
    torch.testing.assert_close(stack.layer(0, x), h + (1 - stack.gates(x)[0]) * x)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match=r"kind: expected one of .*got 'wide'"):
        highway.Stack("wide", 6, 2)
