"""Checkpoints in unsharded form: what a one-device model would hold, so that any layout loads any of them.

A file is safetensors: named tensors, among them the mean image and color components that the run subtracts and adds,
and in its header a digest of every other byte of the file, and JSON of the step, the run's configuration and its
validation errors so far. Loading one reads numbers and text and cannot run code. It is
written under another name, synced and renamed, so a killed run leaves the one before intact; and by a thread, so that a
step waits for a copy in memory and not for the disk.

The file is assembled here and not by safetensors' own `save`, which holds Python's lock while it copies all bytes: a
step would be delayed by a third of a second at full width.
"""

import json
import math
import mmap
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import xxhash
from safetensors import SafetensorError
from torch import Tensor

from pipeline.stats import Stats
from shards.atomic import atomic_copy, atomic_write
from shards.dataset import Dataset
from shards.errors import InputError, reason
from trainer.alexnet import AlexNet
from trainer.config import TrainConfig
from trainer.optimizer import PaperSGD
from trainer.run_folder import BEGIN, BEST, check_begins, list_checkpoints, list_resumable, numbered, read_state

FORMAT = 3
DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}
# The digest is first in the header, so that it is read, and excluded from itself, before anything is parsed
DIGEST_FROM = 8 + len(BEGIN)
DIGEST_TO = DIGEST_FROM + 32


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time, while training goes on; as a context manager it ends with the last.

    Args: writes: whether this process writes; all must call `save`, because each holds shards; keep: how many of the
    newest to keep, besides the best: 490 MB each at full width; stats: what the run's images are preprocessed with.
    """

    def __init__(self, run: Path, writes: bool, keep: int, stats: Stats | None = None):
        self.run, self.writes, self.keep = run, writes, keep
        self.thread = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None
        # In the host's memory, reused by every checkpoint
        kept = vars(stats) if stats else {}
        self.copies = {f"stats.{name}": torch.from_numpy(np.array(value)) for name, value in kept.items()}
        if writes:
            for name in ("*.safetensors", "*.json", "*.jsonl"):
                for abandoned in run.glob(f".{name}.tmp-*"):
                    abandoned.unlink()  # of a run that was killed while it wrote

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown()  # a run that ends with an error still has what it began to write

    def save(self, step: int, model: AlexNet, optimizer: PaperSGD, state: dict[str, Any], best: bool = False) -> None:
        """Begins to write `checkpoint-STEP.safetensors`, which is `best.safetensors` too if it is the `best`; waits
        for the one before it.

        Args: state: what else to store, JSON. Raises InputError when the one before could not be written, or a number
        in it is not finite.
        """
        self.wait()
        for name, parameter in model.named_parameters():
            velocity = optimizer.state[parameter].get("velocity")
            if velocity is None:  # fp16's first updates may all have been skipped
                velocity = torch.zeros_like(parameter)
            for kind, tensor in (("parameters", parameter), ("velocity", velocity)):
                unsharded = model.shard_group(name).unshard(tensor.detach())
                if self.writes:
                    # The next update changes these tensors, so a copy is written
                    self._copy(f"{kind}.{name}", unsharded)
        if self.writes:
            if torch.cuda.is_available():
                torch.cuda.current_stream().synchronize()
            state = {"format": FORMAT, "step": step, **state}
            self.pending = self.thread.submit(self._write, step, state, best)

    def _copy(self, name: str, tensor: Tensor) -> None:
        if name not in self.copies:
            self.copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        self.copies[name].copy_(tensor, non_blocking=True)

    def check(self) -> None:
        """Raises InputError when a write that has ended by now failed."""
        if self.pending and self.pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the pending checkpoint is on the disk. Raises InputError when it could not be written."""
        if self.pending:
            pending, self.pending = self.pending, None
            pending.result()

    def _write(self, step: int, state: dict[str, Any], best: bool) -> None:
        name = numbered(step)
        for tensor_name, tensor in self.copies.items():
            array = tensor.numpy()
            if not (math.isfinite(array.min()) and math.isfinite(array.max())):  # a NaN is the minimum and the maximum
                raise InputError(
                    f"{tensor_name} is not finite after step {step}: not written; {last_good_hint(self.run)}"
                )
        try:
            # The best is named first: a run killed in between writes the other again
            write(self.run / (BEST if best else name), self.copies, state)
            if best:
                atomic_copy(self.run / BEST, self.run / name)
        except InputError as error:
            raise InputError(f"{error}, then --resume auto; {last_good_hint(self.run)}") from None
        for old in list_checkpoints(self.run)[self.keep :]:
            old.unlink()


