"""What the parts of the sharding study share: its settings, its rounds, and how figures are compared and shown."""

import functools
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness.turns import interleaved, ratios, summarize

Contestant = Callable[[Path], dict[str, float]]  # is given an empty folder; returns its figures by name
Pair = tuple[str, str, str]  # two figures, ours and theirs, and the target of their ratio


@dataclass(frozen=True)
class Setup:
    """images: a tar of train/WNID/*.JPEG; copies, copies_256: of each image, in keep and in size256; rounds: that are
    counted; processes: in keep and size256; work: a folder on the disk to measure."""

    images: Path
    copies: int
    copies_256: int
    rounds: int
    processes: int
    work: Path


def alternate(contestants: Sequence[Contestant], rounds: int, folder: Path) -> dict[str, list[float]]:
    """Every round's figures by name; a first round, which fills caches, is not counted."""

    def take_turn(contestant: Contestant) -> dict[str, float]:
        os.sync()  # otherwise this one would share the disk with what an earlier one left to be written
        with tempfile.TemporaryDirectory(dir=folder) as out:
            return contestant(Path(out))

    turns = {number: functools.partial(take_turn, contestant) for number, contestant in enumerate(contestants)}
    figures: dict[str, list[float]] = {}
    for results in interleaved(turns, rounds, warmup=1).values():
        figures |= {name: [result[name] for result in results] for name in results[0]}
    return figures


def spread(values: Sequence[float]) -> dict[str, Any]:
    """`summarize`, with the name that this study's JSON has for the values."""
    summary = summarize(values)
    return {"median": summary["median"], "p10": summary["p10"], "p90": summary["p90"], "raw": summary["values"]}


def show(name: str, summary: dict[str, Any], unit: str = "") -> None:
    """Prints a line of a table."""
    numbers = "".join(f"{summary[key]:>10.2f}" for key in ("median", "p10", "p90"))
    print(f"  {name:<34}{numbers} {unit}", flush=True)


def compare(figures: dict[str, list[float]], unit: str, pairs: Sequence[Pair] = (), images: int = 0) -> dict[str, Any]:
    """Shows and returns the figures, and the ratios of `pairs`. With `images`, which took those seconds, images per
    second too."""
    report: dict[str, Any] = {"unit": unit, "figures": {name: spread(values) for name, values in figures.items()}}
    report["ratios"] = {}
    for name, summary in report["figures"].items():
        show(name, summary, unit + (f", {images / summary['median']:,.0f} img/s" if images else ""))
    for ours, theirs, target in pairs:
        ratio = spread(ratios(figures[theirs], figures[ours]))
        report["ratios"][f"{ours} / {theirs}"] = {**ratio, "target": target}
        show(f"{ours} / {theirs}", ratio, f"target {target}" if target else "")
    return report


def sample_images(images: Path) -> Iterator[tuple[str, bytes]]:
    """The names and bytes of the sample's images."""
    with tarfile.open(images) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield member.name, file.read()
