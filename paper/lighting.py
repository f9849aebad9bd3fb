"""What does the augmentation of colors along their principal components buy (section 4.1)?"""

from collections.abc import Sequence
from typing import Any

from paper.job import Job
from paper.part_trials import part_trials
from paper.parts import error_rows, lines, summary
from paper.pictures import dots
from paper.trials import COMPLETE

PAPER = {"no lighting": {"top1": 1.0}}  # section 4.1: "over 1%"; of the top-5 error it says nothing


def trials(job: Job) -> list[dict[str, Any]]:
    return part_trials(job, list(PAPER))


def answer(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return summary(trials, PAPER)


def text(about: dict[str, Any]) -> list[str]:
    return lines(about)


def pictures(trials: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {"lighting": dots(error_rows(trials, [COMPLETE, *PAPER]), "Top-1 error, a dot for each seed", "%")}
