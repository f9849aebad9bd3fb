"""`throughput-bench --peers`: other loaders on the same images, transform, batch and cores, in the same run.

Each reads the form that it recommends and is set up as its documentation shows. All do the same work: decode, shorter
side to 256, the central 256 x 256 patch, a random 224 crop of it, a random flip, batches of uint8 as torch tensors. The
produced pixels' mean and spread show that it is the same. They take turns, a fresh process each time.
"""

import functools
import io
import itertools
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from bench.harness.datasets import read_jpegs, stream, write_images
from pipeline.graph import CROP, MARGIN, SIZE
from pipeline.loader import Loader
from pipeline.stats import Stats
from shards.dataset import Dataset
from shards.images import scaled_sides
from shards.processes import cores
from shards.progress import Progress

TOLERANCE = 2.0  # levels of 255, by which a color's mean and spread over an epoch may differ from ours
ROUNDS = 3
MOST = 2048  # images
EPOCH = 5120  # of an epoch while the clock runs, at least: where they end, loaders empty their queues and begin anew
TIMEOUT = 300  # seconds that a loader may take for a round, with writing its own form of the images


PATIENCE = 5  # seconds that it then has to end


class ImageSet(NamedTuple):
    """The same images as files and as shards; adapters write their own form beside them. `data` is the folder that
    holds the set's statistics; `times`: how often an epoch has each image."""

    folder: Path
    data: Path
    dataset: Dataset
    times: int = 1

    @property
    def files(self) -> list[str]:
        return self.times * sorted(map(str, (self.folder / "images").rglob("*.jpg")))

    def form(self, name: str, write: Callable[[Path], None]) -> Path:
        """Another form of the images, in a folder of that name; `write` makes it when it is not there yet."""
        path = self.folder / f"{name}-{self.times}"
        if not path.exists():
            unfinished = self.folder / f"{path.name}.unfinished"
            unfinished.mkdir()
            write(unfinished)
            unfinished.rename(path)
        return path


def images_of(dataset: Dataset, folder: Path) -> ImageSet:
    """The first images of a data set, at most MOST of them, laid down in `folder`/peers."""
    laid = write_images(read_jpegs(dataset, MOST), folder / "peers", dataset.size, cores())
    return ImageSet(folder / "peers", dataset.root, laid)


def draw() -> tuple[int, int, bool]:
    """Where a crop lies in the 256 x 256 patch, down and across, and whether it is mirrored."""
    return random.randint(0, MARGIN), random.randint(0, MARGIN), random.random() < 0.5


def cropped(image: Image.Image) -> np.ndarray:
    """The transform as people write it with Pillow."""
    image = image.convert("RGB")
    if min(image.size) != SIZE:
        image = image.resize(scaled_sides(*image.size, SIZE), Image.Resampling.BILINEAR)
    y, x, flip = draw()
    x, y = x + (image.width - SIZE) // 2, y + (image.height - SIZE) // 2
    image = image.crop((x, y, x + CROP, y + CROP))
    return np.array(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)


def with_pillow(jpeg: bytes) -> torch.Tensor:
    return torch.from_numpy(cropped(Image.open(io.BytesIO(jpeg))))


def with_simplejpeg(jpeg: bytes) -> torch.Tensor:
    import simplejpeg

    return torch.from_numpy(cropped(Image.fromarray(simplejpeg.decode_jpeg(jpeg))))


def with_opencv(jpeg: bytes) -> torch.Tensor:
    import cv2

    cv2.setNumThreads(0)
    image = cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    if min(image.shape[:2]) != SIZE:
        image = cv2.resize(image, scaled_sides(*image.shape[1::-1], SIZE), interpolation=cv2.INTER_AREA)
    y, x, flip = draw()
    y, x = y + (image.shape[0] - SIZE) // 2, x + (image.shape[1] - SIZE) // 2
    image = image[y : y + CROP, x : x + CROP]
    return torch.from_numpy(np.ascontiguousarray(image[:, ::-1] if flip else image))


class Files(torch.utils.data.Dataset):
    """Files as torch's DataLoader reads them."""

    def __init__(self, files: list[str], transform: Callable):
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.transform(Path(self.files[number]).read_bytes())


def again(loader: Iterable) -> Iterator:
    while True:
        yield from loader


def torch_loader(images: ImageSet, transform: Callable, batch: int, workers: int) -> Iterator[torch.Tensor]:
    loader = torch.utils.data.DataLoader(
        Files(images.files, transform),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
    )
    return again(loader)


