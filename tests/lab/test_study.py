"""A study: its record is made, read, and used; what fails is recorded, what can't be is refused.

Imports torch, gatelib.lab and tests.lab.tiny_study.
Must not make a record for each test: one is made, and copied.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from gatelib.lab import StaleRecord, Study, recorded
from gatelib.lab.runs.member import Refused, attempt
from gatelib.lab.runs.store import digest
from tests.lab import tiny_study
from tests.lab.tiny_study import CHAPTER, LIBRARY, NAME, chapter, files, library, read, write

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def main():
    """The program that runs these tests is `__main__` again after them."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before


@pytest.fixture(scope="module")
def made(tmp_path_factory):
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
def making(tmp_path, monkeypatch):
    """An empty folder to make records in, by one worker."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATES_STUDY", "run")
    monkeypatch.setenv("WORKERS", "1")
    library()
    return tmp_path


# --- what a record holds ----------------------------------------------------------------------


def test_a_study_that_was_made_passes_and_gives_its_numbers(there):
    found = chapter()["tiny"]()
    assert found.arms == ["tanh", "relu"] and found.of("tanh", "test").shape == (2,)
    assert all(found.best(arm) in found.tried(arm) for arm in found.arms)
    assert "06_lstm-tiny" in found._repr_markdown_() and "core-minutes" in found._repr_markdown_()


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


def failing(text=CHAPTER, **options):
    with pytest.raises(StaleRecord) as caught:
        chapter(text)["tiny"](**options)
    message = str(caught.value)
    assert message.startswith(f"study {NAME}:\n- ") and "`make study CHAPTER=06`" in message
    return message


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
    name = next(key for key in weights if key.endswith("0.0.weight"))
    weights[name] = -weights[name]
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


# --- what fails, and what is refused ----------------------------------------------------------

TRAINED = "    history = train("


def tried(text, monkeypatch, folder, member=("relu", 0.1, 101), **options):
    """What a worker would give back of one run, in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(Study, "check", lambda self, mode: None)
    library()
    given = {"seconds": 60.0, "keep": True} | options
    return attempt(chapter(text)["tiny"]().payload, member, **given)


def test_a_run_that_fails_or_kills_its_process_is_recorded_and_shown(making):
    fails = "    if (kind, seed) == (nn.Tanh, 101): raise ValueError('no such cell')\n"
    dies = "    if (kind, seed) == (nn.ReLU, 101): os._exit(3)\n"
    text = CHAPTER.replace(TRAINED, fails + dies + TRAINED)
    message = failing(text)
    assert message.count("failed: ") == 2
    assert "/101 failed: ValueError: no such cell" in message
    assert "/101 failed: its process died, or it hung" in message
    assert sum("failed" in line for line in read()[1]) == 2
    found = chapter(text)["tiny"](may_fail=["tanh", "relu"])
    assert "(2 failed)" in found._repr_markdown_() and math.isnan(found.of("relu", "test")[1])
    with pytest.raises(ValueError, match="may_fail: expected some of the arms"):
        chapter(text)["tiny"](may_fail=["elu"])


def test_a_run_that_trains_for_too_long_is_recorded(tmp_path, monkeypatch):
    text = CHAPTER.replace("STEPS = 12", "STEPS = 10**7")
    outcome = tried(text, monkeypatch, tmp_path, seconds=0.2)
    assert outcome.line["failed"] == "TimeoutError: still training after 0.2 s of processor time"
    assert outcome.seconds < 5


def test_a_run_that_diverges_is_a_result(tmp_path, monkeypatch):
    text = CHAPTER.replace("lr=lr,", "lr=1e30, optimizer='sgd',")
    line = tried(text, monkeypatch, tmp_path).line
    assert line["steps"] < 12 and None in line["first"] and "failed" not in line


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("train(model, DATA, steps=STEPS, lr=lr, seed=seed, batch_size=16)", "3.0", "saw no loss"),
        ('return {"loss"', 'return [1] or {"loss"', "expected {name: number"),
        ('"valid":', '"seed":', "names than the record's own, got 'seed'"),
        ('"valid": acc', '"valid": [[1]] or acc', "curves of one dimension"),
        ('"valid": acc', '"valid": time or acc', "a number, a curve, a History or a text"),
        ('"valid": acc', '"extra": time.process_time(), "valid": acc', "extra comes out differ"),
        ('"valid": acc', '"extra": history.seconds, "valid": acc', "extra comes out differently"),
    ],
)
def test_what_cannot_be_replayed_is_refused(tmp_path, monkeypatch, old, new, says):
    assert old in CHAPTER
    with pytest.raises(Refused, match="run: ") as caught:
        tried(CHAPTER.replace(old, new), monkeypatch, tmp_path)
    assert says in str(caught.value)


def test_what_is_refused_ends_the_making_at_once(making):
    text = CHAPTER.replace('return {"loss"', 'return [1] or {"loss"')
    with pytest.raises(Refused, match="run: expected"):
        chapter(text)["tiny"]()
    assert not Path(f"studies/{NAME}.jsonl").exists()


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("1.0", set()),
        ("history.loss", {"0.losses"}),
        ("history.gradient_norms.max()", {"0.losses", "0.norms"}),
    ],
)
def test_losses_and_gradient_norms_are_kept_where_a_number_needs_them(
    tmp_path, monkeypatch, value, kept
):
    text = CHAPTER.replace('"valid": acc', f'"extra": {value}, "valid": acc')
    weights = tried(text, monkeypatch, tmp_path).weights
    assert {"0.losses", "0.norms"} & set(weights) == kept


