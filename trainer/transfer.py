"""Starting from another run's weights: all layers, but a new last one where the classes are others."""

from pathlib import Path

import torch

from shards.errors import InputError
from shards.wording import counted
from trainer import checkpoint
from trainer.alexnet import AlexNet

LAST = "fc8"


def start_from(model: AlexNet, file: Path, classes: tuple[str, ...]) -> list[str]:
    """Gives a model with initial weights those of a checkpoint; the last layer keeps its own unless the checkpoint's
    classes are the same, in the same order. Returns a line for each layer. All processes must call.

    Raises: InputError, naming the layer, for a checkpoint of a model of other sizes.
    """
    state = checkpoint.load(file)
    trained, weights = tuple(state["config"]["classes"]), state["parameters"]
    taken = {name: tensor.clone() for name, tensor in model.unsharded_state_dict().items()}
    lines: list[str] = []
    for name, _ in model.named_children():
        if name == LAST and trained != classes:
            others = "as many others, or these in another order" if len(trained) == len(classes) else f"{len(trained)}"
            lines.append(f"{name}: new, for {counted(classes, 'class')}; {file} knows {others}")
            continue
        for parameter in (f"{name}.weight", f"{name}.bias"):
            if parameter not in weights or weights[parameter].shape != taken[parameter].shape:
                raise InputError(
                    f"--init {file}: its {name} is of another size: give the --width and --variant of its run"
                )
            taken[parameter] = weights[parameter].to(torch.float32)
        lines.append(f"{name}: from {file}")
    model.load_unsharded(taken)
    return lines
