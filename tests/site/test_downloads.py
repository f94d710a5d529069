"""What a reader takes away: a chapter that runs where it lands, the PDF where it is up to date.

Imports nbformat, nbclient, Sphinx, tools.colab, the site's own extension, tests.site.built.
Must not import gatelib: the kernel does.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from sphinx.testing.util import SphinxTestApp

from tests.site.built import ROOT, soup  # isort: skip

import downloads

from tools import colab

pytestmark = [pytest.mark.site, pytest.mark.timeout(600)]
ADDRESS = "https://example.org/o/gates"
FIRST = ROOT / "chapters" / "01_gate.ipynb"


def cells(site: str, path: Path = FIRST) -> list[Any]:
    """The code cells of a chapter's download, under these settings of the site."""
    notebook = nbformat.reads(colab.copy(path, site), as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("site", ["repository: ''", f"repository: {ADDRESS}"])
def test_a_downloaded_chapter_runs_from_its_first_cell(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(colab, "STUDIES", tmp_path / "none")  # else a cell fetches the records
    first, imports = cells(site)[:2]
    if "pip install" in first.source.splitlines()[0]:
        assert first.source.startswith("%pip install") and ADDRESS in first.source
        first.source = "pass"  # nothing is fetched by a test
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.v4.new_notebook(cells=[first, imports])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "import" in imports.source and imports.execution_count == 2


def test_without_gatelib_a_download_says_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    source = cells("repository: ''")[0].source
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"copy of the book's repository, pip install"):
        exec(source, {})


def test_a_download_fetches_the_records_of_its_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(colab, "STUDIES", tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    for name in ("01_gate-a.jsonl", "01_gate-a.npz", "02_training-b.jsonl"):
        (tmp_path / "here" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "here" / name).write_text(name)
    site = f"repository: {ADDRESS}\nbranch: next\n"
    fetch = cells(site)[1].source
    asked: list[str] = []

    def urlretrieve(url: str, path: str) -> None:
        asked.append(url)
        shutil.copy(tmp_path / "here" / url.rsplit("/")[-1], path)

    monkeypatch.setattr("urllib.request.urlretrieve", urlretrieve)
    for _ in range(2):
        exec(fetch, {})
    folder = f"{ADDRESS}/raw/next/chapters/studies"
    assert asked == [f"{folder}/01_gate-a.jsonl", f"{folder}/01_gate-a.npz"]
    assert (tmp_path / "studies" / "01_gate-a.npz").read_text() == "01_gate-a.npz"
    assert "studies" not in cells("repository: ''")[1].source


def test_the_sites_downloads_are_these(html: Path) -> None:
    site = (ROOT / "book" / "site.yml").read_text()
    for path in sorted((ROOT / "chapters").glob("*.ipynb")):
        given = (html / "_sources" / "chapters" / path.name).read_text(encoding="utf8")
        assert json.loads(given) == json.loads(colab.copy(path, site))
        link = soup(html / "chapters" / f"{path.stem}.html").select_one(
            ".btn-download-source-button"
        )
        assert link["href"].endswith(f"_sources/chapters/{path.name}")


# ---- the book as a PDF ----------------------------------------------------------------------


def a_book(folder: Path, printed: float | None) -> Path:
    """A folder with one source of time 100, and a PDF of the given time."""
    for name, time in (("_toc.yml", 100.0), ("_build/gates.pdf", printed)):
        if time is not None:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.touch()
            os.utime(path, (time, time))
    return folder


@pytest.mark.parametrize(("printed", "offered"), [(None, False), (99.0, False), (101.0, True)])
def test_the_pdf_is_offered_while_it_is_what_the_book_says(
    tmp_path: Path, printed: float | None, offered: bool
) -> None:
    assert downloads.current_pdf(a_book(tmp_path, printed)) is offered


@pytest.mark.parametrize("printed", [False, True])
def test_the_buttons_say_what_they_give(printed: bool) -> None:
    group = {"label": "download-buttons", "buttons": [{"label": "download-pdf-button"}]}
    context = {"header_buttons": [group], "pathto": lambda name, _: f"../{name}"}
    app: Any = SimpleNamespace(config=SimpleNamespace(gates_pdf=printed))
    downloads.offer(app, "", "", context, None)
    assert group["buttons"][0]["text"] == "print this page"
    links = [button["url"] for button in group["buttons"] if "url" in button]
    assert links == (["../gates.pdf"] if printed else [])


def test_a_reproducible_build_has_the_books_year(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    (tmp_path / "_config.yml").write_text('copyright: "2026"\n')
    (tmp_path / "index.rst").write_text("Book\n====\n")
    conf = "import gates_book\ncopyright = '2026'\ndef setup(app):\n"
    conf += "    app.connect('config-inited', gates_book.keep_year, priority=900)\n"
    (tmp_path / "conf.py").write_text(conf)
    app = SphinxTestApp("html", srcdir=tmp_path)
    app.build()
    app.cleanup()
    page = (Path(app.outdir) / "index.html").read_text()
    assert "2026" in page and "1970" not in page


def test_the_site_has_that_year_too(html: Path) -> None:
    text = soup(html / "chapters" / "01_gate.html").select_one("p.copyright").get_text()
    assert "© Copyright 2026." in text
