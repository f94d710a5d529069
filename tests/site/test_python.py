"""Python in the page: what is packed, and that it answers as the Python that builds the book.

Imports gatelib, Playwright through its fixtures, tests.site.pyodide, tests.strategies.
"""

from __future__ import annotations

import functools
import gzip
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gatelib import equations, workshop
from tests.site.pyodide import answers
from tests.spec.sources import drawn
from tests.strategies import ELEMENTWISE, OVER_FEATURES, gates

BUDGET = 7_000_000
POLICY = (
    "default-src 'none'; img-src 'self'; script-src 'self' 'wasm-unsafe-eval' blob:; "
    "worker-src blob:"
)
GATE = "mine: a x h_prev -> h\nz = sigmoid(a)\nh = (1 - z)*h_prev + z*x"
PAGE = """<!doctype html><html lang="en"><title>bare</title><link rel="icon" href="_static/none">
<script src="_static/python.js"></script>"""
SAID = """window.said = [];
GatesPython.onprogress = ({ stage, loaded, total }) => said.push([stage, loaded / total]); 0"""


# ---- what is packed ----------------------------------------------------------------------------


def test_python_weighs_less_than_seven_megabytes_as_a_host_sends_it(html: Path) -> None:
    scripts = list((html / "_static" / "pack").glob("*.js"))
    sent = [len(gzip.compress(path.read_bytes(), 6)) for path in scripts]
    assert len(scripts) == 7 and sum(sent) < BUDGET


def test_every_licence_is_beside_what_it_covers(html: Path) -> None:
    words = {
        "pyodide": "Mozilla Public License Version 2.0",
        "cpython": "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2",
        "emscripten": "Emscripten authors",
        "sympy": "SymPy Development Team",
        "mpmath": "Fredrik Johansson",
        "gatelib": "MIT License",
    }
    for name, said in words.items():
        path = html / "_static" / "pack" / f"{name}-LICENSE.txt"
        assert said in path.read_text(encoding="utf-8"), name


# ---- the same answers --------------------------------------------------------------------------


def test_pyodide_answers_as_this_python_does_for_every_gate_and_many_more(html: Path) -> None:
    stages = [repr(stage) for known in equations.ALL.values() for stage in known.stages]
    random = drawn(gates(tuple(ELEMENTWISE + OVER_FEATURES), names="both"), 40)
    texts = [*stages, *(repr(gate.spec) for gate in random), "", "g: a -> y\ny = sigmod(a)"]
    asked = [("answer", text) for text in texts] + [("drawing", stages[0])]
    for (call, text), (answer, _) in zip(asked, answers(asked), strict=True):
        assert answer == getattr(workshop, call)(text), text


# ---- the worker --------------------------------------------------------------------------------


class Strict(SimpleHTTPRequestHandler):
    """A host with a policy: scripts of its own, workers made of them, and nothing else."""

    def end_headers(self) -> None:
        """Say what a page may load."""
        self.send_header("Content-Security-Policy", POLICY)
        super().end_headers()

    def log_message(self, *rest: Any) -> None:
        """Stay silent."""


@pytest.fixture(scope="module")
def bare(html: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The addresses of a page that holds python.js alone, on a strict host and on disk."""
    folder = tmp_path_factory.mktemp("bare")
    shutil.copytree(html / "_static" / "pack", folder / "_static" / "pack")
    shutil.copy(html / "_static" / "python.js", folder / "_static" / "python.js")
    (folder / "_static" / "none").touch()
    (folder / "page.html").write_text(PAGE)
    handler = functools.partial(Strict, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}/page.html"
        yield {"host": host, "disk": (folder / "page.html").as_uri()}
        server.shutdown()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A tab that notes what it asks for and what goes wrong."""
    tab = browser.new_context().new_page()
    tab.faults, tab.asked = [], []
    tab.on("console", lambda said: tab.faults.append(said.text) if said.type == "error" else None)
    tab.on("pageerror", lambda error: tab.faults.append(str(error)))
    tab.on("request", lambda request: tab.asked.append(request.url))
    yield tab
    tab.context.close()


def ask(tab: Any, call: str, text: str, patience: int = 60_000) -> Any:
    """What the worker answers, or the words of its error."""
    question = "([c, t, p]) => GatesPython.ask(c, t, p).catch((error) => error.message)"
    return tab.evaluate(question, [call, text, patience])


@pytest.mark.parametrize("where", ["host", "disk"])
def test_a_worker_answers_from_a_strict_host_and_from_disk(
    bare: Any, page: Any, where: str
) -> None:
    page.goto(bare[where], wait_until="domcontentloaded")
    assert not [url for url in page.asked if "/pack/" in url], "Python loads when it is asked"
    page.evaluate(SAID)
    assert ask(page, "answer", GATE) == json.loads(workshop.answer(GATE))
    assert ask(page, "drawing", GATE) == json.loads(workshop.drawing(GATE))
    said = page.evaluate("said")
    assert [stage for stage, _ in said] == ["files"] * 7 + ["python", "ready"]
    assert [share for _, share in said] == sorted(share for _, share in said)
    origin = bare[where].removesuffix("page.html")
    assert not [url for url in page.asked if not url.startswith((origin, "blob:"))]
    assert not page.faults


def test_a_question_that_takes_too_long_is_stopped_and_the_next_is_answered(
    bare: Any, page: Any
) -> None:
    page.goto(bare["disk"], wait_until="domcontentloaded")
    ask(page, "answer", GATE)
    assert ask(page, "drawing", GATE, patience=1) == "That took too long, so it was stopped."
    assert ask(page, "answer", GATE)["name"] == "mine"
    loaded = [url for url in page.asked if "/pack/" in url]
    assert len(loaded) == len(set(loaded)) == 7, "nothing is fetched twice"


def test_who_stops_it_says_why_and_the_next_is_answered(bare: Any, page: Any) -> None:
    page.goto(bare["disk"], wait_until="domcontentloaded")
    told = page.evaluate(
        """([gate]) => { const first = GatesPython.ask("answer", gate).catch((e) => e.message);
        GatesPython.stop("Another gate came."); return first; }""",
        [GATE],
    )
    assert told == "Another gate came."
    assert ask(page, "answer", GATE)["name"] == "mine"
    assert "not a function" in ask(page, "nonsense", GATE)
    assert ask(page, "answer", GATE)["name"] == "mine"


def test_what_ends_pythons_stack_is_told_and_the_next_is_answered(bare: Any, page: Any) -> None:
    page.goto(bare["disk"], wait_until="domcontentloaded")
    deep = "g: a -> y\ny = a" + ".b" * 6000
    told = ask(page, "answer", deep)
    assert "nested too deeply" in (told if isinstance(told, str) else told["error"]["message"])
    assert ask(page, "answer", GATE)["name"] == "mine"


def test_a_file_that_is_missing_is_told_and_may_come_later(bare: Any, page: Any) -> None:
    page.goto(bare["host"], wait_until="domcontentloaded")
    page.route("**/sympy.zip.js", lambda route: route.abort())
    assert ask(page, "answer", GATE) == "sympy.zip could not be loaded"
    page.unroute("**/sympy.zip.js")
    assert ask(page, "answer", GATE)["name"] == "mine"
