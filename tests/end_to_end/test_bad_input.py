"""Bad input is one clear line that names what is wrong and what to do; nothing half-written stays."""

import os
import re
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cli import main
from tests.conftest import PROJECT
from tests.end_to_end.conftest import SMALL
from trainer import checkpoint


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["shard", "--imagenet-root", "NOWHERE", "--out", "NEW"], "is not a folder: expected ROOT/train/CLASS"),
        (["shard", "--imagenet-root", "RUN", "--out", "NEW"], "holds none of the known layouts: expected ROOT/train"),
        (["shard", "--imagenet-root", "DATA", "--out", "NEW", "--shard-size", "big"], "write it like 256MiB"),
        (["train", "--data", "NOWHERE", "--out", "NEW"], "does not exist: give the folder of a data set, the --out of"),
        (["train", "--data", "RUN", "--out", "NEW"], "holds no dataset.json: it is a training run; give the folder"),
        (["info", "IMAGES"], "holds no dataset.json: if it holds images, `python cli.py shard --imagenet-root"),
        (["info", "EMPTY"], "holds no dataset.json: it is empty; give the folder of a data set"),
        (["info", "FILE"], "is a file: give the folder of a data set, the --out of `python cli.py shard`"),
        (["preview", "FILE", "--out", "NEW.png"], "is a file: give the folder of a data set"),
        (["train", "--data", "DATA", "--out", "NEW", "--lr", "nan"], "'nan' is not a finite number"),
        (["shard", "--imagenet-root", "IMAGES", "--out", "NEW", "--val-share", "nan"], "'nan' is not a finite number"),
        (["train", "--data", "FILE", "--out", "NEW"], "is a file: give the folder of a data set"),
        (["verify", "FILE"], "is a file: give a folder"),
        (["train", "--data", "DATA", "--out", "FILE"], "--out FILE is a file: give a folder"),
        (["shard", "--imagenet-root", "FILE", "--out", "NEW"], "--imagenet-root FILE is a file: give a folder"),
        (["verify", "s3://bucket/set"], "s3://bucket/set is a URL: give a folder of this machine"),
        (["index", "s3://bucket/set"], "is a URL: give a folder of this machine"),
        (
            ["shard", "--imagenet-root", "DATA", "--out", "https://b/set"],
            "https://b/set cannot be written to: http(s) is",
        ),
        (["shard", "--imagenet-root", "TRAIN", "--out", "NEW"], "(it may be a split itself: then give IMAGES)"),
        (["shard", "--imagenet-root", "RENAMED", "--out", "NEW"], "(if its folders are classes, move them to RENAMED"),
        (["train", "--data", "DATA", "--out", "RUN"], "holds a run already: continue it with --resume auto"),
        (["train", "--data", "DATA", "--out", "RUN", "--resume", "auto", "--lr", "1"], "lr was 0.001, now 1.0"),
        (["train", "--data", "DATA", "--out", "NEW", "--gpus", "3"], "AlexNet has two towers"),
        (["train", "--data", "DATA", "--out", "NEW", "--batch-size", "1000"], "fewer than one batch of 1000"),
        (
            ["train", "--data", "DATA", "--out", "NEW", "--batch-size", "1000", "--gpus", "10", "--device", "cpu"],
            "choose a --batch-size of at most 90",
        ),
        (["shard", "--out", "NEW"], "give the folder of the images once: `shard ROOT --out DIR`"),
        (["shard", "IMAGES", "--imagenet-root", "IMAGES", "--out", "NEW"], "give the folder of the images once"),
        (["shard", "IMAGES", "--out", "NEW", "--val-share", "0.1"], "has validation images of its own: leave it out"),
        (["train", "--data", "DATA", "--out", "NEW", "--batch-size", "9", "--gpus", "2"], "does not divide by 2"),
        (["train", "--data", "DATA", "--out", "NEW", "--epochs", "1", "--steps", "1"], "give one of them"),
        (["train", "--data", "DATA", "--out", "NEW", "--lr-steps", "a"], "write it like 25,51,79"),
        (["eval", "--data", "DATA", "--checkpoint", "NOWHERE"], "does not exist"),
        (["eval", "--data", "DATA", "--checkpoint", "DATA"], "holds no checkpoint-*.safetensors"),
        (["eval", "--data", "DATA", "--checkpoint", "RUN", "--split", "test"], "has no test split, only train, val"),
        (["verify", "NOWHERE"], "does not exist: give the folder of a data set"),
        (["index", "NOWHERE"], "does not exist: give the folder of a data set"),
        (["demo", "--out", "RUN"], "is not empty"),
        (["demo", "--out", "/proc/x"], "--out /proc/x cannot be written"),
        (["train", "--data", "DATA", "--out", "/proc/x"], "--out /proc/x cannot be written"),
        (["shard", "--imagenet-root", "IMAGES", "--out", "/proc/x"], "--out /proc/x cannot be written"),
        (["info", "BINARY"], "dataset.json is damaged (UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff"),
        (["throughput-bench", "--compare", "BINARY.png", "BINARY.png"], "a run's figures (UnicodeDecodeError: 'utf-8'"),
    ],
)
def test_bad_input_is_one_line(data, images, unbroken, tmp_path, words, complaint):
    places = {"DATA": data, "IMAGES": images, "TRAIN": images / "train", "RUN": unbroken}
    places |= {name: tmp_path / name.lower() for name in ("NEW", "NEW.png", "NOWHERE", "EMPTY", "FILE", "RENAMED")}
    places |= {"BINARY": tmp_path / "binary", "BINARY.png": tmp_path / "binary" / "dataset.json"}
    places["EMPTY"].mkdir()
    places["FILE"].touch()
    places["BINARY"].mkdir()
    places["BINARY.png"].write_bytes(bytes([255, 216, 0]) * 10000)
    (tmp_path / "renamed" / "cat").mkdir(parents=True)
    (tmp_path / "renamed" / "cat" / "1.jpg").touch()
    done = CliRunner().invoke(main, [str(places.get(word, word)) for word in words])
    for name, path in places.items():
        complaint = re.sub(rf"\b{name}\b", str(path), complaint)
    assert done.exit_code in (1, 2) and complaint in done.stderr, done.output
    assert (
        done.stderr.splitlines()[-1].startswith("Error: ")
        and len(done.stderr) < 1000
        and not [*tmp_path.glob("new*/*")]
    )


