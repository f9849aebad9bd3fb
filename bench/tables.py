"""Writes the figures of README.md and docs, between two markers, from bench/results/*.json: measured, not typed.
A GPU's records are columns as soon as they lie there: throughput-h200-*.json, peers-h200-*.json, step-h200.json.

python -m bench.tables          writes all
python -m bench.tables --check  fails where one is not what would be written
"""

import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
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
SIZE = 256  # at which the images of the first table are stored
CLAIMS = (
    "towers",
    "lrn",
    "pooling",
    "lighting",
    "relu-vs-tanh",
    "dropout",
    "communication",
)  # in the order of docs/paper.md
LOADER_RUNS = {"originals": "originals", "at-256": "at 256"}


def read(study: str, run: str = "") -> Report:
    report: Report = json.loads((RESULTS / f"{study}-2core{run and '-'}{run}.json").read_text())
    return report


def gpu_reports(study: str) -> dict[str, Report]:
    """Every record of a study on a GPU, by its file's name."""
    reports = {path.name: json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{study}-*.json"))}
    return {name: report for name, report in reports.items() if report["machine"]["device"] == "cuda"}


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def commands(reports: dict[str, Report]) -> str:
    return "; ".join(f"`{report['command']}`" for report in reports.values())


def rate(report: Report, stage: str) -> float:
    """A stage's rate in a run's record."""
    rates: dict[str, float] = {one["name"]: one["img_per_s"] for one in report["stages"]}
    return rates[stage]


def fastest_gpu_run() -> tuple[str, Report]:
    """The recorded run on a GPU that trains fastest on images stored at 256, and its file's name."""
    runs = [(name, run) for name, run in gpu_reports("throughput").items() if run["stored"] == SIZE]
    return max(runs, key=lambda run: rate(run[1], "train"))


def conditions(report: Report) -> str:
    """How a run trained."""
    flags = {"compile": "--compile", "cuda_graphs": "--cuda-graphs"}
    options = "".join(f", `{option}`" for name, option in flags.items() if report.get(name))
    return f"batch {report['batch_size']}, {report['precision']}{options}"


def headline() -> str:
    """The first table: training and the data path, the fastest recorded GPU run beside two cores."""
    (name, gpu), cpu = fastest_gpu_run(), read("throughput", "at-256")
    on_gpu = next((loader_rates(report) for report in gpu_reports("peers").values() if report["stored"] == SIZE), {})
    on_cpu = loader_rates(read("peers", "at-256"))
    ours = next(iter(on_cpu))

    def fastest(rates: dict[str, float], most: int) -> list[str]:
        return sorted(rates.keys() - {ours}, key=lambda name: -rates[name])[:most]

    def cell(rates: dict[str, float], name: str) -> str:
        return f"{rates[name]:,.0f}" if name in rates else "not measured"

    others = dict.fromkeys([*fastest(on_gpu, 6), *fastest(on_cpu, 6)])
    data_path = on_gpu.get(ours, rate(gpu, "pipeline")), on_cpu[ours]
    machine = gpu["machine"]
    rows = [
        ["**training**, end to end", f"**{rate(gpu, 'train'):,.0f}**", f"{rate(cpu, 'train'):,.0f}"],
        [
            "ImageNet's 90 epochs (the paper: five to six days on two GPUs)",
            f"**{gpu['paper_hours']:.1f} hours**",
            f"{cpu['paper_hours']:.0f} hours",
        ],
        ["the model alone", f"{rate(gpu, 'model'):,.0f}", f"{rate(cpu, 'model'):,.0f}"],
        [f"**the data path alone: {ours}**", *(f"**{speed:,.0f}**" for speed in data_path)],
        *([name, cell(on_gpu, name), cell(on_cpu, name)] for name in others),
    ]
    head = ["images a second, images stored at 256", f"one {machine['gpu']}, {machine['cores']} cores", "two CPU cores"]
    return (
        f"{table(head, rows)}\n\nThe GPU's column: {conditions(gpu)}, commit {machine['commit']} "
        f"(`bench/results/{name}`); the CPU's: {conditions(cpu)}."
    )


def training_on_a_gpu() -> str:
    reports = {name.removesuffix(".json"): report for name, report in gpu_reports("throughput").items()}
    versions = ("gpu", "cores", "torch", "dali", "commit")
    described = [[what, *(str(report["machine"].get(what, "")) for report in reports.values())] for what in versions]
    described.append(["training", *map(conditions, reports.values())])
    changed = dict.fromkeys(one["name"] for report in reports.values() for one in report["alternatives"])
    alternatives = [
        [
            f"pipeline, `{name}`" if name.startswith("--") else f"pipeline, {name}",
            *(cell_of(report["alternatives"], name) for report in reports.values()),
        ]
        for name in changed
    ]
    rows = [*described, *stage_rows(reports), *alternatives, *ratio_rows(reports)]
    return (
        "**Training on one GPU**, the same way; each column is a record of `bench/results`.\n\n"
        + table(["stage", *(f"`{name}`" for name in reports)], rows)
        + f"\n\nMeasured by {commands(reports)}."
    )


def gpu_limits() -> str:
    """What the machines with a GPU could do at most."""
    reports = {name.removesuffix(".json"): report for name, report in gpu_reports("throughput").items()}
    names = dict.fromkeys(name for report in reports.values() for name in report["limits"])
    units = {"pictures": ("img/s", 1.0, ",.0f"), "bytes": ("GB/s", 1e9, ",.0f"), "FLOP": ("TFLOP/s", 1e12, ",.0f")}

    def cell(limit: dict[str, Any] | None) -> str:
        if limit is None:
            return ""
        unit, scale, form = units[limit["unit"]]
        return f"{limit['rate'] / scale:{form}} {unit}"

    rows = [[name, *(cell(report["limits"].get(name)) for report in reports.values())] for name in names]
    return table(["at most", *(f"`{name}`" for name in reports)], rows)


def cell_of(rows: list[dict[str, Any]], name: str) -> str:
    """The rate of the row of that name, empty without one."""
    return next((f"{row['img_per_s']:,.0f}" for row in rows if row["name"] == name), "")


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

    # Two processes have a stage that one does not have, and older records lack some
    names = dict.fromkeys([*max(stages, key=len), *(name for run in stages for name in run)])
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
        if any(ratios):
            rows.append([label, *(f"{ratio['ratio']:.2f}" if ratio else "" for ratio in ratios)])
    rows.append(["bound by", *(report["bottleneck"] for report in reports.values())])
    hours = [report["paper_hours"] for report in reports.values()]
    rows.append(["90 epochs of ImageNet, hours", *(f"{one:,.{int(one < 10)}f}" for one in hours)])
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


def loader_rates(report: Report) -> dict[str, float]:
    """Images a second of the loaders that were measured, by name."""
    return {loader["name"]: loader["img_per_s"] for loader in report["peers"] if "img_per_s" in loader}


def loaders() -> str:
    reports = {head: read("peers", run) for run, head in LOADER_RUNS.items()}
    for report in gpu_reports("peers").values():
        stored = f"at {report['stored']}" if report["stored"] else "originals"
        reports[f"{stored}, {report['machine']['gpu']}, {report['machine']['cores']} cores"] = report
    names = dict.fromkeys(loader["name"] for report in reports.values() for loader in report["peers"])
    runs = [{loader["name"]: loader for loader in report["peers"]} for report in reports.values()]

    def cell(loader: dict[str, Any] | None) -> str:
        if loader is None:
            return ""
        return "not installed" if "absent" in loader else f"{loader['img_per_s']:,.0f} ({loader['ratio']:.2f})"

    rows = [[name, *(cell(run.get(name)) for run in runs)] for name in names]
    torches = dict.fromkeys(report["machine"]["torch"] for report in reports.values())
    return (
        "**Other loaders** on the same images, transform, batch and cores, interleaved: img/s, medians of three\n"
        "rounds (ours / theirs in brackets); the pixels that they produce are compared with ours (`--peers`).\n\n"
        + table(["loader", *reports], rows)
        + f"\n\nMeasured by {commands(reports)}, with torch {' and '.join(torches)}."
    )


def step() -> str:
    return step_of(read("step"))


def step_on_a_gpu() -> str:
    """The same of each GPU that it was measured on."""
    return "\n\n".join(f"On one {run['machine']['gpu']}: {step_of(run)}" for run in gpu_reports("step").values())


def normalization_on_a_gpu() -> str:
    """The normalization's time on each GPU that it was measured on alone, beside torch's."""
    written = []
    for name, run in gpu_reports("normalization").items():
        rows = []
        for layer, figures in run["normalisation"].items():
            times = figures["times_torch"]
            spent = {of: f"{1e3 * seconds['median']:.1f}" for of, seconds in figures["seconds"].items()}
            cells = [f"{spent[of]} ({times[of]['median']:.1f})" if of in times else spent[of] for of in spent]
            rows.append([layer, *cells])
        heads = {"torch": "F.local_response_norm", "compiled": "`--compile`"}
        written.append(
            f"One {run['machine']['gpu']}, torch {run['machine']['torch']}, batch {run['batch_size']}: forward and "
            "backward, ms, and how many times as fast\nas F.local_response_norm, medians of one run "
            f"(`bench/results/{name}`):\n\n" + table(["", *(heads.get(of, of) for of in spent)], rows)
        )
    return "\n\n".join(written)


def decoding_on_a_gpu() -> str:
    """Training's rate by where and how DALI decodes, on each GPU that it was tried on."""
    written = []
    for name, run in gpu_reports("decoding").items():
        rows = [
            [
                of["images"],
                of["what"],
                f"{of['alone']:,}" if of["alone"] else "",
                f"{statistics.median(of['training']):,.0f}",
            ]
            for of in run["rows"]
        ]
        written.append(
            f"One {run['machine']['gpu']}, batch {run['batch_size']}, {run['precision']}, img/s, medians "
            f"(`bench/results/{name}`, code of {run['machine']['commit']};\nby {run['command']}):\n\n"
            + table(["images", "DALI", "alone", "training"], rows)
        )
    return "\n\n".join(written)


def step_of(report: Report) -> str:
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


def quality() -> str:
    report = read("quality")
    kinds = [kind for kind in report if kind.startswith("quality") or kind == "originals"]
    rows = [["bytes an image", *(f"{report[kind]['bytes']:,.0f}" for kind in kinds)]]
    psnrs = [report[kind].get("psnr_db") for kind in kinds]
    rows.append(
        ["PSNR of the central crop, median (least), dB"]
        + [f"{psnr['median']:.1f} ({psnr['min']:.1f})" if psnr else "" for psnr in psnrs]
    )
    for name, label in (("pipeline", "training's crops"), ("patch", "complete"), ("stats", "complete, `stats`")):
        costs = [report[kind]["us_per_image"][name]["median"] for kind in kinds]
        rows.append([f"read {label}, us of a core", *(f"{cost:,.0f}" for cost in costs)])
    ratios = [report[kind]["rate of stats / patch"]["median"] for kind in kinds]
    rows.append(["rate of `stats` / of its pipeline alone", *(f"{ratio:.2f}" for ratio in ratios)])
    return (
        table(["", *kinds], rows)
        + f"\n\nMedians (`python -m bench.studies.quality`), {report['machine']['cores']} cores, also used by others."
    )


def waiting() -> str:
    report = read("busy")
    loads = report["busy"]
    names = {"sleep": "`OMP_WAIT_POLICY=passive`", "300000": "OpenMP's own: `GOMP_SPINCOUNT=300000`"}

    def cell(figures: dict[str, Any]) -> str:
        return f"{figures['img_per_s']['median']:,.0f} ({figures['over sleep']['median']:.2f})"

    rows = [
        [names.get(name, f"`GOMP_SPINCOUNT={name}`"), *(cell(load[name]) for load in loads.values())]
        for name in next(iter(loads.values()))
    ]
    heads = ["alone" if load == "0" else f"beside {load} busy programs" for load in loads]
    return (
        table(["training, img/s (over that of passive)", *heads], rows)
        + f"\n\nMedians of interleaved rounds on {report['machine']['cores']} cores, `--width {report['width']}`, "
        f"batch {report['batch_size']} (`python -m bench.studies.busy`)."
    )


SETS = {"ImageNet, 1.28 million": 1_281_167, "ImageNet-21k, 14.2 million": 14_197_122, "a billion": 10**9}


def scale() -> str:
    """What data sets of three sizes take, by stage, at measured rates; and what 14 million samples cost a process."""
    sharding, quality, large = read("sharding"), read("quality")["quality 90"], read("scale")
    gpu = fastest_training()
    rates = {
        "`shard`, bytes kept": (
            sharding["keep"]["files"] / sharding["keep"]["places"]["disk"]["figures"]["ours"]["median"]
        ),
        "`shard --size 256`": sharding["size256"]["files"] / sharding["size256"]["figures"]["ours"]["median"],
        "`stats`, images at 256": 2e6 / quality["us_per_image"]["stats"]["median"],
        "an epoch on one H200": gpu,
    }
    rows = [
        [what, f"{rate:,.0f}", *(duration(images / rate) for images in SETS.values())] for what, rate in rates.items()
    ]
    rows.append(["terabytes at 256", "", *(f"{images * quality['bytes'] / 1e12:.2g}" for images in SETS.values())])
    found, first = large["found"], large["first_start"]
    return (
        table(["", "img/s", *SETS], rows)
        + f"\n\n`{large['command']}`, {large['samples']:,} samples, {large['machine']['cores']} cores:\n\n"
        + table(
            ["", "seconds", "MiB of a process"],
            [
                ["first start, which reads the index files", f"{first['seconds']:.0f}", f"{first['mib']:.0f}"],
                ["every other start", f"{found['seconds']:.2f}", f"{found['mib']:.0f}"],
                *(
                    [
                        f"an epoch's order, `--shuffle {name}`",
                        f"{found[f'order {name}']:.1f}",
                        f"{found[f'order {name} mib']:.0f}",
                    ]
                    for name in ("shards", "full")
                ),
            ],
        )
    )


def fastest_training() -> float:
    """Images a second of `train` on one GPU: the median of the lines from step 40 on, of the faster recorded run."""
    medians: list[float] = [
        statistics.median(line["img_per_s"] for line in run["lines"] if line["step"] >= 40)
        for run in gpu_reports("train").values()
    ]
    return max(medians)


def duration(seconds: float) -> str:
    """Seconds below two minutes, minutes below two hours, hours below three days, days beyond."""
    for unit, length, most in (("seconds", 1, 120), ("minutes", 60, 7200), ("hours", 3600, 3 * 86400)):
        if seconds < most:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"


def claim(study: str) -> str:
    """A claim of the paper, tried (`study`): what each record answers, a GPU's first."""
    reports = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"study-{study}-*.json"))]
    if not reports:
        return "Not run yet."
    return "\n\n".join(_answer(report) for report in sorted(reports, key=lambda report: not report["full"]))


