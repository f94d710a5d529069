"""The workshop in a browser: typed gates, budgets, hostile input, the keyboard, light and dark.

Imports tests.site.workshop_page, tests.site.conftest's browser, and the paths of tools.vendor.
Must not import gatelib: what the page says is compared with what the build wrote.

Time is the browser's own seconds of processor, which a busy machine does not lengthen, as far as
the system counts them; what a reader waits for on an idle machine is no longer.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.site.built import pages, soup  # isort: skip
from tests.site.test_browser import problems  # isort: skip
from tests.site.workshop_page import PAGE, Workshop, renderers, strict_host  # isort: skip

pytestmark = [pytest.mark.site, pytest.mark.timeout(300)]
MINE = "mine: a x h_prev -> h\nz = sigmoid(a)\nh = (1 - z)*h_prev + z*x"
START, EDIT, MEMORY = 10.0, 1.0, 500  # seconds, seconds, megabytes
PAUSE = 0.35  # seconds that the page waits for the next key


@pytest.fixture(scope="module")
def page(browser: Any, html: Path) -> Iterator[Workshop]:
    """The page from a host that sends its policy, in one tab for this file."""
    with strict_host() as origin:
        context = browser.new_context(color_scheme="light", viewport={"width": 1400, "height": 900})
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=origin)
        yield Workshop(context.new_page(), origin)
        context.close()


def gate(page: Workshop, title: str) -> str:
    """The text of a gate of the catalogue."""
    every = "GatesCatalogue.groups.flatMap((group) => group.gates)"
    return str(page.tab.evaluate(f"(t) => {every}.find((gate) => gate.title === t).text", title))


def carried(address: str) -> str:
    """The gate in an address."""
    return unquote(urlsplit(address).fragment).removeprefix("gate=")


# ---- before Python --------------------------------------------------------------------------


def test_a_gate_of_the_book_needs_no_python(page: Workshop) -> None:
    groups = page.tab.evaluate("GatesCatalogue.groups.map((group) => group.gates[0].text)")
    for text in groups:
        page.tab.select_option("#workshop-gate", value=text)
        assert "equation" in page.settle("fine")
        assert page.tab.input_value("#workshop-text") == text
        assert page.tab.locator(".workshop-circuit svg").count() == 1
    assert page.tab.locator(".katex-error").count() == 0
    assert [url for url in page.asked if "/pack/" in url] == []


def test_every_gate_of_the_book_is_offered_and_can_be_drawn(page: Workshop) -> None:
    assert page.check("load()") > 150
    assert page.check("drawn()") == []


def test_search_knows_the_page(html: Path) -> None:
    index = (html / "_static" / "search" / "sections.js").read_text(encoding="utf8")
    assert '["book/workshop.html","The workshop"' in index
    assert '"book/workshop.html#over-time"' in index


def test_the_page_weighs_less_than_a_megabyte_before_python(page: Workshop, html: Path) -> None:
    page.asked.clear()
    page.visit()
    files = {html / unquote(urlsplit(url).path).lstrip("/") for url in page.asked}
    sizes = [len(gzip.compress(file.read_bytes(), 6)) for file in files if file.is_file()]
    assert len(sizes) > 20 and sum(sizes) < 1_000_000, sizes
    pack = html / "_static" / "pack"
    assert sum(len(gzip.compress(f.read_bytes(), 6)) for f in pack.glob("*.js")) < 7_000_000


def test_a_slope_is_what_differences_say_for_every_gate_and_through_time(page: Workshop) -> None:
    page.check("load()")
    assert page.check("slopes(12345)") == []


# ---- typed gates ----------------------------------------------------------------------------


def test_a_typed_gate_is_derived_drawn_coded_and_run_within_its_budget(page: Workshop) -> None:
    with renderers(page.tab) as used:
        page.tab.fill("#workshop-text", MINE)
        page.wait("document.querySelector('.workshop-numpy pre').textContent.includes('def mine')")
    assert used.seconds < START and used.megabytes < MEMORY, used
    assert "2 equations, 3 inputs, 1 output" in page.settle("fine")
    texts = {name: page.code(name) for name in ("numpy", "torch", "triton", "javascript", "layer")}
    assert "from scipy import special" in texts["numpy"] and "def mine_vjp" in texts["numpy"]
    assert "import torch" in texts["torch"] and "@triton.jit" in texts["triton"]
    assert "function mine(a, x, h_prev)" in texts["javascript"]
    assert "Spec.read" in texts["layer"]
    assert "Circuit of mine" in page.tab.locator(".workshop-circuit svg").inner_html()
    assert page.tab.locator(".workshop-formulas .katex").count() == 1
    assert page.reading("knobs").startswith("At") and page.reading("time").startswith("At step")


def test_an_edit_takes_less_than_a_second(page: Workshop) -> None:
    page.type(MINE)
    with renderers(page.tab) as used:
        page.tab.fill("#workshop-text", MINE.replace("z*x", "z*tanh(x)"))
        page.wait("document.querySelector('.workshop-numpy pre').textContent.includes('tanh')")
    assert used.seconds + PAUSE < EDIT, used
    page.settle("fine")


@pytest.mark.parametrize("where", ["host", "disk"])
def test_it_works_from_a_plain_host_and_from_a_folder(
    browser: Any, host: str, html: Path, where: str
) -> None:
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    origin = host if where == "host" else f"{html.as_uri()}/"
    page = Workshop(context.new_page(), origin, MINE)
    assert "2 equations" in page.type(MINE.replace("z*x", "z*tanh(x)"), "fine")
    assert (page.errors, page.strangers()) == ([], set())
    context.close()


def in_firefox(html: Path) -> tuple[list[str], set[str]]:
    """What Firefox complained of and whom it asked; it needs a thread of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        firefox = playwright.firefox.launch()
        page = Workshop(firefox.new_page(), f"{html.as_uri()}/", MINE)
        found = page.errors, page.strangers()
        firefox.close()
    return found


