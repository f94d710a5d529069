"""Figures are the same bytes every time, legible on both themes, and stored as the chapter says."""

import io
import os
import re
import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from gatelib.lab import figures
from gatelib.lab.style import COLOURS, GATE_COLOURS, GREY, INK, OPEN, SIGNED
from gatelib.lab.training import Seeds

mpl.use("Agg")
pytestmark = pytest.mark.usefixtures("style")
PROGRAM = """
import hashlib, numpy as np, matplotlib; matplotlib.use("Agg")
from gatelib.lab import figures
figures.use()
t = np.arange(30)
one = figures.curves({"f": 0.9**t, "no": np.stack([0.5**t, 0.6**t])}, xlabel="t", ylabel="y")
two = figures.gates({"f": np.linspace(0, 1, 40).reshape(1, 10, 4)})[0]
for ax in (one, two):
    for kind in ("exact", "measured"):
        print(hashlib.sha256(figures.to_bytes(ax.figure, kind)).hexdigest())
"""


def linear(colour):
    c = np.asarray(colour)
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """WCAG 2.1 contrast of two sRGB colours."""
    light, dark = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other))[::-1]
    return (light + 0.05) / (dark + 0.05)


def darkened(colour):
    """The site's dark filter: invert(.93) hue-rotate(180deg)."""
    inverted = 0.93 * (1 - np.asarray(colour)) + 0.07 * np.asarray(colour)
    luma = np.array([0.213, 0.715, 0.072])
    return np.clip(2 * luma @ inverted - inverted, 0, 1)


@pytest.mark.parametrize("colour", [*COLOURS, *GATE_COLOURS.values(), GREY, INK])
def test_every_colour_stands_out_on_white_and_on_the_dark_theme(colour):
    rgb = mpl.colors.to_rgb(colour)
    assert contrast(rgb, (1, 1, 1)) >= 3
    assert contrast(darkened(rgb), (18 / 255,) * 3) >= 3


@pytest.mark.parametrize("colours", [OPEN, SIGNED])
def test_the_colour_maps_get_darker_away_from_zero(colours):
    levels = [linear(colours(v)[:3]) @ [0.2126, 0.7152, 0.0722] for v in np.linspace(0, 1, 41)]
    zero = 0 if colours is OPEN else 20
    assert (np.diff(levels[zero:]) < 0).all() and (np.diff(levels[: zero + 1]) > 0).all()


def test_two_processes_draw_the_same_bytes():
    drawn = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for seed in ("1", "2")
    ]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 4


def test_an_svg_needs_nothing_from_outside_and_tells_no_date():
    ax = figures.curves({"f": [1, 2], "g": [2, 1]}, xlabel="step", ylabel="value")
    svg = figures.to_bytes(ax.figure).decode()
    assert "<text" not in svg and "font-family" not in svg and "@import" not in svg
    assert not re.search(r'href="(?!#|data:)', svg)
    assert "dc:date" not in svg and "Matplotlib" not in svg.split("<g", 1)[0]


def test_backgrounds_are_transparent_and_the_width_is_fixed():
    ax = figures.curves({"f": [1, 2]}, xlabel="a very long label", ylabel="another")
    image = plt.imread(io.BytesIO(figures.to_bytes(ax.figure, "measured")))
    assert image.shape[1] == 1280 and image[0, 0, 3] == 0


def test_a_band_runs_from_the_least_to_the_most_seed():
    ax = figures.curves({"a": [[1.0, 2.0], [3.0, 6.0]]}, xlabel="x", ylabel="y")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [2, 4])
    corners = ax.collections[0].get_paths()[0].vertices
    assert {(0.0, 1.0), (0.0, 3.0), (1.0, 2.0), (1.0, 6.0)} <= set(map(tuple, corners))


def test_gates_keep_their_colour_and_many_lines_get_their_legend_above():
    ax = figures.curves({"f": [1, 2], "i": [2, 3]}, xlabel="x", ylabel="y")
    assert [line.get_color() for line in ax.lines] == [GATE_COLOURS["f"], GATE_COLOURS["i"]]
    many = figures.curves({str(k): [1, k] for k in range(7)}, xlabel="x", ylabel="y")
    many.figure.canvas.draw()
    assert many.get_legend().get_window_extent().y0 >= many.bbox.y1


def test_a_gradient_of_zero_ends_its_line():
    ax = figures.gradients({"RNN": [1.0, 0.1, 0.0]})
    assert np.isnan(ax.lines[0].get_ydata()[2]) and ax.get_yscale() == "log"


