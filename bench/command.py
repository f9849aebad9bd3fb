"""`throughput-bench`: images a second of each stage of training beside what the machine could do, and what bounds it.

`bench.stages` lists the stages; docs/throughput.md has what each limit is, the model behind the bottleneck, and the
JSON's schema.
"""

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from bench import limits, scaling
from bench.config import BenchConfig
from bench.harness.datasets import read_jpegs, write_images
from bench.harness.load import OtherPrograms, busy_line
from bench.harness.machine import cpu_context
from bench.harness.record import write_report
from bench.loaders.base import write_image_set
from bench.loaders.compare import ROUNDS, Work, compare_loaders, comparison_table
from bench.report import page
from bench.schema import Report
from bench.stages import measure_rank
from bench.text_table import table
from bench.tune import tune_rank
from pipeline.compute_stats import complete
from pipeline.geometry import SIZE
from pipeline.order import check_batch_size
from shards.atomic import atomic_write
from shards.convert import write_dataset
from shards.dataset import Dataset
from shards.errors import InputError
from shards.processes import cores
from shards.remote import Remote
from shards.synthetic import render_folders
from trainer.launch import launch


def run(config: BenchConfig) -> None:
    """Prints each stage's images a second, its limit, and what bounds training; writes the files that are asked for.
    With `config.tune` it finds DALI's fastest settings instead. Raises InputError."""
    check(config)
    with tempfile.TemporaryDirectory(prefix="alexnet-bench-") as temporary:
        folder = Path(temporary)
        data = config.data or render(folder)
        if config.tune:
            trial = replace(config, seconds=config.seconds / 3)
            with OtherPrograms(cpu_context()) as programs:
                launch(tune_rank, config.gpus, config.device, trial, data, parallel=config.parallel)
            # Under torchrun the other ranks are no children of this process, and would count as others
            if programs.others.spoil and "TORCHELASTIC_RUN_ID" not in os.environ:
                print(busy_line("The settings were", programs.others))
            return
        report = measure(config, data, folder)
        if report is None:
            return  # torchrun started this process, and the first rank's reports
        print(table(report), flush=True)
        if config.with_peers:
            images = write_image_set(Dataset.load(data), folder)
            device = torch.device("cuda", 0) if report["machine"]["device"] == "cuda" else torch.device("cpu")
            with OtherPrograms(cpu_context()) as programs:
                work = Work(images, config.batch_size, cores(), device, config.seconds)
                report["peers"] = compare_loaders(work, ROUNDS)
            report["load"]["peers"] = programs.others.cpus
            if programs.others.spoil:
                print(busy_line("The loaders were", programs.others))
            print(comparison_table(report["peers"]), flush=True)
        if config.with_scaling:
            with OtherPrograms(cpu_context()) as programs:
                report["scaling"] = scaling.measure(config, data, folder)
            report["load"]["scaling"] = programs.others.cpus
            if programs.others.spoil:
                print(busy_line("Scaling was", programs.others))
            print(scaling.table(report["scaling"]))
    write_report(config.json_path, report)
    if config.report_path:
        with atomic_write(config.report_path) as file:
            file.write(page(report).encode())


def check(config: BenchConfig) -> None:
    """Raises InputError for options that do not go together, before anything is measured."""
    check_batch_size(config.batch_size, config.gpus or 1)
    if config.tune:
        ineffective = {
            "--json": config.json_path,
            "--report": config.report_path,
            "--peers": config.with_peers,
            "--scaling": config.with_scaling,
            "--cold": config.cold,
        }
        for option in (option for option, given in ineffective.items() if given):
            raise InputError(
                f"{option} has no effect with --tune, which finds DALI's settings and measures nothing else: leave one "
                "of the two out"
            )
    if config.with_scaling and "TORCHELASTIC_RUN_ID" in os.environ:
        raise InputError("--scaling starts groups of ranks itself: leave torchrun out, or --scaling")
    if config.with_scaling and config.model.cuda_graphs:
        raise InputError(
            "--scaling also measures several ranks, and --cuda-graphs works with one: leave one of the two out"
        )
    if config.cold and isinstance(config.data, Remote):
        raise InputError("--cold is for shards in a folder, which the page cache holds: leave it out with a URL")


def render(folder: Path) -> Path:
    """A data set of 512 rendered images."""
    render_folders(folder / "images", classes=10, train=512, val=0, seed=0)
    complete(write_dataset(folder / "images", folder / "shards"))
    return folder / "shards"


def measure(config: BenchConfig, data: Path | Remote, folder: Path) -> Report | None:
    """All ranks measure every stage; the report, or None where torchrun has another process report.

    Args: data: the data set; folder: for temporary files.
    """
    dataset, small, result_path = Dataset.load(data), folder / "256", folder / "report.json"
    if dataset.size is None:
        write_images(read_jpegs(dataset, limits.IMAGES), small, None, cores(), size=SIZE)
    launch(
        *(measure_rank, config.gpus, config.device),
        *(config, data, small, result_path),
        parallel=config.parallel,
    )
    if not result_path.exists():
        return None
    report: Report = json.loads(result_path.read_text())
    report["data"]["name"] = "512 rendered images" if config.data is None else str(data)
    report["parallel"] = config.parallel
    return report
