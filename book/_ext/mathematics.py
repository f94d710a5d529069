"""KaTeX at build time, with the node that pip installed; a formula keeps its comma.

Imports docutils, Sphinx, sphinxcontrib-katex and `tools/vendor.py`. Must not import gatelib.

On a busy machine the extension's own way to start node connects before node listens, fails, and
leaves node behind with the build's pipes open. Its other way, through a network port, tries again
but then waits 40 ms for every formula (two small packets each way, held back for an answer).

A browser may break a line on either side of a formula, whatever stands there, since KaTeX sets it
in boxes. What touches a formula is kept with it on a line that the style forbids to break, and
`<wbr>` lets the formula itself still break between its boxes, as KaTeX would have it.
"""

from __future__ import annotations

import os
import re
import socket
import time
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

import vendor
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinxcontrib import katex

SECONDS = 60.0
BOX = '<span class="base">'
BEFORE = re.compile(r"[(\[“‘]+$")  # what no line may end with
AFTER = re.compile(r"(?:[-‑]?(?:th|st|nd|rd|s)\b|[-‑]\w{1,12}\b)?[^\s\w(\[“‘–—-]*")


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


class KeepPunctuation(SphinxPostTransform):
    """Wrap a formula with the bracket before it and the punctuation or ending behind it."""

    default_priority = 210
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Go through the formulas that stand in a line."""
        for formula in list(self.document.findall(nodes.math)):
            keep(formula)


def keep(formula: nodes.math) -> None:
    """Wrap one formula with what touches it, and leave the rest of the text outside."""
    parent, place = formula.parent, formula.parent.index(formula)
    around = [parent[n] if 0 <= n < len(parent) else None for n in (place - 1, place + 1)]
    before, after = (node.astext() if isinstance(node, nodes.Text) else "" for node in around)
    opening, closing = BEFORE.search(before), AFTER.match(after)
    start, end = opening[0] if opening else "", closing[0] if closing else ""
    if not start and not end:
        return
    kept = nodes.inline("", "", classes=["kept"])
    parent[place] = kept
    kept += [nodes.Text(start), formula, nodes.Text(end)]
    if end:
        parent[place + 1] = nodes.Text(after[len(end) :])
    if start:
        parent[place - 1] = nodes.Text(before[: -len(start)])


def breakable(html: str) -> str:
    """Return a formula's HTML with a place to break before each of its boxes but the first."""
    first, *others = html.split(BOX)
    return (BOX.join([first, ""]) + f"<wbr/>{BOX}".join(others)) if others else html


def visit(writer: Any, node: nodes.math) -> None:
    """Write a formula that stands in a line."""
    start = len(writer.body)
    try:
        katex.html_visit_math(writer, node)
    finally:
        if "kept" in node.parent.get("classes", []):
            writer.body[start:] = [breakable("".join(writer.body[start:]))]


def setup(app: Sphinx) -> None:
    """Point the extension at node, with patience, and keep commas where they belong."""
    app.add_post_transform(KeepPunctuation)
    app.registry.html_inline_math_renderers["katex"] = (visit, None)
    katex.NODEJS_BINARY = str(vendor.node())
    katex.STARTUP_TIMEOUT = katex.RENDER_TIMEOUT = SECONDS
    katex.Popen = partial(Popen, stderr=DEVNULL)
    if os.name == "posix":
        katex.KaTeXServer.start_server_process = staticmethod(start_patiently)
