"""What bounds training, said from the stages' rates alone; and two runs side by side.

The model: on a CPU the pipeline, the feed and the model share the cores, so an image takes the sum of their times. On a
GPU they run beside one another, and the slowest is what training runs at; so does reading from storage anywhere.
"""

import math

IMAGES, EPOCHS = 1_281_167, 90  # of ILSVRC-2012's training set, and the paper's passes over it (section 5)
PAPER_HOURS = (5 * 24, 6 * 24)  # "between five and six days" (section 5)
NAMES = {"read": "reading", "pipeline": "the pipeline", "feed": "the feed", "model": "the model"}


def predicted(rates: dict[str, float], shared_cores: bool) -> float:
    """Images a second of training, from those of "read", "pipeline", "feed" and "model", each alone.

    `shared_cores`: whether the model runs on the cores that decode.
    """
    parts = ("pipeline", "feed", "model")
    together = 1 / sum(1 / rates[part] for part in parts) if shared_cores else min(rates[part] for part in parts)
    return min(rates["read"], together)


def bounds(rates: dict[str, float]) -> list[str]:
    """ "read", "pipeline", "feed" and "model", the slowest first."""
    return sorted(NAMES, key=rates.get)


def bottleneck(rates: dict[str, float]) -> str:
    """The stage to make faster first: read, decode, pipeline, preprocess, exchange or model.

    Within the pipeline, reading is a part of decoding and decoding of the whole, so each is charged what it adds to the
    one before; within the model, the exchange has to take half of the time.
    """
    slowest = bounds(rates)[0]
    if slowest == "pipeline":
        times = [1 / rates[stage] for stage in ("read", "decode", "pipeline")]
        added = {"read": times[0], "decode": times[1] - times[0], "pipeline": times[2] - times[1]}
        return max(added, key=added.get)
    if slowest == "model" and "exchange" in rates and rates["exchange"] < 2 * rates["model"]:
        return "exchange"
    return slowest


def compared(first: list[dict], second: list[dict]) -> list[dict]:
    """{"name", "a", "b", "ratio" (b / a), "differs"} for each stage that both runs have.

    They differ when what lies between the 10th and 90th percentile of the one has nothing in common with the other's.
    """
    others = {stage["name"]: stage for stage in second}
    rows = []
    for a in first:
        if b := others.get(a["name"]):
            rates = {"a": a["img_per_s"], "b": b["img_per_s"], "ratio": b["img_per_s"] / a["img_per_s"]}
            rows.append({"name": a["name"], **rates, "differs": a["p90"] < b["p10"] or b["p90"] < a["p10"]})
    return rows


def judge(rates: dict[str, float], others: dict[str, float], shared_cores: bool, cores: int) -> dict:
    """{"predicted_img_per_s", "prediction_error", "bottleneck", "next_bound", "would_be", "paper_hours", "verdict"}.

    Args: rates: images a second by stage; others: of the pipeline with one thing changed, by that thing's name.
    `would_be` is a list of {"change", "img_per_s"}: training as predicted with that change.
    """
    expected, measured = predicted(rates, shared_cores), rates["train"]
    first, second = bounds(rates)[:2]

    def changed(**new: float) -> float:
        return predicted({**rates, **new}, shared_cores)

    would = {}
    if shared_cores:
        more = {name: 2 * rates[name] for name in ("pipeline", "feed", "model")}
        would[f"{2 * cores} cores"] = changed(**more)
    elif first == "pipeline":
        needed = math.ceil(cores * rates[second] / rates["pipeline"])
        would[f"{needed} cores"] = changed(pipeline=rates["pipeline"] * needed / cores)
    would |= {name: changed(pipeline=rate) for name, rate in others.items() if name != "every rank decodes all"}
    error = measured / expected - 1
    hours = EPOCHS * IMAGES / measured / 3600
    advice = "; ".join(f"with {name} it would be {rate:,.0f}" for name, rate in would.items())
    how = "shared cores add the times up" if shared_cores else "the slowest part sets the pace"
    text = (
        f"Training is bound by {NAMES[first]} at {rates[first]:,.0f} img/s; the next bound is {NAMES[second]} at "
        f"{rates[second]:,.0f}{'; ' + advice if advice else ''}.\n"
        f"Predicted {expected:,.1f} img/s ({how}), measured {measured:,.1f}: {abs(error):.0%} "
        f"{'below' if error < 0 else 'above'}{'' if abs(error) <= 0.1 else ', which the model does not explain'}.\n"
        f"The paper's {EPOCHS} epochs of {IMAGES:,} images would take {hours:,.1f} hours; the paper's took "
        f"{PAPER_HOURS[0]} to {PAPER_HOURS[1]} (five to six days)."
    )
    return {
        "predicted_img_per_s": expected,
        "prediction_error": error,
        "bottleneck": bottleneck(rates),
        "next_bound": second,
        "would_be": [{"change": name, "img_per_s": rate} for name, rate in would.items()],
        "paper_hours": hours,
        "verdict": text,
    }
