"""The figures that chapters share: curves, bars, heat maps of gates, gradients, pixel grids.

Imports NumPy, matplotlib and the style.
Must not import the floors below; it draws the arrays it is given.

Every function returns the axes it drew on; a cell ends with `plt.show()`. Call `figures.use()` once
at the top of a chapter, and `figures.measured()` in a cell whose numbers come from training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from gatelib.lab.style import (
    COLOURS,
    GATE_COLOURS,
    GREY,
    HEIGHT,
    OPEN,
    SIGNED,
    WIDTH,
    exact,
    measured,
    to_bytes,
    use,
)

__all__ = [
    "COLOURS",
    "GATE_COLOURS",
    "bars",
    "curves",
    "exact",
    "gates",
    "gradients",
    "heatmap",
    "mark_chance",
    "measured",
    "new",
    "pixels",
    "to_bytes",
    "use",
]

Array = NDArray[Any]


def new(
    rows: int = 1, columns: int = 1, height: float = HEIGHT, **options: Any
) -> tuple[Figure, Any]:
    """A figure of the book's width (6.4 inches) and its axes, as `plt.subplots` gives them."""
    return plt.subplots(rows, columns, figsize=(WIDTH, height), **options)


def _axes(ax: Axes | None) -> Axes:
    axes: Axes = new()[1] if ax is None else ax
    return axes


def _array(name: str, values: Any, ndims: Sequence[int]) -> Array:
    values = values.detach().cpu().numpy() if hasattr(values, "detach") else values
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in ndims or array.size == 0:
        wanted = " or ".join(str(n) for n in ndims)
        raise ValueError(f"{name}: expected {wanted} axes, none empty, got shape {array.shape}")
    return array


def curves(
    series: Mapping[str, Any],
    x: Any = None,
    *,
    xlabel: str,
    ylabel: str,
    log: bool = False,
    colours: Mapping[str, str] = GATE_COLOURS,
    ax: Axes | None = None,
) -> Axes:
    """Draw a line for each name: (N,), or (seeds, N) as the mean in a band from least to most.

    Args:
        x: (N,) positions; 0…N-1 by default.
        log: a logarithmic y axis.
        colours: {name: colour}, for names that are gates; others take the palette's next.
    """
    ax = _axes(ax)
    for name, values in series.items():
        runs = np.atleast_2d(_array(name, values, (1, 2)))
        where = np.arange(runs.shape[1]) if x is None else _array("x", x, (1,))
        if len(where) != runs.shape[1]:
            raise ValueError(f"{name}: expected {len(where)} values as in x, got {runs.shape[1]}")
        (line,) = ax.plot(where, runs.mean(0), label=name, color=colours.get(name))
        if len(runs) > 1:
            ax.fill_between(
                where, runs.min(0), runs.max(0), color=line.get_color(), alpha=0.2, linewidth=0
            )
    ax.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    if 1 < len(series) <= 4:
        ax.legend()
    elif len(series) > 4:  # too many to find room among the lines
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1.2)
    return ax


