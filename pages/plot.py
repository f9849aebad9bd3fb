"""Lines over steps as SVG: an axis at the left, one of its own at the right where it is wanted, and marks."""

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import NamedTuple

from pages.colors import SERIES, VARIABLES

PLOT_STYLE = """
svg text { fill: var(--text); font: 12px system-ui, sans-serif; paint-order: stroke; stroke: var(--ground);
  stroke-width: 3px; stroke-linejoin: round } svg .axis { stroke: var(--line) }
svg .spread { stroke: var(--quiet) } svg .rate { fill: none; stroke: var(--bar); stroke-width: 2 }
svg circle { fill: var(--bar) } svg .mark { stroke: var(--quiet); stroke-dasharray: 4 3 }
svg .series { fill: none; stroke-width: 2; stroke-linejoin: round } svg .quiet { fill: var(--quiet) }
""" + "".join(f"svg .c{n} {{ stroke: var(--c{n}) }} svg .f{n} {{ fill: var(--c{n}) }}\n" for n in range(SERIES))
LETTER = 6.6  # pixels, about, of the legend
ROW = 17


class Line(NamedTuple):
    """Points (x, y), joined. color: a number; right: whether y is on the axis at the right."""

    name: str
    points: Sequence[tuple[float, float]]
    color: int
    right: bool = False


class Axis(NamedTuple):
    """title: beside it; top: the value at its end, it begins at 0; text: a value as it is to be read."""

    title: str
    top: float
    text: Callable[[float], str]


class Mark(NamedTuple):
    """x: where a vertical line stands; name: what is written at it; or, with y, on the left axis, a dot there.

    color: of the dot.
    """

    x: float
    name: str
    y: float | None = None
    color: int = 0


class Plot(NamedTuple):
    """What `draw` draws. end: the largest x, which begins at 0; x_title: of x; width, height: of the drawing, its
    units, which are pixels where it is not scaled."""

    what: str
    lines: Sequence[Line]
    left: Axis
    end: float
    right: Axis | None = None
    marks: Sequence[Mark] = ()
    x_title: str = "step"
    width: int = 400
    height: int = 270


def round_up(value: float) -> float:
    """To a number that reads well at the end of an axis."""
    if value <= 0:
        return 1.0
    scale = 10.0 ** math.floor(math.log10(value))
    return next(step * scale for step in (1, 2, 4, 6, 8, 10) if step * scale >= value * (1 - 1e-9))


def standalone(drawn: str) -> str:
    """What `draw` returned as a file of its own, right on light and dark grounds."""
    style = f"<style>{VARIABLES}{PLOT_STYLE}</style>"
    start, _, rest = drawn.partition(">")
    ground = '<rect width="100%" height="100%" style="fill: var(--ground)"/>'
    return f"{start.replace('<svg', '<svg xmlns=' + _quoted('http://www.w3.org/2000/svg'))}>{style}{ground}{rest}\n"


def _quoted(text: str) -> str:
    return f'"{escape(text)}"'


def draw(plot: Plot) -> str:
    """The plot as an SVG element for a page."""
    legend, top = _legend(plot)
    frame = _Frame(plot, 52, plot.width - (46 if plot.right else 14), top + 12, plot.height - 44)
    parts = [*legend, *frame.axes(), *frame.drops()]
    parts += [frame.line(line) for line in plot.lines]
    parts += frame.dots()
    body = "".join(parts)
    size = f'viewBox="0 0 {plot.width} {plot.height}"'
    return f'<svg {size} role="img" aria-label={_quoted(plot.what)}>{body}</svg>'


def _legend(plot: Plot) -> tuple[list[str], int]:
    """The names of the lines that have one, in their colors, in rows, and how high these are."""
    parts, x, y = [], 8.0, 14
    for line in (line for line in plot.lines if line.name):
        name = line.name if len(line.name) <= 48 else f"{line.name[:47]}…"
        wide = 34 + LETTER * len(name)
        if x > 8 and x + wide > plot.width:
            x, y = 8.0, y + ROW
        parts.append(f'<line class="series c{line.color % SERIES}" x1="{x}" x2="{x + 16}" y1="{y - 4}" y2="{y - 4}"/>')
        parts.append(f'<text x="{x + 21}" y="{y}">{escape(name)}</text>')
        x = round(x + wide, 1)
    return parts, y


