"""One update of the model on a global batch (paper, section 5): the loss, its gradients, the optimizer's step."""

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.loader import BAD_LABEL
from trainer.cuda_graph import GraphedStep
from trainer.model_parallel import Layout
from trainer.precision import Precision


class TrainStep:
    """Each call is one update.

    Args: module: from `trainer.model_parallel.replicate`, of a model in `layout`; device: the model's; seed: of the
    dropout masks; cuda_graphs: see `trainer.cuda_graph`, whose `check_cuda_graphs` says where they work.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: Layout,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        device: torch.device,
        seed: int,
        cuda_graphs: bool = False,
    ):
        self.module, self.layout, self.optimizer, self.precision = module, layout, optimizer, precision
        self.seed, self.rng = seed, torch.Generator(device)
        self.gradients = GraphedStep(self._gradients, self.rng) if cuda_graphs else self._gradients

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """This replica's share of the mean loss over the global batch, a scalar on the device: the shares add up.

        Args: images, labels: as `trainer.rank.RankContext.gather_batch` returns them; step: counts the updates before,
        and together with the seed determines the dropout masks.
        """
        self.rng.manual_seed(int(np.random.SeedSequence([self.seed, step]).generate_state(1, np.uint64)[0] >> 1))
        loss = self.gradients(images, labels)
        self.precision.step(self.optimizer)
        return loss

    def _gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        good = self.layout.replicas.all_reduce((labels != BAD_LABEL).sum())
        with self.precision.autocast():
            logits = self.module(images, self.rng)
            loss = self.layout.dense.cross_entropy(logits, labels, ignore=BAD_LABEL) / good
        self.optimizer.zero_grad()
        # DistributedDataParallel takes the replicas' mean, and their sum is what is needed
        self.precision.backward(loss * self.layout.replicas.size)
        return loss.detach()
