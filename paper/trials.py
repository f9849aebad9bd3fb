"""The nets that the studies of parts compare, each trained and looked at once for all of them: the complete net is
every study's other side."""

import base64
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from paper.ablation import Images, Input, Recipe, errors, train
from paper.kernels import specialization
from trainer.alexnet import AlexNet, Variant
from trainer.kernels import stretched
from trainer.precision import Precision

BRIGHTNESS = (0.25, 0.5, 0.75, 1.0)  # by which test images, or their contrast, are multiplied


class Net(NamedTuple):
    """A net to train. lighting: whether the colors of its training images are shifted (section 4.1); brightness: those
    at which it is tested."""

    variant: Variant
    lighting: bool = True
    brightness: tuple[float, ...] = (1.0,)


COMPLETE = "complete"
NETS = {
    COMPLETE: Net(Variant(), brightness=BRIGHTNESS),
    "no LRN": Net(Variant(norm=False), brightness=BRIGHTNESS),
    "pooling 2/2": Net(Variant(pool="2/2")),
    "no lighting": Net(Variant(), lighting=False),
    "one tower": Net(Variant(towers=1, half=True)),
    "ungrouped": Net(Variant(towers=1)),
}
LOOKED_AT = 50  # images whose activations are averaged


def trial(name: str, recipe: Recipe, training: Images, validation: Images, seed: int) -> dict[str, Any]:
    """Trains one of NETS; what is kept of it, as JSON takes it:

    loss: the last epoch's mean; by_brightness: for each of the net's `brightness` top1_error and top5_error, fractions,
    of images multiplied by it, and the mean activation of conv1 before and after its normalization, "darker" of such
    images, "flatter" of images whose differences from the mean image are multiplied by it; place: the activations of
    all kernels before and after, where they are largest in the first validation image; kernels: conv1's as base64 of
    N x 11 x 11 x 3 bytes; specialization: see `paper.kernels`, of its halves, which are the towers where there are two.
    """
    net, prepare = NETS[name], Input(training.images)
    losses: list[float] = []
    model = train(net.variant, recipe, training, prepare, seed, net.lighting, losses.append)
    kernels = model.conv1.weight.detach().cpu().numpy()
    precision = Precision(recipe.precision, training.images.device)
    by_brightness = []
    for brightness in net.brightness:
        looked_at = validation.images[:LOOKED_AT]
        row: dict[str, Any] = {"brightness": brightness}
        row["darker"] = mean_activations(model, prepare.center(looked_at, brightness))
        row["flatter"] = mean_activations(model, prepare.center(looked_at) * brightness)
        by_brightness.append(row | errors(model, validation, prepare, precision, brightness))
    return {
        "net": name,
        "seed": seed,
        "loss": losses[-1],
        "by_brightness": by_brightness,
        "place": strongest_place(*activations(model, prepare.center(validation.images[:1]))),
        "kernels": base64.b64encode(stretched(kernels).tobytes()).decode(),
        "specialization": specialization(kernels),
    }


@torch.no_grad()
def activations(model: AlexNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """The first layer's, N x kernels x 55 x 55, before and after its normalization. Args: images: prepared."""
    before = model.activate(model.conv1(images))
    return before, model.normalize(before, model.local_towers)


def mean_activations(model: AlexNet, images: Tensor) -> dict[str, float]:
    """The same, averaged over all."""
    before, after = activations(model, images)
    return {"before": float(before.mean()), "after": float(after.mean())}


def strongest_place(before: Tensor, after: Tensor) -> dict[str, list[float]]:
    """All kernels' activations at the place of the first image where their sum is largest."""
    place = int(before[0].sum(dim=0).argmax())
    return {"before": before[0].flatten(1)[:, place].tolist(), "after": after[0].flatten(1)[:, place].tolist()}


def kernel_images(trial: dict[str, Any]) -> np.ndarray:
    """N x 11 x 11 x 3 uint8, of a trial's "kernels"."""
    return np.frombuffer(base64.b64decode(trial["kernels"]), np.uint8).reshape(-1, 11, 11, 3)
