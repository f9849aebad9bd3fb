"""Numbers and their nouns in messages."""

from collections.abc import Sized


def counted(number: int | Sized, noun: str) -> str:
    """A number (or how many things these are) with its noun: "1 shard", "2 classes", "1,000 images"."""
    if isinstance(number, Sized):
        number = len(number)
    if number != 1:
        noun += "es" if noun.endswith(("s", "x", "ch")) else "s"
    return f"{number:,} {noun}"