def _answer(report: Report) -> str:
    machine = report["machine"]
    where = machine.get("gpu") or f"{machine['cores']} cores, without a GPU"
    data = f" --data {report['data']['name']}" if report["data"] else ""
    command = f"python cli.py study {report['study']}{data} --out studies --seeds {report['seeds']}"
    lines = "\n".join(f"{'  ' if line.startswith(' ') else ''}- {line.strip()}" for line in report["text"])
    return f"`{command}{' --full' * report['full']}` on {where}:\n\n{lines}"


Part = Callable[[], str]
Section = tuple[Part, ...]  # what lies between two markers
DOCUMENTS: dict[str, tuple[Section, ...]] = {
    "README.md": ((headline,), (training, training_on_a_gpu, loaders, data_path, layouts, sharding)),
    "docs/speed.md": ((step, step_on_a_gpu), (waiting,), (normalization_on_a_gpu,)),
    "docs/data-path-speed.md": ((gpu_limits,), (decoding_on_a_gpu,)),
    "docs/shards.md": ((quality,),),
    "docs/scale.md": ((scale,),),
    "docs/paper.md": tuple((partial(claim, study),) for study in CLAIMS),
}


def with_figures(text: str, sections: tuple[Section, ...]) -> str:
    """A document with its figures as they are measured. Raises ValueError where a marker is missing."""
    written, *rest = text.split(BEGIN)
    for parts, after in zip(sections, rest, strict=True):
        figures = "\n\n".join(figure for part in parts if (figure := part()))
        _, prose = after.split(END)
        written += f"{BEGIN}\n\n{figures}\n\n{END}{prose}"
    return written


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n", 1))
@click.option("--check", is_flag=True, help="Write nothing; fail where a document is not up to date.")
def main(check: bool) -> None:
    for name, sections in DOCUMENTS.items():
        text = (PROJECT / name).read_text()
        if not check:
            (PROJECT / name).write_text(with_figures(text, sections))
        elif text != with_figures(text, sections):
            sys.exit(f"{name} does not have the figures of bench/results: run `python -m bench.tables`")


if __name__ == "__main__":
    main()
