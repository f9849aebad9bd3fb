"""Kaggle's tree of ImageNet: class folders for training, a flat folder and a table of labels for validation."""

from pathlib import Path

from shards.errors import InputError
from shards.sources.base import KINDS, Source
from shards.sources.folders import IN_CLASSES, class_images, flat_images, subfolders
from shards.sources.labels import class_words, val_labels
from shards.sources.left_out import beside


def find_kaggle(root: Path) -> Source:
    """`ILSVRC/Data/CLS-LOC/train/WNID/*`, a flat `val`, `LOC_val_solution.csv` and, for the classes' English words,
    `LOC_synset_mapping.txt`. Its test images have no labels and are not read."""
    images = kaggle_images(root)
    if images is None:
        raise InputError(f"{root} holds no ILSVRC/Data/CLS-LOC/train: expected {KINDS['kaggle']}")
    folder = str(images.relative_to(root))
    classes = subfolders(images / "train")
    if not classes:
        raise InputError(f"{images / 'train'} has no class folders: expected {KINDS['kaggle']}")
    splits = {"train": class_images(root, f"{folder}/train", classes)}
    notices: list[str] = []
    labels = val_labels(root, images / "val", classes) if (images / "val").is_dir() else None
    if labels:
        splits["val"] = flat_images(root, f"{folder}/val", labels, notices)
    left_out = [
        *beside(root, "", (images.relative_to(root).parts[0],), f"only {folder} is read"),
        *beside(root, folder, ("train", "val", "test"), "only train and val are read"),
        *beside(root, f"{folder}/train", classes, IN_CLASSES),
    ]
    label_files = labels.files if labels else ()
    return Source(
        *("kaggle", root, classes, splits, class_words(root, classes)),
        notices=notices,
        label_files=label_files,
        left_out=tuple(left_out),
    )


def kaggle_images(root: Path) -> Path | None:
    """The folder of the tree that holds the splits, None where there is none."""
    candidates = (root / "ILSVRC" / "Data" / "CLS-LOC", root / "Data" / "CLS-LOC")
    return next((folder for folder in candidates if (folder / "train").is_dir()), None)
