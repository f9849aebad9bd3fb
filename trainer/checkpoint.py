"""Checkpoints in canonical form: what a one-device net would hold, so that any layout loads any of them.

A file holds tensors and plain values only and is loaded as such (`weights_only`): a checkpoint cannot run code. It is
written under another name, synced and renamed, so a killed run leaves the one before intact.
"""

from pathlib import Path

import torch

from shards.errors import InputError
from shards.files import atomic_write
from trainer.alexnet import AlexNet
from trainer.recipe import PaperSGD

FORMAT = 1
KEEP = 2  # the newest ones; 490 MB each at full width


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run's folder, None when there is none."""
    return max(run.glob("checkpoint-*.pt"), default=None)


def save(run: Path, step: int, net: AlexNet, optimiser: PaperSGD, writes: bool, config: dict) -> None:
    """Writes `checkpoint-STEP.pt` where `writes` is true (all must call) and removes all but the newest KEEP.

    Raises InputError when the disk is full or the folder cannot be written.
    """
    velocity = {
        name: net.holders(name).gather(optimiser.state[parameter]["velocity"]).cpu()
        for name, parameter in net.named_parameters()
    }
    parameters = {name: tensor.cpu() for name, tensor in net.canonical_state().items()}
    if not writes:
        return
    path = run / f"checkpoint-{step:08d}.pt"
    state = {"format": FORMAT, "step": step, "config": config, "parameters": parameters, "velocity": velocity}
    try:
        with atomic_write(path) as file:
            torch.save(state, file)
    except (InputError, RuntimeError) as error:  # torch's zip writer reports a full disk as a RuntimeError
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: {reason}; the one before is intact: make room, then --resume auto") from None
    for old in sorted(run.glob("checkpoint-*.pt"))[:-KEEP]:
        old.unlink()


def read(path: Path) -> dict:
    """The file's content: format, step, config, parameters, velocity. Raises InputError when it is none of ours."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever the damage leads to
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is no readable checkpoint ({reason}): delete it to go back to the one before"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path} is not a checkpoint of format {FORMAT}")
    return state


def restore(state: dict, net: AlexNet, optimiser: PaperSGD) -> int:
    """Puts this place's part of a checkpoint into net and optimiser; returns the step it was written after."""
    net.load_canonical(state["parameters"])
    for name, parameter in net.named_parameters():
        velocity = net.holders(name).slice(state["velocity"][name])
        optimiser.state[parameter]["velocity"] = velocity.to(parameter.device, copy=True)
    return state["step"]
