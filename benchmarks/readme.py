"""Writes README's figures, between its two markers, from benchmarks/results/*.json: measured, not typed.

python benchmarks/readme.py          writes README.md anew
python benchmarks/readme.py --check  fails where it is not what would be written
"""

import json
import sys
from pathlib import Path

import click

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "benchmarks" / "results"
BEGIN = "<!-- Figures from benchmarks/results, written by benchmarks/readme.py: do not edit. -->"
END = "<!-- End of the figures. -->"
TRAINED = {"originals": "originals", "at-256-quarter-width": "at 256, a quarter of the kernels"}


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}-2core.json").read_text())


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def training() -> str:
    reports = {
        head: json.loads((RESULTS / f"throughput-2core-{name}.json").read_text()) for name, head in TRAINED.items()
    }
    stages = {head: {stage["name"]: stage for stage in report["stages"]} for head, report in reports.items()}
    where = next(iter(reports.values()))["machine"]
    rows = [
        [name, *(f"{of[name]['img_per_s']:,.0f} ({of[name]['of_limit']:.0%})" for of in stages.values())]
        for name in next(iter(stages.values()))
    ]
    rows.append(["bound by", *(report["bottleneck"] for report in reports.values())])
    rows.append(["90 epochs of ImageNet, hours", *(f"{report['paper_hours']:,.0f}" for report in reports.values())])
    commands = "; ".join(f"`{report['command']}`" for report in reports.values())
    return (
        "**Training**, img/s, and how much of its own limit each stage reaches ([what is what](docs/throughput.md));\n"
        f"for training that is the prediction from the other stages. {where['cpu']}, {where['cores']} cores, torch "
        f"{where['torch']}, DALI {where['dali']}, batch {next(iter(reports.values()))['batch_size']}.\n\n"
        + table(["stage", *reports], rows)
        + f"\n\nMade by {commands}."
    )


def data_path() -> str:
    found = read("pipeline")
    sets = ("originals", "at 256")
    rates = {"raw libjpeg-turbo, img/s": "raw", "the pipeline's batches, img/s": "pipeline"}
    rates["the same to float32, mean and lighting, img/s"] = "fed"
    ratios = {"decode / raw": "DALI's decoding / raw", "pipeline / raw": "training pipeline / raw"}
    ratios["pipeline / DataLoader"] = "training pipeline / DataLoader with Pillow"
    rows = [[told, *(f"{found[of]['img_per_s'][key]['median']:,.0f}" for of in sets)] for told, key in rates.items()]
    rows += [[told, *(f"{found[of]['ratios'][key]['median']:.2f}" for of in sets)] for key, told in ratios.items()]
    return "**Data path** (`benchmarks/pipeline.py`), both cores, 6,400 pictures, medians:\n\n" + table(
        ["", *sets], rows
    )


def layouts() -> str:
    found = read("parallel")
    rows = [[name, f"{one['img_per_s']:.1f}"] for name, one in found["layouts"].items()]
    told = f"**Layouts** on two CPU processes, batch {found['batch_size']} (`benchmarks/parallel.py`):\n\n"
    return told + table(["`--parallel`", "img/s"], rows)


def sharding() -> str:
    found = read("sharding")
    places, small = found["keep"]["places"], found["size256"]

    def ratio(place: dict, rival: str) -> str:
        return f"{place['ratios'][f'ours / {rival}']['median']:.2f}"

    speed = [f"{found['keep']['files'] / place['figures']['ours']['median']:,.0f}" for place in places.values()]
    rows = [[f"{found['keep']['files']:,} originals, bytes kept, SHA-256 and index, img/s", *speed]]
    rivals = {"tar": "GNU `tar cf`", "tar + fsync": "`tar cf` and fsync, which ours does", "ShardWriter": "ShardWriter"}
    rivals["ShardWriter + fsync"] = "ShardWriter and fsync"
    rows += [
        [f"the same / {told}", *(ratio(place, rival) for place in places.values())] for rival, told in rivals.items()
    ]
    rows.append(["`--size 256` / a bare loop of decode, resize and encode", ratio(small, "bare loop"), ""])
    told = f"**Sharding** (`benchmarks/sharding.py`), {found['keep']['processes']} processes, medians:\n\n"
    return told + table(["", *(f"to {name}" for name in places)], rows)


def figures() -> str:
    return "\n\n".join(part() for part in (training, data_path, layouts, sharding))


def written(readme: str) -> str:
    """README with its figures as they are measured. Raises ValueError where a marker is missing."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{figures()}\n\n{END}{rest.split(END)[1]}"


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n", 1))
@click.option("--check", is_flag=True, help="Write nothing.")
def main(check: bool) -> None:
    path = PROJECT / "README.md"
    readme = path.read_text()
    if check:
        if readme != written(readme):
            sys.exit("README.md is not what benchmarks/results say: run `python benchmarks/readme.py`")
    else:
        path.write_text(written(readme))


if __name__ == "__main__":
    main()
