"""Measures other loaders and ours, interleaved and each turn in a fresh process, and checks that they do the same work.

The mean and the spread of an epoch's pixels show that: a loader whose pixels differ from ours gets no figure.
"""

import functools
import time
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.harness.fresh_process import run_in_fresh_process
from bench.harness.turns import interleaved, ratios, summarize
from bench.loaders.base import ImageSet, LoaderSpec, arrive
from bench.loaders.ours import OURS
from bench.loaders.registry import OTHERS
from pipeline.geometry import CROP
from shards.progress import Progress

TOLERANCE = 2.0  # levels of 255, by which a color's mean and spread over an epoch may differ from ours
ROUNDS = 3
# Images of an epoch that is timed, at least: at its end, loaders empty their queues and start again
EPOCH = {"cpu": 5120, "cuda": 40_960}
TIMEOUT = 300  # seconds that a loader may take for a turn, with writing its own format of the images


class Work(NamedTuple):
    """What every loader is to do: batches of the images for a device, by `workers` processes or threads; `seconds` of a
    turn are timed."""

    images: ImageSet
    batch_size: int
    workers: int
    device: torch.device
    seconds: float


class Turn(NamedTuple):
    """Images a second, and each color's mean and spread over an epoch, None where these were not asked for."""

    rate: float
    mean: NDArray[np.float64] | None
    spread: NDArray[np.float64] | None


