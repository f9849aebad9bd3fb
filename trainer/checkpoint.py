"""Checkpoints in unsharded form: what a one-device model would hold, so that any layout loads any of them.

A file is safetensors: named tensors, and in its header a digest of every other byte of the file, and JSON of the step,
the run's configuration and its validation errors so far. Loading one reads numbers and text and cannot run code. It is
written under another name, synced and renamed, so a killed run leaves the one before intact; and by a thread, so that a
step waits for a copy in memory and no disk.

The bytes are laid out here and not by safetensors' own `save`, which holds Python's lock while it copies them all: a
step would be held up by a third of a second at full width.
"""

import json
import math
import mmap
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import safetensors.torch
import torch
import xxhash
from safetensors import SafetensorError
from torch import Tensor

from shards.atomic import atomic_write
from shards.errors import InputError
from trainer.alexnet import AlexNet
from trainer.config import TrainConfig
from trainer.optimizer import PaperSGD

FORMAT = 3
BEST = "best.safetensors"
DTYPES = {torch.float32: "F32", torch.float64: "F64"}
# The digest stands first in the header, where it is found, and left out of itself, before anything is parsed
DIGEST_FROM = 8 + len(b'{"__metadata__":{"xxh3_128":"')
DIGEST_TO = DIGEST_FROM + 32


def list_checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, the newest first."""
    return sorted(run.glob("checkpoint-*.safetensors"), reverse=True)


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time, while training goes on.

    Args: writes: whether this process does; all must call `save`, for each holds a part; keep: how many of the newest
    stay, besides the best: 490 MB each at full width.
    """

    def __init__(self, run: Path, writes: bool, keep: int):
        self.run, self.writes, self.keep = run, writes, keep
        self.thread, self.pending = ThreadPoolExecutor(1), None
        self.copies: dict[str, Tensor] = {}  # in the host's memory, and written to anew each time
        for left in run.glob(".*.safetensors.tmp-*") if writes else ():
            left.unlink()  # by a run that was killed as it wrote

    def save(self, step: int, model: AlexNet, optimizer: PaperSGD, state: dict, best: bool = False) -> None:
        """Has `checkpoint-STEP.safetensors` written, and `best.safetensors` be the same file if it is the `best`; waits
        for the one before it.

        Args: state: what else is to be kept, JSON. Raises InputError when the one before could not be written, or a
        number in it is not finite.
        """
        self.wait()
        for name, parameter in model.named_parameters():
            velocity = optimizer.state[parameter].get("velocity")
            if velocity is None:  # fp16's first updates can all have been left out
                velocity = torch.zeros_like(parameter)
            for kind, tensor in (("parameters", parameter), ("velocity", velocity)):
                whole = model.shard_group(name).unshard(tensor.detach())
                if self.writes:
                    # The update goes on in these very tensors, so a copy is what is written
                    self._copy(f"{kind}.{name}", whole)
        if self.writes:
            if torch.cuda.is_available():
                torch.cuda.current_stream().synchronize()
            state = {"format": FORMAT, "step": step, **state}
            self.pending: Future = self.thread.submit(self._write, step, state, best)

    def _copy(self, name: str, tensor: Tensor) -> None:
        if name not in self.copies:
            self.copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        self.copies[name].copy_(tensor, non_blocking=True)

    def check(self) -> None:
        """Raises InputError when a write that has ended by now went wrong."""
        if self.pending and self.pending.done():
            self.wait()

    def wait(self) -> None:
        """Until what was begun is on the disk. Raises InputError when it could not be."""
        if self.pending:
            pending, self.pending = self.pending, None
            pending.result()

    def _write(self, step: int, state: dict, best: bool) -> None:
        name = f"checkpoint-{step:08d}.safetensors"
        for tensor_name, tensor in self.copies.items():
            array = tensor.numpy()
            if not (math.isfinite(array.min()) and math.isfinite(array.max())):  # a NaN is both
                raise InputError(
                    f"{tensor_name} is not finite after step {step}: not written; {last_good_hint(self.run)}"
                )
        try:
            # The best takes its name first: killed in between, the run makes the other once more
            write(self.run / (BEST if best else name), self.copies, state)
            if best:
                link = self.run / f".{name}.tmp-{os.getpid()}"
                os.link(self.run / BEST, link)
                os.replace(link, self.run / name)
        except InputError as error:
            raise InputError(f"{error}, then --resume auto; {last_good_hint(self.run)}") from None
        except OSError as error:
            raise InputError(f"{self.run / name} cannot be linked to {BEST}: {error.strerror}") from None
        for old in list_checkpoints(self.run)[self.keep :]:
            old.unlink()


