"""Files beside the images that describe their classes: labels of a flat validation folder, and English words."""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from shards import tars
from shards.errors import InputError

SOLUTION = "LOC_val_solution.csv"  # Kaggle's: ImageId,PredictionString ("n01978287 85 1 499 272")
MAPPING = "val.txt"  # a line each: FILE CLASS, CLASS being a number from 0 or a WNID
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
WORDS = ("LOC_synset_mapping.txt", "synset_words.txt")  # a line each: "n01440764 tench, Tinca tinca"
MAX_DEVKIT = 256 * 2**20  # bytes, decompressed; the true one has 2.5 MB


def val_labels(root: Path, classes: Sequence[str]) -> Callable[[str], int]:
    """A function from a validation file's name (ILSVRC2012_val_00000001.JPEG) to its class number.

    Raises: InputError when `root` has no labels or they cannot be read; the function, for a file without a label.
    """
    if (root / SOLUTION).exists():
        path = root / SOLUTION
        wnids = _read_solution(path)
    elif (root / MAPPING).exists():
        path = root / MAPPING
        wnids = _read_mapping(path, classes)
    elif (root / DEVKIT).exists():
        path = root / DEVKIT
        wnids = _read_devkit(path)
    else:
        wanted = f"{DEVKIT}, {SOLUTION} or {MAPPING}"
        raise InputError(f"{root} has no labels for its validation images: put {wanted} there")
    number = {wnid: label for label, wnid in enumerate(classes)}

    def label_of(name: str) -> int:
        stem = Path(name).stem
        if stem not in wnids:
            raise InputError(f"{path} has no label for {name}: bring the labels of these very images")
        if wnids[stem] not in number:
            raise InputError(f"{path} says that {name} is of class {wnids[stem]}, which the train split lacks")
        return number[wnids[stem]]

    return label_of


def class_words(root: Path) -> dict[str, str]:
    """English words for WNIDs, where there is a list of them beside the images. They are only shown to people: a devkit
    that cannot be read gives none."""
    path = next((root / name for name in WORDS if (root / name).is_file()), None)
    if path:
        pairs = (line.partition(" ") for line in _read_text(path).splitlines())
        return {wnid: words.strip() for wnid, _, words in pairs if words.strip()}
    if (root / DEVKIT).is_file():
        try:
            return dict(_synsets(root / DEVKIT, _devkit_files(root / DEVKIT)[META]).values())
        except InputError:
            return {}
    return {}


def _read_solution(path: Path) -> dict[str, str]:
    """The WNID of each image, by its name without suffix, as of the other readers here."""
    try:
        rows = csv.DictReader(io.StringIO(_read_text(path)))
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    except (KeyError, IndexError, AttributeError, TypeError, csv.Error) as error:
        raise InputError(f"{path} is not Kaggle's list of ImageId,PredictionString ({error!r})") from None


def _read_mapping(path: Path, classes: Sequence[str]) -> dict[str, str]:
    wnids = {}
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            file, named = line.replace(",", " ").split()
            wnids[Path(file).stem] = classes[int(named)] if named.isdigit() else named
        except (ValueError, IndexError):
            form = f"FILE CLASS with CLASS from 0 to {len(classes) - 1} or a WNID"
            raise InputError(f"{path}, line {number}: {line[:80]!r} is not {form}") from None
    return wnids


def _read_devkit(path: Path) -> dict[str, str]:
    """The ground truth has ILSVRC's own ids, which count from 1; meta.mat maps each to its WNID."""
    files = _devkit_files(path)
    wnids = {identity: wnid for identity, (wnid, _) in _synsets(path, files[META]).items()}
    try:
        identities = [int(line) for line in files[TRUTH].split()]
        return {f"ILSVRC2012_val_{number:08d}": wnids[identity] for number, identity in enumerate(identities, 1)}
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: {TRUTH} is not a list of ILSVRC2012 ids ({error!r}): download it again") from None


def _devkit_files(path: Path) -> dict[str, bytes]:
    """The content of TRUTH and META."""
    try:
        with gzip.open(path) as file:
            content = file.read(MAX_DEVKIT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}): download it again") from None
    if len(content) > MAX_DEVKIT:
        raise InputError(f"{path} decompresses to more than {MAX_DEVKIT} bytes: it is not the devkit")
    files = {
        Path(name).name: content[offset : offset + size]
        for name, offset, size in tars.members(content, str(path))
        if Path(name).name in (TRUTH, META)
    }
    for name in (TRUTH, META):
        if name not in files:
            raise InputError(f"{path} holds no {name}: it is not the devkit of ILSVRC2012's tasks 1 and 2")
    return files


def _synsets(path: Path, meta: bytes) -> dict[int, tuple[str, str]]:
    """ILSVRC id to (WNID, words), the 1000 classes and the synsets above them."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise InputError(f"{path}: reading {META} needs scipy: pip install '.[devkit]', or write a {MAPPING}") from None
    try:
        rows = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        return {int(row["ILSVRC2012_ID"]): (str(row["WNID"]), str(row["words"])) for row in rows}
    except Exception as error:  # scipy raises whatever the damage leads to
        raise InputError(f"{path}: {META} cannot be read ({error!r}): download it again") from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")  # Windows puts a mark before the first line
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
