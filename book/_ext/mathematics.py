"""KaTeX at build time, with the node that pip installed.

Imports sphinxcontrib-katex and `tools/vendor.py`. Must not import gatelib.

On a busy machine the extension's own way to start node connects before node listens, fails, and
leaves node behind with the build's pipes open. Its other way, through a port, tries again.
"""

from __future__ import annotations

from functools import partial
from subprocess import DEVNULL, Popen

import vendor
from sphinx.application import Sphinx
from sphinxcontrib import katex

SECONDS = 60.0


def setup(app: Sphinx) -> None:
    """Point the extension at node, with patience."""
    katex.NODEJS_BINARY = str(vendor.node())
    katex.STARTUP_TIMEOUT = katex.RENDER_TIMEOUT = SECONDS
    katex.KaTeXServer.start_server_process = katex.KaTeXServer.start_network_socket
    katex.Popen = partial(Popen, stderr=DEVNULL)
