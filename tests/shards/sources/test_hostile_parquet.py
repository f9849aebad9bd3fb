"""A hostile parquet file can neither write elsewhere nor use up the memory: worker processes read it, as in use."""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from shards.convert import ConvertOptions, write_dataset
from tests.conftest import PROJECT
from tests.support.image_kinds import encoded, noise
from tests.support.source_checks import contents, tree
from tests.support.source_layouts import write_parquet


def test_hostile_names_in_parquet_write_nothing_elsewhere(tmp_path):
    root, out = tmp_path / "a" / "root", tmp_path / "a" / "out"
    names = [
        "../../evil.JPEG",
        str(tmp_path / "evil.JPEG"),
        "..",
        "a\0b.JPEG",
        "/",
        "x" * 10**6,
        "\n\r.JPEG",
        "../../evil.JPEG",
    ]
    write_parquet(
        root / "train-0.parquet", [(encoded(noise(size=(16, 16 + n))), name, n) for n, name in enumerate(names)]
    )
    before = tree(tmp_path)
    dataset = write_dataset(root, out, ConvertOptions(workers=1))
    assert {(path, size) for path, size in tree(tmp_path) if not path.startswith(str(out))} == before
    assert sum(size for _, size in tree(out)) < 50_000  # the long name is nowhere
    keys = [key for _, key, *_ in contents(dataset)]
    assert len(set(keys)) == len(keys) == len(names) and all("/" not in key and "." not in key for key in keys)


def bomb(path: Path, data: bytes, name: str, rows: int, dictionary: bool) -> None:
    """A small parquet file of very many rows, all of one value."""
    import pyarrow
    from pyarrow.parquet import write_table

    def many(value):
        return pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(rows, np.int8)), pyarrow.array([value]))

    image = pyarrow.StructArray.from_arrays([many(data), many(name)], ["bytes", "path"])
    table = pyarrow.table({"image": image, "label": pyarrow.array(np.zeros(rows, np.int8))})
    path.parent.mkdir(parents=True)
    write_table(table, path, store_schema=dictionary)


CONVERT = """
import resource, sys
from pathlib import Path
from shards.convert import ConvertOptions, write_dataset
from shards.errors import InputError

try:
    write_dataset(Path(sys.argv[1]), Path(sys.argv[2]), ConvertOptions(workers=1))
except InputError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.parametrize(
    "data, name, rows, dictionary",
    [
        (bytes(4_000_000), "a.jpg", 1_000_000, False),  # 4 TB of images
        (bytes(140_000_000), "a.jpg", 1000, False),  # more in a batch than a worker may hold
        (b"", "x" * 4_000_000, 1_000_000, False),
        (b"", "a.jpg", 5_000_000, False),
        (b"", "a.jpg", 1000, True),
    ],
    ids=["pictures", "huge images", "names", "rows", "dictionary columns"],
)
def test_a_parquet_bomb_is_refused_soon(tmp_path, data, name, rows, dictionary):
    bomb(tmp_path / "root" / "train-0.parquet", data, name, rows, dictionary)
    assert (tmp_path / "root" / "train-0.parquet").stat().st_size < 10_000_000
    # In a process of its own, whose children's memory is that of this conversion's workers alone
    command = [sys.executable, "-c", CONVERT, str(tmp_path / "root"), str(tmp_path / "set")]
    began = time.monotonic()
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert re.search(r"train-0\.parquet (decompresses to|asks for too much|has the columns)", done.stdout), done.stderr
    assert time.monotonic() - began < 15
    assert int(done.stdout.splitlines()[-1]) < 3 * 2**20  # KiB
    assert not (tmp_path / "set").exists() or sum(size for _, size in tree(tmp_path / "set")) < 10**6
