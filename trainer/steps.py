"""A net as a run trains it, and the parts of its step on batches that are at hand: what a measurement repeats."""

import torch

from trainer.alexnet import VARIANTS, AlexNet
from trainer.launch import Place
from trainer.loop import train_step
from trainer.precision import Precision, compiled
from trainer.recipe import PaperSGD
from trainer.towers import replicate


class Still(PaperSGD):
    """Takes the gradients and leaves the weights."""

    def step(self, closure=None):
        return None


class Steps:
    """This place's part of a net with fresh weights. All ranks must call alike.

    Args: precision, compile: see `trainer.precision`; norm: whether the net normalises.
    """

    def __init__(
        self, place: Place, classes: int, width: float, precision: str = "fp32", compile: bool = False, norm=True
    ):
        variant = VARIANTS["paper"]._replace(norm=norm)
        self.layout, self.net = place.layout, AlexNet(classes, width, layout=place.layout, variant=variant)
        self.net.initialise(seed=0)
        self.net.to(place.device)
        self.trained = replicate(self.net, place.layout)
        replicated = self.trained is not self.net
        if compile:
            self.trained = compiled(self.trained, place.layout.dense.size > 1, place.device)
        # DistributedDataParallel takes no forward pass without a backward one
        self.forwards = self.net if replicated else self.trained
        self.precision, self.rng = Precision(precision, place.device, place.world), torch.Generator(place.device)
        # The least rate: a net that has learned its one batch by heart has gradients of denormal numbers, with which a
        # CPU computes at an eighth of its speed, as no training does
        self.optimiser, self.still = (kind(self.net.parameters(), lr=1e-9) for kind in (PaperSGD, Still))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The logits, in training."""
        with self.precision.context():
            return self.forwards(images, self.rng)

    def gradients(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """A step without its update."""
        self._step(self.still, images, labels)

    def update(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """A whole step."""
        self._step(self.optimiser, images, labels)

    def _step(self, optimiser: PaperSGD, images: torch.Tensor, labels: torch.Tensor) -> None:
        train_step(self.trained, self.layout, optimiser, images, labels, self.rng, 0, 0, self.precision)
