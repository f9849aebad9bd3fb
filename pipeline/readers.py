"""How a split's images reach DALI: tars are mapped into memory, and DALI is given each image where it lies there.

Nothing is copied, and a folder and a URL are read alike: the tars of a URL are fetched ahead, through the cache.
"""

import ctypes
import mmap
import os
import weakref
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from nvidia.dali.tensors import TensorCPU, TensorListCPU

from pipeline.bad_samples import BadSamples
from pipeline.order import EpochOrder
from pipeline.samples import Samples
from shards.cache import Prefetcher
from shards.errors import InputError

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_longlong]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value


def map_file(file: int, size: int) -> memoryview:
    """The first `size` bytes of an open file, in memory, to read until nobody refers to them any more. Raises OSError.

    Python's own `mmap` keeps a file descriptor a mapping, and a data set may have more tars than a process may have
    descriptors; and a shard that is mapped would stay locked in the cache.
    """
    # Not shared, though nobody writes: FUSE may refuse that
    address = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_PRIVATE, file, 0)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    mapped = (ctypes.c_ubyte * size).from_address(address)
    # Not at exit: DALI's threads may still be reading
    weakref.finalize(mapped, _LIBC.munmap, address, size).atexit = False
    return memoryview(mapped).cast("B").toreadonly()


class MappedTars:
    """The tars of a split in memory. Args: keep: all of them once they were used, otherwise only the last one."""

    def __init__(self, samples: Samples, keep: bool):
        self.samples, self.keep = samples, keep
        self.mapped: dict[int, memoryview] = {}
        self.file: BinaryIO | None = None  # the tar that was last opened: while it is, it stays in a URL's cache
        self.order: dict[int, int] = {}
        self.prefetcher: Prefetcher | None = None

    def expect(self, rows: np.ndarray) -> None:
        """These samples (rows of (shard, number)) come next, in this order: the tars of a URL are fetched ahead."""
        remote = self.samples.dataset.remote
        if remote:
            shards, first = np.unique(rows[:, 0], return_index=True)
            order = [shard for shard in shards[np.argsort(first)].tolist() if shard not in self.mapped]
            self.order = {shard: position for position, shard in enumerate(order)}
            depth = remote.prefetch_depth(self.samples.shards)
            self.prefetcher = Prefetcher(self.samples.dataset.open, [self.samples.shards[i] for i in order], depth)

    def of(self, rows: np.ndarray) -> list[memoryview]:
        """The tar of each of these samples."""
        shards = rows[:, 0].tolist()
        for shard in dict.fromkeys(shards):
            if shard not in self.mapped:
                self.mapped[shard] = self._map(shard)
        tars = [self.mapped[shard] for shard in shards]
        if not self.keep:
            self.mapped = {shards[-1]: tars[-1]}
        return tars

    def _map(self, number: int) -> memoryview:
        self.close()  # first: a small cache may have no room for the next one otherwise
        shard, tar = self.samples.shards[number], self.samples.tars[number]
        try:
            if self.prefetcher and number in self.order:
                self.file = self.prefetcher.open(self.order[number])
            else:
                self.file = self.samples.dataset.open(shard)
            size = os.fstat(self.file.fileno()).st_size
            if size < shard.bytes:  # to read beyond its end would kill the process
                raise InputError(f"{tar} has become shorter, {size} bytes of {shard.bytes}: bring it back")
            return map_file(self.file.fileno(), shard.bytes)
        except OSError as error:
            raise InputError(f"{tar} cannot be read: {error.strerror}") from None

    def close(self) -> None:
        """Lets the cache delete the last tar. What is mapped stays readable."""
        if self.file:
            self.file.close()


class ReadBatch(NamedTuple):
    """A batch that DALI was given: the samples as rows (shard, number), the tar of each, and which of them stand in for
    one that was known to be bad."""

    rows: np.ndarray
    tars: list[memoryview]
    stands_in: np.ndarray


class BatchReader:
    """Gives DALI the images of batch after batch, of epoch after epoch, without end; each call is a batch.

    `ahead` has the batches that DALI was given and that have not come out yet, the oldest first; `following` is the
    (epoch, number) of that one.

    Args: part: this rank's part of a global batch; bad_samples: as they are known when a batch is read; begin: the
    (epoch, number) of the first batch.
    """

    def __init__(
        self, samples: Samples, order: EpochOrder, part: slice, bad_samples: BadSamples, begin: tuple[int, int]
    ):
        self.samples, self.order, self.part, self.bad_samples = samples, order, part, bad_samples
        self.tars = MappedTars(samples, keep=order.shuffle == "full")
        self.ahead: deque[ReadBatch] = deque()
        self.following = begin
        self._batches = self._read_all(begin)

    def __call__(self) -> TensorListCPU:
        return next(self._batches)

    def take(self) -> ReadBatch:
        """The batch that has come out of DALI."""
        self.following = self.order.following(*self.following)
        return self.ahead.popleft()

    def labels(self, batch: ReadBatch) -> np.ndarray:
        """The class numbers of a batch's samples, int64."""
        where = self.samples.positions(batch.rows)
        begins, sizes = where["cls_offset"], where["cls_size"]
        texts = [
            bytes(tar[a:b]) for tar, a, b in zip(batch.tars, begins.tolist(), (begins + sizes).tolist(), strict=True)
        ]
        try:
            return np.array([int(text) for text in texts], np.int64)
        except (ValueError, OverflowError):
            wrong = next((number for number, text in enumerate(texts) if not text.strip().isdigit()), 0)
            shard, number = batch.rows[wrong].tolist()
            message = f"{self.samples.tars[shard]}: {self.samples.name((shard, number))} has the class number"
            raise InputError(f"{message} {texts[wrong][:20]!r}: `python cli.py verify` names all such") from None

    def _read_all(self, position: tuple[int, int]) -> Iterator[TensorListCPU]:
        while True:
            epoch, begin = position
            rows = self.order.rows(epoch)[begin:, self.part]
            self.tars.expect(rows.reshape(-1, 2))
            for batch in rows:
                yield self._read(batch)
                position = self.order.following(*position)

    def _read(self, rows: np.ndarray) -> TensorListCPU:
        rows, stands_in = self.bad_samples.replace(rows)
        where, tars = self.samples.positions(rows), self.tars.of(rows)
        self.ahead.append(ReadBatch(rows, tars, stands_in))
        begins, sizes = where["offset"], where["size"]
        ends = (begins + sizes).tolist()
        images = [TensorCPU(tar[a:b]) for tar, a, b in zip(tars, begins.tolist(), ends, strict=True)]
        # DALI would go through a Python list several times: a list of its own costs a fifth less of the main thread
        return TensorListCPU(images, contiguous=False)  # type: ignore[call-overload, no-any-return]
