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


def repository(site: str) -> str:
    """The repository's address in the text of site.yml; '' while it is unset."""
    found = re.search(r"^repository:[ \t]*[\"']?([^\"'\s#]*)", site, flags=re.M)
    return found[1].rstrip("/") if found else ""


def install_cell(address: str) -> dict[str, Any]:
    """The cell that a copy starts with."""
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": "install",
        "metadata": {},
        "outputs": [],
        "source": [f'%pip install --quiet "gatelib[lab] @ git+{address}"'],
    }


def with_installation(notebook: dict[str, Any], address: str) -> dict[str, Any]:
    """A copy of the notebook that installs gatelib from the address before anything else."""
    return notebook | {"cells": [install_cell(address), *notebook["cells"]]}


def main(folder: Path) -> int:
    """Write the copies; without an address there is nothing to install from."""
    address = repository(SITE.read_text(encoding="utf-8"))
    if not address:
        raise SystemExit("book/site.yml names no repository, so Colab could not install gatelib")
    target = folder / "chapters"
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "chapters").glob("*.ipynb")):
        notebook = with_installation(json.loads(path.read_text(encoding="utf-8")), address)
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        (target / path.name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(Path(sys.argv[1])))