def ours(images: ImageSet, batch: int, workers: int) -> Iterator[torch.Tensor]:
    options = {"stats": Stats.load(images.data), "batch_size": batch, "threads": workers}
    # First the very epoch that the others begin with too, for the check
    batches = itertools.chain(
        Loader(images.dataset, "train", "train", **options).epoch(0), stream(images.dataset, **options)
    )
    return (one.images for one in batches)


def dataloader_pillow(images: ImageSet, batch: int, workers: int) -> Iterator[torch.Tensor]:
    return torch_loader(images, with_pillow, batch, workers)


class WithTorchvision:
    def __init__(self):
        from torchvision.transforms import v2

        steps = [v2.Resize(SIZE), v2.CenterCrop(SIZE), v2.RandomCrop(CROP), v2.RandomHorizontalFlip()]
        self.transform = v2.Compose(steps)

    def __call__(self, jpeg: bytes) -> torch.Tensor:
        from torchvision.io import ImageReadMode, decode_jpeg

        encoded = torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)
        return self.transform(decode_jpeg(encoded, mode=ImageReadMode.RGB))


def dataloader_torchvision(images: ImageSet, batch: int, workers: int) -> Iterator[torch.Tensor]:
    return torch_loader(images, WithTorchvision(), batch, workers)


def webdataset(images: ImageSet, transform: Callable, batch: int, workers: int) -> Iterator[torch.Tensor]:
    import webdataset

    tars = images.times * [str(tar) for tar in images.dataset.tars("train")]
    samples = webdataset.WebDataset(tars, shardshuffle=len(tars), empty_check=False).shuffle(1000).to_tuple("jpg")
    batches = samples.map_tuple(transform).batched(batch, partial=False)
    loader = webdataset.WebLoader(batches, batch_size=None, num_workers=workers, persistent_workers=True)
    return (one for (one,) in again(loader))


def webdataset_pillow(images: ImageSet, batch: int, workers: int) -> Iterator[torch.Tensor]:
    return webdataset(images, with_pillow, batch, workers)


def webdataset_simplejpeg(images: ImageSet, batch: int, workers: int) -> Iterator[torch.Tensor]:
    return webdataset(images, with_simplejpeg, batch, workers)


def webdataset_opencv(images: ImageSet, batch: int, workers: int) -> Iterator[torch.Tensor]:
    return webdataset(images, with_opencv, batch, workers)


def spdl(images: ImageSet, batch: int, workers: int) -> Iterator[torch.Tensor]:
    from spdl import io as media
    from spdl.pipeline import PipelineBuilder

    files, rng = images.files, random.Random(0)
    scale = f"scale={SIZE}:{SIZE}:force_original_aspect_ratio=increase:flags=bilinear"

    def order() -> Iterator[str]:
        while True:
            yield from rng.sample(files, len(files))

    def load(path: str):
        y, x, flip = draw()
        crop = f"crop={CROP}:{CROP}:(iw-{SIZE})/2+{x}:(ih-{SIZE})/2+{y}"
        filters = [scale, "format=rgb24", crop, *(["hflip"] if flip else [])]
        return media.decode_packets(media.demux_image(path), filter_desc=",".join(filters))

    def batched(frames: list) -> torch.Tensor:
        return media.to_torch(media.convert_frames(frames))

    builder = PipelineBuilder().add_source(order()).pipe(load, concurrency=workers)
    loader = builder.aggregate(batch).pipe(batched).add_sink().build(num_threads=workers + 1, max_failures=0)
    with loader.auto_stop():
        yield from loader


