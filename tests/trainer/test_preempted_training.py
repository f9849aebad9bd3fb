"""A training run that is asked to stop ends after its step with a checkpoint, and loses nothing."""

import os
import signal

import pytest

from shards.errors import InputError
from tests.support.training_runs import (
    STEP,
    STEPS,
    assert_same_run,
    finish,
    newest,
    ranks_of,
    reach,
    run,
    signal_at_call,
    start,
)
from trainer import metrics
from trainer import train as training
from trainer.preemption import EXIT_PREEMPTED, SIGNALS, Preempted, PreemptionHandler


# In mid-epoch, at the first epoch's end, at the last step; in an evaluation, and in the last one of ten crops
@pytest.mark.parametrize(
    "where, at, step", [(STEP, 6, 6), (STEP, 8, 8), (STEP, 20, 20), ((training, "evaluate"), 1, 8)]
)
def test_a_run_asked_to_stop_anywhere_loses_nothing(small_data, unbroken, tmp_path, monkeypatch, where, at, step):
    out, number = tmp_path / "run", SIGNALS[(at + 1) % 4]
    before = [signal.getsignal(each) for each in SIGNALS]
    with monkeypatch.context() as patch:
        signal_at_call(patch, where, number, at)
        with pytest.raises(Preempted):
            run(small_data, out)
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert newest(out)["step"] == step and not any(line["step"] >= step for line in metrics.read(out, "eval"))
    run(small_data, out)
    assert_same_run(out, unbroken)


def test_a_run_asked_to_stop_in_the_last_evaluation_runs_that_again(
    small_data, unbroken, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at_call(patch, (training, "evaluate"), signal.SIGTERM, 4)  # the one of ten crops
        with pytest.raises(Preempted):
            run(small_data, out)
    assert newest(out)["step"] == STEPS and "nothing is left to do" not in capsys.readouterr().err
    run(small_data, out)
    assert_same_run(out, unbroken)
    run(small_data, out)
    assert "nothing is left to do" in capsys.readouterr().err
    assert_same_run(out, unbroken)


@pytest.mark.parametrize("number, gpus", [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_the_command_ends_with_exit_code_75_and_continues_later(small_data, tmp_path, capsys, number, gpus):
    out = tmp_path / "run"
    running = start(small_data, out, gpus=gpus)
    reach(running, out, 5)
    os.kill(running.pid, number)
    output = finish(running, EXIT_PREEMPTED)
    step = metrics.read(out, "train")[-1]["step"]
    assert (
        EXIT_PREEMPTED == 75
        and f"stopped after step {step} of {STEPS} as asked" in output
        and newest(out)["step"] == step
    )
    run(small_data, out, gpus=1, steps=step + 2)
    assert f"Resumed after step {step} of {step + 2}" in capsys.readouterr().err


def test_a_signal_to_one_rank_stops_all(small_data, tmp_path):
    running = start(small_data, tmp_path / "run", gpus=2)
    reach(running, tmp_path / "run", 5)
    os.kill(max(ranks_of(running)), signal.SIGUSR1)
    finish(running, EXIT_PREEMPTED)


def test_a_plateau_drops_the_lr_and_resuming_keeps_it(small_data, tmp_path, monkeypatch):
    # At a rate this small nothing improves: the error of the first evaluation stays the best
    options = {"lr": 1e-12, "lr_steps": "plateau", "patience": 1, "dropout": 0, "log_every": 1, "steps": 26}
    run(small_data, tmp_path / "unbroken", **options)
    lrs = [line["lr"] for line in metrics.read(tmp_path / "unbroken", "train")]
    assert lrs[:16] == [1e-12] * 16 and lrs[16:24] == [1e-13] * 8 and lrs[24] == pytest.approx(1e-14)
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at_call(patch, STEP, signal.SIGTERM, 19)
        with pytest.raises(Preempted):
            run(small_data, out, **options)
    run(small_data, out, **options)
    assert_same_run(out, tmp_path / "unbroken")
    with pytest.raises(InputError, match="eval_every was 1, now 2"):
        run(small_data, out, **options, eval_every=2)


def test_a_run_that_was_started_to_survive_its_terminal_does():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with PreemptionHandler(1) as preemption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not preemption.should_stop()
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.should_stop()
    finally:
        signal.signal(signal.SIGHUP, before)
