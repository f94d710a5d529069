"""The book's few lines of Sphinx: one extension that loads the others.

Imports PyYAML, Sphinx and the modules beside it. Must not import gatelib or torch.

It fetches the web assets and packs Python where they are missing, so that the plain
`jupyter-book build .` works.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from sphinx.application import Sphinx
from sphinx.config import Config

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parents[1] / "tools")]

import address  # noqa: E402
import circuits  # noqa: E402
import claims  # noqa: E402
import counts  # noqa: E402
import docstrings  # noqa: E402
import downloads  # noqa: E402
import explorers  # noqa: E402
import folds  # noqa: E402
import glossary  # noqa: E402
import guide  # noqa: E402
import library  # noqa: E402
import mathematics  # noqa: E402
import numbering  # noqa: E402
import open_gate  # noqa: E402
import pictures  # noqa: E402
import records  # noqa: E402
import sections  # noqa: E402
import studies  # noqa: E402
import vendor  # noqa: E402
import workshop_page  # noqa: E402

from tools import pack  # noqa: E402

MODULES = (
    address,
    numbering,
    claims,
    records,
    circuits,
    explorers,
    docstrings,
    library,
    downloads,
    folds,
    mathematics,
    pictures,
    glossary,
    guide,
    counts,
    sections,
    studies,
    open_gate,
    workshop_page,
)


def keep_year(app: Sphinx, config: Config) -> None:
    """Write the book's year, where a reproducible build has Sphinx write the epoch's."""
    text = (Path(app.confdir) / "_config.yml").read_text(encoding="utf8")
    year = yaml.load(text, Loader=yaml.BaseLoader)["copyright"]
    config.copyright = config.project_copyright = year


def share_visitors(app: Sphinx) -> None:
    """Let the one-page build, which the PDF is printed from, draw what the HTML build draws."""
    handlers = app.registry.translation_handlers
    if "singlehtml" in handlers:
        handlers["singlehtml"] = {**handlers.get("html", {}), **handlers["singlehtml"]}


def setup(app: Sphinx) -> dict[str, bool]:
    """Fetch the assets and load the other modules."""
    vendor.ensure()
    pack.ensure()
    for module in MODULES:
        module.setup(app)
    app.connect("config-inited", keep_year, priority=900)
    app.connect("builder-inited", share_visitors)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
