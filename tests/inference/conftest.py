"""A finished run that many tests read, and its images as they are stored at 256."""

import pytest
import torch

from inference.trained import Trained
from shards.convert import ConvertOptions, write_dataset
from trainer import train as training
from trainer.config import TrainConfig
from trainer.run_folder import find_checkpoint


@pytest.fixture(scope="session")
def run(data, tmp_path_factory):
    """The folder of a run of 14 steps, evaluated after 12 and at the end."""
    out = tmp_path_factory.mktemp("runs") / "run"
    training.train(TrainConfig(data, out, device="cpu", width=0.05, batch_size=8, lr=0.001, steps=14))
    return out


@pytest.fixture(scope="session")
def trained(run):
    return Trained.load(find_checkpoint(run), torch.device("cpu"))


@pytest.fixture(scope="session")
def stored_256(images, tmp_path_factory):
    return write_dataset(images, tmp_path_factory.mktemp("stored") / "shards", ConvertOptions(size=256, workers=1))
