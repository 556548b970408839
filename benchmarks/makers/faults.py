"""Breaks media files as disks, networks, editors and attackers do. The same seed breaks the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath

import numpy as np

Random = np.random.Generator
Others = list[tuple[str, bytes]]  # name and bytes of the other files
SUFFIXES = (".mp4", ".mkv", ".avi", ".ts", ".wav", ".mp3", ".png", ".flv", ".ogg", ".txt", "")
# Where sizes and counts stand: tag, bytes from its start to the number, width of the number, byte order.
_SIZES: tuple[tuple[bytes, int, int, str], ...] = (
    *(
        (tag, -4, 4, "big")
        for tag in (b"moov", b"trak", b"stbl", b"stsd", b"mdat", b"moof", b"traf", b"edts")
    ),
    *((tag, 8, 4, "big") for tag in (b"stts", b"stsc", b"stco", b"ctts", b"elst", b"trun", b"stss", b"sgpd")),
    *((tag, 12, 4, "big") for tag in (b"stsz", b"mdhd", b"mvhd", b"tkhd")),
    *(
        (tag, 4, 4, "little")
        for tag in (b"RIFF", b"LIST", b"fmt ", b"data", b"avih", b"strh", b"strf", b"idx1")
    ),
    *((tag, 4, 4, "little") for tag in (b"00dc", b"01wb")),
    *((tag, 4, 4, "big") for tag in (b"FORM", b"COMM", b"SSND", b"caff", b"desc", b"IHDR")),
    *((tag, 2, 8, "big") for tag in (b"\x42\x86", b"\x44\x89")),  # Matroska: version, duration
    *(
        (tag, 4, 8, "big")
        for tag in (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75", b"\x16\x54\xae\x6b", b"\x15\x49\xa9\x66")
    ),
    (b"\xa3", 1, 2, "big"),  # a block of Matroska
    (b"OggS", 6, 8, "little"),
    (b"OggS", 26, 1, "little"),
    (b"fLaC", 4, 4, "big"),
    (b"GIF8", 6, 2, "little"),
    (b"\xff\xc0", 5, 4, "big"),  # height and width of a JPEG
    (b"FLV\x01", 13, 4, "big"),
)
_GIANT = (0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0x00FFFFFF, 0x7FFFFFFFFFFFFFFF, 0x01FFFFFFFFFFFFFE, 0xFFFF, 0)


def break_file(name: str, data: bytes, others: Others, random: Random) -> tuple[str, str, bytes]:
    """The kind of fault, the file's name and its bytes."""
    kind = list(FAULTS)[random.integers(len(FAULTS))]
    if kind == "wrong_extension":
        return kind, PurePath(name).stem + str(random.choice(SUFFIXES)), data
    return kind, name, FAULTS[kind](data, others, random)


def _bit_flips(data: bytes, others: Others, random: Random) -> bytes:
    broken = np.frombuffer(data, np.uint8).copy()
    places = random.integers(len(broken), size=2 ** random.integers(0, 8))
    np.bitwise_xor.at(broken, places, (1 << random.integers(8, size=len(places))).astype(np.uint8))
    return broken.tobytes()


def _header_flips(data: bytes, others: Others, random: Random) -> bytes:
    head = 2 ** int(random.integers(4, 12))
    return _bit_flips(data[:head], others, random) + data[head:]


def _byte_run(data: bytes, others: Others, random: Random) -> bytes:
    start, length = _span(data, random)
    fills = (bytes(length), b"\xff" * length, random.bytes(length))
    return data[:start] + fills[random.integers(3)] + data[start + length :]


def _truncate(data: bytes, others: Others, random: Random) -> bytes:
    return data[: random.integers(1, len(data))]


def _truncate_at_packet(data: bytes, others: Others, random: Random) -> bytes:
    return data[: max(188, int(random.integers(1, len(data))) // 188 * 188)]


def _cut_out(data: bytes, others: Others, random: Random) -> bytes:
    start, length = _span(data, random)
    return data[:start] + data[start + length :]


def _swapped_header(data: bytes, others: Others, random: Random) -> bytes:
    head = 2 ** int(random.integers(3, 11))
    return _other(others, random)[:head] + data[head:]


def _giant_size(data: bytes, others: Others, random: Random) -> bytes:
    found = [
        (place + shift, width, order) for tag, shift, width, order in _SIZES for place in _places(data, tag)
    ]
    found = [at for at in found if 0 <= at[0] <= len(data) - at[1]]
    found = found or [(int(random.integers(max(1, min(len(data), 512) - 4))), 4, "big")]
    place, width, order = found[random.integers(len(found))]
    value = _GIANT[random.integers(len(_GIANT))] % (1 << (8 * width))
    return data[:place] + value.to_bytes(width, order) + data[place + width :]


def _zero_length(data: bytes, others: Others, random: Random) -> bytes:
    return b""


def _concatenated(data: bytes, others: Others, random: Random) -> bytes:
    return data + _other(others, random)


def _reordered(data: bytes, others: Others, random: Random) -> bytes:
    first, second, third = sorted(random.integers(len(data) + 1, size=3))
    return data[:first] + data[second:third] + data[first:second] + data[third:]


def _repeated(data: bytes, others: Others, random: Random) -> bytes:
    start, length = _span(data, random)
    return data[: start + length] + data[start:]


def _garbage_prefix(data: bytes, others: Others, random: Random) -> bytes:
    return random.bytes(2 ** int(random.integers(0, 13))) + data


FAULTS: dict[str, Callable[[bytes, Others, Random], bytes]] = {
    "bit_flips": _bit_flips,
    "header_flips": _header_flips,
    "byte_run": _byte_run,
    "truncate": _truncate,
    "truncate_at_packet": _truncate_at_packet,
    "cut_out": _cut_out,
    "swapped_header": _swapped_header,
    "giant_size": _giant_size,
    "zero_length": _zero_length,
    "wrong_extension": lambda data, others, random: data,
    "concatenated": _concatenated,
    "reordered": _reordered,
    "repeated": _repeated,
    "garbage_prefix": _garbage_prefix,
}


def _span(data: bytes, random: Random) -> tuple[int, int]:
    length = min(len(data), 2 ** int(random.integers(0, 15)))
    return int(random.integers(len(data) - length + 1)), length


def _other(others: Others, random: Random) -> bytes:
    return others[random.integers(len(others))][1]


def _places(data: bytes, tag: bytes) -> list[int]:
    """The first few: later ones are payload that looks like a tag."""
    places, at = [], data.find(tag)
    while at >= 0 and len(places) < 4:
        places.append(at)
        at = data.find(tag, at + 1)
    return places
