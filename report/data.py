"""What a run's page says of its data set: its facts, and the images that were left out."""

from collections.abc import Iterator, Sequence
from typing import Any

from pages.template import folded, table, text
from report.answers import Answers
from report.runs import Run
from shards.dataset import FILE, Dataset
from shards.info import describe, facts, heading
from shards.wording import counted

LISTED = 20  # bad samples


def _sets(both: Sequence[tuple[Run, Answers]]) -> Iterator[tuple[list[str], Run, Dataset | None]]:
    """Each data set once: the names of the runs that were trained on it, the first of them, the set if at hand."""
    known: dict[str, list[tuple[Run, Answers]]] = {}
    for run, answers in both:
        known.setdefault(run.record["dataset"], []).append((run, answers))
    for pairs in known.values():
        dataset = next((answers.dataset for _, answers in pairs if answers.dataset), None)
        yield [run.name for run, _ in pairs], pairs[0][0], dataset


def data_section(both: Sequence[tuple[Run, Answers]]) -> Iterator[str]:
    """Each data set's facts."""
    for names, run, dataset in _sets(both):
        if len(both) > 1:
            yield text(f"Of {', '.join(names)}:")
        if dataset:
            about = describe(dataset)
            yield text(heading(about), "quiet")
            yield table(([name, *values] for name, values in facts(about)), ["", *about["splits"]])
        else:
            yield text(f"{run.record['data']} is not at hand: this is what config.json recorded of it.", "quiet")
            recorded: dict[str, Any] = {"classes": len(run.record["classes"]), **run.record.get("dataset_facts", {})}
            yield table([name, _plain(value)] for name, value in recorded.items())
        yield text(f"Fingerprint {run.record['dataset']}", "quiet")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:,}" for name, number in value.items())
    return "none" if value is None else str(value)


def bad_section(both: Sequence[tuple[Run, Answers]]) -> Iterator[str]:
    """What was left out: by the conversion, by quarantine, in training, and in the evaluation for this page."""
    reported = False
    for _, run, dataset in _sets(both):
        if not dataset:
            reported = True
            yield text(f"What {FILE} of {run.record['data']} leaves out is not known without it.", "quiet")
            continue
        for name, split in dataset.splits.items():
            skipped = [[one.file, one.reason] for one in split.skipped]
            quarantined = [[f"{one.shard}: {one.key}", one.reason] for one in split.quarantined]
            for rows, what in ((skipped, "skipped by the conversion"), (quarantined, "quarantined")):
                reported |= bool(rows)
                yield from _listed(rows, f"{name}: {counted(rows, 'image')} {what}, of {dataset.where}")
    for run, answers in both:
        evaluated = answers.measured.bad if answers.measured else {}
        for bad, what in ((run.bad, "training"), (evaluated, "the evaluation for this page")):
            reported |= bool(bad)
            rows = [[name, why] for name, why in bad.items()]
            yield from _listed(rows, f"{run.name}: {counted(rows, 'image')} could not be decoded in {what}")
    if not reported:
        yield text("None is known: no image was skipped or quarantined, and none failed to decode.")


def _listed(rows: list[list[str]], what: str) -> Iterator[str]:
    if rows:
        more = [text(f"and {len(rows) - LISTED:,} more", "quiet")] if len(rows) > LISTED else []
        yield text(what)
        yield folded("which, and why", table(rows[:LISTED]), *more)
