"""Why two GPUs (section 3.2)? What one device and two of them hold and exchange in a training step, by layout.

Bytes are computed from the model, and compared with what the kernel says that a process received over TCP, in real
steps of two CPU processes. Times are of these: they show what computing and copying cost, not a network.
"""

import functools
from collections.abc import Sequence
from typing import Any, TypedDict

from bench.studies.parallel import LAYOUTS, take_turn
from paper.job import Job
from paper.parts import spread, spread_text
from paper.pictures import Row, dots
from shards.errors import InputError
from trainer.alexnet import AlexNet

# Section 3.2: a GTX 580's memory, GB; section 5: the batch
PAPER: dict[str, Any] = {"memory_gb": 3, "batch_size": 128, "section": "3.2"}
ONE = "one device"
SETTINGS = (ONE, *LAYOUTS)
WIDTH, SMALL, FULL, STEPS = 1.0, 32, 128, 3  # images of a global batch
CLASSES = 1000  # of `bench.studies.parallel`


def trials(job: Job) -> list[dict[str, Any]]:
    """A turn of each layout for each of the job's seeds, one layout after another."""
    if job.device.type != "cpu":
        raise InputError("study communication measures processes on CPUs: choose --device cpu")
    batch_size = FULL if job.full else SMALL
    work = {
        f"{layout} {turn}": functools.partial(one_turn, layout, batch_size, turn)
        for turn in range(job.seeds)
        for layout in SETTINGS
    }
    settings = {"batch_size": batch_size, "width": WIDTH, "steps": STEPS}
    return list(job.run("communication", settings, work, "measuring").values())


def one_turn(layout: str, batch_size: int, seed: int, width: float = WIDTH, steps: int = STEPS) -> dict[str, Any]:
    """A `bench.studies.parallel.Turn` with its layout, its number, its batch, and what is computed from the model."""
    if layout == ONE:
        turn = take_turn("towers", batch_size, width, steps, processes=1)
    else:
        turn = take_turn(layout, batch_size, width, steps)
    return {
        **turn,
        "layout": layout,
        "seed": seed,
        "batch_size": batch_size,
        "computed": computed(layout, batch_size, width),
    }


class Bytes(TypedDict):
    """What each of two processes receives in a step: least, of any implementation; gloo, of the one for CPUs."""

    least: int
    gloo: int


def computed(layout: str, batch_size: int, width: float) -> Bytes:
    """From the model: activations and their gradients, which are as large, in float32, and three numbers an image for
    the softmax; sums of gradients by a ring, which for two processes takes as many bytes as there are gradients.

    Gloo scatters sums by giving all of the sums to each process, of which a half is dropped: so the activations'
    gradients take twice the least.
    """
    model = AlexNet(CLASSES, width)
    conv2, conv5 = (layer.out_channels * side**2 for layer, side in ((model.conv2, 13), (model.conv5, 6)))
    dense = model.fc6.out_features + model.fc7.out_features
    parameters = dict(model.named_parameters())
    convolutions = sum(value.nbytes for name, value in parameters.items() if name.startswith("conv"))
    every = sum(value.nbytes for value in parameters.values())
    # Half of what layers that read both towers read; the other half's images, and half of the neurons for all
    exchanged = {"towers": conv2 + conv5 + dense, "hybrid": conv5 + dense}.get(layout, 0) // 2 * 4 * batch_size
    softmax = 12 * batch_size if exchanged else 0
    summed = {"data": every, "hybrid": convolutions}.get(layout, 0)
    return {"least": 2 * exchanged + softmax + summed, "gloo": 3 * exchanged + softmax + summed}


def answer(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For each layout: bytes computed, received, the process's memory, also at the paper's batch, and times."""
    about: dict[str, Any] = {"batch_size": trials[0]["batch_size"], "layouts": {}}
    for layout in SETTINGS:
        turns = [one for one in trials if one["layout"] == layout]
        first, images = turns[0], about["batch_size"]
        about["layouts"][layout] = {
            "computed": first["computed"],
            "received": spread([one["received"] for one in turns]),
            "held": first["held"],
            "saved": first["saved"],
            "paper_batch": first["held"] + first["saved"] * PAPER["batch_size"] / images,
            "img_per_s": spread([images * len(one["seconds"]) / sum(one["seconds"]) for one in turns]),
        }
    return about


def text(about: dict[str, Any]) -> list[str]:
    rows = []
    for layout, found in about["layouts"].items():
        received = found["received"]["mean"]
        if of := found["computed"]["gloo"]:
            least = found["computed"]["least"]
            rows.append(
                f"{layout}: in a step of {about['batch_size']} images a device has to receive {least / 1e6:.1f} MB; "
                f"over TCP gloo brought {received / 1e6:.1f} MB, {received / of:.3f} of what follows from the model"
            )
        rows.append(
            f"{layout}: a device holds "
            f"{found['held'] / 1e9:.2f} GB of parameters, gradients and velocity and {found['saved'] / 1e9:.2f} GB for "
            f"the backward pass, {found['paper_batch'] / 1e9:.2f} GB in all at a batch of {PAPER['batch_size']}; "
            f"{spread_text(found['img_per_s'])} images a second"
        )
    return [*rows, f"the paper's GPU had {PAPER['memory_gb']} GB"]


def pictures(trials: Sequence[dict[str, Any]]) -> dict[str, str]:
    of = {layout: [one for one in trials if one["layout"] == layout] for layout in SETTINGS}
    received = [Row(layout, [one["received"] / 1e6 for one in turns]) for layout, turns in of.items()]
    memory = [Row(layout, [(one["held"] + one["saved"]) / 1e9 for one in turns]) for layout, turns in of.items()]
    return {
        "communication": dots(received, "What a device receives in a step", "MB"),
        "communication-memory": dots(memory, "What a device holds in a step", "GB"),
    }
