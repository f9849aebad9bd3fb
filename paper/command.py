"""`study NAME`: runs what is missing of a study, and writes its answer as text, JSON and pictures."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from bench.harness.host import describe_host
from bench.harness.record import heading, write_report
from paper import images
from paper.job import Job
from paper.registry import STUDIES
from shards.atomic import atomic_write, locked, make_output_folder
from shards.errors import InputError
from shards.wording import counted


class Study(Protocol):
    """A study's module. trials: runs its cells, and returns what they found; answer: what follows, as JSON; text: that
    in lines; pictures: SVG by name, without its ending."""

    PAPER: dict[str, Any]  # its figures

    def trials(self, job: Job) -> list[dict[str, Any]]: ...
    def answer(self, trials: Sequence[dict[str, Any]]) -> dict[str, Any]: ...
    def text(self, about: dict[str, Any]) -> list[str]: ...
    def pictures(self, trials: Sequence[dict[str, Any]]) -> dict[str, str]: ...


def module_of(name: str) -> Study:
    return cast(Study, importlib.import_module(STUDIES[name].module))


def choose_device(device: str) -> torch.device:
    """The device of a `--device`. (That of `trainer.launch` is of runs, whose import brings DALI, which no study
    needs.)"""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda, but torch finds no CUDA device here: use --device cpu or auto")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def run(name: str, data: Path | None, out: Path, seeds: int, device: str, full: bool) -> dict[str, Any]:
    """Runs a study and writes OUT/NAME.json and its pictures. Returns what the JSON holds: a machine's description, the
    options, the answer, and its text."""
    about = STUDIES[name]
    if about.images and data is None:
        raise InputError(f"study {name} needs images: --data with a set such as {about.images}")
    if not about.images and data is not None:
        raise InputError(f"study {name} needs no images: leave --data out")
    if data is not None and not out.exists():  # so that a refused set leaves no folder
        images.check(data)
    make_output_folder(out)
    job = Job(data, out, seeds, choose_device(device), full)
    with locked(out):
        study = module_of(name)
        trials = study.trials(job)
        answer = study.answer(trials)
        report = {
            **heading(describe_host(job.device)),
            "study": name,
            "question": about.question,
            "data": None if data is None else {"name": data.name, "digest": job.digest},
            "seeds": seeds,
            "full": full,
            "paper": study.PAPER,
            "answer": answer,
            "text": study.text(answer),
        }
        write_report(out / f"{name}.json", report)
        for picture, drawn in study.pictures(trials).items():
            with atomic_write(out / f"{picture}.svg") as file:
                file.write(drawn.encode())
    return report


def written(report: dict[str, Any], out: Path) -> str:
    """The answer for people."""
    pictures = sorted(path.name for path in out.glob(f"{report['study']}*.svg"))
    head = f"{report['question']} {counted(report['seeds'], 'seed')}."
    return "\n".join([head, *report["text"], f"Written to {out}: {report['study']}.json, {', '.join(pictures)}"])
