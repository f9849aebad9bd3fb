"""What a study works with: its images, its device, and the cells that it has finished."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from paper import images
from paper.cells import Cells, Result
from paper.images import ImageSet


@dataclass(frozen=True)
class Job:
    """data: the image set, None for a study that needs none; out: the folder for cells, images and results; seeds: how
    many, from 0; full: whether it is the size for a GPU."""

    data: Path | None
    out: Path
    seeds: int
    device: torch.device
    full: bool

    @cached_property
    def digest(self) -> str | None:
        """Of the image set."""
        return None if self.data is None else images.digest_of(self.data)

    def images(self, side: int) -> ImageSet:
        """The image set with sides of so many pixels, on the job's device."""
        assert self.data is not None and self.digest is not None
        loaded = images.load(self.data, self.digest, side, self.out)
        return loaded._replace(train=loaded.train.to(self.device), test=loaded.test.to(self.device))

    def run(
        self, group: str, settings: Mapping[str, Any], work: Mapping[str, Callable[[], Result]], label: str
    ) -> dict[str, Result]:
        """The cells' results by name. Args: group: of cells that are made alike, perhaps by several studies; settings:
        what they are made with, beside the images and the device."""
        kind = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        options = {"images": self.digest, "device": kind, "full": self.full, **settings}
        return Cells(self.out / "cells" / group, options).run(work, label)