def test_weights_are_halved_where_the_scores_survive_it(tmp_path, monkeypatch):
    kept = tried(CHAPTER, monkeypatch, tmp_path).weights
    assert kept["0.0.0.weight"].dtype == np.float16
    exact = CHAPTER.replace('"valid": acc', '"sum": model[0].weight.sum(), "valid": acc')
    assert tried(exact, monkeypatch, tmp_path).weights["0.0.0.weight"].dtype == np.float32


def test_models_trained_together_are_seen_and_kept(tmp_path, monkeypatch):
    old = "train(model, DATA, steps=STEPS, lr=lr, seed=seed, batch_size=16)"
    text = CHAPTER.replace(
        old,
        "fleet.train_together([model, net(6, kind)], DATA, steps=STEPS,\n"
        "        rates=[lr, lr], seed=seed)[0]",
    )
    text = text.replace("from gatelib.lab import acc", "from gatelib.lab import fleet, acc")
    outcome = tried(text, monkeypatch, tmp_path)
    assert len(outcome.line["first"]) == 5 and outcome.line["loss"][0] is not None
    assert {"0.0.0.weight", "0.1.0.weight"} <= set(outcome.weights)


# --- making it --------------------------------------------------------------------------------


def started(folder, workers, log):
    """The tiny study with longer runs, made by a process of its own."""
    variables = {"GATES_STUDY": "run", "WORKERS": str(workers), "PYTHONPATH": str(ROOT)}
    with open(folder / log, "w") as file:
        return subprocess.Popen(
            [sys.executable, tiny_study.__file__, "STEPS = 400"],
            cwd=folder,
            env=os.environ | variables,
            stdout=file,
            stderr=file,
        )


def noted(folder):
    journal = folder / "studies" / f"{NAME}.journal"
    return max(len(journal.read_text().splitlines()) - 1, 0) if journal.exists() else 0


def interrupted(folder, workers, after):
    """Start the making, press Ctrl-C once `after` runs have ended; how many were kept."""
    making = started(folder, workers, f"log{after}")
    while noted(folder) < after and making.poll() is None:
        time.sleep(0.02)
    making.send_signal(signal.SIGINT)
    assert making.wait(timeout=60) != 0
    assert "runs are kept" in (folder / f"log{after}").read_text()
    assert not (folder / "studies" / f"{NAME}.jsonl").exists()
    return noted(folder)


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_interrupted_twice_with_two_workers_gives_the_bytes_of_one_run_with_one(
    tmp_path, monkeypatch
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    first = interrupted(broken, 2, after=3)
    second = interrupted(broken, 2, after=first + 3)
    assert 3 <= first < second < 20
    assert started(whole, 1, "log").wait() == started(broken, 2, "log").wait() == 0
    found = {}
    for folder in (whole, broken):
        monkeypatch.chdir(folder)
        found[folder.name] = files()
    assert found["whole"] == found["broken"]


def test_a_new_arm_leaves_the_runs_of_the_others_alone(there, monkeypatch):
    monkeypatch.setenv("GATES_STUDY", "run")
    before, spent = {str(line): line for line in read()[1]}, recorded(NAME).minutes
    text = CHAPTER.replace('"relu": nn.ReLU', '"relu": nn.ReLU, "elu": nn.ELU')
    assert "axes: {" in failing_without_making(monkeypatch, text)
    monkeypatch.setenv("GATES_STUDY", "run")
    found = chapter(text)["tiny"]()
    assert before.keys() < {str(line) for line in found.lines.values()}
    assert found.arms == ["tanh", "relu", "elu"] and found.minutes > spent


def failing_without_making(monkeypatch, text):
    monkeypatch.delenv("GATES_STUDY")
    return failing(text)


def test_code_that_gives_the_same_numbers_is_adopted(there, monkeypatch):
    text = CHAPTER.replace("def net(", "def small_net(").replace(
        "net(6, kind)", "small_net(6, kind)"
    )
    message = failing(text)
    assert "net" in message and "`make study CHAPTER=06 ADOPT=1` may keep the runs" in message
    before = read()[1]
    monkeypatch.setenv("GATES_STUDY", "adopt")
    chapter(text)["tiny"]()
    monkeypatch.delenv("GATES_STUDY")
    chapter(text)["tiny"]()
    assert read()[1] == before and "small_net" in read()[0]["code"]


def test_code_that_gives_other_numbers_is_not_adopted(there, monkeypatch):
    before = files()
    monkeypatch.setenv("GATES_STUDY", "adopt")
    with pytest.raises(Refused, match="another time, other numbers"):
        chapter(CHAPTER.replace("(4, width)", "(4, width, bias=False)"))["tiny"]()
    assert files() == before


def test_a_damaged_record_is_not_made_over(there, monkeypatch):
    monkeypatch.setenv("GATES_STUDY", "run")
    write(*damage(EDITS["a score"]), remade=False)
    with pytest.raises(Refused, match="git restore"):
        chapter()["tiny"]()
