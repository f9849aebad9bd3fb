"""Writes the figures of README.md and docs/speed.md, between two markers, from bench/results/*.json: measured, not
typed.

python -m bench.tables          writes both
python -m bench.tables --check  fails where one is not what would be written
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Report = dict[str, Any]  # a file of bench/results
PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "bench" / "results"
BEGIN = "<!-- Figures from bench/results, written by bench/tables.py: do not edit. -->"
END = "<!-- End of the figures. -->"
# Recorded runs, by the end of their files' names, and their columns' heads
TRAINING_RUNS = {
    "originals": "originals",
    "at-256": "at 256",
    "at-256-two-towers": "at 256, two processes",
    "at-256-quarter-width": "at 256, a quarter of the kernels",
}
LOADER_RUNS = {"originals": "originals", "at-256": "at 256"}


def read(study: str, run: str = "") -> Report:
    report: Report = json.loads((RESULTS / f"{study}-2core{run and '-'}{run}.json").read_text())
    return report


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def commands(reports: dict[str, Report]) -> str:
    return "; ".join(f"`{report['command']}`" for report in reports.values())


def training() -> str:
    reports = {head: read("throughput", run) for run, head in TRAINING_RUNS.items()}
    first = next(iter(reports.values()))
    machine = first["machine"]
    return (
        "**Training**, img/s, and the share of its own limit that each stage reaches\n"
        "([what is what](docs/throughput.md)); for training the limit is the prediction from the other stages.\n"
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, DALI {machine['dali']}, "
        f"batch {first['batch_size']}.\n\n"
        + table(["stage", *reports], [*stage_rows(reports), *ratio_rows(reports)])
        + f"\n\nMeasured by {commands(reports)}."
    )


def stage_rows(reports: dict[str, Report]) -> list[list[str]]:
    stages = [{stage["name"]: stage for stage in report["stages"]} for report in reports.values()]

    def cell(stage: dict[str, Any] | None) -> str:
        return f"{stage['img_per_s']:,.0f} ({stage['of_limit']:.0%})" if stage else ""

    # Two processes have a stage that one does not have
    names = max(stages, key=len)
    return [[name, *(cell(run.get(name)) for run in stages)] for name in names]


def ratio_rows(reports: dict[str, Report]) -> list[list[str]]:
    labels = {
        "LRN tax": "LRN tax",
        "resume: first 100 steps / steady state": "a resumed run's first 100 steps, those beyond `--seconds` taken as "
        "steady / steady",
        "two devices / one at equal global batch": "two processes / one at the same batch",
    }
    rows = []
    for name, label in labels.items():
        ratios = [report["ratios"].get(name) for report in reports.values()]
        rows.append([label, *(f"{ratio['ratio']:.2f}" if ratio else "" for ratio in ratios)])
    rows.append(["bound by", *(report["bottleneck"] for report in reports.values())])
    rows.append(["90 epochs of ImageNet, hours", *(f"{report['paper_hours']:,.0f}" for report in reports.values())])
    return rows


def data_path() -> str:
    report, sets = read("pipeline"), ("originals", "at 256")
    rates = {
        "libjpeg-turbo alone, img/s": "raw",
        "the pipeline's batches, img/s": "pipeline",
        "the same to float32, mean and lighting, img/s": "fed",
    }
    ratios = {
        "DALI's decoding / libjpeg-turbo": "decode / raw",
        "training pipeline / libjpeg-turbo": "pipeline / raw",
        "training pipeline / DataLoader with Pillow": "pipeline / DataLoader",
    }
    rows = [
        [label, *(f"{report[one]['img_per_s'][key]['median']:,.0f}" for one in sets)] for label, key in rates.items()
    ]
    rows += [[label, *(f"{report[one]['ratios'][key]['median']:.2f}" for one in sets)] for label, key in ratios.items()]
    head = "**Data path** (`python -m bench.studies.data_path`), both cores, 6,400 images, medians:\n\n"
    return head + table(["", *sets], rows)


def layouts() -> str:
    report = read("parallel")
    rows = [[name, f"{layout['img_per_s']:.1f}"] for name, layout in report["layouts"].items()]
    head = f"**Layouts** on two CPU processes, batch {report['batch_size']} (`python -m bench.studies.parallel`):\n\n"
    return head + table(["`--parallel`", "img/s"], rows)


def sharding() -> str:
    report = read("sharding")
    keep, places, size256 = report["keep"], report["keep"]["places"], report["size256"]

    def ratio(compared: dict[str, Any], other: str) -> str:
        return f"{compared['ratios'][f'ours / {other}']['median']:.2f}"

    speed = [f"{keep['files'] / place['figures']['ours']['median']:,.0f}" for place in places.values()]
    rows = [[f"{keep['files']:,} originals, bytes kept, SHA-256 and index, img/s", *speed]]
    others = {
        "tar": "GNU `tar cf`",
        "tar + fsync": "`tar cf` and fsync, which ours does",
        "ShardWriter": "ShardWriter",
        "ShardWriter + fsync": "ShardWriter and fsync",
    }
    rows += [
        [f"the same / {label}", *(ratio(place, other) for place in places.values())] for other, label in others.items()
    ]
    rows.append(["`--size 256` / a bare loop of decode, resize and encode", ratio(size256, "bare loop"), ""])
    head = f"**Sharding** (`python -m bench.studies.sharding`), {keep['processes']} processes, medians:\n\n"
    return head + table(["", *(f"to {name}" for name in places)], rows)


def loaders() -> str:
    reports = {head: read("peers", run) for run, head in LOADER_RUNS.items()}
    names = [loader["name"] for loader in next(iter(reports.values()))["peers"]]
    runs = [{loader["name"]: loader for loader in report["peers"]} for report in reports.values()]

    def cell(loader: dict[str, Any]) -> str:
        return "absent" if "absent" in loader else f"{loader['img_per_s']:,.0f} ({loader['ratio']:.2f})"

    rows = [[name, *(cell(run[name]) for run in runs)] for name in names]
    return (
        "**Other loaders** on the same images, transform, batch and cores, interleaved: img/s, medians of three\n"
        "rounds (ours / theirs in brackets); the pixels that they produce are compared with ours (`--peers`).\n\n"
        + table(["loader", *reports], rows)
        + f"\n\nMeasured by {commands(reports)}, with torch {next(iter(reports.values()))['machine']['torch']}."
    )


def step() -> str:
    report = read("step")
    rates, shares, ratios = (report["step"][key] for key in ("img_per_s", "share_of_the_products_rate", "ratios"))
    rows = [[name, f"{rate['median']:.1f}", f"{shares[name]['median']:.2f}"] for name, rate in rates.items()]
    listed = "; ".join(f"{name} {ratio['median']:.2f}" for name, ratio in ratios.items())
    layers = [
        [f"{layer}: {name}", f"{1e3 * figures['seconds'][name]['median']:.0f}", f"{times['median']:.1f}"]
        for layer, figures in report["normalisation"].items()
        for name, times in figures["times_torch"].items()
    ]
    return (
        f"**A step**, batch {report['batch_size']}, one process (`python -m bench.studies.step`, whose help says\n"
        "what each is):\n\n"
        + table(["", "img/s", "of what the products allow"], rows)
        + f"\n\nRatios, each within a round: {listed}.\n\n"
        + table(["normalization, forward and backward", "ms", "times as fast as F.local_response_norm"], layers)
    )


Part = Callable[[], str]
DOCUMENTS: dict[str, tuple[Part, ...]] = {
    "README.md": (training, loaders, data_path, layouts, sharding),
    "docs/speed.md": (step,),
}


def with_figures(text: str, parts: tuple[Part, ...]) -> str:
    """A document with its figures as they are measured. Raises ValueError where a marker is missing."""
    before, rest = text.split(BEGIN)
    figures = "\n\n".join(part() for part in parts)
    return f"{before}{BEGIN}\n\n{figures}\n\n{END}{rest.split(END)[1]}"


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n", 1))
@click.option("--check", is_flag=True, help="Write nothing; fail where a document is not up to date.")
def main(check: bool) -> None:
    for name, parts in DOCUMENTS.items():
        text = (PROJECT / name).read_text()
        if not check:
            (PROJECT / name).write_text(with_figures(text, parts))
        elif text != with_figures(text, parts):
            sys.exit(f"{name} does not have the figures of bench/results: run `python -m bench.tables`")


if __name__ == "__main__":
    main()
