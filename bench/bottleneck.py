"""What bounds training, from the stages' rates alone.

The model: on a CPU the pipeline, preprocessing and the model share the cores, so an image takes the sum of their times.
On a GPU they run beside one another, and the slowest sets the pace. Reading from storage runs beside them anywhere.
"""

import math
from collections.abc import Mapping

from bench.schema import Diagnosis

IMAGES, EPOCHS = 1_281_167, 90  # of ILSVRC-2012's training set, and the paper's passes over it (section 5)
PAPER_HOURS = (5 * 24, 6 * 24)  # "between five and six days" (section 5)
NAMES = {"read": "reading", "pipeline": "the pipeline", "feed": "preprocessing", "model": "the model"}


def predicted(rates: Mapping[str, float], shared_cores: bool) -> float:
    """Images a second of training, from those of "read", "pipeline", "feed" and "model", each alone.

    `shared_cores`: whether the model runs on the cores that decode.
    """
    parts = ("pipeline", "feed", "model")
    together = 1 / sum(1 / rates[part] for part in parts) if shared_cores else min(rates[part] for part in parts)
    return min(rates["read"], together)


def slowest_first(rates: Mapping[str, float]) -> list[str]:
    """ "read", "pipeline", "feed" and "model", ordered by their rates."""
    return sorted(NAMES, key=lambda name: rates[name])


def bottleneck(rates: Mapping[str, float]) -> str:
    """The stage to make faster first: read, decode, pipeline, feed, exchange or model.

    Within the pipeline, reading is a part of decoding and decoding a part of the stage "pipeline", so each is charged
    what it adds to the one before; within the model, the exchange has to take half of the time.
    """
    slowest = slowest_first(rates)[0]
    if slowest == "pipeline":
        times = [1 / rates[stage] for stage in ("read", "decode", "pipeline")]
        added = {"read": times[0], "decode": times[1] - times[0], "pipeline": times[2] - times[1]}
        return max(added, key=lambda stage: added[stage])
    if slowest == "model" and "exchange" in rates and rates["exchange"] < 2 * rates["model"]:
        return "exchange"
    return slowest


def diagnose(
    rates: Mapping[str, float], alternatives: Mapping[str, float], shared_cores: bool, cores: int
) -> Diagnosis:
    """The bottleneck, the prediction, and what training would be with something changed.

    Args: rates: images a second by stage; alternatives: of the pipeline with one thing changed, by that thing's name.
    """
    expected, measured = predicted(rates, shared_cores), rates["train"]
    changes = improvements(rates, alternatives, shared_cores, cores)
    hours = EPOCHS * IMAGES / measured / 3600
    return {
        "predicted_img_per_s": expected,
        "prediction_error": measured / expected - 1,
        "bottleneck": bottleneck(rates),
        "next_bound": slowest_first(rates)[1],
        "would_be": [{"change": name, "img_per_s": rate} for name, rate in changes.items()],
        "paper_hours": hours,
        "verdict": "\n".join(
            (
                bound_sentence(rates, changes),
                prediction_sentence(expected, measured, shared_cores),
                f"The paper's {EPOCHS} epochs of {IMAGES:,} images would take {hours:,.1f} hours; the paper's took "
                f"{PAPER_HOURS[0]} to {PAPER_HOURS[1]} (five to six days).",
            )
        ),
    }


def improvements(
    rates: Mapping[str, float], alternatives: Mapping[str, float], shared_cores: bool, cores: int
) -> dict[str, float]:
    """Training as predicted, images a second, with more cores and with each alternative pipeline."""

    def changed(**new: float) -> float:
        return predicted({**rates, **new}, shared_cores)

    changes = {}
    first, second = slowest_first(rates)[:2]
    if shared_cores:
        doubled = {name: 2 * rates[name] for name in ("pipeline", "feed", "model")}
        changes[f"{2 * cores} cores"] = changed(**doubled)
    elif first == "pipeline":
        needed = math.ceil(cores * rates[second] / rates["pipeline"])
        changes[f"{needed} cores"] = changed(pipeline=rates["pipeline"] * needed / cores)
    return changes | {name: changed(pipeline=rate) for name, rate in alternatives.items()}


def bound_sentence(rates: Mapping[str, float], changes: Mapping[str, float]) -> str:
    first, second = slowest_first(rates)[:2]
    advice = "".join(f"; with {name} it would be {rate:,.0f}" for name, rate in changes.items())
    return (
        f"Training is bound by {NAMES[first]} at {rates[first]:,.0f} img/s; the next bound is {NAMES[second]} at "
        f"{rates[second]:,.0f}{advice}."
    )


def prediction_sentence(expected: float, measured: float, shared_cores: bool) -> str:
    error = measured / expected - 1
    how = "shared cores add the times up" if shared_cores else "the slowest part sets the pace"
    return (
        f"Predicted {expected:,.1f} img/s ({how}), measured {measured:,.1f}: {abs(error):.0%} "
        f"{'below' if error < 0 else 'above'}{'' if abs(error) <= 0.1 else ', which the model does not explain'}."
    )
