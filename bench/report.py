"""`throughput-bench --report`: the figures as one page of HTML that needs nothing else, for phones and in the dark."""

from html import escape
from typing import Any

from bench.schema import Axis, LimitRow, Report, StageRow
from bench.text_table import busy_lines
from pages import template
from pages.plot import round_up
from pages.template import bar, figure, table, text
from shards.wording import counted

AXIS_TITLES = {
    "threads": "threads of the data path",
    "ranks": "ranks (processes, a device each)",
    "batch": "images in a batch",
    "pictures": "pixels of a stored image's side",
}
# By a ratio's name in the JSON, or by what it ends with
MEANINGS = {
    "decode / raw libjpeg-turbo": "DALI's decoding over libjpeg-turbo's alone on as many cores: 1 is no overhead",
    "pipeline / raw libjpeg-turbo": "the training pipeline over the same; above 1 is possible: it decodes crops alone",
    "read / cat": "DALI's reading over plain reading; above 1 is possible, for files are mapped and not copied",
    "train / min(pipeline, model)": "training over its slower part alone: 1 if neither slowed the other",
    "train / predicted": "training over what its parts let expect: 1 if they explain it",
    "model FLOP/s / matmul FLOP/s": "the model's arithmetic over plain matrix products': 1 if it did nothing else",
    "CPU-seconds of 1,000 pictures / raw": "the data path's CPU time for an image over libjpeg-turbo's",
    "LRN tax": "a step's rate over that of the same model without normalization: 1 if that cost nothing",
    "resume: first 100 steps / steady state": "a resumed run's first 100 steps over training at its steady rate",
    "one at equal global batch": "the step of all devices over that of one, on the same batch",
    "256-shards / originals": "the data path on images stored at 256 over that on the originals",
    "split decode / decoding twice": "each rank decoding its part over each decoding all",
}


def meaning_of(ratio: str) -> str:
    """What a ratio is of, in words."""
    return next((meaning for name, meaning in MEANINGS.items() if ratio.endswith(name)), "")


def page(report: Report) -> str:
    """The page for what `throughput-bench --json` writes."""
    machine = report["machine"]
    processor = machine.get("gpu", machine["cpu"])
    sections = [
        f"<h1>What bounds training: {escape(report['bottleneck'])}</h1>",
        text(
            f"{processor}, {counted(machine['cores'], 'core')}, {machine['memory_gib']} GiB; "
            f"{report['data']['name']}, batch {report['batch_size']}, width {report['width']:g}",
            "quiet",
        ),
        *(text(line, "busy") for line in busy_lines(report)),
        *map(text, report["verdict"].splitlines()),
        "<h2>Stages, and how much of its limit each reaches</h2>",
        text(
            "A bar as long as its track reaches its limit. One of the other color is beyond it, and a line marks where "
            "the limit lies.",
            "quiet",
        ),
        *(_stage(stage, report["limits"]) for stage in report["stages"]),
        *_peers(report["peers"]),
        *_scaling(report.get("scaling", [])),
        "<h2>Limits of this machine</h2>",
        table(
            (name, limit["what"], _quantity(limit["rate"], limit["unit"])) for name, limit in report["limits"].items()
        ),
        "<h2>Ratios</h2>",
        table(
            (name, meaning_of(name), f"{about['ratio']:.2f}{' ?' * bool(about.get('doubtful'))}")
            for name, about in report["ratios"].items()
        ),
        "<h2>Machine and versions</h2>",
        table((name, str(value)) for name, value in machine.items()),
        f'<p class="quiet">Made by <code>{escape(report["command"])}</code></p>',
    ]
    return template.page(f"throughput-bench: bound by {report['bottleneck']}", sections)


