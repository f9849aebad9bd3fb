"""A run's lines over its steps: errors and loss, the wait for data and the rate; and several runs in one plot."""

import math
from collections.abc import Sequence

from pages.plot import Axis, Line, Mark, Plot, round_up
from report.runs import Run
from trainer import metrics

WINDOW = 9  # logged losses in a mean
STEPS = "updates of the weights"
PERCENT = Axis("error", 1.0, lambda share: f"{share:.0%}")

Points = list[tuple[float, float]]


def smooth(values: Sequence[float]) -> list[float]:
    """The mean of each value and its neighbors, fewer at the ends."""
    around = [values[max(0, i - WINDOW // 2) : i + WINDOW // 2 + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in around]


def losses(run: Run) -> Points:
    """The training loss, smoothed, where it is a number."""
    lines = [line for line in run.trained if math.isfinite(line["loss"])]
    return list(zip((line["step"] for line in lines), smooth([line["loss"] for line in lines]), strict=True))


def errors(run: Run, name: str) -> Points:
    """An error of the center crop, after each evaluation. Args: name: top1_error or top5_error."""
    lines = [line for line in run.evaluated if line["crops"] == 1 and line[name] is not None]
    return [(line["step"], line[name]) for line in lines]


def end(runs: Sequence[Run]) -> float:
    """The last step that any of them has logged."""
    return max(float(run.trained[-1]["step"]) for run in runs)


def loss_axis(runs: Sequence[Run]) -> Axis:
    """One for all of them, for they are to be compared."""
    most = max((loss for run in runs for _, loss in losses(run)), default=1.0)
    return Axis("training loss, nats", round_up(most), lambda loss: f"{loss:.3g}")


def learning(run: Run, beside: Sequence[Run], width: int = 400, height: int = 270) -> Plot:
    """Errors on the left axis and the loss on its own, with a mark where the learning rate drops and at the best
    error. Args: beside: the runs, this one among them, whose plots have the same axes."""
    lines = [Line("top-1 error", errors(run, "top1_error"), 0), Line("top-5 error", errors(run, "top5_error"), 2)]
    lines = [line for line in lines if line.points]
    lines.append(Line(f"training loss, mean of {WINDOW} (right)", losses(run), 1, right=True))
    marks = [Mark(step, f"lr {lr:.3g}") for step, lr in metrics.drops(run.trained)]
    if best := metrics.best(run.evaluated):
        marks.append(Mark(best["step"], f"best {best['top1_error']:.1%}", best["top1_error"], 0))
    what = "Validation errors and training loss over the steps"
    return Plot(what, lines, PERCENT, end(beside), loss_axis(beside), marks, STEPS, width, height)


def speed(run: Run, beside: Sequence[Run]) -> Plot:
    """The share of the time that was waited for data, and the rate."""

    def points(run: Run, name: str) -> Points:
        return [(line["step"], line[name]) for line in run.trained if line[name] is not None]

    waits = [wait for one in beside for _, wait in points(one, "data_wait")]
    rates = [rate for one in beside for _, rate in points(one, "img_per_s")]
    left = Axis("share of the time", max(0.1, round_up(max(waits, default=0.0))), lambda share: f"{share * 100:.3g}%")
    right = Axis("images a second", round_up(max(rates, default=1.0)), lambda rate: f"{rate:,.6g}")
    lines = [
        Line("waiting for data", points(run, "data_wait"), 5),
        Line("images a second (right)", points(run, "img_per_s"), 4, right=True),
    ]
    lines = [line for line in lines if line.points]
    return Plot("The share of time that waits for data, and the rate", lines, left, end(beside), right, (), STEPS)


def compared(runs: Sequence[Run]) -> list[Plot]:
    """The validation error and the loss of several runs, a color each."""
    tops = [Line(run.name, errors(run, "top1_error"), number) for number, run in enumerate(runs)]
    sums = [Line(run.name, losses(run), number) for number, run in enumerate(runs)]
    plots = [Plot("Training loss", sums, loss_axis(runs), end(runs), x_title=STEPS)]
    if any(line.points for line in tops):
        axis = PERCENT._replace(title="top-1 error on val")
        plots.insert(0, Plot("Top-1 error", tops, axis, end(runs), x_title=STEPS))
    return plots
