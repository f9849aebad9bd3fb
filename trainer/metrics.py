"""A run's `metrics.jsonl`: one JSON object a line.

    {"kind": "train", "step", "epoch", "loss", "lr", "img_per_s", "data_wait"}
    {"kind": "eval", "step", "epoch", "crops", "top1_error", "top5_error", "samples"}

`step` counts from 1 and is the number of updates made; `epoch` counts from 0; `loss` is that step's mean cross-entropy
in nats; `img_per_s` covers the steps since the line before, without evaluations; `data_wait` is the share of that time
in which the first process had nothing to do but wait for the next batch, see `StepTimer`; errors are fractions.
"""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from shards.atomic import atomic_write
from shards.errors import InputError

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


def rewind(run: Path, step: int, evaluated: bool) -> None:
    """Drops what a killed run logged after its last checkpoint: those steps are made, and logged, again, and so is the
    evaluation after the checkpoint's own step unless it was `evaluated` when that was written."""
    kept = [line for line in read(run) if line["step"] < step + (evaluated or line["kind"] == "train")]
    with atomic_write(run / FILE) as file:
        file.write("".join(json.dumps(line) + "\n" for line in kept).encode())


class StepTimer:
    """Time since the last look, how much of it went into waiting for data, and what is not to be counted.

    Waiting is from the moment a batch is asked of the pipeline until it is there; building an epoch's pipeline is part
    of it, the exchange of crops between processes and their way to the device are not. On a GPU, whose step is still
    under way when the next batch is asked for, only what it stands idle counts: both moments are marks in its queue of
    work, and the time between them passes on the device.
    """

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.images, self.marks, self.since = 0, [], time.perf_counter()

    def time_waiting(self, batches: Iterable) -> Iterator:
        """The batches; what each takes to come is time spent waiting for data."""
        batches = iter(batches)
        while True:
            began = self._mark()
            batch = next(batches, None)
            self.marks.append((began, self._mark()))
            if batch is None:
                return
            yield batch

    def _mark(self) -> "float | torch.cuda.Event":
        if not self.cuda:
            return time.perf_counter()
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in it is not counted."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began

    def lap(self) -> dict[str, float]:
        """`img_per_s` and `data_wait` since the last look, for a device that has done what it was given."""
        seconds = time.perf_counter() - self.since
        # torch counts milliseconds between marks
        waits = [began.elapsed_time(ended) / 1e3 if self.cuda else ended - began for began, ended in self.marks]
        seen = {"img_per_s": round(self.images / seconds, 1), "data_wait": round(sum(waits) / seconds, 4)}
        self.images, self.marks, self.since = 0, [], time.perf_counter()
        return seen


class MetricsLogger:
    """Where a run's lines go: `metrics.jsonl`, and TensorBoard's files in the same folder if asked for.

    Args: step, evaluated: of the checkpoint that the run goes on from, see `rewind`.
    Raises: InputError when TensorBoard is asked for and not installed.
    """

    def __init__(self, run: Path, step: int, evaluated: bool, tensorboard: bool):
        self.run, self.board = run, None
        rewind(run, step, evaluated)
        if tensorboard:
            self.board = summary_writer_class()(run / "tensorboard", purge_step=step + 1)

    def log(self, line: dict) -> None:
        append(self.run, line)
        if self.board:
            for name, value in line.items():
                if name not in ("kind", "step", "epoch", "crops", "samples"):
                    tag = f"{line['kind']}/{name}" + (f"_{line['crops']}_crops" if line.get("crops", 1) > 1 else "")
                    self.board.add_scalar(tag, value, line["step"])
            self.board.flush()


def summary_writer_class() -> type:
    """TensorBoard's SummaryWriter. Raises InputError when it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs a package: pip install 'alexnet-dali[tensorboard]'") from None
    return SummaryWriter
