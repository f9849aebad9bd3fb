"""How OpenMP's threads wait for one another: CPU training alone, and beside programs that keep a core busy each.

    sleep   OMP_WAIT_POLICY=passive, which this project sets
    5000    spin 5,000 times, then sleep (GOMP_SPINCOUNT), 0.3 ms where it was tried
    20000   1.3 ms
    300000  20 ms: GNU's OpenMP, left to itself

Training, data path and all, on rendered images stored at 256. Turns are interleaved, each in a process of its own. The
other programs count without end, each as a session of its own, as a program in another window is one.
"""

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from bench.config import BenchConfig
from bench.harness.fresh_process import run_in_fresh_process
from bench.harness.machine import cpu_context, describe_machine
from bench.harness.model_step import ModelOptions
from bench.harness.record import heading, json_option, write_report
from bench.harness.turns import interleaved, ratios, summarize
from bench.model_stages import ModelStages
from bench.rank_setup import RankSetup
from pipeline.compute_stats import complete
from shards.convert import ConvertOptions, write_dataset
from shards.synthetic import render_folders
from trainer.launch import launch
from trainer.rank import RankContext

WAITING = {
    "sleep": {"OMP_WAIT_POLICY": "passive"},
    "5000": {"GOMP_SPINCOUNT": "5000"},
    "20000": {"GOMP_SPINCOUNT": "20000"},
    "300000": {"GOMP_SPINCOUNT": "300000"},
}
TIMEOUT = 300  # seconds that a turn may take: the slowest makes a hundredth of the fastest's rate


def train(data: Path, config: BenchConfig) -> float:
    """Images a second of training in this process."""
    rates: list[float] = []
    launch(_measure, 1, "cpu", data, config, rates)
    return rates[0]


def _measure(context: RankContext, data: Path, config: BenchConfig, rates: list[float]) -> None:
    rates.append(ModelStages(RankSetup.load(context, config, data)).train().median)


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """What processes that start within have in their environment."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """That many programs keep a core busy each while the block runs, and this process lives."""
    command = [sys.executable, "-c", f"import os\nwhile os.getppid() == {os.getpid()}: pass"]
    with ExitStack() as stack:
        for _ in range(programs):
            stack.callback(subprocess.Popen(command, start_new_session=True).kill)
        yield


def turn(waiting: str, programs: int, data: Path, config: BenchConfig) -> float:
    """Images a second of one turn."""
    with environment(WAITING[waiting]), busy(programs):
        rate = run_in_fresh_process(TIMEOUT, train, data, config)
    print(f"{programs} busy, {waiting}: {rate:,.1f} img/s", file=sys.stderr, flush=True)
    return rate


@click.command(help=__doc__.replace("\n\n", "\n\n\b\n", 1))
@click.option("--width", default=0.1, show_default=True, help="The share of the paper's kernels and neurons.")
@click.option("--batch-size", default=32, show_default=True, help="Images of a batch.")
@click.option("--seconds", default=2.0, show_default=True, help="How long training is timed in a turn.")
@click.option("--rounds", default=3, show_default=True, help="Turns of each.")
@click.option("--busy", "loads", default=(0, 1, 3), multiple=True, show_default=True, help="Programs beside it.")
@json_option
def main(
    width: float, batch_size: int, seconds: float, rounds: int, loads: tuple[int, ...], json_path: Path | None
) -> None:
    report = {**heading(describe_machine(cpu_context())), "width": width, "batch_size": batch_size, "busy": {}}
    with tempfile.TemporaryDirectory(prefix="alexnet-busy-") as name:
        folder = Path(name)
        render_folders(folder / "images", classes=4, train=500, val=0, seed=0)
        complete(write_dataset(folder / "images", folder / "shards", ConvertOptions(size=256)))
        model = ModelOptions(width=width)
        config = BenchConfig(None, batch_size, model, device="cpu", seconds=seconds)
        for load in loads:
            turns = {waiting: functools.partial(turn, waiting, load, folder / "shards", config) for waiting in WAITING}
            rates = interleaved(turns, rounds)
            report["busy"][str(load)] = {
                waiting: {"img_per_s": summarize(own), "over sleep": summarize(ratios(own, rates["sleep"]))}
                for waiting, own in rates.items()
            }
    for load, figures in report["busy"].items():
        listed = ", ".join(f"{name} {one['img_per_s']['median']:,.0f}" for name, one in figures.items())
        print(f"{load} busy programs, img/s: {listed}")
    write_report(json_path, report)


if __name__ == "__main__":
    main()
