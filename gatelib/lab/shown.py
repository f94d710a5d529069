"""What runs look like: every seed a dot, each arm at its rate, rates tried, a number over an axis.

Imports NumPy, matplotlib, and its neighbours in the lab.
Must not import gatelib.lab.study: like the verdict, it reads runs, whoever made them.

These are functions of a `Runs`, which has them as methods. Seeds that ended alike stay apart: their
dots are stacked, by no chance, so that the same runs give the same picture.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from gatelib.lab import figures, stacks
from gatelib.lab.verdict import Runs

__all__ = ["dots", "over", "rate_curves"]

Array = NDArray[Any]


def dots(
    runs: Runs,
    name: str = "test",
    *,
    by: str | None = None,
    chance: float | Mapping[str, float] | None = None,
    log: bool = False,
    arms: Iterable[Any] | Mapping[Any, str] | None = None,
    titles: Mapping[Any, str] | None = None,
    xlabel: str | None = None,
    share: bool = True,
    colours: Mapping[Any, str] | None = None,
) -> Array:
    """Draw a row for each arm: a dot for each reporting seed, and below them what they come to.

    The tick below the dots is their mean, the bar through it Student's 95 % interval of the mean.
    There is no bar where all seeds gave the same number, and neither where a run failed: then the
    row says how many. On a logarithmic axis an interval that reaches 0 ends in an arrow.

    Args:
        name: a number of the runs.
        by: an axis of the study; each of its labels gets a panel, and the rows are the other axes.
        chance: what guessing gives, a dotted line; or {its name: value}.
        log: a logarithmic axis, as errors want it.
        arms: which rows, in this order, or {row: text beside it}; all by default.
        titles: {label of `by`: title}; by default the axis and its label, "length 20".
        xlabel: `name` by default.
        share: one scale for all panels.
        colours: {row: colour}; others are blue.

    Returns: the panels' axes (panels,).

    Raises: ValueError for a `name`, `by`, row or title that the runs don't have, a curve, or a
        number that a logarithmic axis can't show.
    """
    rows = _chosen("arms", arms, _rows(runs, by))
    panels = [None] if by is None else list(runs.axes[by])
    _known("titles", titles or {}, panels)
    _known("colours", colours or {}, rows)
    values = {label: {row: _values(runs, by, label, row, name) for row in rows} for label in panels}
    line = _line(chance)
    axes = stacks.panels(values, rows, share)
    scales = stacks.limits(values, [value for _, value in line], log, share)
    for label, ax in zip(panels, axes, strict=True):
        stacks.scale(ax, scales[label], log)
        ax.set_xlabel(name if xlabel is None else xlabel)
        if by is not None:
            title = (titles or {}).get(label, f"{by} {label}")
            ax.set_title(title, pad=22 if line else 8)
        for words, value in line:
            figures.mark_chance(ax, value, words, side=stacks.side(ax, value))
    stacks.draw_rows(
        axes, values, dict.fromkeys(rows, figures.COLOURS[0]) | dict(colours or {}), log
    )
    return axes


def _rows(runs: Runs, by: str | None) -> list[Any]:
    """The arms without the axis `by`, in order."""
    if by is None:
        return runs.arms
    if by not in runs.axes:
        raise ValueError(f"by: expected one of the axes {list(runs.axes)}, got {by!r}")
    place = list(runs.axes).index(by)
    return list(dict.fromkeys(_without(arm, place) for arm in runs.arms))


def _without(arm: Any, place: int) -> Any:
    if not isinstance(arm, tuple):
        return ()
    rest = arm[:place] + arm[place + 1 :]
    return rest[0] if len(rest) == 1 else rest


def _arm(runs: Runs, by: str | None, label: Any, row: Any) -> Any:
    """The arm of a row and a label of `by`."""
    if by is None:
        return row
    labels = list(row) if isinstance(row, tuple) else [row]
    labels.insert(list(runs.axes).index(by), label)
    return labels[0] if len(labels) == 1 else tuple(labels)


def _chosen(argument: str, wanted: Any, known: list[Any]) -> dict[Any, str]:
    """{row: its text}, of all rows or of those that are wanted."""
    if wanted is None:
        wanted = known
    if isinstance(wanted, str) or not (rows := list(wanted)):
        raise ValueError(f"{argument}: expected some of {known}, got {wanted!r}")
    _known(argument, rows, known)
    said = wanted if isinstance(wanted, Mapping) else {}
    return {row: said.get(row, _text(row)) for row in rows}


def _known(argument: str, given: Iterable[Any], known: Iterable[Any]) -> None:
    if unknown := [key for key in given if key not in known]:
        raise ValueError(f"{argument}: expected some of {list(known)}, got {unknown[0]!r}")


def _text(arm: Any) -> str:
    return ", ".join(map(str, arm)) if isinstance(arm, tuple) else str(arm)


def _values(runs: Runs, by: str | None, label: Any, row: Any, name: str) -> Array:
    values = runs.of(_arm(runs, by, label, row), name)
    if values.ndim != 1:
        raise ValueError(f"name: expected a number, got the curve {name!r}")
    return values


def _line(chance: float | Mapping[str, float] | None) -> list[tuple[str, float]]:
    if chance is None:
        return []
    return list(chance.items()) if isinstance(chance, Mapping) else [("chance", chance)]


# --- rates


def rate_curves(
    runs: Runs, name: str = "valid", *, log: bool = False, ylabel: str | None = None
) -> Array:
    """Draw a small panel for each arm: `name` over the rates tried, and the rate chosen ringed.

    Each dot is a choosing seed, the line goes through their means. All panels share their axes. A
    run that failed has no dot, and a rate at which one failed no mean.

    Args:
        name: a number of the runs, usually the one that chooses.
        log: a logarithmic y axis.
        ylabel: `name` by default.

    Returns: the panels' axes (arms,).

    Raises: ValueError for a study without rates, or a `name` that isn't a number of its runs.
    """
    if runs.rates is None:
        raise ValueError(f"runs: expected a study that tries rates, {runs.name!r} has none")
    titles = [_title(runs, arm) for arm in runs.arms]
    axes = _small(len(runs.arms), max(title.count("\n") + 1 for title in titles))
    for ax, arm, title in zip(axes, runs.arms, titles, strict=True):
        _draw_rates(ax, runs, arm, name, log)
        ax.set_title(title, fontsize=12, pad=5)
    axes[0].set(xscale="log", yscale="log" if log else "linear")
    axes[0].margins(y=0.15)
    axes[0].xaxis.set_major_locator(LogLocator(numticks=4))
    axes[0].xaxis.set_minor_formatter(NullFormatter())
    axes[0].figure.supylabel(name if ylabel is None else ylabel, fontsize=13)
    xlabel = "learning rate" if runs.rate_name == "lr" else str(runs.rate_name)
    axes[0].figure.supxlabel(xlabel, fontsize=13)
    return axes


def _small(count: int, lines: int) -> Array:
    """Small panels with titles of so many lines; each lowest one of its column has tick labels."""
    across = min(count, stacks.SIDE_BY_SIDE)
    down = -(-count // across)
    options: dict[str, Any] = {"sharex": True, "sharey": True, "squeeze": False}
    height = 0.75 + down * (1.05 + 0.2 * lines)
    _, grid = figures.new(down, across, height, layout="constrained", **options)
    for ax in grid.flat[count:]:
        ax.remove()
    axes: Array = grid.flatten()[:count]
    for ax in axes[-across:]:
        ax.tick_params(axis="x", labelbottom=True)
    return axes


def _title(runs: Runs, arm: Any) -> str:
    """The labels of an arm on as few lines of 17 letters as they fit; numbers with their axis."""
    labels = arm if isinstance(arm, tuple) else (arm,)
    said = [
        label if isinstance(label, str) else f"{axis} {label}"
        for axis, label in zip(runs.axes, labels, strict=True)
    ]
    return "\n".join(textwrap.fill(words, 17) for words in said)


def _draw_rates(ax: Axes, runs: Runs, arm: Any, name: str, log: bool) -> None:
    """One arm: dots, the line of their means, a ring at the rate chosen."""
    tried = runs.tried(arm)
    values = [runs.chose(arm, rate, name) for rate in tried]
    if np.ndim(values) != 2:
        raise ValueError(f"name: expected a number, got the curve {name!r}")
    stacks.check_positive(np.array(values), log)
    means = np.mean(values, 1)
    ax.plot(tried, means, "-", color=figures.COLOURS[0], linewidth=1.5)
    for rate, seeds in zip(tried, values, strict=True):
        ax.plot([rate] * len(seeds), seeds, "o", color=figures.COLOURS[0], markersize=4)
    best = runs.best(arm)
    if best is not None:
        ring: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": figures.COLOURS[1]}
        place = means[tried.index(best)]
        ax.plot([best], [place], "o", **ring, markersize=12, markeredgewidth=1.8, clip_on=False)


# --- over an axis


def over(
    runs: Runs,
    axis: str,
    name: str = "test",
    *,
    chance: float | Mapping[str, float] | None = None,
    log: bool = False,
    arms: Iterable[Any] | Mapping[Any, str] | None = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
) -> Axes:
    """Draw `name` over an axis with numbers for labels: a line for each arm of the other axes.

    Each dot is a reporting seed, the line goes through the means. So that no dot hides another,
    those of one label stand beside each other, arm by arm and seed by seed. Labels that span a
    factor of 10 or more are spaced by their logarithm. A run that failed has no dot, and an arm in
    which one failed no mean there.

    Args:
        axis: of the study.
        name: a number of the runs.
        chance: what guessing gives, a dotted line; or {its name: value}.
        log: a logarithmic y axis.
        arms: which lines, in this order, or {arm: its name in the legend}; all by default.
        xlabel: `axis` by default.
        ylabel: `name` by default.

    Raises: ValueError for an axis without numbers, or a name or arm that the runs don't have.
    """
    if axis not in runs.axes:
        raise ValueError(f"axis: expected one of the axes {list(runs.axes)}, got {axis!r}")
    labels = list(runs.axes[axis])
    if len(labels) < 2 or any(isinstance(label, str) for label in labels):
        raise ValueError(f"axis: expected two labels or more that are numbers, got {labels}")
    rows = _chosen("arms", arms, _rows(runs, axis))
    where = _spaced(np.array(sorted(labels), float))
    ax: Axes = figures.new(layout="constrained")[1]
    lane = 0.55 * float(np.diff(where).min()) / len(rows)
    for place, (row, text) in enumerate(rows.items()):
        seeds = [_values(runs, axis, label, row, name) for label in sorted(labels)]
        stacks.check_positive(np.array(seeds), log)
        _draw_over(ax, where + (place - (len(rows) - 1) / 2) * lane, seeds, lane, text)
    ax.set_xticks(where, [str(label) for label in sorted(labels)])
    ax.set(xlabel=xlabel or axis, ylabel=ylabel or name, yscale="log" if log else "linear")
    for words, value in _line(chance):
        figures.mark_chance(ax, value, words, axis="y", side="right")
    _name_lines(ax, list(rows.values()))
    return ax


def _spaced(labels: Array) -> Array:
    """Where labels stand."""
    return np.log10(labels) if labels[0] > 0 and labels[-1] / labels[0] >= 10 else labels


def _draw_over(ax: Axes, where: Array, seeds: list[Array], lane: float, text: str) -> None:
    """One arm: a line through its means, and its seeds side by side in its lane."""
    (line,) = ax.plot(where, np.mean(seeds, 1), label=text)
    for centre, values in zip(where, seeds, strict=True):
        beside = np.linspace(-0.4, 0.4, len(values)) * lane if len(values) > 1 else [0.0]
        ax.plot(
            centre + beside,
            values,
            "o",
            color=line.get_color(),
            markersize=3.2,
            markeredgewidth=0,
            alpha=0.8,
        )


def _name_lines(ax: Axes, texts: list[str]) -> None:
    """A legend above the axes, in as many columns as its words leave room for."""
    if len(texts) < 2:
        return
    columns = max(1, int(5.4 / (0.1 * max(map(len, texts)) + 0.7)))
    look: dict[str, Any] = {"columnspacing": 1.2, "handlelength": 1.8}
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, **look)
