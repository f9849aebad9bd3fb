"""The errors that users see: bad input, which the command line shows as one line, and unreadable images."""


class InputError(Exception):
    """Raised for bad input. The message is one line: it names the file, sample or option and says what to do."""


class Unreadable(Exception):
    """Raised for bytes that are not an image, or not a complete one. The message is the reason."""
