"""What bounds training, from the stages' rates alone.

The model: preprocessing and the model's step follow one another, and the pipeline works beside them, on the same cores
or the same card. What it costs the step there is measured by the two stages "beside": both at once, each at full speed.
Without these (older records) the times of what shares cores or a card add up, and otherwise the slower sets the pace.
Reading from storage goes on beside everything.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from bench.schema import Diagnosis

IMAGES, EPOCHS = 1_281_167, 90  # of ILSVRC-2012's training set, and the paper's passes over it (section 5)
PAPER_HOURS = (5 * 24, 6 * 24)  # "between five and six days" (section 5)
NAMES = {"read": "reading", "pipeline": "the pipeline", "feed": "preprocessing", "model": "the model"}
CORES, CARD = "the cores", "the card"


class Machine(NamedTuple):
    """What the prediction has to know of where the stages ran.

    cores: of the CPU; shared: what the pipeline and the model share: CORES, CARD, or None on a GPU whose images are
    decoded on the CPU.
    """

    cores: int
    shared: str | None


class Trust(NamedTuple):
    """What conclusions may be drawn.

    full_width: the model is the paper's, and its hours can be compared; training, stages: that measurement, and those
    that predict it, were not spoiled by other programs.
    """

    full_width: bool = True
    training: bool = True
    stages: bool = True


TRUSTED = Trust()
DOUBTFUL = (
    "Not to be trusted: other programs ran while this was measured, or rates varied too much within a stage. Measure "
    "again on an idle machine."
)


def shared_by(device: str, decode_on: str) -> str | None:
    """What the pipeline and the model share: see `Machine`. Args: the model's device, and where images are decoded."""
    if device == "cpu":
        return CORES
    return CARD if decode_on == "device" else None


class Kept(NamedTuple):
    """The share of its own rate that each keeps while both run; (1, 1): neither slows the other."""

    pipeline: float
    model: float


def kept(rates: Mapping[str, float], shared: str | None) -> Kept:
    """As measured by the stages "beside", or else as `shared` has it: see the top of this file."""
    if "model beside" in rates:
        return Kept(*(min(1.0, rates[f"{name} beside"] / rates[name]) for name in ("pipeline", "model")))
    return Kept(0.5, 0.5) if shared else Kept(1.0, 1.0)


def predicted(rates: Mapping[str, float], shared: str | None) -> float:
    """Images a second of training, from those of "read", "pipeline", "feed" and "model", each alone, and from
    "pipeline beside" and "model beside" where they are given.

    Both run at once until the faster is ahead by its queue and waits; the slower then has everything to itself.
    That is exact where they do not disturb each other (the longer time) and where they take turns (the sum of both).
    """
    share = kept(rates, shared)
    pipeline, step = 1 / rates["pipeline"], 1 / rates["feed"] + 1 / rates["model"]  # seconds an image
    if pipeline / share.pipeline < step / share.model:
        together = step + pipeline * (1 - share.model) / share.pipeline
    else:
        together = pipeline + step * (1 - share.pipeline) / share.model
    return min(rates["read"], 1 / together)


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
    rates: Mapping[str, float], alternatives: Mapping[str, float], machine: Machine, trust: Trust = TRUSTED
) -> Diagnosis:
    """The bottleneck, the prediction, and what training would be with something changed.

    Args: rates: images a second by stage; alternatives: of the pipeline with one thing changed, by that thing's name.
    """
    expected, measured = predicted(rates, machine.shared), rates["train"]
    changes = improvements(rates, alternatives, machine)
    hours = EPOCHS * IMAGES / measured / 3600
    sentences = [] if trust.training and trust.stages else [DOUBTFUL]
    sentences.append(bound_sentence(rates, changes))
    if machine.shared:
        sentences.append(sharing_sentence(rates, machine.shared))
    sentences.append(prediction_sentence(expected, measured, trust))
    if trust.full_width and trust.training:
        sentences.append(
            f"The paper's {EPOCHS} epochs, over {IMAGES:,} images like these, would take {hours:,.1f} hours; "
            f"the paper's took {PAPER_HOURS[0]} to {PAPER_HOURS[1]} (five to six days)."
        )
    return {
        "predicted_img_per_s": expected,
        "prediction_error": measured / expected - 1,
        "bottleneck": bottleneck(rates),
        "next_bound": slowest_first(rates)[1],
        "would_be": [{"change": name, "img_per_s": rate} for name, rate in changes.items()],
        "paper_hours": hours,
        "verdict": "\n".join(sentences),
    }


