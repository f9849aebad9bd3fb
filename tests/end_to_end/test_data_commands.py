"""`stats` and `preview` show what the model is fed."""

import io
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageColor

import cli
from pipeline.geometry import CENTER, rectangle
from pipeline.preview import CAPTION, RECTANGLE, sheet
from pipeline.samples import Samples
from pipeline.stats import Stats
from shards.convert import ConvertOptions, write_dataset
from shards.dataset import Dataset
from tests.support.loaders import loader_of

ROW = 224 + CAPTION + 2
TEN = round((2 * ROW - 2) * (4 * 226 - 2) / (5 * 226 - 2))  # the height of the ten crops


def test_stats_and_preview_show_what_the_model_is_fed(data, tmp_path, run_here):
    shutil.copytree(data, tmp_path / "copy")
    about = json.loads(run_here("stats", tmp_path / "copy", "--json").stdout)
    assert about["samples"] == 96 and about["standard_deviations"] == sorted(about["standard_deviations"], reverse=True)
    assert (tmp_path / "copy" / "stats.npz").read_bytes() == (data / "stats.npz").read_bytes()
    assert "96 images" in run_here("stats", tmp_path / "copy").stdout
    run_here("preview", data, "--out", tmp_path / "grid.png", "--images", 3)
    # Three rows of four under captions, and two of five, made as wide
    assert Image.open(tmp_path / "grid.png").size == (4 * 226 - 2, 3 * ROW - 2 + 20 + CAPTION + TEN)


def test_preview_of_a_set_smaller_than_was_asked_for_has_all_of_it(data):
    shown = sheet(Dataset.load(data), "train", Stats.load(data), images=1000, seed=0)
    assert shown.size[1] == 96 * ROW - 2 + 20 + CAPTION + TEN


def test_preview_of_val_has_the_center_crops_of_images_of_all_classes_and_needs_no_statistics(data, tmp_path):
    copy, out = tmp_path / "copy", tmp_path / "val.png"
    shutil.copytree(data, copy, ignore=shutil.ignore_patterns("stats.npz"))
    done = CliRunner().invoke(cli.main, ["preview", str(copy), "--split", "val", "--out", str(out), "--images", "22"])
    assert done.exit_code == 0, done.output
    pixels = np.asarray(Image.open(out))
    loader = loader_of(Dataset.load(data), "center", batch_size=22, split="val")
    expected = next(loader.epoch(0)).images[:, 0].numpy()
    for number, crop in enumerate(expected):
        x, y = (number % 2) * 452 + 226, number // 2 * ROW + CAPTION
        assert np.array_equal(pixels[y : y + 224, x : x + 224], crop), number
    done = CliRunner().invoke(cli.main, ["preview", str(copy), "--split", "test", "--out", str(out)])
    assert done.exit_code == 1 and "has no test split" in done.output


@pytest.mark.parametrize("side", [None, 256])
def test_the_rectangle_is_what_the_crop_shows(images, data, side, tmp_path):
    dataset = Dataset.load(data)
    if side:
        dataset = write_dataset(images, tmp_path / "set", ConvertOptions(size=side, workers=1))
    loader = loader_of(dataset, batch_size=8, color=False)
    batch, draws = next(loader.epoch(0)), loader.draws(0, 0)
    for i, (shard, sample) in enumerate(loader.order(0)[0].tolist()):
        image = Image.open(io.BytesIO(loader.samples.jpeg((shard, sample))))
        box = rectangle(*image.size, float(draws.y[i]), float(draws.x[i]))
        assert 0 <= box[0] < box[2] <= image.width + 0.5 and 0 <= box[1] < box[3] <= image.height + 0.5
        crop = np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR, box=box)).astype(float)
        crop = crop[:, :: -1 if draws.flip[i] else 1]
        assert abs(crop - batch.images[i].numpy()).mean() < 1, (i, box)


def test_the_image_in_a_preview_has_the_rectangle_on_it(data):
    dataset = Dataset.load(data)
    shown = np.asarray(sheet(dataset, "val", None, images=1, seed=0))[CAPTION : CAPTION + 224, :224]
    rows, columns = np.nonzero((shown == ImageColor.getrgb(RECTANGLE)).all(axis=-1))
    image = Image.open(io.BytesIO(Samples(dataset, "val").jpeg((0, 0))))
    scale = 224 / max(image.size)
    left, top, right, bottom = (side * scale for side in rectangle(*image.size, CENTER, CENTER))
    across, down = ((224 - side * scale) / 2 for side in image.size)
    found = [columns.min() - across, rows.min() - down, columns.max() - across, rows.max() - down]
    assert np.allclose(found, [left + 1, top + 1, right - 2, bottom - 2], atol=2)
