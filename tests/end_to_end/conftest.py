"""A finished run that many tests read and nobody writes to."""

import subprocess
import sys

import pytest

from tests.conftest import PROJECT

SMALL = ["--device", "cpu", "--width", 0.05, "--batch-size", 8, "--lr", 0.001]
SMALL += ["--log-every", 3, "--checkpoint-every", 5]


@pytest.fixture(scope="session")
def unbroken(data, tmp_path_factory):
    """A run of 16 steps (an epoch is 12) on one device."""
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    command = [sys.executable, PROJECT / "cli.py", "train", "--data", data, "--out", out, "--steps", 16, *SMALL]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return out