def tf_data(images: ImageSet, batch: int, workers: int) -> Iterator[torch.Tensor]:
    import tensorflow as tf

    once = images._replace(times=1)

    def write(folder: Path) -> None:
        with tf.io.TFRecordWriter(str(folder / "images.tfrecord")) as writer:
            for file in once.files:
                writer.write(Path(file).read_bytes())

    def transform(jpeg: tf.Tensor) -> tf.Tensor:
        offset = tf.random.uniform((2,), 0, MARGIN + 1, tf.int32)
        shape = tf.image.extract_jpeg_shape(jpeg)[:2]
        if images.dataset.size == SIZE:
            crop = tf.io.decode_and_crop_jpeg(jpeg, tf.concat([offset, [CROP, CROP]], 0), channels=3)
        else:
            sides = (2 * shape * SIZE + tf.reduce_min(shape)) // (2 * tf.reduce_min(shape))
            scaled = tf.image.resize(tf.io.decode_jpeg(jpeg, channels=3), sides, antialias=True)
            crop = tf.slice(scaled, tf.concat([(sides - SIZE) // 2 + offset, [0]], 0), (CROP, CROP, 3))
            crop = tf.cast(tf.round(crop), tf.uint8)
        return tf.image.random_flip_left_right(crop)

    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    records = tf.data.TFRecordDataset(str(once.form("tfrecord", write) / "images.tfrecord"))
    shuffled = records.repeat().shuffle(1000).map(transform, num_parallel_calls=tf.data.AUTOTUNE)
    batches = shuffled.batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE).with_options(options)
    return (torch.from_dlpack(tf.experimental.dlpack.to_dlpack(one)) for one in batches)


def read_numbered(files: list[str], number: int) -> dict:
    return {"jpg": Path(files[number]).read_bytes()}


def stacked(samples: list[dict]) -> torch.Tensor:
    return torch.stack([with_pillow(sample["jpg"]) for sample in samples])


def litdata(images: ImageSet, batch: int, workers: int) -> Iterator[torch.Tensor]:
    import litdata

    def write(folder: Path) -> None:
        os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(images.folder / "litdata-cache")
        read = functools.partial(read_numbered, images.files)
        numbers = list(range(len(images.files)))  # it would move files that it is given by name
        litdata.optimize(read, numbers, str(folder), chunk_bytes="64MB", num_workers=1, verbose=False)

    samples = litdata.StreamingDataset(str(images.form("litdata", write)), shuffle=True, drop_last=True)
    options = {"num_workers": workers, "persistent_workers": True, "collate_fn": stacked}
    return again(litdata.StreamingDataLoader(samples, batch_size=batch, **options))


def mosaicml(images: ImageSet, batch: int, workers: int) -> Iterator[torch.Tensor]:
    import streaming

    def write(folder: Path) -> None:
        with streaming.MDSWriter(out=str(folder / "mds"), columns={"jpg": "bytes"}) as writer:
            for number in range(len(images.files)):
                writer.write(read_numbered(images.files, number))

    streaming.base.util.clean_stale_shared_memory()
    local = str(images.form("mosaicml", write) / "mds")
    samples = streaming.StreamingDataset(local=local, shuffle=True, batch_size=batch)
    options = {"num_workers": workers, "persistent_workers": True, "drop_last": True, "collate_fn": stacked}
    return again(torch.utils.data.DataLoader(samples, batch, **options))


def grain(images: ImageSet, batch: int, workers: int) -> Iterator[torch.Tensor]:
    import grain
    from array_record.python.array_record_module import ArrayRecordWriter

    once = images._replace(times=1)

    def write(folder: Path) -> None:
        writer = ArrayRecordWriter(str(folder / "images.array_record"), "group_size:1")
        for file in once.files:
            writer.write(Path(file).read_bytes())
        writer.close()

    file = once.form("array_record", write) / "images.array_record"
    samples = grain.MapDataset.source(grain.sources.ArrayRecordDataSource([str(file)])).seed(0).shuffle().repeat()
    batches = samples.map(lambda jpeg: with_pillow(jpeg).numpy()).to_iter_dataset().batch(batch, drop_remainder=True)
    loader = batches.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=workers))
    return (torch.from_numpy(one) for one in loader)


def ffcv(images: ImageSet, batch: int, workers: int) -> Iterator[torch.Tensor]:
    from ffcv.fields import RGBImageField
    from ffcv.fields.decoders import CenterCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler
    from ffcv.pipeline.operation import Operation
    from ffcv.transforms import RandomHorizontalFlip, ToTensor
    from ffcv.writer import DatasetWriter

    class RandomCrop(Operation):  # FFCV has none
        def generate_code(self) -> Callable:
            indices = Compiler.get_iterator()

            def crop(images, crops):
                for i in indices(len(images)):
                    y, x = np.random.randint(MARGIN + 1), np.random.randint(MARGIN + 1)
                    crops[i] = images[i, y : y + CROP, x : x + CROP]
                return crops

            crop.is_parallel = True
            return crop

        def declare_state_and_memory(self, state):
            shape = (CROP, CROP, 3)
            return replace(state, shape=shape), AllocationQuery(shape, state.dtype)

    once = images._replace(times=1)

    def write(folder: Path) -> None:
        fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=95)}  # it encodes all images anew
        DatasetWriter(str(folder / "images.beton"), fields, num_workers=1).from_indexed_dataset(
            [(Image.open(file).convert("RGB"),) for file in once.files]
        )

    steps = [CenterCropRGBImageDecoder((SIZE, SIZE), ratio=1), RandomCrop(), RandomHorizontalFlip(), ToTensor()]
    file = str(once.form("ffcv", write) / "images.beton")
    options = {"indices": list(range(len(once.files))) * images.times, "pipelines": {"image": steps}}
    loader = Loader(file, batch, workers, order=OrderOption.RANDOM, drop_last=True, **options)
    return (batch for (batch,) in again(loader))


