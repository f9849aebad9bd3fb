"""The bottleneck, the prediction and the advice follow from the stages' rates alone."""

from pathlib import Path

import pytest

from bench import bottleneck
from bench.compare import read_report

RECORDED = sorted((Path(bottleneck.__file__).parent / "results").glob("throughput-2core*.json"))
RATES = {"read": 9e4, "decode": 1000, "pipeline": 800, "feed": 2e4, "model": 100, "train": 88}


@pytest.mark.parametrize(
    "changed, bound",
    [
        ({}, "model"),
        ({"model": 5000}, "decode"),
        ({"model": 5000, "decode": 4000}, "pipeline"),
        ({"model": 5000, "read": 500, "decode": 450, "pipeline": 501}, "read"),
        ({"read": 50}, "read"),
        ({"feed": 60}, "feed"),
        ({"exchange": 1000}, "model"),
        ({"exchange": 150}, "exchange"),
    ],
)
def test_the_bottleneck_is_the_stage_that_costs_most(changed, bound):
    assert bottleneck.bottleneck({**RATES, **changed}) == bound


def test_shared_cores_add_times_up_and_a_gpu_runs_at_the_slowest_parts_pace():
    assert bottleneck.predicted({**RATES, "feed": 1e9, "pipeline": 100}, shared_cores=True) == pytest.approx(50)
    assert bottleneck.predicted({**RATES, "pipeline": 99}, shared_cores=False) == 99
    assert bottleneck.predicted({**RATES, "read": 7}, shared_cores=True) == 7


def test_the_summary_names_both_bounds_what_would_help_and_the_papers_hours():
    bound = bottleneck.diagnose(RATES, {}, shared_cores=True, cores=2)
    assert "bound by the model at 100 img/s; the next bound is the pipeline at 800; with 4 cores" in bound["verdict"]
    assert bound["would_be"] == [{"change": "4 cores", "img_per_s": pytest.approx(2 * bound["predicted_img_per_s"])}]
    assert bound["paper_hours"] == pytest.approx(90 * 1_281_167 / 88 / 3600) and "five to six days" in bound["verdict"]

    starved = bottleneck.diagnose(
        {**RATES, "model": 3900, "train": 790}, {"256-shards": 3000}, shared_cores=False, cores=16
    )
    assert "bound by the pipeline at 800 img/s; the next bound is the model at 3,900" in starved["verdict"]
    assert [change["change"] for change in starved["would_be"]] == ["78 cores", "256-shards"]
    assert [change["img_per_s"] for change in starved["would_be"]] == [3900, 3000]


def test_a_measurement_that_the_model_does_not_explain_is_called_so():
    diagnosis = bottleneck.diagnose({**RATES, "train": 40}, {}, shared_cores=True, cores=2)
    assert diagnosis["prediction_error"] < -0.1 and "which the model does not explain" in diagnosis["verdict"]
    assert "does not explain" not in bottleneck.diagnose(RATES, {}, shared_cores=True, cores=2)["verdict"]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_training_as_recorded_is_within_a_tenth_of_the_prediction(path):
    report = read_report(path)
    rates = {stage["name"]: stage["img_per_s"] for stage in report["stages"]}
    assert bottleneck.predicted(rates, shared_cores=True) == pytest.approx(rates["train"], rel=0.1)
    assert report["predicted_img_per_s"] == pytest.approx(bottleneck.predicted(rates, shared_cores=True))
    assert abs(report["prediction_error"]) < 0.1 and report["bottleneck"] == bottleneck.bottleneck(rates)


def test_figures_are_recorded():
    assert len(RECORDED) >= 2
