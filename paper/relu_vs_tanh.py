"""Why ReLU (section 3.1, figure 1)? How many epochs a four-layer net takes to a training error of 25 %, with either.

The paper does not say what its net's images and initial weights were. So both ways of `paper.small_net.Start` are
tried: the 2012 release's, and one that keeps every layer's signal at the size where tanh is not yet flat.

No regularization, and the learning rate that is fastest for each, found by doubling and halving from a first one until
both its neighbors are slower, with a seed that is not counted. The training error is of the images as they are trained
on, before the update: in windows of some thousand images, between whose middles it is interpolated.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import torch

from pages.plot import Axis, Line, Plot, draw, standalone
from paper.images import ImageSet
from paper.job import Job
from paper.parts import spread, spread_text
from paper.small_net import Activation, Prepare, Shape, SmallNet, Start, orders, stepper, subset

PAPER: dict[str, Any] = {"ratio": 6, "section": "3.1, figure 1"}
SIDE, TARGET = 32, 0.25
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
SEARCH_SEED = 1000
FIRST_LR: dict[Start, float] = {"release": 0.001, "scaled": 0.01}  # the release's epsW
IN_WORDS: dict[Start, str] = {
    "release": "images of 0..255 and small initial weights, as the 2012 release",
    "scaled": "images of variance 1 and initial weights that keep it",
}


class Size(NamedTuple):
    """images: to train on; most: epochs after which a training ends; windows: of an epoch, in each of which the
    training error is counted."""

    images: int
    kernels: tuple[int, int, int]
    batch_size: int
    most: int
    windows: int


SMALL = Size(2_000, (16, 16, 32), 32, 120, 2)
FULL = Size(50_000, (32, 32, 64), 128, 120, 10)  # the whole of CIFAR-10


def trials(job: Job) -> list[dict[str, Any]]:
    """The search's trainings, then those of all seeds, as `training` returns them."""
    size = FULL if job.full else SMALL
    data = functools.cache(lambda: job.images(SIDE))
    settings = {"size": size._asdict(), "target": TARGET}

    def run(start: Start, cells: Sequence[tuple[Activation, float, int, float]], label: str) -> list[dict[str, Any]]:
        work = {
            f"{start}-{activation}-lr{lr:g}-seed{seed}": functools.partial(
                training, data, size, start, activation, lr, seed, most
            )
            for activation, lr, seed, most in cells
        }
        return list(job.run("relu-vs-tanh", settings, work, f"{start}: {label}").values())

    found: list[dict[str, Any]] = []
    for start, first_lr in FIRST_LR.items():
        for activation in ACTIVATIONS:
            tried: dict[float, dict[str, Any]] = {}
            lr: float | None = first_lr
            while lr is not None:
                most = min([size.most, *(one["epochs"] for one in tried.values() if one["epochs"])])
                label = f"learning rate of {activation}: {lr:g}"
                tried[lr] = run(start, [(activation, lr, SEARCH_SEED, most)], label)[0]
                lr = next_lr(tried)
            best = min(tried, key=lambda rate: speed(tried[rate]))
            found += tried.values()
            cells = [(activation, best, seed, float(size.most)) for seed in range(job.seeds)]
            found += run(start, cells, f"{activation}, learning rate {best:g}")
    return found


def speed(tried: dict[str, Any]) -> tuple[float, float]:
    """Smaller for a faster training: its epochs to the target, then its last error."""
    return tried["epochs"] or math.inf, tried["curve"][-1][1]


def next_lr(tried: dict[float, dict[str, Any]]) -> float | None:
    """The learning rate to try next: a neighbor of the best that was not tried; None when both were."""
    best = min(tried, key=lambda rate: speed(tried[rate]))
    return next((rate for rate in (best * 2, best / 2) if rate not in tried), None)


def training(
    data: Any, size: Size, start: Start, activation: Activation, lr: float, seed: int, most: float
) -> dict[str, Any]:
    """{"start", "activation", "lr", "seed", "curve", "epochs"}: pairs of (epoch, training error), and when it was
    TARGET, None when that was not reached within `most` epochs."""
    loaded: ImageSet = data()
    images = subset(loaded.train, size.images)
    device = images.images.device
    shape = Shape(size.kernels, activation=activation, start=start)
    net = SmallNet(shape, len(loaded.classes), seed).to(device)
    step = stepper(net, images, Prepare(images.images, start), lr, torch.Generator(device), lambda x: x)
    curve: list[tuple[float, float]] = []
    for epoch, batches in enumerate(orders(len(images.labels), size.batch_size, seed)):
        on_device = batches.to(device)
        done = 0
        for window in on_device.tensor_split(size.windows):
            wrong = torch.stack([step(rows) for rows in window])
            middle = epoch + (done + len(window) / 2) / len(batches)
            done += len(window)
            curve.append((middle, float(wrong.sum()) / window.numel()))
        reached = crossing(curve)
        if reached is not None or epoch + 1 >= most:
            made = {"start": start, "activation": activation, "lr": lr, "seed": seed}
            return {**made, "curve": curve, "epochs": reached}
    raise AssertionError("epochs do not end")


