"""A run's `metrics.jsonl`: one JSON object a line.

    {"kind": "train", "step", "epoch", "loss", "lr", "img_per_s", "data_wait"}
    {"kind": "eval", "step", "epoch", "crops", "top1_error", "top5_error", "samples"}

`step` counts from 1 and is the number of updates so far; `epoch` counts from 0; `loss` is that step's mean
cross-entropy in nats; `img_per_s` covers the steps since the line before, without evaluations; `data_wait` is the share
of that time in which the first process only waited for the next batch, see `StepTimer`; both leave out a first step
that is compiled, and are null when there is no other; errors are fractions, and `top5_error` is null where there are at
most five classes.
"""

import errno
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from shards.atomic import atomic_write
from shards.console import notice
from shards.errors import InputError

FILE = "metrics.jsonl"

T = TypeVar("T")
Timestamp = float | torch.cuda.Event


def read(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """A run's lines, all or those of one kind; empty when there is no file."""
    path = run / FILE
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [line for line in lines if kind in (None, line["kind"])]


def best(evaluated: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Of a run's evaluations by the center crop that of the lowest top-1 error, the first of equals, whose checkpoint
    is kept; None where there is none."""
    return min((line for line in evaluated if line["crops"] == 1), key=lambda line: line["top1_error"], default=None)


def drops(trained: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """Where a run's learning rate was lowered: the first logged step that had the lower one, and that rate."""
    pairs = itertools.pairwise(trained)
    return [(after["step"], after["lr"]) for before, after in pairs if after["lr"] < before["lr"] / 2]


def append(run: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Adds lines, all or none. Raises InputError when the disk is full or the folder cannot be written."""
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    try:
        with open(run / FILE, "ab", buffering=0) as file:
            before = file.tell()
            if file.write(content) < len(content):
                file.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise InputError(f"cannot write {run / FILE}: {error.strerror}") from None


def rewind(run: Path, step: int, evaluated: bool) -> None:
    """Drops what a killed run logged after its last checkpoint: those steps are run and logged again, and so is the
    evaluation after the checkpoint's own step, unless the checkpoint is of after it (`evaluated`)."""
    kept = [line for line in read(run) if line["step"] < step + (evaluated or line["kind"] == "train")]
    with atomic_write(run / FILE) as file:
        file.write("".join(json.dumps(line) + "\n" for line in kept).encode())


def step_text(line: Mapping[str, Any]) -> str:
    """A step's line, to be shown."""
    loss, lr, speed, wait = (line[name] for name in ("loss", "lr", "img_per_s", "data_wait"))
    speed_text = "" if speed is None else f" {speed:.0f} img/s data wait {wait:.0%}"
    return f"loss {loss:#.5g} lr {lr:g}{speed_text}"


def error_text(result: Mapping[str, Any], digits: int = 1) -> str:
    """An evaluation's errors in percent, to be shown."""
    errors = {"top-1": result["top1_error"], "top-5": result["top5_error"]}
    return ", ".join(f"{name} error {error:.{digits}%}" for name, error in errors.items() if error is not None)


class StepTimer:
    """The time since the last `lap`, and how much of it was spent waiting for data.

    Waiting is from the request for a batch until the pipeline returns it, and includes building an epoch's pipeline,
    but not the exchange of crops between processes or their copy to the device. On a GPU, whose step is still running
    when the next batch is requested, only the time that it is idle counts: both timestamps are events in its stream.
    """

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self._reset()

    def _reset(self) -> None:
        self.images, self.started = 0, time.perf_counter()
        self.waits: list[tuple[Timestamp, Timestamp]] = []

    def time_waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; the time until each is there counts as waiting for data."""
        iterator = iter(batches)
        while True:
            began = self._now()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self.waits.append((began, self._now()))
            yield batch

    def _now(self) -> Timestamp:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside is not counted."""
        began = time.perf_counter()
        yield
        self.started += time.perf_counter() - began

    def lap(self) -> dict[str, float | None]:
        """`img_per_s` and `data_wait` since the last lap, once the device has finished its work; None of both when no
        image was counted."""
        seconds = time.perf_counter() - self.started
        waited = sum(_seconds_between(began, ended) for began, ended in self.waits)
        lap: dict[str, float | None] = {"img_per_s": None, "data_wait": None}
        if self.images:
            lap = {"img_per_s": round(self.images / seconds, 1), "data_wait": round(waited / seconds, 4)}
        self._reset()
        return lap


def _seconds_between(began: Timestamp, ended: Timestamp) -> float:
    if isinstance(began, float):
        assert isinstance(ended, float)
        return ended - began
    assert not isinstance(ended, float)
    return float(began.elapsed_time(ended)) / 1e3  # torch counts milliseconds between events


class MetricsLogger:
    """Writes a run's lines to `metrics.jsonl`.

    A disk without room does not end the run: its lines are kept, with a notice, and written when there is room. A run
    whose disk stays full ends at its next checkpoint.

    Args: step, evaluated: of the checkpoint that the run continues from, see `rewind`; also: gets each line, too.
    """

    def __init__(self, run: Path, step: int, evaluated: bool, also: Callable[[dict[str, Any]], None] | None):
        self.run, self.also = run, also
        self.unwritten: list[dict[str, Any]] = []
        rewind(run, step, evaluated)

    def log(self, line: dict[str, Any]) -> None:
        self.unwritten.append(line)
        try:
            self.write_all()
        except InputError as error:
            if len(self.unwritten) == 1:
                notice(f"{error}; training goes on, and its lines are written when there is room")
        if self.also:
            self.also(line)

    def write_all(self) -> None:
        """Writes what is not written yet. Raises InputError when there still is no room."""
        append(self.run, self.unwritten)
        self.unwritten = []
