"""What does overlap in pooling buy (section 3.4)? Windows of 3 with stride 2 beside windows of 2 with stride 2."""

from collections.abc import Sequence
from typing import Any

from paper.job import Job
from paper.part_trials import part_trials
from paper.parts import error_rows, lines, summary
from paper.pictures import dots
from paper.trials import COMPLETE

PAPER = {"pooling 2/2": {"top1": 0.4, "top5": 0.3}}  # section 3.4


def trials(job: Job) -> list[dict[str, Any]]:
    return part_trials(job, list(PAPER))


def answer(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return summary(trials, PAPER)


def text(about: dict[str, Any]) -> list[str]:
    return lines(about)


def pictures(trials: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {"pooling": dots(error_rows(trials, [COMPLETE, *PAPER]), "Top-1 error, a dot for each seed", "%")}