def crossing(curve: Sequence[tuple[float, float]]) -> float | None:
    """The epoch at which the curve first comes to TARGET, None when it does not."""
    before = (0.0, 1.0)
    for epoch, error in curve:
        if error <= TARGET:
            return before[0] + (epoch - before[0]) * (before[1] - TARGET) / (before[1] - error)
        before = epoch, error
    return None


def _counted(trials: Sequence[dict[str, Any]], start: Start, activation: Activation) -> list[dict[str, Any]]:
    """The trainings by seed, without the search's."""
    of = [one for one in trials if (one["start"], one["activation"]) == (start, activation)]
    return sorted((one for one in of if one["seed"] != SEARCH_SEED), key=lambda one: int(one["seed"]))


def answer(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By `Start`: the epochs to TARGET by seed, the ratio of each seed's, both spreads, and the search."""
    return {"target": TARGET, "starts": {start: _answer(trials, start) for start in FIRST_LR}}


def _answer(trials: Sequence[dict[str, Any]], start: Start) -> dict[str, Any]:
    about: dict[str, Any] = {"search": {}, "lr": {}, "epochs": {}, "most": {}}
    for activation in ACTIVATIONS:
        of = [one for one in trials if (one["start"], one["activation"]) == (start, activation)]
        search = sorted((one for one in of if one["seed"] == SEARCH_SEED), key=lambda one: float(one["lr"]))
        counted = _counted(trials, start, activation)
        about["search"][activation] = [{"lr": one["lr"], "epochs": one["epochs"]} for one in search]
        about["lr"][activation] = counted[0]["lr"]
        about["epochs"][activation] = [one["epochs"] for one in counted]
        about["most"][activation] = [one["epochs"] or one["curve"][-1][0] for one in counted]
    relu, tanh = (about["epochs"][activation] for activation in ACTIVATIONS)
    # Where tanh does not arrive, its epochs are more than those that it was given
    about["at_least"] = None in tanh
    about["ratios"] = None if None in relu else [b / a for a, b in zip(relu, about["most"]["tanh"], strict=True)]
    about["ratio"] = spread(about["ratios"]) if about["ratios"] else None
    return about


def text(about: dict[str, Any]) -> list[str]:
    return [line for start in FIRST_LR for line in _text(start, about["starts"][start], about["target"])]


def _text(start: Start, about: dict[str, Any], target: float) -> list[str]:
    ratio = about["ratio"]
    found = "ReLU did not reach the target, so there is no ratio"
    if ratio:
        bound = "more than " if about["at_least"] else ""
        found = f"ReLU is {bound}{spread_text(ratio)} times as fast; paper: {PAPER['ratio']} times"
    rows = [f"{IN_WORDS[start]}: {found}"]
    for activation in ACTIVATIONS:
        epochs = [f"{one:.2f}" if one else "not reached" for one in about["epochs"][activation]]
        tried = ", ".join(
            f"{one['lr']:g}: {format(one['epochs'], '.2f') if one['epochs'] else 'slower'}"
            for one in about["search"][activation]
        )
        rows.append(
            f"  {activation}: epochs to {target:.0%} training error {', '.join(epochs)}, a figure for each seed, at "
            f"learning rate {about['lr'][activation]:g}, of those tried ({tried})"
        )
    return rows


def pictures(trials: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Figure 1 for each `Start`: the training error over epochs, a line for each seed."""
    return {f"relu-vs-tanh-{start}": _picture(trials, start) for start in FIRST_LR}


def _picture(trials: Sequence[dict[str, Any]], start: Start) -> str:
    lines = []
    for color, activation in enumerate(ACTIVATIONS):
        for one in _counted(trials, start, activation):
            name = f"{activation}, learning rate {one['lr']:g}" if one["seed"] == 0 else ""
            lines.append(Line(name, [(x, 100 * y) for x, y in one["curve"]], color))
    end = max(x for line in lines for x, _ in line.points)
    axis = Axis("training error", 100.0, lambda value: f"{value:.0f} %")
    what = f"Training error over epochs with ReLU and with tanh, as in the paper's figure 1: {IN_WORDS[start]}"
    target = Line("25 %", [(0, 100 * TARGET), (end, 100 * TARGET)], 2)
    plot = Plot(what, [*lines, target], axis, end, x_title="epochs", width=640, height=360)
    return standalone(draw(plot))
