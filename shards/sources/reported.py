"""What images report of their classes beside their labels, such as the WNIDs in their names: it names the classes, and
shows labels that are wrong."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from shards.errors import InputError
from shards.records import Split
from shards.sources.base import SourceImage
from shards.wording import counted

WNID = re.compile(r"n\d{8}")
WNID_IN_PATH = re.compile(r"(?:^|[/_])(n\d{8})(?=[/_.]|$)")
# By class number, the names that its images report and the first image that reports each, as people find it
Reported = Mapping[int, Mapping[str, str]]
MOST_EMPTY = 21_841  # ImageNet's classes, all of them: a set may have few, and their numbers be those of all


def merged(parts: Iterable[Reported]) -> dict[int, dict[str, str]]:
    """What several files report, of which the first with a name counts."""
    reported: dict[int, dict[str, str]] = {}
    for part in parts:
        for number, names in part.items():
            known = reported.setdefault(number, {})
            for name, image in names.items():
                known.setdefault(name, image)
    return reported


def reported_names(reported: Reported) -> dict[int, str]:
    """The classes of which all images report one name that is no other class's."""
    classes: dict[str, set[int]] = {}
    for number, names in reported.items():
        for name in names:
            classes.setdefault(name, set()).add(number)
    only = {number: next(iter(names)) for number, names in sorted(reported.items()) if len(names) == 1}
    return {number: name for number, name in only.items() if len(classes[name]) == 1}


def contradictions(reported: Reported, first: dict[str, tuple[int, str]]) -> Iterator[str]:
    """Images that report one name and are of two classes. Args: first: by name, the first class and image, which this
    adds to."""
    for number, names in sorted(reported.items()):
        for name, image in names.items():
            other, other_image = first.setdefault(name, (number, image))
            if other != number:
                yield f"{other_image} and {image} both say {name}, and their class numbers are {other} and {number}"


def refuse_contradictions(reported: Reported, remedy: str) -> None:
    """Raises InputError, naming both images, when images that report one name are of two classes."""
    for text in contradictions(reported, {}):
        raise InputError(f"{text}: {remedy}")


def several_names(reported: Reported) -> list[str]:
    """A notice of the classes whose images report several names."""
    mixed = {number: names for number, names in sorted(reported.items()) if len(names) > 1}
    if not mixed:
        return []
    number, names = next(iter(mixed.items()))
    (one, image), (other, other_image) = list(names.items())[:2]
    more = f", and so in {len(mixed) - 1} more classes" if len(mixed) > 1 else ""
    images = f"{one} ({image}) and {other} ({other_image})"
    return [f"images of class {number} say several names, {images}{more}: their labels count"]


def with_names_compared(
    images: Iterable[SourceImage], classes: Sequence[str], notices: list[str]
) -> Iterator[SourceImage]:
    """The images as they are, and a notice of those that have another WNID in their path than their class's."""
    different, first = 0, ""
    for image in images:
        name = classes[image.label]
        others = [wnid for wnid in WNID_IN_PATH.findall(image.name) if wnid != name]
        if others and WNID.fullmatch(name):
            different += 1
            first = first or f"{image.name} has {others[0]} in its name and is of class {name}"
        yield image
    if different:
        notices.append(f"{first} ({different} such): names do not count, so correct the labels if they are wrong")


def without_train_images(splits: Mapping[str, Split], classes: Sequence[str]) -> list[str]:
    """A notice of classes that nothing can be learned of, as where one split counts its classes from 1, or where there
    is no train split at all."""
    if "train" not in splits:
        return ["there is no train split: the set can be evaluated on, and not trained on"]
    empty = [number for number, count in enumerate(splits["train"].class_counts) if not count]
    if not empty:
        return []
    text = f"{len(empty)} of {counted(classes, 'class')} have no train image, like {classes[empty[0]]}"
    for name, split in splits.items():
        if wanted := [number for number in empty if split.class_counts[number]]:
            images = sum(split.class_counts[number] for number in wanted)
            text += f", and {name} has {counted(images, 'image')} of them, like of {classes[wanted[0]]}"
    return [text]


def refuse_gaps(labels: Mapping[int, str]) -> None:
    """Raises InputError when class numbers leave out so many that the largest is a mistake.

    Args: labels: the class numbers that are used, and an image of each.
    """
    highest = max(labels, default=0)
    empty = highest + 1 - len(labels)
    if empty > max(MOST_EMPTY, len(labels)):
        raise InputError(
            f"{labels[highest]} has the class number {highest}, and {empty} numbers below it have no image: correct it"
        )
