"""Measures the stages that a model takes part in, from preprocessing to training, and its arithmetic."""

import functools
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from bench.exchange import record_exchange
from bench.harness.datasets import repeated
from bench.harness.model_step import ModelStep
from bench.harness.timing import Timed, timed, timed_beside
from bench.rank_setup import RankSetup
from pipeline.geometry import CROP
from pipeline.loader import Batch, Loader
from pipeline.preprocess import Preprocess, to_device
from trainer.alexnet import AlexNet
from trainer.model_parallel import unsharded_layout

FIRST_STEPS = 100  # of a resumed run, which are compared with the ones that follow


class Prepared(NamedTuple):
    """A model and what it works on: `images` and `labels` are `batch` preprocessed, on the device."""

    step: ModelStep
    preprocess: Preprocess
    batches: Iterator[Batch]
    batch: Batch
    images: torch.Tensor
    labels: torch.Tensor


class ModelStages:
    """Each method measures a stage; all ranks must call alike. The first call makes the model and reads a batch."""

    def __init__(self, setup: RankSetup):
        self.setup, self.context = setup, setup.context
        self.sent_per_image = 0.0  # bytes that this rank sends in a step; `exchange` sets it

    @functools.cached_property
    def prepared(self) -> Prepared:
        setup, context = self.setup, self.context
        step = ModelStep(context, len(setup.dataset.classes), setup.config.model)
        preprocess = Preprocess(setup.stats, "image", context.device, step.precision.dtype)
        batches = setup.batches()
        batch = next(batches)
        batch = batch._replace(images=batch.images.clone())  # DALI reuses its memory
        images, labels = (tensor.clone() for tensor in context.gather_batch(batch, preprocess))
        return Prepared(step, preprocess, batches, batch, images, labels)

    def copy(self) -> Timed:
        """Crops to the GPU."""
        batch = self.prepared.batch
        return self.setup.time(lambda: to_device(batch.images, self.context.device))

    def preprocess(self) -> Timed:
        """Crops exchanged between towers, cast, mean subtracted, PCA color added: the stage "feed"."""
        batch, preprocess = self.prepared.batch, self.prepared.preprocess
        return self.setup.time(lambda: self.context.gather_batch(batch, preprocess))

    def exchange(self) -> Timed:
        """What the ranks send one another in a step, and nothing else."""
        step, images, labels = self.prepared.step, self.prepared.images, self.prepared.labels
        exchange, sent = record_exchange(lambda: step.gradients(images, labels), step.model, self.context)
        self.sent_per_image = sent / len(self.prepared.batch.labels)
        return self.setup.time(exchange)

    def forward(self) -> Timed:
        """The logits, as in training."""
        step, images = self.prepared.step, self.prepared.images
        return self.setup.time(lambda: step.forward(images))

    def forward_backward(self) -> Timed:
        """A training step without the optimizer's update."""
        step, images, labels = self.prepared.step, self.prepared.images, self.prepared.labels
        return self.setup.time(lambda: step.gradients(images, labels))

    def update(self) -> Timed:
        """A training step on a batch that stays on the device: the stage "model"."""
        step, images, labels = self.prepared.step, self.prepared.images, self.prepared.labels
        return self.setup.time(lambda: step.update(images, labels))

    @functools.cached_property
    def beside(self) -> tuple[Timed, Timed]:
        """The stages "pipeline beside" and "model beside": each at full speed on the cores or the card that it shares
        with the other. The model trains on its one batch, and the pipeline's batches are dropped. On a GPU one step of
        the model is queued behind the one that runs, as in training: a longer queue leaves decoding no gap."""
        step, images, labels = self.prepared.step, self.prepared.images, self.prepared.labels
        batches, context, config = self.setup.batches(), self.context, self.setup.config
        stream = torch.cuda.Stream(context.device) if context.device_id is not None else None  # type: ignore[no-untyped-call]

        def drop_batch() -> None:
            with torch.cuda.stream(stream):  # does nothing on a CPU
                next(batches)
                if stream is not None:
                    stream.synchronize()  # a batch counts once it is there

        queued: list[torch.cuda.Event] = []

        def update() -> None:
            step.update(images, labels)
            if stream is not None:
                queued.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
                queued[-1].record()
                if len(queued) > 1:
                    queued.pop(0).synchronize()

        model, pipeline = timed_beside(update, drop_batch, self.setup.images, config.seconds, context)
        return pipeline, model

    def train(self) -> Timed:
        """Loading, preprocessing and the training step together."""
        return self.setup.time(lambda: self._train_on(next(self.prepared.batches)))

    def _train_on(self, batch: Batch) -> None:
        self.prepared.step.update(*self.context.gather_batch(batch, self.prepared.preprocess))

    def resumed(self, steady: float) -> float:
        """Images a second over the first FIRST_STEPS steps of a run that resumes in the middle of an epoch, all that
        its loading needs included. Those that do not fit into a stage's time count at the `steady` rate."""
        began, steps, spent = time.perf_counter(), 0, 0.0
        loader = Loader(repeated(self.setup.dataset), "train", "train", **self.setup.loader_options())
        for batch in loader.epoch(0, start=loader.num_batches // 2):
            self._train_on(batch)
            if self.context.device_id is not None:
                torch.cuda.synchronize()
            steps += 1
            # The slowest rank's, so that all stop together
            spent = self.context.all_reduce(time.perf_counter() - began, dist.ReduceOp.MAX)
            if steps == FIRST_STEPS or spent > self.setup.config.seconds:
                break
        batch_size = self.setup.config.batch_size
        return FIRST_STEPS * batch_size / (spent + (FIRST_STEPS - steps) * batch_size / steady)

    def without_lrn(self) -> float:
        """Images a second of a training step of the same model without its normalizations."""
        images, labels = self.prepared.images, self.prepared.labels
        without = replace(self.setup.config.model, normalization=False)
        bare = ModelStep(self.context, len(self.setup.dataset.classes), without)
        return self.setup.time(lambda: bare.update(images, labels)).median

    def on_one_device(self) -> float:
        """Images a second of a training step on the global batch, by the first rank alone with all cores."""
        context, config, rate = self.context, self.setup.config, 0.0
        if context.rank == 0:
            alone = replace(
                context, world_size=1, layout=unsharded_layout(), threads=context.threads * context.world_size
            )
            torch.set_num_threads(alone.threads)
            classes = len(self.setup.dataset.classes)
            images = torch.randn(config.batch_size, 3, CROP, CROP, device=context.device)
            labels = torch.randint(classes, (config.batch_size,), device=context.device)
            step = ModelStep(alone, classes, config.model)
            rate = timed(lambda: step.update(images, labels), config.batch_size, config.seconds, alone).median
            torch.set_num_threads(context.threads)
        context.barrier()
        return rate

    def flop_per_image(self) -> dict[str, float]:
        """This rank's FLOP for an image, by stage."""
        image_count, step = len(self.prepared.batch.labels), self.prepared.step
        forward, backward = (flop / image_count for flop in flop_counts(step.model, self.prepared.images, step.rng))
        return {"forward": forward, "forward+backward": forward + backward, "model": forward + backward}


def flop_counts(model: AlexNet, images: torch.Tensor, rng: torch.Generator) -> tuple[int, int]:
    """This rank's FLOP in products, forwards and backwards; a multiply and an add are two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images.float(), rng)
    # conv1's kernels of 11 x 11 are computed as 12 x 12, whose added zeros are not the model's arithmetic
    products = len(images) * 55 * 55 * 3 * model.conv1.out_channels
    conv1 = 2 * products * 11**2
    forward = counter.get_total_flops() - 2 * products * 12**2 + conv1
    # Backwards each layer computes two gradients, a product's cost each, but conv1 none of the images'. (The counter's
    # own figure for the backward of a convolution in groups is too high.)
    return forward, 2 * forward - conv1
