"""One look for every figure, and the two ways in which a notebook stores it.

Imports matplotlib, cycler; in a notebook also matplotlib_inline.
Must not import the floors below.

Backgrounds are transparent and every colour keeps a contrast of 3 on white as well as on the dark
theme, which shows figures through `invert(.93) hue-rotate(180deg)`. The palette is that of Okabe
and Ito (2008) with its light colours darkened. Text is drawn as paths of the font that comes with
matplotlib, so a figure looks the same, and is the same bytes, on every machine.
"""

from __future__ import annotations

import io
import sys
from typing import Any, Literal

import matplotlib as mpl
from cycler import cycler
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

__all__ = ["COLOURS", "GATE_COLOURS", "OPEN", "SIGNED", "exact", "measured", "to_bytes", "use"]

Kind = Literal["exact", "measured"]

BLUE, RED, GREEN, PURPLE = "#0072B2", "#C85200", "#008A64", "#B8538A"
OCHRE, SKY, GREY, INK = "#B87A00", "#3A94CC", "#6B6B6B", "#1A1A1A"
COLOURS = (BLUE, RED, GREEN, PURPLE, OCHRE, SKY, GREY)
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)), "-", "--", ":")
GATE_COLOURS = {
    "i": GREEN,
    "f": BLUE,
    "o": PURPLE,
    "g": RED,
    "c": OCHRE,
    "h": GREY,
    "r": GREEN,
    "z": BLUE,
    "n": RED,
}
"""The same gate has the same colour in every chapter."""

OPEN = LinearSegmentedColormap.from_list("open", ["#F4F4F4", "#86BBDA", BLUE, "#00263D"])
"""From 0, a closed gate, to 1, an open one."""
SIGNED = LinearSegmentedColormap.from_list(
    "signed", ["#4A1E00", RED, "#E9B48F", "#F4F4F4", "#86BBDA", BLUE, "#00263D"]
)
"""From negative through zero to positive."""

WIDTH, HEIGHT = 6.4, 3.4
"""Inches; at 390 px a figure shrinks to 3/4, and 13-point text to 10 px."""

RC: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK,
    "axes.labelsize": 13,
    "axes.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=COLOURS, linestyle=DASHES),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "figure.facecolor": "none",
    "figure.figsize": (WIDTH, HEIGHT),
    "font.family": "DejaVu Sans",
    "font.size": 13,
    "grid.alpha": 0.25,
    "grid.color": GREY,
    "grid.linewidth": 0.8,
    "image.interpolation": "nearest",
    "legend.fontsize": 12,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "mathtext.fontset": "dejavusans",
    "savefig.facecolor": "none",
    "svg.fonttype": "path",
    "svg.hashsalt": "gates",
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": 12,
    "ytick.color": INK,
    "ytick.labelsize": 12,
}

SAVE: dict[str, dict[str, Any]] = {
    "exact": {
        "format": "svg",
        "dpi": 100,
        "metadata": {"Date": None, "Creator": None, "Format": None, "Type": None},
    },
    "measured": {"format": "png", "dpi": 200, "metadata": {"Software": None}},
}


def _shell() -> Any:
    """The running notebook's shell, or None."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell if getattr(shell, "kernel", None) is not None else None


def _store_as(kind: Kind) -> None:
    if _shell() is None:
        return
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    options = {key: value for key, value in SAVE[kind].items() if key not in ("format", "dpi")}
    formats = {"exact": "svg", "measured": "retina"}
    store: Any = set_matplotlib_formats
    store(formats[kind], bbox_inches=None, **options)


def use() -> None:
    """Set the style; in a notebook, store figures as SVG from now on. Call it once, at the top."""
    shell = _shell()
    if shell is not None:
        shell.run_line_magic("matplotlib", "inline")
        shell.events.callbacks["post_run_cell"] = [
            call for call in shell.events.callbacks["post_run_cell"] if call is not _back_to_exact
        ]
        shell.events.register("post_run_cell", _back_to_exact)
    mpl.rcParams.update(RC)
    exact()


def _back_to_exact(result: object = None) -> None:
    exact()


def exact() -> None:
    """Store figures as SVG, which nbval compares to the letter. This is the default."""
    _store_as("exact")


def measured() -> None:
    """Store the figures of THIS cell as PNG with twice the pixels; the next cell is exact again."""
    _store_as("measured")


def to_bytes(figure: Figure, kind: Kind = "exact") -> bytes:
    """Return a figure as the notebook would store it; the same call gives the same bytes.

    Raises:
        ValueError: `kind` is neither "exact" (SVG) nor "measured" (PNG).
    """
    if kind not in SAVE:
        raise ValueError(f"kind: expected one of {sorted(SAVE)}, got {kind!r}")
    file = io.BytesIO()
    with mpl.rc_context(RC):
        figure.savefig(file, **SAVE[kind])
    return file.getvalue()
