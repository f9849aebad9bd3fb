"""Reads tars that somebody else may have made: headers only, bounded memory, nothing ever unpacked.

The standard library's tarfile trusts the size that a header declares (a long name of 2^60 bytes is read into memory)
and keeps every member it has seen. Here a name is at most some kilobytes, a size beyond the tar's end is an error, and
names are never used as paths: links, devices and folders are skipped. Tars that lie one behind the other in a file are
read as one (GNU tar's -i): the empty blocks that end the first hide nothing.
"""

import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from shards.errors import InputError
from shards.hidden import is_hidden

BLOCK = 512  # bytes; headers and data fill a multiple of it
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")  # of a sample's image, in lower or upper case
MAX_TEXT = 64 * 1024  # bytes of a long name, an extended header or a description
MAX_PARTS = 64  # files of one sample
REMEDY = "it is damaged or cut short: bring an undamaged copy"
FILES = b"0\0007"
# How files begin that were compressed, and what decompresses them
COMPRESSED = {b"\x1f\x8b": "gzip -dc", b"BZh": "bzip2 -dc", b"\xfd7zXZ": "xz -dc", b"\x28\xb5\x2f\xfd": "zstd -dc"}
SHOWN = 6  # extensions in a message
SCANNED = 64 * 1024  # bytes that are looked at together for the end of empty blocks
RECORD = re.compile(rb"(\d{1,9}) ([^=]+)=")  # how a line of a pax header begins
NOT_PLAIN = b"12S"  # hard and symbolic links, sparse files
WITHOUT_DATA = b"123456"  # links, devices, folders, pipes: whatever size they declare, no data follows


class Member(NamedTuple):
    """A file in a tar: where its data begins, counted from the beginning of the file that was opened, and its size."""

    name: str
    offset: int
    size: int


class TarSample(NamedTuple):
    """Adjacent members with one key (WebDataset's convention: the name up to its first dot), by extension, which counts
    in lower and upper case."""

    key: str
    parts: dict[str, Member]

    @property
    def image(self) -> Member | None:
        """The first image in the tar, which is the one that DALI's reader takes."""
        return next((part for extension, part in self.parts.items() if extension.lower() in IMAGE_EXTENSIONS), None)

    def part(self, extension: str) -> Member | None:
        """The part of this extension, which is given in lower case."""
        return next((part for other, part in self.parts.items() if other.lower() == extension), None)

    @property
    def fault(self) -> str | None:
        """Why it is not one image with one class number, and what it has instead; None when it is one."""
        endings = {extension.lower() for extension in self.parts if "." in extension}
        stems = (ending.rpartition(".")[0] for ending in endings if ending.rpartition(".")[2] in IMAGE_EXTENSIONS)
        if self.image is None:
            what = f"no image ({', '.join(IMAGE_EXTENSIONS)}), only"
        elif self.part("cls") is None:
            what = "no .cls, only"
        elif any(f"{stem}.cls" in endings for stem in stems):
            what = "the files of several samples,"
        else:
            return None
        hint = " (a key ends at the first dot of a name: put another character there)" if endings else ""
        return f"{what} {listed(self.parts)}{hint}"


