"""The workshop's page as its tests open it: from a host under its content policy, or from disk.

Imports the site's own extension, tests.site.built, tests.site.conftest. Must not import gatelib.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.site.built import HTML  # isort: skip
from tests.site.conftest import Server  # isort: skip

import policy

PAGE = "book/workshop.html"
CHECKS = Path(__file__).with_suffix("").with_name("workshop.js").read_text(encoding="utf8")
PATIENCE = 180_000  # milliseconds that a busy machine may take for what takes seconds


class StrictServer(Server):
    """Serves the site with the workshop's content policy on every page."""

    def end_headers(self) -> None:
        """Add the policy of the page that is asked for."""
        path = Path(self.translate_path(self.path))
        if path.suffix == ".html" and path.is_file():
            header = policy.of_page(path.read_text(encoding="utf8"))
            self.send_header("Content-Security-Policy", header)
        super().end_headers()


@contextmanager
def strict_host() -> Iterator[str]:
    """The address of a server that sends the policy."""

    def handler(*args: Any) -> StrictServer:
        return StrictServer(*args, directory=str(HTML))

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Workshop:
    """The page in a tab, with everything that it asked for and complained about."""

    def __init__(self, tab: Any, origin: str, gate: str = "") -> None:
        self.tab, self.origin = tab, origin
        self.errors: list[str] = []
        self.asked: list[str] = []
        tab.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        tab.on("request", lambda request: self.asked.append(request.url))
        self.visit(gate)

    def visit(self, gate: str = "") -> None:
        """Open the page, with a gate in its address if there is one."""
        self.tab.goto("about:blank")
        fragment = f"#gate={quote(gate, safe='')}" if gate else ""
        self.tab.goto(self.origin + PAGE + fragment, wait_until="load", timeout=PATIENCE)
        self.settle()

    def settle(self, kind: str = "") -> str:
        """Wait until the last gate is shown or refused; return what is said of it."""
        state = "document.querySelector('#workshop-status').dataset.kind"
        self.wait(f"GatesWorkshop.idle && ['{kind}' || {state}].includes({state})")
        return str(self.tab.inner_text("#workshop-status"))

    def wait(self, condition: str) -> None:
        """Wait for a condition; the browser's own way evaluates text, which the policy bars."""
        end = time.monotonic() + PATIENCE / 1000
        while not self.tab.evaluate(condition):
            assert time.monotonic() < end, f"waited in vain for {condition}"
            self.tab.wait_for_timeout(20)

    def type(self, text: str, kind: str = "") -> str:
        """Put a text into the editor as a reader would; return what is said of it."""
        area = "document.querySelector('#workshop-text')"
        put = f"(text) => {{ {area}.value = text; {area}.dispatchEvent(new Event('input')); }}"
        self.tab.evaluate(put, text)  # a key for each letter of 10,000 lines would take minutes
        return self.settle(kind)

    def strangers(self) -> set[str]:
        """What was asked of another host."""
        local = (self.origin, "data:", "blob:", "about:")
        return {url for url in self.asked if not url.startswith(local)}

    def reading(self, part: str) -> str:
        """The line below a figure."""
        return str(self.tab.inner_text(f".workshop-{part} .explorer-reading"))

    def check(self, call: str) -> Any:
        """What a function of workshop.js says."""
        return self.tab.evaluate(f"{CHECKS}\nChecks.{call}")

    def code(self, name: str) -> str:
        """The source of a language, or of the layer."""
        return str(self.tab.locator(f".workshop-{name} pre").text_content())


@dataclass
class Used:
    """What the browser's page processes used: seconds of processor, megabytes at the end."""

    seconds: float = 0.0
    megabytes: float = 0.0


@contextmanager
def renderers(tab: Any) -> Iterator[Used]:
    """Count what is used in between."""
    session = tab.context.browser.new_browser_cdp_session()

    def seconds() -> dict[int, float]:
        found = session.send("SystemInfo.getProcessInfo")["processInfo"]
        return {p["id"]: p["cpuTime"] for p in found if p["type"] == "renderer"}

    before, used = seconds(), Used()
    yield used
    after = seconds()
    spent = {pid: now - before.get(pid, 0.0) for pid, now in after.items()}
    busiest = max(spent, key=lambda pid: spent[pid])
    used.seconds = round(spent[busiest], 3)
    memory = Path(f"/proc/{busiest}/status")
    if memory.exists():
        found = re.search(r"VmRSS:\s*(\d+) kB", memory.read_text())
        used.megabytes = round(int(found[1]) / 1000) if found else 0
