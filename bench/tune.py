"""`throughput-bench --tune`: finds DALI's fastest settings on this machine and keeps them for training to pick up."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from bench.harness.turns import interleaved
from pipeline.loader import Loader
from pipeline.order import Augmentation
from pipeline.settings import Settings, tuning_key, write_tuned
from pipeline.stats import Stats
from shards.dataset import Dataset
from shards.remote import Remote
from trainer.rank import RankContext

ROUNDS = 3  # measurements of each candidate
GAIN = 1.03  # what a candidate must be faster by: less is noise


def tune_rank(
    context: RankContext, data: Path | Remote, batch_size: int, chosen: dict[str, Any], seconds: float
) -> None:
    """One rank's part: all ranks read at once, and the sum of their rates decides.

    Args: chosen: the settings that the command line gives, where the search begins; seconds: of one measurement.
    """
    dataset = Dataset.load(data)
    stats = Stats.load(dataset.root)

    def log(text: str) -> None:
        if context.rank == 0:
            print(text, flush=True)

    def rate(trial: Settings) -> float:
        loader = Loader(
            *(dataset, "train", "train"),
            batch_size=batch_size,
            settings=trial,
            rank_slice=context.rank_slice,
            augmentation=Augmentation(stats),
        )
        pipe = loader.pipeline(0)
        for _ in range(trial.prefetch + 1):  # batches that were prefetched are not counted
            pipe.run()
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            pipe.run()
            count += batch_size // context.world_size
        return context.all_reduce(count / (time.perf_counter() - began), dist.ReduceOp.SUM)

    begin = context.settings(chosen, dataset.size)
    fastest = find_fastest(rate, begin, context.threads, context.device_id is not None, log)
    if context.rank == 0:
        key = tuning_key(context.device_id, context.threads, dataset.size)
        path = write_tuned(key, fastest)
        log(f"{key}: {', '.join(f'{name} {value}' for name, value in fastest._asdict().items())}")
        log(f"Written to {path}: train, eval and throughput-bench take it from there")


def candidates(cores: int, gpu: bool) -> dict[str, tuple[Any, ...]]:
    """The values to try of each setting, for a rank that has `cores` cores."""
    everywhere = {
        "threads": tuple(sorted({max(1, cores // 2), max(1, cores - 1), cores, cores + 1, 2 * cores})),
        "prefetch": (1, 2, 3, 4),
    }
    # Near 0.1 is best with some 70 threads, and far more with few: DALI's documentation says to find it by trying
    with_gpu = {
        "decode_on": ("device", "cpu"),
        "hw_decoder_load": (0.0, 0.1, 0.3, 0.5, 0.65, 0.8, 0.95),
        "affinity": (False, True),
    }
    return {**with_gpu, **everywhere} if gpu else everywhere


def find_fastest(
    rate: Callable[[Settings], float], begin: Settings, cores: int, gpu: bool, log: Callable[[str], None]
) -> Settings:
    """The fastest settings, found one setting after another: its values are tried with the others as they then are.

    The values of one setting are interleaved, ROUNDS times, and the median of `rate`, images a second, decides; a
    value replaces the current one only when it is faster by more than noise, GAIN.
    """
    best = begin
    for name, values in candidates(cores, gpu).items():
        current = getattr(best, name)
        trials = {value: best._replace(**{name: value}) for value in dict.fromkeys((current, *values))}
        rates = interleaved({value: partial(rate, trial) for value, trial in trials.items()}, ROUNDS)
        medians = {value: statistics.median(measured) for value, measured in rates.items()}
        fastest = max(medians, key=lambda value: medians[value])
        if medians[fastest] > GAIN * medians[current]:
            best = best._replace(**{name: fastest})
        log(f"{name}: {', '.join(f'{value} {speed:.0f}' for value, speed in medians.items())} img/s")
    return best
