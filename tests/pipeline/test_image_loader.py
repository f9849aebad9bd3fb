"""The public loader: every sample once over any ranks, exact resuming, batches that stay, bad samples, URLs."""

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline import CenterCrop, ImageLoader, InputError, RandomResizedCrop
from shards.dataset import Dataset
from shards.verify import verify
from tests.support.loaders import overwritten, read_jpegs
from tests.support.remote_sets import cached

SMALL = RandomResizedCrop(32)
gpu = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])


def assert_same(wanted, got):
    for one, other in zip(wanted, got, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("world_size, batch_size", [(1, 5), (2, 4), (3, 2), (4, 7)])
def test_validation_has_every_sample_once_over_any_ranks(data, world_size, batch_size):
    stored = [label for _, label in read_jpegs(Dataset.load(data), "val")]
    wanted = next(iter(ImageLoader(data, CenterCrop(32), len(stored)))).images
    images, labels = {}, {}
    for rank in range(world_size):
        loader = ImageLoader(data, CenterCrop(32), batch_size, rank=rank, world_size=world_size)
        batches = list(loader)
        assert len(batches) == len(loader) and loader.samples == len(stored)
        for number, batch in enumerate(batches):
            assert (batch.labels >= 0).all()
            for i, (image, label) in enumerate(zip(*batch, strict=True)):
                sample = (number * world_size + rank) * batch_size + i
                assert sample not in images
                images[sample], labels[sample] = image, int(label)
    assert [labels[i] for i in range(len(stored))] == stored and len(labels) == len(stored)
    assert torch.equal(torch.stack([images[i] for i in range(len(stored))]), wanted)


def test_ranks_that_train_share_one_stream(data):
    whole = ImageLoader(data, SMALL, 12, seed=1)
    ranks = [ImageLoader(data, SMALL, 4, seed=1, rank=rank, world_size=3) for rank in range(3)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
        assert torch.equal(batch.labels, torch.cat([part.labels for part in parts]))


def test_each_pass_is_the_next_epoch(data):
    loader = ImageLoader(data, SMALL, 24)
    first, second = list(loader), list(loader)
    assert len(first) == len(second) == len(loader) == 4 and not torch.equal(first[0].images, second[0].images)
    loader.set_epoch(0)
    assert_same(first, loader)
    next(iter(loader))  # left in its middle
    assert loader.state_dict()["epoch"] == 1 and loader.state_dict()["batch"] == 1
    loader.set_epoch(1)
    assert_same(second, loader)
    old = iter(loader)
    next(old)
    iter(loader)  # one that is never read changes nothing
    next(old)
    next(iter(loader))
    with pytest.raises(RuntimeError, match="another pass over this ImageLoader was begun"):
        next(old)


@pytest.mark.parametrize("taken", [0, 2, 4])
def test_a_state_continues_exactly_where_it_was_taken_on_other_ranks_too(data, taken):
    unbroken = ImageLoader(data, SMALL, 24, seed=3)
    epochs = [list(unbroken) for _ in range(3)]
    loader = ImageLoader(data, SMALL, 24, seed=3)
    list(loader)
    stream = iter(loader)
    for _ in range(taken):
        next(stream)
    state = loader.state_dict()
    assert len(list(stream)) == 4 - taken  # reading on does not change what was taken
    resumed = ImageLoader(data, SMALL, 24, seed=3)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert_same(epochs[1][taken:], resumed)
    assert_same(epochs[2], resumed)
    halves = [ImageLoader(data, SMALL, 12, seed=3, rank=rank, world_size=2) for rank in (0, 1)]
    for half in halves:
        half.load_state_dict(state)
    for batch, *parts in zip(epochs[1][taken:], *halves, strict=True):
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))


@pytest.mark.parametrize("change", [{"seed": 9}, {"batch_size": 12}, {"view": RandomResizedCrop(48)}, {"split": "val"}])
def test_a_state_of_another_loader_is_refused(data, change):
    options = {"view": SMALL, "batch_size": 16, "seed": 3, **change}
    name = {"batch_size": "global_batch_size"}.get(next(iter(change)), next(iter(change)))
    other = ImageLoader(data, **options)
    with pytest.raises(InputError, match=f"this state is of {name} .*begin an epoch anew with set_epoch"):
        other.load_state_dict(ImageLoader(data, SMALL, 16, seed=3).state_dict())


@pytest.mark.parametrize("device", ["cpu", gpu])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_a_batch_is_the_callers(data, device, dtype):
    loader = ImageLoader(
        data, RandomResizedCrop(64, dtype=dtype, channels_last=dtype == torch.uint8), 12, device=device
    )
    copies, held = [], []
    for _ in range(3):
        for batch in loader:
            held.append(batch)
            copies.append(batch.images.clone())
            if device == "cuda":
                torch.cuda._sleep(20_000_000)  # a GPU that is far behind Python
    for batch, before in zip(held, copies, strict=True):
        assert torch.equal(batch.images, before)
        batch.images.fill_(1)  # and nobody else's
    loader.set_epoch(0)
    assert_same(ImageLoader(data, loader.view, 12, device=device), loader)


