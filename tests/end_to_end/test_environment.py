"""The same command does the same in every environment that a machine may have."""

import io
import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from tests.conftest import PROJECT

ODD = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


@pytest.fixture
def named_oddly(tmp_path):
    """Two classes: one has a name beyond ASCII, the other's is not UTF-8."""
    root = tmp_path / "source"
    for split in ("train", "val"):
        for name in ("Größe", os.fsdecode(b"caf\xe9")):
            for number in range(2):
                file = io.BytesIO()
                Image.new("RGB", (32, 32), (number * 90, 60, 120)).save(file, "JPEG")
                path = root / split / name / f"ü{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.getvalue())
    return root


def test_names_are_the_same_in_every_locale(run_cli, named_oddly, tmp_path):
    described, shown = [], []
    for number, environment in enumerate(({}, ODD)):
        out = tmp_path / f"out {number} ü"
        environment = {**os.environ, **environment}
        run_cli("shard", "--imagenet-root", named_oddly, "--out", out, "--workers", 1, env=environment)
        described.append((out / "dataset.json").read_text(encoding="utf-8"))
        shown.append(run_cli("info", out, env=environment, encoding="utf-8").stdout.partition(":")[2])
    assert described[0] == described[1] and shown[0] == shown[1]
    assert [entry["wnid"] for entry in json.loads(described[0])["classes"]] == ["Größe", os.fsdecode(b"caf\xe9")]
    assert "Größe" in shown[0] and "caf" in shown[0]


CLOSED = """
import os, sys
os.close(int(sys.argv[1]))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_closed_standard_stream_is_nowhere_and_no_file(tmp_path, number):
    code = "import os, sys, cli; cli.open_standard_streams(); print(os.readlink(f'/proc/self/fd/{sys.argv[1]}'), "
    code += "file=open(sys.argv[2], 'w')); print('said'); print('said', file=sys.stderr); os.system(sys.argv[3])"
    child = f'n=$(readlink /proc/$$/fd/{number}); echo "$n" >> {tmp_path}/said'
    command = [sys.executable, "-c", CLOSED, str(number), "-c", code, str(number), str(tmp_path / "said"), child]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "said").read_text() == "/dev/null\n/dev/null\n"


def test_without_docstrings_the_command_says_why_it_does_not_start(run_cli, tmp_path):
    done = run_cli("info", tmp_path, check=False, env={**os.environ, "PYTHONOPTIMIZE": "2"})
    assert done.returncode == 1 and "leave -OO and PYTHONOPTIMIZE=2 out" in done.stderr
