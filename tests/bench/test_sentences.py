"""The figures within sentences of the pages are those of bench/results: a record that changes makes them fail here."""

import json
import statistics
from math import inf
from pathlib import Path

import pytest

from bench.bottleneck import EPOCHS, IMAGES, predicted
from bench.tables import RESULTS

PROJECT = Path(__file__).parents[2]


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def loader():
    report = read("public-loader-2core")
    return {**report, "rounds": len(report["public"]["ratio"]["values"])}


def other_loaders():
    """How far from ours, in percent, by the set and the loader's first word."""
    reports = {key: read(f"peers-2core-{key}") for key in ("originals", "at-256")}
    return {
        f"{key}_{peer['name']}": 100 * abs(1 - peer["ratio"])
        for key, report in reports.items()
        for peer in report["peers"]
        if "ratio" in peer
    }


def behind():
    """How far training is behind its prediction, in percent."""
    runs, others = (
        [-100 * json.loads(path.read_text())["prediction_error"] for path in RESULTS.glob(pattern)]
        for pattern in ("throughput-2core-*.json", "peers-2core-*.json")
    )
    return {"least": min(runs), "most": max(runs), "others": max(others)}


def quality_training():
    errors = read("quality-training-2core")["top1_error_by_seed"]
    return {
        kind.replace(" ", "_"): ", ".join(f"{100 * error:.1f}" for error in by_seed.values())
        for kind, by_seed in errors.items()
    }


def one_gpu():
    ratios = {name: of["ratio"] for name, of in read("throughput-h200-at-256")["ratios"].items()}
    return {
        "normalization": 100 * (1 - ratios["LRN tax"]),
        "slower": 100 * (1 - ratios["train / min(pipeline, model)"]),
        "unexplained": 100 * (ratios["train / predicted"] - 1),
    }


def normalization():
    """The least and the most times as fast as torch's, by the memory's format and ours."""
    times = {}
    for layer, figures in read("normalization-h200")["normalisation"].items():
        for name, ratio in figures["times_torch"].items():
            times.setdefault((layer.split(", ")[1], name), []).append(ratio["median"])
    assert min(times["channels-last", "TorchScript"]) >= 4 and min(times["channels-last", "compiled"]) >= 8
    return {
        name: [min(times["contiguous", name]), max(times["contiguous", name])] for name in ("TorchScript", "compiled")
    }


def training():
    rates = [line["img_per_s"] for line in read("train-h200-at-256")["lines"] if line["step"] >= 40]
    median = statistics.median(rates)
    minutes = EPOCHS * IMAGES / median / 60
    return {"median": median, "lowest": min(rates), "highest": max(rates), "minutes": minutes}


def beside():
    """What the stages beside one another predict, by how many steps the model had queued."""
    record = read("decoding-h200")
    alone, queued = record["beside"]["alone"], {row["queued"]: row for row in record["beside"]["rows"]}
    one = queued["one behind the one that runs"]
    rates = {"read": inf, "feed": inf, **alone}
    return {
        "summed": predicted(rates, "the card"),
        "predicted": predicted({**rates, **{f"{name} beside": one[name] for name in alone}}, "the card"),
        "training": statistics.median(record["rows"][0]["training"]),
        "p": one["pipeline"] / alone["pipeline"],
        "m": one["model"] / alone["model"],
    }


def mps():
    rates = {row["what"]: statistics.median(row["training"]) for row in read("decoding-h200")["rows"]}
    one = rates["in one process, three pipelines (as `train`)"]
    return {"gain": 100 * (rates["a process of its own under NVIDIA's MPS, three pipelines"] / one - 1)}


def exchange():
    rates = {stage["name"]: stage["img_per_s"] for stage in read("throughput-2core-at-256-two-towers")["stages"]}
    return {**rates, "share": 100 * rates["model"] / rates["exchange"]}


def checkpoint():
    record = read("checkpoint-2core")
    seconds = {name.replace(" ", "_"): statistics.median(times) for name, times in record["seconds"].items()}
    ms = {f"{name}_ms": 1e3 * time for name, time in seconds.items()}
    return {**seconds, **ms, "megabytes": record["bytes_written"] / 1e6}


def statistics_minutes():
    """Of ImageNet, on the two cores of the record."""
    record = read("quality-2core")
    cores = record["machine"]["cores"]
    us = {name: record[name]["us_per_image"]["stats"]["median"] for name in ("quality 90", "originals")}
    return {name.replace(" ", "_"): IMAGES * time / cores / 60e6 for name, time in us.items()}


