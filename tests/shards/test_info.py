"""`info` shows what a data set holds, as a table and as JSON."""

import json

import numpy as np


def test_info_is_a_table(data, run_cli):
    table = run_cli("info", data).stdout
    lines = {line[:31].strip(): line[31:].split() for line in table.splitlines()[1:]}
    assert lines["samples"] == ["96", "22"] and "4 classes from folders" in table.splitlines()[0]
    about = json.loads(run_cli("info", data, "--json").stdout)
    train = about["splits"]["train"]
    assert about["schema"] == 1 and train["samples_per_class"] == {
        "min": 24,
        "median": 24,
        "max": 24,
        "empty_classes": 0,
    }
    assert 256 <= train["shorter_side_percentiles"]["0"] <= train["shorter_side_percentiles"]["100"] <= 320
    assert np.isclose(train["bytes_per_sample"] * 96, train["bytes"], rtol=1e-3)