def last_good_hint(run: Path) -> str:
    """Words for a message."""
    newest = next(iter(list_checkpoints(run)), None)
    return f"the last good checkpoint is {newest}" if newest else "there is no checkpoint before it"


def write(path: Path, tensors: dict[str, Tensor], state: dict) -> None:
    """Writes a checkpoint's file, whole or not at all. Raises InputError when the disk is full."""
    parts = [tensor.view(-1).view(torch.uint8).numpy() for tensor in tensors.values()]
    entries, end = {}, 0
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
        for part in (before, digest, after, *parts):
            file.write(part)


def _digest(*parts) -> bytes:
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return digest.hexdigest().encode()


def verify(path: Path) -> None:
    """Raises InputError unless every byte of the file is the one that was written."""
    try:
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            memoryview(content) as view,
            view[:DIGEST_FROM] as before,
            view[DIGEST_TO:] as after,
        ):
            whole = view[DIGEST_FROM:DIGEST_TO] == _digest(before, after)
        if not whole:
            raise ValueError("its digest is not that of what it holds")
    except (OSError, ValueError) as error:  # a ValueError, too, where nothing is there to be mapped
        raise InputError(f"{path} is no readable checkpoint ({error})") from None


def parse(path: Path) -> dict:
    """The content of a file that `verify` has found whole: step, config, errors, and the tensors of `parameters` and
    `velocity` by name, which are read from the disk as they are used. Raises InputError for another format."""
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        state = json.loads(header["__metadata__"]["state"])
        if state["format"] != FORMAT:
            raise InputError(f"{path} is not a checkpoint of format {FORMAT}")
        state |= {"parameters": {}, "velocity": {}}
        for name, tensor in safetensors.torch.load_file(path).items():
            kind, _, parameter = name.partition(".")
            state[kind][parameter] = tensor
        return state
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no readable checkpoint ({error!r})") from None


def config_of(state: dict, path: Path) -> TrainConfig:
    """The options of the run that wrote a checkpoint. Raises InputError when these are not a run's."""
    try:
        return TrainConfig.from_recorded(state["config"], path.parent)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not hold a run's configuration ({error!r}): give another checkpoint") from None


def load(path: Path) -> dict:
    """`parse`, after `verify`. Raises InputError."""
    verify(path)
    return parse(path)


def newest_valid(run: Path, notice: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of a run that is whole, None when there is none at all.

    `notice` is told of broken ones, which are renamed, so that they count as none. Raises InputError when none of those
    that are there is whole.
    """
    broken = {}
    for path in list_checkpoints(run):
        try:
            verify(path)
        except InputError as error:
            broken[path] = error
            notice(f"{error}; the one before it is taken")
        else:
            for old in broken:
                old.rename(old.with_name(f"broken-{old.name}"))
            return path
    if broken:
        told = next(iter(broken.values()))
        raise InputError(f"{run}: none of its {len(broken)} checkpoints can be read; the newest: {told}")
    return None


def restore(state: dict, model: AlexNet, optimizer: PaperSGD) -> int:
    """Puts this place's part of a checkpoint into model and optimizer; returns the step it was written after."""
    model.load_unsharded(state["parameters"])
    for name, parameter in model.named_parameters():
        velocity = model.shard_group(name).shard(state["velocity"][name])
        optimizer.state[parameter]["velocity"] = velocity.to(parameter.device, copy=True)
    return state["step"]
