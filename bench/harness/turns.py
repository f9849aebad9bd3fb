"""Interleaves measurements of several contestants: a machine whose speed drifts is as fast for one as for another."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypedDict, TypeVar

import numpy as np

Name = TypeVar("Name", bound=Hashable)
T = TypeVar("T")


class Summary(TypedDict):
    """The median of several measurements, their tenth and ninetieth percentile, and the measurements themselves."""

    median: float
    p10: float
    p90: float
    values: list[float]


def interleaved(contestants: Mapping[Name, Callable[[], T]], rounds: int, warmup: int = 0) -> dict[Name, list[T]]:
    """Each contestant's results, one for each round.

    In a round every contestant runs once, and each round begins with another one. `warmup` rounds go before, whose
    results are dropped.
    """
    turns = list(contestants.items())
    results: dict[Name, list[T]] = {name: [] for name in contestants}
    for number in range(warmup + rounds):
        first = number % len(turns)
        for name, run in turns[first:] + turns[:first]:
            result = run()
            if number >= warmup:
                results[name].append(result)
    return results


def summarize(values: Iterable[float]) -> Summary:
    """The one statistic of all measurements here."""
    measured = [float(value) for value in values]
    p10, median, p90 = map(float, np.percentile(measured, (10, 50, 90)))
    return {"median": median, "p10": p10, "p90": p90, "values": measured}


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Each round's ratio: a machine that slows down between two rounds changes both sides of it alike."""
    return [a / b for a, b in zip(over, under, strict=True)]
