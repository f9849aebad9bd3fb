"""Processes that srun, mpirun or Kubeflow started join, or say what is wrong; none trains alone unnoticed."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest

from shards.errors import InputError
from tests.conftest import PROJECT, free_port
from trainer import launch as launching
from trainer.started import ALONE, Started, started, unjoined_tasks

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
PAIR = {"RANK": "1", "WORLD_SIZE": "2", **MEETING}


@pytest.fixture
def environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM", "OMPI", "PMI", "MPI", "TORCHELASTIC"))]:
        monkeypatch.delenv(name)
    return lambda values: [monkeypatch.setenv(name, value) for name, value in values.items()]


@pytest.mark.parametrize(
    "values, expected",
    [
        ({}, None),
        ({"WORLD_SIZE": "1"}, None),
        ({"WORLD_SIZE": "1", "RANK": "0", **MEETING}, None),
        ({"WORLD_SIZE": "1", "SLURM_PROCID": "3"}, None),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),
        (PAIR, (1, 2, None, 1)),
        ({**PAIR, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (1, 2, 1, 2)),
        ({**PAIR, "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, (1, 2, 0, 1)),
        ({**PAIR, "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, (1, 2, 1, 2)),
    ],
)
def test_what_was_started_is_read_from_the_environment(environment, values, expected):
    environment(values)
    assert started() == (expected and Started(*expected, "RANK and WORLD_SIZE"))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is '' in the environment, and not a number"),
        ({**PAIR, "RANK": ""}, "RANK is ''"),
        ({**PAIR, "RANK": "-1"}, "RANK is '-1'"),
        ({**PAIR, "LOCAL_RANK": "one"}, "LOCAL_RANK is 'one'"),
        ({**PAIR, "MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        ({**PAIR, "RANK": "2"}, "RANK is 2 and WORLD_SIZE 2"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK and MASTER_ADDR and MASTER_PORT not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "RANK is 0, WORLD_SIZE is 2, but MASTER_ADDR and MASTER_PORT not set"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, f"srun started this as task 1, .*{ALONE}"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, "srun started this as task 0 of 2, .*RANK=.SLURM_PROCID"),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"}, "mpirun started this as task 0 of 4"),
        ({"PMI_RANK": "2"}, "mpiexec started this as task 2"),
    ],
)
def test_what_cannot_be_or_would_train_alone_is_refused(environment, values, message):
    environment(values)
    with pytest.raises(InputError, match=message):
        started()


def test_a_batch_script_with_tasks_to_spare_is_told(environment):
    environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"})
    assert started() is None and "SLURM_NTASKS is 2, and this process works alone" in unjoined_tasks()


def work(context):
    raise AssertionError("nobody came")


def test_ranks_that_do_not_come_are_waited_for_in_vain_but_not_for_ever(environment, monkeypatch, capsys):
    environment({**PAIR, "RANK": "0", "MASTER_PORT": str(free_port())})
    monkeypatch.setattr(launching, "MEETING", timedelta(seconds=1))
    with pytest.raises(InputError, match=r"rank 0: the 2 ranks did not meet at 127.0.0.1:\d+ within 1 s"):
        launching.launch(work, None, "cpu")
    assert "for the other ranks of 2" in capsys.readouterr().err
    with pytest.raises(InputError, match="--gpus 4 but RANK and WORLD_SIZE started 2 processes"):
        launching.launch(work, 4, "cpu")


JOINING = """
import torch, torch.distributed as dist
from trainer.launch import launch

def work(context):
    total = torch.tensor(context.rank + 1.0)
    dist.all_reduce(total)
    print("sum", total.item(), flush=True)

if __name__ == "__main__":
    launch(work, None, "cpu")
"""


def test_ranks_that_anything_started_join(tmp_path):
    (tmp_path / "joining.py").write_text(JOINING)
    shared = {**os.environ, **PAIR, "MASTER_PORT": str(free_port()), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, str(tmp_path / "joining.py")]
    ranks = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**shared, "RANK": rank}) for rank in "01"
    ]
    assert [rank.communicate(timeout=120)[0] for rank in ranks] == ["sum 3.0\n"] * 2
