"""What a run measures of itself: img/s, the time that it waits for data, TensorBoard's files and traces."""

import errno
import io
import json
import resource
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shards.dataset import Dataset
from shards.errors import InputError
from tests.support.loaders import loader_of
from tests.support.training_runs import run
from trainer import metrics
from trainer import train as training
from trainer.tensorboard import TensorBoard


def test_tensorboard_and_profile(small_data, tmp_path):
    out = tmp_path / "run"
    run(small_data, out, steps=3, tensorboard=True, profile=(1, 2))
    assert "traceEvents" in json.loads((out / "trace-1-2.json").read_text())
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    assert {"train/loss", "train/lr", "eval/top1_error", "eval/top1_error_10_crops"} <= {*events.Tags()["scalars"]}
    assert "| batch_size | 4 |" in events.Tensors("options/text_summary")[0].tensor_proto.string_val[0].decode()
    for tag, steps in {"batch": [1], "conv1/tower_1": [0, 3], "conv1/tower_2": [0, 3]}.items():
        assert [image.step for image in events.Images(tag)] == steps, tag
    assert_shows_the_first_batch(events.Images("batch")[0].encoded_image_string, small_data)
    # The last step comes before the last one to trace: what there is of it is written
    run(small_data, out, steps=5, profile=(5, 9))
    assert "traceEvents" in json.loads((out / "trace-5-9.json").read_text())


def assert_shows_the_first_batch(png, small_data):
    """Its crops with their color shift, but without the mean, which is for the model alone."""
    batch = next(loader_of(Dataset.load(small_data), batch_size=4).epoch(0))
    expected = (batch.images + batch.color_shift[:, None, None, :]).clamp(0, 255).numpy()
    picture = np.asarray(Image.open(io.BytesIO(png))).astype(float)
    for number, image in enumerate(expected):
        tile = picture[:224, number * 226 : number * 226 + 224]
        assert abs(tile - image).max() < 0.6  # rounded


def test_a_disk_without_room_for_tensorboard_does_not_end_a_run(tmp_path, capsys):
    board = TensorBoard(tmp_path, 0)

    def full(*values):
        raise OSError(errno.ENOSPC, "No space left on device")

    board.writer.add_scalar = full
    for step in (1, 2):
        board.line({"kind": "train", "step": step, "loss": 1.0})
    board.options({"lr": 0.1}, 0)
    assert capsys.readouterr().err.count("tensorboard: No space left on device; metrics.jsonl has all lines") == 1


def test_a_set_of_a_few_batches_is_told_what_to_choose(small_data, tmp_path, capfd):
    run(small_data, tmp_path / "run", steps=1, batch_size=20)
    assert "an epoch is 1 batch of 20 and leaves 12 of 32 samples out" in capfd.readouterr().err


def test_a_step_and_an_evaluation_are_shown_in_few_digits():
    line = {"loss": 6.90775, "lr": 0.01, "img_per_s": 130.2, "data_wait": 0.051}
    assert metrics.step_text(line) == "loss 6.9078 lr 0.01 130 img/s data wait 5%"
    assert metrics.step_text({**line, "loss": 1.2e29}).startswith("loss 1.2000e+29 lr")
    assert metrics.error_text({"top1_error": 0.25, "top5_error": 0.0}) == "top-1 error 25.0%, top-5 error 0.0%"
    assert metrics.error_text({"top1_error": 0.25, "top5_error": None}, digits=2) == "top-1 error 25.00%"


def test_an_error_that_says_nothing_is_not_in_tensorboard(tmp_path):
    logged = []
    board = TensorBoard(tmp_path, 0)
    logger = metrics.MetricsLogger(tmp_path, 0, False, board.line)
    board.writer.add_scalar = lambda *values: logged.append(values)
    line = {"kind": "eval", "step": 3, "epoch": 0, "crops": 1, "top1_error": 0.5, "top5_error": None, "samples": 9}
    logger.log(line)
    assert logged == [("eval/top1_error", 0.5, 3)] and metrics.read(tmp_path) == [line]


def test_the_step_timer_distinguishes_waiting_from_working(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])

    def slow():
        for _ in range(4):
            now[0] += 3.0
            yield "batch"

    timer = metrics.StepTimer(torch.device("cpu"))
    for _ in timer.time_waiting(slow()):
        now[0] += 1.0
        timer.images += 8
    with timer.paused():
        now[0] += 100.0
    assert timer.lap() == {"img_per_s": 2.0, "data_wait": 0.75}
    now[0] += 1.0
    assert timer.lap() == {"img_per_s": None, "data_wait": None}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_on_a_gpu_waiting_is_when_the_device_is_idle():
    device, slept = torch.device("cuda", 0), 0.05
    work = torch.randn(4096, 4096, device=device)

    def batches():
        for _ in range(5):
            time.sleep(slept)
            yield None

    timer = metrics.StepTimer(device)
    for _ in timer.time_waiting(batches()):
        timer.images += 1
    torch.cuda.synchronize()
    assert timer.lap()["data_wait"] > 0.9
    for _ in timer.time_waiting(batches()):
        timer.images += 1
        for _ in range(200):  # far longer than the next batch takes
            work = work @ work
    torch.cuda.synchronize()
    assert timer.lap()["data_wait"] < 0.5


ANNOUNCED = ("compiling, for a minute or so (--no-compile", "compiling took", "step 1/3 epoch 0")


def test_a_first_step_that_is_compiled_is_announced_and_counts_in_no_rate(small_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "compile_model", lambda model, device: model)
    run(small_data, tmp_path / "run", steps=3, log_every=1, compile=True)
    lines = [line.partition(" loss")[0] for line in capsys.readouterr().err.splitlines()]
    said, took, first = (next(n for n, line in enumerate(lines) if line.startswith(how)) for how in ANNOUNCED)
    assert said < took < first
    logged = metrics.read(tmp_path / "run", "train")
    assert [line["img_per_s"] is None for line in logged] == [True, False, False]
    assert logged[0]["data_wait"] is None and "img/s" not in metrics.step_text(logged[0])


def test_lines_that_a_full_disk_does_not_take_are_written_later(tmp_path, monkeypatch, capsys):
    logger = metrics.MetricsLogger(tmp_path, 0, False, None)
    lines = [{"kind": "train", "step": step} for step in range(4)]
    logger.log(lines[0])
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "FILE", "full")
        (tmp_path / "full").symlink_to("/dev/full")
        logger.log(lines[1])
        logger.log(lines[2])
        with pytest.raises(InputError, match=r"cannot write .*full: No space left on device"):
            logger.write_all()
    assert capsys.readouterr().err.count("No space left on device; training goes on") == 1
    logger.log(lines[3])
    assert metrics.read(tmp_path) == lines


def test_a_line_that_is_written_in_part_is_taken_back(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    metrics.append(tmp_path, [{"kind": "train", "step": 1}])
    before = (tmp_path / metrics.FILE).read_bytes()
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limit[1]))  # as a disk that becomes full
        with pytest.raises(InputError, match="cannot write"):
            metrics.append(tmp_path, [{"kind": "train", "step": 2}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (tmp_path / metrics.FILE).read_bytes() == before
