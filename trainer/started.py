"""What started this process: torchrun, srun, mpirun or Kubeflow, as one of several; or somebody, alone.

The environment says so: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, which torch.distributed calls env://.
"""

import os
from typing import NamedTuple

from shards.errors import InputError

# What launchers that do not set RANK tell each task: its number, and how many there are
TASKS = {
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "mpiexec": ("PMI_RANK", "PMI_SIZE"),
}
LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
LOCAL_WORLD_SIZES = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
ALONE = "WORLD_SIZE=1 makes each a run of its own"


class Started(NamedTuple):
    """This process among those that were started together.

    local_rank: its number on its machine, None where nothing tells; local_world_size: how many are there, 1 where
    nothing tells; by: torchrun, or what else set RANK.
    """

    rank: int
    world_size: int
    local_rank: int | None
    local_world_size: int
    by: str


def started() -> Started | None:
    """What the environment says of this process, None when it is alone. Raises InputError for what it says in part, or
    in values that cannot be, and where several were started that do not know of one another."""
    rank, world_size = _number("RANK"), _number("WORLD_SIZE")
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if world_size == 1 and not by_torchrun:
        return None
    if rank is None and world_size is None:
        _check_alone()
        return None
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if lacking := [name for name in names if not os.environ.get(name)]:
        given = ", ".join(f"{name} is {os.environ[name]}" for name in names[:2] if name in os.environ)
        raise InputError(f"{given}, but {' and '.join(lacking)} not set: set all of {', '.join(names)}, or none")
    assert rank is not None and world_size is not None
    if not rank < world_size:
        raise InputError(f"RANK is {rank} and WORLD_SIZE {world_size}: ranks are counted from 0")
    _number("MASTER_PORT")
    local_rank = next((number for name in LOCAL_RANKS if (number := _number(name)) is not None), None)
    local_world_size = next((number for name in LOCAL_WORLD_SIZES if (number := _number(name))), 1)
    return Started(rank, world_size, local_rank, local_world_size, "torchrun" if by_torchrun else "RANK and WORLD_SIZE")


def _number(name: str) -> int | None:
    """A variable's value, None when it is not set. Raises InputError when it is not a number."""
    text = os.environ.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"{name} is {text!r} in the environment, and not a number: set it, or unset it")
    return int(text)


def _check_alone() -> None:
    """Raises InputError when a launcher started several tasks of which each would be a run of its own."""
    for launcher, (rank_name, size_name) in TASKS.items():
        rank, size = _number(rank_name), _number(size_name)
        if rank is not None and (rank > 0 or (size or 1) > 1):
            task = f"{rank}{f' of {size}' if size else ''}"
            raise InputError(
                f"{launcher} started this as task {task}, and each would be a run of its own: set RANK=${rank_name}, "
                f"WORLD_SIZE, MASTER_ADDR and MASTER_PORT in each, or let {launcher} start torchrun; {ALONE}"
            )


def unjoined_tasks() -> str | None:
    """What to tell of a process that is alone where Slurm has room for more, as in a batch script without srun."""
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if "SLURM_PROCID" in os.environ and tasks != "1" and "SLURM_STEP_NUM_TASKS" not in os.environ:
        return f"SLURM_NTASKS is {tasks}, and this process works alone: srun with RANK and WORLD_SIZE would use all"
    return None
