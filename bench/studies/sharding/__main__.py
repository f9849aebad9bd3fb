"""`python -m bench.studies.sharding`: measures the parts that are asked for, and records their figures."""

import platform
import subprocess
import tempfile
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import click

from bench.harness.host import memory_gib
from bench.harness.record import heading, json_option, write_report
from bench.studies import sharding as study
from bench.studies.sharding.codecs import libraries, scaled_decoding
from bench.studies.sharding.conversion import keep, size256
from bench.studies.sharding.memory import memory
from bench.studies.sharding.rounds import Setup
from shards.processes import cores, cpu_name

LIBRARIES = ("numpy", "pillow", "simplejpeg", "xxhash", "webdataset", "opencv", "pyturbojpeg")
PARTS = {part.__name__: part for part in (keep, size256, libraries, scaled_decoding, memory)}
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


def machine() -> dict[str, Any]:
    """What the figures were measured on: the machine, and the versions of what converts images."""
    # In reverse, so that of two installations the one that is imported stays
    installed = [one for one in reversed(list(distributions())) if one.name.lower().startswith(LIBRARIES)]
    versions = {one.name: one.version for one in installed}
    tar = subprocess.run(["tar", "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_gib": memory_gib(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {**versions, "tar": tar},
    }


@click.command(help=(study.__doc__ or "").replace("\n\n", "\n\n\b\n", 1))
@click.option("--images", type=FILE, required=True, help="A tar of train/WNID/*.JPEG.")
@click.option("--copies", type=click.IntRange(1), default=30, show_default=True, help="Copies of each image, in keep.")
@click.option(
    "--copies-256", type=click.IntRange(1), default=5, show_default=True, help="Copies of each image, in size256."
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds that are counted.")
@click.option(
    "--processes", type=click.IntRange(1), default=2, show_default=True, help="Processes in keep and size256."
)
@click.option("--work", type=FOLDER, required=True, help="A folder on the disk to measure; it is left as it was.")
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help="Measure this part alone; may be repeated.")
@json_option
def main(work: Path, only: tuple[str, ...], json_path: Path | None, **options: Any) -> None:
    if json_path and not json_path.absolute().parent.is_dir():
        raise click.ClickException(f"--json {json_path}: there is no such folder; make it first")
    report = {**heading(machine()), "rounds": options["rounds"]}
    with tempfile.TemporaryDirectory(prefix="sharding-", dir=work.absolute()) as folder:
        setup = Setup(**options, work=Path(folder))
        for name in only or PARTS:
            report[name] = PARTS[name](setup)
    write_report(json_path, report)


if __name__ == "__main__":
    main()
