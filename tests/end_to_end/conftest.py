"""A finished run that many tests read and nobody writes to."""

import pytest
from click.testing import CliRunner

from cli import main

SMALL = ["--device", "cpu", "--width", 0.05, "--batch-size", 8, "--lr", 0.001]
SMALL += ["--log-every", 3, "--checkpoint-every", 5]


@pytest.fixture(scope="session")
def unbroken(data, tmp_path_factory):
    """A run of 16 steps (an epoch is 12) on one device."""
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    words = ["train", "--data", data, "--out", out, "--steps", 16, *SMALL]
    done = CliRunner().invoke(main, [*map(str, words)])
    assert done.exit_code == 0, done.output
    return out
