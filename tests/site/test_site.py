"""The built book, as files and in a headless Chromium.

Imports the site's own extension, BeautifulSoup and Playwright. Must not import gatelib.

The browser is CHROMIUM from the environment, a system one, or Playwright's own. Without one the
browser's tests are skipped, and pytest's summary says so.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "book" / "_ext")]

import address  # noqa: E402
import claims  # noqa: E402
import records  # noqa: E402
import vendor  # noqa: E402
from sphinx.errors import ExtensionError  # noqa: E402

pytestmark = [pytest.mark.site, pytest.mark.timeout(600)]
SOURCES = ("_config.yml", "_toc.yml", "book/**/*", "chapters/*.ipynb", "gatelib/**/*.py")
IDS = {"A": 17, "B": 9, "C": 9, "D": 6, "E": 7}
CHAPTERS = sorted(path.stem for path in (ROOT / "chapters").glob("*.ipynb"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NO_BROWSER = "NO BROWSER: the site was not looked at; install Chromium or set CHROMIUM to its path"


# ---- the built site -------------------------------------------------------------------------


def build(root: Path) -> None:
    """Build the book below `root` with the plain command, warnings being errors."""
    command = [Path(sys.executable).with_name("jupyter-book"), "build", "."]
    done = subprocess.run(
        [*map(str, command), "-W", "-n", "--keep-going"],
        cwd=root,
        env=os.environ | {"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def is_stale() -> bool:
    """Tell whether a source is younger than the last build."""
    mark = HTML / "objects.inv"
    sources = (p for pattern in SOURCES for p in ROOT.glob(pattern) if "__pycache__" not in p.parts)
    return not mark.exists() or max(p.stat().st_mtime for p in sources) > mark.stat().st_mtime


@pytest.fixture(scope="session")
def html() -> Path:
    """The built site; built now where it is missing or older than its sources."""
    if is_stale():
        build(ROOT)
    return HTML


@cache
def soup(path: Path) -> BeautifulSoup:
    """A page, parsed once."""
    return BeautifulSoup(path.read_text(encoding="utf8"), "html.parser")


def pages(html: Path) -> list[Path]:
    """Every page of the site but the redirect in its root."""
    found = (p for p in sorted(html.rglob("*.html")) if "_static" not in p.parts)
    return [path for path in found if path != html / "index.html"]


def test_the_book_has_its_pages(html: Path) -> None:
    names = {path.relative_to(html).as_posix() for path in pages(html)}
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]
    extra = ["404", "search", "genindex"]
    assert {f"{name}.html" for name in [*files, *extra]} <= names


def test_a_chapter_keeps_the_number_of_its_file(html: Path) -> None:
    for stem in CHAPTERS:
        title = soup(html / "chapters" / f"{stem}.html").select_one("article h1").get_text()
        assert title.startswith(f"{int(stem[:2])}. ")


def test_katex_set_every_equation(html: Path) -> None:
    wrong = [p.name for p in pages(html) if "katex-error" in p.read_text(encoding="utf8")]
    unset = [p.name for p in pages(html) for m in soup(p).select(".math") if not m.select(".katex")]
    assert wrong == unset == []
    assert soup(html / "book" / "notation.html").select(".katex")


def test_every_picture_says_what_it_shows(html: Path) -> None:
    silent = [
        f"{path.name}: {image.get('src')}"
        for path in pages(html)
        for image in soup(path).select("article img, article svg[role=img]")
        if not (image.get("alt") or image.get("aria-label") or image.find("title"))
    ]
    assert silent == []


def test_every_figure_of_a_chapter_has_a_number_and_a_caption(html: Path) -> None:
    for stem in CHAPTERS:
        for figure in soup(html / "chapters" / f"{stem}.html").select("article figure"):
            assert figure.select_one(".caption-number"), figure
            assert len(figure.select_one(".caption-text").get_text()) > 10


def target(html: Path, page: Path, link: str) -> tuple[Path, str]:
    """The file and the fragment that a link inside the site names."""
    base = "/" + page.relative_to(html).as_posix()
    parts = urlsplit(urljoin(base, link))
    path = html / unquote(parts.path).lstrip("/")
    return (path / "index.html" if path.is_dir() else path), unquote(parts.fragment)


def broken(html: Path, page: Path) -> Iterator[str]:
    """Links of a page that lead nowhere inside the site."""
    for tag in soup(page).select("[href], [src]"):
        link = tag.get("href") or tag.get("src") or ""
        if urlsplit(link).scheme:
            continue
        path, fragment = target(html, page, link)
        if not path.is_file() or (not link and tag.name == "a"):
            yield f"{page.name}: {link!r}"
        elif fragment and path.suffix == ".html" and not soup(path).find(id=fragment):
            yield f"{page.name}: {link!r} has no such part"


def test_links_inside_the_book_resolve(html: Path) -> None:
    assert [link for page in pages(html) for link in broken(html, page)] == []


def test_without_an_address_nothing_on_a_page_needs_one(html: Path) -> None:
    if address.read(ROOT / "book" / "site.yml")["repository"]:
        pytest.skip("the address is set")
    for page in pages(html):
        text = page.read_text(encoding="utf8")
        assert "mybinder.org" not in text and "colab.research" not in text
        assert not soup(page).select('meta[property="og:url"][content=""], .btn-source-edit-button')
    assert not (html / "sitemap.xml").exists()


@pytest.mark.slow
def test_with_an_address_every_button_names_it(html: Path, tmp_path: Path) -> None:
    for name in ("_config.yml", "_toc.yml", "book", "chapters", "gatelib", "tools", "_vendor"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    site = (
        "repository: https://github.com/someone/gates\nurl: https://gates.test/book\nbranch: main\n"
    )
    (tmp_path / "book" / "site.yml").write_text(site)
    build(tmp_path)
    built = tmp_path / "_build" / "html"
    links = {a["href"] for a in soup(built / "chapters" / "06_lstm.html").select("a[href]")}
    wanted = ("mybinder.org/v2/gh/someone/gates/main", "colab.research.google.com", "/issues/new")
    wanted += ("github.com/someone/gates/edit/main/chapters/06_lstm.ipynb",)
    assert [part for part in wanted if not any(part in link for link in links)] == []
    page = soup(built / "chapters" / "06_lstm.html")
    og = page.select_one('meta[property="og:url"]')["content"]
    assert og == "https://gates.test/book/chapters/06_lstm.html"
    assert (
        "<loc>https://gates.test/book/book/claims.html</loc>" in (built / "sitemap.xml").read_text()
    )
    assert soup(built / "404.html").select('link[href^="/book/_static/"]')


@pytest.mark.parametrize(
    "text",
    [
        "repository: ''\nurl: ''\n",
        "repository: 'someone/gates'\nurl: ''\nbranch: main\n",
        "repository: ''\nurl: 'gates.test'\nbranch: main\n",
    ],
)
def test_an_address_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "site.yml").write_text(text)
    with pytest.raises(ExtensionError, match=r"site\.yml"):
        address.read(tmp_path / "site.yml")


# ---- the claims -----------------------------------------------------------------------------


def ledger() -> dict[str, claims.Claim]:
    """The claims of the book."""
    return claims.load(ROOT / "book" / "claims.yml")


def tags(stem: str) -> list[str]:
    """The tags of all code cells of a chapter."""
    cells = nbformat.read(ROOT / "chapters" / f"{stem}.ipynb", 4).cells
    return [tag for cell in cells for tag in cell.metadata.get("tags", [])]


def test_the_ledger_holds_every_claim_once() -> None:
    wanted = [f"{letter}{n}" for letter, count in IDS.items() for n in range(1, count + 1)]
    assert list(ledger()) == wanted


def test_a_verdict_has_a_cell_that_decides_it(html: Path) -> None:
    for claim in ledger().values():
        for chapter in claim.verdicts:
            assert chapter in CHAPTERS, f"{claim.id}: {chapter} does not exist"
            assert tags(chapter).count(f"decides-{claim.id}") == 1, claim.id
            page = soup(html / "chapters" / f"{chapter}.html")
            assert page.find(id=f"decides-{claim.id.lower()}"), claim.id


def test_a_deciding_cell_has_a_verdict() -> None:
    for stem in CHAPTERS:
        for name in (match[1] for match in map(claims.TAG.fullmatch, tags(stem)) if match):
            assert stem in ledger()[name].verdicts, (
                f"{stem} decides {name}, the ledger does not say"
            )


def test_a_finished_chapter_shows_a_card_for_each_of_its_claims(html: Path) -> None:
    for claim in ledger().values():
        for stem in set(claim.chapters) & set(CHAPTERS):
            page = soup(html / "chapters" / f"{stem}.html")
            assert page.find(id=f"verdict-{claim.id.lower()}"), f"{stem} has no card for {claim.id}"


def test_the_ledger_links_to_the_cells(html: Path) -> None:
    page = soup(html / "book" / "claims.html")
    for claim in ledger().values():
        row = page.find(id=f"claim-{claim.id.lower()}")
        links = {a["href"] for a in row.select("a[href]")}
        wanted = {f"../chapters/{c}.html#decides-{claim.id.lower()}" for c in claim.verdicts}
        assert wanted <= links


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"verdicts": {"06_lstm": {"verdict": "maybe", "because": "x"}}},
            "unknown verdict 'maybe'",
        ),
        ({"verdicts": {"06_lstm": {"verdict": "holds"}}}, "verdict and because"),
        (
            {"verdicts": {"01_gate": {"verdict": "holds", "because": "x"}}},
            "not one of its chapters",
        ),
        ({"colour": "red"}, "expected the fields"),
    ],
)
def test_a_wrong_entry_is_refused(change: dict[str, Any], message: str) -> None:
    entry = {"id": "A8", "section": "3", "claim": "c", "chapters": ["06_lstm"], "verdicts": {}}
    with pytest.raises(ExtensionError, match=message):
        claims.check(entry | change)


def test_two_chapters_that_differ_make_a_claim_hold_only_if() -> None:
    verdicts = {c: {"verdict": v, "because": ""} for c, v in (("a", "false"), ("b", "holds"))}
    assert claims.Claim("A9", "", "", ("a", "b"), verdicts).status() == "holds-if"
    assert claims.Claim("A9", "", "", ("a", "b"), {"a": verdicts["a"]}).status() == "false"
    assert claims.Claim("A9", "", "", ("a", "b"), {}).status() == "undecided"


# ---- pages made from stored data ------------------------------------------------------------


@pytest.mark.parametrize(
    ("media", "page"), [(records.AGREEMENT, "agreement"), (records.PASSPORT, "passports")]
)
def test_stored_data_reach_their_page(html: Path, media: str, page: str) -> None:
    text = soup(html / "book" / f"{page}.html").select_one("article").get_text()
    names = [d["name"] for p in records.chapters(ROOT) for d in records.stored(p, media)]
    assert [name for name in names if name not in text] == []


def test_the_status_page_counts_every_cell(html: Path) -> None:
    rows = soup(html / "book" / "status.html").select_one("table").select("tbody tr")
    for path, row in zip(records.chapters(ROOT), rows, strict=True):
        counts = [int(cell.get_text()) for cell in row.select("td")[1:4]]
        assert sum(counts) == len(records.code_cells(path))


# ---- the browser ----------------------------------------------------------------------------


class Server(SimpleHTTPRequestHandler):
    """Serves the site as a static host does: an unknown address gets 404.html."""

    def send_error(self, code: int, *rest: Any) -> None:
        """Answer with the book's own page."""
        body = (HTML / "404.html").read_bytes()
        self.send_response(code)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *rest: Any) -> None:
        """Stay silent."""


