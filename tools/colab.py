"""Copies of the chapters that bring what they need: for Colab, and for the site's downloads.

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
STUDIES = ROOT / "chapters" / "studies"

# While the book has no address there is nothing to install from, and a name alone might be taken.
BY_HAND = """\
# This chapter needs gatelib, which comes with the book. In a copy of the book's repository,
#     %pip install ".[lab]"
# installs it; the records of the chapters' studies lie there too, in chapters/studies.
from importlib.util import find_spec

if find_spec("gatelib") is None:
    raise ModuleNotFoundError("gatelib: in a copy of the book's repository, pip install '.[lab]'")
"""
FETCH = """\
# The records of this chapter's studies: what its tables and figures are made from.
from pathlib import Path
from urllib.request import urlretrieve

Path("studies").mkdir(exist_ok=True)
for name in {names}:
    if not Path("studies", name).exists():
        urlretrieve(f"{address}/raw/{branch}/chapters/studies/{{name}}", f"studies/{{name}}")
"""


def setting(site: str, key: str) -> str:
    """The value of a key in the text of site.yml; '' while it is unset."""
    found = re.search(rf"^{key}:[ \t]*[\"']?([^\"'\s#]*)", site, flags=re.M)
    return found[1].rstrip("/") if found else ""


def repository(site: str) -> str:
    """The repository's address in the text of site.yml; '' while it is unset."""
    return setting(site, "repository")


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
    """The cell that a copy starts with; without an address it says how to install by hand."""
    if not address:
        return code_cell("install", BY_HAND.rstrip("\n"))
    return code_cell("install", f'%pip install --quiet "gatelib[lab] @ git+{address}"')


def support_cells(chapter: str) -> list[dict[str, Any]]:
    """The cells that write what the chapter imports from its own folder."""
    path = SUPPORT / f"{chapter[3:]}.py"
    if not path.exists():
        return []
    lines = f"%%writefile support/{path.name}\n{path.read_text(encoding='utf-8')}".rstrip("\n")
    return [code_cell("folder", "%mkdir -p support"), code_cell("support", lines)]


def study_cells(chapter: str, address: str, branch: str) -> list[dict[str, Any]]:
    """The cell that fetches the records of the chapter's studies, where it has any."""
    names = sorted(path.name for path in STUDIES.glob(f"{chapter}-*.*")) if chapter else []
    if not names or not address:
        return []
    source = FETCH.format(names=names, address=address, branch=branch)
    return [code_cell("studies", source.rstrip("\n"))]


def with_installation(
    notebook: dict[str, Any], address: str, chapter: str = "", branch: str = "main"
) -> dict[str, Any]:
    """A copy of the notebook that first installs gatelib and writes what else it reads."""
    before = [install_cell(address), *support_cells(chapter)]
    before += study_cells(chapter, address, branch)
    return notebook | {"cells": [*before, *notebook["cells"]]}


def copy(path: Path, site: str) -> str:
    """The text of a chapter's copy, under the addresses in the text of site.yml."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    address, branch = setting(site, "repository"), setting(site, "branch") or "main"
    copied = with_installation(notebook, address, path.stem, branch)
    return json.dumps(copied, indent=1, ensure_ascii=False) + "\n"


def main(folder: Path) -> int:
    """Write the copies; without an address there is nothing to install from."""
    site = SITE.read_text(encoding="utf-8")
    if not repository(site):
        raise SystemExit("book/site.yml names no repository, so Colab could not install gatelib")
    target = folder / "chapters"
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "chapters").glob("*.ipynb")):
        (target / path.name).write_text(copy(path, site), encoding="utf-8")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(Path(sys.argv[1])))
