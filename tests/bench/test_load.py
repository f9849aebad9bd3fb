"""A measurement sees what other programs use of the cores meanwhile, and says what cannot be trusted."""

import subprocess
import sys
import time

import pytest

from bench.harness import load
from bench.harness.load import OtherPrograms, Others
from bench.harness.machine import cpu_context
from bench.harness.timing import Timed
from bench.summary import Results
from bench.text_table import busy_lines

SPIN = "import time\nend = time.time() + 1.5\nwhile time.time() < end: pass"


def test_time_of_this_process_and_of_its_children_is_not_that_of_others(monkeypatch):
    everything = iter((100.0, 104.0))
    monkeypatch.setattr(load, "used_by_all", lambda: next(everything))
    child = subprocess.Popen([sys.executable, "-c", SPIN])
    before = load.used_here()
    with OtherPrograms(cpu_context()) as programs:
        began = time.perf_counter()
        child.wait()
        own, seconds = load.used_here() - before, time.perf_counter() - began
    assert own > 0.1  # the child's, which has ended since
    assert programs.others.cpus == pytest.approx(min((4.0 - own) / seconds, programs.others.cores), rel=0.25)


def test_what_others_use_is_seen():
    """A program that is no child of this one, but of init."""
    subprocess.run(["setsid", "--fork", sys.executable, "-c", SPIN], check=True)
    with OtherPrograms(cpu_context()) as programs:
        time.sleep(1.0)
    assert programs.others.spoil and programs.others.cpus > 0.2


def results(rates, cpus):
    return Results(stages={"model": Timed(rates, rates, 1.0, None, 0)}, others={"model": Others(cpus, 2)})


@pytest.mark.parametrize(
    "rates, cpus, doubtful",
    [([99.0, 100.0, 101.0], 0.05, False), ([99.0, 100.0, 101.0], 0.5, True), ([30.0, 100.0, 120.0], 0.0, True)],
)
def test_a_measurement_beside_others_or_of_uneven_rates_is_doubtful(rates, cpus, doubtful):
    assert results(rates, cpus).doubtful("model") is doubtful


def test_a_report_keeps_the_load_and_an_older_one_has_none(short_report):
    assert all(row["others_cpus"] >= 0 and row["doubtful"] in (True, False) for row in short_report["stages"])
    assert short_report["load"]["cores"] > 0 and len(short_report["load"]["average"]) == 2
    doubtful = any(row["doubtful"] for row in short_report["stages"])
    assert ("Not to be trusted" in short_report["verdict"]) <= doubtful
    older = {name: value for name, value in short_report.items() if name != "load"}
    assert busy_lines(older) == []