@pytest.fixture(scope="session")
def host(html: Path) -> Iterator[str]:
    """The address of a local server of the built site."""

    def handler(*args: Any) -> Server:
        return Server(*args, directory=str(html))

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def executable(playwright: Any) -> str | None:
    """The browser to drive, or None."""
    named = os.environ.get("CHROMIUM")
    found = [named, *map(shutil.which, BROWSERS), playwright.chromium.executable_path]
    return next((path for path in found if path and Path(path).exists()), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = executable(playwright)
        if path is None:
            pytest.skip(NO_BROWSER)
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser: Any, host: str) -> Iterator[Any]:
    """A fresh page in light mode that may use the clipboard."""
    context = browser.new_context(color_scheme="light", viewport={"width": 1400, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=host)
    yield context.new_page()
    context.close()


class Visit:
    """What a browser met on one page."""

    def __init__(self, tab: Any, host: str, name: str) -> None:
        self.name, self.errors, self.requests = name, [], []
        listeners = {
            "console": lambda m: self.errors.append(m.text) if m.type == "error" else None,
            "pageerror": lambda error: self.errors.append(str(error)),
            "request": lambda request: self.requests.append(request.url),
        }
        for event, listener in listeners.items():
            tab.on(event, listener)
        tab.set_viewport_size({"width": 1400, "height": 900})
        tab.goto(host + name, wait_until="networkidle")
        self.light, self.dark = self.axe(tab, "light"), self.axe(tab, "dark")
        tab.set_viewport_size({"width": 390, "height": 844})
        tab.wait_for_timeout(100)
        self.width = tab.evaluate("document.documentElement.scrollWidth")
        for event, listener in listeners.items():
            tab.remove_listener(event, listener)

    def axe(self, tab: Any, mode: str) -> list[str]:
        """The serious and critical violations in one colour mode."""
        tab.evaluate(f"document.documentElement.dataset.theme = '{mode}'")
        tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        tab.add_script_tag(path=str(vendor.VENDOR / "test" / "axe.min.js"))
        tab.add_style_tag(content="* { transition: none !important }")
        tab.wait_for_timeout(100)
        found = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [
            f"{self.name} ({mode}): {v['id']}: {[n['target'] for n in v['nodes'][:3]]}"
            for v in found
            if v["impact"] in ("serious", "critical")
        ]


@pytest.fixture(scope="session")
def visits(browser: Any, html: Path, host: str) -> list[Visit]:
    """Every page, visited once."""
    tab = browser.new_context(color_scheme="light").new_page()
    names = [page.relative_to(html).as_posix() for page in pages(html)]
    return [Visit(tab, host, name) for name in names]


def test_no_page_logs_an_error(visits: list[Visit]) -> None:
    assert [f"{v.name}: {v.errors}" for v in visits if v.errors] == []


def test_no_page_asks_another_host(visits: list[Visit], host: str) -> None:
    local = (host, "data:", "blob:")
    assert {u for v in visits for u in v.requests if not u.startswith(local)} == set()
    assert all(len(v.requests) > 3 for v in visits)


def test_no_page_scrolls_sideways_on_a_phone(visits: list[Visit]) -> None:
    assert [f"{v.name}: {v.width}" for v in visits if v.width > 390] == []


def test_axe_finds_nothing_serious_in_light_or_dark(visits: list[Visit]) -> None:
    assert [problem for v in visits for problem in v.light + v.dark] == []


def test_a_page_weighs_less_than_a_megabyte(visits: list[Visit], html: Path, host: str) -> None:
    def weight(url: str) -> int:
        file = html / unquote(urlsplit(url).path).lstrip("/")
        return len(gzip.compress(file.read_bytes(), 6)) if file.is_file() else 0

    sizes = {v.name: sum(map(weight, set(v.requests))) for v in visits}
    assert {name: size for name, size in sizes.items() if size > 1_000_000} == {}


def test_the_fonts_are_the_books_own(tab: Any, host: str) -> None:
    tab.goto(host + "book/notation.html", wait_until="networkidle")
    loaded = "[...document.fonts].filter(f => f.status === 'loaded').map(f => f.family)"
    families = {name.strip('"') for name in tab.evaluate(loaded)}
    assert {"Source Serif 4", "Inter", "JetBrains Mono", "KaTeX_Math"} <= families


def test_search_finds_the_forget_gate(tab: Any, host: str) -> None:
    tab.goto(host + "book/index.html", wait_until="networkidle")
    tab.click(".search-button__button:visible")
    tab.fill("dialog input[type=search], .search-button__wrapper.show input", "forget gate")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#search-results li a")
    tab.wait_for_function(
        "!document.querySelector('#search-progress')?.textContent.includes('...')"
    )
    links = tab.eval_on_selector_all("#search-results li a", "all => all.map(a => a.href)")
    assert any("chapters/06_lstm.html" in link for link in links), links


def test_a_copy_button_copies_the_code_beside_it(tab: Any, host: str) -> None:
    tab.goto(host + "chapters/01_gate.html", wait_until="networkidle")
    shown = tab.locator("div.highlight:visible", has=tab.locator("button.copybtn"))
    block = shown.first
    block.hover()
    block.locator("button.copybtn").click()
    copied = tab.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == block.locator("pre").inner_text().strip() != ""


def test_the_theme_button_turns_the_page_dark_and_is_remembered(tab: Any, host: str) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    tab.goto(host + "book/index.html", wait_until="networkidle")
    light = tab.evaluate(colour)
    for _ in range(3):
        if tab.evaluate("document.documentElement.dataset.theme") != "dark":
            tab.click(".theme-switch-button:visible")
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    tab.wait_for_timeout(400)
    dark = tab.evaluate(colour)
    tab.reload(wait_until="networkidle")
    assert light != dark == tab.evaluate(colour)


def test_a_figure_is_readable_in_the_dark(tab: Any, host: str) -> None:
    tab.emulate_media(color_scheme="dark")
    tab.goto(host + "chapters/06_lstm.html", wait_until="networkidle")
    tab.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    filters = "all => all.map(image => getComputedStyle(image).filter)"
    found = tab.eval_on_selector_all("article figure img", filters)
    assert found and all("invert" in value for value in found)


def test_a_measured_figure_keeps_its_shape_on_a_phone(tab: Any, host: str) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.goto(host + "chapters/06_lstm.html", wait_until="networkidle")
    ratios = "all => all.map(i => i.width / i.height * i.naturalHeight / i.naturalWidth)"
    found = tab.eval_on_selector_all("figure img[src$='.png']", ratios)
    assert found and all(abs(ratio - 1) < 0.02 for ratio in found), found


def test_an_unknown_address_gets_the_books_own_page(tab: Any, host: str) -> None:
    lost: list[str] = []
    tab.on("response", lambda r: lost.append(r.url) if r.status >= 400 else None)
    tab.goto(host + "no/such/page.html", wait_until="networkidle")
    assert tab.inner_text("article h1") == "This gate is closed"
    assert lost == [host + "no/such/page.html"]
    tab.click("nav.bd-links a >> nth=0")
    assert re.search(r"/chapters/\w+\.html$", tab.url)
