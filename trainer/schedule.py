"""The learning rate (lr) of each step: the paper's drops (section 5), and the warm-up that larger batches need."""

from collections.abc import Sequence

from trainer.config import PLATEAU, TrainConfig

DROPS = 3  # how many times the lr is divided by ten on a plateau (section 5: "reduced three times")


def learning_rate(
    base: float, epoch: float, drops: Sequence[int] | str, errors: Sequence[float] = (), patience: int = 5
) -> float:
    """The lr in an epoch (from 0): `base`, divided by ten at each epoch of `drops` that has begun; or, for "plateau",
    each time that `patience` validations in a row have not lowered the best error, at most DROPS times.

    Args: errors: the validation errors so far, in order.
    """
    if isinstance(drops, str):
        assert drops == PLATEAU
        count = count_plateaus(errors, patience)
    else:
        count = sum(drop <= epoch for drop in drops)
    return base / float(10**count)


def count_plateaus(errors: Sequence[float], patience: int) -> int:
    """How many times the error has stopped improving: see `learning_rate`."""
    best, waited, count = float("inf"), 0, 0
    for error in errors:
        best, waited = (error, 0) if error < best else (best, waited + 1)
        if waited == patience and count < DROPS:
            count, waited = count + 1, 0
    return count


WARM_UP_EPOCHS = 5  # (Goyal et al. 2017, arXiv 1706.02677, section 2.2)
PAPER_BATCH_SIZE = 128


def large_batch_lr(lr: float, batch_size: int, epoch: float) -> float:
    """The paper's lr scaled in proportion to a larger batch, and reached from the paper's own over the first
    WARM_UP_EPOCHS. Args: epoch: with its fraction."""
    scaled = lr * batch_size / PAPER_BATCH_SIZE
    return lr + (scaled - lr) * min(1.0, epoch / WARM_UP_EPOCHS)


def lr_at(step: int, steps_per_epoch: int, config: TrainConfig, errors: Sequence[float]) -> float:
    """The learning rate of the step after the first `step` ones. Args: errors: as in `learning_rate`."""
    lr = learning_rate(config.lr, step // steps_per_epoch, config.lr_steps, errors, config.patience)
    return lr if config.recipe == "paper" else large_batch_lr(lr, config.batch_size, step / steps_per_epoch)
