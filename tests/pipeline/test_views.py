"""The views of `ImageLoader` are torchvision's: the boxes as it draws them, and the pixels of given boxes."""

import io

import numpy as np
import pytest
import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import pipeline_def
from PIL import Image

from pipeline import CenterCrop, ImageLoader, InputError, PaperCrop, RandomResizedCrop, view_graph
from shards.dataset import Dataset
from tests.support.loaders import loader_of
from tests.support.with_torchvision import torchvision

functional = torchvision.transforms.functional
BILINEAR = torchvision.transforms.InterpolationMode.BILINEAR
MEAN_DIFFERENCE = 0.6  # of an image, on the 0..255 scale; Pillow rounds after each direction, and DALI at the end
gpu = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])


def first_fitting(height, width, sides, place, ratio):
    """torchvision's `RandomResizedCrop.get_params`, given the draws: (top, left, height, width)."""
    for h, w in np.floor(sides * np.sqrt(np.float32(height * width)) + 0.5):
        if 0 < w <= width and 0 < h <= height:
            down, across = np.floor(place * (np.array([height - h, width - w], np.float32) + 1))
            return int(down), int(across), int(h), int(w)
    h, w = height, width
    if width / height < min(ratio):
        h = round(width / min(ratio))
    elif width / height > max(ratio):
        w = round(height * max(ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def boxes(view, shape, count, seed=0):
    """What DALI makes of a view's draws for images of a shape: rows (top, left, height, width)."""
    sides, place, _ = view.draw(np.random.default_rng(seed), count)

    @pipeline_def(batch_size=count, num_threads=1, device_id=None)
    def graph():
        nodes = [fn.external_source(name=name, dtype=types.DALIDataType.FLOAT) for name in ("shape", "sides", "place")]
        return view_graph.box(*nodes, view.ratio)

    pipe = graph()
    pipe.build()
    pipe.feed_input("shape", np.tile(np.array(shape, np.float32), (count, 1)))
    pipe.feed_input("sides", sides)
    pipe.feed_input("place", place)
    return np.concatenate([np.array(output.as_array()) for output in pipe.run()], axis=1).astype(int), sides, place


# The second is so long that boxes often do not fit; of the third none fits
SHAPES = [((375, 500), (0.08, 1.0)), ((100, 300), (0.3, 1.0)), ((40, 400), (0.9, 1.0))]


@pytest.mark.parametrize("shape, scale", SHAPES)
def test_boxes_are_the_first_drawn_that_fit(shape, scale):
    view = RandomResizedCrop(scale=scale)
    found, sides, place = boxes(view, shape, 300)
    wanted = [first_fitting(*shape, s, p, view.ratio) for s, p in zip(sides, place, strict=True)]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("shape, scale", SHAPES[:2])
def test_boxes_are_distributed_as_torchvisions(shape, scale):
    count = 4000
    view = RandomResizedCrop(scale=scale)
    ours, _, _ = boxes(view, shape, count, seed=1)
    torch.manual_seed(0)
    image = torch.empty(3, *shape, dtype=torch.uint8)
    get_params = torchvision.transforms.RandomResizedCrop.get_params
    theirs = np.array([get_params(image, list(view.scale), list(view.ratio)) for _ in range(count)])
    # Of each: area, ratio, and the box's middle; the largest distance of the distributions (Kolmogorov-Smirnov), which
    # is below 1.95 * sqrt(2 / count) = 0.044 in all but one of a thousand cases where the two are one
    facts = [
        (b[:, 2] * b[:, 3], b[:, 3] / b[:, 2], b[:, 0] + b[:, 2] / 2, b[:, 1] + b[:, 3] / 2) for b in (ours, theirs)
    ]
    for one, other in zip(*facts, strict=True):
        grid = np.unique(np.concatenate([one, other]))
        shares = [np.searchsorted(np.sort(values), grid, side="right") / count for values in (one, other)]
        assert np.abs(shares[0] - shares[1]).max() < 0.044


def first_batch(dataset, view, device="cpu", count=16, split="train"):
    """The first batch's images, N x H x W x 3 on the CPU, and the images that they are of."""
    loader = ImageLoader(dataset.root, view, count, split=split, seed=4, device=device)
    rows = loader._loader.order(0)[0]
    jpegs = [loader._loader.samples.jpeg(tuple(row)) for row in rows.tolist()]
    images = [Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in jpegs]
    return next(iter(loader)).images.cpu().movedim(1, -1).float().numpy(), images


def check_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        difference = np.abs(one - np.asarray(other, np.float32))
        # The outermost pixels: beyond a border DALI repeats the last pixel, and Pillow omits it
        assert difference.mean() < MEAN_DIFFERENCE and difference[2:-2, 2:-2].max() <= 2


@pytest.mark.parametrize("device", ["cpu", gpu])
def test_random_boxes_have_torchvisions_pixels(dataset, device):
    view = RandomResizedCrop(120, dtype=torch.uint8, channels_last=True)
    ours, images = first_batch(dataset, view, device)
    sides, place, flip = view.draw(np.random.default_rng([4, 0, 0]), 16)
    theirs = []
    for image, s, p, (_, mirrored) in zip(images, sides, place, flip, strict=True):
        box = first_fitting(image.height, image.width, s, p, view.ratio)
        cut = functional.resized_crop(image, *box, [120, 120], BILINEAR)
        theirs.append(functional.hflip(cut) if mirrored else cut)
    assert 0 < flip[:, 1].sum() < 16
    if device == "cpu":  # a GPU's decoder rounds otherwise
        check_same(ours, theirs)
    else:
        assert np.abs(ours - np.stack([np.asarray(image, np.float32) for image in theirs])).mean() < 1.5


@pytest.mark.parametrize("size, resize", [(224, 256), (96, 96), (129, 200)])
def test_center_crops_have_torchvisions_pixels(dataset, size, resize):
    ours, images = first_batch(dataset, CenterCrop(size, resize=resize, dtype=torch.uint8))
    resized = [functional.resize(image, resize, BILINEAR) for image in images]
    check_same(ours, [functional.center_crop(image, [size, size]) for image in resized])


def test_a_neighboring_box_exceeds_the_tolerance(dataset):
    ours, images = first_batch(dataset, CenterCrop(96, resize=100, dtype=torch.uint8))
    wrong = [functional.resize(image, 100, BILINEAR).crop((3, 3, 99, 99)) for image in images]
    with pytest.raises(AssertionError):
        check_same(ours, wrong)


def test_the_papers_crops_are_those_that_training_gets(data):
    trained = list(loader_of(Dataset.load(data), batch_size=12, seed=2).epoch(0))
    loader = ImageLoader(str(data), PaperCrop(dtype=torch.uint8), 12, seed=2)
    for one, (images, labels) in zip(trained, loader, strict=True):
        assert torch.equal(one.images.movedim(-1, 1), images) and torch.equal(one.labels, labels)


@pytest.mark.parametrize("device", ["cpu", gpu])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
@pytest.mark.parametrize("channels_last", [False, True])
def test_any_dtype_and_order_in_memory_has_the_same_values(data, dtype, channels_last, device):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    plain = next(iter(ImageLoader(data, RandomResizedCrop(64, dtype=torch.uint8), 12, device=device))).images.cpu()
    view = RandomResizedCrop(64, dtype=dtype, mean=mean, std=std, channels_last=channels_last)
    images, labels = next(iter(ImageLoader(data, view, 12, device=device)))
    assert images.device.type == labels.device.type == device
    assert images.shape == (12, 3, 64, 64) and images.dtype == dtype
    memory = torch.channels_last if channels_last else torch.contiguous_format
    assert images.is_contiguous(memory_format=memory)
    wanted = plain if dtype == torch.uint8 else functional.normalize(plain.float() / 255, mean, std)
    torch.testing.assert_close(
        images.cpu().float(), wanted.float(), atol=2e-3 if dtype == torch.float16 else 1e-5, rtol=1e-3
    )


def test_colors_vary_as_torchvisions_if_they_are_asked_to(data):
    plain, bright, other = (
        next(iter(ImageLoader(data, RandomResizedCrop(64, dtype=torch.uint8, **more), 12))).images
        for more in ({}, {"brightness": 0.5}, {"saturation": 0.5, "contrast": 0.5, "hue": 0.2})
    )
    *_, factors, _, _, _ = RandomResizedCrop(brightness=0.5).draw(np.random.default_rng([0, 0, 0]), 12)
    for image, changed, factor in zip(plain, bright, factors, strict=True):
        wanted = functional.adjust_brightness(image, float(factor))
        assert (wanted.int() - changed.int()).abs().max() <= 1
    assert (other.float() - plain.float()).abs().mean() > 5


@pytest.mark.parametrize(
    "view, options, message",
    [
        (CenterCrop, {"size": 300}, "a center crop of 300 does not fit into 256: choose a larger resize"),
        (PaperCrop, {"size": 100}, "choose RandomResizedCrop for another size"),
        (RandomResizedCrop, {"scale": (0.5, 0.1)}, r"scale \(0\.5, 0\.1\) is not two shares"),
        (RandomResizedCrop, {"size": (64, 64)}, r"size \(64, 64\) is not a number of pixels"),
        (RandomResizedCrop, {"mean": 0.5}, "mean and std are three numbers each"),
        (RandomResizedCrop, {"hue": 2}, "hue is from 0 to 0.5"),
        (RandomResizedCrop, {"dtype": torch.int64}, "dtype torch.int64 is not one of"),
    ],
)
def test_impossible_views_are_refused(view, options, message):
    with pytest.raises(InputError, match=message):
        view(**options)
