"""A model as a run trains it, and the parts of its training step on a resident batch: what a measurement repeats."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.alexnet import VARIANTS, AlexNet
from trainer.model_parallel import replicate
from trainer.optimizer import PaperSGD
from trainer.precision import Precision, compile_model
from trainer.rank import RankContext
from trainer.train_step import TrainStep


@dataclass(frozen=True)
class ModelOptions:
    """Which model is measured.

    width: the share of the paper's kernels and neurons; precision, compile: see `trainer.precision`; cuda_graphs: see
    `trainer.cuda_graph`; None of either is training's default; normalization: whether the model has its local response
    normalization.
    """

    width: float = 1.0
    precision: str = "fp32"
    compile: bool | None = False
    cuda_graphs: bool | None = False
    normalization: bool = True


def slowest_sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The paper's optimizer at a learning rate that changes nothing: a model that has learned its one batch by heart
    has gradients of denormal numbers, with which a CPU computes at an eighth of its speed, as no training does."""
    return PaperSGD(parameters, lr=1e-9)


class ModelStep:
    """This rank's part of a model with fresh weights, and its training step. All ranks must make and call it alike.

    Args: model_class: AlexNet, or a subclass to compare it with; optimizer: makes one of the model's parameters.
    """

    def __init__(
        self,
        context: RankContext,
        classes: int,
        options: ModelOptions,
        model_class: type[AlexNet] = AlexNet,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = slowest_sgd,
    ):
        variant = VARIANTS["paper"]._replace(norm=options.normalization)
        self.model = model_class(classes, options.width, layout=context.layout, variant=variant)
        self.model.init_weights(seed=0)
        self.model.to(context.device)
        self.trained = replicate(self.model, context.layout)
        replicated = self.trained is not self.model
        if options.compile:
            self.trained = compile_model(self.trained, context.device)
        # DistributedDataParallel takes no forward pass without a backward one
        self._forward_model = self.model if replicated else self.trained
        self.precision = Precision(options.precision, context.device, context.world_size)
        self.optimizer = optimizer(self.model.parameters())
        self._step = TrainStep(
            self.trained, context.layout, self.optimizer, self.precision, context.device, 0, bool(options.cuda_graphs)
        )
        self.rng = self._step.rng

    def forward(self, images: Tensor) -> Tensor:
        """The logits, in training."""
        with self.precision.autocast():
            logits: Tensor = self._forward_model(images, self.rng)
        return logits

    def gradients(self, images: Tensor, labels: Tensor) -> None:
        """A training step without the optimizer's update."""
        self._step.gradients(images, labels)

    def update(self, images: Tensor, labels: Tensor) -> None:
        """A training step."""
        self._step(images, labels, 0)
