"""Draws a run's training loss and validation errors: python -m bench.studies.curve RUN OUT.svg"""

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from shards.atomic import atomic_write
from trainer import metrics

WIDTH, HEIGHT, LEFT, TOP = 720, 360, 48, 28
LOSS = "training loss, smoothed, / 4"
COLORS = {"top-1 error": "#d62728", "top-5 error": "#1f77b4", LOSS: "#999999"}
Points = list[tuple[int, float]]  # step and value


def smooth(values: NDArray[np.float64], window: int = 9) -> NDArray[np.float64]:
    """The mean of each value and its neighbors, fewer at the ends."""
    return np.array([values[max(0, i - window // 2) : i + window // 2 + 1].mean() for i in range(len(values))])


def read_lines(run: Path) -> dict[str, Points]:
    """A run's lines to draw, by their names."""
    trained, evaluated = metrics.read(run, "train"), metrics.read(run, "eval")
    losses = smooth(np.array([entry["loss"] for entry in trained])) / 4
    return {
        "top-1 error": [(entry["step"], entry["top1_error"]) for entry in evaluated],
        "top-5 error": [(entry["step"], entry["top5_error"]) for entry in evaluated if entry["top5_error"] is not None],
        LOSS: list(zip((entry["step"] for entry in trained), losses.tolist(), strict=True)),
    }


def draw(lines: dict[str, Points]) -> str:
    """The lines as SVG."""
    last = max(step for step, _ in lines[LOSS])

    def position(step: float, value: float) -> str:
        return f"{LEFT + step / last * (WIDTH - LEFT - 10):.1f},{TOP + (1 - min(value, 1)) * (HEIGHT - TOP - 40):.1f}"

    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>']
    for tenth in range(0, 11, 2):
        x, y = position(0, tenth / 10).split(",")
        parts.append(f'<path d="M{x},{y}H{WIDTH - 10}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{float(y) + 4}" text-anchor="end">{tenth * 10} %</text>')
    for number, (name, points) in enumerate(lines.items()):
        path = " ".join(position(*point) for point in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLORS[name]}" stroke-width="2"/>')
        parts.append(f'<text x="{LEFT + 10 + 200 * number}" y="18" fill="{COLORS[name]}">{name}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">steps, up to {last}</text>')
    font = 'font-family="sans-serif" font-size="13"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {font}>'
    return head + "".join(parts) + "</svg>\n"


@click.command(help=__doc__)
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
def main(run: Path, out: Path) -> None:
    with atomic_write(out) as file:
        file.write(draw(read_lines(run)).encode())


if __name__ == "__main__":
    main()
