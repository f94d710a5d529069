"""Write copies of the chapters that install gatelib first, for Colab, which does not have it.

Imports the standard library alone, so that it runs without the environment.
Must not import gatelib: the copies are made where nothing is installed.

    python tools/colab.py FOLDER     writes FOLDER/chapters/*.ipynb
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "book" / "site.yml"
SUPPORT = ROOT / "chapters" / "support"


def repository(site: str) -> str:
    """The repository's address in the text of site.yml; '' while it is unset."""
    found = re.search(r"^repository:[ \t]*[\"']?([^\"'\s#]*)", site, flags=re.M)
    return found[1].rstrip("/") if found else ""


def code_cell(name: str, source: str) -> dict[str, Any]:
    """A code cell that was not run."""
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": name,
        "metadata": {},
        "outputs": [],
        "source": source.splitlines(keepends=True),
    }


def install_cell(address: str) -> dict[str, Any]:
    """The cell that a copy starts with."""
    return code_cell("install", f'%pip install --quiet "gatelib[lab] @ git+{address}"')


def support_cells(chapter: str) -> list[dict[str, Any]]:
    """The cells that write what the chapter imports from its own folder."""
    path = SUPPORT / f"{chapter[3:]}.py"
    if not path.exists():
        return []
    lines = f"%%writefile support/{path.name}\n{path.read_text(encoding='utf-8')}".rstrip("\n")
    return [code_cell("folder", "%mkdir -p support"), code_cell("support", lines)]


def with_installation(notebook: dict[str, Any], address: str, chapter: str = "") -> dict[str, Any]:
    """A copy of the notebook that first installs gatelib and writes what else it imports."""
    before = [install_cell(address), *support_cells(chapter)]
    return notebook | {"cells": [*before, *notebook["cells"]]}


def main(folder: Path) -> int:
    """Write the copies; without an address there is nothing to install from."""
    address = repository(SITE.read_text(encoding="utf-8"))
    if not address:
        raise SystemExit("book/site.yml names no repository, so Colab could not install gatelib")
    target = folder / "chapters"
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "chapters").glob("*.ipynb")):
        chapter = json.loads(path.read_text(encoding="utf-8"))
        notebook = with_installation(chapter, address, path.stem)
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        (target / path.name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(Path(sys.argv[1])))
