"""Progress of what takes longer than some seconds: a bar on a terminal, plain lines elsewhere; all on stderr."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_EVERY = 10.0  # seconds between plain lines


class Progress:
    """Counts images, or what `unit` names, up to `total` (None if it is unknown), as a context manager.

    `lines=False` prints no plain lines and no rate, where the caller gives better ones to `say` and `note`;
    `quiet=True` prints nothing (a rank other than the first).
    """

    def __init__(self, label: str, total: int | None, *, unit: str = "img", lines: bool = True, quiet: bool = False):
        self.label, self.total, self.unit, self.quiet, self.lines = label, total, unit, quiet, lines
        self.done = self.bytes = 0
        self.began = self.printed = time.monotonic()
        self.shown: int | None = None  # how many were done when a plain line was printed
        self.bar = None
        if not quiet and sys.stderr.isatty():
            columns: list[ProgressColumn] = [TextColumn(label), BarColumn(), MofNCompleteColumn()]
            columns += [TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[note]}"), TimeRemainingColumn()]
            self.bar = Bar(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task(label, total=total, rate="", note="")

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

    def advance(self, images: int = 1, bytes: int = 0) -> None:
        """This many more are done, of `bytes` in total."""
        self.done += images
        self.bytes += bytes
        if self.bar:
            self.bar.update(self.task, completed=self.done, rate=self._rate())
        elif self.lines and not self.quiet and time.monotonic() - self.printed > LINE_EVERY:
            self._line()

    def say(self, text: str) -> None:
        """Prints a line with the time left; on a terminal it stands above the bar."""
        if self.bar:
            self.bar.console.print(text, highlight=False)
        elif not self.quiet:
            print(f"{text}, {self._left()}", file=sys.stderr, flush=True)

    def note(self, text: str, line: str) -> None:
        """Shows a text in the bar, beside the rate; where there is no bar, prints the line."""
        if self.bar:
            self.bar.update(self.task, note=text)
        else:
            self.say(line)

    def _line(self) -> None:
        self.printed, self.shown = time.monotonic(), self.done
        ending = self._left() if self.total and self.done < self.total else f"{self.printed - self.began:.1f} s in all"
        of = f"/{self.total}" if self.total is not None else ""
        rate = f"{self._rate()}, " if self.unit == "img" else ""
        print(f"{self.label}: {self.done}{of} {self.unit}, {rate}{ending}", file=sys.stderr, flush=True)

    def _rate(self) -> str:
        if self.unit != "img":
            return self.unit
        if not self.lines:
            return ""
        seconds = max(time.monotonic() - self.began, 1e-9)
        megabytes = f", {self.bytes / seconds / 1e6:.1f} MB/s" if self.bytes else ""
        return f"{self.done / seconds:.0f} img/s{megabytes}"

    def _left(self) -> str:
        if not self.done or self.total is None:
            return "time left unknown"
        seconds = round((self.total - self.done) * (time.monotonic() - self.began) / self.done)
        hours, minutes = seconds // 3600, seconds // 60 % 60
        return f"{hours} h {minutes} min left" if hours else f"{minutes} min {seconds % 60} s left"
