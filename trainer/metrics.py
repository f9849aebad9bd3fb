"""A run's `metrics.jsonl`: one JSON object a line.

    {"kind": "train", "step", "epoch", "loss", "lr", "img_per_s"}
    {"kind": "eval", "step", "epoch", "top1_error", "top5_error", "samples"}

`step` counts from 1 and is the number of updates made; `epoch` counts from 0; `loss` is that step's mean cross-entropy
in nats; `img_per_s` covers the steps since the line before; errors are fractions.
"""

import json
from pathlib import Path

from shards.errors import InputError
from shards.files import atomic_write

FILE = "metrics.jsonl"


def read(run: Path, kind: str | None = None) -> list[dict]:
    """A run's lines, all or those of one kind; none when there is no file."""
    path = run / FILE
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [line for line in lines if kind in (None, line["kind"])]


def append(run: Path, line: dict) -> None:
    """Adds a line. Raises InputError when the disk is full or the folder cannot be written."""
    try:
        with open(run / FILE, "a") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {run / FILE}: {error.strerror}") from None


def rewind(run: Path, step: int) -> None:
    """Drops what a killed run logged after its last checkpoint: those steps are made, and logged, again."""
    kept = [line for line in read(run) if line["step"] <= step]
    with atomic_write(run / FILE) as file:
        file.write("".join(json.dumps(line) + "\n" for line in kept).encode())
