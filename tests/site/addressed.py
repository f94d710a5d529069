"""Write pages of the book as they are under an address, from what the last build has read.

    python tests/site/addressed.py SITE DOCTREES OUT PAGE ...

SITE is another site.yml, PAGE a source as the table of contents names it; a warning is an error.
Imports Jupyter Book and the site's own extension. Must not import gatelib.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "book" / "_ext")]

import address  # noqa: E402
from jupyter_book.sphinx import build_sphinx  # noqa: E402

OPTIONS = {"external_toc_path": str(ROOT / "_toc.yml"), "latex_individualpages": False}
"""As `jupyter-book build` gives them: other ones would have every page read again."""


def main(site: str, doctrees: str, out: str, *pages: str) -> object:
    """Write the pages; 0, or what went wrong."""
    read = address.read
    address.read = lambda path: read(Path(site))
    return build_sphinx(
        ROOT,
        out,
        path_config=ROOT / "_config.yml",
        noconfig=True,
        confoverrides=OPTIONS | {"nitpicky": True},
        doctreedir=doctrees,
        filenames=[str(ROOT / page) for page in pages],
        warningiserror=True,
        keep_going=True,
    )


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
