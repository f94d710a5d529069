"""The built book: where it is, when it is stale, and its pages, parsed once.

Imports BeautifulSoup; puts `tools` and the site's own extension on the path of modules.
Must not import gatelib.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "book" / "_ext")]

SOURCES = ("_config.yml", "_toc.yml", "book/**/*", "chapters/*.ipynb", "gatelib/**/*.py")


def build(root: Path) -> None:
    """Build the book below `root` with the plain command, warnings being errors."""
    command = [Path(sys.executable).with_name("jupyter-book"), "build", "."]
    done = subprocess.run(
        [*map(str, command), "-W", "-n", "--keep-going"],
        cwd=root,
        env=os.environ | {"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def is_stale() -> bool:
    """Tell whether a source is younger than the last build."""
    mark = HTML / "objects.inv"
    sources = (p for pattern in SOURCES for p in ROOT.glob(pattern) if "__pycache__" not in p.parts)
    return not mark.exists() or max(p.stat().st_mtime for p in sources) > mark.stat().st_mtime


@cache
def soup(path: Path) -> BeautifulSoup:
    """A page, parsed once."""
    return BeautifulSoup(path.read_text(encoding="utf8"), "html.parser")


@cache
def anchors(path: Path) -> set[str]:
    """The places of a page that a link can name, found in one pass."""
    return {str(tag["id"]) for tag in soup(path).find_all(id=True)}


def pages(html: Path) -> list[Path]:
    """Every page of the site but the redirect in its root."""
    found = (p for p in sorted(html.rglob("*.html")) if "_static" not in p.parts)
    return [path for path in found if path != html / "index.html"]
