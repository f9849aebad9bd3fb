"""How a study records its figures: as JSON, with the command and the machine that they come from."""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from shards.atomic import atomic_write

json_option = click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the figures to this file, as JSON.",
)


def heading(machine: dict[str, Any]) -> dict[str, Any]:
    """What a study's report begins with."""
    return {"schema": 1, "command": shlex.join(["python", *sys.orig_argv[1:]]), "machine": machine}


def write_report(path: Path | None, report: Mapping[str, object]) -> None:
    """Writes a report, unless no path is given."""
    if path:
        with atomic_write(path) as file:
            file.write(json.dumps(report, indent=1).encode() + b"\n")
