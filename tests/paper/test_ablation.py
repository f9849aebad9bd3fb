"""The training that the studies of parts share: its input is the data path's, and it is repeatable."""

import numpy as np
import pytest
import torch
from PIL import Image

from paper import ablation
from paper.ablation import SMALL, Images, Input, crop, epoch_draws, errors, image_stats, train
from pipeline.order import Augmentation, draw
from pipeline.preprocess import Preprocess
from shards.errors import InputError
from shards.images import scaled_square
from trainer.alexnet import AlexNet, Variant
from trainer.precision import Precision

CPU = torch.device("cpu")
TINY = SMALL._replace(width=0.05, epochs=4, drops=(), batch_size=8, lr=0.03)


def made_images(count=16, side=64, classes=2):
    """Noise on a ground whose color tells the class."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    noise = rng.integers(0, 100, (count, 3, side, side))
    noise[:, 0] += 150 * labels[:, None, None]
    return Images(torch.from_numpy(noise.astype(np.uint8)), torch.from_numpy(labels))


def test_a_crop_is_the_enlarged_image_cut_out_and_mirrored():
    images = made_images(4).images
    y, x, flip = torch.tensor([0.0, 32, 7, 16]), torch.tensor([32.0, 0, 3, 16]), torch.tensor([0.0, 1, 1, 0])
    crops = crop(images.float(), y, x, flip)
    for image, top, left, mirrored, ours in zip(images, y.int(), x.int(), flip, crops, strict=True):
        enlarged = np.asarray(scaled_square(Image.fromarray(image.permute(1, 2, 0).numpy()), 256)).astype(np.float32)
        expected = enlarged[top : top + 224, left : left + 224]
        expected = expected[:, ::-1] if mirrored else expected
        assert np.abs(ours.permute(1, 2, 0).numpy() - expected).max() < 1.01  # Pillow rounds twice, to 8 bits


def test_lighting_and_mean_are_the_pipelines():
    data = made_images(8)
    prepare, augmentation = Input(data.images), Augmentation(image_stats(data.images), seed=3)
    draws = draw(augmentation, epoch=1, batch=2, batch_size=8)
    assert np.abs(draws.color_shift).max() > 1
    ours = epoch_draws(augmentation, 1, 3, 8)[2]
    crops = crop(data.images.float(), *ours[:, :3].T).round().byte().permute(0, 2, 3, 1).contiguous()
    theirs = Preprocess(prepare.stats, "image", CPU)(crops, torch.from_numpy(draws.color_shift))
    assert (prepare(data.images, ours) - theirs).abs().max() < 0.51  # theirs rounds crops to 8 bits
    without = epoch_draws(Augmentation(None, seed=3), 1, 3, 8)[2]
    assert torch.equal(without[:, :3], ours[:, :3]) and not without[:, 3:].any()


def test_components_are_those_of_all_pixels():
    images = made_images(130, side=8).images
    stats = image_stats(images)
    pixels = images.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
    assert stats.channel_mean == pytest.approx(pixels.mean(axis=0))
    covariance = np.cov(pixels.T, bias=True)
    assert stats.eigenvectors @ np.diag(stats.eigenvalues) @ stats.eigenvectors.T == pytest.approx(covariance)
    assert stats.mean_image.shape == (256, 256, 3)


def test_training_learns_and_is_the_same_with_the_same_seed():
    data = made_images()
    prepare = Input(data.images)
    losses = []
    first = train(Variant(), TINY, data, prepare, 0, after_epoch=losses.append)
    assert losses[-1] < 0.9 * losses[0]
    again = train(Variant(), TINY, data, prepare, 0)
    assert torch.equal(first.fc8.weight, again.fc8.weight)
    for how in ((1,), (0, False)):
        other = train(Variant(), TINY._replace(epochs=1), data, prepare, *how)
        same = train(Variant(), TINY._replace(epochs=1), data, prepare, 0)
        assert not torch.equal(same.fc8.weight, other.fc8.weight)


def test_fewer_images_than_a_batch_are_refused():
    data = made_images(7)
    with pytest.raises(InputError, match="7 training images are fewer than a batch of 8"):
        train(Variant(), TINY, data, Input(data.images), 0)


def test_errors_count_each_image_once(monkeypatch):
    monkeypatch.setattr(ablation, "CHUNK", 4)
    data = made_images(10, side=8, classes=10)
    model = AlexNet(10, 0.05).eval()
    model.init_weights(0)
    with torch.no_grad():
        model.fc8.weight.zero_()
        model.fc8.bias.copy_(torch.arange(10, 0, -1))  # answers 0, then 1, 2, 3, 4, to every image
    found = errors(model, data, Input(data.images), Precision("fp32", CPU))
    assert found == {"top1_error": pytest.approx(0.9), "top5_error": pytest.approx(0.5)}


def test_ungrouped_net_has_all_kernels_and_one_tower_half_of_them():
    shapes = {}
    for name, variant in {"ungrouped": Variant(towers=1), "half": Variant(towers=1, half=True)}.items():
        with torch.device("meta"):
            model = AlexNet(variant=variant)
        shapes[name] = [tuple(layer.weight.shape[:2]) for layer in (model.conv1, model.conv2, model.conv4, model.conv5)]
    assert shapes["ungrouped"] == [(96, 3), (256, 96), (384, 384), (256, 384)]
    assert shapes["half"] == [(48, 3), (128, 48), (192, 192), (256, 192)]
