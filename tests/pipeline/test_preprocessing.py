"""Images reach the model as sections 2 and 4.1 of the paper have it, compared with Pillow and NumPy."""

import numpy as np
import pytest
import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import pipeline_def
from PIL import Image

from pipeline import geometry, graph
from pipeline.compute_stats import complete
from pipeline.geometry import MARGIN, SIZE
from pipeline.order import RankSlice
from pipeline.preprocess import Preprocess
from pipeline.stats import Stats
from shards import tars
from shards.dataset import Dataset
from shards.describe import describe_tars
from shards.errors import InputError
from tests.support.image_kinds import encoded, noise
from tests.support.loaders import MOST, TOLERANCE, loader_of, model_input, nchw, read_jpegs
from tests.support.reference import reference_input


def test_training_images_are_the_papers_given_the_same_draws(dataset):
    loader = loader_of(dataset, seed=5)
    stats = Stats.load(dataset.root)
    stored, order, mean = read_jpegs(dataset, "train"), loader.order(epoch=1), nchw(stats)
    first = np.cumsum([0, *loader.samples.shard_sizes])
    assert len(stored) == first[-1]
    flips = 0
    for number, batch in enumerate(loader.epoch(1)):
        y, x, flip, shift = loader.draws(1, number)
        flips += flip.sum()
        assert batch.images.dtype == torch.uint8
        images = model_input(batch, stats)
        for i, (shard, sample) in enumerate(order[number]):
            jpeg, label = stored[first[shard] + sample]
            assert batch.labels[i] == label
            difference = np.abs(images[i] - reference_input(jpeg, mean, y[i], x[i], flip[i], shift[i]))
            assert difference.mean() < TOLERANCE and difference[:, 1:-1, 1:-1].max() < MOST
    assert 0 < flips < loader.num_batches * 16


def test_a_crop_one_pixel_off_or_unflipped_exceeds_the_tolerance(dataset):
    # The tolerance can fail: it tells a crop from its neighbours
    jpeg, _ = read_jpegs(dataset, "train")[0]
    mean = np.zeros((3, 224, 224), np.float32)
    true = reference_input(jpeg, mean)
    for wrong in (
        reference_input(jpeg, mean, y=17),
        reference_input(jpeg, mean, x=15),
        reference_input(jpeg, mean, flip=1),
        reference_input(jpeg, mean, color_shift=(1, 0, 1)),
    ):
        assert np.abs(true - wrong).mean() > TOLERANCE


def test_test_crops_are_the_papers(dataset):
    loader = loader_of(dataset, "ten", batch_size=6)
    stats = Stats.load(dataset.root)
    mean = nchw(stats)
    offsets = [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]
    stored = read_jpegs(dataset, "train")[:6]
    ten = model_input(next(loader.epoch(0)), stats)
    center = model_input(next(loader_of(dataset, "center", batch_size=6).epoch(0)), stats)
    assert ten.shape == (6, 10, 3, 224, 224) and center.shape == (6, 1, 3, 224, 224)
    for (jpeg, _), crops, middle in zip(stored, ten, center, strict=True):
        wanted = [reference_input(jpeg, mean, y, x, flip) for flip in (0, 1) for y, x in offsets]
        assert np.abs(crops - wanted).mean(axis=(1, 2, 3)).max() < TOLERANCE
        assert np.abs(middle[0] - crops[4]).max() < MOST  # decoded as a rectangle, and completely


def test_the_pattern_of_ten_crops_is_symmetric():
    assert len(set(geometry.FIVE_CROPS)) == 5 and (geometry.CENTER, geometry.CENTER) in geometry.FIVE_CROPS


def test_the_channel_mean_can_be_subtracted_instead(data):
    loader, stats = loader_of(Dataset.load(data), seed=5), Stats.load(data)
    batch = next(loader.epoch(0))
    crops = batch.images.numpy().astype(float).transpose(0, 3, 1, 2)
    wanted = crops - stats.channel_mean[:, None, None] + batch.color_shift.numpy()[:, :, None, None]
    np.testing.assert_allclose(model_input(batch, stats, "channel"), wanted, atol=1e-4)
    with pytest.raises(InputError, match="--mean none is not one of image, channel"):
        model_input(batch, stats, "none")


