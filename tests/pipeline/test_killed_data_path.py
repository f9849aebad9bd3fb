"""The data path, killed at random steps, continues as if nothing had happened; two towers see one batch."""

import hashlib
import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from pipeline.loader import Loader
from pipeline.order import Augmentation, RankSlice
from pipeline.preprocess import Preprocess
from pipeline.settings import Settings
from pipeline.stats import Stats
from shards.dataset import Dataset
from tests.support.forkserver import fork_server
from trainer.launch import launch
from trainer.rank import RankContext

PROJECT = Path(__file__).parents[2]
BATCH, EPOCHS = 12, 3


def digest(*arrays) -> str:
    return hashlib.sha256(b"".join(memoryview(array).cast("B") for array in arrays)).hexdigest()


def stream(data: Path, rank: int, world_size: int, begin: int = 0):
    """What one rank reads from batch `begin` of the run on, a line a batch: keys, crops, flips, colors, pixels."""
    dataset = Dataset.load(data)
    loader = Loader(
        *(dataset, "train", "train"),
        batch_size=BATCH,
        settings=Settings(threads=1),
        rank_slice=RankSlice(rank, world_size),
        augmentation=Augmentation(Stats.load(data), seed=4),
    )
    for number in range(begin, EPOCHS * loader.num_batches):
        epoch, batch = divmod(number, loader.num_batches)
        if number == begin or batch == 0:
            batches = loader.epoch(epoch, start=batch)
        read = next(batches)
        rows = loader.order(epoch)[batch][loader.rank_slice.of(BATCH)]
        keys = [loader.samples.name((shard, sample)) for shard, sample in rows.tolist()]
        y, x, flip, shift = loader.draws(epoch, batch)
        assert torch.equal(read.color_shift, torch.from_numpy(shift))
        yield {
            "batch": number,
            "keys": keys,
            "labels": read.labels.tolist(),
            "crops": [y.tolist(), x.tolist(), flip.tolist()],
            "color_shift": shift.tolist(),
            "pixels": digest(read.images.numpy()),
        }


def write_stream(data: Path, out: Path, rank: int, world_size: int) -> None:
    """A process that can be killed: appends to `out`, and started again continues after its last complete line."""
    complete = [line for line in out.read_text().splitlines(True) if line.endswith("\n")] if out.exists() else []
    out.write_text("".join(complete))
    with open(out, "a") as file:
        for line in stream(data, rank, world_size, begin=len(complete)):
            print(json.dumps(line), file=file, flush=True)
            time.sleep(0.02)  # so that a kill finds a step to fall into


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_stream_killed_at_random_steps_is_the_unbroken_one(data, tmp_path, world_size):
    outs = [tmp_path / f"{rank}.jsonl" for rank in range(world_size)]
    rng, total, kills = random.Random(world_size), len(list(stream(data, 0, world_size))), 0
    goal = 0
    while any(len(lines(out)) < total for out in outs):
        goal = min(total, goal + rng.randrange(3, 12))
        running = [
            fork_server().Process(target=write_stream, args=(data, out, rank, world_size))
            for rank, out in enumerate(outs)
        ]
        for process in running:
            process.start()
        while len(lines(outs[0])) < goal and running[0].is_alive():
            time.sleep(0.005)
        if goal < total:
            for process in running:
                process.kill()  # one that has just ended is no error, as it would be of os.kill
            kills += 1
        for process in running:
            process.join()
        assert {process.exitcode for process in running} <= {0, -signal.SIGKILL}
    assert kills >= 2
    for rank, out in enumerate(outs):
        wanted = [json.loads(json.dumps(line)) for line in stream(data, rank, world_size)]
        assert [json.loads(line) for line in lines(out)] == wanted


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines(True) if line.endswith("\n")] if path.exists() else []


def test_any_number_of_ranks_reads_the_stream_of_one(data):
    alone = list(stream(data, 0, 1))
    for world_size in (2, 3, 4):
        shares = zip(*(stream(data, rank, world_size) for rank in range(world_size)), strict=True)
        for batch, parts in zip(alone, shares, strict=True):
            assert batch["keys"] == [key for part in parts for key in part["keys"]]
            assert batch["labels"] == [label for part in parts for label in part["labels"]]
            assert batch["color_shift"] == [shift for part in parts for shift in part["color_shift"]]


def see(context: RankContext, data: Path, out: Path) -> None:
    """What one tower decodes, and what it holds of the batch when the other's share has come."""
    stats = Stats.load(data)
    loader = Loader(
        *(Dataset.load(data), "train", "train"),
        batch_size=BATCH,
        settings=Settings(threads=context.threads),
        rank_slice=context.rank_slice,
        augmentation=Augmentation(stats),
    )
    preprocess, seen = Preprocess(stats, "image", context.device), []
    for number, batch in enumerate(loader.epoch(1)):
        images, labels = context.gather_batch(batch, preprocess)
        rows = loader.order(1)[number][loader.rank_slice.of(BATCH)].tolist()
        decoded = [digest(image.numpy()) for image in batch.images]
        seen.append({"rows": rows, "decoded": decoded, "batch": [digest(images.contiguous().numpy()), labels.tolist()]})
    (out / f"{context.rank}.json").write_text(json.dumps(seen))


def test_both_towers_hold_one_batch_and_no_image_is_decoded_twice(data, tmp_path, quick_ranks):
    launch(see, 2, "cpu", data, tmp_path)
    left, right = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    loader = Loader(Dataset.load(data), "train", "train", batch_size=BATCH, settings=Settings(threads=1))
    assert len(left) == len(right) == loader.num_batches
    order = loader.order(1)
    for number, (one, other) in enumerate(zip(left, right, strict=True)):
        assert one["batch"] == other["batch"]
        assert len(one["decoded"]) == len(other["decoded"]) == BATCH // 2
        assert not set(one["decoded"]) & set(other["decoded"])
        assert one["rows"] + other["rows"] == order[number].tolist()
