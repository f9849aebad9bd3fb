"""One update of the net on a global batch (paper, section 5): the loss, its gradients, the optimiser's step."""

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.loader import BAD
from trainer.precision import Precision
from trainer.replay import Replayed
from trainer.towers import Layout


class Update:
    """Calls make an update each.

    Args: trained: what `trainer.towers.replicate` made of a net in `layout`; device: the net's; seed: of the dropout
    masks; cuda_graphs: see `trainer.replay`, whose `check_graphs` says where.
    """

    def __init__(
        self,
        trained: nn.Module,
        layout: Layout,
        optimiser: torch.optim.Optimizer,
        precision: Precision,
        device: torch.device,
        seed: int,
        cuda_graphs: bool = False,
    ):
        self.trained, self.layout, self.optimiser, self.precision = trained, layout, optimiser, precision
        self.seed, self.rng = seed, torch.Generator(device)
        self.gradients = Replayed(self._gradients, self.rng) if cuda_graphs else self._gradients

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """This replica's share of the mean loss over the global batch, a scalar on the device: the shares add up.

        Args: images, labels: as `trainer.launch.Place.whole` gives them; step: counts the updates before, and together
        with the seed sets the dropout masks.
        """
        self.rng.manual_seed(int(np.random.SeedSequence([self.seed, step]).generate_state(1, np.uint64)[0] >> 1))
        loss = self.gradients(images, labels)
        self.precision.update(self.optimiser)
        return loss

    def _gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        good = self.layout.replicas.sum((labels != BAD).sum())
        with self.precision.context():
            logits = self.trained(images, self.rng)
            loss = self.layout.dense.cross_entropy(logits, labels, ignore=BAD) / good
        self.optimiser.zero_grad()
        # DistributedDataParallel takes the replicas' mean, and it is their sum that is wanted
        self.precision.backward(loss * self.layout.replicas.size)
        return loss.detach()
