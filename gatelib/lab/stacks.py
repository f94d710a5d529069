"""Rows of dots: one scale, dots stacked so that none hides another, and below them their mean.

Imports NumPy, matplotlib, and its neighbours in the lab.
Must not import gatelib.lab.study or gatelib.lab.verdict: it draws the arrays it is given.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from gatelib.lab import figures
from gatelib.lab.compared import Difference
from gatelib.lab.style import GREY, INK

__all__ = ["check_positive", "draw_rows", "limits", "panels", "scale", "side"]

Array = NDArray[Any]
Values = dict[Any, dict[Any, Array]]
"""{panel: {row: (seeds,)}}"""

SMALL, LARGE, STACK, HIGH = 0.05, 0.08, 0.56, 5.0
"""Inches: a dot at least and at most; what a row, and a column of panels, would like to stack."""
BELOW = 0.17
"""Inches below a row's line, for the mean and its interval."""
SIDE_BY_SIDE = 3
"""Panels; more go below."""


def panels(values: Values, rows: Mapping[Any, str], share: bool) -> Array:
    """Axes with the rows' names at the left; those that a full last line would have are gone."""
    across = min(len(values), SIDE_BY_SIDE)
    down = -(-len(values) // across)
    options: dict[str, Any] = {"sharex": share, "sharey": True, "squeeze": False}
    _, grid = figures.new(down, across, layout="constrained", **options)
    for ax in grid.flat[len(values) :]:
        ax.remove()
    axes: Array = grid.flatten()[: len(values)]
    texts = [textwrap.fill(text, 16 if across > 1 else 24) for text in rows.values()]
    for ax in axes:
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_yticks(range(len(rows)), texts)
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", labelbottom=True)
        ax.spines["left"].set_visible(False)
        ax.grid(False, axis="y")
        ax.grid(True, axis="x")
    return axes


# --- scales


def limits(values: Values, lines: list[float], log: bool, share: bool) -> dict[Any, Any]:
    """{panel: (from, to)}, with room at both ends for half a dot."""
    ends = {label: _ends([*rows.values()], lines, log) for label, rows in values.items()}
    if share:
        low, high = min(e[0] for e in ends.values()), max(e[1] for e in ends.values())
        ends = dict.fromkeys(ends, (low, high))
    return {label: _wider(low, high, log) for label, (low, high) in ends.items()}


def _ends(rows: list[Array], lines: list[float], log: bool) -> tuple[float, float]:
    """The least and the largest that a panel shows."""
    bars = [end for row in rows for end in _summary(row)[1:] if not log or end > 0]
    seeds = np.concatenate([*rows, lines])
    seeds = seeds[np.isfinite(seeds)]
    check_positive(seeds, log)
    found = np.concatenate([seeds, [bar for bar in bars if math.isfinite(bar)]])
    if log and len(seeds):  # the lower end of an interval may be as small as it likes
        found = found[found >= seeds.min()]
    return (float(found.min()), float(found.max())) if len(found) else (0.1, 1.0)


def check_positive(values: Array, log: bool) -> None:
    """Raises ValueError for what a logarithmic axis would leave out in silence."""
    if log and (values <= 0).any():
        raise ValueError(f"log: expected numbers above 0, got {np.nanmin(values):g}")


def _wider(low: float, high: float, log: bool) -> tuple[float, float]:
    if log:
        ratio = (high / low) ** 0.04 if high > low else 1.5
        return low / ratio, high * ratio
    room = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def scale(ax: Axes, limits: tuple[float, float], log: bool) -> None:
    """Limits, and as many ticks as a narrow panel has room for."""
    if log:
        ax.set_xscale("log")
        ax.set_xlim(limits)
        if limits[1] / limits[0] > 30:
            ax.xaxis.set_major_locator(LogLocator(numticks=5))
            ax.xaxis.set_minor_locator(NullLocator())
    else:
        ax.set_xlim(limits)
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))


