"""What a net loses without a part of it: differences of errors between nets of the same seed, beside the paper's."""

from collections.abc import Sequence
from typing import Any, TypedDict

from paper.trials import COMPLETE

ERRORS = ("top1", "top5")


class Spread(TypedDict):
    """In percent, or points of it, over seeds."""

    mean: float
    lowest: float
    highest: float


def spread(values: Sequence[float]) -> Spread:
    return {"mean": sum(values) / len(values), "lowest": min(values), "highest": max(values)}


def error(trial: dict[str, Any], which: str, brightness: float = 1.0) -> float:
    """A trial's error in percent."""
    row = next(row for row in trial["by_brightness"] if row["brightness"] == brightness)
    return 100 * float(row[f"{which}_error"])


def of_net(trials: Sequence[dict[str, Any]], net: str) -> list[dict[str, Any]]:
    """A net's trials, by seed."""
    return sorted((trial for trial in trials if trial["net"] == net), key=lambda trial: int(trial["seed"]))


def error_spread(trials: Sequence[dict[str, Any]], net: str) -> dict[str, Spread]:
    """Each of ERRORS, over a net's seeds."""
    return {which: spread([error(trial, which) for trial in of_net(trials, net)]) for which in ERRORS}


def loss_without(trials: Sequence[dict[str, Any]], net: str) -> dict[str, Spread]:
    """How much higher each of ERRORS is for a net than for the complete one of the same seed, in points."""
    pairs = list(zip(of_net(trials, net), of_net(trials, COMPLETE), strict=True))
    assert all(one["seed"] == other["seed"] for one, other in pairs)
    return {which: spread([error(one, which) - error(other, which) for one, other in pairs]) for which in ERRORS}


def verdict(difference: Spread, paper: float) -> str:
    """What a difference says beside the paper's, which is positive."""
    if difference["lowest"] > 0:
        return f"as in the paper ({paper:+g}), the error is higher without it, with every seed"
    if difference["highest"] < 0:
        return f"other than in the paper ({paper:+g}), the error is lower without it, with every seed"
    return f"the seeds disagree about the sign: our runs do not show the paper's {paper:+g}"
