"""Writes the figures of README.md and docs/speed.md, between two markers, from bench/results/*.json: measured, not
typed.

python bench/tables.py          writes both anew
python bench/tables.py --check  fails where one is not what would be written
"""

import json
import sys
from pathlib import Path

import click

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "bench" / "results"
BEGIN = "<!-- Figures from bench/results, written by bench/tables.py: do not edit. -->"
END = "<!-- End of the figures. -->"
TRAINED = {
    "originals": "originals",
    "at-256": "at 256",
    "at-256-two-towers": "at 256, two processes",
    "at-256-quarter-width": "at 256, a quarter of the kernels",
}
PEERS = {"originals": "originals", "at-256": "at 256"}


def read(name: str, of: str = "") -> dict:
    return json.loads((RESULTS / f"{name}-2core{of and '-'}{of}.json").read_text())


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def commands_of(reports: dict[str, dict]) -> str:
    return "; ".join(f"`{report['command']}`" for report in reports.values())


def training() -> str:
    reports = {head: read("throughput", name) for name, head in TRAINED.items()}
    stages = {head: {stage["name"]: stage for stage in report["stages"]} for head, report in reports.items()}
    where = next(iter(reports.values()))["machine"]

    def cell(stage: dict | None) -> str:
        return f"{stage['img_per_s']:,.0f} ({stage['of_limit']:.0%})" if stage else ""

    # Two processes have a stage that one has not
    names = max(stages.values(), key=len)
    rows = [[name, *(cell(of.get(name)) for of in stages.values())] for name in names]
    ratios = {
        "LRN tax": "LRN tax",
        "resume: first 100 steps / steady state": "a resumed run's first 100 steps, those beyond `--seconds` taken as "
        "steady / steady",
        "two devices / one at equal global batch": "two processes / one at the same batch",
    }
    for name, told in ratios.items():
        found = (report["ratios"].get(name) for report in reports.values())
        rows.append([told, *(f"{ratio['ratio']:.2f}" if ratio else "" for ratio in found)])
    rows.append(["bound by", *(report["bottleneck"] for report in reports.values())])
    rows.append(["90 epochs of ImageNet, hours", *(f"{report['paper_hours']:,.0f}" for report in reports.values())])
    return (
        "**Training**, img/s, and how much of its own limit each stage reaches ([what is what](docs/throughput.md));\n"
        f"for training that is the prediction from the other stages. {where['cpu']}, {where['cores']} cores, torch "
        f"{where['torch']}, DALI {where['dali']}, batch {next(iter(reports.values()))['batch_size']}.\n\n"
        + table(["stage", *reports], rows)
        + f"\n\nMade by {commands_of(reports)}."
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
    return "**Data path** (`bench/studies/data_path.py`), both cores, 6,400 images, medians:\n\n" + table(
        ["", *sets], rows
    )


def layouts() -> str:
    found = read("parallel")
    rows = [[name, f"{one['img_per_s']:.1f}"] for name, one in found["layouts"].items()]
    told = f"**Layouts** on two CPU processes, batch {found['batch_size']} (`bench/studies/parallel.py`):\n\n"
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
    told = f"**Sharding** (`bench/studies/sharding.py`), {found['keep']['processes']} processes, medians:\n\n"
    return told + table(["", *(f"to {name}" for name in places)], rows)


def peers() -> str:
    reports = {head: read("peers", name) for name, head in PEERS.items()}
    names = [peer["name"] for peer in next(iter(reports.values()))["peers"]]
    found = {head: {peer["name"]: peer for peer in report["peers"]} for head, report in reports.items()}

    def cell(peer: dict) -> str:
        return "absent" if "absent" in peer else f"{peer['img_per_s']:,.0f} ({peer['ratio']:.2f})"

    rows = [[name, *(cell(of[name]) for of in found.values())] for name in names]
    return (
        "**Other loaders** on the same images, transform, batch and cores, in turns, img/s, medians of three rounds\n"
        "(ours / theirs in brackets); the pixels that they make are held against ours (`--peers`).\n\n"
        + table(["loader", *reports], rows)
        + f"\n\nMade by {commands_of(reports)}, with torch {next(iter(reports.values()))['machine']['torch']}."
    )


def step() -> str:
    found = read("step")
    rates, shares, ratios = (found["step"][key] for key in ("img_per_s", "share_of_the_products_rate", "ratios"))
    rows = [[name, f"{of['median']:.1f}", f"{shares[name]['median']:.2f}"] for name, of in rates.items()]
    told = "; ".join(f"{name} {of['median']:.2f}" for name, of in ratios.items())
    layers = {
        f"{layer}: {name}": [f"{1e3 * one['seconds'][name]['median']:.0f}", f"{of['median']:.1f}"]
        for layer, one in found["normalisation"].items()
        for name, of in one["times_torch"].items()
    }
    return (
        f"**A step**, batch {found['batch_size']}, one process (`bench/studies/step.py`; its head says what each is):\n\n"
        + table(["", "img/s", "of what the products allow"], rows)
        + f"\n\nRatios, each within a round: {told}.\n\n"
        + table(
            ["normalization, forwards and backwards", "ms", "times as fast as F.local_response_norm"],
            [[name, *cells] for name, cells in layers.items()],
        )
    )


PLACES = {"README.md": (training, peers, data_path, layouts, sharding), "docs/speed.md": (step,)}


def written(text: str, parts: tuple) -> str:
    """A document with its figures as they are measured. Raises ValueError where a marker is missing."""
    before, rest = text.split(BEGIN)
    figures = "\n\n".join(part() for part in parts)
    return f"{before}{BEGIN}\n\n{figures}\n\n{END}{rest.split(END)[1]}"


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n", 1))
@click.option("--check", is_flag=True, help="Write nothing.")
def main(check: bool) -> None:
    for name, parts in PLACES.items():
        text = (PROJECT / name).read_text()
        if not check:
            (PROJECT / name).write_text(written(text, parts))
        elif text != written(text, parts):
            sys.exit(f"{name} is not what bench/results say: run `python bench/tables.py`")


if __name__ == "__main__":
    main()
