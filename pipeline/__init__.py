"""Tar shards in, device tensors out. Knows DALI and not the model.

What other programs import from here, documented in docs/loader.md and kept stable:

    ImageLoader         batches of images and labels for any PyTorch model; ImageBatch is one
    RandomResizedCrop, PaperCrop, CenterCrop    what the images show
    InputError          what is raised for data or options that cannot be used, one line
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.image_loader import ImageBatch, ImageLoader
    from pipeline.views import CenterCrop, PaperCrop, RandomResizedCrop
    from shards.errors import InputError

__all__ = ["CenterCrop", "ImageBatch", "ImageLoader", "InputError", "PaperCrop", "RandomResizedCrop"]

_HOMES = {
    "pipeline.image_loader": ("ImageBatch", "ImageLoader"),
    "pipeline.views": ("CenterCrop", "PaperCrop", "RandomResizedCrop"),
    "shards.errors": ("InputError",),
}


def __getattr__(name: str) -> Any:
    """Imported when it is first asked for: torch and DALI take seconds."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
