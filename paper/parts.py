"""What a net loses without a part of it: differences of errors between nets of the same seed, beside the paper's."""

from collections.abc import Sequence
from typing import Any, TypedDict

from paper.pictures import Row
from paper.trials import COMPLETE
from shards.wording import counted

ERRORS = {"top1": "top-1", "top5": "top-5"}


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
    if difference["lowest"] == difference["highest"]:
        return "one seed cannot tell it from chance"
    if difference["lowest"] > 0:
        return "higher with every seed, as in the paper"
    if difference["highest"] < 0:
        return "lower with every seed, other than in the paper"
    spread_is_larger = difference["highest"] - difference["lowest"] > paper
    return f"the seeds disagree about its sign{', and differ by more than that' if spread_is_larger else ''}"


def summary(trials: Sequence[dict[str, Any]], paper: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Errors of all nets, and what each net of `paper` loses beside the complete one. Args: paper: for a net the
    paper's differences, in points."""
    nets = [COMPLETE, *paper]
    return {
        "seeds": len(of_net(trials, COMPLETE)),
        "errors": {net: error_spread(trials, net) for net in nets},
        "differences": {net: loss_without(trials, net) for net in paper},
        "paper": paper,
    }


def lines(about: dict[str, Any]) -> list[str]:
    """A summary for people."""
    rows = []
    for net, errors in about["errors"].items():
        text = ", ".join(f"{words} error {spread_text(errors[name])} %" for name, words in ERRORS.items())
        rows.append(f"{net}: {text}, mean (lowest to highest) of {counted(about['seeds'], 'seed')}")
    for net, differences in about["differences"].items():
        for name, words in ERRORS.items():
            text = f"{net}, beside {COMPLETE}: {words} error {spread_text(differences[name], '+')} points"
            if name in about["paper"][net]:
                paper = about["paper"][net][name]
                text += f"; paper {paper:+g}: {verdict(differences[name], paper)}"
            rows.append(text)
    return rows


def spread_text(values: Spread, sign: str = "") -> str:
    """As in "12.3 (11.0 to 13.1)". Args: sign: "+" to write it always."""
    return f"{values['mean']:{sign}.1f} ({values['lowest']:{sign}.1f} to {values['highest']:{sign}.1f})"


def error_rows(trials: Sequence[dict[str, Any]], nets: Sequence[str]) -> list[Row]:
    """Each net's top-1 errors, to be drawn."""
    return [Row(net, [error(trial, "top1") for trial in of_net(trials, net)]) for net in nets]
