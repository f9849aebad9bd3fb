"""`figures` draws what the paper's figures 3 and 4 show, of images of the set that is given."""

import io

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageColor

import cli
from inference.figures import MARGIN, RIGHT, Shown, features, guesses, kernels, neighbors, some_images
from pipeline.preview import tiles
from shards.dataset import Dataset

RED = ImageColor.getrgb(RIGHT)


def test_the_command_writes_three_pictures(run, data, tmp_path):
    words = ["figures", "--checkpoint", run, "--data", data, "--out", tmp_path / "drawn", "--device", "cpu"]
    done = CliRunner().invoke(cli.main, [*map(str, words), "--search", "40"])
    assert done.exit_code == 0, done.output
    names = ["conv1.png", "guesses.png", "neighbors.png"]
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        str(tmp_path / "drawn" / name) for name in names
    ]
    for name in names:
        with Image.open(tmp_path / "drawn" / name) as picture:
            assert min(picture.size) > 150 and len(np.unique(np.asarray(picture))) > 50


@pytest.fixture
def shown():
    """Three images that differ in color."""
    return [
        Shown(np.full((256, 256, 3), color, np.uint8), "", tile(color))
        for color in ((200, 0, 0), (0, 200, 0), (0, 0, 9))
    ]


def tile(color):
    file = io.BytesIO()
    Image.new("RGB", (300, 300), color).save(file, "PNG")
    return file.getvalue()


def has(picture, color):
    return (np.asarray(picture) == color).all(axis=-1).any()


def test_features_are_what_fc8_reads(trained, shown):
    found = features(trained, shown)
    assert found.shape == (3, trained.model.fc8.in_features) and (found >= 0).all()
    layer, logits = trained.model.fc8, []
    handle = layer.register_forward_hook(lambda layer, inputs, output: logits.append(output))
    features(trained, shown)
    handle.remove()
    with torch.inference_mode():
        torch.testing.assert_close(layer(found), logits[0])


def test_the_bar_of_the_right_class_alone_is_red(trained, shown):
    right = guesses(trained, [shown[0]._replace(name=trained.classes[0])])
    wrong = guesses(trained, [shown[2]._replace(name="none of them")])
    assert has(right, RED) and not has(wrong, RED)


def test_an_image_of_the_training_set_is_nearest_to_itself_and_all_are_looked_at(trained, data, capsys):
    dataset = Dataset.load(data)
    asked = list(some_images(dataset, "train", list(trained.classes), 2, seed=5))
    drawn = neighbors(trained, dataset, list(trained.classes), asked, search=10_000)
    assert "neighbors: 96/96 img" in capsys.readouterr().err  # three batches
    side = np.asarray(asked[0].patch)
    small = np.asarray(Image.fromarray(side).resize((128, 128), Image.Resampling.BILINEAR))
    pixels = np.asarray(drawn)
    for left in (24, 24 + 140 + 24):  # the image that was asked, and its nearest
        assert np.array_equal(pixels[44 : 44 + 128, left : left + 128], small)


def test_the_towers_kernels_stand_apart(trained):
    """As grids of the same make, tower 1's first."""
    weights = trained.model.conv1.weight.detach().numpy()
    half = len(weights) // 2
    sheet = np.asarray(kernels(trained))
    top = MARGIN + 40 + 40
    for tower in range(2):
        own = weights[tower * half : (tower + 1) * half]
        low, high = own.min(axis=(1, 2, 3), keepdims=True), own.max(axis=(1, 2, 3), keepdims=True)
        images = ((own - low) / (high - low) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
        grid = np.asarray(tiles(images, columns=half, scale=8))
        assert np.array_equal(sheet[top : top + grid.shape[0], MARGIN : MARGIN + grid.shape[1]], grid), tower
        top += grid.shape[0] + MARGIN + 40