class Peer(NamedTuple):
    """package: as PyPI has it; modules: that have to be importable; batches: endless, N x 224 x 224 x 3 or N x 3 x 224
    x 224, uint8, from `ImageSet`, the batch's size and the number of workers."""

    name: str
    package: str
    modules: tuple[str, ...]
    batches: Callable[[ImageSet, int, int], Iterator[torch.Tensor]]


OURS = Peer("ours (DALI)", "alexnet-dali", (), ours)
PEERS = (
    Peer("torch DataLoader + Pillow", "torch", ("torch",), dataloader_pillow),
    Peer("torch DataLoader + torchvision v2", "torchvision", ("torchvision.transforms.v2",), dataloader_torchvision),
    Peer("webdataset + Pillow", "webdataset", ("webdataset",), webdataset_pillow),
    Peer("webdataset + simplejpeg", "webdataset", ("webdataset", "simplejpeg"), webdataset_simplejpeg),
    Peer("webdataset + OpenCV", "webdataset", ("webdataset", "cv2"), webdataset_opencv),
    Peer("FFCV", "ffcv", ("ffcv",), ffcv),
    Peer("SPDL", "spdl", ("spdl.io", "spdl.pipeline"), spdl),
    Peer("tf.data", "tensorflow-cpu", ("tensorflow",), tf_data),
    Peer("litdata", "litdata", ("litdata",), litdata),
    Peer("MosaicML streaming", "mosaicml-streaming", ("streaming",), mosaicml),
    Peer("grain", "grain", ("grain", "array_record.python.array_record_module"), grain),
)


class Round(NamedTuple):
    """Images a second, and each color's mean and spread over an epoch (None when not asked for)."""

    rate: float
    mean: np.ndarray | None
    spread: np.ndarray | None