def _stage(stage: StageRow, limits: dict[str, LimitRow]) -> str:
    others = {"predicted": "the prediction from its parts"}
    name = stage["limit"]
    limit = limits[name]["what"] if name in limits else others.get(name, f"{name} alone")
    note = (
        f"{stage['of_limit']:.0%} of {stage['limit_img_per_s']:,.0f} img/s: {limit}. "
        f"p10 {stage['p10']:,.0f}, p90 {stage['p90']:,.0f}; {stage['cpu_use']:.1f} CPUs, "
        f"{stage['memory_peak_bytes'] / 2**30:.1f} GiB"
    )
    speed = f"{stage['img_per_s']:,.0f} img/s{' ?' * bool(stage.get('doubtful'))}"
    return bar(stage["name"], speed, stage["of_limit"], "", note)


def _peers(peers: list[dict[str, Any]]) -> list[str]:
    if not peers:
        return []
    fastest = max(peer["img_per_s"] for peer in peers if "img_per_s" in peer)
    rows = ["<h2>Other loaders, on the same images and cores</h2>"]
    for number, peer in enumerate(peers):
        if "absent" not in peer:
            note = f"ours / theirs {peer['ratio']:.2f}; version {peer['version']}" if number else ""
            speed, kind = f"{peer['img_per_s']:,.0f} img/s", "" if number else "ours"
            rows.append(bar(peer["name"], speed, peer["img_per_s"] / fastest, kind, note))
    absent = [f"{peer['name']} ({peer['absent']})" for peer in peers if "absent" in peer]
    return [*rows, text(f"Not measured: {'; '.join(absent)}.", "quiet")] if absent else rows


def _scaling(axes: list[Axis]) -> list[str]:
    if not axes:
        return []
    return ["<h2>Scaling</h2>", '<div class="plots">', *map(_plot, axes), "</div>"]


def _plot(axis: Axis, width: int = 320, height: int = 220) -> str:
    """Rates over one axis, from 0, the spread as bars; its values stand at equal distances."""
    points = axis["points"]
    left, right, top, bottom = 66, width - 14, 12, height - 50
    most = round_up(max(point["p90"] for point in points))
    apart = (right - left) / max(1, len(points) - 1)

    def y(rate: float) -> float:
        return bottom - (bottom - top) * rate / most

    title = AXIS_TITLES[axis["axis"]]
    marks = [
        f'<text x="{(left + right) / 2}" y="{height - 10}" text-anchor="middle">{title}</text>',
        f'<text x="14" y="{(top + bottom) / 2}" text-anchor="middle" transform="rotate(-90 14 {(top + bottom) / 2})">'
        "images a second</text>",
    ]
    for share in (0, 0.5, 1):
        at = y(most * share)
        marks.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        marks.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{most * share:,.0f}</text>')
    line = []
    for number, point in enumerate(points):
        x = left + apart * number if len(points) > 1 else (left + right) / 2
        anchor = {0: "start", len(points) - 1: "end"}.get(number, "middle") if len(points) > 1 else "middle"
        line.append(f"{x:.1f},{y(point['img_per_s']):.1f}")
        marks.append(
            f'<line class="spread" x1="{x:.1f}" x2="{x:.1f}" y1="{y(point["p10"]):.1f}" y2="{y(point["p90"]):.1f}"/>'
        )
        marks.append(f'<circle cx="{x:.1f}" cy="{y(point["img_per_s"]):.1f}" r="3.5"/>')
        marks.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="{anchor}">{escape(str(point["x"]))}</text>')
    drawn = f'<polyline class="rate" points="{" ".join(line)}"/>' + "".join(marks)
    caption = f"img/s by {axis['axis']}: {axis['what']}"
    size = f'viewBox="0 0 {width} {height}"'
    return figure(f'<svg {size} role="img" aria-label="{escape(caption)}">{drawn}</svg>', caption)


def _quantity(rate: float, unit: str) -> str:
    if unit == "pictures":
        return f"{rate:,.0f} img/s"
    return f"{rate / 1e9:,.1f} G{'B' if unit == 'bytes' else unit}/s"
