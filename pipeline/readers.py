"""The two ways in which a data set's samples reach DALI: its own reader of tars, or batches that Python fetches.

Each rank writes index files that list just its own samples, in the epoch's order, and DALI's reader follows them: so
every sample comes exactly once by construction. Tars behind a URL that DALI cannot read are fetched shard by shard.
"""

import contextlib
import functools
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from pipeline import graph
from pipeline.graph import Reader
from pipeline.samples import Samples
from shards.cache import Prefetcher
from shards.errors import InputError
from shards.index import write_index
from shards.tars import IMAGE_EXTENSIONS


def runs(rows: np.ndarray) -> list[np.ndarray]:
    """The samples (rows of (shard, number)) split where the shard changes."""
    return np.split(rows, np.flatnonzero(np.diff(rows[:, 0])) + 1)


@contextlib.contextmanager
def tar_reader(samples: Samples, rows: np.ndarray) -> Iterator[Reader]:
    """DALI's reader for these samples in this order. The pipeline has to be built inside the `with`: the index files
    are gone after it."""
    tars, indices = [], []
    with tempfile.TemporaryDirectory(prefix="alexnet-index-") as folder:
        # A run of samples of one shard is one (tar, index) pair of the reader
        for number, run in enumerate(runs(rows)):
            shard = run[0, 0]
            index = Path(folder) / f"{number}.idx"
            write_index(index, [samples.entries[shard][sample] for sample in run[:, 1]])
            tars.append(str(samples.tars[shard]))
            indices.append(str(index))
        try:
            yield functools.partial(graph.tar_reader, tars, indices)
        except RuntimeError as error:
            if not samples.dataset.remote:
                raise
            reason = " ".join(str(error).partition("encountered:")[2].split())[:200]
            remedy = "set AWS_ENDPOINT_URL and AWS_REGION for it, or have it read through --cache DIR"
            raise InputError(f"DALI cannot read {samples.dataset.where} ({reason}): {remedy}") from None


def fetched_reader(samples: Samples, epochs: Iterable[np.ndarray], batch_size: int) -> Reader:
    """The same from shards that are fetched ahead; `epochs` gives the rows of one epoch after another."""
    batches = _fetched_batches(samples, epochs, batch_size)
    return functools.partial(graph.fetched_reader, lambda: next(batches))


def _fetched_batches(
    samples: Samples, epochs: Iterable[np.ndarray], batch_size: int
) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """The images and class numbers as DALI's reader would give them, a batch at a time. The next epoch follows without
    a pause: DALI works ahead, and so its first shards are there when it begins."""
    remote = samples.dataset.remote
    assert remote
    images: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    for rows in epochs:
        order = runs(rows)
        prefetcher = Prefetcher(
            samples.dataset.open, [samples.shards[run[0, 0]] for run in order], remote.prefetch_depth(samples.shards)
        )
        for position, run in enumerate(order):
            with prefetcher.open(position) as file:
                for shard, sample in run.tolist():
                    for extensions, parts in ((IMAGE_EXTENSIONS, images), (("cls",), numbers)):
                        offset, size = samples.part((shard, sample), extensions)
                        parts.append(np.frombuffer(os.pread(file.fileno(), size, offset), np.uint8))
                    if len(images) == batch_size:
                        yield images, numbers
                        images, numbers = [], []
