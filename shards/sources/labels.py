"""Files beside the images that describe their classes: labels of a flat validation folder, and English words."""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from shards import tars
from shards.errors import InputError, reason
from shards.sources.base import SourceImage
from shards.sources.match import LabelList, Labels, Line, normal

SOLUTION = "LOC_val_solution.csv"  # Kaggle's: ImageId,PredictionString ("n01978287 85 1 499 272")
MAPPING = "val.txt"  # a line each: FILE CLASS, CLASS being a number from 0 or a WNID
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
ANNOTATIONS = "val_annotations.txt"  # Tiny ImageNet's, a line each: FILE WNID X Y X Y, with tabs between them
# A line each: "n01440764 tench, Tinca tinca", with a tab, blanks or a comma behind the class's name
WORDS = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt", "classes.txt", "labels.txt")
MAX_DEVKIT = 256 * 2**20  # bytes, decompressed; the true one has 2.5 MB


def find_labels(root: Path, images: Path | None, classes: Sequence[str]) -> Labels | None:
    """The labels of validation images by their names, from every list beside them; None where there is no list.

    Args: images: the folder of the images, which may hold a list too. A devkit that cannot be read does not matter
    where there is another list. Raises: InputError when a list cannot be read; the labels, for an image without one,
    or with two.
    """
    lists = [LabelList(path, read(path)) for path, read in _lists(root, images)]
    if (root / DEVKIT).exists():
        try:
            lists.append(LabelList(root / DEVKIT, _read_devkit(root / DEVKIT)))
        except InputError:
            if not lists:
                raise  # otherwise it is not needed
    return Labels(lists, classes) if lists else None


def compared(
    images: Iterable[SourceImage], root: Path, folder: str, classes: Sequence[str], notices: list[str]
) -> Iterator[SourceImage]:
    """The images of class folders within `folder` as they are. Raises InputError when a list beside them gives one
    another class; a list that cannot be read is only a notice."""
    try:
        lists = [LabelList(path, read(path)) for path, read in _lists(root, root / folder)]
        labels = Labels(lists, classes)
    except InputError as error:
        notices.append(f"{error} (it is not needed: {root / folder} has class folders)")
        labels = Labels([], classes)
    for image in images:
        labels.compare(image.name.removeprefix(f"{folder}/"), image.label)
        yield image


def val_labels(root: Path, images: Path | None, classes: Sequence[str]) -> Labels:
    """What `find_labels` finds. Raises InputError when there is none."""
    labels = find_labels(root, images, classes)
    if labels is None:
        wanted = f"{DEVKIT}, {SOLUTION} or {MAPPING}"
        raise InputError(f"{root} has no labels for its validation images: put {wanted} there")
    return labels


def _lists(root: Path, images: Path | None) -> Iterator[tuple[Path, Callable[[Path], list[Line]]]]:
    """The lists of labels that are there, but for the devkit, and what reads each."""
    for folder in filter(None, (root, images)):
        for name, read in READERS.items():
            if (folder / name).exists():
                yield folder / name, read


def class_words(root: Path, classes: Iterable[str]) -> dict[str, str]:
    """English words for these classes, from the lists beside the images, of which the first with a class counts. They
    are only shown to people: a devkit that cannot be read gives none."""
    known = {normal(name): name for name in classes}
    words: dict[str, str] = {}
    for path in (root / name for name in WORDS):
        for line in _read_text(path).splitlines() if path.is_file() else ():
            for separator in ("\t", None, ","):
                name, *rest = line.strip().split(separator, 1)
                if rest and (name := normal(name.strip().strip('"'))) in known:
                    words.setdefault(known[name], rest[0].strip().strip('"'))
                    break
    if not words and (root / DEVKIT).is_file():
        try:
            synsets = dict(_synsets(root / DEVKIT, _devkit_files(root / DEVKIT)[META]).values())
        except InputError:
            return {}
        words = {name: synsets[name] for name in known.values() if name in synsets}
    return words


def _read_solution(path: Path) -> list[Line]:
    try:
        rows = csv.DictReader(io.StringIO(_read_text(path)))
        lines = []
        for row in rows:
            # A box of an object each: its class and its four sides
            named = list(dict.fromkeys(row["PredictionString"].split()[::5]))
            lines += [Line(rows.line_num, row["ImageId"].strip(), name) for name in named]
            if not named:
                raise IndexError(f"line {rows.line_num} names no class")
        return lines
    except (KeyError, IndexError, AttributeError, TypeError, csv.Error) as error:
        raise InputError(f"{path} is not Kaggle's list of ImageId,PredictionString ({reason(error)})") from None


def _read_mapping(path: Path) -> list[Line]:
    lines = []
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            separator = "\t" if "\t" in line else "," if line.count(",") == 1 else None
            file, named = (part.strip().strip('"') for part in line.strip().split(separator))
        except ValueError:
            form = "FILE CLASS with CLASS as a number from 0 or a WNID"
            raise InputError(f"{path}, line {number}: {line[:80]!r} is not {form}") from None
        lines.append(Line(number, file, named))
    return lines


def _read_annotations(path: Path) -> list[Line]:
    lines = []
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        file, _, rest = line.partition("\t")
        named = rest.partition("\t")[0].strip()
        if named:
            lines.append(Line(number, file, named))
        elif line.strip():
            form = "Tiny ImageNet's FILE WNID X Y X Y with tabs between them"
            raise InputError(f"{path}, line {number}: {line[:80]!r} is not {form}")
    return lines


def _read_devkit(path: Path) -> list[Line]:
    """The ground truth has ILSVRC's own ids, which count from 1; meta.mat maps each to its WNID."""
    files = _devkit_files(path)
    wnids = {identity: wnid for identity, (wnid, _) in _synsets(path, files[META]).items()}
    try:
        identities = [int(line) for line in files[TRUTH].split()]
        return [
            Line(number, f"ILSVRC2012_val_{number:08d}", wnids[identity])
            for number, identity in enumerate(identities, 1)
        ]
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{path}: {TRUTH} is not a list of ILSVRC2012 ids ({reason(error)}): download it again"
        ) from None


READERS = {SOLUTION: _read_solution, MAPPING: _read_mapping, ANNOTATIONS: _read_annotations}


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
        raise InputError(f"{path}: {META} cannot be read ({reason(error)}): download it again") from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")  # Windows puts a mark before the first line
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
