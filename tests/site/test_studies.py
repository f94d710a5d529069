"""The table of studies says what the records say.

Imports pytest, and the book's extension `studies`.
Must not need a built book.
"""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "book" / "_ext")]
studies = importlib.import_module("studies")

HEAD = {
    "study": "06_lstm-recall",
    "axes": {"cell": ["RNN", "LSTM"], "length": [10, 20, 40]},
    "rates": {"name": "lr"},
    "choose": 3,
    "report": 10,
    "made": {"cpu": "a processor"},
}


def record(folder, head, minutes=None):
    path = folder / "06_lstm-recall.jsonl"
    path.write_text("\n".join([json.dumps(head), "{}", "{}"]) + "\n")
    if minutes is not None:
        path.with_suffix(".made.json").write_text(json.dumps({"core_minutes": minutes}))
    return path


def test_a_study_is_a_row_of_arms_runs_seeds_minutes_and_processor(tmp_path):
    row = studies.row(record(tmp_path, HEAD, 12.5), "link")
    assert row == ["link", 6, 2, "3 + 10", 12.5, "a processor"]


def test_without_rates_there_are_fresh_seeds_alone_and_unknown_minutes_are_a_dash(tmp_path):
    row = studies.row(record(tmp_path, HEAD | {"rates": None}), "link")
    assert row[3:5] == [10, None] and "—" in studies.table(studies.COLUMNS, [row])


def test_a_record_without_its_head_stops_the_build(tmp_path):
    with pytest.raises(studies.ExtensionError, match=r"06_lstm-recall.jsonl: expected \['made'\]"):
        studies.row(record(tmp_path, {k: v for k, v in HEAD.items() if k != "made"}), "link")
