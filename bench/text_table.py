"""The report of a run as text for a terminal."""

from bench.schema import Report


def table(report: Report) -> str:
    """Stages, ratios and what bounds training."""
    machine = report["machine"]
    processor = machine.get("gpu", machine["cpu"])
    lines = [
        f"{processor}, {machine['cores']} cores, {machine['memory_gib']} GiB; {report['data']['name']}",
        f"{'img/s':<18}{'median':>10}{'p10':>10}{'p90':>10}{'of limit':>10}  {'limit':<16}{'CPUs':>6}{'GiB':>6}",
    ]
    for stage in report["stages"]:
        rates = "".join(f"{rate:>10,.0f}" for rate in (stage["img_per_s"], stage["p10"], stage["p90"]))
        used = f"{stage['cpu_use']:>6.1f}{stage['memory_peak_bytes'] / 2**30:>6.1f}"
        lines.append(f"{stage['name']:<18}{rates}{stage['of_limit']:>10.0%}  {stage['limit']:<16}{used}")
    lines += [f"{name:<38}{ratio['ratio']:>8.2f}" for name, ratio in report["ratios"].items()]
    return "\n".join([*lines, f"Bound by: {report['bottleneck']}", report["verdict"]])
