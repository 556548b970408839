"""Where the members of a tar lie, by one pass over its headers; nothing is unpacked.

POSIX, GNU and pax archives: long names, sizes in base 256, hard links to earlier members. Not compressed
ones, which cannot be read by byte range.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from ray_jobs.stores import RangeReader, is_remote

BLOCK = 512
REMOTE_WINDOW_BYTES, LOCAL_WINDOW_BYTES = 1 << 20, 64 << 10
MAX_EXTENDED_BYTES = 1 << 20  # of a long name or a pax header
REGULAR, HARD_LINK, GNU_SPARSE = b"0\07", b"1", b"S"
WITHOUT_DATA = b"123456"
GNU_NAME, GNU_LINK, PAX_NEXT, PAX_ALL = b"L", b"K", b"xX", b"g"


class TarError(Exception):
    """Where and why an archive breaks off; what came before it is whole."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a tar. reason: why its bytes cannot be read, empty if they can."""

    name: str
    offset: int
    size: int
    reason: str = ""


class Window:
    """Reads of a file at any offset; small ones that follow each other cost one request."""

    def __init__(self, uri: str) -> None:
        self.uri, self._reader = uri, RangeReader(uri)
        self.num_bytes = self._reader.num_bytes
        self._window_bytes = REMOTE_WINDOW_BYTES if is_remote(uri) else LOCAL_WINDOW_BYTES
        self._first, self._held = 0, b""

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Fewer bytes at the end of the file."""
        if not self._first <= offset <= offset + num_bytes <= self._first + len(self._held):
            wanted = min(max(num_bytes, self._window_bytes), max(0, self.num_bytes - offset))
            self._held, self._first = self._reader.read_at(offset, wanted), offset
        begin = offset - self._first
        return self._held[begin : begin + num_bytes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.__exit__()


def entries(window: Window) -> Iterator[Entry]:
    """Files in their order. TarError where it is no tar, or breaks off."""
    offset, pax_all, extended = 0, dict[str, str](), dict[str, str]()
    known: dict[str, Entry] = {}
    while offset < window.num_bytes:
        block = window.read(offset, BLOCK)
        if not block.strip(b"\0"):
            return
        kind, name, link, size = _header(block, offset)
        data = offset + BLOCK
        if kind in GNU_NAME + GNU_LINK + PAX_NEXT + PAX_ALL:
            if size > MAX_EXTENDED_BYTES:
                raise TarError(f"a header of {size} bytes at byte {offset}")
            told = window.read(data, size)
            if kind in PAX_NEXT + PAX_ALL:
                (pax_all if kind == PAX_ALL else extended).update(_pax(told, offset))
            else:
                extended["path" if kind == GNU_NAME else "linkpath"] = _string(told)
            offset = data + _padded(size)
            continue
        told = pax_all | extended
        extended = {}
        name, link = told.get("path", name), told.get("linkpath", link)
        size = _number(told.get("size"), size, offset)
        if kind in REGULAR and not name.endswith("/"):  # old archives mark folders by the slash alone
            is_sparse = any(key.startswith("GNU.sparse") for key in told)
            known[name] = entry = _entry(name, data, size, window, is_sparse=is_sparse)
            yield entry
        elif kind == HARD_LINK and link in known:
            yield Entry(name, known[link].offset, known[link].size, known[link].reason)
        elif kind == GNU_SPARSE:
            yield _entry(name, data, size, window, is_sparse=True)
        offset = data + (0 if kind in WITHOUT_DATA else _padded(size))
    if extended:
        raise TarError("ends behind a header that names its next member")


def _entry(name: str, offset: int, size: int, window: Window, *, is_sparse: bool) -> Entry:
    missing = offset + size - window.num_bytes
    reason = f"the archive ends {missing} bytes before this member does" if missing > 0 else ""
    return Entry(name, offset, size, "is stored as a sparse file" if is_sparse else reason)


def _header(block: bytes, offset: int) -> tuple[bytes, str, str, int]:
    """(kind, name, link, size)"""
    if len(block) < BLOCK:
        raise TarError(f"half a header at byte {offset}")
    unsigned = sum(block) - sum(block[148:156]) + 8 * 0x20
    if _octal(block[148:156]) not in (
        unsigned,
        unsigned - 256 * sum(byte > 127 for byte in _without_sum(block)),
    ):
        raise TarError(f"no tar header at byte {offset}" if offset else "is not a tar archive")
    size = int.from_bytes(block[125:136], "big") if block[124] == 0x80 else _octal(block[124:136])
    if size is None:
        raise TarError(f"a header without a size at byte {offset}")
    name, prefix = _string(block[:100]), _string(block[345:500])
    if block[257:263] == b"ustar\0" and prefix:  # GNU archives keep times there
        name = f"{prefix}/{name}"
    return block[156:157], name, _string(block[157:257]), size


def _without_sum(block: bytes) -> bytes:
    return block[:148] + block[156:]


def _pax(records: bytes, offset: int) -> dict[str, str]:
    """Records of "LENGTH KEY=VALUE\\n"."""
    told: dict[str, str] = {}
    while records.strip(b"\0"):
        digits = records.partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = records[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or not 0 < length <= len(records):  # of 0 there is no end
            raise TarError(f"a pax header that does not read at byte {offset}")
        told[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        records = records[length:]
    return told


def _number(told: str | None, size: int, offset: int) -> int:
    if told is None:
        return size
    if not told.isdigit():
        raise TarError(f"a pax header with size={told!r:.20} at byte {offset}")
    return int(told)


def _octal(field: bytes) -> int | None:
    digits = field.strip(b"\0 ").partition(b"\0")[0]
    return int(digits, 8) if digits and not digits.strip(b"01234567") else (0 if not digits else None)


def _string(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
