"""`throughput-bench --compare`: two runs' JSON files side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from bench.schema import SCHEMA, Report, StageRow
from bench.text_table import mark
from shards.errors import InputError, reason

SETTINGS = ("batch_size", "width", "cold", "decoding", "parallel", "precision", "compile", "cuda_graphs")


class Comparison(TypedDict):
    """A stage's rates, img/s, in two runs: `ratio` is b / a."""

    name: str
    a: float
    b: float
    ratio: float
    differs: bool
    doubtful: bool


def compare(first: Path, second: Path) -> str:
    """Each stage's rates in both runs, their ratio, and whether they differ by more than noise. Raises InputError for a
    file that `throughput-bench --json` did not write."""
    one, two = (read_report(path) for path in (first, second))
    lines = [f"A: {first}: {one['data']['name']}", f"B: {second}: {two['data']['name']}"]
    a, b = conditions(one), conditions(two)
    # An option that a file is too old for was off
    differing = [f"{key}: {a[key]} in A, {b[key]} in B" for key in a if (a[key] or None) != (b[key] or None)]
    lines += differing
    if not [line for line in differing if not line.startswith("commit: ")]:
        lines.append("The same machine, data and settings.")
    lines.append(f"{'img/s':<18}{'A':>10}{'B':>10}{'B / A':>8}  beyond the spread")
    compared = compare_stages(one["stages"], two["stages"])
    for row in compared:
        rates = f"{row['a']:>10,.0f}{row['b']:>10,.0f}{row['ratio']:>8.2f}"
        lines.append(f"{row['name']:<18}{rates}  {'yes' if row['differs'] else 'no'}{mark(row)}")
    if any(row["doubtful"] for row in compared):
        lines.append("?: measured on a busy machine, and not to be trusted")
    lines.append(f"Bound by: {one['bottleneck']} in A, {two['bottleneck']} in B")
    return "\n".join(lines)


def conditions(report: Report) -> dict[str, Any]:
    """What a run's figures depend on, by name."""
    machine = dict(report.get("machine", {}))
    commit = machine.pop("commit", None)
    return {"commit": commit, "machine": machine, **{key: report.get(key) for key in ("data", *SETTINGS)}}


def compare_stages(first: Sequence[StageRow], second: Sequence[StageRow]) -> list[Comparison]:
    """Each stage that both runs have. They differ when their 10th to 90th percentiles do not overlap."""
    others = {stage["name"]: stage for stage in second}
    rows: list[Comparison] = []
    for a in first:
        if b := others.get(a["name"]):
            one, two = a["img_per_s"], b["img_per_s"]
            differs = a["p90"] < b["p10"] or b["p90"] < a["p10"]
            doubtful = bool(a.get("doubtful") or b.get("doubtful"))  # older records do not say
            rows.append(
                {"name": a["name"], "a": one, "b": two, "ratio": two / one, "differs": differs, "doubtful": doubtful}
            )
    return rows


def read_report(path: Path) -> Report:
    """A run's JSON. Raises InputError for another file, or one of a schema that this version does not know."""
    remedy = "give the file that `throughput-bench --json` wrote"
    try:
        report: Report = json.loads(path.read_text())
        schema = report["schema"]
        if schema == SCHEMA:
            compare_stages(report["stages"], report["stages"])
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): {remedy}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not hold a run's figures ({reason(error)}): {remedy}") from None
    if schema != SCHEMA:
        raise InputError(f"{path} has schema {schema}, and this version reads schema {SCHEMA}: measure again")
    return report
