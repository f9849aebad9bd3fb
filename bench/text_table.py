"""The report of a run as text for a terminal."""

from collections.abc import Mapping
from typing import Any

from bench.schema import Report
from shards.wording import counted


def table(report: Report) -> str:
    """Stages, ratios and what bounds training."""
    machine = report["machine"]
    processor = machine.get("gpu", machine["cpu"])
    lines = [
        *busy_lines(report),
        f"{processor}, {counted(machine['cores'], 'core')}, {machine['memory_gib']} GiB; {report['data']['name']}",
        f"{'img/s':<18}{'median':>10}{'p10':>10}{'p90':>10}{'of limit':>10}  {'limit':<16}{'CPUs':>6}{'GiB':>6}",
    ]
    for stage in report["stages"]:
        rates = "".join(f"{rate:>10,.0f}" for rate in (stage["img_per_s"], stage["p10"], stage["p90"]))
        used = f"{stage['cpu_use']:>6.1f}{stage['memory_peak_bytes'] / 2**30:>6.1f}"
        lines.append(f"{stage['name']:<18}{rates}{stage['of_limit']:>10.0%}  {stage['limit']:<16}{used}{mark(stage)}")
    lines += [f"{name:<38}{ratio['ratio']:>8.2f}{mark(ratio)}" for name, ratio in report["ratios"].items()]
    return "\n".join([*lines, f"Bound by: {report['bottleneck']}", report["verdict"]])


def mark(row: Mapping[str, object]) -> str:
    """The mark of a row that is not to be trusted."""
    return "  ?" * bool(row.get("doubtful"))


def busy_lines(report: Report) -> list[str]:
    """What the reader has to know before the figures; empty where nothing is in doubt, and for older records."""
    rows: list[Mapping[str, Any]] = [*report["stages"], *report["limits"].values(), *report["ratios"].values()]
    doubtful, load = sum(bool(row.get("doubtful")) for row in rows), report.get("load")
    if not load or not doubtful:
        return []
    began, ended = load["average"]
    return [
        f"BUSY MACHINE: other programs used {load['stages']:.1f} of {load['cores']} cores in the mean (load average "
        f"{began:g} at the beginning, {ended:g} at the end).",
        f"{doubtful} of {len(rows)} figures are marked with ? below: other programs took part of the cores meanwhile, "
        "or the rate varied by more than half within the measurement. Measure again on an idle machine.",
    ]
