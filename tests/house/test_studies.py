"""The records of the chapters' studies: whose they are, how large, and who reads them.

Imports nbformat, tools.
Must not import gatelib: a record is text, and is checked by its chapter.
"""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

from tools import notebooks, stages, studies

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "chapters" / "studies"
LIMIT = 400_000
CHAPTERS = [path.stem for path in notebooks.find(())]


def made_in(chapter: str) -> list[str]:
    path = ROOT / "chapters" / f"{chapter}.ipynb"
    cells = notebooks.code_cells(nbformat.read(path, as_version=4))
    return [name for cell in cells for name in studies.makes(cell.source)]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_records_of_a_chapter_are_small(chapter):
    assert sum(path.stat().st_size for path in RECORDS.glob(f"{chapter}-*")) < LIMIT


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_makes_the_studies_that_are_kept_for_it_and_no_others(chapter):
    made = made_in(chapter)
    assert all(name.startswith(f"{chapter}-") for name in made), "a study bears its chapter's name"
    kept = {path.name.removesuffix(".jsonl") for path in RECORDS.glob(f"{chapter}-*.jsonl")}
    assert kept <= set(made)


def test_every_file_of_a_record_belongs_to_a_chapter():
    for path in RECORDS.glob("*.jsonl") if RECORDS.exists() else ():
        head = json.loads(path.read_text().partition("\n")[0])
        assert f"{head['study']}.jsonl" == path.name
        assert path.name.startswith(tuple(f"{chapter}-" for chapter in CHAPTERS))


def test_a_chapter_and_the_book_read_the_records():
    found = stages.all_stages()
    assert "chapters/studies/06_lstm-*.*" in found["06_lstm"].inputs
    assert "chapters/studies/*.json*" in found["book"].inputs


def test_a_chapter_that_replays_everything_is_another_stage(monkeypatch):
    stage = stages.all_stages()["01_gate"]
    daily = stage.key()
    monkeypatch.setenv("GATES_STUDY", "full")
    assert stage.key() != daily


def test_a_study_is_found_by_its_call():
    source = 'a = study("06_lstm-a", run, cell=cells)\nrecorded("06_lstm-b")\n"study(x)"'
    assert studies.makes(source) == ["06_lstm-a"]
    assert studies.makes("%time study('x')") == [] and studies.makes("study(name, run)") == ["?"]


def test_a_cell_that_fails_stops_no_study_after_it(monkeypatch, capsys):
    cells = ["1 / 0", "def study(name): print('made')", 'study("06_lstm-a")', "raise OSError"]
    assert studies.run(cells) == 0
    said = capsys.readouterr().out
    assert "cell 1, left behind: ZeroDivisionError" in said and "06_lstm-a: done" in said
    assert studies.run(['study("06_lstm-a", 1)']) == 1