def measure(loader: LoaderSpec, work: Work, check_pixels: bool) -> Turn:
    """A loader's turn, in this process: `work.seconds` that are timed, after as many that are not. A batch counts once
    it is on the device."""
    images, batch_size, workers, device, seconds = work
    mean = spread = None
    if check_pixels:
        batches = loader.batches(images, batch_size, workers, device)
        mean, spread = pixel_statistics(next(batches) for _ in range(len(images.files) // batch_size))
        del batches
    repeated = images._replace(repeats=-(-EPOCH[device.type] // len(images.files)))
    batches = loader.batches(repeated, batch_size, workers, device)
    for _ in range(2):  # the first time uses up what was prefetched, which may be a thousand images
        next(batches)
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            count += len(arrive(next(batches), device))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        rate = count / (time.perf_counter() - began)
    return Turn(rate, mean, spread)


def not_installed(loader: LoaderSpec) -> str | None:
    """Which of a loader's packages is not there, None when all are; nothing is imported."""
    for module in loader.modules:
        if find_spec(module.partition(".")[0]) is None:
            return f"not installed: {module.partition('.')[0]}"
    return None


def import_error(loader: LoaderSpec) -> str | None:
    """Why a loader cannot be imported, None when it can."""
    for module in loader.modules:
        try:
            import_module(module)
        except Exception as error:  # another library's import may fail in any way
            return f"{module} cannot be imported: {_one_line(error, 200)}"
    return None


def pixel_statistics(batches: Iterable[Tensor]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each color's mean and standard deviation over all pixels of uint8 batches."""
    count, total, squares = 0, np.zeros(3), np.zeros(3)
    for batch in batches:
        if batch.dtype != torch.uint8 or CROP not in batch.shape[1:]:
            raise ValueError(f"a batch is {tuple(batch.shape)} {batch.dtype}, and should be N x 224 x 224 x 3 uint8")
        colors = (batch if batch.shape[-1] == 3 else batch.movedim(1, -1)).reshape(-1, 3).double()
        count += len(colors)
        total += colors.sum(0).cpu().numpy()
        squares += (colors**2).sum(0).cpu().numpy()
    mean = total / count
    return mean, np.sqrt(squares / count - mean**2)


def pixel_difference(turn: Turn, ours: Turn) -> str | None:
    """How a loader's pixels differ from ours, None when they agree within TOLERANCE."""
    for what, theirs, own in (("mean", turn.mean, ours.mean), ("spread", turn.spread, ours.spread)):
        assert theirs is not None and own is not None, "pixels are checked in the first turn"
        if np.abs(theirs - own).max() > TOLERANCE:
            values = f"{np.round(theirs, 1).tolist()}, ours {np.round(own, 1).tolist()}"
            return f"does other work: the {what} of its pixels is {values}, and may differ by {TOLERANCE:g}"
    return None


def compare_loaders(work: Work, rounds: int, others: tuple[LoaderSpec, ...] = OTHERS) -> list[dict[str, Any]]:
    """{"name", "version", "decoded_on", "img_per_s", "p10", "p90", "ratio" (ours / theirs)} or {"name", "absent": why},
    ours first. Those that need a GPU are left out for a CPU.

    Args: work: its batch is at most half of the images; rounds: turns of each loader. Raises: RuntimeError when our own
    loader fails.
    """
    work = work._replace(batch_size=min(work.batch_size, len(work.images.files) // 2))
    first_turns: dict[str, Turn] = {}
    loaders = (OURS, *(loader for loader in others if work.device.type == "cuda" or not loader.needs_gpu))
    absent = {loader.name: why for loader in loaders if (why := not_installed(loader))}

    def take_turn(loader: LoaderSpec) -> Turn | None:
        progress.advance()
        if loader.name in absent:
            return None
        first = loader.name not in first_turns
        result = _measure_alone(loader, work, first)
        if isinstance(result, Turn) and first and loader is not OURS:
            result = pixel_difference(result, first_turns[OURS.name]) or result
        if isinstance(result, Turn):
            first_turns.setdefault(loader.name, result)
            progress.say(f"{loader.name}: {result.rate:,.0f} img/s")
            return result
        if loader is OURS:
            raise RuntimeError(result)
        absent[loader.name] = result
        return None

    turns: dict[LoaderSpec, Callable[[], Turn | None]] = {
        loader: functools.partial(take_turn, loader) for loader in loaders
    }
    with Progress("loaders", rounds * len(turns), unit="turns", lines=False) as progress:
        # Ours is the first of the first round, so that the others' pixels have something to be compared with
        results = interleaved(turns, rounds)
    rates = {loader: [turn.rate for turn in results[loader] if turn] for loader in loaders}
    return [
        {"name": loader.name, "absent": absent[loader.name]}
        if loader.name in absent
        else _figures(loader, work.device, rates[loader], rates[OURS])
        for loader in loaders
    ]


def _figures(loader: LoaderSpec, device: torch.device, rates: list[float], ours: list[float]) -> dict[str, Any]:
    speed, ratio = summarize(rates), summarize(ratios(ours, rates))
    figures = {"img_per_s": speed["median"], "p10": speed["p10"], "p90": speed["p90"], "ratio": ratio["median"]}
    decoded_on = "CPU" if device.type == "cpu" else loader.decodes_on
    return {"name": loader.name, "version": _version(loader.package), "decoded_on": decoded_on, **figures}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _measure_alone(loader: LoaderSpec, work: Work, check_pixels: bool) -> Turn | str:
    """`measure` in a fresh process, or why there is no figure."""
    try:
        return run_in_fresh_process(TIMEOUT, _import_and_measure, loader, work, check_pixels)
    except Exception as error:
        return _one_line(error, 300)


def _import_and_measure(loader: LoaderSpec, work: Work, check_pixels: bool) -> Turn | str:
    return import_error(loader) or measure(loader, work, check_pixels)


def _one_line(error: Exception, limit: int) -> str:
    return " ".join(str(error).split())[:limit]


def comparison_table(compared: list[dict[str, Any]]) -> str:
    """The figures of `compare_loaders` as lines to print."""
    lines = [f"{'loader':<38}{'img/s':>10}{'p10':>10}{'p90':>10}  ours / theirs  decoded on"]
    for loader in compared:
        if "absent" in loader:
            lines.append(f"{loader['name']:<38}absent: {loader['absent']}")
        else:
            rates = "".join(f"{loader[key]:>10,.0f}" for key in ("img_per_s", "p10", "p90"))
            lines.append(f"{loader['name']:<38}{rates}{loader['ratio']:>9.2f}        {loader['decoded_on']}")
    return "\n".join(lines)
