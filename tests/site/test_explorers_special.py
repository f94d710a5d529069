"""A matrix that a pointer can hold, and the presets beside it, in chapter 5.

Imports tests.site.conftest's browser. Must not import gatelib.
"""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.site, pytest.mark.timeout(300)]
FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


@pytest.fixture
def figure(tab: Any, host: str) -> Any:
    """The recurrent matrix of two units, on the screen."""
    tab.goto(host + "chapters/05_rnn.html", wait_until="load", timeout=120_000)
    found = tab.locator("#fig-rnn-matrix")
    found.scroll_into_view_if_needed()
    return found


def shown(figure: Any, *names: str) -> list[float]:
    return [float(figure.get_by_label(name, exact=True).input_value()) for name in names]


def test_a_column_of_the_matrix_is_dragged_and_its_sliders_follow(tab: Any, figure: Any) -> None:
    grip = figure.locator(".explorer-grip").nth(1).bounding_box()
    x, y = grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x - 60, y - 40, steps=3)
    tab.mouse.up()
    tab.evaluate(FRAMES)
    right, above = shown(figure, "u 12", "u 22")
    assert right < 1.5 and above > 1.3  # from 2 and 0.9
    assert shown(figure, "u 11", "u 21") == [0.9, 0]
    assert figure.get_by_label("start from").input_value() == "your own"


def test_a_nilpotent_matrix_explodes_as_soon_as_one_unit_is_saturated(
    tab: Any, figure: Any
) -> None:
    reading = figure.locator(".explorer-reading")
    figure.get_by_label("start from").select_option("linear, nilpotent")
    tab.evaluate(FRAMES)
    assert "grows at most 0 times" in reading.inner_text()
    figure.get_by_label("slope of unit 2", exact=True).focus()
    tab.keyboard.press("Home")
    tab.evaluate(FRAMES)
    said = reading.inner_text()
    assert said.startswith("ρ(U) = 0,") and "ρ(J) = 1.2," in said
    assert "grows at most 8.76 times" in said  # 1.2⁹ · 1.2 √2
