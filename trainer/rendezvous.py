"""How the processes of a group find one another, at each start again."""

import os
import time
from datetime import timedelta
from uuid import uuid4

from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.distributed.constants import default_pg_timeout
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous


def rendezvous_store(address: str, rank: int, world_size: int, timeout: timedelta = default_pg_timeout) -> Store:
    """A store that only the ranks of this start share, at an address: a file's path, or env:// as torchrun sets it up.

    torchrun keeps one store through all starts of its workers, and torch does not put the start's number into the keys
    (as read in 2.13: torch/distributed/rendezvous.py, _create_c10d_store). A rank that is started again and is early
    then reads the address of a dead one, and is refused or waits forever. TORCHELASTIC_RESTART_COUNT does not
    distinguish the starts: each node counts its own failures. So the first rank chooses a new prefix for the store's
    keys, and each other rank asks for it with a token that was never used before: its answer cannot be an old one.

    Raises: RuntimeError on the first rank, naming those that did not arrive in time; DistStoreError on the others.
    """
    store: Store
    if address == "env://":
        store, _, _ = next(rendezvous(address, rank, world_size, timeout=timeout))
    else:
        # Not as a file:// URL: torch does not read back what a URL escapes, blanks for instance
        store = FileStore(os.fsencode(address), world_size)  # type: ignore[arg-type]
    if rank > 0:
        token = uuid4().hex
        store.set(f"start/asks/{rank}", token)
        prefix = store.get(f"start/answers/{token}").decode()
        store.set(f"{prefix}/arrived/{rank}", "")
        return PrefixStore(prefix, store)
    prefix = uuid4().hex
    missing = list(range(1, world_size))
    deadline = time.monotonic() + timeout.total_seconds()
    while missing:
        if time.monotonic() > deadline:
            raise RuntimeError(f"ranks {missing} of {world_size} did not arrive at {address}")
        for other in missing:
            asks = f"start/asks/{other}"
            if store.check([asks]):  # A dead rank's question is answered too, until the living rank has arrived
                store.set(f"start/answers/{store.get(asks).decode()}", prefix)
        time.sleep(0.01)
        missing = [other for other in missing if not store.check([f"{prefix}/arrived/{other}"])]
    return PrefixStore(prefix, store)
