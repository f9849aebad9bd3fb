"""A model as a run trains it, and the parts of its step on batches that are at hand: what a measurement repeats."""

import torch

from trainer.alexnet import VARIANTS, AlexNet
from trainer.model_parallel import replicate
from trainer.optimizer import PaperSGD
from trainer.precision import Precision, compile_model
from trainer.rank import RankContext
from trainer.train_step import TrainStep


class ModelStep:
    """This place's part of a model with fresh weights. All ranks must call alike.

    Args: precision, compile: see `trainer.precision`; cuda_graphs: see `trainer.cuda_graph`; norm: whether the model
    normalizes.
    """

    def __init__(
        self,
        context: RankContext,
        classes: int,
        width: float,
        precision: str = "fp32",
        compile: bool = False,
        cuda_graphs: bool = False,
        norm: bool = True,
    ):
        self.model = AlexNet(classes, width, layout=context.layout, variant=VARIANTS["paper"]._replace(norm=norm))
        self.model.initialize(seed=0)
        self.model.to(context.device)
        trained = replicate(self.model, context.layout)
        replicated = trained is not self.model
        if compile:
            trained = compile_model(trained, context.device)
        # DistributedDataParallel takes no forward pass without a backward one
        self.forwards = self.model if replicated else trained
        self.precision = Precision(precision, context.device, context.world_size)
        # The least rate: a model that has learned its one batch by heart has gradients of denormal numbers, with which a
        # CPU computes at an eighth of its speed, as no training does
        optimizer = PaperSGD(self.model.parameters(), lr=1e-9)
        self._update = TrainStep(trained, context.layout, optimizer, self.precision, context.device, 0, cuda_graphs)
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
