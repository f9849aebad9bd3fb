"""A training run that is killed continues, and ends as the run that nothing happened to."""

import os
import random
import signal
import time

import pytest

from tests.support.forkserver import fork_server
from tests.support.training_runs import STEPS, assert_same_run, finish, ranks_of, reach, run, start
from trainer import checkpoint, metrics


def test_a_run_killed_many_times_at_random_ends_as_the_unbroken_one(small_data, unbroken, tmp_path):
    rng, kills, number = random.Random(), 0, 0
    while kills < 3:  # one run may come to its end before
        number += 1
        out = tmp_path / f"run{number}"
        while True:
            seen = [path.name for path in checkpoint.list_checkpoints(out)]
            running = fork_server().Process(target=run, args=(small_data, out))
            running.start()
            # Mostly after some progress, so that it ends; now and then at once
            while running.is_alive() and rng.random() < 0.999:
                if [path.name for path in checkpoint.list_checkpoints(out)] != seen:
                    break
                time.sleep(0.005)
            running.join(rng.random() * 0.2)
            running.kill()
            running.join()
            kills += running.exitcode == -signal.SIGKILL
            if running.exitcode == 0:
                break
            assert running.exitcode == -signal.SIGKILL
        assert_same_run(out, unbroken)
        assert not list(out.glob(".*.tmp-*"))  # what kills had left


@pytest.mark.long
def test_a_run_killed_without_its_ranks_continues_when_they_have_ended(small_data, unbroken, tmp_path):
    out = tmp_path / "run"
    running = start(small_data, out, gpus=2)
    reach(running, out, 5)
    ranks = ranks_of(running)
    running.kill()
    finish(start(small_data, out, gpus=2))  # at once: it waits for what is left of the one before
    assert len(ranks) == 2 and not any(os.path.exists(f"/proc/{rank}") for rank in ranks)
    ours, theirs = metrics.read(out, "train"), {line["step"]: line["loss"] for line in metrics.read(unbroken, "train")}
    assert [line["step"] for line in ours] == [*range(1, STEPS + 1)]
    for line in ours:
        assert line["loss"] == pytest.approx(theirs.get(line["step"], line["loss"]), rel=1e-3)
