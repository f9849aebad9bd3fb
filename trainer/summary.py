"""What a finished run says: what it reached, which evaluation was best, where it lies, and what to do with it."""

import shlex
from pathlib import Path

from trainer import metrics
from trainer.run_folder import BEST, find_checkpoint


def summary(run: Path, data: str) -> str:
    """Args: data: the folder or URL of the run's data set."""
    trained, evaluated = metrics.read(run, "train"), metrics.read(run, "eval")
    reached = [f"loss {trained[-1]['loss']:#.5g}"] if trained else []
    reached += [
        f"{_of_crops(line)}{metrics.error_text(line)}" for line in evaluated if line["step"] == evaluated[-1]["step"]
    ]
    newest = find_checkpoint(run)
    lines = [f"Done: {', '.join(reached)}", f"Checkpoint: {newest}"]
    best, which = metrics.best(evaluated), ""
    if best and (run / BEST).exists():
        lines.append(
            f"Best: {run / BEST}, {metrics.error_text(best)} after step {best['step']}, epoch {best['epoch'] + 1}"
        )
        which = " --which best"
    folder = shlex.quote(str(run))
    lines.append(f"Next: python cli.py report {folder} --out report.html")
    lines.append(f"      python cli.py predict --checkpoint {folder}{which} IMAGE...")
    if evaluated:
        lines.append(
            f"      python cli.py eval --checkpoint {folder}{which} --data {shlex.quote(data)} --crops 10 --per-class"
        )
    return "\n".join(lines)


def _of_crops(line: dict[str, object]) -> str:
    return "" if line["crops"] == 1 else f"{line['crops']} crops: "