def last_good_hint(run: Path) -> str:
    """The end of a message: which checkpoint to return to."""
    newest = next(iter(list_resumable(run)), None)
    return f"the last good checkpoint is {newest}" if newest else "there is no checkpoint before it"


def write(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Writes a checkpoint's file, completely or not at all. Raises InputError when the disk is full."""
    parts = [tensor.view(-1).view(torch.uint8).numpy().data for tensor in tensors.values()]
    entries: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    metadata = {"xxh3_128": "0" * (DIGEST_TO - DIGEST_FROM), "state": json.dumps(state)}
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    before, after = header[:DIGEST_FROM], header[DIGEST_TO:]
    digest = _digest(before, after, *parts)
    with atomic_write(path) as file:
        for part in (before, digest, after):
            file.write(part)
        for array in parts:
            file.write(array)


def _digest(*parts: bytes | memoryview) -> bytes:
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return digest.hexdigest().encode()


def verify(path: Path) -> None:
    """Raises InputError unless every byte of the file is the one that was written."""
    check_begins(path)
    try:
        with (
            open(path, "rb") as file,
            # Not shared: FUSE may refuse that
            mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as content,
            memoryview(content) as view,
            view[:DIGEST_FROM] as before,
            view[DIGEST_TO:] as after,
        ):
            intact = view[DIGEST_FROM:DIGEST_TO] == _digest(before, after)
    except OSError as error:
        raise InputError(f"{path} is not a readable checkpoint ({error})") from None
    if not intact:
        raise InputError(f"{path} is not a readable checkpoint (its digest does not match its content)")


def parse(path: Path) -> dict[str, Any]:
    """The content of a file that `verify` has passed: step, config, errors, and the tensors of `parameters`, `velocity`
    and `stats` (empty in an older file) by name, which are read from the disk as they are used. Raises InputError for
    another format."""
    try:
        state = read_state(path)
        if state["format"] != FORMAT:
            raise InputError(f"{path} is not a checkpoint of format {FORMAT}")
        state |= {"parameters": {}, "velocity": {}, "stats": {}}
        for name, tensor in safetensors.torch.load_file(path).items():
            kind, _, parameter = name.partition(".")
            state[kind][parameter] = tensor
        return state
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a readable checkpoint ({reason(error)})") from None


def config_of(state: dict[str, Any], path: Path) -> TrainConfig:
    """The options of the run that wrote a checkpoint. Raises InputError when these are not a run's."""
    try:
        return TrainConfig.from_recorded(state["config"], path.parent)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} does not hold a run's configuration ({reason(error)}): give another checkpoint"
        ) from None


def stats_of(state: dict[str, Any], path: Path, dataset: Dataset, notice: Callable[[str], None]) -> Stats:
    """What the images of the run that wrote a checkpoint are preprocessed with: from the checkpoint, or from the data
    set, with a notice, where an earlier version wrote it. Raises InputError when neither has it."""
    if state["stats"]:
        return Stats.of({name: tensor.numpy() for name, tensor in state["stats"].items()})
    stats = Stats.load(dataset.root)
    notice(f"{path} was written before checkpoints held the mean image: that of {dataset.where} is taken")
    return stats


def load(path: Path) -> dict[str, Any]:
    """`parse`, after `verify`. Raises InputError."""
    verify(path)
    return parse(path)


def newest_valid(run: Path, notice: Callable[[str], None]) -> Path | None:
    """The newest intact checkpoint of a run, None when it has no checkpoints.

    `notice` is called with a message for each broken one, which is renamed so that it no longer counts. Raises
    InputError when there are checkpoints and none is intact.
    """
    broken = {}
    for path in list_resumable(run):
        try:
            verify(path)
        except InputError as error:
            broken[path] = error
            notice(f"{error}; using the one before it")
        else:
            for old in broken:
                old.rename(old.with_name(f"broken-{old.name}"))
            return path
    if broken:
        newest_error = next(iter(broken.values()))
        raise InputError(f"{run}: no checkpoint can be read, of {len(broken)}; the newest: {newest_error}")
    return None


def restore(state: dict[str, Any], model: AlexNet, optimizer: PaperSGD) -> int:
    """Loads this process's shards of a checkpoint into model and optimizer; returns the step it was written after."""
    model.load_unsharded(state["parameters"])
    for name, parameter in model.named_parameters():
        velocity = model.shard_group(name).shard(state["velocity"][name])
        optimizer.state[parameter]["velocity"] = velocity.to(parameter.device, copy=True)
    return int(state["step"])
