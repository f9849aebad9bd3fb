"""`throughput-bench --tune`: finds DALI's fastest settings on this machine and keeps them for training to pick up.

On a GPU a setting is as good as training is fast with it: there decoding and the model share the card, and the fastest
pipeline alone may be the one that keeps the model waiting. On a CPU their times add up, so the pipeline alone decides:
it is a few hundredths of a step, which training's own rate would not tell from noise.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench.config import BenchConfig
from bench.harness.fresh_process import run_in_fresh_process
from bench.harness.model_step import ModelStep
from bench.harness.turns import interleaved
from bench.rank_setup import RankSetup
from pipeline.preprocess import Preprocess
from pipeline.settings import Settings, tuning_key, write_tuned
from shards.remote import Remote
from trainer.launch import launch
from trainer.rank import RankContext

ROUNDS = 3  # measurements of each candidate
GAIN = 1.03  # what a candidate must be faster by: less is noise
TIMEOUT = 600  # seconds that a measurement in a process of its own may take, a compiler's work included


class Choice(NamedTuple):
    """The values to try of one setting; `at_start`: it is read when CUDA starts, so that each value needs a process of
    its own."""

    values: tuple[Any, ...]
    at_start: bool = False


def choices(cores: int, gpu: bool) -> dict[str, Choice]:
    """What to try of each setting, in this order, for a rank that has `cores` cores."""
    everywhere = {
        "threads": Choice(tuple(sorted({max(1, cores // 2), max(1, cores - 1), cores, cores + 1, 2 * cores}))),
        "prefetch": Choice((1, 2, 3, 4)),
    }
    # Near 0.1 is best with some 70 threads, and far more with few: DALI's documentation says to find it by trying
    with_gpu = {
        "decode_on": Choice(("device", "cpu")),
        "hw_decoder_load": Choice((0.0, 0.1, 0.3, 0.5, 0.65, 0.8, 0.95)),
        "affinity": Choice((False, True)),
        "pipelines": Choice((1, 2, 3, 4)),
    }
    return {**with_gpu, **everywhere} if gpu else everywhere


def tune_rank(context: RankContext, config: BenchConfig, data: Path | Remote) -> None:
    """One rank's part: all ranks work at once, and the sum of their rates decides.

    Args: config: whose `decoding` is where the search begins, and whose `seconds` are those of one measurement.
    """
    setup = RankSetup.load(context, config, data)
    measured = (measure_pipeline if context.device_id is None else measure_training)(setup)

    def log(text: str) -> None:
        if context.rank == 0:
            print(text, flush=True)

    def rate(trial: Settings, at_start: bool) -> float:
        return run_in_fresh_process(TIMEOUT, measure_alone, config, data, trial) if at_start else measured(trial)

    possible = choices(context.threads, context.device_id is not None)
    if context.world_size > 1:
        for name in [name for name, choice in possible.items() if choice.at_start]:
            log(f"{name}: is found with one device alone, and stays as it is")
            del possible[name]
    fastest = find_fastest(rate, setup.settings, possible, log)
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


def measure_alone(config: BenchConfig, data: Path | Remote, trial: Settings) -> float:
    """Training's images a second on one device, in a process that has not started CUDA yet."""
    rates: list[float] = []
    launch(_measure_rank, 1, config.device, replace(config, decoding=trial._asdict()), data, rates)
    return rates[0]


def _measure_rank(context: RankContext, config: BenchConfig, data: Path | Remote, rates: list[float]) -> None:
    setup = RankSetup.load(context, config, data)
    rates.append(measure_training(setup)(setup.settings))


def find_fastest(
    rate: Callable[[Settings, bool], float],
    begin: Settings,
    possible: Mapping[str, Choice],
    log: Callable[[str], None],
) -> Settings:
    """The fastest settings, found one setting after another: its values are tried with the others as they then are.
    Those that are read when CUDA starts come last: for the others this process could not take what was found.

    The values of one setting are interleaved, ROUNDS times, and the median of `rate`, images a second, decides; a
    value replaces the current one only when it is faster by more than noise, GAIN.
    """
    best = begin
    for name, (values, at_start) in sorted(possible.items(), key=lambda item: item[1].at_start):
        current = getattr(best, name)
        trials = {value: best._replace(**{name: value}) for value in dict.fromkeys((current, *values))}
        rates = interleaved({value: partial(rate, trial, at_start) for value, trial in trials.items()}, ROUNDS)
        medians = {value: statistics.median(measured) for value, measured in rates.items()}
        fastest = max(medians, key=lambda value: medians[value])
        if medians[fastest] > GAIN * medians[current]:
            best = best._replace(**{name: fastest})
        log(f"{name}: {', '.join(f'{value} {speed:.0f}' for value, speed in medians.items())} img/s")
    return best