LOST_SHARD = """
import sys
from click.testing import CliRunner
from cli import main
data, new = sys.argv[1:]
for words in (
    ("stats", data),
    ("preview", data, "--out", new + ".png"),
    ("train", "--data", data, "--out", new, "--batch-size", "8"),
    ("eval", "--data", data, "--checkpoint", data, "--split", "train"),
):
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1 and "train-000001.tar is missing, and dataset.json lists it" in done.output, done.output
    assert not {"torch", "nvidia.dali"} & {*sys.modules}, words
"""


def test_a_lost_shard_is_reported_before_torch_and_dali_are_imported(data, tmp_path):
    shutil.copytree(data, tmp_path / "copy")
    (tmp_path / "copy" / "train-000001.tar").unlink()
    command = [sys.executable, "-c", LOST_SHARD, tmp_path / "copy", tmp_path / "new"]
    subprocess.run(command, check=True, cwd=PROJECT, timeout=60)
    assert not (tmp_path / "new").exists()


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


def test_checkpoints_without_their_config_are_refused(data, unbroken, tmp_path, run_here):
    shutil.copy(checkpoint.list_checkpoints(unbroken)[0], tmp_path)
    done = run_here("train", "--data", data, "--out", tmp_path, "--steps", 16, *SMALL, check=False)
    assert done.returncode != 0 and "but not its config.json" in done.stderr


def test_a_broken_checkpoint_is_named_and_runs_no_code(data, unbroken, tmp_path, run_here):
    import pickle

    class Planted:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    for content in (b"no checkpoint", pickle.dumps(Planted())):
        (tmp_path / "checkpoint-00000001.safetensors").write_bytes(content)
        done = run_here("eval", "--data", data, "--checkpoint", tmp_path, check=False)
        assert done.returncode != 0 and "checkpoint-00000001.safetensors is not a readable checkpoint" in done.stderr
    with open(tmp_path / "checkpoint-00000001.safetensors", "wb") as file:
        torch.save({"format": 1, "parameters": Planted()}, file)
    done = run_here("eval", "--data", data, "--checkpoint", tmp_path, check=False)
    assert "is not a readable checkpoint" in done.stderr and not (tmp_path / "owned").exists()


AT_ONCE = """
import sys
from click.testing import CliRunner
from cli import main
empty, data, new = sys.argv[1:]
for words in (
    ("shard", "--imagenet-root", empty, "--out", new),
    ("index", empty),
    ("stats", empty),
    ("verify", empty),
    ("info", empty),
    ("preview", empty, "--out", new + ".png"),
    ("train", "--data", empty, "--out", new),
    ("eval", "--data", empty, "--checkpoint", empty),
    ("eval", "--data", data, "--checkpoint", empty),
    ("eval", "--data", data, "--checkpoint", empty, "--split", "test"),
    ("throughput-bench", "--data", empty),
    ("throughput-bench", "--json", new + "/x.json"),
    ("demo", "--out", data),
):
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1 and "\\nError: " in "\\n" + done.output, (words, done.output)
    assert not {"torch", "nvidia.dali"} & {*sys.modules}, words
"""


def test_a_wrong_folder_is_reported_before_torch_and_dali_are_imported(data, tmp_path):
    """Importing them takes seconds."""
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-c", AT_ONCE, tmp_path / "empty", data, tmp_path / "new"]
    subprocess.run(command, check=True, cwd=PROJECT, timeout=60)


def test_an_output_that_cannot_be_written_is_reported_first(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    for option, command in (
        ("--out", ("preview", tmp_path)),
        ("--json", ("throughput-bench",)),
        ("--report", ("throughput-bench",)),
    ):
        for name, complaint in (
            ("no/x.png", "there is no such folder"),
            ("pipe.png", "is not a plain file"),
            ("link.png", "is not a plain file"),
        ):
            path = tmp_path / name
            done = CliRunner().invoke(main, [*map(str, command), option, str(path)])
            assert done.exit_code == 1 and done.output.startswith(f"Error: {option} {path}"), done.output
            assert complaint in done.output and len(done.output.splitlines()) == 1
    done = CliRunner().invoke(main, ["throughput-bench", "--json", "/proc/x.json"])
    assert "--json /proc/x.json cannot be written" in done.output


def test_preview_writes_what_its_name_says_or_refuses(data, tmp_path):
    for suffix, kind in {".png": "PNG", ".jpg": "JPEG", ".JPEG": "JPEG", ".webp": "WEBP", ".tif": "TIFF"}.items():
        path = tmp_path / f"grid{suffix}"
        done = CliRunner().invoke(main, ["preview", str(data), "--out", str(path), "--images", "1"])
        assert done.exit_code == 0 and Image.open(path).format == kind, done.output
    for name in ("grid", "grid.html", "grid.tga"):
        done = CliRunner().invoke(main, ["preview", str(data), "--out", str(tmp_path / name), "--images", "1"])
        assert done.exit_code == 1 and "give a name that ends in .png, .jpg" in done.output
