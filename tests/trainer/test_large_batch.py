"""The large-batch recipe: eight times the batch reaches the same loss in as many epochs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.compute_stats import complete
from pipeline.loader import Loader
from pipeline.order import Augmentation
from pipeline.preprocess import Preprocess
from pipeline.settings import Settings
from pipeline.stats import Stats
from shards.convert import ConvertOptions, write_dataset
from shards.dataset import Dataset
from shards.synthetic import render_folders
from trainer.alexnet import AlexNet
from trainer.config import TrainConfig
from trainer.model_parallel import unsharded_layout
from trainer.optimizer import build_optimizer
from trainer.precision import Precision
from trainer.schedule import lr_at
from trainer.train_step import TrainStep


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """512 rendered images of 4 classes, preprocessed as in an epoch, and their labels."""
    folder = tmp_path_factory.mktemp("crops")
    render_folders(folder / "images", classes=4, train=512, val=4, seed=0)
    complete(write_dataset(folder / "images", folder / "set", ConvertOptions(size=256)))
    stats = Stats.load(folder / "set")
    options = {"batch_size": 64, "settings": Settings(threads=2), "augmentation": Augmentation(stats)}
    loader = Loader(Dataset.load(folder / "set"), "train", "train", **options)
    preprocess = Preprocess(stats, "image", torch.device("cpu"))
    batches = [(preprocess(batch.images, batch.color_shift).clone(), batch.labels) for batch in loader.epoch(0)]
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def last_loss(crops, recipe, batch_size, lr, epochs=20):
    """The mean training loss of the last three epochs of a narrow model."""
    (images, labels), model = crops, AlexNet(4, width=0.1)
    model.init_weights(seed=0)
    optimizer, precision = build_optimizer(recipe, model, lr), Precision("fp32", torch.device("cpu"))
    config = TrainConfig("data", Path("run"), recipe=recipe, batch_size=batch_size, lr=lr, lr_steps=())
    update = TrainStep(model, unsharded_layout(), optimizer, precision, torch.device("cpu"), seed=0)
    batches, losses = len(images) // batch_size, []
    for step in range(epochs * batches):
        epoch, number = divmod(step, batches)
        chosen = np.random.default_rng(epoch).permutation(len(images))[number * batch_size : (number + 1) * batch_size]
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, batches, config, []) * group["lr_scale"]
        losses.append(update(images[chosen], labels[chosen], step).item())
    return np.mean(losses[-3 * batches :])


@pytest.mark.long
def test_eight_times_the_batch_comes_to_the_same_loss_in_as_many_epochs(crops, monkeypatch):
    # All of it an eighth of the paper's size: 16 images instead of 128, and 128 instead of 1024. Each recipe has the
    # best --lr of three. Measured for three orders: the large batch's loss is 0.82, 0.91 and 1.04 of the small one's;
    # by the paper's rule, at an lr in proportion, 2.0 and 3.1
    monkeypatch.setattr("trainer.schedule.PAPER_BATCH_SIZE", 16)
    small = last_loss(crops, "paper", 16, 0.003)
    assert small < 0.6
    assert last_loss(crops, "large-batch", 128, 0.01) < 1.4 * small
    assert last_loss(crops, "paper", 128, 0.024) > 1.4 * small
