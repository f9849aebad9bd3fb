"""A small convolutional net for images of 32 x 32 pixels, and its plain training: what studies of one idea train."""

import itertools
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paper.ablation import Images
from trainer.cuda_graph import GraphedStep

CHUNK = 1000  # images of an evaluation


Activation = Literal["relu", "tanh"]
# "scaled": images of variance 1, and initial weights that keep the size of the signal, by the activation's gain over
# the root of what is summed. "release": as the 2012 release's example-layers/layers-18pct.cfg, images of 0..255 less
# their mean and initial weights N(0, 0.01), in the first layer N(0, 0.0001)
Start = Literal["scaled", "release"]


class Shape(NamedTuple):
    """kernels: of three convolutions of 5 x 5, each followed by pooling of 3 with stride 2; hidden: neurons of dense
    layers before the last."""

    kernels: tuple[int, int, int]
    hidden: tuple[int, ...] = ()
    activation: Activation = "relu"
    start: Start = "scaled"


class SmallNet(nn.Module):
    """Three convolutions and a dense layer, as the 2012 release's examples for CIFAR-10 have them: the first is pooled
    by its maximum and the others by their mean. Input: N x 3 x 32 x 32, of `Prepare`; output: logits. Biases begin
    with 0."""

    def __init__(self, shape: Shape, classes: int, seed: int):
        super().__init__()
        self.activate: Callable[[Tensor], Tensor] = F.relu if shape.activation == "relu" else torch.tanh
        widths = (3, *shape.kernels)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(reads, kernels, 5, padding=2) for reads, kernels in itertools.pairwise(widths)
        )
        neurons = (shape.kernels[-1] * 4 * 4, *shape.hidden, classes)
        self.dense = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(neurons))
        rng, gain = torch.Generator().manual_seed(seed), nn.init.calculate_gain(shape.activation)
        with torch.no_grad():
            for layer in (*self.convolutions, *self.dense):
                assert isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None
                std = gain / layer.weight[0].numel() ** 0.5
                if shape.start == "release":
                    std = 1e-4 if layer is self.convolutions[0] else 0.01
                layer.weight.normal_(0, std, generator=rng)
                layer.bias.zero_()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, images: Tensor) -> Tensor:
        """What the dense layers read."""
        first, *others = self.convolutions
        x = self.activate(F.max_pool2d(first(images), 3, 2, ceil_mode=True))
        for layer in others:
            x = F.avg_pool2d(self.activate(layer(x)), 3, 2, ceil_mode=True)
        return x.flatten(1)

    def hidden(self, x: Tensor, masks: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """From features to logits. Args: masks: what is done to each hidden layer's output."""
        *hidden, last = self.dense
        for layer in hidden:
            x = masks(self.activate(layer(x)))
        logits: Tensor = last(x)
        return logits

    def forward(self, images: Tensor, masks: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        return self.hidden(self.features(images), masks)


class Prepare:
    """uint8 images to the net's input: the training set's mean image subtracted; "scaled", divided by the standard
    deviation."""

    def __init__(self, images: Tensor, start: Start = "scaled"):
        self.mean = images.float().mean(dim=0)
        self.scale = 1 / images.float().std().item() if start == "scaled" else 1.0

    def __call__(self, images: Tensor) -> Tensor:
        prepared = (images.float() - self.mean) * self.scale
        return prepared.contiguous(memory_format=torch.channels_last)


def subset(images: Images, most: int) -> Images:
    """At most so many images, as many of each class, as they come."""
    labels, classes = images.labels, int(images.labels.max()) + 1
    rows = torch.cat([(labels == label).nonzero()[:, 0][: most // classes] for label in range(classes)])
    return Images(images.images[rows], labels[rows])


def orders(count: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Each epoch's batches of rows, batches x batch_size; the last partial one is dropped."""
    rng = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randperm(count, generator=rng)[: count // batch_size * batch_size].view(-1, batch_size)


def stepper(
    net: SmallNet, data: Images, prepare: Prepare, lr: float, rng: torch.Generator, masks: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """An update with a batch of these rows, by SGD with momentum 0.9 and no weight decay; returns how many of the batch
    were wrong before it, without waiting for a GPU. Args: rng: that `masks` draws from."""
    optimizer = torch.optim.SGD(net.parameters(), lr, momentum=0.9)

    def gradients(rows: Tensor) -> Tensor:
        logits, labels = net(prepare(data.images[rows]), masks), data.labels[rows]
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        wrong: Tensor = (logits.argmax(dim=1) != labels).sum().float()
        return wrong

    work = GraphedStep(gradients, rng) if rng.device.type == "cuda" else gradients

    def step(rows: Tensor) -> Tensor:
        wrong = work(rows)
        optimizer.step()
        return wrong

    return step


@torch.inference_mode()
def wrong_share(logits: Callable[[Tensor], Tensor], data: Images) -> float:
    """The share of images for which the largest of the logits of their uint8 pixels is not the label's."""
    parts = zip(torch.split(data.images, CHUNK), torch.split(data.labels, CHUNK), strict=True)
    wrong = sum((logits(images).argmax(dim=1) != labels).sum() for images, labels in parts)
    return float(wrong) / len(data.labels)
