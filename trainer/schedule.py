"""The learning rate of each step: the paper's drops (section 5), and the warm-up that larger batches need."""

from collections.abc import Sequence

from trainer.config import PLATEAU, TrainConfig

DROPS = 3  # times that the rate is divided by ten on a plateau (section 5: "reduced three times")


def learning_rate(
    base: float, epoch: float, drops: Sequence[int] | str, errors: Sequence[float] = (), patience: int = 5
) -> float:
    """The rate in an epoch (from 0): `base`, divided by ten at each epoch of `drops` that has come; or, for "plateau",
    each time that `patience` validations in a row have brought no lower error than the best before, DROPS times.

    Args: errors: the validation errors so far, in order.
    """
    if drops == PLATEAU:
        return base / 10 ** count_plateaus(errors, patience)
    return base / 10 ** sum(drop <= epoch for drop in drops)


def count_plateaus(errors: Sequence[float], patience: int) -> int:
    """How often the error had stopped improving: see `learning_rate`."""
    best, waited, found = float("inf"), 0, 0
    for error in errors:
        best, waited = (error, 0) if error < best else (best, waited + 1)
        if waited == patience and found < DROPS:
            found, waited = found + 1, 0
    return found


WARM_UP = 5  # epochs (Goyal et al. 2017, arXiv 1706.02677, section 2.2)
PAPER_BATCH_SIZE = 128


def large_batch_lr(rate: float, batch_size: int, epoch: float) -> float:
    """The paper's rate for a larger batch: in proportion to it, reached from the paper's own over the first WARM_UP
    epochs. Args: epoch: with its fraction."""
    scaled = rate * batch_size / PAPER_BATCH_SIZE
    return rate + (scaled - rate) * min(1.0, epoch / WARM_UP)


def lr_at(step: int, steps_per_epoch: int, config: TrainConfig, errors: Sequence[float]) -> float:
    """The learning rate of the update after `step` of them. Args: errors: as of `learning_rate`."""
    lr = learning_rate(config.lr, step // steps_per_epoch, config.lr_steps, errors, config.patience)
    return lr if config.recipe == "paper" else large_batch_lr(lr, config.batch_size, step / steps_per_epoch)
