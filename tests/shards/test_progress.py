"""Progress says each thing once."""

import re

import pytest

from shards import progress
from shards.progress import Progress


def test_the_last_line_is_printed_once(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY", -1.0)  # after every batch
    with Progress("eval", 20) as shown:
        shown.advance(10)
        shown.advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["eval: 10/20 img", "eval: 20/20 img"]


def test_what_is_done_between_lines_is_printed_at_the_end(capsys):
    with Progress("eval", 20) as shown:
        shown.advance(20)
    assert capsys.readouterr().err.startswith("eval: 20/20 img, ")


def test_bytes_are_shown_in_megabytes_with_their_rate(clock, capsys):
    with Progress("copy", 80_000_000, unit="MB") as shown:
        for _ in range(4):
            clock.now += 4
            shown.advance(10_000_000, 10_000_000)
        assert reported(shown, capsys) == "copy: 30/80 MB, 2.5 MB/s, 0 min 20 s left\nso far, 0 min 16 s left"


def test_a_bar_shows_one_rate(monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    rates = {}
    for lines in (True, False):
        shown = Progress("train", 20, lines=lines)
        shown.advance(10)
        rates[lines] = shown.bar.tasks[0].fields["rate"]
    assert rates[True].endswith("img/s") and rates[False] == ""


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves on."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def work(shown, clock, steps, seconds):
    for _ in range(steps):
        clock.now += seconds
        shown.advance(1)


def reported(shown, capsys, **how):
    shown.say("so far", **how)
    return capsys.readouterr().err.strip()


def test_no_time_left_is_reported_before_there_is_evidence_and_the_start_is_none(clock, capsys):
    shown = Progress("train", 100, lines=False)
    assert reported(shown, capsys) == "so far"
    work(shown, clock, 1, 60.0)  # the start, and a step that compiles
    assert reported(shown, capsys) == "so far"
    work(shown, clock, 4, 1.0)
    assert reported(shown, capsys) == "so far"
    work(shown, clock, 5, 1.0)
    assert reported(shown, capsys) == "so far, 1 min 30 s left"


@pytest.mark.parametrize("total", [200, 20_000])
def test_the_time_left_follows_the_pace_of_the_later_half(clock, capsys, total):
    shown = Progress("train", total, lines=False)
    work(shown, clock, total // 10, 4.0)
    work(shown, clock, total // 2, 1.0)
    left = re.search(r"(?:(\d+) h )?(\d+) min(?: (\d+) s)? left", reported(shown, capsys))
    hours, minutes, seconds = (int(value or 0) for value in left.groups())
    assert 3600 * hours + 60 * minutes + seconds == pytest.approx(0.4 * total, rel=0.05, abs=60 * bool(hours))
    assert len(shown.pace.samples) <= progress.MOST_SAMPLES


def test_what_has_ended_has_no_time_left_and_what_follows_is_named(clock, capsys):
    shown = Progress("measuring", 20, lines=False, then="scaling")
    work(shown, clock, 15, 1.0)
    assert reported(shown, capsys) == "so far, 0 min 5 s left, then scaling"
    assert reported(shown, capsys, ended=True) == "so far"
    work(shown, clock, 5, 1.0)
    assert reported(shown, capsys) == "so far, then scaling"