def padded(length: int) -> int:
    """Bytes that data of this length takes in a tar."""
    return -(-length // BLOCK) * BLOCK


def members(
    file: int | bytes, where: str, start: int = 0, end: int | None = None, passed_over: list[str] | None = None
) -> Iterator[Member]:
    """The files of the tar that lies in bytes `start` to `end` of an open file.

    Args: file: a file descriptor, or the tar's bytes themselves; where: the tar's name, for messages; passed_over: gets
    the names of links and sparse files. Raises: InputError, naming the member, when a header is damaged or declares
    more than there is, or the tar has no end.
    """

    def read(size: int, at: int) -> bytes:
        return file[at : at + size] if isinstance(file, bytes) else os.pread(file, size, at)

    if end is None:
        end = len(file) if isinstance(file, bytes) else os.fstat(file).st_size
    position, long_name, long_size, ended = start, None, None, False
    while position < end:
        header = read(min(BLOCK, end - position), position)
        if header == bytes(len(header)) and (ended or len(header) == BLOCK):
            position, ended = _after_zeros(read, position, start, end), True
            continue
        try:
            _check(header)
            size = _number(header[124:136]) if long_size is None else long_size
        except ValueError as error:
            if len(header) < BLOCK and not ended and not (position == start and _compression(header)):
                break
            raise _no_header(where, header, position - start, end - position if ended else None, error) from None
        kind = header[156]
        name = _name(header) if long_name is None else long_name
        data, long_size, ended = position + BLOCK, None, False
        size = 0 if kind in WITHOUT_DATA else size
        if data + size > end:
            raise InputError(f"{where}: {name[:80]!r} declares {size} bytes and {end - data} are left: {REMEDY}")
        if kind in b"LxK":
            if size > MAX_TEXT:
                raise InputError(f"{where}: a name of {size} bytes at byte {position - start}: {REMEDY}")
            if kind == ord("L"):
                long_name = _text(read(size, data).rstrip(b"\0"))
            elif kind == ord("x"):
                long_name, long_size = _extended(read(size, data), long_name)
        else:
            if kind in FILES:
                yield Member(name, data, size)
            elif kind in NOT_PLAIN and passed_over is not None and not is_hidden(name):
                passed_over.append(name)
            long_name = None
        position = data + padded(size)
    if not ended:
        raise InputError(f"{where}: the tar has no end ({end - start} bytes): {REMEDY}")


def samples(tar: Path, passed_over: list[str] | None = None) -> Iterator[TarSample]:
    """A WebDataset tar's samples; empty and hidden members do not count. Args and raises as `members`."""
    key = ""
    parts: dict[str, Member] = {}
    with opened(tar) as file:
        for member in members(file, str(tar), passed_over=passed_over):
            folder, _, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            if not (stem and extension and member.size) or is_hidden(member.name):
                continue
            full = f"{folder}/{stem}" if folder else stem
            if full != key or extension in parts:
                if parts:
                    yield TarSample(key, parts)
                key, parts = full, {}
            if len(parts) == MAX_PARTS:
                raise InputError(f"{tar}: sample {key!r} has more than {MAX_PARTS} files: this is not a WebDataset tar")
            parts[extension] = member
        if parts:
            yield TarSample(key, parts)


def repeated(first: Iterable[str], second: Iterable[str]) -> str:
    """Why samples of a tar that have one key, and these extensions, cannot be used."""
    if set(first).isdisjoint(second):
        mend = "mkdir DIR && tar -xf OLD.tar -C DIR && tar --sort=name -cf NEW.tar -C DIR ."
        return f"its {listed(first)} and {listed(second)} lie apart: the tar is not sorted by name; sort it: `{mend}`"
    return "its key comes twice in the shard (`python cli.py shard` gives each sample a key of its own)"


def listed(extensions: Iterable[str]) -> str:
    """The first extensions, to be shown."""
    some = [f".{extension}" for extension in extensions]
    return ", ".join(some[:SHOWN]) + (f" and {len(some) - SHOWN} more" if len(some) > SHOWN else "")


def description(file: int, sample: TarSample) -> dict[str, Any]:
    """A sample's `.json`, empty where it has none that can be read."""
    part = sample.part("json")
    if part is None or part.size > MAX_TEXT:
        return {}
    try:
        content = json.loads(os.pread(file, part.size, part.offset))
    except (ValueError, RecursionError):
        return {}  # somebody else's, of any form
    return content if isinstance(content, dict) else {}


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A file descriptor to read from. Raises InputError when there is no such file or it may not be read."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # otherwise a pipe of that name would be waited for
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise InputError(f"{path} is not a regular file: move it away")
        yield file
    finally:
        os.close(file)


def header(name: bytes, size: int) -> bytes:
    """A plain file's header. Owner and time are fixed, so that a tar's bytes depend on its content alone.

    The same bytes as tarfile.TarInfo(name).tobuf(USTAR_FORMAT), in a tenth of the time; a name has at most 100 bytes.
    """
    block = bytearray(_TEMPLATE)
    block[: len(name)] = name
    block[124:135] = b"%011o" % size
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


# The checksum's field counts as eight blanks; the last of them stays
_TEMPLATE = b"".join(
    [bytes(100), b"0000644\0", b"0000000\0" * 2, b"00000000000\0" * 2, b" " * 8, b"0", bytes(100), b"ustar\00000"]
).ljust(BLOCK, b"\0")


def _after_zeros(read: Callable[[int, int], bytes], position: int, start: int, end: int) -> int:
    """The first block behind `position` with a byte that is not zero, or the end."""
    while position < end:
        some = read(min(SCANNED, end - position), position)
        if not some:
            return end  # the file became shorter
        zeros = len(some) - len(some.lstrip(b"\0"))
        position += zeros
        if zeros < len(some):
            return position - (position - start) % BLOCK
    return end


def _no_header(where: str, block: bytes, at: int, behind: int | None, error: ValueError) -> InputError:
    """What is wrong with a block that is no header. Args: behind: how many bytes lie from it on, behind the tar's end;
    None within the tar."""
    if behind is not None:
        remedy = "bring an undamaged copy, or cut them off"
        return InputError(
            f"{where}: {behind} bytes lie behind the tar's end, from byte {at} on, and are not a tar's: {remedy}"
        )
    if compression := _compression(block) if at == 0 else None:
        return InputError(f"{where} is compressed: decompress it (`{compression} OLD > NEW.tar`)")
    return InputError(f"{where}: no tar header at byte {at} ({error}): {REMEDY}")


def _compression(header: bytes) -> str | None:
    """What decompresses a file that begins so, None when it is not compressed."""
    return next((command for magic, command in COMPRESSED.items() if header.startswith(magic)), None)


def _check(header: bytes) -> None:
    """Raises ValueError when this is not a header."""
    if len(header) < BLOCK or _sum(header) - sum(header[148:156]) + 8 * 32 != _number(header[148:156]):
        raise ValueError("wrong checksum")


def _sum(header: bytes) -> int:
    """The sum of the bytes; most are zero, and without these it takes a third of the time."""
    return sum(header.translate(None, b"\0"))


def _number(field: bytes) -> int:
    """An octal number, or GNU's binary form for large ones. Raises ValueError."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if field[0] > 0x80:
        raise ValueError("negative size")
    try:
        number = int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        raise ValueError("a number that is not octal") from None
    if number < 0:
        raise ValueError("negative size")  # which would lead back to an earlier member, for ever
    return number


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    if header[257:265] == b"ustar\00000" and header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return _text(name)


def _text(name: bytes) -> str:
    """A name to be shown: what is not UTF-8, or what a terminal would take for a command, is escaped."""
    text = name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _extended(records: bytes, name: str | None) -> tuple[str | None, int | None]:
    """The path and size of a pax header's `LENGTH KEY=VALUE` lines."""
    size, begin = None, 0
    while match := RECORD.match(records, begin):
        end = begin + int(match.group(1))
        if not match.end() < end <= len(records):
            break
        key, value = match.group(2), records[match.end() : end - 1]
        if key == b"path":
            name = _text(value)
        elif key == b"size" and re.fullmatch(rb"\d{1,20}", value):
            size = int(value)
        begin = end
    return name, size
