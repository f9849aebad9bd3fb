"""The page of one run, or of several beside one another: curves, speed, answers, configuration, data."""

import shlex
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from typing import Any

from PIL import Image

from pages import template
from pages.plot import draw
from pages.template import bar, figure, folded, grid, image, table, text
from report import curves
from report.answers import SPLIT, Answers, Guess
from report.data import bad_section, data_section
from report.runs import Run
from shards.wording import counted
from trainer import metrics
from trainer.config import OPTIONS, default_of, default_text, flag_of
from trainer.confusions import LISTED

ABSENT = "none"


def page(runs: Sequence[Run], answers: Sequence[Answers]) -> str:
    """The page."""
    both = list(zip(runs, answers, strict=True))
    one = runs[0]
    title = f"{one.name}: {_reached(one)}" if len(runs) == 1 else f"{len(runs)} runs of AlexNet"
    sections = [
        f"<h1>{escape(title)}</h1>",
        *_missing(both),
        table(_results(both), ["", *(run.name for run in runs)] if len(runs) > 1 else ()),
        *_compared(runs),
        "<h2>Learning and speed</h2>",
        _beside(runs, (_curves(run, runs) for run in runs)),
        *_per_run("The hardest classes and the commonest confusions", runs, map(_confusions, answers)),
        *_per_run("The first layer's kernels", runs, map(_kernels, answers)),
        *_per_run(f"Guesses at images of {SPLIT}", runs, map(_guesses, answers)),
        "<h2>Configuration</h2>",
        *_configuration(runs),
        "<h2>The data set</h2>",
        *data_section(both),
        "<h2>Bad samples</h2>",
        *bad_section(both),
        f'<p class="quiet">Made by <code>{escape(_command(runs))}</code></p>',
    ]
    return template.page(title, sections, columns=len(runs))


def _reached(run: Run) -> str:
    last = run.last
    return metrics.error_text(last) if last else f"loss {run.trained[-1]['loss']:#.5g}"


def _command(runs: Sequence[Run]) -> str:
    return f"python cli.py report {shlex.join(run.name for run in runs)} --out FILE.html"


def _missing(both: Sequence[tuple[Run, Answers]]) -> Iterator[str]:
    for run, answers in both:
        for line in answers.missing:
            yield text(f"{run.name}: {line}" if len(both) > 1 else line, "busy")


def _results(both: Sequence[tuple[Run, Answers]]) -> list[list[str]]:
    """What was reached: a row a fact, a column a run."""

    def errors(line: dict[str, Any] | None) -> str:
        return metrics.error_text(line, digits=2) if line else ABSENT

    def best(run: Run) -> str:
        found = metrics.best(run.evaluated)
        return f"{errors(found)} after step {found['step']:,}, epoch {found['epoch'] + 1}" if found else ABSENT

    def ten(run: Run) -> str:
        return errors(next((line for line in reversed(run.evaluated) if line["crops"] == 10), None))

    def median(run: Run, name: str, written: Callable[[float], str]) -> str:
        values = [line[name] for line in run.trained if line[name] is not None]
        return written(statistics.median(values)) if values else ABSENT

    facts: list[tuple[str, Callable[[Run], str]]] = [
        (f"newest errors on {SPLIT}", lambda run: errors(run.last)),
        ("by ten crops", ten),
        ("best", best),
        ("loss of the last step", lambda run: f"{run.trained[-1]['loss']:#.5g}"),
        ("steps", lambda run: f"{run.trained[-1]['step']:,}"),
        ("epochs begun", lambda run: f"{run.trained[-1]['epoch'] + 1:,}"),
        ("images a second, median", lambda run: median(run, "img_per_s", lambda rate: f"{rate:,.0f}")),
        ("waiting for data, median", lambda run: median(run, "data_wait", lambda share: f"{share:.1%}")),
    ]
    rows = [[name, *(fact(run) for run, _ in both)] for name, fact in facts]
    files = [answers.file.name if answers.file else ABSENT for _, answers in both]
    return [*rows, ["checkpoint shown here", *files]]


def _compared(runs: Sequence[Run]) -> list[str]:
    if len(runs) == 1:
        return []
    return ["<h2>The runs together</h2>", grid(figure(draw(plot), plot.what) for plot in curves.compared(runs))]


def _beside(runs: Sequence[Run], parts: Iterable[str]) -> str:
    """A part for each run, beside one another, under the run's name where there are several."""
    if len(runs) == 1:
        return "".join(parts)
    return grid(f"<h3>{escape(run.name)}</h3>{part}" for run, part in zip(runs, parts, strict=True))


