"""A run's training loss and validation errors as an image: python bench/studies/curve.py RUN OUT.svg"""

from pathlib import Path

import click
import numpy as np

from shards.atomic import atomic_write
from trainer import metrics

WIDTH, HEIGHT, LEFT, TOP = 720, 360, 48, 28
COLOURS = {"top-1 error": "#d62728", "top-5 error": "#1f77b4", "training loss, smoothed, / 4": "#999999"}


def smooth(values: np.ndarray, window: int = 9) -> np.ndarray:
    """The mean of each value and its neighbours, fewer at the ends."""
    return np.array([values[max(0, i - window // 2) : i + window // 2 + 1].mean() for i in range(len(values))])


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
def main(run: Path, out: Path) -> None:
    trained, evaluated = metrics.read(run, "train"), metrics.read(run, "eval")
    last = max(line["step"] for line in trained)
    lines = {name: [(e["step"], e[f"{name[:3]}{name[4]}_error"]) for e in evaluated] for name in list(COLOURS)[:2]}
    losses = smooth(np.array([line["loss"] for line in trained])) / 4
    lines["training loss, smoothed, / 4"] = list(zip((line["step"] for line in trained), losses, strict=True))

    def place(step: float, value: float) -> str:
        return f"{LEFT + step / last * (WIDTH - LEFT - 10):.1f},{TOP + (1 - min(value, 1)) * (HEIGHT - TOP - 40):.1f}"

    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>']
    for tenth in range(0, 11, 2):
        x, y = place(0, tenth / 10).split(",")
        parts.append(f'<path d="M{x},{y}H{WIDTH - 10}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{float(y) + 4}" text-anchor="end">{tenth * 10} %</text>')
    for number, (name, points) in enumerate(lines.items()):
        path = " ".join(place(*point) for point in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
        parts.append(f'<text x="{LEFT + 10 + 200 * number}" y="18" fill="{COLOURS[name]}">{name}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">steps, up to {last}</text>')
    font = 'font-family="sans-serif" font-size="13"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {font}>'
    with atomic_write(out) as file:
        file.write((head + "".join(parts) + "</svg>\n").encode())


if __name__ == "__main__":
    main()
