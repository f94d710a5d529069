"""Films on a page: every frame in a strip, beside one picture in which they follow each other.

Imports NumPy, matplotlib and the style.
Must not import the floors below; it draws the arrays it is given.

A film is one SVG that moves by a style sheet of its own, so it needs no program and no player. For
a reader who wants little motion, and in print, nothing moves: the strip is there all the same.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from matplotlib.colors import Colormap
from numpy.typing import NDArray

from gatelib.lab.style import GREY, INK, OPEN, RED, SIGNED

__all__ = ["Film", "film"]

Array = NDArray[Any]

WIDTH, SCREEN, GAP, LABEL = 640.0, 92.0, 12.0, 22.0
"""User units: the whole, the side of the picture that moves, what lies between, a row's title."""

STYLE = """\
#{name} text{{font:15px "DejaVu Sans",Verdana,sans-serif;fill:{ink}}}
#{name} image{{image-rendering:pixelated}}
#{name} .play{{animation:play-{name} {time:g}s steps({count}) infinite}}
#{name} .mark{{animation:mark-{name} {time:g}s steps({count}) infinite}}
@keyframes play-{name}{{to{{transform:translateX(-{frames:g}px)}}}}
@keyframes mark-{name}{{to{{transform:translateX({strip:g}px)}}}}
@media print{{#{name} .play,#{name} .mark{{animation:none}}}}
@media (prefers-reduced-motion:reduce){{#{name} .play,#{name} .mark{{animation:none}}}}"""
"""Every rule names its film, since a page may hold several and has rules of its own."""


@dataclass(frozen=True)
class Film:
    """A drawn film; `svg` is a whole SVG document, the same bytes for the same frames."""

    svg: str
    rows: tuple[str, ...]
    frames: int

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"Film({', '.join(self.rows)}; {self.frames} frames)"


def film(
    rows: Mapping[str, Any],
    *,
    signed: bool = False,
    limit: float = 1.0,
    hidden: int = 0,
    seconds: float = 0.4,
) -> Film:
    """Draw films (T, height, width) of one size below each other, {title: frames}.

    Args:
        signed: colours from -limit to limit instead of 0 to limit.
        limit: the value of the darkest colour; beyond it, colours stay there. nan is blank.
        hidden: how many frames at the end are set apart by a line.
        seconds: how long each frame stands.

    Raises: ValueError for no film, films of several shapes, or a number out of range.
    """
    named = {title: np.asarray(frames, np.float64) for title, frames in rows.items()}
    shapes = {frames.shape for frames in named.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 3 or 0 in shape:
        found = [frames.shape for frames in named.values()]
        raise ValueError(f"rows: expected films of one shape (T, height, width), got {found}")
    if not (limit > 0 and seconds > 0 and 0 <= hidden < shape[0]):
        given = f"{limit}, {seconds} and {hidden}"
        raise ValueError(f"limit, seconds, hidden: expected > 0, > 0 and 0…T-1, got {given}")
    colours = SIGNED if signed else OPEN
    sheets = [
        _sheet(frames, -limit if signed else 0.0, limit, colours) for frames in named.values()
    ]
    return Film(_drawn(list(named), sheets, shape, hidden, seconds), tuple(named), shape[0])


def _drawn(
    titles: list[str], sheets: list[str], shape: tuple[int, ...], hidden: int, seconds: float
) -> str:
    """The SVG: for each row its title, the picture that moves, and the strip."""
    count, high, wide = shape
    strip = WIDTH - SCREEN - GAP
    side = strip / count
    row = LABEL + max(SCREEN * high / wide, side * high / wide) + GAP / 2
    name = f"film-{zlib.crc32(''.join([*titles, *sheets]).encode()):08x}"
    style = STYLE.format(
        name=name, ink=INK, time=seconds * count, count=count, frames=count * wide, strip=strip
    )
    height = row * len(titles)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" '
        f'width="{WIDTH:g}" height="{height:g}" id="{name}" role="img">'
    )
    body = [head, f"<title>{escape(', '.join(titles))}</title>", f"<style>{style}</style>"]
    for k, (title, sheet) in enumerate(zip(titles, sheets, strict=True)):
        body.append(f'<g transform="translate(0 {k * row:g})">')
        body += _row(title, f"{name}-{k}", sheet, (count, high, wide), hidden)
        body.append("</g>")
    return "\n".join([*body, "</svg>"]) + "\n"


def _row(title: str, name: str, sheet: str, shape: tuple[int, int, int], hidden: int) -> list[str]:
    """One film: all frames lie side by side in one image, which is used twice."""
    count, high, wide = shape
    left, strip = SCREEN + GAP, WIDTH - SCREEN - GAP
    side, tall = strip / count, strip / count * high / wide
    screen = SCREEN * high / wide
    size = f'width="{count * wide}" height="{high}"'
    found = [
        f'<text x="0" y="{LABEL - 7:g}">{escape(title)}</text>',
        f'<defs><image id="{name}" {size} preserveAspectRatio="none" href="{sheet}"/></defs>',
        f'<svg y="{LABEL:g}" width="{SCREEN:g}" height="{screen:g}" viewBox="0 0 {wide} {high}">'
        f'<g class="play"><use href="#{name}"/></g></svg>',
        f'<svg x="{left:g}" y="{LABEL:g}" width="{strip:g}" height="{tall:g}" '
        f'viewBox="0 0 {count * wide} {high}"><use href="#{name}"/></svg>',
    ]
    for k in range(1, count):
        apart = hidden and k == count - hidden
        colour, weight = (RED, 3) if apart else (GREY, 1)
        x, end = left + k * side, LABEL + tall + 4 * bool(apart)
        line = f'<path d="M{x:g} {LABEL - 4 * bool(apart):g}V{end:g}" stroke="{colour}" '
        found.append(f'{line}stroke-width="{weight}"/>')
    mark = f'x="{left:g}" y="{LABEL + tall + 3:g}" width="{side:g}" height="4" fill="{INK}"'
    return [*found, f'<rect class="mark" {mark}/>']


def _sheet(frames: Array, low: float, high: float, colours: Colormap) -> str:
    """All frames side by side as the address of a PNG with a palette; stored, not compressed, so
    that the bytes don't depend on a library."""
    scaled = np.nan_to_num((frames - low) / (high - low), nan=0.0)
    levels = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    flat = np.concatenate(list(levels), axis=1)
    palette = np.rint(colours(np.arange(256))[:, :3] * 255).astype(np.uint8).tobytes()
    lines = b"".join(b"\0" + line.tobytes() for line in flat)
    head = struct.pack(">IIBBBBB", flat.shape[1], flat.shape[0], 8, 3, 0, 0, 0)
    parts = (
        (b"IHDR", head),
        (b"PLTE", palette),
        (b"IDAT", zlib.compress(lines, 0)),
        (b"IEND", b""),
    )
    png = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in parts)
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)
