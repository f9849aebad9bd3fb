"""Drawings of the studies of parts, as SVG files that are right on light and dark grounds."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from PIL import Image

from pages.plot import round_up, standalone

WIDTH, LEFT, ROW, LINE = 640, 150, 34, 18  # pixels
KERNEL, GAP, COLUMNS = 44, 4, 12  # of a kernel as it is shown


class Row(NamedTuple):
    """A row of dots. values: one a seed."""

    name: str
    values: Sequence[float]


def dots(rows: Sequence[Row], title: str, unit: str) -> str:
    """A dot for each seed, a line at the mean, one row below the other. The axis need not begin at 0."""
    values = [value for row in rows for value in row.values]
    step = round_up(max(max(values) - min(values), 1e-9) / 4)
    low = step * np.floor(min(values) / step)
    high = step * np.ceil(max(values) / step + 1e-9)
    bottom = 2 * LINE + ROW * len(rows)

    def x(value: float) -> float:
        return round(float(LEFT + (WIDTH - LEFT - 30) * (value - low) / (high - low)), 1)

    parts = [_text(8, LINE, title)]
    for tick in np.arange(low, high + step / 2, step):
        parts.append(f'<line class="axis" x1="{x(tick)}" x2="{x(tick)}" y1="{1.5 * LINE}" y2="{bottom}"/>')
        parts.append(_text(x(tick), bottom + LINE, f"{tick:.4g}", 'text-anchor="middle" class="quiet"'))
    parts.append(_text(WIDTH - 8, bottom + 2 * LINE, unit, 'text-anchor="end" class="quiet"'))
    for number, row in enumerate(rows):
        y = round(1.5 * LINE + ROW * (number + 0.5), 1)
        mean = x(sum(row.values) / len(row.values))
        parts.append(_text(LEFT - 12, y + 4, row.name, 'text-anchor="end"'))
        parts.append(f'<line class="series c{number % 6}" x1="{mean}" x2="{mean}" y1="{y - 12}" y2="{y + 12}"/>')
        parts += [f'<circle class="f{number % 6}" cx="{x(value)}" cy="{y}" r="4"/>' for value in row.values]
    return _file(bottom + 2.5 * LINE, parts, title)


def bars(before: Sequence[float], after: Sequence[float], towers: int, title: str) -> str:
    """Two rows of bars, a kernel each, on axes of their own; a line parts the towers."""
    height, parts = 120, [_text(8, LINE, title)]
    for number, (name, values) in enumerate((("before", before), ("after", after))):
        bottom = 2 * LINE + (number + 1) * (height + LINE) - LINE
        top = max(max(values), 1e-9)
        wide = (WIDTH - 100) / len(values)
        parts.append(_text(8, bottom - height / 2, name))
        parts.append(_text(84, bottom - height + 10, f"{top:.3g}", 'text-anchor="end" class="quiet"'))
        parts.append(f'<line class="axis" x1="90" x2="{WIDTH - 10}" y1="{bottom}" y2="{bottom}"/>')
        for kernel, value in enumerate(values):
            tall = round(height * value / top, 1)
            place = f'x="{90 + wide * kernel:.1f}" y="{bottom - tall}" width="{wide * 0.8:.1f}" height="{tall}"'
            parts.append(f'<rect class="f{number}" {place}/>')
    for border in range(1, towers):
        x = round(90 + (WIDTH - 100) * border / towers, 1)
        parts.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{1.5 * LINE}" y2="{2 * LINE + 2 * height + LINE}"/>')
    return _file(2.5 * LINE + 2 * height + LINE, parts, title)


def kernel_sheet(towers: Sequence[tuple[str, np.ndarray]], title: str) -> str:
    """Kernels as images, tower by tower under its name. Args: towers: names, N x height x width x 3 uint8."""
    parts, y = [_text(8, LINE, title)], 2.0 * LINE
    for name, kernels in towers:
        parts.append(_text(8, y + 12, name))
        y += LINE + 4
        for number, kernel in enumerate(kernels):
            across, down = number % COLUMNS, number // COLUMNS
            place = f'x="{8 + across * (KERNEL + GAP)}" y="{y + down * (KERNEL + GAP)}"'
            size = f'width="{KERNEL}" height="{KERNEL}" style="image-rendering: pixelated"'
            parts.append(f'<image {place} {size} href="data:image/png;base64,{_png(kernel)}"/>')
        y += -(-len(kernels) // COLUMNS) * (KERNEL + GAP) + LINE / 2
    return _file(y, parts, title)


def _png(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{round(x, 1)}" y="{round(y, 1)}" {more}>{escape(words)}</text>'


def _file(height: float, parts: Sequence[str], title: str) -> str:
    size = f'viewBox="0 0 {WIDTH} {round(height)}"'
    return standalone(f'<svg {size} role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>')
