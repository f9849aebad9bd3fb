"""The indices of a whole split as one array in a file, which is mapped into memory: a cache of the `.idx` files.

Reading the index files takes seconds for ImageNet and their lines take hundreds of megabytes, for each process. The
array takes neither: all processes share its pages, and a page is read when a sample on it is. It lies in the user's
cache folder, so that a data set's own folder holds nothing but what was written there.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from shards.atomic import atomic_write
from shards.errors import InputError
from shards.index import POSITION

KEY_SIZE = hashlib.sha256().digest_size  # bytes at the beginning of the file, before the array's
MIN_CACHED = 50_000  # samples of a split: fewer are read from their index files in a fifth of a second


def cached_positions(
    path: Callable[[], Path],
    state: Callable[[], bytes],
    samples: int,
    read: Callable[[], Iterable[np.ndarray]],
    notice: Callable[[str], None],
) -> np.ndarray:
    """The positions of a split's samples, `shards.index.POSITION`: from the file `path()`, or read anew and kept there.

    A small split has no file, and neither has one whose file cannot be written, of which a notice tells.

    Args: state: describes the index files and the tars as they are; a file made in another state is stale; samples:
    how many there are; read: gives the positions of one shard after another.
    """
    if samples >= MIN_CACHED:
        with contextlib.suppress(OSError, ValueError, InputError):  # there is no file, or a shorter one
            return _mapped(path(), _key(state()), samples)
    positions = np.concatenate([*read(), np.empty(0, POSITION)])
    if samples < MIN_CACHED:
        return positions
    key = _key(state())  # reading may have mended an index file
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path()) as file:
            file.write(key)
            file.write(positions.data)
        return _mapped(path(), key, samples)
    except (InputError, OSError) as error:
        notice(f"the indices are not cached, and read again at each start: {error}")
        return positions


def _key(state: bytes) -> bytes:
    return hashlib.sha256(str(POSITION.descr).encode() + state).digest()


def _mapped(path: Path, key: bytes, samples: int) -> np.ndarray:
    """The file's array. Raises OSError or ValueError when it is absent, short, or has another key."""
    with open(path, "rb") as file:
        if file.read(KEY_SIZE) != key:
            raise ValueError("stale")
        return np.asarray(np.memmap(file, POSITION, "r", KEY_SIZE, (samples,)))
