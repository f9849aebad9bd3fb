"""Standard error: lines for the user; and what cannot be written there, because nobody reads it any more, is dropped.

Its reader may end (a terminal, `head`, a logger), the disk under a log may be full, or the stream may be closed from
the beginning. None of that is a reason to end a conversion or a training run, whose results lie elsewhere.
"""

import os
import sys
from typing import Any, TextIO


def notice(text: str) -> None:
    """A line for the user on standard error."""
    print(text, file=sys.stderr, flush=True)


class Droppable:
    """A text stream whose writes cannot fail."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except (OSError, ValueError):  # ValueError: it is closed
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError):
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def drop_what_is_unread() -> None:
    """Makes standard error of this process one whose writes cannot fail; it may be closed (`2>&-`)."""
    if not isinstance(sys.stderr, Droppable):
        # Opened in its place, so that no file of ours gets the number that C libraries print to
        stream: Any = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        sys.stderr = Droppable(stream)