def measured(peer: Peer, images: ImageSet, batch: int, workers: int, seconds: float, check: bool) -> Round:
    """A loader's round, in the process at hand: so many seconds, after as many that are not counted."""
    mean = spread = None
    if check:
        batches = peer.batches(images, batch, workers)
        mean, spread = levels(next(batches) for _ in range(len(images.files) // batch))
        del batches
    batches = peer.batches(images._replace(times=-(-EPOCH // len(images.files))), batch, workers)
    for _ in range(2):  # the first time empties what was made ahead, which may be a thousand images
        next(batches)
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            count += len(next(batches))
        rate = count / (time.perf_counter() - began)
    return Round(rate, mean, spread)


def levels(batches: Iterable[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Each color's mean and standard deviation over all pixels of uint8 batches."""
    count, total, squares = 0, np.zeros(3), np.zeros(3)
    for batch in batches:
        if batch.dtype != torch.uint8 or CROP not in batch.shape[1:]:
            raise ValueError(f"a batch is {tuple(batch.shape)} {batch.dtype}, and should be N x 224 x 224 x 3 uint8")
        colors = (batch if batch.shape[-1] == 3 else batch.movedim(1, -1)).reshape(-1, 3).double()
        count, total, squares = (
            count + len(colors),
            total + colors.sum(0).numpy(),
            squares + (colors**2).sum(0).numpy(),
        )
    mean = total / count
    return mean, np.sqrt(squares / count - mean**2)


def absent(peer: Peer) -> str | None:
    """Why a loader cannot be tried, None when it can."""
    for module in peer.modules:
        try:
            import_module(module)
        except Exception as error:  # another library's import may fail in any way
            return f"{module} cannot be imported: {' '.join(str(error).split())[:200]}"
    return None


def differing(one: Round, own: Round) -> str | None:
    """How a loader's pixels differ from ours, None when they agree within TOLERANCE."""
    for what, found, wanted in (("mean", one.mean, own.mean), ("spread", one.spread, own.spread)):
        if np.abs(found - wanted).max() > TOLERANCE:
            told = f"{np.round(found, 1).tolist()}, ours {np.round(wanted, 1).tolist()}"
            return f"does other work: the {what} of its pixels is {told}, and may differ by {TOLERANCE:g}"
    return None


def compare(images: ImageSet, batch: int, seconds: float, rounds: int, peers: tuple[Peer, ...] = PEERS) -> list[dict]:
    """{"name", "version", "img_per_s", "p10", "p90", "ratio" (ours / theirs)} or {"name", "absent": why}, ours first.

    Each has a process or thread a core. Args: batch: at most half of the images; seconds: of one round; rounds: of
    each, in turns.
    """
    batch = min(batch, len(images.files) // 2)
    found: dict[str, list[Round]] = {}
    reasons: dict[str, str] = {}
    turns = [(number, peer) for number in range(rounds) for peer in (OURS, *peers)]
    with Progress("peers", len(turns), unit="turns", lines=False) as progress:
        for number, peer in turns:
            progress.advance()
            if peer.name in reasons:
                continue
            try:
                one = _in_a_process(_tried, peer, images, batch, cores(), seconds, number == 0)
            except Exception as error:
                one = " ".join(str(error).split())[:300]
            if isinstance(one, Round) and number == 0 and peer is not OURS:
                one = differing(one, found[OURS.name][0]) or one
            if isinstance(one, Round):
                found.setdefault(peer.name, []).append(one)
                progress.say(f"{peer.name}: {one.rate:,.0f} img/s")
            elif peer is OURS:
                raise RuntimeError(one)
            else:
                reasons[peer.name] = one
    own = [one.rate for one in found[OURS.name]]
    told = []
    for peer in (OURS, *peers):
        if peer.name in reasons:
            told.append({"name": peer.name, "absent": reasons[peer.name]})
            continue
        rates = [one.rate for one in found[peer.name]]
        low, middle, high = map(float, np.percentile(rates, (10, 50, 90)))
        ratio = float(np.median([a / b for a, b in zip(own, rates, strict=True)]))
        speeds = {"img_per_s": middle, "p10": low, "p90": high, "ratio": ratio}
        told.append({"name": peer.name, "version": _version(peer.package), **speeds})
    return told


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _tried(peer: Peer, *how) -> Round | str:
    return absent(peer) or measured(peer, *how)


def _in_a_process(work: Callable, *args):
    """A fresh process's result: nothing of one loader stays for the next, and one that crashes or hangs is absent.
    Raises RuntimeError with what it complained of, or says how it ended; TimeoutError."""
    with tempfile.NamedTemporaryFile(prefix="alexnet-peer-") as said:
        context = get_context("spawn")
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_send, args=(there, said.name, work, args))
        process.start()
        there.close()
        try:
            if not here.poll(TIMEOUT):
                raise TimeoutError(f"not done after {TIMEOUT} s")
            told, result = here.recv()
            process.join(PATIENCE)
        except EOFError:
            process.join()
            last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise RuntimeError(f"its process ended with {process.exitcode}{': ' * bool(last)}{last}") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with its workers, which some leave behind
            process.join()
    if told:
        raise RuntimeError(result)
    return result


def _send(there: Connection, said: str, work: Callable, args: tuple) -> None:
    os.setsid()  # a group of its own, to be ended as one
    log = os.open(said, os.O_WRONLY | os.O_APPEND)
    for output in (1, 2):  # warnings and farewells of many libraries, which matter only where one ends over them
        os.dup2(log, output)
    try:
        there.send((False, work(*args)))
    except Exception as error:  # another library's; the parent tells of it
        there.send((True, f"{type(error).__name__}: {error}"))


def table(peers: list[dict]) -> str:
    """For people."""
    lines = [f"{'loader':<36}{'img/s':>10}{'p10':>10}{'p90':>10}  ours / theirs"]
    for peer in peers:
        if "absent" in peer:
            lines.append(f"{peer['name']:<36}absent: {peer['absent']}")
        else:
            rates = "".join(f"{peer[key]:>10,.0f}" for key in ("img_per_s", "p10", "p90"))
            lines.append(f"{peer['name']:<36}{rates}{peer['ratio']:>9.2f}")
    return "\n".join(lines)