def test_a_bad_image_is_named_and_left_out(data, tmp_path, capsys):
    damaged, names = overwritten(data, tmp_path, [2, 5])
    wanted, got = (ImageLoader(root, SMALL, 8, max_bad=0.05) for root in (data, damaged))
    missing = 0
    for one, other in zip(wanted, got, strict=True):
        missing += len(one.labels) - len(other.labels)
        assert (other.labels >= 0).all() and len(other.images) == len(other.labels)
        kept = [any(torch.equal(image, own) for own in other.images) for image in one.images]
        assert sum(kept) == len(other.labels)
    assert missing == 2
    errors = capsys.readouterr().err
    assert all(f"{name} cannot be decoded" in errors for name in names)
    # Alone in its batch it leaves none: of one rank that is passed over, of several it is an error
    assert sum(len(batch.labels) for batch in ImageLoader(damaged, SMALL, 1, max_bad=0.05)) == 94
    with pytest.raises(InputError, match="no image of a rank's batch can be decoded: choose a larger batch_size"):
        for rank in (0, 1):
            list(ImageLoader(damaged, SMALL, 1, max_bad=0.05, rank=rank, world_size=2))


def test_too_many_bad_images_are_quarantined_and_reading_goes_on(data, tmp_path):
    """As the error says: the rest of the epoch is the one that would have come."""
    damaged, _ = overwritten(data, tmp_path, [2, 5])
    with pytest.raises(InputError, match=r"max_bad \(.*\) allows 1 such: .*verify .*can be resumed"):
        list(ImageLoader(damaged, SMALL, 8))
    wanted = ImageLoader(damaged, SMALL, 8, max_bad=0.05)
    stream = iter(wanted)
    next(stream)
    state = json.loads(json.dumps(wanted.state_dict()))
    verify(damaged, decode=True, quarantine=True, workers=1)
    resumed = ImageLoader(damaged, SMALL, 8)
    assert resumed.samples == 94
    resumed.load_state_dict(state)
    assert resumed.samples == wanted.samples == 96 and resumed.state_dict() == state
    assert_same(stream, resumed)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))])
def test_a_copy_goes_on_by_itself(data, copied):
    loader = ImageLoader(data, SMALL, 24)
    stream = iter(loader)
    next(stream)
    other = copied(loader)
    rest = list(stream)
    other.load_state_dict({**other.state_dict(), "batch": 1})
    assert_same(rest, other)


def test_a_url_gives_the_folders_batches(data, tmp_path):
    far = ImageLoader(data.as_uri(), SMALL, 16, cache=str(tmp_path / "cache"))
    assert_same(ImageLoader(str(data), SMALL, 16), far)
    assert cached(tmp_path / "cache")


def test_ranks_are_torchruns_unless_given(data, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    loader = ImageLoader(data, SMALL, 8)
    assert (loader.rank, loader.world_size) == (1, 2)
    assert_same(ImageLoader(data, SMALL, 8, rank=1, world_size=2), loader)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 1000}, "batch_size 1000 on 1 rank: choose at most 96 for 96 samples"),
        ({"batch_size": 0}, "batch_size 0: give a whole number, 1 or more"),
        ({"batch_size": "8"}, "batch_size '8': give a whole number"),
        ({"threads": 0}, "threads 0: give a whole number, 1 or more"),
        ({"seed": -1}, "seed -1: give a whole number, 0 or more"),
        ({"shuffle": False}, "shuffle False is not one of 'shards', 'full'"),
        ({"decode_on": "gpu"}, "decode_on 'gpu' is not one of None, 'device', 'cpu'"),
        ({"max_bad": 2}, "max_bad 2 is not a share of the samples"),
        ({"view": "train"}, r"view 'train': give one, as RandomResizedCrop\(224\)"),
        ({"view": RandomResizedCrop}, r"view <class .*: give one, as RandomResizedCrop\(224\)"),
        ({"device": "gpu"}, "device 'gpu' is not one of torch's: choose cpu or cuda"),
        ({"rank": 1}, "give rank and world_size together"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not one of 2"),
        ({"device": "mps"}, "device mps is not here: choose cpu"),
        ({"split": "test"}, "has no test split, only train, val"),
        ({"data": 5}, "data 5: give the folder or URL of a data set"),
        ({"cache": "there"}, "are for a data set at a URL"),
    ],
)
def test_bad_options_are_named(data, options, message):
    with pytest.raises(InputError, match=message):
        ImageLoader(**{"data": data, "view": SMALL, "batch_size": 8, **options})


@pytest.mark.parametrize(
    "change",
    [{"epoch": "1"}, {"epoch": -1}, {"batch": None}, {"quarantined": 3}, {"quarantined": {"train": "0"}}, None],
)
def test_what_is_no_state_or_epoch_is_refused(data, change):
    loader = ImageLoader(data, SMALL, 16)
    state = None if change is None else {**loader.state_dict(), **change}
    with pytest.raises(InputError, match="this is not a loader's state: give what state_dict returned"):
        loader.load_state_dict(state)
    with pytest.raises(InputError, match="epoch '1': they are numbered from 0"):
        loader.set_epoch("1")


def test_importing_the_interface_loads_neither_torch_nor_dali():
    code = "import sys, pipeline; assert pipeline.InputError; assert not {'torch', 'nvidia.dali'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_batches_of_a_model_and_its_loss(data):
    """As the documentation begins."""
    loader = ImageLoader(data, RandomResizedCrop(32), batch_size=32)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, len(loader.classes)))
    losses = [torch.nn.functional.cross_entropy(model(images), labels).item() for images, labels in loader]
    assert len(losses) == len(loader) and np.isfinite(losses).all()
