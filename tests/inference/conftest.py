"""The model of a finished run, and its images as they are stored at 256."""

import pytest
import torch

from inference.trained import Trained
from shards.convert import ConvertOptions, write_dataset
from trainer.run_folder import find_checkpoint


@pytest.fixture(scope="session")
def trained(run):
    return Trained.load(find_checkpoint(run), torch.device("cpu"))


@pytest.fixture(scope="session")
def stored_256(images, tmp_path_factory):
    return write_dataset(images, tmp_path_factory.mktemp("stored") / "shards", ConvertOptions(size=256, workers=1))
