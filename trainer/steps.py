"""A net as a run trains it, and the parts of its step on batches that are at hand: what a measurement repeats."""

import torch

from trainer.alexnet import VARIANTS, AlexNet
from trainer.launch import Place
from trainer.precision import Precision, compiled
from trainer.recipe import PaperSGD
from trainer.towers import replicate
from trainer.update import Update


class Steps:
    """This place's part of a net with fresh weights. All ranks must call alike.

    Args: precision, compile: see `trainer.precision`; cuda_graphs: see `trainer.replay`; norm: whether the net
    normalises.
    """

    def __init__(
        self,
        place: Place,
        classes: int,
        width: float,
        precision: str = "fp32",
        compile: bool = False,
        cuda_graphs: bool = False,
        norm: bool = True,
    ):
        self.net = AlexNet(classes, width, layout=place.layout, variant=VARIANTS["paper"]._replace(norm=norm))
        self.net.initialise(seed=0)
        self.net.to(place.device)
        trained = replicate(self.net, place.layout)
        replicated = trained is not self.net
        if compile:
            trained = compiled(trained, place.device)
        # DistributedDataParallel takes no forward pass without a backward one
        self.forwards = self.net if replicated else trained
        self.precision = Precision(precision, place.device, place.world)
        # The least rate: a net that has learned its one batch by heart has gradients of denormal numbers, with which a
        # CPU computes at an eighth of its speed, as no training does
        optimiser = PaperSGD(self.net.parameters(), lr=1e-9)
        self._update = Update(trained, place.layout, optimiser, self.precision, place.device, 0, cuda_graphs)
        self.rng = self._update.rng

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The logits, in training."""
        with self.precision.context():
            return self.forwards(images, self.rng)

    def gradients(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """A step without its update."""
        self._update.gradients(images, labels)

    def update(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """A whole step."""
        self._update(images, labels, 0)
