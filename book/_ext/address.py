"""The repository's and the site's address, read from `book/site.yml` into Sphinx's settings.

Imports PyYAML and Sphinx. Must not import gatelib.

Jupyter Book wants the addresses in `_config.yml` in six places; here they are written once, and
what needs an address stays off while there is none.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import yaml
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError

KEYS = {"repository", "url", "branch"}


def read(path: Path) -> dict[str, str]:
    """Return the settings in `site.yml`; raise ExtensionError for anything but web addresses."""
    found = yaml.load(path.read_text(encoding="utf8"), Loader=yaml.BaseLoader) or {}
    if set(found) != KEYS:
        raise ExtensionError(f"{path.name}: expected the keys {sorted(KEYS)}, found {list(found)}")
    for key in ("repository", "url"):
        if found[key] and urlsplit(found[key]).scheme not in ("http", "https"):
            raise ExtensionError(f"{path.name}: {key} is not a web address: {found[key]!r}")
    return {
        "repository": found["repository"].rstrip("/"),
        "url": found["url"].rstrip("/") + "/" if found["url"] else "",
        "branch": found["branch"],
    }


def repository_options(site: dict[str, str]) -> dict[str, object]:
    """Return the theme's options for a book whose repository is public."""
    return {
        "repository_url": site["repository"],
        "repository_branch": site["branch"],
        "path_to_docs": "",
        "use_repository_button": True,
        "use_issues_button": True,
        "use_edit_page_button": True,
        "launch_buttons": {
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
            "notebook_interface": "jupyterlab",
        },
    }


def apply(app: Sphinx, config: Config) -> None:
    """Fill Sphinx's settings from `site.yml`."""
    site = config.gates_site
    if site["repository"]:
        config.html_theme_options.update(repository_options(site))
    config.html_baseurl = config.ogp_site_url = site["url"]
    if site["url"]:
        config.sitemap_url_scheme = "{link}"
        config.sitemap_excludes = ["search.html", "genindex.html", "py-modindex.html", "404.html"]
        config.ogp_image = site["url"] + "_static/card.png"
        config.ogp_image_alt = "Gates: an executable textbook on gating in deep learning"
    config.notfound_urls_prefix = urlsplit(site["url"]).path or "/"


def setup(app: Sphinx) -> None:
    """Read the file, and load the sitemap only where it can name absolute addresses."""
    site = read(Path(app.confdir) / "book" / "site.yml")
    app.add_config_value("gates_site", site, "html", types=dict)
    if site["url"]:
        app.setup_extension("sphinx_sitemap")
    app.connect("config-inited", apply)
