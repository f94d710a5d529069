"""What the options of an explorer may say, and that a wrong one stops the build at its place.

Imports pytest, Sphinx in a process of its own, and the modules of the book's own extension.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [str(ROOT / folder) for folder in ("", "tools", "book/_ext")]
sys.path[:0] = FOLDERS

import explorer_options as options  # noqa: E402

GATE: dict[str, Any] = {"name": "g", "inputs": ["a", "b"], "values": ["f", "y"], "outputs": ["y"]}


def test_sliders_have_a_value_ends_and_a_step() -> None:
    found = options.sliders("a=1, b=-.5 (-4..8), c=2 (0..4 by 0.5)")
    assert [(s["name"], s["value"], s["low"], s["high"], s.get("step")) for s in found] == [
        ("a", 1, -6, 6, None),
        ("b", -0.5, -4, 8, None),
        ("c", 2, 0, 4, 0.5),
    ]


def test_wires_say_what_an_input_reads() -> None:
    found = options.wires("a_n=2*x + -1*h, a_z=1*h")
    assert found == {"wires": {"a_n": {"in": 2, "back": -1}, "a_z": {"back": 1}}, "back": "h"}


def test_choices_and_presets_are_those_of_a_page() -> None:
    assert options.choices("method=none|loss") == [
        {"name": "method", "options": ["none", "loss"], "value": "none"}
    ]
    assert options.presets("shear: u=1 v=-2; turn: u=0") == [
        {"title": "shear", "values": {"u": 1, "v": -2}},
        {"title": "turn", "values": {"u": 0}},
    ]


def test_an_input_on_the_axis_has_a_slider_even_if_none_is_asked_for() -> None:
    found = options.definition("curve", {"along": "a -1..3"}, [GATE])
    assert found["sliders"] == [{"name": "a", "value": 1, "low": -1, "high": 3}]
    assert found["show"] == ["y"]


def test_an_element_of_a_vector_may_have_a_slider() -> None:
    given = {"vectors": "a=2", "sliders": "a_1=1, a_2=0", "show": "f"}
    assert options.definition("bars", given, [GATE])["vectors"] == {"a": 2}


@pytest.mark.parametrize(
    ("view", "given", "message"),
    [
        ("curve", {}, "needs :along:"),
        ("curve", {"along": "c 0..1"}, "no gate here has an input c; there are a, b"),
        ("curve", {"along": "a 1..0"}, ":along: expected LOW..HIGH, got '1..0'"),
        ("curve", {"along": "a 0..1", "show": "q"}, "no gate here has a value q"),
        ("curve", {"along": "a 0..1", "log": "0..1"}, "expected ends above 0"),
        ("curve", {"along": "a 0..1", "sliders": "b"}, "expected NAME=VALUE"),
        ("curve", {"along": "a 0..1", "sliders": "b=9"}, "expected b between -6 and 6, got '9'"),
        ("curve", {"along": "a 0..1", "titles": "one; two"}, "expected 1 titles"),
        ("time", {"wires": "q=1*x"}, "no gate here has an input q"),
        ("time", {"wires": "a=1*x + 2*q"}, "no gate here has a value q"),
        ("time", {"wires": "a=1*f + 2*y"}, "of one value, got '2*y'"),
        ("time", {"wires": "a=x"}, "expected NUMBER*x"),
        ("time", {"wires": "a=1*x", "sequence": "saw"}, "expected pulse or two pulses"),
        ("bars", {"vectors": "a=2", "sliders": "a_3=0"}, "no gate here has an input a_3"),
        ("bars", {"vectors": "a=two"}, ":vectors: expected a number, got 'two'"),
        ("curve", {"along": "a 0..1", "labels": "a"}, ":labels: expected NAME=..., got 'a'"),
    ],
)
def test_a_wrong_option_says_what_was_expected(
    view: str, given: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        options.definition(view, given, [GATE])


def test_a_view_without_a_gate_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a gate"):
        options.definition("curve", {"along": "a 0..1"}, [])


# ---- in a build ---------------------------------------------------------------------------------

CONF = f"""import sys
sys.path[:0] = {FOLDERS!r}
extensions = ["myst_parser", "explorers"]
numfig, html_theme = True, "basic"
"""
GOOD = """# Good

See {numref}`fig-half`.

```{explorer}
:view: curve
:along: b -4..4
:name: fig-half
:alt: A rising line.

half: b -> y
y = sigmoid(b)
---
A gate, *open* by half.
```
"""
BROKEN = {
    "view": (":view: picture\n:name: f\n:alt: x\n\nC", "picture"),
    "spec": ("SPEC gatelib.equations.lstm.NONE\n:view: curve\n:name: f\n:alt: x\n\nC", "NONE"),
    "equation": (
        ":view: curve\n:along: a 0..1\n:name: f\n:alt: x\n\ng: a -> y\ny = sigmod(a)\n---\nC",
        "sigmod",
    ),
    "alt": (":view: curve\n:along: a 0..1\n:name: f\n\ng: a -> y\ny = tanh(a)\n---\nC", ":alt:"),
    "caption": (
        ":view: curve\n:along: a 0..1\n:name: f\n:alt: x\n\ng: a -> y\ny = tanh(a)\n---\n",
        "expected a caption",
    ),
    "nothing": (
        ":view: curve\n:along: a 0..1\n:name: f\n:alt: x\n\ng: a -> y\ny = log(a - 2)\n---\nC",
        "no number",
    ),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A small book: one good page, and one for each mistake. Its pages, and what was said."""
    folder = tmp_path_factory.mktemp("book")
    (folder / "conf.py").write_text(CONF)
    names = "\n".join(["good", "plain", *BROKEN])
    (folder / "index.md").write_text(f"# Book\n\n```{{toctree}}\n{names}\n```\n")
    (folder / "good.md").write_text(GOOD)
    (folder / "plain.md").write_text("# Plain\n")
    for name, (text, _) in BROKEN.items():
        head, _, rest = text.partition("\n") if text.startswith("SPEC") else ("", "", text)
        argument = head.removeprefix("SPEC")
        (folder / f"{name}.md").write_text(f"# {name}\n\n```{{explorer}}{argument}\n{rest}\n```\n")
    command = [sys.executable, "-m", "sphinx", "-q", "-E", str(folder), str(folder / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stderr


@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_is_a_warning_with_its_place(built: tuple[Path, str], name: str) -> None:
    lines = [line for line in built[1].splitlines() if f"{name}.md:3:" in line]
    assert lines and BROKEN[name][1] in built[1]


def test_a_figure_is_numbered_and_drawn(built: tuple[Path, str]) -> None:
    text = (built[0] / "good.html").read_text(encoding="utf8")
    assert re.search(r'<figure class="[^"]*explorer[^"]*" id="fig-half"', text)
    assert "Fig. 1" in text and "<em>open</em>" in text and "A rising line." in text
    script = (built[0] / "_static" / "explorers" / "good.js").read_text(encoding="utf8")
    assert "GatesExplorer.add(" in script and "fig-half" in script


def test_a_page_without_an_explorer_loads_none_of_it(built: tuple[Path, str]) -> None:
    assert "explorer" not in (built[0] / "plain.html").read_text(encoding="utf8")
