"""Checkpoints in canonical form: what a one-device net would hold, so that any layout loads any of them.

A file is safetensors: named tensors, and in its header the step, the run's configuration and a checksum over all of it.
Loading one reads numbers and text and cannot run code. It is written under another name, synced and renamed, so a
killed run leaves the one before intact; and by a thread, so that a step waits for a copy in memory and no disk.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import safetensors.torch
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shards.errors import InputError
from shards.files import atomic_write
from trainer.alexnet import AlexNet
from trainer.recipe import PaperSGD

FORMAT = "2"
BEST = "best.safetensors"


def all_of(run: Path) -> list[Path]:
    """A run's checkpoints, the newest first."""
    return sorted(run.glob("checkpoint-*.safetensors"), reverse=True)


class Writer:
    """Writes a run's checkpoints, one at a time, while training goes on.

    Args: writes: whether this process does; all must call `save`, for each holds a part; keep: how many of the newest
    stay, besides the best: 490 MB each at full width.
    """

    def __init__(self, run: Path, writes: bool, keep: int):
        self.run, self.writes, self.keep = run, writes, keep
        self.thread, self.pending = ThreadPoolExecutor(1), None

    def save(self, step: int, net: AlexNet, optimiser: PaperSGD, config: dict, best: bool = False) -> None:
        """Has `checkpoint-STEP.safetensors` written, and `best.safetensors` be the same file if it is the `best`; waits
        for the one before it.

        Raises InputError when that one could not be written, or a parameter is not finite.
        """
        self.wait()
        tensors = {}
        for name, parameter in net.named_parameters():
            for kind, tensor in (("parameters", parameter), ("velocity", optimiser.state[parameter]["velocity"])):
                whole = net.holders(name).gather(tensor.detach())
                # The update goes on in these very tensors, so a copy is what is written
                tensors[f"{kind}.{name}"] = whole.to("cpu", copy=True).contiguous() if self.writes else None
        if self.writes:
            about = {"format": FORMAT, "step": str(step), "config": json.dumps(config)}
            self.pending: Future = self.thread.submit(self._write, step, tensors, about, best)

    def wait(self) -> None:
        """Until what was begun is on the disk. Raises InputError when it could not be."""
        if self.pending:
            pending, self.pending = self.pending, None
            pending.result()

    def _write(self, step: int, tensors: dict[str, Tensor], about: dict[str, str], best: bool) -> None:
        path = self.run / f"checkpoint-{step:08d}.safetensors"
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise InputError(f"{name} is not finite after step {step}: it is not written; {last_good(self.run)}")
        try:
            with atomic_write(path) as file:
                file.write(safetensors.torch.save(tensors, {**about, "checksum": _checksum(tensors, about)}))
        except InputError as error:
            raise InputError(f"{error}, then --resume auto; {last_good(self.run)}") from None
        if best:
            link = self.run / f".{BEST}"
            link.unlink(missing_ok=True)
            os.link(path, link)
            os.replace(link, self.run / BEST)
        for old in all_of(self.run)[self.keep :]:
            old.unlink()


def last_good(run: Path) -> str:
    """Words for a message."""
    newest = next(iter(all_of(run)), None)
    return f"the last good checkpoint is {newest}" if newest else "there is no checkpoint before it"


def _checksum(tensors: dict[str, Tensor], about: dict[str, str]) -> str:
    """xxh3 over names, types, shapes and bytes, in the order of the names, and over what is said about them."""
    digest = xxhash.xxh3_128(json.dumps([about[key] for key in ("format", "step", "config")]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read(path: Path) -> dict:
    """The file's content: step, config, and the tensors of `parameters` and `velocity` by name.

    Raises InputError when it is none of ours, or a byte of it is not what was written.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it has no iterator)
        if about.get("format") != FORMAT:
            raise InputError(f"{path} is not a checkpoint of format {FORMAT}")
        if about.get("checksum") != _checksum(tensors, about):
            raise ValueError("its checksum is not that of what it holds")
        state = {"step": int(about["step"]), "config": json.loads(about["config"]), "parameters": {}, "velocity": {}}
        for name, tensor in tensors.items():
            kind, _, parameter = name.partition(".")
            state[kind][parameter] = tensor
        return state
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError(
            f"{path} is no readable checkpoint ({reason}): delete it to go back to the one before"
        ) from None


def newest(run: Path, notice: Callable[[str], None]) -> dict | None:
    """The newest checkpoint of a run that is whole, None when there is none at all; `notice` is told of broken ones.

    Raises InputError when none of those that are there is whole.
    """
    broken = []
    for path in all_of(run):
        try:
            return read(path)
        except InputError as error:
            broken.append(str(error))
            notice(f"{error}; the one before it is taken")
    if broken:
        raise InputError(f"{run}: none of its {len(broken)} checkpoints can be read; the newest: {broken[0]}")
    return None


def restore(state: dict, net: AlexNet, optimiser: PaperSGD) -> int:
    """Puts this place's part of a checkpoint into net and optimiser; returns the step it was written after."""
    net.load_canonical(state["parameters"])
    for name, parameter in net.named_parameters():
        velocity = net.holders(name).slice(state["velocity"][name])
        optimiser.state[parameter]["velocity"] = velocity.to(parameter.device, copy=True)
    return state["step"]