SENTENCES = [  # the page, what it says, and the figures for that
    (
        "README.md",
        "on two cores {quality_90:.0f} minutes for images stored at 256 and {originals:.0f} for originals",
        statistics_minutes,
    ),
    (
        "docs/loader.md",
        "{rounds} interleaved rounds (`bench/results/public-loader-2core.json`), the same crops through this "
        "interface came at {public[ratio][median]:.2f} of that stage's rate, in the median of the rounds "
        "({public[ratio][p10]:.2f} to {public[ratio][p90]:.2f} in the middle eight tenths of them); normalized to "
        "float32 at {float32[ratio][median]:.2f}, and random resized crops, which are scaled, at "
        "{resized[ratio][median]:.2f}.",
        loader,
    ),
    (
        "docs/data-path-speed.md",
        "FFCV is faster than ours, by {originals_FFCV:.0f} % on originals and {at-256_FFCV:.0f} % at 256.",
        other_loaders,
    ),
    (
        "docs/data-path-speed.md",
        "torchvision comes within {originals_torch DataLoader + torchvision v2:.0f} % on originals",
        other_loaders,
    ),
    (
        "docs/data-path-speed.md",
        "training stays {least:.0f} to {most:.0f} % behind the prediction from its parts, most with the small model "
        "({others:.0f} % in some other runs).",
        behind,
    ),
    (
        "docs/data-path-speed.md",
        "a model of which {normalization:.0f} % was the normalization ([speed.md](speed.md#on-one-gpu)), and training "
        "{slower:.0f} % slower than its slowest part",
        one_gpu,
    ),
    (
        "docs/shards.md",
        "top-1 errors of {quality_85} % at 85, {quality_90} % at 90, {quality_95} % at 95 with three seeds",
        quality_training,
    ),
    (
        "docs/speed.md",
        "{normalization:.0f} % of an eager bf16 step",
        one_gpu,
    ),
    (
        "docs/speed.md",
        "In contiguous memory it misses both: {TorchScript[0]:.1f} to {TorchScript[1]:.1f} times in TorchScript, "
        "{compiled[0]:.1f} to {compiled[1]:.1f} compiled.",
        normalization,
    ),
    (
        "docs/throughput.md",
        "so its {unexplained:.0f} % are those of the sum",
        one_gpu,
    ),
    (
        "docs/throughput.md",
        "the prediction was the sum, {summed:,.0f} img/s, where training made {training:,.0f}; with one step queued p "
        "is {p:.2f}, m {m:.2f}, and the prediction {predicted:,.0f}",
        beside,
    ),
    (
        "docs/data-path-speed.md",
        "`train` logged {median:,.0f} img/s on one H200, the median of its lines from step 40 on ({lowest:,.0f} the "
        "lowest, {highest:,.0f} the highest; `bench/results/train-h200-at-256.json`): 90 epochs of ImageNet in "
        "{minutes:.0f} minutes",
        training,
    ),
    (
        "docs/data-path-speed.md",
        "With it, it gains some {gain:.0f} % over one process",
        mps,
    ),
    (
        "docs/parallel.md",
        'takes {share:.0f} % of the step (the stages "exchange" and "model" of '
        "`bench/results/throughput-2core-at-256-two-towers.json`, {exchange:,.0f} and {model:.1f} img/s)",
        exchange,
    ),
    (
        "docs/parallel.md",
        "towers {towers[img_per_s]:.1f} img/s, data {data[img_per_s]:.1f}, hybrid {hybrid[img_per_s]:.1f}.",
        lambda: read("parallel-2core")["layouts"],
    ),
    (
        "docs/training.md",
        "A full-width checkpoint, {megabytes:.0f} MB, holds the loop for {held_ms:.0f} ms and is on the disk "
        "{written:.1f} s later; written at once it would hold it for {at_once:.2f} s. Agreeing on a stop takes "
        "{agreeing_ms:.2f} ms of a step of {step_ms:.0f}",
        checkpoint,
    ),
]


@pytest.mark.parametrize("page, sentence, figures", SENTENCES)
def test_sentences_have_the_figures_that_were_measured(page, sentence, figures):
    text = " ".join((PROJECT / page).read_text().split())
    assert sentence.format(**figures()) in text
