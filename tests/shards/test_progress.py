"""Progress says each thing once."""

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


def test_a_bar_shows_one_rate(monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    rates = {}
    for lines in (True, False):
        shown = Progress("train", 20, lines=lines)
        shown.advance(10)
        rates[lines] = shown.bar.tasks[0].fields["rate"]
    assert rates[True].endswith("img/s") and rates[False] == ""
