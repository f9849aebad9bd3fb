"""A model out of a checkpoint, on one device, with what its answers need: its classes' names and its preprocessing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.preprocess import Preprocess
from pipeline.stats import Stats
from shards.errors import InputError
from trainer import checkpoint
from trainer.alexnet import AlexNet, model_from_config
from trainer.config import TrainConfig
from trainer.model_parallel import unsharded_layout


@dataclass(frozen=True)
class Trained:
    """file, step: the checkpoint, and the step that it was written after; config: its run's options; model: in
    evaluation mode; classes: names, by number; words: what some of them are in English, by name; stats: the mean image
    and color components that it was trained with."""

    file: Path
    step: int
    config: TrainConfig
    model: AlexNet
    classes: tuple[str, ...]
    words: dict[str, str]
    stats: Stats

    @classmethod
    def load(cls, file: Path, device: torch.device) -> "Trained":
        """Raises InputError for a file that is not an intact checkpoint, or was written before checkpoints held the
        mean image."""
        state = checkpoint.load(file)
        config = checkpoint.config_of(state, file)
        if not state["stats"]:
            raise InputError(
                f"{file} was written before checkpoints held the mean image: continue its run with `python cli.py "
                "train --resume auto` and more --epochs or --steps, and take the checkpoint that this writes"
            )
        record: dict[str, Any] = state["config"]
        stats = Stats.of({name: tensor.numpy() for name, tensor in state["stats"].items()})
        model = model_from_config(config, len(record["classes"]), unsharded_layout())
        model.load_unsharded(state["parameters"])
        model.to(device).eval()
        return cls(file, state["step"], config, model, tuple(record["classes"]), record.get("words", {}), stats)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def preprocess(self) -> Preprocess:
        """Turns uint8 crops into the model's input."""
        return Preprocess(self.stats, self.config.mean, self.device)

    def described(self) -> dict[str, Any]:
        """What an exported file says of itself: JSON."""
        return {
            "classes": list(self.classes),
            "words": self.words,
            "input": "N x 3 x 224 x 224, RGB, 0..255: an image scaled to 256 pixels on its shorter side, and cropped; "
            f"the {self.config.mean} mean is subtracted inside",
            "output": "N x classes logits",
            "step": self.step,
            "variant": self.config.variant,
            "width": self.config.width,
        }