def test_bars_show_mean_and_every_seed():
    ax = figures.bars({"LSTM": Seeds((0.5, 0.7)), "RNN": [0.1]}, xlabel="accuracy", chance=0.125)
    assert [bar.get_width() for bar in ax.patches] == [pytest.approx(0.6), 0.1]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["LSTM", "RNN"]
    assert {"0.600", "0.100", "chance"} <= {text.get_text() for text in ax.texts}


def test_a_heat_map_puts_steps_to_the_right_and_units_downwards():
    values = np.zeros((9, 4))
    values[8, 0] = 1
    image = figures.heatmap(values).images[0]
    assert image.get_array().shape == (4, 9) and image.get_array()[0, 8] == 1
    assert image.get_clim() == (0, 1)
    assert figures.heatmap(-values).images[0].get_clim() == (-1, 1)


def test_gates_draws_one_map_each_of_the_chosen_example():
    recorded = {"f": np.stack([np.zeros((6, 3)), np.ones((6, 3))]), "g": -np.ones((2, 6, 3))}
    maps = figures.gates(recorded, ["g", "f"], example=1, tokens="abcdef", titles={"f": "forget"})
    assert [ax.get_title(loc="left") for ax in maps] == ["g", "forget"]
    assert maps[1].images[0].get_array().min() == 1
    assert [label.get_text() for label in maps[1].get_xticklabels()] == list("abcdef")


def test_pixels_share_one_colour_scale_and_leave_no_empty_frame():
    grid = figures.pixels({"a": np.eye(2), "b": 4 * np.eye(2), "c": np.eye(2)}, columns=2)
    assert [ax.images[0].get_clim() for ax in grid.flat[:3]] == [(0, 4)] * 3
    assert not grid.flat[3].axison and not grid.flat[3].images


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: figures.curves({"a": np.ones((2, 2, 2))}, xlabel="", ylabel=""), "a: expected 1"),
        (lambda: figures.curves({"a": [1, 2]}, [1], xlabel="", ylabel=""), "a: expected 1 values"),
        (lambda: figures.heatmap(np.ones(3)), "values: expected 2 axes"),
        (lambda: figures.gates({"f": np.ones((1, 2, 3))}, ["q"]), "names: expected some of"),
        (lambda: figures.gates({"f": np.ones((1, 2, 3))}, tokens=["a"]), "tokens: expected 2"),
        (lambda: figures.pixels([]), "images: expected at least one"),
        (lambda: figures.to_bytes(plt.figure(), "jpeg"), "kind: expected one of"),
    ],
)
def test_bad_arrays_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


CELLS = [
    "import matplotlib.pyplot as plt\nfrom gatelib.lab import figures\nfigures.use()",
    "figures.curves({'f': [1, 2]}, xlabel='x', ylabel='y')\nplt.show()",
    "figures.measured()\nfigures.curves({'f': [1, 2]}, xlabel='x', ylabel='y')\nplt.show()",
    "figures.curves({'f': [1, 2]}, xlabel='x', ylabel='y')\nplt.show()",
    "from torch import nn\nfrom gatelib.data import digits\nfrom gatelib.lab import train\n"
    "history = train(nn.Linear(64, 10), digits.flat().train, steps=9, lr=0.1)",
    "from gatelib.lab import show\nshow(train, lines=(1, 2))",
    "from gatelib.lab import agreement\nagreement({'a': {'h': [1.0]}, 'b': {'h': [1.0]}})",
]


@pytest.fixture(scope="module")
def outputs():
    """The outputs of every cell of CELLS, run in a kernel as the chapters are."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    return [cell.outputs for cell in notebook.cells]


def kinds(cell):
    return [sorted(set(output.get("data", {output.output_type: 0}))) for output in cell]


def test_in_a_notebook_a_figure_is_svg_unless_its_cell_says_measured(outputs):
    assert kinds(outputs[0]) == []
    svg, png = ["image/svg+xml", "text/plain"], ["image/png", "text/plain"]
    assert [kinds(cell) for cell in outputs[1:4]] == [[svg], [png], [svg]]
    drawn = [outputs[k][0].data["image/svg+xml"] for k in (1, 3)]
    assert drawn[0] == drawn[1] and "dc:date" not in drawn[0]


def test_training_leaves_nothing_behind_in_a_notebook(outputs):
    assert outputs[4] == []


def test_source_and_matrix_reach_the_notebook_in_their_formats(outputs):
    assert kinds(outputs[5]) == [["text/markdown", "text/plain"]]
    agreement = ["application/vnd.gates.agreement+json", "text/html", "text/plain"]
    assert kinds(outputs[6]) == [agreement]
