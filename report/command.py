"""`report`: runs as one page of HTML, or the learning curve of one as SVG."""

from collections.abc import Sequence
from pathlib import Path

from pages.plot import draw, standalone
from report import curves
from report.answers import ask
from report.page import page
from report.runs import Run
from shards.atomic import atomic_write
from shards.errors import InputError
from shards.remote import Remote

CURVE = ".svg"
CURVE_SIZE = 760, 400


def load(folders: Sequence[Path], out: Path) -> list[Run]:
    """The runs. Raises InputError for a folder that is none, and for several as one curve."""
    if out.suffix.lower() == CURVE and len(folders) > 1:
        raise InputError(f"--out {out} is the learning curve of one run: give one, or a name that ends in .html")
    return [Run.load(folder) for folder in folders]


def write(runs: Sequence[Run], out: Path, data: Path | Remote | None, which: str, device: str) -> list[str]:
    """Writes the page, or the curve where the name ends in .svg. Returns what is missing in it, in lines.

    Args: data: the runs' data set, None for what each records; which: newest or best, of each run's checkpoints.
    """
    if out.suffix.lower() == CURVE:
        width, height = CURVE_SIZE
        content, missing = standalone(draw(curves.learning(runs[0], runs, width, height))), []
    else:
        answers = [ask(run, data, which, device) for run in runs]
        content = page(runs, answers)
        missing = [f"{run.name}: {line}" for run, one in zip(runs, answers, strict=True) for line in one.missing]
    with atomic_write(out) as file:
        file.write(content.encode())
    return missing
