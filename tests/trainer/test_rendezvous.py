"""Ranks that are started again find one another, not what dead ranks have left behind."""

import os
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
from torch.distributed import FileStore

from tests.conftest import PROJECT, free_port
from trainer.rendezvous import rendezvous_store

LATE = """
import os, signal, sys, time
import torch, torch.distributed as dist
from trainer.launch import launch

def work(context, first):
    dist.all_reduce(torch.ones(1))
    if first and context.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1))
    print("met again", flush=True)

if __name__ == "__main__":
    seen = f"{sys.argv[1]}/rank{os.environ['RANK']}"
    first = not os.path.exists(seen)
    open(seen, "w").close()
    if not first and os.environ["RANK"] == sys.argv[2]:
        time.sleep(2)
    launch(work, None, "cpu", first)
"""


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("late", [0, 1])
def test_ranks_that_torchrun_starts_again_meet_even_if_one_is_late(tmp_path, nodes, late):
    script = tmp_path / "late.py"
    script.write_text(LATE)
    rendezvous = ["--nnodes", nodes, "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    command = [sys.executable, "-m", "torch.distributed.run", *rendezvous, "--nproc-per-node", 2 // nodes]
    command = [*map(str, command), "--max-restarts", "1", str(script), str(tmp_path), str(late)]
    agents = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
        )
        for _ in range(nodes)
    ]
    try:
        output = "".join(agent.communicate(timeout=120)[0] for agent in agents)
    finally:
        for agent in agents:
            agent.terminate()
    assert output.count("met again") == 2, output
    assert [agent.returncode for agent in agents] == [0] * nodes, output


def at_once(address, ranks, timeout=timedelta(seconds=30)):
    """The stores of ranks that arrive one after another, or what each raised."""
    results = {}

    def join(rank):
        try:
            results[rank] = rendezvous_store(address, rank, len(ranks), timeout)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=join, args=[rank]) for rank in ranks]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_what_an_earlier_start_left_is_neither_read_nor_in_the_way(tmp_path, order):
    address = str(tmp_path / "store")
    kept = FileStore(str(tmp_path / "store"), 3)  # as torchrun's agent keeps its store
    first = at_once(address, (0, 1, 2))
    first[0].set("listens", "dead")
    assert first[1].get("listens") == first[2].get("listens") == b"dead"
    # A rank that died on arrival: it asked, and never reads the answer
    kept.set("start/asks/1", "a dead rank's token")
    second = at_once(address, order)
    assert not second[0].check(["listens"])
    second[2].set("listens", "alive")
    assert second[0].get("listens") == second[1].get("listens") == b"alive"


@pytest.mark.parametrize("name", ["my tmp", "100%41", "a#b?c", "Größe", os.fsdecode(b"\xff"), "x" * 200])
def test_ranks_meet_in_a_folder_of_any_name(tmp_path, name):
    """As $TMPDIR may be."""
    folder = tmp_path / name
    folder.mkdir()
    stores = at_once(str(folder / "store"), (0, 1))
    stores[0].set("said", "here")
    assert stores[1].get("said") == b"here" and (folder / "store").exists()


def test_ranks_that_do_not_arrive_are_named(tmp_path):
    FileStore(str(tmp_path / "store"), 3).set("start/asks/2", "a dead rank's token")
    with pytest.raises(RuntimeError, match=r"ranks \[1, 2\] of 3 did not arrive at /"):
        rendezvous_store(str(tmp_path / "store"), 0, 3, timedelta(seconds=0.5))