def gradients(norms: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    """Draw gradient norms (T,) or (seeds, T) against the distance from the loss, in steps.

    Entry d belongs to the input d steps before the loss, as `gradient_by_distance` returns it.
    A norm that is exactly 0 can't be drawn on the logarithmic axis: its line ends there.
    """
    shown = {}
    for name, values in norms.items():
        runs = _array(name, values, (1, 2))
        shown[name] = np.where(runs > 0, runs, np.nan)
    return curves(
        shown, xlabel="distance from the loss (steps)", ylabel="gradient norm", log=True, ax=ax
    )


def bars(
    values: Mapping[str, Any],
    *,
    xlabel: str,
    chance: float | None = None,
    digits: int = 3,
    from_zero: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw a bar to the mean of each name's values (seeds,), a line from least to most, a dot each.

    Args:
        chance: what guessing gives, drawn as a dotted line.
        digits: significant digits of the mean, written beside the bar.
        from_zero: False draws a tick at the mean and no bar, for an axis that starts elsewhere.
    """
    ax = new(height=0.7 + 0.5 * len(values))[1] if ax is None else ax
    for row, (name, given) in enumerate(values.items()):
        runs = np.atleast_1d(_array(name, getattr(given, "values", given), (0, 1)))
        _bar(ax, row, runs, GATE_COLOURS.get(name, COLOURS[0]), from_zero)
        place = (max(runs.max(), 0), row)
        text = f"{runs.mean():#.{digits}g}".rstrip(".")
        ax.annotate(text, place, xytext=(6, 0), textcoords="offset points", va="center")
    ax.set_yticks(range(len(values)), list(values))
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.grid(False)
    if chance is not None:
        mark_chance(ax, chance)
    ax.set_xlabel(xlabel)
    return ax


def _bar(ax: Axes, row: int, runs: Array, colour: str, from_zero: bool) -> None:
    """One row: a bar or a tick at the mean, a line from least to most, a dot for each run."""
    if from_zero:
        ax.barh(row, runs.mean(), color=colour, alpha=0.35, height=0.62)
    else:
        ax.plot(runs.mean(), row, "|", color=colour, markersize=16, markeredgewidth=3)
    ax.plot([runs.min(), runs.max()], [row, row], "-", color=colour, linewidth=2)
    ax.plot(runs, [row] * len(runs), "o", color=colour, markersize=4)


def mark_chance(
    ax: Axes, chance: float, words: str = "chance", *, axis: str = "x", side: str = "center"
) -> None:
    """A dotted line at what guessing gives, on the x or the y axis, with its name at its end."""
    across = axis == "x"
    (ax.axvline if across else ax.axhline)(chance, color=GREY, linestyle=":", linewidth=1.5)
    place = (chance, 1) if across else (1, chance)
    coordinates: Any = ("data", "axes fraction") if across else ("axes fraction", "data")
    look: dict[str, Any] = {"ha": side, "va": "bottom", "color": GREY, "fontsize": 12}
    ax.annotate(words, place, xycoords=coordinates, **look)


def heatmap(
    values: Any,
    *,
    xlabel: str = "step",
    ylabel: str = "unit",
    title: str = "",
    signed: bool | None = None,
    limit: float = 1.0,
    colourbar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw values (T, H) of units over time: steps to the right, units downwards.

    Args:
        signed: colours from -limit to limit instead of 0 to limit; by default, if any is negative.
        limit: the value of the darkest colour; beyond it, colours stay there. nan stays blank.
    """
    array = _array("values", values, (2,))
    signed = bool(np.nanmin(array, initial=0.0) < 0) if signed is None else signed
    ax = _axes(ax)
    image = ax.imshow(
        array.T,
        aspect="auto",
        cmap=SIGNED if signed else OPEN,
        vmin=-limit if signed else 0.0,
        vmax=limit,
    )
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    if colourbar:
        ax.figure.colorbar(image, ax=ax, shrink=0.9, pad=0.02).outline.set_visible(False)
    return ax


def gates(
    recorded: Mapping[str, Any],
    names: Sequence[str] | None = None,
    *,
    example: int = 0,
    tokens: Sequence[str] | None = None,
    titles: Mapping[str, str] | None = None,
) -> Array:
    """Draw one heat map per gate of one layer, as `record` returns it, below each other.

    Args:
        recorded: {gate: (B, T, H)}.
        names: which gates, in this order; all by default.
        example: which of the B sequences.
        tokens: T labels for the steps.
        titles: {gate: title}; by default the gate's name.
    """
    chosen = list(recorded) if names is None else list(names)
    unknown = [name for name in chosen if name not in recorded]
    if unknown or not chosen:
        raise ValueError(f"names: expected some of {list(recorded)}, got {chosen}")
    _, grid = new(len(chosen), height=0.6 + 1.35 * len(chosen), squeeze=False, sharex=True)
    for ax, name in zip(grid[:, 0], chosen, strict=True):
        values = _array(name, recorded[name], (3,))[example]
        heatmap(values, title=(titles or {}).get(name, name), xlabel="", ax=ax)
    if tokens is None:
        ax.set_xlabel("step")
    elif len(tokens) != len(values):
        raise ValueError(f"tokens: expected {len(values)} labels, got {len(tokens)}")
    else:
        ax.set_xticks(range(len(tokens)), list(tokens))
    axes: Array = grid[:, 0]
    return axes


def pixels(
    images: Mapping[str, Any] | Sequence[Any],
    *,
    columns: int = 5,
    signed: bool = False,
    limit: float | None = None,
    colourbar: bool = False,
) -> Array:
    """Draw images (height, width), or {title: image}, on a grid with one colour scale for all.

    Args:
        signed: colours from -limit to limit instead of 0 to limit.
        limit: the value of the darkest colour; the largest magnitude by default.
    """
    named = dict(images) if isinstance(images, Mapping) else dict(enumerate(images))
    arrays = [_array(f"images[{key!r}]", value, (2,)) for key, value in named.items()]
    if not arrays:
        raise ValueError("images: expected at least one, got none")
    columns = min(columns, len(arrays))
    rows = -(-len(arrays) // columns)
    title = 0.3 if isinstance(images, Mapping) else 0.0
    figure, grid = new(rows, columns, height=rows * (6.4 / columns * 0.95 + title), squeeze=False)
    top = limit or max(float(np.nanmax(np.abs(array))) for array in arrays) or 1.0
    for ax in grid.flat:
        ax.axis("off")
    for ax, (key, _), array in zip(grid.flat, named.items(), arrays, strict=False):
        image = ax.imshow(
            array, cmap=SIGNED if signed else OPEN, vmin=-top if signed else 0.0, vmax=top
        )
        ax.set_title(key if isinstance(key, str) else "", loc="center", fontsize=12)
    if colourbar:
        bar = figure.colorbar(image, ax=grid, shrink=0.8, pad=0.02)
        bar.outline.set_visible(False)
    axes: Array = grid
    return axes