def test_it_works_in_firefox_where_there_is_one(html: Path) -> None:
    from playwright.sync_api import Error

    try:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(in_firefox, html).result() == ([], set())
    except Error as error:
        pytest.skip(f"NO FIREFOX: the workshop was not looked at in it ({str(error)[:60]!r})")


def test_the_catalogue_is_what_python_answers_in_the_page(page: Workshop) -> None:
    """One gate of each family; tests/workshop compares all of them, in node."""
    page.check("load()")
    assert page.check("different()") == []


# ---- wrong and hostile texts ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("g: a -> y\nb = tanh(a)\ny = sigmod(b)", 3, "did you mean"),
        ("g: a -> y\n\n# a comment\ny = sigmoid(b)", 4, "`b`"),
        ("y = sigmoid(a)*x", 1, "expected"),
        ("g: a -> y\ny = sigmoid(a", 2, "never closed"),
    ],
)
def test_an_error_stands_at_its_line(page: Workshop, text: str, line: int, words: str) -> None:
    said = page.type(text, "wrong")
    assert said.startswith(f"Line {line}: ") and words in said
    area = page.tab.locator("#workshop-text")
    assert area.get_attribute("aria-invalid") == "true"
    assert area.get_attribute("aria-describedby") == "workshop-status"
    assert page.tab.inner_text(".workshop-gutter b").strip() == str(line)
    page.tab.click("#workshop-status .workshop-place")
    begin = page.tab.evaluate("document.querySelector('#workshop-text').selectionStart")
    assert text[:begin].count("\n") == line - 1


def test_a_first_line_that_is_missing_is_offered(page: Workshop) -> None:
    page.type("i = sigmoid(a_i)\nc = c_prev + i*x", "wrong")
    page.tab.click("#workshop-status .workshop-button")
    assert "2 equations" in page.settle("fine")
    assert page.tab.input_value("#workshop-text").startswith("gate: a_i c_prev x -> c\n")


