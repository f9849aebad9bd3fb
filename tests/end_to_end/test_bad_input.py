"""Bad input is one clear line that names what is wrong and what to do; nothing half-written stays."""

import os
import resource
import shutil

import pytest
import torch

from tests.end_to_end.conftest import SMALL
from trainer import checkpoint


def bad(words, data, run):
    fill = {"DATA": data, "RUN": run, "NEW": run / "new", "NOWHERE": run / "nowhere"}
    return [fill.get(word, word) for word in words]


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["shard", "--imagenet-root", "NOWHERE", "--out", "NEW"], "is not a folder: expected ROOT/train/WNID"),
        (["shard", "--imagenet-root", "RUN", "--out", "NEW"], "holds none of the known layouts: expected ROOT/train"),
        (["shard", "--imagenet-root", "DATA", "--out", "NEW", "--shard-size", "big"], "write it like 256MiB"),
        (["train", "--data", "NOWHERE", "--out", "NEW"], "give the --out of `python cli.py shard`"),
        (["train", "--data", "RUN", "--out", "NEW"], "holds no dataset.json"),
        (["train", "--data", "DATA", "--out", "RUN"], "holds a run already: continue it with --resume auto"),
        (["train", "--data", "DATA", "--out", "RUN", "--resume", "auto", "--lr", "1"], "lr was 0.001, now 1.0"),
        (["train", "--data", "DATA", "--out", "NEW", "--gpus", "3"], "AlexNet has two towers"),
        (["train", "--data", "DATA", "--out", "NEW", "--batch-size", "1000"], "fewer than one batch of 1000"),
        (["train", "--data", "DATA", "--out", "NEW", "--batch-size", "9", "--gpus", "2"], "does not divide by 2"),
        (["train", "--data", "DATA", "--out", "NEW", "--epochs", "1", "--steps", "1"], "give one of them"),
        (["train", "--data", "DATA", "--out", "NEW", "--lr-steps", "a"], "write it like 25,51,79"),
        (["eval", "--data", "DATA", "--checkpoint", "NOWHERE"], "does not exist"),
        (["eval", "--data", "DATA", "--checkpoint", "DATA"], "holds no checkpoint-*.safetensors"),
        (["eval", "--data", "DATA", "--checkpoint", "RUN", "--split", "test"], "has no test split, only train, val"),
        (["throughput-bench", "--json", "/no/such/folder/out.json"], "there is no such folder"),
        (["index", "NOWHERE"], "is not a folder"),
        (["demo", "--out", "RUN"], "is not empty"),
    ],
)
def test_bad_input_is_one_line(data, unbroken, run_cli, words, complaint):
    done = run_cli(*bad(words, data, unbroken), check=False)
    assert done.returncode != 0 and complaint in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (unbroken / "new" / "dataset.json").exists()
    shutil.rmtree(unbroken / "new", ignore_errors=True)


def full_disk(megabytes):
    """Files cannot grow past this: the kernel refuses the write, as a full disk does."""
    size = int(megabytes * 2**20)
    return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}


def test_a_full_disk_is_one_line_and_leaves_no_half_files(data, images, unbroken, tmp_path, run_cli):
    out = tmp_path / "set"
    done = run_cli("shard", "--imagenet-root", images, "--out", out, check=False, **full_disk(0.5))
    assert done.returncode == 1 and "train-000000.tar: File too large; make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [p.name for p in out.iterdir() if not p.name.startswith(".")]
    run_cli("shard", "--imagenet-root", images, "--out", out)  # there is room again: the same command goes on
    assert (out / "dataset.json").exists() and not list(out.glob(".*"))

    # With steps to come, so that the other rank fails over its lost neighbour: the one line is still the disk's
    words = ["train", "--data", data, "--out", tmp_path / "run", "--steps", 11, *SMALL, "--gpus", 2]
    done = run_cli(*words, check=False, **full_disk(0.5))
    assert done.returncode == 1 and "checkpoint-00000005.safetensors" in done.stderr and "make room" in done.stderr
    assert "Traceback" not in done.stderr and not list((tmp_path / "run").glob("*.safetensors"))


def test_checkpoints_without_their_config_are_refused(data, unbroken, tmp_path, run_cli):
    shutil.copy(checkpoint.list_checkpoints(unbroken)[0], tmp_path)
    done = run_cli("train", "--data", data, "--out", tmp_path, "--steps", 16, *SMALL, check=False)
    assert done.returncode != 0 and "but not its config.json" in done.stderr


def test_a_broken_checkpoint_is_named_and_runs_no_code(data, unbroken, tmp_path, run_cli):
    import pickle

    class Planted:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    for content in (b"no checkpoint", pickle.dumps(Planted())):
        (tmp_path / "checkpoint-00000001.safetensors").write_bytes(content)
        done = run_cli("eval", "--data", data, "--checkpoint", tmp_path, check=False)
        assert done.returncode != 0 and "checkpoint-00000001.safetensors is not a readable checkpoint" in done.stderr
    with open(tmp_path / "checkpoint-00000001.safetensors", "wb") as file:
        torch.save({"format": 1, "parameters": Planted()}, file)
    done = run_cli("eval", "--data", data, "--checkpoint", tmp_path, check=False)
    assert "is not a readable checkpoint" in done.stderr and not (tmp_path / "owned").exists()
