"""The commands as a user types them: they work, and bad input is one clear line."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from shards.index import components, read_index
from trainer import checkpoint, metrics
from trainer.alexnet import AlexNet

CLI = Path(__file__).parents[2] / "cli.py"
SMALL = ["--device", "cpu", "--width", 0.05, "--batch-size", 8, "--lr", 0.001]
SMALL += ["--log-every", 3, "--checkpoint-every", 5]


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    """A run of 16 steps (an epoch is 12) on one device; nobody writes to it."""
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    command = [sys.executable, CLI, "train", "--data", data, "--out", out, "--steps", 16, *SMALL]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return out


def parameters(run):
    return checkpoint.read(checkpoint.all_of(run)[0])["parameters"]


def without_speed(run):
    clocked = ("img_per_s", "data_wait")
    return [{key: value for key, value in line.items() if key not in clocked} for line in metrics.read(run)]


def test_a_run_writes_its_config_metrics_and_checkpoints(unbroken):
    lines = metrics.read(unbroken)
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in trained] == [1, 3, 6, 9, 12, 15, 16]
    assert all(line.keys() == {"kind", "step", "epoch", "loss", "lr", "img_per_s", "data_wait"} for line in trained)
    assert [line["epoch"] for line in trained] == [0, 0, 0, 0, 0, 1, 1]
    evaluated = [line for line in lines if line["kind"] == "eval"]
    assert [(line["step"], line["epoch"], line["samples"]) for line in evaluated] == [(12, 0, 22), (16, 1, 22)]
    names = {"kind", "step", "epoch", "crops", "top1_error", "top5_error", "samples"}
    assert all(line.keys() == names and 0 <= line["top1_error"] <= 1 for line in evaluated)
    assert json.loads((unbroken / "config.json").read_text())["batch_size"] == 8
    # The newest three, of which the one of the first epoch's end is kept for being the best so far
    kept = [path.name for path in checkpoint.all_of(unbroken)]
    assert kept == [f"checkpoint-000000{step}.safetensors" for step in (16, 15, 12)]
    assert checkpoint.read(unbroken / "best.safetensors")["step"] in (12, 16)


def test_a_killed_run_resumes_bit_for_bit(data, unbroken, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, CLI, "train", "--data", data, "--out", out, "--steps", 16, *SMALL, "--resume", "auto"]
    command = list(map(str, command))
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and not any(line["step"] >= 6 for line in metrics.read(out)):
        time.sleep(0.02)
    running.kill()
    assert running.wait() == -signal.SIGKILL and checkpoint.all_of(out)[0].name < "checkpoint-00000016.safetensors"
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "Resumed after step" in done.stdout
    for name, value in parameters(unbroken).items():
        assert torch.equal(value, parameters(out)[name]), name
    assert without_speed(out) == without_speed(unbroken)
    # Once more: there is nothing to do, and it says so
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "nothing is left to do" in again.stdout and without_speed(out) == without_speed(unbroken)


def test_two_processes_train_as_one_and_resume_as_one(data, unbroken, tmp_path, run_cli):
    out = tmp_path / "run"
    done = run_cli("train", "--data", data, "--out", out, "--gpus", 2, "--steps", 10, *SMALL)
    assert "Warning" not in done.stderr
    # ... and one device carries on with the two towers' checkpoint
    run_cli("train", "--data", data, "--out", out, "--gpus", 1, "--steps", 16, *SMALL, "--resume", "auto")
    fresh = AlexNet(4, width=0.05)
    fresh.initialize(seed=0)
    for name, start in fresh.unsharded_state_dict().items():
        # What 16 updates changed is the same, but for rounding, which they amplify; a lost velocity would halve it
        moved, theirs = parameters(out)[name] - start, parameters(unbroken)[name] - start
        assert (moved - theirs).norm() < 0.05 * theirs.norm(), name
    for ours, theirs in zip(metrics.read(out, "train"), metrics.read(unbroken, "train"), strict=False):
        if ours["step"] == theirs["step"]:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


def test_torchrun_starts_it_too(data, unbroken, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, CLI, "train", "--data", data, "--out", tmp_path / "run", "--steps", 3, *SMALL]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    ours, theirs = (metrics.read(run, "train")[1] for run in (tmp_path / "run", unbroken))
    assert ours["step"] == 3 and ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    command[command.index(tmp_path / "run")] = tmp_path / "other"
    command += ["--gpus", 1]
    refused = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert refused.returncode != 0 and "--gpus 1 but torchrun started 2" in refused.stderr


def test_eval_counts_every_sample_once_in_any_layout(data, unbroken, run_cli):
    seen = []
    for words in (["--batch-size", 4], ["--batch-size", 16, "--gpus", 2], ["--batch-size", 128]):
        told = run_cli("eval", "--data", data, "--checkpoint", unbroken, "--json", "--device", "cpu", *words).stdout
        seen.append(json.loads(told))
    last = metrics.read(unbroken, "eval")[-1]
    for result in seen:
        assert result["samples"] == 22 and result["step"] == 16
        assert result["top1_error"] == pytest.approx(last["top1_error"])
    ten = run_cli("eval", "--data", data, "--checkpoint", unbroken, "--crops", 10, "--device", "cpu").stdout
    assert "22 images, 10 crops: top-1 error" in ten


def bad(words, data, run):
    fill = {"DATA": data, "RUN": run, "NEW": run / "new", "NOWHERE": run / "nowhere"}
    return [fill.get(word, word) for word in words]


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["shard", "--imagenet-root", "NOWHERE", "--out", "NEW"], "is no folder: expected ROOT/train/WNID"),
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
        (["index", "NOWHERE"], "is no folder"),
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_devices_that_are_not_there(data, tmp_path, run_cli):
    refused = run_cli("train", "--data", data, "--out", tmp_path / "a", "--device", "cuda", check=False)
    assert refused.returncode != 0 and "torch finds no CUDA device" in refused.stderr
    words = ["train", "--data", data, "--out", tmp_path / "b", "--gpus", 2, "--steps", 1]
    told = run_cli(*words, "--width", 0.05, "--batch-size", 8).stderr
    assert told.count("No CUDA device here: the two towers run in two CPU processes.") == 1


def test_a_data_set_that_lost_its_parts_is_named_and_mended(data, unbroken, tmp_path, run_cli):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    words = ["train", "--data", copy, "--out", tmp_path / "run", "--steps", 1, *SMALL]
    (copy / "stats.npz").unlink()
    done = run_cli(*words, check=False)
    assert done.returncode != 0 and "stats.npz is missing" in done.stderr and "cli.py index" in done.stderr
    run_cli("index", copy)
    (copy / "val-000000.idx").unlink()
    assert "val-000000.idx is missing: it is made anew" in run_cli(*words).stderr
    assert (copy / "val-000000.idx").read_bytes() == (data / "val-000000.idx").read_bytes()


def test_training_leaves_a_bad_image_out_and_goes_on(data, unbroken, tmp_path, run_cli):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    entry = components(read_index(copy / "train-000001.idx")[2])
    with open(copy / "train-000001.tar", "r+b") as file:
        file.seek(int(entry[0][1]))
        file.write(bytes(int(entry[0][2])))
    os.utime(copy / "train-000001.idx")  # it fits its tar as before
    # Two epochs: the first finds it, on one rank, and the second begins with both knowing
    words = ["train", "--data", copy, "--steps", 24, *SMALL]
    for gpus in (1, 2):
        done = run_cli(*words, "--out", tmp_path / str(gpus), "--gpus", gpus)
        assert f"{entry[0][3]} cannot be decoded (not an image): left out, 1 so far" in done.stderr
    one, two = (metrics.read(tmp_path / str(gpus), "train") for gpus in (1, 2))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for ours, theirs in zip(one, two, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2)
    done = run_cli(*words, "--out", tmp_path / "x", "--max-bad", 0, check=False)
    assert done.returncode == 0  # one may always be bad


def test_stats_and_preview_show_what_the_net_is_fed(data, tmp_path, run_cli):
    shutil.copytree(data, tmp_path / "copy")
    about = json.loads(run_cli("stats", tmp_path / "copy", "--json").stdout)
    assert about["samples"] == 96 and about["standard_deviations"] == sorted(about["standard_deviations"], reverse=True)
    assert (tmp_path / "copy" / "stats.npz").read_bytes() == (data / "stats.npz").read_bytes()
    assert "96 images" in run_cli("stats", tmp_path / "copy").stdout
    run_cli("preview", data, "--out", tmp_path / "grid.png", "--pictures", 3)
    # Three rows of four, and two of five
    assert Image.open(tmp_path / "grid.png").size == (5 * 226 - 2, 3 * 240 - 2 + 2 * 240 - 2 + 20)


def test_checkpoints_without_their_config_are_not_taken_up(data, unbroken, tmp_path, run_cli):
    shutil.copy(checkpoint.all_of(unbroken)[0], tmp_path)
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
        assert done.returncode != 0 and "checkpoint-00000001.safetensors is no readable checkpoint" in done.stderr
    with open(tmp_path / "checkpoint-00000001.safetensors", "wb") as file:
        torch.save({"format": 1, "parameters": Planted()}, file)
    done = run_cli("eval", "--data", data, "--checkpoint", tmp_path, check=False)
    assert "is no readable checkpoint" in done.stderr and not (tmp_path / "owned").exists()


@pytest.mark.long
def test_the_demo_learns(tmp_path, run_cli):
    out = tmp_path / "demo"
    told = run_cli("demo", "--short", "--out", out, "--device", "cpu").stdout
    result = metrics.read(out / "run", "eval")[-1]
    # Chance is 0.9 on 400 images, spread 0.015: a model which learned nothing is six spreads away
    assert result["samples"] == 400 and result["top1_error"] < 0.81
    assert f"top-1 {result['top1_error']:.1%}" in told and "images per second" in told
    for name in ("batch.png", "conv1.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
