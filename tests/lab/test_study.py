"""A study: its record is made, read, and used; what fails is recorded, what can't be is refused.

Imports torch, gatelib.lab and tests.lab.tiny_study.
Must not make records: one is made for all tests, and copied.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gatelib.lab import StaleRecord, Study, recorded
from gatelib.lab.runs.store import digest
from tests.lab.tiny_study import (
    CHAPTER,
    LIBRARY,
    NAME,
    chapter,
    failing,
    files,
    library,
    read,
    write,
)

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("main")


# --- what a record holds ----------------------------------------------------------------------


def test_a_study_that_was_made_passes_and_gives_its_numbers(there):
    found = chapter()["tiny"]()
    assert found.arms == ["tanh", "relu"] and found.of("tanh", "test").shape == (2,)
    assert all(found.best(arm) in found.tried(arm) for arm in found.arms)
    assert "06_lstm-tiny" in found._repr_markdown_() and "core-minutes" in found._repr_markdown_()
    assert "0x" not in repr(found) and repr(found) == found._repr_markdown_().replace("*", "")


def test_a_record_is_one_run_a_line_and_holds_no_time(there):
    head, lines = read()
    assert head["study"] == NAME and set(head["made"]) == {"python", "numpy", "torch", "cpu"}
    assert {"kind", "lr", "seed", "loss", "steps", "valid", "test", "first"} == set(lines[0])
    assert len(lines[0]["first"]) == 5 and lines[0]["steps"] == 12 and len(lines[0]["loss"]) == 6
    assert "seconds" not in json.dumps([head, lines]) and "minutes" not in head
    assert set(json.loads(Path(f"studies/{NAME}.made.json").read_text())["seconds"]) == {
        "tanh",
        "relu",
    }
    assert not list(Path("studies").glob("*.journal"))


def test_a_cell_before_the_study_reads_the_same_numbers(there):
    early, found = recorded(NAME), chapter()["tiny"]()
    assert early.lines == found.lines and early.arms == found.arms
    assert early.minutes == found.minutes > 0
    assert np.array_equal(early.of("relu", "test"), found.of("relu", "test"))


def test_a_kept_model_scores_as_its_run_did(there):
    cells = chapter()
    found = cells["tiny"]()
    for arm in found.arms:
        score = cells["accuracy"]((cells["x"], cells["posing"].labelled(cells["x"])))
        assert score(found.model(arm)) == found.of(arm, "test")[0]
    with pytest.raises(ValueError, match="arm: expected kind of"):
        found.model("GRU")


def test_a_reader_makes_one_run_anew_beside_the_record(there):
    now = chapter()["tiny"]().rerun(kind="tanh", lr=0.1, seed=1)
    assert set(now) >= {"loss", "valid", "test"} and all(a == b for a, b in now.values())
    with pytest.raises(ValueError, match="labels: expected kind, lr, seed, got seed"):
        chapter()["tiny"]().rerun(seed=1)


def test_a_study_leaves_the_random_state_alone(there):
    torch.manual_seed(3)
    chapter()  # its data has a generator of its own
    before = torch.random.get_rng_state(), torch.get_num_threads()
    chapter()["tiny"]()
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert torch.get_num_threads() == before[1]


@pytest.mark.parametrize("name", ["recall", "6_lstm-recall", "06_lstm", "06_lstm-Recall a"])
def test_a_study_bears_its_chapters_name(there, name):
    with pytest.raises(ValueError, match=r"name: expected the chapter's file"):
        recorded(name)


def test_a_chapter_makes_no_study_of_another(making, monkeypatch):
    monkeypatch.setenv("GATES_CHAPTER", "07_gru")
    with pytest.raises(ValueError, match="name: expected \"07_gru-…\", got '06_lstm-tiny'"):
        chapter()["tiny"]()


# --- attacks on the record --------------------------------------------------------------------


def damage(change):
    """A test's record after a change of its first line or its runs."""
    head, lines = read()
    change(head, lines)
    return head, lines


def set_in(index, name, value):
    def change(head, lines):
        lines[index][name] = value

    return change


