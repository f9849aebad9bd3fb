"""`throughput-bench --tune`: the settings of DALI that are fastest on this machine, kept for training to pick up."""

import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from pipeline.loader import Loader
from pipeline.settings import Settings, tune, tuning_key, write_tuned
from pipeline.stats import Stats
from shards.dataset import Dataset
from shards.remote import Remote
from trainer.rank import RankContext


def tune_rank(context: RankContext, data: Path | Remote, batch_size: int, chosen: dict, seconds: float) -> None:
    """One rank's part: all ranks read at once, and what they make together decides.

    Args: chosen: settings that are given, which are where the search begins; seconds: of one trial.
    """
    dataset = Dataset.load(data)
    stats = Stats.load(dataset.root)
    say: Callable = (lambda text: print(text, flush=True)) if context.rank == 0 else (lambda text: None)

    def rate(trial: Settings) -> float:
        reading = {**context.loading, **trial._asdict()}
        loader = Loader(dataset, "train", "train", stats=stats, batch_size=batch_size, **reading)
        pipe = loader.pipeline(0)
        for _ in range(trial.prefetch + 1):  # what was made ahead is not counted
            pipe.run()
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            pipe.run()
            count += batch_size // context.world_size
        return context.all_reduce(count / (time.perf_counter() - began), dist.ReduceOp.SUM)

    begin = context.settings(chosen, dataset.size)
    found = tune(rate, begin, context.threads, context.device_id is not None, say)
    if context.rank == 0:
        where = tuning_key(context.device_id, context.threads, dataset.size)
        path = write_tuned(where, found)
        say(f"{where}: {', '.join(f'{name} {value}' for name, value in found._asdict().items())}")
        say(f"Written to {path}: train, eval and throughput-bench take it from there")
