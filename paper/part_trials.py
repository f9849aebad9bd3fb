"""The cells of the studies of parts: they share them, for the complete net is every study's other side."""

import functools
from collections.abc import Sequence
from typing import Any

from paper.ablation import FULL, SMALL
from paper.job import Job
from paper.trials import COMPLETE, trial

SIDE = 64  # pixels, of Tiny ImageNet


def part_trials(job: Job, nets: Sequence[str]) -> list[dict[str, Any]]:
    """The trials of the complete net and of these, of the job's seeds."""
    recipe = FULL if job.full else SMALL
    data = functools.cache(lambda: job.images(SIDE))

    def work(net: str, seed: int) -> dict[str, Any]:
        return trial(net, recipe, data().train, data().test, seed)

    cells = {
        f"{net}-seed{seed}": functools.partial(work, net, seed)
        for seed in range(job.seeds)
        for net in (COMPLETE, *nets)
    }
    return list(job.run("parts", {"recipe": recipe._asdict(), "side": SIDE}, cells, "training").values())
