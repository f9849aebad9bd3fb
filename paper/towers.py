"""Do two towers change the result (section 3.2), and do their kernels specialize in color and gray (figure 3)?"""

from collections.abc import Sequence
from typing import Any

from paper.job import Job
from paper.part_trials import part_trials
from paper.parts import error_rows, lines, of_net, summary
from paper.pictures import Row, dots, kernel_sheet
from paper.trials import COMPLETE, kernel_images

# Section 3.2: two towers have so many points less than a net of half the kernels in each convolution but the last on
# one GPU; of the ungrouped net it says nothing
PAPER: dict[str, dict[str, float]] = {"one tower": {"top1": 1.7, "top5": 1.2}, "ungrouped": {}}


def trials(job: Job) -> list[dict[str, Any]]:
    return part_trials(job, list(PAPER))


def answer(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Errors, and the specialization of both towers and, to compare, of the ungrouped net's halves, by seed."""
    about = summary(trials, PAPER)
    about["specialization"] = {
        net: [trial["specialization"] for trial in of_net(trials, net)] for net in (COMPLETE, "ungrouped")
    }
    return about


def text(about: dict[str, Any]) -> list[str]:
    """An answer for people."""
    rows = lines(about)
    for net, seeds in about["specialization"].items():
        what = "towers" if net == COMPLETE else "halves, which nothing tells apart"
        for number, found in enumerate(seeds):
            one, other = found["chroma"]
            chance = f"random halves {found['by_chance']:.2f}, {found['p']:.1%} of them as far"
            apart = f"{one:.2f} and {other:.2f}, {found['difference']:.2f} apart ({chance})"
            rows.append(f"{net}, seed {number}: chroma of its {what} {apart}")
    return rows


def pictures(trials: Sequence[dict[str, Any]]) -> dict[str, str]:
    """SVG by name."""
    drawn = {"towers": dots(error_rows(trials, [COMPLETE, *PAPER]), "Top-1 error, a dot for each seed", "%")}
    rows = []
    for net in (COMPLETE, "ungrouped"):
        differences = [trial["specialization"]["difference"] for trial in of_net(trials, net)]
        chance = [trial["specialization"]["by_chance"] for trial in of_net(trials, net)]
        rows += [Row(f"{net}: halves", differences), Row("by chance", chance)]
    title = "How far the chroma of the kernels' two halves is apart, a dot for each seed"
    drawn["towers-chroma"] = dots(rows, title, "difference of the mean share of color")
    first = of_net(trials, COMPLETE)[0]
    kernels, chroma = kernel_images(first), first["specialization"]["chroma"]
    half = len(kernels) // 2
    towers = [
        (f"Tower {number + 1}: mean chroma {share:.2f}", part)
        for number, (share, part) in enumerate(zip(chroma, (kernels[:half], kernels[half:]), strict=True))
    ]
    drawn["towers-kernels"] = kernel_sheet(towers, f"conv1 of the complete net, seed {first['seed']}")
    return drawn
