"""`throughput-bench --tune`: finds DALI's fastest settings on this machine and keeps them for training to pick up.

On a GPU a setting is as good as training is fast with it: there decoding and the model share the card, and the fastest
pipeline alone may be the one that keeps the model waiting. On a CPU their times add up, so the pipeline alone decides:
it is a few hundredths of a step, which training's own rate would not tell from noise.
"""

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bench.config import BenchConfig
from bench.harness.model_step import ModelStep
from bench.harness.turns import interleaved
from bench.rank_setup import RankSetup
from pipeline.preprocess import Preprocess
from pipeline.settings import Settings, tuning_key, write_tuned
from shards.remote import Remote
from trainer.rank import RankContext

ROUNDS = 3  # measurements of each candidate
GAIN = 1.03  # what a candidate must be faster by: less is noise


def choices(cores: int, gpu: bool) -> dict[str, tuple[Any, ...]]:
    """The values to try of each setting, in this order, for a rank that has `cores` cores."""
    everywhere = {
        "threads": tuple(sorted({max(1, cores // 2), max(1, cores - 1), cores, cores + 1, 2 * cores})),
        "prefetch": (1, 2, 3, 4),
    }
    # Near 0.1 is best with some 70 threads, and far more with few: DALI's documentation says to find it by trying
    with_gpu = {
        "decode_on": ("device", "cpu"),
        "hw_decoder_load": (0.0, 0.1, 0.3, 0.5, 0.65, 0.8, 0.95),
        "affinity": (False, True),
        "pipelines": (1, 2, 3, 4),
        "operator_concurrency": ("full", "backend", "none"),
    }
    return {**with_gpu, **everywhere} if gpu else everywhere


def tune_rank(context: RankContext, config: BenchConfig, data: Path | Remote) -> None:
    """One rank's part: all ranks work at once, and the sum of their rates decides.

    Args: config: whose `decoding` is where the search begins, and whose `seconds` are those of one measurement.
    """
    setup = RankSetup.load(context, config, data)
    rate = (measure_pipeline if context.device_id is None else measure_training)(setup)

    def log(text: str) -> None:
        if context.rank == 0:
            print(text, flush=True)

    fastest = find_fastest(rate, setup.settings, choices(context.threads, context.device_id is not None), log)
    if context.rank == 0:
        key = tuning_key(context.device_id, context.threads, setup.dataset.size)
        log(f"{key}: {', '.join(f'{name} {value}' for name, value in fastest._asdict().items())}")
        path = write_tuned(key, fastest)
        log(f"Written to {path}: train, eval and throughput-bench take it from there")


def measure_pipeline(setup: RankSetup) -> Callable[[Settings], float]:
    """A function that gives the pipeline's images a second with some settings."""
    return lambda trial: setup.time(setup.batches(settings=trial).__next__).median


def measure_training(setup: RankSetup) -> Callable[[Settings], float]:
    """A function that gives training's images a second with some settings."""
    context = setup.context
    step = ModelStep(context, len(setup.dataset.classes), setup.config.model)
    preprocess = Preprocess(setup.stats, "image", context.device, step.precision.dtype)

    def train(trial: Settings) -> float:
        batches = setup.batches(settings=trial)
        return setup.time(lambda: step.update(*context.gather_batch(next(batches), preprocess))).median

    return train


def find_fastest(
    rate: Callable[[Settings], float],
    begin: Settings,
    possible: Mapping[str, tuple[Any, ...]],
    log: Callable[[str], None],
) -> Settings:
    """The fastest settings, found one setting after another: its values are tried with the others as they then are.

    The values of one setting are interleaved, ROUNDS times, and the median of `rate`, images a second, decides; a
    value replaces the current one only when it is faster by more than noise, GAIN.
    """
    best = begin
    for name, values in possible.items():
        current = getattr(best, name)
        trials = {value: best._replace(**{name: value}) for value in dict.fromkeys((current, *values))}
        rates = interleaved({value: partial(rate, trial) for value, trial in trials.items()}, ROUNDS)
        medians = {value: statistics.median(measured) for value, measured in rates.items()}
        fastest = max(medians, key=lambda value: medians[value])
        if medians[fastest] > GAIN * medians[current]:
            best = best._replace(**{name: fastest})
        log(f"{name}: {', '.join(f'{value} {speed:.0f}' for value, speed in medians.items())} img/s")
    return best