FIRST_FRESH = 6
"""Where in the record the first fresh run of the first arm stands, after 3 rates × 2 seeds."""
EDITS = {
    "a first loss": set_in(0, "first", [0.7, 0.7, 0.7, 0.7, 0.7]),
    "a point of a loss curve": set_in(0, "loss", [0.7] * 6),
    "a score": set_in(FIRST_FRESH, "test", 0.99),
    "a seed": set_in(0, "seed", 1),
    "a rate": set_in(0, "lr", 0.02),
    "the grid": lambda head, lines: head["rates"].update(values=[0.01, 0.1, 10.0]),
    "seeds that report": lambda head, lines: head.update(report=1),
    "the code's hash": lambda head, lines: head["code"].update(run="00000000"),
    "the processor": lambda head, lines: head["made"].update(cpu="another"),
    "a run left out": lambda head, lines: lines.pop(),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_the_record_is_seen(there, edit):
    write(*damage(EDITS[edit]), remade=False)
    assert f"{NAME}.jsonl is cut off or was edited by hand" in failing()


def index_of_kept(lines):
    return next(i for i, line in enumerate(lines) if line["seed"] == 100)


def test_a_score_with_a_checksum_remade_is_measured_again_from_the_kept_weights(there):
    head, lines = read()
    at = index_of_kept(lines)
    was, lines[at]["test"] = lines[at]["test"], 0.99
    write(head, lines, remade=True)
    assert f"/100: test is 0.99 in the record and {was} here" in failing()


def test_a_loss_curve_with_a_checksum_remade_is_found_when_its_arm_is_made_anew(there, monkeypatch):
    head, lines = read()
    lines[index_of_kept(lines)]["loss"][3] = 0.1
    write(head, lines, remade=True)
    monkeypatch.setenv("GATES_STUDY", "full")
    monkeypatch.setattr(Study, "_drawn", lambda self, members, when: sorted(members, reverse=True))
    assert "/100: loss is [" in failing()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_in(0, "first", [0.7] * 5), "first is [0.7, 0.7, 0.7, 0.7, 0.7] in the record"),
        (lambda h, ls: (ls[0].update(seed=1), ls[1].update(seed=0)), "first is ["),
        (lambda h, ls: (ls[0].update(lr=0.1), ls[2].update(lr=0.01)), "first is ["),
    ],
)
def test_first_losses_seeds_and_rates_with_a_checksum_remade_are_replayed(
    there, monkeypatch, change, says
):
    head, lines = damage(change)
    lines.sort(key=lambda line: (line["kind"] != "tanh", line["seed"] >= 100, line["lr"]))
    write(head, lines, remade=True)
    monkeypatch.setenv("GATES_STUDY", "full")
    assert says in failing()


def test_a_score_without_kept_weights_is_found_when_its_arm_is_made_anew(there, monkeypatch):
    head, lines = read()
    last = lines[-1]
    assert last["seed"] == 101 and last["kind"] == "relu"
    was, last["test"] = last["test"], 0.125
    write(head, lines, remade=True)
    chapter()["tiny"]()  # the daily check has no way to know
    monkeypatch.setenv("GATES_STUDY", "full")
    monkeypatch.setattr(Study, "_drawn", lambda self, members, when: sorted(members))
    assert f"test is 0.125 in the record and {was} here" in failing()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h, ls: h["rates"].update(values=[0.01, 0.1, 10.0]), "rates: {"),
        (lambda h, ls: h.update(report=1), "report: 1 in the record, 2 here"),
        (lambda h, ls: h["axes"].update(kind=["tanh", "elu"]), "axes: {"),
        (lambda h, ls: h["code"].update(run="00000000"), "changed since the record was made: run"),
        (lambda h, ls: ls.pop(), "1 runs are missing, the first relu/"),
        (lambda h, ls: ls.reverse(), "another order"),
        (lambda h, ls: ls.append(ls[0] | {"seed": 102}), "1 runs are not of this grid"),
    ],
)
def test_a_grid_with_a_checksum_remade_is_not_the_chapters(there, change, says):
    write(*damage(change), remade=True)
    assert says in failing()


def test_weights_of_another_run_do_not_give_its_score(there):
    head, lines = read()
    with np.load(f"studies/{NAME}.npz") as held:
        weights = dict(held)
    names = json.loads(weights["names"].tobytes())
    number = str(next(n for n, name in enumerate(names) if name.endswith("0.0.weight")))
    weights[number] = -weights[number]
    np.savez_compressed(f"studies/{NAME}.npz", **weights)
    assert f"{NAME}.npz is cut off, or not of this record" in failing()
    head["weights"] = digest(files()["npz"])
    write(head, lines, remade=True)
    assert " in the record and " in failing()


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.9, 0.999])
def test_a_record_that_is_cut_off_is_seen(there, cut):
    path = Path(f"studies/{NAME}.jsonl")
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))])
    assert f"{NAME}.jsonl is cut off" in failing()
    with pytest.raises(StaleRecord, match="is cut off"):
        recorded(NAME)


