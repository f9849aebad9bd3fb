"""What a study has found so far, a file for each finished part: one that was broken off runs only what is missing."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.harness.host import commit
from shards.atomic import atomic_write, make_output_folder
from shards.errors import InputError
from shards.progress import Progress

OPTIONS = "options.json"
Result = dict[str, Any]  # as JSON takes it


class Cells:
    """The cells of a folder: trainings of one variant with one seed, mostly.

    Args: options: what all of them are made with. Raises: InputError when the folder holds cells of other options.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any]):
        self.folder = folder
        self.options: dict[str, Any] = json.loads(json.dumps(options))
        self.commit = commit()
        make_output_folder(folder)
        path = folder / OPTIONS
        if not path.exists():
            _write(path, self.options)
        before = _read(path)
        for name in sorted(before.keys() | self.options.keys()):
            if before.get(name) != self.options.get(name):
                was, now = (str(some.get(name))[:200] for some in (before, self.options))
                raise InputError(f"{folder} was made with {name} {was}, not {now}: choose another --out, or remove it")

    def run(self, work: Mapping[str, Callable[[], Result]], label: str) -> dict[str, Result]:
        """The results by name, in the order of `work`: read where there is a file, otherwise worked out and written.
        Args: label: of the progress bar."""
        results, missing = {}, []
        for name in work:
            path = self._path(name)
            if path.exists():
                results[name] = _read(path)["result"]
            else:
                missing.append(name)
        if missing:
            with Progress(label, len(missing), unit="trials") as progress:
                for name in missing:
                    began = time.monotonic()
                    result = work[name]()
                    took = round(time.monotonic() - began, 2)
                    cell = {"name": name, "commit": self.commit, "seconds": took, "result": result}
                    _write(self._path(name), cell)
                    results[name] = _read(self._path(name))["result"]
                    progress.advance()
        return {name: results[name] for name in work}

    def _path(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '-').replace(' ', '_')}.json"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): remove it, and the same command makes it anew") from None
    return content
