"""Make `.venv` from the lock, or heal it: one of another clone, place, Python or lock isn't used.

Imports the standard library.
Must not import anything that it installs.

`.venv/.ready` says where, with which Python and from which lock the environment was made. While
that is so, a run returns at once.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READ = ("requirements.lock", "pyproject.toml")
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
COMMANDS = (
    (*PIP, "-r", "requirements.lock"),
    (*PIP, "--no-deps", "--no-build-isolation", "-e", "."),
)
FAILED = """The packages could not be installed; pip's reason stands above. The network is needed
for the first installation, and again when requirements.lock names another version."""


def python_of(environment: Path) -> Path:
    """The Python of a virtual environment."""
    return environment / "bin" / "python"


def version_of(environment: Path) -> str:
    """The Python version, as in 3.12, of an environment with pip; "" for one that doesn't run."""
    told = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    try:
        command = [str(python_of(environment)), "-c", told]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def state(root: Path) -> dict[str, str]:
    """What an environment of this clone is made of: its place, its Python, its lock."""
    read = b"\0".join((root / name).read_bytes() for name in READ)
    return {
        "place": str((root / ".venv").resolve()),
        "python": "{}.{}".format(*sys.version_info[:2]),
        "lock": hashlib.sha256(read).hexdigest(),
    }


def written(ready: Path) -> dict[str, str]:
    """What `.ready` says; nothing where it is missing."""
    lines = ready.read_text().splitlines() if ready.exists() else []
    return dict(line.split(" ", 1) for line in lines if " " in line)


def announcement(was: dict[str, str], now: dict[str, str]) -> str:
    """One line that says why something is installed."""
    if was.get("python", now["python"]) != now["python"]:
        return f"Making .venv anew with Python {now['python']} (some minutes, once)"
    if was and was | {"place": now["place"]} == now:
        return "This clone was copied or moved: its .venv is set to use the gatelib that is here"
    return "Installing the locked packages into .venv (some minutes, once)"


def install(root: Path) -> int:
    """Bring `.venv` to what this clone asks for; return an exit status."""
    if (root / ".venv").is_symlink():  # another clone's, which looks after it
        return 0
    ready, now = root / ".venv" / ".ready", state(root)
    was, found = written(ready), version_of(root / ".venv")
    if was == now and found == now["python"]:
        return 0
    print(announcement(was, now), flush=True)
    ready.unlink(missing_ok=True)
    if found != now["python"]:
        venv.create(root / ".venv", clear=True, with_pip=True)
    for command in COMMANDS:
        done = subprocess.run([str(python_of(root / ".venv")), *command], cwd=root)
        if done.returncode:
            print(FAILED, file=sys.stderr)
            return done.returncode
    ready.write_text("".join(f"{name} {value}\n" for name, value in now.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(install(ROOT))