def _per_run(title: str, runs: Sequence[Run], parts: Iterable[str]) -> list[str]:
    """A section; what a run lacks for it is said on top of the page, and here once more in a word."""
    parts = [part or text("Missing: see the top of the page.", "quiet") for part in parts]
    return [f"<h2>{escape(title)}</h2>", _beside(runs, parts)]


def _curves(run: Run, beside: Sequence[Run]) -> str:
    learning, speed = curves.learning(run, beside), curves.speed(run, beside)
    captions = [
        "Errors by the center crop, at the left; the loss at the right. Broken lines: the learning rate drops.",
        "The share of the time in which training waited for data, at the left; images a second at the right.",
    ]
    plots = [figure(draw(plot), caption) for plot, caption in zip((learning, speed), captions, strict=True)]
    return (grid(plots) if len(beside) == 1 else "".join(plots)) + _evaluations(run)


def _evaluations(run: Run) -> str:
    if not run.evaluated:
        return text(f"Nothing was evaluated: no {SPLIT} split, or no evaluation was due yet.", "quiet")
    heads = ["step", "epoch", "crops", "images", "errors"]
    rows = [
        [*(f"{line[name]:,}" for name in ("step", "epoch", "crops", "samples")), metrics.error_text(line, digits=2)]
        for line in run.evaluated
    ]
    return folded(f"{counted(rows, 'evaluation')} on {SPLIT}", table(rows, heads))


def _confusions(answers: Answers) -> str:
    if not answers.measured:
        return ""
    confusions, result = answers.measured.confusions, answers.measured.result
    hardest = [
        bar(confusions.names[number], f"{error:.1%} of {images:,}", error, "beyond")
        for number, images, error in confusions.errors()[:LISTED]
    ]
    mistakes = confusions.mistakes()[:LISTED]
    most = max((times for _, _, times in mistakes), default=1)
    taken = [
        bar(f"{confusions.names[one]} taken for {confusions.names[other]}", f"{times:,} x", times / most)
        for one, other, times in mistakes
    ]
    note = f"{metrics.error_text(result, digits=2)} of {counted(result['samples'], 'image')}, by the center crop."
    return text(note, "quiet") + grid(
        [
            "<h3>Hardest classes, top-1 error</h3>" + "".join(hardest),
            "<h3>Commonest confusions</h3>" + ("".join(taken) or text("No image was taken for another class.")),
        ]
    )


def _kernels(answers: Answers) -> str:
    return "".join(figure(image(grid, caption, kind="pixels"), caption) for caption, grid in answers.kernels)


def _guesses(answers: Answers) -> str:
    if not answers.guesses:
        return ""
    note = "Softmax outputs, averaged over the ten test crops. The right class's bar is green."
    return text(note, "quiet") + grid((_guess(guess, answers.words) for guess in answers.guesses), "images")


def _guess(guess: Guess, words: dict[str, str]) -> str:
    name = words.get(guess.image.name, guess.image.name)
    picture = image(Image.fromarray(guess.image.patch), name, "JPEG")
    bars = [
        bar(answer.words or answer.name, f"{answer.probability:.0%}", answer.probability, kind)
        for answer in guess.answers
        for kind in ["ours" if answer.name == guess.image.name else ""]
    ]
    return f"{picture}<h3>{escape(name)}</h3>{''.join(bars)}"


def _configuration(runs: Sequence[Run]) -> Iterator[str]:
    """The options that are not by default, or in which the runs differ; all others, folded away."""
    values = {
        name: [run.config.recorded().get(name) for run in runs] for name, about in OPTIONS.items() if about.recorded
    }
    changed = {name for name, given in values.items() if given != [_recorded_default(name)] * len(runs)}
    heads = ["option", *(run.name if len(runs) > 1 else "this run" for run in runs), "default"]

    def row(name: str) -> list[str]:
        differ = " (differs)" if any(value != values[name][0] for value in values[name]) else ""
        return [flag_of(name).partition("/")[0] + differ, *map(_written, values[name]), default_text(name)]

    yield table(map(row, sorted(changed, key=list(values).index)), heads)
    yield folded(
        "All other options are at their defaults", table(map(row, (n for n in values if n not in changed)), heads)
    )
    versions = [" ".join(f"{name} {value}" for name, value in run.record.get("versions", {}).items()) for run in runs]
    yield text("Versions: " + "; ".join(dict.fromkeys(versions)), "quiet")


def _recorded_default(name: str) -> Any:
    default = default_of(name)
    return list(default) if isinstance(default, tuple) else default


def _written(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
