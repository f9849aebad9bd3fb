"""The one exception that means "what the user gave is wrong", so that the command line can show it as a line."""


class InputError(Exception):
    """Raised for bad input. The message is one line: it names the file, sample or option and says what to do."""