@pytest.mark.parametrize("cut", [0.0, 0.5, 0.999])
def test_weights_that_are_cut_off_are_seen(there, cut):
    path = Path(f"studies/{NAME}.npz")
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))])
    assert f"{NAME}.npz" in failing()


def test_a_record_that_is_absent_is_named(there):
    Path(f"studies/{NAME}.npz").unlink()
    assert f"there is no {NAME}.npz, the weights of this record" in failing()
    shutil.rmtree("studies")
    assert f"there is no record studies/{NAME}.jsonl" in failing()
    with pytest.raises(FileNotFoundError, match="it comes with the repository of the book"):
        recorded(NAME)


def test_a_record_of_another_chapter_is_not_this_ones(there):
    for path in list(Path("studies").iterdir()):
        path.rename(path.with_name(path.name.replace(NAME, "07_gru-tiny")))
    shutil.copytree("studies", "kept")
    text = CHAPTER.replace("06_lstm-tiny", "07_gru-tiny")
    with pytest.raises(StaleRecord, match="is the record of the study '06_lstm-tiny'"):
        chapter(text)["tiny"]()


# --- changes of the code ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("nn.Linear(4, width)", "nn.Linear(4, width, bias=False)", "net"),
        ("batch_size=16", "batch_size=20", "run"),
        ("STEPS = 12", "STEPS = 13", "STEPS"),
        ("default_rng(0)", "default_rng(1)", "DATA"),
        ('"tanh": nn.Tanh', '"tanh": nn.Sigmoid', "kind 'tanh'"),
        ("further=1", "further=2", "rates: {"),
    ],
)
def test_changed_code_of_a_cell_is_named(there, old, new, says):
    assert old in CHAPTER
    message = failing(CHAPTER.replace(old, new))
    assert says in message.splitlines()[1]


def test_a_changed_default_of_gatelib_is_named_by_its_module(there):
    library(LIBRARY.replace("shift=0.0", "shift=0.1"))
    assert "changed since the record was made: " in (message := failing())
    assert "gatelib.posing" in message.splitlines()[1]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # its weights come from torch's seed", "  # torch's seed decides them"),
        ('"""A small net."""', '"""A net of one hidden layer."""'),
        ("hidden", "inner"),
        ("measured", "share"),
        ("def net(width, kind):", "def net(width: int, kind):"),
        ("\n\n\ndef run", "\n\n\n\n# One run of the study.\ndef run"),
        ("import time\n", ""),
    ],
)
def test_comments_docstrings_and_local_names_invalidate_nothing(there, old, new):
    assert old in CHAPTER
    chapter(CHAPTER.replace(old, new))["tiny"]()


def test_a_docstring_of_gatelib_invalidates_nothing(there):
    library(LIBRARY.replace("Whether the first", "Do the first").replace("have", "bear"))
    chapter()["tiny"]()


def test_a_reader_at_a_keyboard_is_warned_and_has_the_record(there, monkeypatch):
    monkeypatch.setattr(sys.modules[Study.__module__], "watched", lambda: True)
    with pytest.warns(UserWarning, match=r"(?s)changed since .*: net.*What follows is the record"):
        found = chapter(CHAPTER.replace("(4, width)", "(4, width, bias=False)"))["tiny"]()
    assert found.of("tanh", "test").shape == (2,)


def test_on_another_processor_the_same_numbers_pass_and_others_fail(there):
    head, lines = read()
    head["made"]["cpu"] = "another"
    for line in lines:
        line["first"] = [loss * (1 + 1e-6) for loss in line["first"]]
    write(head, lines, remade=True)
    chapter()["tiny"]()
    for line in lines:
        line["first"] = [loss * (1 + 1e-3) for loss in line["first"]]
    write(head, lines, remade=True)
    assert ": first is [" in failing()


def test_whole_runs_of_another_processor_are_compared_as_a_sample(there, monkeypatch):
    monkeypatch.setenv("GATES_STUDY", "full")
    head, lines = read()
    head["made"]["cpu"] = "another"
    write(head, lines, remade=True)
    chapter()["tiny"]()
