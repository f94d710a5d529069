"""KaTeX at build time, with the node that pip installed.

Imports sphinxcontrib-katex and `tools/vendor.py`. Must not import gatelib.

On a busy machine the extension's own way to start node connects before node listens, fails, and
leaves node behind with the build's pipes open. Its other way, through a network port, tries again
but then waits 40 ms for every formula (two small packets each way, held back for an answer).
"""

from __future__ import annotations

import os
import socket
import time
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

import vendor
from sphinx.application import Sphinx
from sphinxcontrib import katex

SECONDS = 60.0


def start_patiently(rundir: Path, timeout: float) -> tuple[Popen[bytes], socket.socket]:
    """Start node and connect to its Unix socket, as often as it takes until node listens."""
    path, end = rundir / "katex.sock", time.monotonic() + timeout
    command = katex.KaTeXServer.build_command(socket=path)
    process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, cwd=rundir)
    while time.monotonic() < end and process.poll() is None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            time.sleep(0.01)
        else:
            return process, connection
    process.kill()
    raise katex.KaTeXServer.timeout_error(timeout)


def setup(app: Sphinx) -> None:
    """Point the extension at node, with patience."""
    katex.NODEJS_BINARY = str(vendor.node())
    katex.STARTUP_TIMEOUT = katex.RENDER_TIMEOUT = SECONDS
    katex.Popen = partial(Popen, stderr=DEVNULL)
    if os.name == "posix":
        katex.KaTeXServer.start_server_process = staticmethod(start_patiently)
