"""Two runs side by side: a difference beyond the spread counts, noise does not, and a file of another kind is named."""

import json
import re

import pytest

from bench.compare import compare
from shards.errors import InputError


def report_file(path, **rates):
    stages = [{"name": name, "img_per_s": rate, "p10": 0.9 * rate, "p90": 1.1 * rate} for name, rate in rates.items()]
    report = {"schema": 3, "stages": stages, "bottleneck": "model", "data": {"name": path.stem}, "width": 1.0}
    path.write_text(json.dumps(report))
    return path


def test_a_difference_beyond_the_spread_is_marked_and_noise_is_not(tmp_path, run_here):
    one = report_file(tmp_path / "one.json", read=100, model=50, train=40)
    two = report_file(tmp_path / "two.json", read=110, model=100)
    text = run_here("throughput-bench", "--compare", one, two).stdout
    assert re.search(r"read +100 +110 +1.10 +no", text) and re.search(r"model +50 +100 +2.00 +yes", text)
    assert "train" not in text and "data: {'name': 'one'} in A, {'name': 'two'} in B" in text


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("{", "does not hold a run's figures"),
        ('{"schema": 1, "stages": []}', "has schema 1, and this version reads schema 3: measure again"),
        ('{"schema": 3, "stages": [{}]}', "does not hold a run's figures"),
    ],
)
def test_a_file_that_cannot_be_compared_is_named(tmp_path, content, complaint):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(InputError, match=complaint):
        compare(path, path)


def test_two_commits_of_the_same_machine_and_settings_are_named_as_that(tmp_path):
    paths = [report_file(tmp_path / f"{name}.json", model=50) for name in ("one", "two")]
    for path, commit in zip(paths, ("abc1234", "def5678"), strict=True):
        report = json.loads(path.read_text())
        path.write_text(json.dumps({**report, "data": {"name": "set"}, "machine": {"cores": 2, "commit": commit}}))
    text = compare(*paths)
    assert "commit: abc1234 in A, def5678 in B\nThe same machine, data and settings." in text


def test_a_rate_of_a_busy_machine_is_marked(tmp_path):
    one, two = (report_file(tmp_path / f"{name}.json", model=50, train=40) for name in ("one", "two"))
    assert "?" not in compare(one, two)
    report = json.loads(two.read_text())
    report["stages"][1]["doubtful"] = True
    two.write_text(json.dumps(report))
    text = compare(one, two)
    assert re.search(r"train .* no  \?\n\?: measured on a busy machine", text) and not re.search(r"model .*\?", text)
