"""`stats` and `preview` show what the model is fed."""

import json
import shutil

from PIL import Image

from pipeline.preview import sheet
from pipeline.stats import Stats
from shards.dataset import Dataset


def test_stats_and_preview_show_what_the_model_is_fed(data, tmp_path, run_cli):
    shutil.copytree(data, tmp_path / "copy")
    about = json.loads(run_cli("stats", tmp_path / "copy", "--json").stdout)
    assert about["samples"] == 96 and about["standard_deviations"] == sorted(about["standard_deviations"], reverse=True)
    assert (tmp_path / "copy" / "stats.npz").read_bytes() == (data / "stats.npz").read_bytes()
    assert "96 images" in run_cli("stats", tmp_path / "copy").stdout
    run_cli("preview", data, "--out", tmp_path / "grid.png", "--pictures", 3)
    # Three rows of four, and two of five
    assert Image.open(tmp_path / "grid.png").size == (5 * 226 - 2, 3 * 240 - 2 + 2 * 240 - 2 + 20)


def test_preview_of_a_set_smaller_than_was_asked_for_has_all_of_it(data):
    assert sheet(Dataset.load(data), Stats.load(data), images=1000, seed=0).size[1] == 96 * 240 - 2 + 2 * 240 - 2 + 20