def side(ax: Axes, value: float) -> str:
    """How words at a value are aligned, so that they stay above the panel."""
    place = ax.transAxes.inverted().transform(ax.transData.transform((value, 0)))[0]
    return "left" if place < 0.2 else "right" if place > 0.8 else "center"


def _summary(values: Array) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval; nan for what there isn't."""
    if not np.isfinite(values).all():
        return math.nan, math.nan, math.nan
    if len(values) < 2:
        return float(values[0]), math.nan, math.nan
    found = Difference.paired(values, np.zeros_like(values))
    return found.mean, found.low, found.high


# --- dots


def draw_rows(axes: Array, values: Values, colours: Mapping[Any, str], log: bool) -> None:
    """Stack the dots, make the figure as high as the stacks want it, and draw the rows."""
    figure = axes[0].figure
    figure.draw_without_rendering()  # from here on the panels' width is known
    drawn = list(zip(axes, values.values(), strict=True))
    seeds = max(len(one) for rows in values.values() for one in rows.values())
    size = float(np.clip(min(STACK, HIGH / len(colours)) / seeds, SMALL, LARGE))
    stacks = [
        {row: _stacked(_inches(ax, one), size) for row, one in rows.items()} for ax, rows in drawn
    ]
    stack = size * (1 + max(int(s.max(initial=0)) for rows in stacks for s in rows.values()))
    lines = max(label.get_text().count("\n") + 1 for label in axes[0].get_yticklabels())
    height = max(stack + BELOW + 0.08, 0.16 + 0.2 * lines)
    down = -(-len(axes) // SIDE_BY_SIDE)
    around = figure.get_figheight() * (1 - down * axes[0].get_position().height)
    figure.set_figheight(around + down * height * len(colours))
    base = (height + stack - BELOW) / 2 / height
    for (ax, rows), levels in zip(drawn, stacks, strict=True):
        for place, (row, one) in enumerate(rows.items()):
            up = (levels[row] + 0.5) * size / height
            line = place - 0.5 + base
            look = {"color": colours[row], "markersize": 0.94 * size * 72}
            ax.axhline(line, color=GREY, linewidth=0.8, alpha=0.5, zorder=1)
            ax.plot(one[np.isfinite(one)], line - up, "o", **look, markeredgewidth=0, zorder=3)
            _sum_up(ax, line + BELOW / 2 / height, one, log)


def _inches(ax: Axes, values: Array) -> Array:
    """How far from the left end of an axis values lie."""
    there = values[np.isfinite(values)]
    points = ax.transData.transform(np.column_stack([there, np.zeros_like(there)]))
    found: Array = points[:, 0] / ax.get_figure(root=True).dpi  # type: ignore[union-attr]
    return found


def _stacked(where: Array, size: float) -> Array:
    """The level of each dot: the lowest at which it touches none, taken from left to right."""
    levels = np.zeros(len(where), int)
    ends: list[float] = []
    for k in np.argsort(where, kind="stable"):
        free = [level for level, end in enumerate(ends) if where[k] - end >= size * 0.98]
        levels[k] = free[0] if free else len(ends)
        ends[levels[k] : levels[k] + 1] = [float(where[k])]
    return levels


def _sum_up(ax: Axes, below: float, seeds: Array, log: bool) -> None:
    """Below a row's line: the mean with its interval, or how many failed."""
    if failed := int((~np.isfinite(seeds)).sum()):
        words, where = f"{failed} of {len(seeds)} failed", ax.get_yaxis_transform()
        look: dict[str, Any] = {"color": GREY, "fontsize": 12, "va": "center_baseline"}
        ax.text(0.01, below, words, transform=where, **look)
        return
    mean, low, high = _summary(seeds)
    ax.plot([mean], [below], "|", color=INK, markersize=8, markeredgewidth=1.8, zorder=4)
    if math.isfinite(low):
        left = ax.get_xlim()[0]
        ax.plot([max(low, left), high], [below, below], "-", color=INK, linewidth=1.2, zorder=3)
        if log and low < left:
            ax.plot([left], [below], "<", color=INK, markersize=5, clip_on=False, zorder=3)