def improvements(rates: Mapping[str, float], alternatives: Mapping[str, float], machine: Machine) -> dict[str, float]:
    """Training as predicted, images a second: with more cores, with decoding that costs the model nothing, and with
    each alternative pipeline."""
    changes = {}
    first, second = slowest_first(rates)[:2]
    if machine.shared == CORES:
        doubled = {name: 2 * rates[name] for name in ("pipeline", "feed", "model")}
        changes[f"{2 * machine.cores} cores"] = predicted(changed(rates, **doubled), CORES)
    elif machine.shared == CARD:
        changes["decoding wholly hidden behind the model"] = predicted(undisturbed(rates), None)
    elif first == "pipeline":
        needed = math.ceil(machine.cores * rates[second] / rates["pipeline"])
        faster = changed(rates, pipeline=rates["pipeline"] * needed / machine.cores)
        changes[f"{needed} cores"] = predicted(faster, None)
    for name, rate in alternatives.items():
        if name.startswith("--decode-on"):  # moves decoding to or from the card, where nobody measured both at once
            shared = CARD if machine.shared is None else None
            changes[name] = predicted({**undisturbed(rates), "pipeline": rate}, shared)
        else:
            changes[name] = predicted(changed(rates, pipeline=rate), machine.shared)
    return changes


def changed(rates: Mapping[str, float], **new: float) -> dict[str, float]:
    """The rates with some stages changed, which keep the share of their rates that they keep beside each other."""
    beside = {
        f"{name} beside": rates[f"{name} beside"] * rate / rates[name]
        for name, rate in new.items()
        if f"{name} beside" in rates
    }
    return {**rates, **new, **beside}


def undisturbed(rates: Mapping[str, float]) -> dict[str, float]:
    """The rates without those that were measured beside each other."""
    return {name: rate for name, rate in rates.items() if not name.endswith(" beside")}


def bound_sentence(rates: Mapping[str, float], changes: Mapping[str, float]) -> str:
    first, second = slowest_first(rates)[:2]
    advice = "".join(f"; with {name} it would be {rate:,.0f}" for name, rate in changes.items())
    return (
        f"Training is bound by {NAMES[first]} at {rates[first]:,.0f} img/s; the next bound is {NAMES[second]} at "
        f"{rates[second]:,.0f}{advice}."
    )


def sharing_sentence(rates: Mapping[str, float], shared: str) -> str:
    """How decoding and training slow each other."""
    if "model beside" not in rates:
        return f"Decoding and training share {shared}, so their times add up."
    share = kept(rates, shared)
    return (
        f"Decoding and training share {shared}: at the same time the pipeline makes {share.pipeline:.0%} of its own "
        f"rate and the model {share.model:.0%} of its own."
    )


def prediction_sentence(expected: float, measured: float, trust: Trust) -> str:
    text = f"Predicted {expected:,.1f} img/s from the stages, measured {measured:,.1f}"
    if not (trust.training and trust.stages):
        return f"{text}: on a busy machine neither says anything of the other."
    error = measured / expected - 1
    unexplained = "" if abs(error) <= 0.1 else ", which the model does not explain"
    return f"{text}: {abs(error):.0%} {'below' if error < 0 else 'above'}{unexplained}."
