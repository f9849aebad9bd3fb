"""What does local response normalization do, and what does it buy (section 3.3)?"""

from collections.abc import Sequence
from typing import Any

import torch

from pages.plot import Axis, Line, Plot, draw, round_up, standalone
from paper.job import Job
from paper.part_trials import part_trials
from paper.parts import error, error_rows, lines, of_net, spread, summary
from paper.pictures import bars, dots
from paper.trials import BRIGHTNESS, COMPLETE
from trainer.lrn import local_response_norm

PAPER = {"no LRN": {"top1": 1.4, "top5": 1.2}}  # section 3.3
NEIGHBORS = (0.0, 100.0, 300.0)  # activations of the four other kernels of a window
HOW = {"darker": "brightness", "flatter": "contrast"}
WHEN = ("before", "after")
LARGEST = 800.0  # activation that the curve goes to


def trials(job: Job) -> list[dict[str, Any]]:
    return part_trials(job, list(PAPER))


def answer(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Errors, and for each of BRIGHTNESS the mean activation of conv1 before and after normalization, as shares of
    those at full brightness, of darker and of flatter images (`paper.trials`), and the top-1 error of darker images
    with and without it, over seeds."""
    about = summary(trials, PAPER)
    about["brightness"] = [_at(trials, brightness) for brightness in BRIGHTNESS]
    return about


def _at(trials: Sequence[dict[str, Any]], brightness: float) -> dict[str, Any]:
    row: dict[str, Any] = {"brightness": brightness}
    for how in HOW:
        for when in WHEN:
            row[f"{how} {when}"] = spread([_activation(t, how, when, brightness) for t in of_net(trials, COMPLETE)])
    for net in (COMPLETE, *PAPER):
        row[net] = spread([error(trial, "top1", brightness) for trial in of_net(trials, net)])
    return row


def _activation(trial: dict[str, Any], how: str, when: str, brightness: float) -> float:
    rows = {row["brightness"]: float(row[how][when]) for row in trial["by_brightness"]}
    return rows[brightness] / rows[1.0]


def text(about: dict[str, Any]) -> list[str]:
    """An answer for people."""
    rows = lines(about)
    for row in about["brightness"][:-1]:
        share = f"{row['brightness']:.0%}"
        for how, what in HOW.items():
            before, after = (f"{row[f'{how} {when}']['mean']:.0%}" for when in WHEN)
            rows.append(f"at {share} of the {what} conv1's mean activation is {before} before LRN, {after} after it")
        errors = ", ".join(f"{net} {row[net]['mean']:.1f} %" for net in (COMPLETE, *PAPER))
        rows.append(f"at {share} of the brightness the top-1 error is: {errors}")
    return rows


def curve(neighbors: float, points: int = 100) -> list[tuple[float, float]]:
    """(a kernel's activation, the same normalized) beside four kernels with this activation, by the net's own
    function."""
    window = torch.full((1, 5, 1, points + 1), neighbors, dtype=torch.float64)
    window[0, 2, 0] = torch.linspace(0, LARGEST, points + 1, dtype=torch.float64)
    normalized = local_response_norm(window)[0, 2, 0]
    return list(zip(window[0, 2, 0].tolist(), normalized.tolist(), strict=True))


def pictures(trials: Sequence[dict[str, Any]]) -> dict[str, str]:
    """SVG by name."""
    first, about = of_net(trials, COMPLETE)[0], answer(trials)
    title = f"The kernels' activations at one place of an image, before and after LRN (seed {first['seed']})"
    return {
        "lrn": dots(error_rows(trials, [COMPLETE, *PAPER]), "Top-1 error, a dot for each seed", "%"),
        "lrn-curve": _curve_plot(),
        "lrn-place": bars(first["place"]["before"], first["place"]["after"], 2, title),
        "lrn-brightness": _brightness_plot(about),
        "lrn-brightness-error": _error_plot(about),
    }


def _curve_plot() -> str:
    curves = [Line(f"four neighbors at {neighbors:g}", curve(neighbors), n) for n, neighbors in enumerate(NEIGHBORS)]
    top = round_up(max(y for line in curves for _, y in line.points))
    axis = Axis("normalized", top, "{:g}".format)
    title = "An activation and what normalization makes of it, by its neighbors"
    return standalone(draw(Plot(title, curves, axis, LARGEST, x_title="activation of a kernel", width=640)))


def _brightness_plot(about: dict[str, Any]) -> str:
    names = [(f"{what}, {when} LRN", f"{how} {when}") for how, what in HOW.items() for when in WHEN]
    series = [
        Line(name, [(row["brightness"], row[key]["mean"]) for row in about["brightness"]], color)
        for color, (name, key) in enumerate(names)
    ]
    axis = Axis(
        "of the unchanged image's", round_up(max(y for line in series for _, y in line.points)), "{:.0%}".format
    )
    title = "The mean activation of conv1 by the image's brightness or contrast"
    return standalone(
        draw(Plot(title, series, axis, 1.0, x_title="times the image's brightness, or its contrast", width=640))
    )


def _error_plot(about: dict[str, Any]) -> str:
    series = [
        Line(net, [(row["brightness"], row[net]["mean"]) for row in about["brightness"]], color)
        for color, net in enumerate((COMPLETE, *PAPER))
    ]
    axis = Axis("top-1 error, %", 100, "{:g}".format)
    title = "The top-1 error by the test images' brightness, with and without normalization"
    return standalone(draw(Plot(title, series, axis, 1.0, x_title="brightness of the image", width=640)))
