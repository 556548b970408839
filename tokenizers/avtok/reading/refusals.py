"""Why a file does not open, in words: FFmpeg says "invalid data" of an empty file and of an encrypted one."""

from __future__ import annotations

from pathlib import Path

HEAD_BYTES = 1 << 20
_ENCRYPTED = (b"encv", b"enca", b"pssh")  # sample entries and key boxes of ISO common encryption
_MIN_BOX_BYTES = 8


def why_refused(path: str, said: str) -> str:
    """What the first bytes tell, or else what FFmpeg said."""
    try:
        size = Path(path).stat().st_size
        with Path(path).open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return said
    if not size:
        return "it is empty"
    if head[4:8] not in (b"ftyp", b"styp", b"moov"):
        return said
    if any(name in head for name in _ENCRYPTED):
        return "it is encrypted"
    return _broken_box(head, size) or said


def _broken_box(head: bytes, size: int) -> str:
    """The first box of an ISO file (MP4, MOV) whose length cannot be."""
    at = 0
    while at + 16 <= len(head):
        length, name = int.from_bytes(head[at : at + 4]), head[at + 4 : at + 8]
        if length == 1:  # its length stands behind its name
            length = int.from_bytes(head[at + 8 : at + 16])
        if length == 0:  # to the end of the file
            return ""
        if length < _MIN_BOX_BYTES or at + length > size:
            name = name.decode("ascii", "replace")
            return f"its box {name!r} at byte {at} says that it has {length} bytes"
        at += length
    return ""
