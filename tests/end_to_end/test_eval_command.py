"""`eval` counts every sample once, whatever the batch size and the number of processes."""

import json

import pytest

from trainer import metrics


def test_eval_counts_every_sample_once_in_any_layout(data, unbroken, run_cli, run_here):
    seen = []
    for words in (["--batch-size", 4], ["--batch-size", 16, "--gpus", 2], ["--batch-size", 128]):
        run = run_cli if "--gpus" in words else run_here
        output = run("eval", "--data", data, "--checkpoint", unbroken, "--json", "--device", "cpu", *words).stdout
        seen.append(json.loads(output))
    last = metrics.read(unbroken, "eval")[-1]
    for result in seen:
        assert result["samples"] == 22 and result["step"] == 16
        assert result["top1_error"] == pytest.approx(last["top1_error"])
    ten = run_here("eval", "--data", data, "--checkpoint", unbroken, "--crops", 10, "--device", "cpu").stdout
    assert "22 images, 10 crops: top-1 error" in ten