HOSTILE = {
    "nested brackets": "g: a -> y\ny = " + "(" * 3000 + "a" + ")" * 3000,
    "nested brackets without a first line": "y = " + "(" * 3000,
    "nested calls": "g: a -> y\ny = " + "tanh(" * 400 + "a" + ")" * 400,
    "many signs": "g: a -> y\ny = " + "-" * 15_000 + "a",
    "many lines": "g: a -> y\n" + "\n".join(f"v_{n} = tanh(a)" for n in range(10_000)),
    "a number beyond all": "g: a -> y\ny = 1e400*a",
    "a tower of powers": "g: a -> y\ny = a*9**9**9**9",
    "HTML": "<img src=x onerror=alert(1)>: a -> y\ny = a",
    "code": "g: a -> y\ny = __import__('os').system('true')",
    "a zero byte": "g: a -> y\ny = a\x00b",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_gets_a_message_and_the_next_gate_works(page: Workshop, name: str) -> None:
    said = page.type(HOSTILE[name], "wrong")
    assert re.match(r"Line \d+: .{8}", said), said
    assert page.tab.locator("article img[src=x]").count() == 0
    assert "1 equation" in page.type("g: a -> y\ny = 3*sigmoid(a)", "fine")


def test_a_name_may_be_of_any_alphabet(page: Workshop) -> None:
    assert "1 equation" in page.type("门: é ü -> ψ\nψ = é*tanh(ü)", "fine")
    assert "function 门(é, ü)" in page.code("javascript")
    assert page.reading("knobs").startswith("At")


def test_a_drawing_without_an_end_is_stopped_and_the_next_gate_works(page: Workshop) -> None:
    page.check("hurry(1)")
    page.type("g: a b c -> y\ny = a*sigmoid(b) + tanh(c)*sigmoid(a)", "fine")
    assert "too long" in page.tab.inner_text(".workshop-circuit")
    page.check("hurry(0)")
    page.type(MINE, "fine")
    assert page.tab.locator(".workshop-circuit svg").count() == 1


def test_values_that_are_no_numbers_are_drawn_as_gaps(page: Workshop) -> None:
    page.type("g: a h_prev -> h\nh = log(a) + h_prev", "fine")
    assert page.tab.locator(".workshop-knobs svg").count() == 1
    assert page.errors == []


# ---- a link -----------------------------------------------------------------------------------


def test_a_link_carries_the_gate(page: Workshop) -> None:
    page.type(MINE, "fine")
    page.tab.click("text=Copy link")
    page.wait("location.hash.startsWith('#gate=')")
    address = page.tab.evaluate("navigator.clipboard.readText()")
    assert address == page.tab.url
    assert carried(address) == MINE
    lstm = gate(page, "LSTM")
    page.tab.evaluate("(text) => { location.hash = `gate=${encodeURIComponent(text)}`; }", lstm)
    page.wait("document.querySelector('#workshop-text').value.startsWith('lstm')")
    assert "7 equations" in page.settle("fine")


def test_a_link_is_text_and_never_html(page: Workshop) -> None:
    evil = "g: a -> y\ny = a # </textarea><script>window.caught = 1</script><img src=x onerror=1>"
    page.visit(evil)
    assert page.tab.input_value("#workshop-text") == evil
    assert page.tab.evaluate("window.caught") is None
    assert page.tab.locator("article img[src=x]").count() == 0
    page.visit('%E0%A4%A broken < & "')
    assert page.settle("wrong")


def test_beside_a_gate_of_a_chapter_a_link_opens_it_and_takes_no_room(
    page: Workshop, html: Path, browser: Any
) -> None:
    every = "GatesCatalogue.groups.flatMap((group) => group.gates.map((gate) => gate.text))"
    known = set(page.tab.evaluate(every))
    found = {
        path.stem: [carried(a["href"]) for a in links]
        for path in pages(html)
        if (links := soup(path).select("a.open-gate"))
    }
    texts = [text for texts in found.values() for text in texts]
    assert len(found) >= 10 and len(texts) > 40, {name: len(t) for name, t in found.items()}
    assert all(re.match(r"\w+: [\w ]+ -> [\w ]+\n", text) for text in texts)
    assert sum(text in known for text in texts) > len(texts) / 2
    sizes = "[...document.querySelectorAll('.open-gate')].map((a) => getComputedStyle(a).position)"
    page.tab.goto(f"{page.origin}chapters/06_lstm.html", wait_until="load")
    assert set(page.tab.evaluate(sizes)) == {"absolute"}
    page.tab.locator("a.open-gate").first.click()
    page.tab.wait_for_url("**/workshop.html#gate=*")
    assert "equation" in page.settle("fine")


# ---- hands on ---------------------------------------------------------------------------------


def test_reset_brings_back_the_gate_and_what_was_set(page: Workshop) -> None:
    page.visit()
    lstm, before = gate(page, "LSTM"), [page.reading("knobs"), page.reading("time")]
    page.tab.locator(".workshop-knobs input[type=range]").first.fill("3")
    page.tab.locator(".workshop-time .explorer-wire").first.fill("4")
    page.type(lstm.replace("tanh(c)", "sigmoid(c)"), "fine")
    page.tab.locator(".workshop-bar button", has_text="Reset").click()
    page.settle("fine")
    assert page.tab.input_value("#workshop-text") == lstm
    assert [page.reading("knobs"), page.reading("time")] == before
    page.tab.select_option("#workshop-gate", label="your own")
    page.settle("fine")
    assert page.tab.input_value("#workshop-text") == lstm.replace("tanh(c)", "sigmoid(c)")


HIDDEN = ":not([hidden] *, [tabindex='-1'], .toggle-hidden *)"
CONTROLS = f"article :is(select, button, textarea, input, summary){HIDDEN}"


def test_the_keyboard_alone_reaches_and_changes_everything(page: Workshop) -> None:
    page.visit()
    wanted = page.tab.evaluate(
        f"""[...document.querySelectorAll(`{CONTROLS}`)]
        .filter((e) => e.checkVisibility() && !(e.type === "radio" && !e.checked))
        .map((e, k) => {{ e.dataset.reach = k; return k; }})"""
    )
    page.tab.focus("#workshop-gate")
    reached = set()
    for _ in range(3 * len(wanted)):
        reached.add(page.tab.evaluate("document.activeElement.dataset.reach"))
        page.tab.keyboard.press("Tab")
    assert {str(k) for k in wanted} <= reached
    readings = [page.reading("knobs"), page.reading("time")]
    page.tab.focus(".workshop-knobs input[type=range] >> nth=0")
    page.tab.keyboard.press("ArrowRight")
    page.tab.focus(".workshop-time .explorer-wire >> nth=0")
    page.tab.keyboard.press("ArrowUp")
    page.tab.wait_for_timeout(200)
    assert page.reading("knobs") != readings[0]
    assert page.reading("time") != readings[1]
    page.tab.focus(".workshop-source input[type=radio] >> nth=0")
    page.tab.keyboard.press("ArrowRight")
    assert page.tab.locator(".workshop-torch pre").is_visible()


def test_a_sequence_is_drawn_with_the_pointer(page: Workshop) -> None:
    page.visit()
    pad = page.tab.locator(".workshop-time .explorer-pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    page.tab.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 4)
    page.tab.mouse.down()
    page.tab.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 4, steps=4)
    page.tab.mouse.up()
    page.tab.wait_for_timeout(200)
    assert re.search(r"At step 2[78], .* = 1\.?\d?", page.reading("time"))


def test_a_gate_over_features_has_a_slider_for_each(page: Workshop) -> None:
    page.tab.select_option("#workshop-gate", value=gate(page, "softmax gate"))
    page.settle("fine")
    assert page.tab.locator(".workshop-knobs input[type=range]").count() == 8
    assert page.tab.locator(".workshop-time .workshop-note").is_visible()
    assert not page.tab.locator(".workshop-time figure").is_visible()


# ---- how it looks -----------------------------------------------------------------------------


def test_axe_finds_nothing_serious_and_no_width_scrolls_sideways(browser: Any, host: str) -> None:
    context = browser.new_context(color_scheme="light", viewport={"width": 1400, "height": 900})
    page = Workshop(context.new_page(), host)
    assert list(problems(page.tab, PAGE)) == []
    for width in (320, 390, 768):
        page.tab.set_viewport_size({"width": width, "height": 800})
        page.tab.wait_for_timeout(100)
        assert page.tab.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_little_motion_is_none(browser: Any, host: str) -> None:
    context = browser.new_context(reduced_motion="reduce")
    page = Workshop(context.new_page(), host)
    moving = page.tab.evaluate(
        """[...document.querySelectorAll("article *")].filter((e) => {
        const { transitionDuration, animationName } = getComputedStyle(e);
        return e.closest(".workshop-part, .workshop-editor") && (animationName !== "none" ||
          transitionDuration.split(",").some((time) => parseFloat(time) > 0.01)); })
        .map((e) => e.className)"""
    )
    assert moving == []
    context.close()


def test_without_scripts_and_on_paper_the_page_is_whole(browser: Any, host: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(host + PAGE)
    for part in ("formulas .katex", "backward .katex", "circuit svg", "knobs svg", "time svg"):
        assert tab.locator(f".workshop-{part}").first.is_visible(), part
    assert "def lstm(" in tab.locator(".workshop-numpy pre").text_content()
    controls = ".workshop-bar, .explorer-controls, .explorer-reset"
    assert not any(place.is_visible() for place in tab.locator(controls).all())
    tab.emulate_media(media="print")
    assert tab.locator(".workshop-knobs svg").is_visible()
    context.close()


def test_nobody_else_was_asked_and_nothing_was_complained_of(page: Workshop) -> None:
    """After all that was done in the tab under the policy; the last of this file."""
    assert page.strangers() == set()
    assert page.errors == []
