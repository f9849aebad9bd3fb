"""Progress of what takes longer than some seconds: a bar on a terminal, plain lines elsewhere; all on stderr."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, ProgressColumn, TextColumn
from rich.progress import Progress as Bar

from shards.console import notice

LINE_EVERY = 10.0  # seconds between plain lines
EVIDENCE = 5.0  # seconds of work without which no time left is reported
MOST_SAMPLES = 64


class Pace:
    """How fast work goes on, and so when it ends: from the later half of what was done since the first piece was
    (which took the start with it), so that it follows a change and no single slow step."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int]] = []  # when, and how much was done by then
        self.spacing = 0.0  # seconds between two samples, at least

    def add(self, now: float, done: int) -> None:
        """So much is done, all in all."""
        if not self.samples or now - self.samples[-1][0] >= self.spacing:
            self.samples.append((now, done))
        if len(self.samples) > MOST_SAMPLES:
            self.samples = self.samples[::2]
            self.spacing = 2 * (now - self.samples[0][0]) / MOST_SAMPLES

    def rate(self, now: float, done: int) -> float | None:
        """How much a second; None before there is evidence."""
        if not self.samples or now - self.samples[0][0] < EVIDENCE:
            return None
        middle = (self.samples[0][0] + now) / 2
        began, before = max(sample for sample in self.samples if sample[0] <= middle)
        return (done - before) / (now - began)


class Progress:
    """Counts images, or what `unit` names, up to `total` (None if it is unknown), as a context manager. With the unit
    "MB" it counts bytes.

    `lines=False` prints no plain lines and no rate, where the caller gives better ones to `say` and `note`;
    `quiet=True` prints nothing (a rank other than the first). `then` names what the command does after this, which the
    time left does not cover.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        *,
        unit: str = "img",
        lines: bool = True,
        quiet: bool = False,
        then: str = "",
    ):
        self.label, self.total, self.unit, self.quiet, self.lines = label, total, unit, quiet, lines
        self.then = f", then {then}" if then else ""
        self.pace = Pace()
        self.done = self.bytes = self.uploaded = 0
        self.began = self.printed = time.monotonic()
        self.shown: int | None = None  # how many were done when a plain line was printed
        self.bar = None
        if not quiet and sys.stderr.isatty():
            columns: list[ProgressColumn] = [TextColumn(label), BarColumn()]
            columns += [DownloadColumn() if unit == "MB" else MofNCompleteColumn()]
            columns += [TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[note]}")]
            columns += [TextColumn("{task.fields[left]}")]
            self.bar = Bar(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task(label, total=total, rate="", note="", left="")

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()
        elif kind is None and self.lines and not self.quiet and self.shown != self.done:
            self._line()

    def advance(self, images: int = 1, bytes: int = 0, uploaded: int = 0) -> None:
        """This many more are done, of `bytes` in total, and so many bytes more are uploaded."""
        self.done += images
        self.bytes += bytes
        self.uploaded += uploaded
        if images:
            self.pace.add(time.monotonic(), self.done)
        if self.bar:
            left = self._left().removeprefix(", ")
            self.bar.update(self.task, completed=self.done, rate=self._rate(), left=left)
        elif self.lines and not self.quiet and time.monotonic() - self.printed > LINE_EVERY:
            self._line()

    def say(self, text: str, ended: bool = False) -> None:
        """Prints a line with the time left, unless the work has `ended`; on a terminal it stands above the bar."""
        if self.bar:
            self.bar.console.print(text, highlight=False, markup=False)
        elif not self.quiet:
            notice(f"{text}{'' if ended else self._left()}")

    def note(self, text: str, line: str) -> None:
        """Shows a text in the bar, beside the rate; where there is no bar, prints the line."""
        if self.bar:
            self.bar.update(self.task, note=text)
        else:
            self.say(line)

    def _line(self) -> None:
        self.printed, self.shown = time.monotonic(), self.done
        unfinished = self.total is not None and self.done < self.total
        ending = self._left() if unfinished else f", {self.printed - self.began:.1f} s in all"
        size = 10**6 if self.unit == "MB" else 1
        of = f"/{self.total // size}" if self.total is not None else ""
        rate = f", {self._rate()}" if self.unit in ("img", "MB") else ""
        notice(f"{self.label}: {self.done // size}{of} {self.unit}{rate}{ending}")

    def _rate(self) -> str:
        if self.unit not in ("img", "MB"):
            return self.unit
        if not self.lines:
            return ""
        seconds = max(time.monotonic() - self.began, 1e-9)
        if self.unit == "MB":
            return f"{self.done / seconds / 1e6:.1f} MB/s"
        megabytes = f", {self.bytes / seconds / 1e6:.1f} MB/s" if self.bytes else ""
        uploaded = f", {self.uploaded / 1e6:.0f} MB uploaded" if self.uploaded else ""
        return f"{self.done / seconds:.0f} img/s{megabytes}{uploaded}"

    def _left(self) -> str:
        """ ", 1 min 2 s left"; empty when there is nothing left, or no evidence yet to tell it by."""
        rate = self.pace.rate(time.monotonic(), self.done)
        if self.total is None or self.done >= self.total:
            return self.then
        if not rate:
            return ""
        seconds = round((self.total - self.done) / rate)
        hours, minutes = seconds // 3600, seconds // 60 % 60
        return f", {f'{hours} h {minutes} min' if hours else f'{minutes} min {seconds % 60} s'} left{self.then}"
