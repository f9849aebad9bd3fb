"""What a data set holds, as a table or as JSON."""

from typing import Any

import numpy as np

from shards.dataset import FILE, Dataset
from shards.records import from_json, to_json
from shards.wording import counted

SCHEMA = 1
SHOWN = (
    10  # classes, and skipped files after a conversion, that are named unless all are asked for; dataset.json has all
)


def describe(dataset: Dataset) -> dict[str, Any]:
    """What `info --json` prints: counts of each split, its image sizes (pixels) and its class balance."""
    splits = {}
    for name, split in dataset.splits.items():
        counts = np.array(split.class_counts or (0,))
        percentiles = zip(split.sizes.PERCENTILES, split.sizes.shorter_side, strict=True)
        facts = {
            "samples": split.samples,
            "shards": len(split.shards),
            "bytes": split.bytes,
            "bytes_per_sample": round(split.bytes / max(1, sum(shard.samples for shard in split.shards))),
            "largest_width": split.sizes.width,
            "largest_height": split.sizes.height,
            "most_pixels": split.sizes.pixels,
            "shorter_side_percentiles": {str(percent): side for percent, side in percentiles},
            "samples_per_class": {
                "min": int(counts.min()),
                "median": float(np.median(counts)),
                "max": int(counts.max()),
                "empty_classes": int((counts == 0).sum()),
            },
            "skipped": len(split.skipped),
            "quarantined": len(split.quarantined),
            "reencoded": split.reencoded,
            "scaled_down": split.scaled_down,
        }
        splits[name] = to_json(facts)
    return {
        "schema": SCHEMA,
        "root": dataset.where,
        "classes": len(dataset.classes),
        **{name: getattr(dataset, name) for name in ("source", "seed", "size", "quality", "max_pixels", "val_share")},
        "fingerprint": dataset.fingerprint,
        "left_out": [vars(skipped) for skipped in dataset.left_out],
        "splits": splits,
        "class_list": [
            {
                "number": number,
                "name": name,
                "words": dataset.words.get(name),
                "samples": {key: split.class_counts[number] for key, split in dataset.splits.items()},
            }
            for number, name in enumerate(dataset.classes)
        ],
    }


def facts(about: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The counts and sizes for a person: a fact's name, and its value in each split."""
    splits = [from_json(split) for split in about["splits"].values()]

    def sizes(split: dict[str, Any]) -> str:
        return " / ".join(str(side) for side in split["shorter_side_percentiles"].values())

    def balance(split: dict[str, Any]) -> str:
        counts = split["samples_per_class"]
        return f"{counts['min']} / {counts['median']:g} / {counts['max']}"

    def reencoded(split: dict[str, Any]) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in split["reencoded"].items()) or "0"

    return [
        ("samples", [f"{split['samples']:,}" for split in splits]),
        ("shards", [f"{split['shards']:,}" for split in splits]),
        ("size", [_bytes(split["bytes"]) for split in splits]),
        ("a sample", [_bytes(split["bytes_per_sample"]) for split in splits]),
        ("largest image", [f"{split['largest_width']} wide, {split['largest_height']} high" for split in splits]),
        ("shorter side, 0/10/50/90/100 %", [sizes(split) for split in splits]),
        ("a class, min/median/max", [balance(split) for split in splits]),
        ("classes with none", [str(split["samples_per_class"]["empty_classes"]) for split in splits]),
        ("skipped", [f"{split['skipped']:,}" for split in splits]),
        ("quarantined", [f"{split['quarantined']:,}" for split in splits]),
        ("re-encoded", ["all" if about["size"] else reencoded(split) for split in splits]),
        ("scaled down", [f"{split['scaled_down']:,}" for split in splits]),
    ]


def heading(about: dict[str, Any]) -> str:
    """What data set it is, in a line."""
    stored = f"stored {about['size']} x {about['size']}, quality {about['quality']}" if about["size"] else "of own size"
    seed = f", seed {about['seed']}" if about["seed"] is not None else ""
    drawn = f", {about['val_share']:g} of each class drawn for val" if about["val_share"] is not None else ""
    classes = f"{counted(about['classes'], 'class')} from {about['source']}"
    return f"{about['root']}: {classes}, images {stored}{seed}{drawn}"


def table(about: dict[str, Any], all_classes: bool = False) -> str:
    """The same as text: a line a fact, a column a split; then the classes, or the first of them."""
    rows, lines = facts(about), [heading(about)]
    widths = [max(len(row[1][i]) for row in rows) for i in range(len(about["splits"]))]
    widths = [max(width, len(name)) for width, name in zip(widths, about["splits"], strict=True)]
    for fact, values in [("", list(about["splits"])), *rows]:
        cells = "  ".join(value.rjust(width) for value, width in zip(values, widths, strict=True))
        lines.append(f"{fact:<31} {cells}".rstrip())
    lines += [_printable(f"not taken: {one['file']}: {one['reason']}") for one in about["left_out"]]
    return "\n".join([*lines, "", *_class_lines(about, all_classes)])


def _class_lines(about: dict[str, Any], all_classes: bool) -> list[str]:
    """A line a class: its number, its name with what that means in English, its samples in each split."""
    classes = about["class_list"] if all_classes else about["class_list"][:SHOWN]
    names = [_printable(f"{entry['name']} {entry['words'] or ''}".strip()) for entry in classes]
    width = max([len("class"), *map(len, names)])
    lines = [f"{'number':>6}  {'class':<{width}}{''.join(f'{split:>10}' for split in about['splits'])}"]
    for entry, name in zip(classes, names, strict=True):
        samples = "".join(f"{count:>10,}" for count in entry["samples"].values())
        lines.append(f"{entry['number']:>6}  {name:<{width}}{samples}")
    if more := about["classes"] - len(classes):
        lines.append(f"and {more:,} more: --classes shows all")
    return lines


def _printable(text: str) -> str:
    """A name in at most 60 characters: a folder's may hold what no terminal shows."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def written(dataset: Dataset) -> str:
    """What a conversion wrote and what it skipped, for a person."""
    lines = []
    for name, split in dataset.splits.items():
        counts = [
            f"{counted(split.samples, 'sample')} in {counted(split.shards, 'shard')}",
            f"{len(split.skipped)} skipped",
        ]
        counts += [f"{count} {kind} re-encoded" for kind, count in split.reencoded.items()]
        counts += [f"{split.scaled_down} scaled down"] if split.scaled_down else []
        lines.append(f"{name}: {', '.join(counts)}")
        lines += [f"  skipped: {skipped.file}: {skipped.reason}" for skipped in split.skipped[:SHOWN]]
        if len(split.skipped) > SHOWN:
            lines.append(f"  and {len(split.skipped) - SHOWN} more: see {dataset.where}/{FILE}")
    return "\n".join([*lines, f"Data set written to {dataset.where}"])