class _Frame:
    """Where things lie on a plot's sheet."""

    def __init__(self, plot: Plot, left: float, right: float, top: float, bottom: float):
        self.plot, self.left, self.right, self.top, self.bottom = plot, left, right, top, bottom

    def x(self, value: float) -> float:
        return round(self.left + (self.right - self.left) * value / max(self.plot.end, 1e-9), 1)

    def y(self, value: float, axis: Axis) -> float:
        share = min(max(value / axis.top, 0.0), 1.0)
        return round(self.bottom - (self.bottom - self.top) * share, 1)

    def axes(self) -> Iterator[str]:
        plot, middle = self.plot, (self.top + self.bottom) / 2
        for share in (0, 0.25, 0.5, 0.75, 1):
            y = round(self.bottom - (self.bottom - self.top) * share, 1)
            yield f'<line class="axis" x1="{self.left}" x2="{self.right}" y1="{y}" y2="{y}"/>'
            value = escape(plot.left.text(plot.left.top * share))
            yield f'<text x="{self.left - 6}" y="{y + 4}" text-anchor="end">{value}</text>'
            if plot.right:
                value = escape(plot.right.text(plot.right.top * share))
                yield f'<text x="{self.right + 6}" y="{y + 4}">{value}</text>'
        yield _turned(13, middle, -90, plot.left.title)
        if plot.right:
            yield _turned(plot.width - 12, middle, 90, plot.right.title)
        step = round_up(plot.end) / 4
        ticks = [step * number for number in range(int(plot.end / step) + 1)]
        for tick in ticks:
            yield f'<text x="{self.x(tick)}" y="{self.bottom + 18}" text-anchor="middle">{tick:,.6g}</text>'
        yield (
            f'<text class="quiet" x="{(self.left + self.right) / 2}" y="{self.bottom + 36}" text-anchor="middle">'
            f"{escape(plot.x_title)}</text>"
        )

    def drops(self) -> Iterator[str]:
        """The vertical marks; their names are in three rows, for they may stand close together."""
        number = 0
        for mark in self.plot.marks:
            if mark.y is not None:
                continue
            x, y = self.x(mark.x), self.top + 12 + 14 * (number % 3)
            number += 1
            before = x + 5 + LETTER * len(mark.name) > self.right
            yield f'<line class="mark" x1="{x}" x2="{x}" y1="{self.top}" y2="{self.bottom}"/>'
            yield self._name(x + (-4 if before else 4), y, mark.name, before)

    def line(self, line: Line) -> str:
        axis = self.plot.right if line.right and self.plot.right else self.plot.left
        points = [(self.x(x), self.y(y, axis)) for x, y in line.points if math.isfinite(y)]
        color = line.color % SERIES
        if len(points) == 1:
            return f'<circle class="f{color}" cx="{points[0][0]}" cy="{points[0][1]}" r="3"/>'
        return f'<polyline class="series c{color}" points="{" ".join(f"{x},{y}" for x, y in points)}"/>'

    def dots(self) -> Iterator[str]:
        for mark in self.plot.marks:
            if mark.y is None:
                continue
            x, y = self.x(mark.x), self.y(mark.y, self.plot.left)
            before = x + 8 + LETTER * len(mark.name) > self.right
            yield f'<circle class="f{mark.color % SERIES}" cx="{x}" cy="{y}" r="4.5"/>'
            yield self._name(x + (-8 if before else 8), y - 8, mark.name, before)

    def _name(self, x: float, y: float, name: str, before: bool) -> str:
        """Args: before: whether it ends at x instead of beginning there."""
        return f'<text x="{x}" y="{y}"{" text-anchor=" + _quoted("end") if before else ""}>{escape(name)}</text>'


def _turned(x: float, y: float, angle: int, title: str) -> str:
    return (
        f'<text class="quiet" x="{x}" y="{y}" text-anchor="middle" transform="rotate({angle} {x} {y})">'
        f"{escape(title)}</text>"
    )
