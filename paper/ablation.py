"""One net, trained on a set of small images, and what it reaches: what studies of a part of it compare.

The images stay on the device as they are stored, and a batch is brought to what the data path would make of it
(scaled to 256 pixels, a crop of 224, mirrored, `pipeline.graph`) by one bilinear sampling, not rounded to 8 bits. The
order and the random draws are the data path's own (`pipeline.order`), so nets of the same seed see the same crops in
the same order, and a comparison of two is of pairs.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.geometry import CENTER, CROP, SIZE
from pipeline.order import Augmentation, Draws, EpochOrder, draw
from pipeline.stats import Stats
from shards.errors import InputError
from trainer.alexnet import AlexNet, Variant
from trainer.cuda_graph import GraphedStep
from trainer.optimizer import build_optimizer
from trainer.precision import Precision
from trainer.schedule import learning_rate

CHUNK = 100  # images of an evaluation or of a sum


class Images(NamedTuple):
    """images: N x 3 x side x side uint8; labels: N int64; both on the device that trains."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Images":
        return Images(self.images.to(device), self.labels.to(device))


class Recipe(NamedTuple):
    """How nets are trained. width: share of the paper's kernels and neurons; drops: the epochs, from 0, at whose start
    the learning rate is divided by ten; middle_std: see `trainer.alexnet.Variant`; precision: see
    `trainer.precision`."""

    width: float
    epochs: int
    drops: tuple[int, ...]
    batch_size: int
    lr: float
    middle_std: float
    precision: str


# Two cores: an eighth of the kernels, smaller batches (more steps of an epoch), and the 2012 release's larger initial
# weights in the middle layers, without which so few epochs teach nothing
SMALL = Recipe(0.125, 3, (2,), 32, 0.01, 0.03, "fp32")
# A GPU: the paper's net, batch, learning rate and initial weights, and its three drops, at a third of its epochs
FULL = Recipe(1.0, 30, (18, 24, 28), 128, 0.01, 0.01, "bf16")


class Input:
    """A training set's mean and colors: turns its images into the model's input.

    Args: images: the training set's, N x 3 x side x side uint8.
    """

    def __init__(self, images: Tensor):
        self.stats = image_stats(images)
        self.mean = torch.tensor(self.stats.mean_crop(), device=images.device).permute(2, 0, 1)

    def __call__(self, images: Tensor, draws: Tensor, brightness: float = 1.0) -> Tensor:
        """N x 3 x 224 x 224 float32, channels-last, the mean subtracted. Args: draws: N x 6: the crop's y and x in
        pixels of the scaled image, 1 for a mirrored one, what is added to R, G and B; brightness: multiplies the
        images before that."""
        crops = crop(images.float() * brightness, draws[:, 0], draws[:, 1], draws[:, 2])
        prepared = crops.sub_(self.mean).add_(draws[:, 3:, None, None])
        return prepared.contiguous(memory_format=torch.channels_last)

    def center(self, images: Tensor, brightness: float = 1.0) -> Tensor:
        """The same of the central crop."""
        draws = images.new_zeros(len(images), 6, dtype=torch.float32)
        draws[:, :2] = CENTER
        return self(images, draws, brightness)


