"""A study is made: what fails is recorded, what can't be replayed is refused, Ctrl-C keeps runs.

Imports NumPy, gatelib.lab and tests.lab.tiny_study.
Must not need a second core: one worker gives what two give.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gatelib.lab import Study, recorded
from gatelib.lab.runs.member import Refused, attempt
from tests.lab import tiny_study
from tests.lab.tiny_study import CHAPTER, NAME, chapter, failing, files, library, read, write

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("main")


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


def test_weights_of_some_arms_are_kept(there, monkeypatch):
    monkeypatch.setenv("GATES_STUDY", "run")
    Path(f"studies/{NAME}.jsonl").unlink()
    found = chapter()["tiny"](keep=["relu"])
    assert not found.model("relu").training
    with pytest.raises(ValueError, match="arm: expected one whose weights are kept, got 'tanh'"):
        found.model("tanh")
    monkeypatch.delenv("GATES_STUDY")
    assert "no weights are kept of it" in failing()
    with pytest.raises(ValueError, match="keep: expected some of the arms"):
        chapter()["tiny"](keep=["elu"])


def test_other_scores_are_not_adopted_though_no_weights_are_kept(there, monkeypatch):
    monkeypatch.setenv("GATES_STUDY", "run")
    chapter()["tiny"](keep=False)
    before = files()
    monkeypatch.setenv("GATES_STUDY", "adopt")
    with pytest.raises(Refused, match="another time, other numbers"):
        chapter(CHAPTER.replace('"test": measured', '"test": measured / 2'))["tiny"](keep=False)
    assert files() == before


def test_a_damaged_record_is_not_made_over(there, monkeypatch):
    monkeypatch.setenv("GATES_STUDY", "run")
    head, lines = read()
    lines[0]["test"] = 0.99
    write(head, lines, remade=False)
    with pytest.raises(Refused, match="git restore"):
        chapter()["tiny"]()
