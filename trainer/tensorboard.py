"""TensorBoard's files of a run: its lines as curves, its options, a batch as the model sees it, conv1's kernels."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.preprocess import Preprocess
from pipeline.preview import tiles
from shards.console import notice
from shards.errors import InputError
from trainer.kernels import columns_of

FOLDER = "tensorboard"
SHOWN = 32  # images of a batch
NOT_CURVES = ("kind", "step", "epoch", "crops", "samples")


class TensorBoard:
    """Writes into the folder `tensorboard` of a run. A disk without room ends the writing, with a notice, and not the
    run.

    Args: step: the steps made; what an earlier run wrote of later ones is dropped. Raises: InputError when it is not
    installed.
    """

    def __init__(self, run: Path, step: int):
        self.folder = run / FOLDER
        self.writer: Any = summary_writer_class()(self.folder, purge_step=step + 1)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
            if self.writer:
                self.writer.flush()
        except OSError as error:
            self.writer = None
            notice(f"cannot write {self.folder}: {error.strerror}; metrics.jsonl has all lines")

    def options(self, record: Mapping[str, Any], step: int) -> None:
        """A run's options, as a table. Args: record: what `config.json` holds of them."""
        cells = [(name, "" if value is None else str(value).replace("|", "\\|")) for name, value in record.items()]
        rows = ["| option | value |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in cells)]
        with self._writing():
            if self.writer:
                self.writer.add_text("options", "\n".join(rows), step)

    def line(self, line: Mapping[str, Any]) -> None:
        """A line of `metrics.jsonl`; what is null has no point."""
        with self._writing():
            for name, value in line.items() if self.writer else ():
                if name not in NOT_CURVES and value is not None:
                    tag = f"{line['kind']}/{name}" + (f"_{line['crops']}_crops" if line.get("crops", 1) > 1 else "")
                    self.writer.add_scalar(tag, value, line["step"])

    def batch(self, images: torch.Tensor, preprocess: Preprocess, step: int) -> None:
        """The first images of a batch, as the model gets them, but for the mean. Args: images: the model's input."""
        shown = preprocess.visible(images[:SHOWN]).cpu().numpy()
        self._image("batch", tiles(shown, columns=min(8, len(shown))), step)

    def kernels(self, towers: Sequence[np.ndarray], step: int) -> None:
        """conv1's kernels, a picture a tower. Args: towers: of `trainer.kernels.kernel_images`."""
        for number, images in enumerate(towers):
            self._image(f"conv1/tower_{number + 1}", tiles(images, columns_of(len(images), 12), scale=4), step)

    def _image(self, tag: str, picture: Any, step: int) -> None:
        with self._writing():
            if self.writer:
                self.writer.add_image(tag, np.asarray(picture), step, dataformats="HWC")


def summary_writer_class() -> type[Any]:
    """TensorBoard's SummaryWriter. Raises InputError when it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs a package: pip install 'alexnet-dali[tensorboard]'") from None
    return SummaryWriter
