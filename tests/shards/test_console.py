"""Standard error that nobody reads, or that is closed or full, ends no command."""

import os
import sys

import pytest

from shards.console import drop_what_is_unread


def broken_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w", buffering=1)


def full():
    return os.fdopen(os.open("/dev/full", os.O_WRONLY), "w", buffering=1)


def closed():
    stream = full()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [broken_pipe, full, closed, lambda: None])
def test_what_cannot_be_written_is_dropped(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    drop_what_is_unread()
    drop_what_is_unread()  # once is enough
    for _ in range(3000):  # more than a buffer holds
        print("progress", file=sys.stderr, flush=True)
    sys.stderr.flush()


def test_what_can_be_written_is(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    drop_what_is_unread()
    print("progress", file=sys.stderr)
    assert capsys.readouterr().err == "progress\n"
