"""Where the processes of a group find one another, at each start anew."""

import time
from datetime import timedelta
from uuid import uuid4

from torch.distributed import PrefixStore, Store
from torch.distributed.constants import default_pg_timeout
from torch.distributed.rendezvous import rendezvous


def rendezvous_store(address: str, rank: int, world_size: int, timeout: timedelta = default_pg_timeout) -> Store:
    """A store that only the ranks of this start share, at an address as torch.distributed takes it: env:// or file://.

    torchrun keeps one store through all starts of its workers, and torch puts no start's number into the keys (as
    read in 2.13: torch/distributed/rendezvous.py, _create_c10d_store). A rank that is started again and is early then
    reads where another listened that has died, and is refused or waits for ever. TORCHELASTIC_RESTART_COUNT does not
    tell the starts apart: each node counts its own failures. So the first rank names a new part of the store, and each
    other one asks for that name with a word that nobody has asked with before: its answer cannot be an old one.

    Raises: RuntimeError on the first rank, naming those that have not come in time; DistStoreError on the others.
    """
    store, _, _ = next(rendezvous(address, rank, world_size, timeout=timeout))
    if rank > 0:
        word = uuid4().hex
        store.set(f"start/asks/{rank}", word)
        part = store.get(f"start/answers/{word}").decode()
        store.set(f"{part}/came/{rank}", "")
        return PrefixStore(part, store)
    part = uuid4().hex
    missing = list(range(1, world_size))
    deadline = time.monotonic() + timeout.total_seconds()
    while missing:
        if time.monotonic() > deadline:
            raise RuntimeError(f"ranks {missing} of {world_size} have not come to {address}")
        for other in missing:
            asks = f"start/asks/{other}"
            if store.check([asks]):  # by a dead one, maybe: answered too, and asked again until the living one has come
                store.set(f"start/answers/{store.get(asks).decode()}", part)
        time.sleep(0.01)
        missing = [other for other in missing if not store.check([f"{part}/came/{other}"])]
    return PrefixStore(part, store)