def crop(images: Tensor, y: Tensor, x: Tensor, flip: Tensor) -> Tensor:
    """N x 3 x 224 x 224: each image, floats, scaled to 256 x 256 (bilinear, as the data path enlarges), cut out at its
    (y, x), mirrored where flip is 1."""
    place = torch.zeros(len(images), 2, 3, device=images.device)  # from the crop's -1..1 to the image's
    place[:, 0, 0] = CROP / SIZE * (1 - 2 * flip)
    place[:, 1, 1] = CROP / SIZE
    place[:, 0, 2], place[:, 1, 2] = ((2 * offset + CROP) / SIZE - 1 for offset in (x, y))
    grid = F.affine_grid(place, [len(images), 3, CROP, CROP], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def image_stats(images: Tensor) -> Stats:
    """The set's mean image, scaled to 256 x 256, and the principal components of its pixels as they are stored."""
    total, products = torch.zeros(images.shape[1:], dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    for part in torch.split(images, CHUNK):
        total += part.sum(dim=0, dtype=torch.float64).cpu()
        pixels = part.transpose(0, 1).flatten(1).double()
        products += (pixels @ pixels.T).cpu()
    mean = total / len(images)
    products /= len(images) * mean[0].numel()
    stats = Stats.from_moments(mean.permute(1, 2, 0).numpy(), products.numpy(), len(images))
    enlarged = F.interpolate(mean[None], size=SIZE, mode="bilinear", align_corners=False)[0]
    return dataclasses.replace(stats, mean_image=enlarged.permute(1, 2, 0).float().numpy())


def epoch_draws(augmentation: Augmentation, epoch: int, batches: int, batch_size: int) -> Tensor:
    """All of an epoch's draws, batches x batch_size x 6, as `Input` takes them."""
    return torch.stack([_as_tensor(draw(augmentation, epoch, batch, batch_size)) for batch in range(batches)])


def _as_tensor(draws: Draws) -> Tensor:
    shift = np.zeros((len(draws.y), 3), np.float32) if draws.color_shift is None else draws.color_shift
    return torch.from_numpy(np.column_stack([draws.y, draws.x, draws.flip, shift]))


def train(
    variant: Variant,
    recipe: Recipe,
    data: Images,
    prepare: Input,
    seed: int,
    lighting: bool = True,
    after_epoch: Callable[[float], None] = lambda loss: None,
) -> AlexNet:
    """A net trained from initial weights, with the paper's optimizer and cross-entropy, on the device of its images;
    an epoch's last partial batch is dropped.

    Args: lighting: whether colors are shifted (section 4.1); after_epoch: is given each epoch's mean loss.
    Raises: InputError for fewer images than a batch.
    """
    if len(data.images) < recipe.batch_size:
        count = f"{len(data.images)} training images are fewer than a batch of {recipe.batch_size}"
        raise InputError(f"{count}: give a larger set")
    device, classes = data.images.device, int(data.labels.max()) + 1
    model = AlexNet(classes, recipe.width, variant=variant._replace(middle_std=recipe.middle_std))
    model.init_weights(seed)
    model.to(device)
    optimizer, precision = build_optimizer("paper", model, recipe.lr), Precision(recipe.precision, device)
    rng = torch.Generator(device).manual_seed(seed)  # of the dropout masks

    def gradients(rows: Tensor, draws: Tensor) -> Tensor:
        images = prepare(data.images[rows], draws)
        with precision.autocast():
            loss = F.cross_entropy(model(images, rng), data.labels[rows])
        optimizer.zero_grad()
        precision.backward(loss)
        return loss.detach()

    step = GraphedStep(gradients, rng) if device.type == "cuda" else gradients
    order = EpochOrder([len(data.images)], recipe.batch_size, seed)
    augmentation = Augmentation(prepare.stats if lighting else None, seed)
    for epoch in range(recipe.epochs):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe.lr, epoch, recipe.drops) * group["lr_scale"]
        rows = torch.from_numpy(order.rows(epoch)[..., 1]).long().to(device)
        draws = epoch_draws(augmentation, epoch, order.num_batches, recipe.batch_size).to(device)
        total = torch.zeros((), device=device)
        for batch in range(order.num_batches):
            total += step(rows[batch], draws[batch])
            optimizer.step()
        after_epoch(float(total) / order.num_batches)
    return model.eval()


@torch.inference_mode()
def errors(
    model: AlexNet, data: Images, prepare: Input, precision: Precision, brightness: float = 1.0
) -> dict[str, float]:
    """{"top1_error", "top5_error"} of the central crops, as fractions."""
    right = torch.zeros(2, dtype=torch.int64, device=data.images.device)
    for images, labels in zip(*(torch.split(part, CHUNK) for part in data), strict=True):
        prepared = prepare.center(images, brightness)  # outside of autocast, whose half precision would move the crop
        with precision.autocast():
            logits = model(prepared)
        ranked = logits.topk(min(5, model.classes), dim=1).indices == labels[:, None]
        right += torch.stack([ranked[:, 0].sum(), ranked.sum()])
    top1, top5 = (1 - count / len(data.labels) for count in right.tolist())
    return {"top1_error": top1, "top5_error": top5}
