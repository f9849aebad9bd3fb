"""The errors that users see: bad input, which the command line shows as one line, and unreadable images."""


class InputError(Exception):
    """Raised for bad input. The message is one line: it names the file, sample or option and says what to do."""


def reason(error: Exception) -> str:
    """An error of a library in a short line, to stand in a message: some texts have many lines, and what Python shows
    of a UnicodeDecodeError has the whole file."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


class Unreadable(Exception):
    """Raised for bytes that are not an image, or not a complete one. The message is the reason."""
