"""Jobs on a Dask cluster: a shard is a function of its job alone, so any worker that sees the same folders can write
it, and one that is lost with its worker is written again by another.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from shards.errors import InputError
from shards.progress import Progress
from shards.write_shard import ShardJob, WrittenShard, library_versions, write_shard

Result = TypeVar("Result")

PATIENCE = 20.0  # seconds to wait for the scheduler to answer, and for its first worker
AHEAD = 3  # jobs a thread of the cluster that the scheduler holds: more would only take its memory
AGAIN = "run the same command again to continue"


def parse_cluster(text: str) -> str:
    """A scheduler's address as Dask has it, from dask://HOST:PORT. Raises InputError, which repeats no credentials."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urlsplit("")
    if parts.username is not None or parts.password is not None:
        raise InputError("--cluster holds credentials, which Dask does not take: write it like dask://HOST:8786")
    if parts.scheme != "dask" or not host or not port or parts.path.strip("/") or parts.query:
        raise InputError("--cluster is not a scheduler's address: write it like dask://HOST:8786")
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def run_on_cluster(
    address: str, function: Callable[..., WrittenShard], jobs: Sequence[tuple[Any, ...]], label: str, total: int
) -> list[WrittenShard]:
    """`function(*job)` for every job, whose first part is a ShardJob, by the workers of the scheduler at `address`;
    returns the results in the jobs' order. Args: label, total: of the progress display, total in images.

    Raises: InputError when there is no scheduler or worker, when it is lost or lacks this project, and when a worker
    has other libraries or sees other folders; what a job raised first.
    """
    from distributed import CancelledError, KilledWorker, wait

    with _client(address) as client, Progress(label, total) as progress:
        results: dict[int, WrittenShard] = {}
        pending: dict[Any, int] = {}  # futures, and their jobs' numbers
        waiting = iter(enumerate(jobs))
        try:
            while len(results) < len(jobs):
                threads = sum(client.nthreads().values())
                while len(pending) < max(AHEAD * threads, 1) and (following := next(waiting, None)):
                    number, job = following
                    future = client.submit(_on_worker, function, job, library_versions(), pure=False)
                    pending[future] = number
                try:
                    ended = wait([*pending], 1.0, "FIRST_COMPLETED").done  # type: ignore[no-untyped-call]
                except TimeoutError:
                    if not threads:
                        remedy = f"waiting for one (`dask worker {address}`)"
                        progress.note("no workers", f"{label}: the cluster has no workers left; {remedy}")
                    progress.advance(0)
                    continue
                for future in ended:
                    number = pending.pop(future)
                    results[number] = future.result()
                    progress.advance(len(jobs[number][0].ids), _bytes(results[number]))
        except KilledWorker as error:
            lost = f"{error.last_worker.address}: {error.allowed_failures + 1} workers were lost that wrote one shard"
            raise InputError(f"{lost}: {AGAIN}, on workers with more memory") from None
        except RuntimeError as error:
            if not isinstance(error.__cause__, ImportError):
                raise
            lacks = f"the scheduler at {_shown(address)} cannot import this project ({error.__cause__})"
            raise InputError(f"{lacks}: start it, and its workers, where the same version is installed") from None
        except (CancelledError, OSError):
            raise InputError(f"the scheduler at {_shown(address)} was lost: {AGAIN}") from None
        finally:
            if client.status == "running":
                client.cancel(list(pending), force=True)
    return [results[number] for number in range(len(jobs))]


def _bytes(written: WrittenShard) -> int:
    return written.shard.bytes if written.shard else 0


def _shown(address: str) -> str:
    return address.removeprefix("tcp://")


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """Raises InputError when `distributed` is not installed, nothing answers there, or there is no worker."""
    try:
        from distributed import Client
    except ImportError:
        raise InputError("--cluster needs Dask's distributed: pip install '.[cluster]'") from None
    try:
        client = Client(address, timeout=PATIENCE)  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError):
        remedy = "start one with `dask scheduler`, and workers with `dask worker`"
        raise InputError(f"no Dask scheduler answers at {_shown(address)}: {remedy}") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            remedy = f"start some with `dask worker {address}` where this project is installed"
            raise InputError(f"the scheduler at {_shown(address)} has no workers: {remedy}") from None
        yield client


def _on_worker(function: Callable[..., WrittenShard], job: tuple[Any, ...], versions: dict[str, str]) -> WrittenShard:
    """What a worker runs. Raises InputError when it would write other bytes, or does not see the images: they would
    all be taken for unreadable."""
    host = os.uname().nodename
    if (own := library_versions()) != versions:
        differ = ", ".join(
            f"{name} {own[name]} instead of {other}" for name, other in versions.items() if own[name] != other
        )
        raise InputError(
            f"the worker on {host} has {differ}: install the same there, so that its shards have the same bytes"
        )
    shard: ShardJob = job[0]
    out = "--out" if function is write_shard else "--cache"  # where shards wait for their upload
    # A copy of images at a URL is in the other folder, so that is looked for first
    for option, folder, needed in ((out, shard.tar.parent, shard.catalog), ("--imagenet-root", shard.root, shard.root)):
        if not needed.exists():
            remedy = "give a folder that all workers see under that name"
            raise InputError(f"the worker on {host} does not see {option} {folder}: {remedy}")
    return function(*job)
