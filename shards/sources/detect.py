"""Which layout a folder holds, and the source in it."""

from pathlib import Path

from shards.errors import InputError
from shards.hidden import visible
from shards.sources.archives import TRAIN_ARCHIVE, find_archives
from shards.sources.base import KINDS, SPLIT_NAMES, Source, split_of
from shards.sources.folders import class_folders, find_folders, holds_val_alone
from shards.sources.kaggle import find_kaggle, kaggle_images
from shards.sources.left_out import compressed_tars
from shards.sources.parquet import find_parquet, parquet_files
from shards.sources.webdataset import find_webdataset

EXPECTED = f"expected {KINDS['folders']}, or another layout of docs/shards.md ({', '.join(KINDS)})"
OFFICIAL = "ILSVRC2012_img_"  # begins the names of all official archives, some of which are of no use here


def find_source(
    root: Path, kind: str = "auto", scratch: Path | None = None, workers: int = 1, label_key: str | None = None
) -> Source:
    """The source at `root`.

    Args: kind: one of KINDS, or "auto" to detect it; scratch: a folder into which parquet files are extracted; workers:
    how many processes may read; label_key: where the label is, in parquet files and WebDataset tars, None to find it.
    Raises: InputError saying what is missing.
    """
    if not root.is_dir():
        raise InputError(f"--imagenet-root {root} is not a folder: {EXPECTED}")
    if kind == "auto":
        kind = detect(root)
    if kind == "parquet":
        return find_parquet(root, scratch, workers, label_key)
    if kind == "webdataset":
        return find_webdataset(root, workers, label_key)
    if label_key is not None:
        raise InputError(f"--label-key is for parquet files and WebDataset tars, and {root} holds {kind}: leave it out")
    return {"folders": find_folders, "archives": find_archives, "kaggle": find_kaggle}[kind](root)


def detect(root: Path) -> str:
    """Which of KINDS `root` holds. Raises InputError when it holds none, or more than one."""
    kinds = []
    if (root / TRAIN_ARCHIVE).exists():
        kinds.append("archives")
    if kaggle_images(root):
        kinds.append("kaggle")
    parquet = parquet_files(root)
    if (root / "train").is_dir() and not any(path.parent == root / "train" for path in parquet):
        kinds.append("folders")
    if parquet:
        kinds.append("parquet")
    if any(split_of(tar) for tar in visible(root, "*.tar") if not tar.name.startswith(OFFICIAL)):
        kinds.append("webdataset")
    alone = holds_val_alone(root) or (root.name.lower() not in SPLIT_NAMES and class_folders(root))
    if not kinds and alone:
        kinds.append("folders")
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        raise InputError(f"--imagenet-root {root} holds {' and '.join(kinds)}: say which with --source")
    if hint := compressed_tars(root):
        raise InputError(f"--imagenet-root {root} holds none of the known layouts: {hint}")
    state = "is empty" if not any(root.iterdir()) else "holds none of the known layouts"
    if root.name.lower() in SPLIT_NAMES:
        state += f" (it may be a split itself: then give {root.parent})"
    elif split := next((path for path in visible(root) if path.name.lower() in SPLIT_NAMES and path.is_dir()), None):
        state += f" (call {split.name} {SPLIT_NAMES[split.name.lower()]}, if it holds class folders)"
    elif any(path.is_file() for path in root.glob("*/*")):
        state += f" (if its folders are classes, move them to {root / 'train'})"
    raise InputError(f"--imagenet-root {root} {state}: {EXPECTED}")