def test_images_that_exif_rotates_are_upright(tmp_path):
    # Our own sets hold none; others' do. The rectangle is found in the image as it is seen
    encoded_images = [
        encoded(noise(size=(4, 3)).resize((400, 300), Image.Resampling.BICUBIC), exif=exif(o)) for o in range(1, 9)
    ]
    with open(tmp_path / "train-0.tar", "wb") as file:
        for number, image in enumerate(encoded_images):
            for name, content in ((f"{number}.jpg", image), (f"{number}.cls", b"%d" % number)):
                file.write(tars.header(name.encode(), len(content)))
                file.write(content + bytes(tars.padded(len(content)) - len(content)))
        file.write(bytes(1024))
    dataset = describe_tars(tmp_path)
    assert dataset.split("train").samples == 8
    complete(dataset)
    loader, stats = loader_of(dataset, batch_size=8), Stats.load(dataset.root)
    batch, (y, x, flip, shift) = next(loader.epoch(0)), loader.draws(0, 0)
    for i, (image, label) in enumerate(zip(model_input(batch, stats), batch.labels, strict=True)):
        wanted = reference_input(encoded_images[label], nchw(stats), y[i], x[i], flip[i], shift[i])
        assert np.abs(image - wanted)[:, 1:-1, 1:-1].max() < MOST


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def test_a_stored_patch_is_cropped_and_mirrored_in_one_operator_as_its_rectangle_is_decoded():
    jpegs = [np.frombuffer(encoded(noise(size=(SIZE, SIZE))), np.uint8)] * (MARGIN + 1)
    offsets = [np.array([place, MARGIN - place], np.float32) for place in range(MARGIN + 1)]
    flips = [np.array([0, place % 2], np.float32) for place in range(MARGIN + 1)]

    @pipeline_def(batch_size=len(jpegs), num_threads=2, device_id=None)
    def both():
        jpeg = fn.external_source(source=lambda: jpegs, dtype=types.UINT8, ndim=1)
        offset, flip = fn.external_source(source=lambda: (offsets, flips), num_outputs=2, dtype=types.FLOAT)
        decoder = graph.decoder_options(False, 0.0, None)
        patch = graph.decode_stored(jpeg, decoder)
        return graph.cut(jpeg, offset, flip, decoder, SIZE), graph.cut_stored(patch, offset, flip)

    pipe = both()
    pipe.build()
    rectangle, patch = (np.asarray(output.as_tensor()) for output in pipe.run())
    assert rectangle.shape == (len(jpegs), 224, 224, 3) and np.array_equal(rectangle, patch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_preprocessing_is_the_cpus_rounded_once(dataset, dtype):
    stats, crops = Stats.load(dataset.root), torch.randint(0, 256, (4, 224, 224, 3), dtype=torch.uint8)
    for shift in (torch.randn(4, 3) * 20, None):
        cpu = Preprocess(stats, "image", torch.device("cpu"))(crops, shift)
        gpu = Preprocess(stats, "image", torch.device("cuda", 0), dtype)
        for _ in range(3):  # TorchScript fuses from the second call on
            found = gpu(crops.cuda(), None if shift is None else shift.cuda())
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found.cpu(), cpu.to(dtype), rtol=1e-6 if dtype == torch.float32 else 0.01, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_gpu_images_are_the_cpus(dataset):
    cpu, gpu = (
        next(loader_of(dataset, seed=5, rank_slice=RankSlice(device_id=device)).epoch(0)).images for device in (None, 0)
    )
    assert gpu.is_cuda
    cpu, gpu = cpu.float(), gpu.float()
    # nvJPEG's inverse DCT rounds otherwise than libjpeg-turbo's
    assert (cpu - gpu.cpu()).abs().mean(dim=(1, 2, 3)).max() < 2 * TOLERANCE
