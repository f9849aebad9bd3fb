"""What `throughput-bench --peers` measures, and nothing else: other loaders and ours on the images of a data set."""

import tempfile
from pathlib import Path

import click

from bench.harness.machine import describe_machine
from bench.harness.record import heading, json_option, write_report
from bench.loaders.base import write_image_set
from bench.loaders.compare import ROUNDS, Work, compare_loaders, comparison_table
from shards.dataset import Dataset
from shards.processes import cores
from trainer.launch import launch
from trainer.rank import RankContext


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="A folder of shards.")
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True, help="Images of a batch.")
@click.option("--seconds", default=3.0, show_default=True, help="How long a turn is timed, after as long that is not.")
@click.option("--rounds", type=click.IntRange(1), default=ROUNDS, show_default=True, help="Turns of each loader.")
@click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True)
@json_option
def main(data: Path, batch_size: int, seconds: float, rounds: int, device: str, json_path: Path | None) -> None:
    launch(measure_rank, 1, device, data, batch_size, seconds, rounds, json_path)


def measure_rank(
    context: RankContext, data: Path, batch_size: int, seconds: float, rounds: int, json_path: Path | None
) -> None:
    """Measures for the one rank's device, and reports."""
    dataset = Dataset.load(data)
    with tempfile.TemporaryDirectory(prefix="alexnet-loaders-") as folder:
        images = write_image_set(dataset, Path(folder))
        peers = compare_loaders(Work(images, batch_size, cores(), context.device, seconds), rounds)
    print(comparison_table(peers))
    machine = describe_machine(context)
    write_report(json_path, {**heading(machine), "stored": dataset.size, "batch_size": batch_size, "peers": peers})


if __name__ == "__main__":
    main()
